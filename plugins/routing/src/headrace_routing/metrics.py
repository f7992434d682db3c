"""Reading an engine's load from its Prometheus metrics. Of the hundreds of lines three families are looked at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from headrace.fleet import EngineLoad


class Names(NamedTuple):
    """What one kind of engine calls the requests that run, those that wait, and the part of its KV cache in use."""

    running: bytes
    waiting: bytes
    cache: tuple[bytes, ...] = ()


ENGINES = (
    # https://docs.vllm.ai/en/latest/usage/metrics/; until 0.10 the last one was called otherwise
    Names(
        b"vllm:num_requests_running",
        b"vllm:num_requests_waiting",
        (b"vllm:kv_cache_usage_perc", b"vllm:gpu_cache_usage_perc"),
    ),
    # https://docs.sglang.ai/references/production_metrics.html
    Names(b"sglang:num_running_reqs", b"sglang:num_queue_reqs", (b"sglang:token_usage",)),
    # https://huggingface.co/docs/text-generation-inference/reference/metrics
    Names(b"tgi_batch_current_size", b"tgi_queue_size"),
    # https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
    Names(b"llamacpp:requests_processing", b"llamacpp:requests_deferred", (b"llamacpp:kv_cache_usage_ratio",)),
)
ENDS = (b"{", b" ", b"\t")
"""What may follow a metric's name: others begin with the same words."""


def read_load(text: bytes, at: float) -> EngineLoad | None:
    """The load of an engine; None if these are no metrics of an engine we know.

    A server with several engines (data parallel) has a line of each: their requests are added up, and of the KV cache
    it is the average that is taken.

    Args:
        text: what `/metrics` says.
        at: when, by `time.monotonic()`.
    """
    for names in ENGINES:
        running = list(_values(text, names.running))
        if running:
            waiting = sum(_values(text, names.waiting))
            usage = next(filter(None, (list(_values(text, name)) for name in names.cache)), [0.0])
            taken = min(1.0, max(0.0, sum(usage) / len(usage)))
            return EngineLoad(round(sum(running)), round(waiting), taken, at)
    return None


def _values(text: bytes, name: bytes) -> Iterator[float]:
    """The values of a metric, one for each set of labels. What is no number, or below 0, is passed over."""
    start = text.find(name)
    while start >= 0:
        after = start + len(name)
        if (start == 0 or text[start - 1 : start] == b"\n") and text[after : after + 1] in ENDS:
            end = text.find(b"\n", after)
            value = _value(text[after : end if end >= 0 else len(text)])
            if value is not None:
                yield value
        start = text.find(name, after)


def _value(rest: bytes) -> float | None:
    """The number after the labels, in which anything may stand; a time may follow."""
    words = rest[rest.rfind(b"}") + 1 :].split()
    try:
        value = float(words[0])
    except (IndexError, ValueError):
        return None
    return value if 0.0 <= value < 1e9 else None
