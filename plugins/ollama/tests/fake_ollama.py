"""Stands in for Ollama: its own API on a real socket, with its checks, words and statuses.

After https://docs.ollama.com/api and `server/routes.go`. What is answered is said by `say`: pieces of messages, in
order; a piece with `error` ends the stream as Ollama ends one that fails, and `CUT` as one whose process has died.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
from typing import Any

from headrace.testing import Listening

CUT: dict[str, Any] = {"cut": True}
SILENCE: dict[str, Any] = {"silence": True}
PAUSE: dict[str, Any] = {"pause": True}
MARKS = (CUT, SILENCE, PAUSE)
STAMP = "2025-11-21T22:30:14.123456789Z"
COUNTS = {"total_duration": 5_000_000, "prompt_eval_count": 26, "prompt_eval_duration": 1_000, "eval_count": 3}
DEFAULT = [{"content": "Hel"}, {"content": "lo"}, {"content": "!"}]
MODELS = {
    "llama3.2:latest": ["completion", "tools"],
    "qwen3:8b": ["completion", "tools", "thinking"],
    "gpt-oss:20b": ["completion", "tools", "thinking"],
    "llava:latest": ["completion", "vision"],
    "nomic-embed-text:latest": ["embedding"],
    "codellama:code": ["completion", "insert"],
}


class Refused(Exception):
    def __init__(self, status: int, words: str) -> None:
        self.status, self.words = status, words


class FakeOllama(Listening):
    """
    Attributes:
        say: pieces of the next answers.
        reason: `done_reason` of answers; None: an older Ollama that says none.
        counts: what the last line counts.
        cut_lines: send each line in two pieces.
        requests: every request so far: method, path, headers, fields.
        go: what `PAUSE` waits for.
        left: set when a client left before its answer was complete.
        context: words that a prompt may have.
        fails: a status and words that answer everything.
    """

    def __init__(self) -> None:
        self.say: list[dict[str, Any]] = list(DEFAULT)
        self.reason: str | None = "stop"
        self.counts: dict[str, Any] = dict(COUNTS)
        self.cut_lines = False
        self.models = dict(MODELS)
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        self.connections = 0
        self.left = asyncio.Event()
        self.go = asyncio.Event()
        self.context = 4096
        self.fails: tuple[int, str] | None = None
        self.knows_dimensions = True
        self.pulls: list[dict[str, Any]] = [
            {"status": "pulling manifest"},
            {"status": "pulling 6a0746a1ec1a", "digest": "sha256:6a07", "total": 4_000_000_000},
            *({"status": "pulling 6a0746a1ec1a", "total": 4_000_000_000, "completed": n * 10**9} for n in range(1, 5)),
            {"status": "verifying sha256 digest"},
            {"status": "success"},
        ]

    @property
    def asked(self) -> Any:
        """The fields of the last request."""
        return self.requests[-1][3]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        await super()._serve(reader, writer)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        fields = json.loads(body) if body else None
        self.requests.append((method, path, headers, fields))
        answer = asyncio.ensure_future(self._answer(method, path, fields, writer))
        gone = asyncio.ensure_future(reader.read(1))
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            answer.cancel()
            self.left.set()
            return False
        gone.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await gone
        return answer.result()

    async def _answer(self, method: str, path: str, fields: Any, writer: asyncio.StreamWriter) -> bool:
        try:
            if self.fails is not None:
                raise Refused(*self.fails)
            handler = getattr(self, f"_{method}{path.replace('/', '_')}", None)
            if handler is None:
                _whole(writer, b"404 page not found", 404, "text/plain")
                return True
            found = handler(fields)
        except Refused as refused:
            _whole(writer, json.dumps({"error": refused.words}).encode(), refused.status)
            return True
        if isinstance(found, list):
            return await self._stream(writer, found)
        _whole(writer, json.dumps(found).encode())
        return True

    async def _stream(self, writer: asyncio.StreamWriter, lines: list[dict[str, Any]]) -> bool:
        if lines and lines[0] is SILENCE:
            await asyncio.Event().wait()
        if lines and "error" in lines[0]:  # before anything else there is a status for it
            _whole(writer, json.dumps({"error": lines[0]["error"]}).encode(), lines[0].get("status", 500))
            return True
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n")
        for line in lines:
            if line is CUT:
                await writer.drain()
                return False
            if line is SILENCE:
                await asyncio.Event().wait()
            if line is PAUSE:
                await self.go.wait()
                continue
            data = json.dumps(line).encode() + b"\n"
            for part in (data[:7], data[7:]) if self.cut_lines else (data,):
                writer.write(b"%x\r\n%s\r\n" % (len(part), part))
                await writer.drain()
                if self.cut_lines:
                    await asyncio.sleep(0.001)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    # --- answers ---

    def _POST_api_chat(self, fields: Any) -> Any:
        model = self._model(fields)
        for message in fields["messages"]:
            _check_message(message)
        self._check(fields, model, " ".join(message["content"] for message in fields["messages"]))
        if fields.get("tools") and "tools" not in self.models[model]:
            raise Refused(400, f"registry.ollama.ai/library/{model} does not support tools")
        if any(message.get("images") for message in fields["messages"]) and "vision" not in self.models[model]:
            raise Refused(500, "Failed to create new sequence: failed to process inputs: this model is missing data")
        if not fields["messages"]:
            return self._lines(fields, [], "unload" if fields.get("keep_alive") == 0 else "load")
        return self._lines(fields, self.say, self.reason)

    def _lines(self, fields: Any, pieces: list[dict[str, Any]], reason: str | None) -> Any:
        head = {"model": fields["model"], "created_at": STAMP}
        last = {"done": True, **({"done_reason": reason} if reason else {}), **self.counts}
        ended = pieces and (pieces[-1] in (CUT, SILENCE) or "error" in pieces[-1])
        lines = [self._line(head, piece, done=False) for piece in pieces]
        if fields.get("stream", True):
            return lines if ended else [*lines, {**head, "message": {"role": "assistant", "content": ""}, **last}]
        if ended:
            raise Refused(pieces[-1].get("status", 500), pieces[-1].get("error", "the runner has died"))
        message: dict[str, Any] = {"role": "assistant", "content": ""}
        logprobs: list[Any] = []
        for piece in pieces:
            for name in ("content", "thinking"):
                if name in piece:
                    message[name] = message.get(name, "") + piece[name]
            if "tool_calls" in piece:
                message["tool_calls"] = [*message.get("tool_calls", []), *piece["tool_calls"]]
            logprobs += piece.get("logprobs", [])
        return {**head, "message": message, **({"logprobs": logprobs} if logprobs else {}), **last}

    def _line(self, head: dict[str, Any], piece: dict[str, Any], *, done: bool) -> dict[str, Any]:
        if piece in MARKS or "error" in piece:
            return piece
        message = {name: value for name, value in piece.items() if name != "logprobs"}
        extra = {"logprobs": piece["logprobs"]} if "logprobs" in piece else {}
        return {**head, "message": {"role": "assistant", "content": "", **message}, "done": done, **extra}

    def _POST_api_generate(self, fields: Any) -> Any:
        model = self._model(fields)
        if not fields.get("prompt"):
            reason = "unload" if fields.get("keep_alive") == 0 else "load"
            return {"model": model, "created_at": STAMP, "response": "", "done": True, "done_reason": reason}
        self._check(fields, model, fields["prompt"])
        if fields.get("suffix") and "insert" not in self.models[model]:
            raise Refused(400, f"registry.ollama.ai/library/{model} does not support insert")
        found = self._lines(fields, self.say, self.reason)
        return [_generated(line) for line in found] if isinstance(found, list) else _generated(found)

    def _POST_api_embed(self, fields: Any) -> Any:
        model = self._model(fields)
        texts = [fields["input"]] if isinstance(fields["input"], str) else fields["input"]
        if not all(isinstance(text, str) for text in texts):
            raise Refused(400, "invalid input type")
        if fields.get("truncate") is False and any(len(text.split()) > self.context for text in texts):
            raise Refused(400, "the input length exceeds the context length")
        size = fields.get("dimensions", 4) if self.knows_dimensions else 4
        vectors = [[0.1 * (number + 1) + place for place in range(size)] for number in range(len(texts))]
        return {"model": model, "embeddings": vectors, "total_duration": 1, "prompt_eval_count": 8}

    def _GET_api_tags(self, _: Any) -> Any:
        details = {"family": "llama", "parameter_size": "3.2B", "quantization_level": "Q4_K_M"}
        named = {"size": 2_019_393_189, "digest": "a80c", "modified_at": STAMP, "details": details}
        return {"models": [{"name": name, "model": name, **named} for name in self.models]}

    def _GET_api_version(self, _: Any) -> Any:
        return {"version": "0.33.2"}

    def _POST_api_show(self, fields: Any) -> Any:
        model = self._model(fields)
        return {
            "license": "…",
            "modelfile": "FROM …",
            "parameters": 'num_ctx    8192\nstop    "<|eot_id|>"',
            "details": {"family": "llama", "parameter_size": "3.2B", "quantization_level": "Q4_K_M", "families": None},
            "model_info": {"general.architecture": "llama", "llama.context_length": 131072},
            "capabilities": self.models[model],
        }

    def _GET_api_ps(self, _: Any) -> Any:
        loaded = {"size": 4_000_000_000, "size_vram": 3_000_000_000, "expires_at": STAMP, "context_length": 4096}
        return {"models": [{"name": "llama3.2:latest", "model": "llama3.2:latest", **loaded}]}

    def _DELETE_api_delete(self, fields: Any) -> Any:
        del self.models[self._model(fields)]
        return {}

    def _POST_api_pull(self, fields: Any) -> Any:
        return self.pulls

    def _POST_v1_chat_completions(self, fields: Any) -> Any:
        choice = {"index": 0, "message": {"role": "assistant", "content": "passed"}, "finish_reason": "stop"}
        return {"id": "chatcmpl-1", "object": "chat.completion", "model": fields["model"], "choices": [choice]}

    # --- what Ollama refuses ---

    def _model(self, fields: Any) -> str:
        name = fields["model"]
        full = name if ":" in name else f"{name}:latest"
        if full not in self.models:
            raise Refused(404, f"model '{name}' not found")
        return full

    def _check(self, fields: Any, model: str, prompt: str) -> None:
        capabilities = self.models[model]
        if "completion" not in capabilities:
            raise Refused(400, f'"{model}" does not support chat')
        think = fields.get("think")
        if isinstance(think, str) and "gpt-oss" not in model:
            raise Refused(400, f'think value "{think}" is not supported for this model')
        if think and "thinking" not in capabilities:
            raise Refused(400, f'"{model}" does not support thinking')
        wanted = fields.get("format")
        if wanted not in (None, "json") and not isinstance(wanted, dict):
            raise Refused(400, f'invalid format: {json.dumps(wanted)}; expected "json" or a valid JSON Schema object')
        if fields.get("shift") is False and len(prompt.split()) > self.context:
            words = "the prompt is longer than the context length currently available to the model; shorten the prompt"
            raise Refused(400, words)


def _generated(line: dict[str, Any]) -> dict[str, Any]:
    if "message" not in line:
        return line
    message = line.pop("message")
    return {
        **line,
        "response": message["content"],
        **({"thinking": message["thinking"]} if "thinking" in message else {}),
    }


def _check_message(message: Any) -> None:
    if not isinstance(message["content"], str):
        raise Refused(
            400, "json: cannot unmarshal array into Go struct field ChatRequest.messages.content of type string"
        )
    for image in message.get("images") or ():
        try:
            base64.b64decode(image, validate=True)
        except binascii.Error as error:
            raise Refused(400, "illegal base64 data at input byte 4") from error
    for call in message.get("tool_calls") or ():
        if not isinstance(call["function"]["arguments"], dict):
            raise Refused(400, "json: cannot unmarshal string into Go struct field .arguments")


def _whole(writer: asyncio.StreamWriter, body: bytes, status: int = 200, kind: str = "application/json") -> None:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}; charset=utf-8\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
