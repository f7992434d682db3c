"""A backend that knows OpenAI's chats alone, holds a conversation with a tool, and breaks off when asked to.

- Asked with tools, it calls the first one for Oslo; in a stream it says the arguments in fragments.
- Told what the tool said, it repeats that: `It is 21 degrees.`
- Asked to `break off`, its stream ends after two pieces without an end.
- Asked anything else, it counts: `One two three.`
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ARGUMENTS = '{"city": "Oslo"}'
COUNTED = ("One ", "two ", "three.")
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
Request = dict[str, Any]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._whole({"object": "list", "data": [{"id": "weather", "object": "model"}]})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if request.get("stream"):
            self._stream(request)
        else:
            message, reason = _message(request)
            choice = {"index": 0, "message": message, "finish_reason": reason}
            self._whole(_object("chat.completion", choices=[choice], usage=USAGE))

    def _whole(self, said: Any) -> None:
        body = json.dumps(said).encode()
        self._head("application/json", "Content-Length", str(len(body)))
        self.wfile.write(body)

    def _stream(self, request: Request) -> None:
        self._head("text/event-stream", "Transfer-Encoding", "chunked")
        deltas, reason = _deltas(request)
        for delta in deltas:
            self._event(choices=[{"index": 0, "delta": delta, "finish_reason": None}])
        if _text(request["messages"][-1]) == "break off":
            self.close_connection = True
            return
        self._event(choices=[{"index": 0, "delta": {}, "finish_reason": reason}])
        if (request.get("stream_options") or {}).get("include_usage"):
            self._event(choices=[], usage=USAGE)
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _head(self, kind: str, name: str, value: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header(name, value)
        self.end_headers()

    def _event(self, **fields: Any) -> None:
        self._chunk(b"data: " + json.dumps(_object("chat.completion.chunk", **fields)).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def log_message(self, format: str, *arguments: Any) -> None:
        """Keep the test's output clean."""


def _object(kind: str, **fields: Any) -> Request:
    return {"id": "chatcmpl-1", "object": kind, "created": 1, "model": "weather", **fields}


def _text(message: Request) -> str:
    """What a message says, be it a text or made of parts."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _is_call(request: Request) -> bool:
    return bool(request.get("tools")) and request["messages"][-1]["role"] != "tool"


def _words(request: Request) -> tuple[str, ...]:
    last = request["messages"][-1]
    if last["role"] == "tool":
        return ("It is ", _text(last), ".")
    return COUNTED[:2] if _text(last) == "break off" else COUNTED


def _call(request: Request, arguments: str) -> Request:
    name = request["tools"][0]["function"]["name"]
    return {"index": 0, "id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}


def _message(request: Request) -> tuple[Request, str]:
    if _is_call(request):
        call = _call(request, ARGUMENTS)
        del call["index"]
        return {"role": "assistant", "content": None, "tool_calls": [call]}, "tool_calls"
    return {"role": "assistant", "content": "".join(_words(request))}, "stop"


def _deltas(request: Request) -> tuple[list[Request], str]:
    if not _is_call(request):
        return [{"role": "assistant", "content": ""}, *({"content": each} for each in _words(request))], "stop"
    more = ({"index": 0, "function": {"arguments": each}} for each in (ARGUMENTS[:9], ARGUMENTS[9:]))
    first = {"role": "assistant", "content": None, "tool_calls": [_call(request, "")]}
    return [first, *({"tool_calls": [each]} for each in more)], "tool_calls"


@contextlib.contextmanager
def weather_backend() -> Iterator[str]:
    """Its address, with `/v1`, until the context ends."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join(30)
