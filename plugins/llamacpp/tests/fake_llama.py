"""Stands in for `llama-server`: a program with its arguments, log lines, port and ways to fail.

What it does differently is said by the file that FAKE_LLAMA names: a word of `FAILURES`, `slow` (it loads, and answers
503, until the file is gone) or nothing. What it was given stands in FAKE_LLAMA.start.json.
"""

from __future__ import annotations

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

START = """\
0.00.005.560 I srv    load_model: loading model '/models/m.gguf'
0.00.105.560 I load_tensors: offloaded 33/33 layers to GPU
0.00.105.580 I load_tensors:        CUDA0 model buffer size =  4095.05 MiB
0.00.205.560 I llama_kv_cache:      CUDA0 KV buffer size =   512.00 MiB
0.00.575.706 I srv    load_model: initializing, n_slots = 4, n_ctx_slot = 4096, kv_unified = 'true'
"""
OPEN = "0.00.578.515 I srv          init: listening on http://127.0.0.1:8081\n"
LOADING = "0.00.007.229 E srv    load_model: failed to load model, '/models/m.gguf'\n"
FAILURES = {
    "memory": "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 4095.05 MiB on device 0: cudaMalloc failed: out "
    "of memory\nllama_model_load: error loading model: unable to allocate CUDA0 buffer\n" + LOADING,
    "kind": "llama_model_load: error loading model: error loading model architecture: unknown model architecture: "
    "'future3'\n" + LOADING,
    "cut": "llama_model_load: error loading model: tensor 'blk.3.ffn_up.weight' data is not within the file bounds, "
    "model is corrupted or incomplete\n" + LOADING,
    "port": "E srv start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 8081\n",
    "argument": "error: invalid argument: --no-such-option\n",
    "value": 'error while handling argument "--pooling": invalid value\n\nusage:\n',
    "cache": "E llama_init_from_model: quantized V cache was requested, but this requires Flash Attention\n" + LOADING,
}


def mode() -> str:
    path = Path(os.environ["FAKE_LLAMA"])
    return path.read_text().strip() if path.exists() else ""


class Server(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    loaded = False

    def log_message(self, *_: Any) -> None: ...

    def _say(self, body: Any, status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if not self.loaded:
            error = {"message": "Loading model", "type": "unavailable_error", "code": 503}
            self._say({"error": error}, 503)
        else:
            self._say({"status": "ok"})

    def do_POST(self) -> None:
        fields = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = os.environ.get("LLAMA_API_KEY")
        if key and self.headers["Authorization"] != f"Bearer {key}":
            self._say({"error": {"message": "Invalid API Key", "type": "authentication_error", "code": 401}}, 401)
            return
        message = {"role": "assistant", "content": f"{fields['model']} of process {os.getpid()}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self._say({"id": "c", "object": "chat.completion", "created": 1, "choices": [choice]})


def main(arguments: list[str]) -> int:
    given = {"argv": arguments, "env": dict(os.environ), "pid": os.getpid()}
    Path(os.environ["FAKE_LLAMA"] + ".start.json").write_text(json.dumps(given))
    print(START, file=sys.stderr, flush=True)
    if mode() in FAILURES:
        print(FAILURES[mode()], file=sys.stderr, flush=True)
        return 1
    options = dict(pairwise(arguments))
    server = ThreadingHTTPServer((options["--host"], int(options["--port"])), Server)
    Thread(target=server.serve_forever, daemon=True).start()
    while mode() == "slow":
        time.sleep(0.01)
    Server.loaded = True
    print(OPEN, file=sys.stderr, flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
