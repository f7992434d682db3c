"""What `[plugins.llamacpp]` may say."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from headrace.config import Count, Positive, Secret, Strict
from headrace.engines import local

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
OWN_FLAGS = {
    **dict.fromkeys(("-m", "--model"), "model"),
    **dict.fromkeys(("-a", "--alias"), "alias"),
    **dict.fromkeys(("-mm", "--mmproj"), "mmproj"),
    **dict.fromkeys(("-c", "--ctx-size"), "ctx_size"),
    **dict.fromkeys(("-np", "--parallel"), "parallel"),
    **dict.fromkeys(("-ngl", "--gpu-layers", "--n-gpu-layers"), "n_gpu_layers"),
    **dict.fromkeys(("-t", "--threads"), "threads"),
    **dict.fromkeys(("-b", "--batch-size"), "batch_size"),
    **dict.fromkeys(("-ub", "--ubatch-size"), "ubatch_size"),
    **dict.fromkeys(("-fa", "--flash-attn"), "flash_attn"),
    **dict.fromkeys(("-ctk", "--cache-type-k"), "cache_type_k"),
    **dict.fromkeys(("-ctv", "--cache-type-v"), "cache_type_v"),
    **dict.fromkeys(("--embedding", "--embeddings"), "embeddings"),
    "--pooling": "pooling",
    "--host": "host",
    "--port": "port",
    **dict.fromkeys(("--api-key", "--api-key-file"), "api_key"),
}
"""Arguments that have a key of their own."""
IMPOSSIBLE_FLAGS = ("--ssl-key-file", "--ssl-cert-file", "--api-prefix", "--models-dir", "--models-preset")
"""Arguments with which the gateway would not find the engine, or its model."""
OWN_VARIABLES = {"LLAMA_API_KEY": "api_key"}
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]


class EngineConfig(Strict, frozen=True):
    """`[plugins.llamacpp.engines.NAME]`: a llama.cpp server that `headrace up` starts. What is left out is llama.cpp's
    to decide."""

    model: str
    """The path of a GGUF file; of one in several parts, the first."""
    alias: str = ""
    """What the engine calls the model; left out, the file's name without `.gguf`."""
    mmproj: str = ""
    """The path of the GGUF file that lets the model see pictures."""
    ctx_size: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """Tokens of all requests that are answered at the same time, prompts and answers together: each may have as many,
    divided by `parallel`. 0: what the model was made for."""
    parallel: Annotated[int, msgspec.Meta(ge=1, le=256)] | None = None
    """Requests that are answered at the same time; others wait."""
    n_gpu_layers: Annotated[int, msgspec.Meta(ge=0)] | Literal["auto", "all"] | None = None
    """Layers that are kept in the GPU's memory: a number, `auto`, or `all`."""
    threads: Count | None = None
    """CPU threads that compute."""
    batch_size: Count | None = None
    """Tokens of a prompt that are handed to the model at a time."""
    ubatch_size: Count | None = None
    """Tokens that are computed in one step. A text that is embedded must fit into it."""
    flash_attn: Literal["on", "off", "auto"] | None = None
    """Whether attention is computed by the kernels that need less memory."""
    cache_type_k: CacheType | None = None
    """What the KV cache holds keys in; `q8_0` needs half the memory of `f16`."""
    cache_type_v: CacheType | None = None
    """What the KV cache holds values in; less than `f16` wants flash attention."""
    embeddings: bool = False
    """For embedding models: answer `/v1/embeddings`, and nothing else."""
    pooling: Literal["none", "mean", "cls", "last", "rank"] | None = None
    """How an embedding is made from those of the tokens; left out, what the file says."""
    host: str = "127.0.0.1"
    """Where it listens."""
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 8081
    """The port; each engine needs one of its own."""
    api_key: Secret | None = None
    """What the engine asks for in `Authorization`, and is sent; it gets it through its environment."""
    env: dict[str, Secret] = msgspec.field(default_factory=dict)
    """More environment variables, `CUDA_VISIBLE_DEVICES` for instance; their values are treated as secrets."""
    args: list[str] = msgspec.field(default_factory=list)
    """More arguments of `llama-server`."""
    command: str = ""
    """The program `llama-server`; left out, it is looked for on the PATH, and where there is none, llama.cpp is run
    from the Python package `xllamacpp`."""
    ready_timeout: Positive = 600.0
    """Seconds its start may take."""
    log_max_bytes: Annotated[int, msgspec.Meta(ge=4096)] = 16_777_216
    """The size at which its log is put aside; one that was is kept."""

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def path(self) -> Path:
        """The model's file."""
        return Path(self.model).expanduser().absolute()

    @property
    def served_name(self) -> str:
        """What it calls the model."""
        return self.alias or self.path.name.removesuffix(".gguf")

    @property
    def listen(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """Where the gateway finds it, without `/v1`."""
        host = local(self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


class LlamacppConfig(Strict, frozen=True):
    """`[plugins.llamacpp]`."""

    engines: dict[str, EngineConfig] = msgspec.field(default_factory=dict)
    """Engines that `headrace up` starts, by name: a backend with `options = { engine = "NAME" }` is one of them."""

    def __post_init__(self) -> None:
        problems = list(_conflicts(self.engines))
        if problems:
            raise ValueError("; ".join(problems))


def _problems(engine: EngineConfig) -> Iterator[str]:
    """What is wrong with one engine."""
    if not engine.model.strip() or engine.model.startswith("-"):
        yield "model: name a GGUF file"
    if not engine.host.strip() or "," in engine.host or engine.host.endswith(".sock"):
        yield "host: give one address"
    if "," in engine.alias:
        yield "alias: give one name"
    batch, step = engine.batch_size, engine.ubatch_size
    if batch and step and step > batch:
        yield f"ubatch_size: {step} is more than batch_size, {batch}"
    if engine.cache_type_v not in (None, "f32", "f16", "bf16") and engine.flash_attn == "off":
        yield f"cache_type_v: {engine.cache_type_v} wants flash attention, and flash_attn is off"
    for flag in dict.fromkeys(each.partition("=")[0] for each in engine.args):
        if flag in OWN_FLAGS:
            yield f"args: {flag} has a key of its own: {OWN_FLAGS[flag]}"
        elif flag in IMPOSSIBLE_FLAGS:
            yield f"args: with {flag} the gateway does not find its engine: run it yourself, and name its base_url"
    for name in engine.env:
        if name in OWN_VARIABLES:
            yield f"env: {name} has a key of its own: {OWN_VARIABLES[name]}"
        elif VARIABLE.fullmatch(name) is None:
            yield f"env: {name!r} is no name of a variable"


def _conflicts(engines: dict[str, EngineConfig]) -> Iterator[str]:
    """What engines cannot have together."""
    by_port: dict[int, list[str]] = defaultdict(list)
    for name, engine in engines.items():
        if NAME.fullmatch(name) is None:
            yield f"engines: {name!r} must be letters, digits, '.', '_' and '-'"
        by_port[engine.port].append(name)
    for port, names in by_port.items():
        if len(names) > 1:
            yield f"engines: {' and '.join(names)} cannot all listen on port {port}: give each its own `port`"
