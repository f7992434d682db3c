"""What `provider = "mlx"` means: `mlx_lm.server`, as its `server.py` of version 0.32 behaves.

Its answers and streams are OpenAI's. Not so its errors; a field that is null, where OpenAI lets it be left out so; and
some requests end the thread that generates, and with it the server.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from headrace.config import BackendConfig
from headrace.edits import decode_fields, merge_fields
from headrace.errors import InvalidRequest, UpstreamError
from headrace.exchange import Attempt, Exchange, Reply, Target, UpstreamRequest
from headrace.presets import Rewording, decoded, meaning, unheard
from headrace.providers import Health

STARTED_WITH = "default_model"
"""What the server calls the model of its command line."""
UNHEARD = (
    *("n", "best_of", "echo", "suffix", "response_format", "tool_choice", "parallel_tool_calls"),
    *("reasoning_effort", "user", "metadata", "modalities", "audio", "prediction", "functions", "function_call"),
    *("service_tier", "store", "verbosity", "web_search_options"),
)
"""What OpenAI's API has and this server does not look at."""
WITHHELD = ("draft_model", "adapters", "logit_bias")
"""Fields that are not sent: by the first two whoever asks has the server load what they name, from its disk or the hub;
the third ends its process if it names a token that the model has not."""
DIED = b"generation thread died"
"""How the server answers once nothing can be generated any more: 404."""


class _Template(msgspec.Struct):
    """`chat_template_kwargs`, without a template: an empty one makes an empty prompt."""

    chat_template: None = None


_NUMBER = msgspec.json.Decoder(Annotated[float, msgspec.Meta(ge=-1e18, le=1e18)] | None)
CHECKS: dict[str, msgspec.json.Decoder[Any]] = {
    "stop": msgspec.json.Decoder(str | list[str] | None),
    "seed": msgspec.json.Decoder(Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None),
    "chat_template_kwargs": msgspec.json.Decoder(_Template | None),
    **dict.fromkeys(("temperature", "top_p", "top_k", "min_p", "max_tokens", "max_completion_tokens"), _NUMBER),
    **dict.fromkeys(("xtc_probability", "xtc_threshold", "top_logprobs", "num_draft_tokens"), _NUMBER),
    **dict.fromkeys((f"{kind}_penalty" for kind in ("repetition", "presence", "frequency")), _NUMBER),
    **dict.fromkeys((f"{kind}_context_size" for kind in ("repetition", "presence", "frequency")), _NUMBER),
}
"""What ends the server, or has it hang up, if it is anything else."""


class MlxProvider(Rewording):
    """An MLX LM server by its address."""

    name = "mlx"
    default_base_url = "http://127.0.0.1:8080"
    endpoints = frozenset(("chat", "completions"))
    usual = endpoints

    def target(self, name: str, config: BackendConfig) -> Target:
        """Refuses a backend without `model`. Raises ValueError."""
        if not config.model:
            raise ValueError(
                f'model: say which: "{STARTED_WITH}" is the one the server was started with. Any other name makes it '
                "load that model from its disk or the hub, so what clients say is not sent on"
            )
        return super().target(name, config)

    def build(self, attempt: Attempt) -> UpstreamRequest:
        """As for others, without what this server stumbles over. Raises InvalidRequest."""
        request = super().build(attempt)
        asked = attempt.asked
        attempt.drop(*unheard(asked.fields, (*UNHEARD, *WITHHELD)))
        for name in asked.fields:
            if name in CHECKS:
                decoded(asked.fields, name, CHECKS[name])
        changes = _changes(asked, decode_fields(request.body))
        if changes:
            request.body, request.edits = merge_fields(decode_fields(request.body), changes), ()
        return request

    async def send(self, attempt: Attempt) -> Reply:
        """Send what was built. Raises GatewayError."""
        reply = await super().send(attempt)
        if reply.status == 404 and DIED in (reply.content or b""):
            raise UpstreamError("The backend does not generate any more: it must be started again.")
        return reply

    async def health(self, target: Target) -> Health:
        """By `/health`: 503 once the thread that generates has ended.

        Its list of models is that of the hub's cache, and cannot be had where there is none.
        """
        status = (await self.get(target, "/health")).status
        if status == 503:
            return Health(ok=False, reason="it does not generate any more: 503 at /health; start it again")
        if status != 200:
            return Health(ok=False, reason=meaning(status, "/health"))
        return Health(ok=True) if target.model == STARTED_WITH else await self.listed(target)


def _changes(asked: Exchange, fields: dict[str, msgspec.Raw]) -> dict[str, Any]:
    """What to change in a request; None stands for a field to leave out."""
    changes: dict[str, Any] = {name: None for name, value in fields.items() if bytes(value) == b"null"}
    changes.update((name, None) for name in WITHHELD if name in fields)
    if "stream_options" in fields and b'"include_usage"' not in bytes(fields["stream_options"]):
        changes["stream_options"] = None  # it would break off for want of it
    if asked.endpoint.name == "completions":
        prompt = decoded(fields, "prompt")
        if isinstance(prompt, list) or not prompt:
            changes["prompt"] = _only(prompt)
    return changes


def _only(prompts: list[Any] | str) -> str:
    """The one text of a list: a list, or an empty text, would end the server. Raises InvalidRequest."""
    if len(prompts) == 1 and isinstance(prompts[0], str) and prompts[0]:
        return prompts[0]
    raise InvalidRequest("This model continues one text at a time.", param="prompt", retryable=True)
