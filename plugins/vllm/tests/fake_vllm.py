"""Stands in for `vllm serve`: a program with vLLM's arguments, processes, log lines, port and ways to fail.

What it does differently is said by a file beside its log, named in FAKE_VLLM: a word of `FAILURES`, `slow` (it loads
until the file is gone) or nothing. It writes down what it was given as JSON in FAKE_VLLM.NAME.json, NAME being `port`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

START = """\
(APIServer pid=1) INFO 11-21 22:30:14 [api_utils.py:286] non-default args: {}
(APIServer pid=1) INFO 11-21 22:30:14 [model.py:733] Resolved architecture: LlamaForCausalLM
(EngineCore pid=2) INFO 11-21 22:30:21 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: model='m'
(Worker_TP0 pid=3) INFO 11-21 22:30:30 [gpu_model_runner.py:5040] Starting to load model m...
Loading safetensors checkpoint shards:   0% Completed | 0/4 [00:00<?, ?it/s]\r\
Loading safetensors checkpoint shards: 100% Completed | 4/4 [00:09<00:00,  2.1s/it]
(Worker_TP0 pid=3) INFO 11-21 22:30:30 [default_loader.py:501] Loading weights took 9.01 seconds
(Worker_TP0 pid=3) INFO 11-21 22:30:30 [gpu_model_runner.py:5150] Model loading took 14.99 GiB memory and 9.7 seconds
(Worker_TP0 pid=3) INFO 11-21 22:30:31 [gpu_worker.py:760] Available KV cache memory: 55.31 GiB
(EngineCore pid=2) INFO 11-21 22:30:31 [kv_cache_utils.py:2327] GPU KV cache size: 453,056 tokens, Maximum concurrency
Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  42%|####2     | 28/67 [00:02<00:03, 12.1it/s]
(Worker_TP0 pid=3) INFO 11-21 22:30:31 [gpu_model_runner.py:6582] Graph capturing finished in 6 secs, took 0.62 GiB
"""
OPEN = "(APIServer pid=1) INFO 11-21 22:30:34 [entry.py:140] Starting vLLM server on http://127.0.0.1:8000\n"
ERROR = "(EngineCore pid=2) ERROR 11-21 22:30:40 [core.py:1510] "
ROOT = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n"
FAILURES = {
    "memory": ERROR + "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 224.00 MiB. GPU 0 has\n" + ROOT,
    "busy": ERROR + "ValueError: Free memory on device cuda:0 (3.21/79.10 GiB) on startup is less than desired GPU "
    "memory utilization (0.92, 72.77 GiB). Decrease GPU memory utilization or reduce GPU memory used by other "
    "processes.\n" + ROOT,
    "length": ERROR + "ValueError: To serve at least one request with the model's max seq len (131072), (16.00 GiB KV "
    "cache is needed, which is larger than the available KV cache memory (5.10 GiB). Based on the available memory, "
    "the estimated maximum model length is 41760. Try increasing `gpu_memory_utilization`\n" + ROOT,
    "unknown": "OSError: no/such is not a local folder and is not a valid model identifier listed on "
    "'https://huggingface.co/models'\nIf this is a private repository, make sure to pass a token\n",
    "gated": "huggingface_hub.errors.GatedRepoError: 401 Client Error. (Request ID: Root=1-6)\n\nCannot access gated "
    "repo for url https://huggingface.co/x/resolve/main/config.json.\n",
    "offline": "OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in "
    "the cached files.\n",
    "devices": "ValueError: World size (4) is larger than the number of available GPUs (2) in this node.\n",
    "heads": "  Value error, Total number of attention heads (28) must be divisible by tensor parallel size (8). "
    "[type=value_error, input_value=ArgsKwargs((), {'model_co... 'shutdown_timeout': 0}), input_type=ArgsKwargs]\n",
    "dtype": "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your Tesla\n",
    "head size": "ValueError: No valid attention backend found for cuda with AttentionSelectorConfig(head_size=16)\n",
    "port": "OSError: [Errno 98] Address already in use\n",
    "arguments": "usage: vllm [-h] [-v]\nvllm: error: unrecognized arguments: --no-such-option\n",
    "worker": ERROR + "Worker proc VllmWorker-1 died unexpectedly (exit code: -9), shutting down executor.\n" + ROOT,
    "strange": "Traceback (most recent call last):\nKeyError: 'rope_scaling'\n",
}
BELOW = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"


class Server(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    names: tuple[str, ...] = ()
    adapters: dict[str, str] = {}
    sleeping = False
    asked: list[Any] = []

    def log_message(self, *_: Any) -> None: ...

    def _say(self, body: Any, status: int = 200) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if self.path == "/health":
            self._say("", 503 if mode() == "dead" else 200)
        elif not self._may():
            return
        elif self.path == "/v1/models":
            cards = [{"id": name, "root": "/m", "parent": None, "owned_by": "vllm"} for name in self.names]
            cards += [{"id": name, "root": path, "parent": self.names[0]} for name, path in self.adapters.items()]
            self._say({"object": "list", "data": cards})
        elif self.path == "/is_sleeping" and os.environ.get("VLLM_SERVER_DEV_MODE"):
            self._say({"is_sleeping": Server.sleeping})
        else:
            self._say({"detail": "Not Found"}, 404)

    def do_POST(self) -> None:
        fields = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        Server.asked.append([self.path, fields])
        note("asked", Server.asked)
        if not self._may():
            return
        path = self.path.partition("?")[0]
        if path.endswith("_lora_adapter") and os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
            self._adapt(path, fields)
        elif path in ("/sleep", "/wake_up") and os.environ.get("VLLM_SERVER_DEV_MODE"):
            Server.sleeping = path == "/sleep"
            self._say({"status": "ok"})
        elif path == "/v1/chat/completions":
            message = {"role": "assistant", "content": f"process {os.getpid()}"}
            usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self._say({"id": "c", "object": "chat.completion", "created": 1, "choices": [choice], "usage": usage})
        else:
            self._say({"detail": "Not Found"}, 404)

    def _may(self) -> bool:
        key = os.environ.get("VLLM_API_KEY")
        if not key or self.headers["Authorization"] == f"Bearer {key}":
            return True
        self._say({"error": "Unauthorized"}, 401)
        return False

    def _adapt(self, path: str, fields: dict[str, Any]) -> None:
        name = fields["lora_name"]
        if path == "/v1/load_lora_adapter":
            if name in self.adapters and not fields.get("load_inplace"):
                message = f"The lora adapter '{name}' has already been loaded."
                self._say({"error": {"message": message, "type": "InvalidUserInput", "code": 400}}, 400)
                return
            self.adapters[name] = fields["lora_path"]
        elif self.adapters.pop(name, None) is None:
            message = f"The lora adapter '{name}' cannot be found."
            self._say({"error": {"message": message, "type": "NotFoundError", "code": 404}}, 404)
            return
        self._say(f"Success: {name}")


def mode() -> str:
    named = os.environ.get("FAKE_VLLM", "")
    return Path(named).read_text().strip() if named and Path(named).exists() else ""


def note(name: str, value: Any) -> None:
    """Write something down for the test."""
    if os.environ.get("FAKE_VLLM"):
        path = Path(f"{os.environ['FAKE_VLLM']}.{value_of('--port')}.{name}.json")
        path.with_suffix(".new").write_text(json.dumps(value))
        path.with_suffix(".new").replace(path)


def value_of(flag: str) -> str:
    return sys.argv[sys.argv.index(flag) + 1]


def below() -> subprocess.Popen[str]:
    """The engine core: it does not notice that we are gone."""
    child = subprocess.Popen([sys.executable, "-S", "-c", BELOW], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.readline()
    return child


def main() -> None:
    below_us: list[subprocess.Popen[str]] = []

    def leave(*_: Any) -> None:
        for child in below_us:
            child.kill()
            child.wait()
        os._exit(0)

    signal.signal(signal.SIGTERM, signal.SIG_IGN if os.environ.get("FAKE_STUBBORN") else leave)
    note("start", {"argv": sys.argv[1:], "env": dict(os.environ), "pid": os.getpid()})
    if (failure := mode()) in FAILURES:
        sys.stdout.write(START.partition("Loading")[0] + FAILURES[failure])
        sys.exit(2 if failure == "arguments" else 1)
    below_us.append(below())
    note("below", [child.pid for child in below_us])
    sys.stdout.write(START)
    sys.stdout.flush()
    while mode() == "slow":
        time.sleep(0.01)
    if mode() == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    names = sys.argv[sys.argv.index("--served-model-name") + 1 :] if "--served-model-name" in sys.argv else []
    Server.names = tuple(names[: next((at for at, n in enumerate(names) if n.startswith("-")), len(names))]) or (
        sys.argv[2],
    )
    if "--lora-modules" in sys.argv:
        Server.adapters["style"] = value_of("--lora-modules").partition("=")[2]
    server = ThreadingHTTPServer((value_of("--host"), int(value_of("--port"))), Server)
    server.daemon_threads = True
    print(OPEN, end="", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
