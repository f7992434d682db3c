"""What `[plugins.vllm]` may say."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import msgspec

from headrace.config import Count, Positive, Secret, Strict
from headrace.engines import local

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
MEMORY = 0.92
"""What vLLM takes of a GPU's memory if it is not told."""
OWN_FLAGS = {
    "--served-model-name": "served_model_name",
    "--tensor-parallel-size": "tensor_parallel_size",
    "-tp": "tensor_parallel_size",
    "--pipeline-parallel-size": "pipeline_parallel_size",
    "-pp": "pipeline_parallel_size",
    "--max-model-len": "max_model_len",
    "--gpu-memory-utilization": "gpu_memory_utilization",
    "--max-num-seqs": "max_num_seqs",
    "--max-num-batched-tokens": "max_num_batched_tokens",
    "--dtype": "dtype",
    "--quantization": "quantization",
    "-q": "quantization",
    "--kv-cache-dtype": "kv_cache_dtype",
    "--enable-chunked-prefill": "enable_chunked_prefill",
    "--no-enable-chunked-prefill": "enable_chunked_prefill",
    "--enable-prefix-caching": "enable_prefix_caching",
    "--no-enable-prefix-caching": "enable_prefix_caching",
    "--lora-modules": "lora_modules",
    "--enable-sleep-mode": "sleep_mode",
    "--host": "host",
    "--port": "port",
    "--api-key": "api_key",
    "--shutdown-timeout": "drain",
}
"""Arguments that have a key of their own."""
IMPOSSIBLE_FLAGS = ("--uds", "--ssl-keyfile", "--ssl-certfile", "--headless", "--grpc")
"""Arguments with which the gateway would not find the engine."""
OWN_VARIABLES = {"VLLM_API_KEY": "api_key", "CUDA_VISIBLE_DEVICES": "devices"}


