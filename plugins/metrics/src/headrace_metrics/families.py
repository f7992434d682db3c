"""What this plugin counts by itself: names, labels, descriptions. `docs/metrics.md` lists all of them.

OpenTelemetry's names, attributes and buckets are those of its semantic conventions for generative AI (in development):
https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from . import keys
from .config import BucketsConfig


class Family(msgspec.Struct, frozen=True):
    """One metric with its labels. A counter's name is without `_total`."""

    name: str
    help: str
    labels: tuple[str, ...]
    type: Literal["counter", "histogram"] = "counter"
    bounds: tuple[float, ...] = ()
    buckets: str = ""
    """The field of `BucketsConfig` that has the bounds."""

    def key(self, values: Sequence[str], buckets: BucketsConfig) -> bytes:
        if self.type == "counter":
            return keys.counter(self.name, self.labels, values)
        return keys.histogram(self.name, self.labels, values, self.limits(buckets))

    def limits(self, buckets: BucketsConfig) -> tuple[float, ...]:
        """The bounds of a histogram."""
        return tuple(getattr(buckets, self.buckets)) if self.buckets else self.bounds


WHERE = ("model", "target")
HOOK = ("plugin", "hook")
OPERATION = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "server_address", "server_port")
TOKEN_BOUNDS = tuple(4.0**power for power in range(14))
OPERATION_BOUNDS = tuple(0.01 * 2**power for power in range(14))
FIRST_TOKEN_BOUNDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
OUTPUT_TOKEN_BOUNDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)

REQUESTS = Family(
    "headrace_requests",
    "Requests to endpoints that are over, refused ones included.",
    (*WHERE, "status", "delivery"),
)
DURATION = Family(
    "headrace_request_duration_seconds",
    "From a request's arrival to the last byte of its answer.",
    WHERE,
    "histogram",
    buckets="request_duration",
)
FIRST_TOKEN = Family(
    "headrace_time_to_first_token_seconds",
    "From the arrival of a request for a stream to the first bytes of the answer.",
    WHERE,
    "histogram",
    buckets="time_to_first_token",
)
OUTPUT_TOKEN = Family(
    "headrace_time_per_output_token_seconds",
    "For each token after the first, of streams that were complete and whose tokens were counted.",
    WHERE,
    "histogram",
    buckets="time_per_output_token",
)
QUEUE_WAIT = Family(
    "headrace_queue_wait_seconds",
    "Waited in the queue, by requests that had to wait and then were let in.",
    ("model",),
    "histogram",
    buckets="queue_wait",
)
PROMPT = Family("headrace_prompt_tokens", "Tokens of prompts.", WHERE)
COMPLETION = Family("headrace_completion_tokens", "Tokens of answers.", WHERE)
CACHED = Family("headrace_cached_tokens", "Tokens of prompts that backends had in their caches.", WHERE)
BYTES = Family("headrace_sent_bytes", "Bytes of answers' bodies.", WHERE)
ABORTED = Family("headrace_requests_aborted", "Requests whose client left before the end.", WHERE)
ERRORS = Family(
    "headrace_errors", "Requests that ended with an error of the gateway's own, by its code.", ("model", "code")
)
REJECTED = Family("headrace_limits_rejected", "Requests that a limit or a budget refused, by code.", ("model", "code"))
ATTEMPTS = Family("headrace_attempts", "Tries at backends that are over, by how they ended.", ("target", "outcome"))
FALLBACKS = Family("headrace_fallbacks", "Requests answered by another target than was asked first.", WHERE)
LOST = Family("headrace_reports_lost", "Answers of which nginx never told how they ended.", ("target",))
HITS = Family("headrace_cache_hits", "Requests answered without a backend.", ("model",))
MISSES = Family("headrace_cache_misses", "Requests that a cache was asked for and a backend answered.", ("model",))
HOOK_SECONDS = Family(
    "headrace_hook_seconds",
    "Time in a plugin's hook, what it waited for included: by sample after the first 100 calls.",
    HOOK,
)
HOOK_CALLS = Family("headrace_hook_calls", "How often a plugin's hook was called.", HOOK)
HOOK_ERRORS = Family("headrace_hook_errors", "How often it failed by a fault of its own.", HOOK)

TOKEN_USAGE = Family(
    "gen_ai_client_token_usage",
    "Number of input and output tokens used.",
    (*OPERATION, "gen_ai_token_type"),
    "histogram",
    TOKEN_BOUNDS,
)
OPERATION_DURATION = Family(
    "gen_ai_client_operation_duration_seconds",
    "GenAI operation duration.",
    (*OPERATION, "error_type"),
    "histogram",
    OPERATION_BOUNDS,
)
SERVER_FIRST_TOKEN = Family(
    "gen_ai_server_time_to_first_token_seconds",
    "Time to generate first token for successful responses.",
    OPERATION,
    "histogram",
    FIRST_TOKEN_BOUNDS,
)
SERVER_OUTPUT_TOKEN = Family(
    "gen_ai_server_time_per_output_token_seconds",
    "Time per output token generated after the first token for successful responses.",
    OPERATION,
    "histogram",
    OUTPUT_TOKEN_BOUNDS,
)

FAMILIES = tuple(each for each in vars().copy().values() if isinstance(each, Family))
BY_NAME = {family.name: family for family in FAMILIES}
