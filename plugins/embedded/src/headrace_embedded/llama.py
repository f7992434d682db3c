"""llama.cpp in this process: loading a model, and what the loaded model can do."""

from __future__ import annotations

import http.client
import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from headrace.errors import HeadraceError

Callback = Callable[[bytes], bool]
"""Called with each piece of an answer as JSON; returns True to stop. Runs on the thread of the call."""
Handler = Callable[[bytes, Callback], None]

EMBEDDING_BATCH = 512
"""Tokens of one embedding input: llama.cpp computes it in one step."""
ERRORS_ONLY = 1


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How to run a model; see `EmbeddedConfig`."""

    model: Path
    name: str
    threads: int
    context: int
    parallel: int
    batch: int
    embeddings: bool = False
    pooling: Literal["model", "mean", "cls", "last"] = "model"


class CannotLoad(HeadraceError):
    """llama.cpp does not take the model, or not with these options."""


class Llama:
    """A loaded model. Its handlers block and may be called from several threads.

    Raises:
        CannotLoad.
    """

    def __init__(self, options: Options) -> None:
        xllamacpp = _library()
        key = secrets.token_hex(16)
        try:
            self._server = xllamacpp.Server(_params(options, key))
        except (RuntimeError, ValueError) as error:
            raise CannotLoad(f"llama.cpp cannot load {options.model}: {error}") from error
        self.options = options
        properties = _properties(self._server.listening_address, key)
        self.context: int = properties["default_generation_settings"]["n_ctx"]
        """Tokens of one request: what was asked for, or what the model was trained for if that is less."""
        self.calls_tools: bool = properties["chat_template_caps"]["supports_tools"]
        self.chat: Handler = self._server.handle_chat_completions
        self.complete: Handler = self._server.handle_completions
        if options.embeddings:
            self._try_embedding()

    def embed(self, body: bytes) -> bytes:
        """One embedding request, whole. Errors come back as llama.cpp's JSON, or as ValueError, RuntimeError."""
        answer: bytes = self._server.handle_embeddings(body)
        return answer

    def metrics(self) -> str:
        """llama.cpp's own counters in Prometheus' text format. Waits for the current step of computation."""
        text: str = self._server.handle_metrics()
        return text

    def _try_embedding(self) -> None:
        error = json.loads(self.embed(b'{"input": "ready"}')).get("error")
        if error:
            hint = 'set [plugins.embedded] pooling = "mean"' if self.options.pooling == "model" else "choose another"
            raise CannotLoad(f"{self.options.model} gives no embeddings ({error['message']}); {hint}")


def _library() -> Any:
    """llama.cpp. Raises CannotLoad: a library of the system is missing."""
    try:
        import xllamacpp
    except ImportError as error:
        hint = "; install it (Debian: apt install libgomp1)" if "libgomp" in str(error) else ""
        raise CannotLoad(f"llama.cpp cannot be loaded: {error}{hint}") from error
    return xllamacpp


def _params(options: Options, key: str) -> Any:
    """llama.cpp's parameters. Its own HTTP server cannot be turned off: a random key locks it."""
    import xllamacpp

    batch = max(options.batch, EMBEDDING_BATCH) if options.embeddings else options.batch
    params = xllamacpp.CommonParams()
    params.model.path = str(options.model)
    params.model_alias = {options.name}
    params.api_keys = [key]
    params.n_parallel = options.parallel
    params.n_ctx = options.context * options.parallel  # llama.cpp divides it among the slots
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    params.n_batch = params.n_ubatch = max(batch, options.parallel)
    params.cache_ram_mib = 0  # prompts of idle slots would take up to 8 GB
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED  # 1.6 times slower on a CPU
    params.warmup = False
    params.ui = False
    params.n_threads_http = 1  # its HTTP server is asked once, below
    params.endpoint_metrics = True
    params.verbosity = ERRORS_ONLY
    params.embedding = options.embeddings
    if options.pooling != "model":
        params.pooling_type = getattr(xllamacpp.llama_pooling_type, f"LLAMA_POOLING_TYPE_{options.pooling.upper()}")
    return params


def _properties(address: str, key: str) -> dict[str, Any]:
    """What llama.cpp says about the loaded model (`GET /props`), which its in-process interface does not."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=10)
    try:
        connection.request("GET", "/props", headers={"Authorization": f"Bearer {key}"})
        found: dict[str, Any] = json.loads(connection.getresponse().read())
        return found
    finally:
        connection.close()