class EngineConfig(Strict, frozen=True):
    """`[plugins.vllm.engines.NAME]`: a vLLM server that `headrace up` starts. What is left out is vLLM's to decide."""

    model: str
    """A folder, or the model's name on the Hugging Face hub."""
    served_model_name: str | list[str] = msgspec.field(default_factory=list)
    """What the engine calls the model; left out, `model`. Of several names all work; the first is in its answers."""
    tensor_parallel_size: Count = 1
    """GPUs that each layer is split over."""
    pipeline_parallel_size: Count = 1
    """Groups of such GPUs that the layers are dealt out to."""
    max_model_len: Count | None = None
    """Tokens of a prompt and its answer together; left out, what the model was made for."""
    gpu_memory_utilization: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    """The part of each GPU's memory that it takes: weights, KV cache and all."""
    max_num_seqs: Count | None = None
    """Requests that are worked on at the same time."""
    max_num_batched_tokens: Count | None = None
    """Tokens of one step, of all requests together."""
    dtype: Literal["auto", "half", "float16", "bfloat16", "float", "float32"] | None = None
    """What weights and activations are computed in."""
    quantization: str | None = None
    """How the weights are quantized, `awq` or `fp8` for instance; left out, what the model's own files say."""
    kv_cache_dtype: str | None = None
    """What the KV cache holds, `fp8` for instance."""
    enable_chunked_prefill: bool | None = None
    """Whether a long prompt is read in parts, between which others' tokens are computed."""
    enable_prefix_caching: bool | None = None
    """Whether the KV cache of one prompt serves others that begin as it does."""
    lora_modules: dict[str, str] = msgspec.field(default_factory=dict)
    """LoRA adapters by the name they are asked for: `name = path`."""
    runtime_lora: bool = False
    """Let adapters be loaded and unloaded while it runs (`headrace vllm lora`): whoever reaches its port can do so."""
    sleep_mode: bool = False
    """Let it be put to sleep and woken (`headrace vllm sleep`). vLLM offers that in its development mode alone: whoever
    reaches its port can then do that and more."""
    devices: list[Annotated[int, msgspec.Meta(ge=0)]] = msgspec.field(default_factory=list)
    """The GPUs that it sees (`CUDA_VISIBLE_DEVICES`), as `nvidia-smi` counts them; left out, all of them."""
    nodes: Count = 1
    """Machines that it runs on, by Ray, this one included; see the README."""
    host: str = "127.0.0.1"
    """Where it listens."""
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 8000
    """The port; each engine needs one of its own."""
    api_key: Secret | None = None
    """What the engine asks for in `Authorization`, and is sent; it gets it through its environment."""
    env: dict[str, Secret] = msgspec.field(default_factory=dict)
    """More environment variables, `HF_TOKEN` for instance; their values are treated as secrets."""
    args: list[str] = msgspec.field(default_factory=list)
    """More arguments of `vllm serve`."""
    command: str = ""
    """The program `vllm`; left out, it is looked for beside the gateway's own Python, then on the PATH."""
    python: str = ""
    """In place of `command`: the Python of an environment that vLLM is installed in."""
    ready_timeout: Positive = 1800.0
    """Seconds its start may take, downloads included."""
    drain: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 20.0
    """Seconds that open requests get to finish when it is stopped; 0 cuts them."""
    log_max_bytes: Annotated[int, msgspec.Meta(ge=4096)] = 16_777_216
    """The size at which its log is put aside; one that was is kept."""

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def served_names(self) -> Sequence[str]:
        """What it calls the model, the name in its answers first."""
        given = [self.served_model_name] if isinstance(self.served_model_name, str) else self.served_model_name
        return given or [self.model]

    @property
    def world_size(self) -> int:
        """GPUs that it needs, on all machines together."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def listen(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """Where the gateway finds it, without `/v1`."""
        host = local(self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


class VllmConfig(Strict, frozen=True):
    """`[plugins.vllm]`."""

    engines: dict[str, EngineConfig] = msgspec.field(default_factory=dict)
    """Engines that `headrace up` starts, by name: a backend with `options = { engine = "NAME" }` is one of them."""
    admin_api: bool = False
    """Serve `/admin/vllm/BACKEND/…` to administrators: adapters, sleep and wake."""

    def __post_init__(self) -> None:
        problems = list(_conflicts(self.engines))
        if problems:
            raise ValueError("; ".join(problems))


def _problems(engine: EngineConfig) -> Iterator[str]:
    """What is wrong with one engine."""
    if not engine.model.strip() or engine.model.startswith("-"):
        yield "model: name a folder, or a model of the hub"
    if not all(name.strip() for name in engine.served_names):
        yield "served_model_name: is empty"
    if not engine.host.strip():
        yield "host: is empty"
    if engine.command and engine.python:
        yield "command and python: give one of them"
    yield from _parallel(engine)
    yield from _batches(engine)
    yield from _adapters(engine)
    yield from _arguments(engine)


def _parallel(engine: EngineConfig) -> Iterator[str]:
    count, nodes = len(engine.devices), engine.nodes
    if count != len(set(engine.devices)):
        yield "devices: each GPU once"
    if engine.world_size % nodes:
        yield f"nodes: {engine.world_size} GPUs cannot be dealt out evenly to {nodes} machines"
    elif count and count != engine.world_size // nodes and not _has(engine, "--data-parallel-size", "-dp"):
        product = f"tensor_parallel_size * pipeline_parallel_size = {engine.world_size}"
        yield f"devices: {product}{f' on {nodes} nodes' if nodes > 1 else ''}, but {count} GPUs are given"


def _batches(engine: EngineConfig) -> Iterator[str]:
    tokens, seqs, length = engine.max_num_batched_tokens, engine.max_num_seqs, engine.max_model_len
    if tokens and seqs and tokens < seqs:
        yield f"max_num_batched_tokens: {tokens} is less than max_num_seqs, {seqs}"
    if tokens and length and tokens < length and engine.enable_chunked_prefill is False:
        yield f"max_num_batched_tokens: without chunked prefill it must not be less than max_model_len, {length}"


def _adapters(engine: EngineConfig) -> Iterator[str]:
    for name, path in engine.lora_modules.items():
        if not name.strip() or "=" in name or not path.strip():
            yield f"lora_modules: {name!r} needs a name without '=', and a path"
        elif name in engine.served_names:
            yield f"lora_modules: {name!r} is the model's own name"


def _arguments(engine: EngineConfig) -> Iterator[str]:
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


def _has(engine: EngineConfig, *flags: str) -> bool:
    return any(each.partition("=")[0] in flags for each in engine.args)


def _conflicts(engines: dict[str, EngineConfig]) -> Iterator[str]:
    """What engines cannot have together."""
    for name in engines:
        if NAME.fullmatch(name) is None:
            yield f"engines: {name!r} must be letters, digits, '.', '_' and '-'"
    by_port: dict[int, list[str]] = defaultdict(list)
    by_device: dict[int, list[str]] = defaultdict(list)
    for name, engine in engines.items():
        by_port[engine.port].append(name)
        for device in engine.devices:
            by_device[device].append(name)
    for port, names in by_port.items():
        if len(names) > 1:
            yield f"engines: {' and '.join(names)} cannot all listen on port {port}: give each its own `port`"
    for device, names in by_device.items():
        wanted = sum(engines[name].gpu_memory_utilization or MEMORY for name in names)
        if len(names) > 1 and wanted > 1:
            yield (
                f"engines: {' and '.join(names)} want {wanted:.0%} of GPU {device} together (each {MEMORY:.0%} unless "
                "gpu_memory_utilization says otherwise)"
            )
