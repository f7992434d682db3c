"""llama.cpp's own server from the Python package `xllamacpp`, for machines without a `llama-server`:
`python -m headrace_llamacpp.server --model FILE …`, with those of its arguments that the launcher gives.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

LAYERS = {"auto": -1, "all": -2}
"""What llama.cpp calls these."""
INFO = 3
"""How much it says, as `llama-server` does by itself."""


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal comes; returns the exit status."""
    given = parse(argv)
    for number in (signal.SIGTERM, signal.SIGINT):  # while llama.cpp loads, Python's own handlers do not run
        signal.signal(number, signal.SIG_DFL)
    try:
        import xllamacpp
    except ImportError as error:
        print(f"error: llama.cpp cannot be loaded: {error}", file=sys.stderr)  # noqa: T201
        return 1
    try:
        server = xllamacpp.Server(params(given, os.environ.get("LLAMA_API_KEY")))
    except RuntimeError:
        return 1  # llama.cpp has said why
    while server is not None:
        signal.pause()
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line. Arguments that `xllamacpp` is not told end the program."""
    parser = argparse.ArgumentParser(prog="headrace_llamacpp.server", allow_abbrev=False)
    for name in ("--model", "--host"):
        parser.add_argument(name, required=True)
    parser.add_argument("--port", type=int, required=True)
    for name in ("--alias", "--mmproj", "--cache-type-k", "--cache-type-v"):
        parser.add_argument(name, default="")
    for name in ("--ctx-size", "--parallel", "--threads", "--batch-size", "--ubatch-size"):
        parser.add_argument(name, type=int)
    parser.add_argument("--n-gpu-layers", type=lambda text: LAYERS.get(text) or int(text))
    parser.add_argument("--flash-attn", choices=("on", "off", "auto"))
    parser.add_argument("--pooling", choices=("none", "mean", "cls", "last", "rank"))
    for name in ("--embeddings", "--metrics", "--no-webui"):
        parser.add_argument(name, action="store_true")
    return parser.parse_args(argv)


def params(given: argparse.Namespace, key: str | None) -> Any:
    """The same as llama.cpp's own structure."""
    import xllamacpp

    found = xllamacpp.CommonParams()
    found.model.path = given.model
    found.model_alias = {given.alias or given.model}
    found.hostnames, found.port = [given.host], given.port
    found.endpoint_metrics, found.endpoint_slots, found.ui = given.metrics, True, not given.no_webui
    found.api_keys = [key] if key else []
    found.embedding, found.verbosity = given.embeddings, INFO
    for name, value in (
        ("n_ctx", given.ctx_size),
        ("n_parallel", given.parallel),
        ("n_gpu_layers", given.n_gpu_layers),
        ("n_batch", given.batch_size),
        ("n_ubatch", given.ubatch_size),
    ):
        if value is not None:
            setattr(found, name, value)
    if given.threads is not None:
        found.cpuparams.n_threads = found.cpuparams_batch.n_threads = given.threads
    if given.mmproj:
        found.mmproj.path = given.mmproj
    _choose(found, "flash_attn_type", xllamacpp.llama_flash_attn_type, "LLAMA_FLASH_ATTN_TYPE", FLASH, given.flash_attn)
    _choose(found, "pooling_type", xllamacpp.llama_pooling_type, "LLAMA_POOLING_TYPE", None, given.pooling)
    _choose(found, "cache_type_k", xllamacpp.ggml_type, "GGML_TYPE", None, given.cache_type_k)
    _choose(found, "cache_type_v", xllamacpp.ggml_type, "GGML_TYPE", None, given.cache_type_v)
    return found


FLASH = {"on": "ENABLED", "off": "DISABLED", "auto": "AUTO"}


def _choose(found: Any, field: str, kind: Any, prefix: str, names: dict[str, str] | None, given: str | None) -> None:
    """Set a field to a member of llama.cpp's enumeration."""
    if given:
        member = names[given] if names else given.upper()
        setattr(found, field, getattr(kind, f"{prefix}_{member}"))


if __name__ == "__main__":
    sys.exit(main())
