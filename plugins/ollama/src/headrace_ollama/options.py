"""What a backend's `options` may say to the provider `ollama`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from headrace.config import Count, Strict

DURATION = re.compile(r"-?(?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h))+")
"""As Go reads them, `10m` or `1h30m`; a number alone is seconds."""
LEVELS = ("minimal", "low", "medium", "high", "xhigh", "max")
"""How hard a model may be asked to think, in order (https://platform.openai.com/docs/api-reference/chat/create,
https://docs.ollama.com/capabilities/thinking)."""
GPT_OSS = ("low", "medium", "high")
SAID_BY_REQUESTS = ("stop", "num_predict", "num_ctx")
"""Parameters that have a field of their own."""


class Options(Strict, frozen=True):
    """`[backends.NAME.options]` of `provider = "ollama"`."""

    api: Literal["native", "openai"] = "native"
    """`native`: requests are translated into Ollama's own API, which alone knows `num_ctx`, `keep_alive` and `think`.
    `openai`: they are passed on to Ollama's OpenAI-compatible endpoints byte for byte, and the other options have no
    meaning."""
    num_ctx: Count | None = None
    """Tokens of a prompt and its answer together. Ollama loads a model anew when it is asked with another number. Left
    out, Ollama decides by the memory that it finds: 4096 on a small GPU."""
    keep_alive: str | int | None = None
    """For how long a model stays in memory after a request: `"10m"`, seconds, or -1 for ever. Left out, what Ollama
    does by itself: five minutes."""
    think: bool | str | None = None
    """Whether models think before they answer, or how hard (`"low"`), where a request does not say (by
    `reasoning_effort`). Left out, as the model does by itself."""
    think_levels: list[str] | None = None
    """Names for how hard the model can be asked to think, as `headrace ollama show` lists them; none: it can only be
    switched on and off. Left out, `low`, `medium` and `high` for models whose name has `gpt-oss` in it, none for
    others."""
    shorten: bool = False
    """Let Ollama leave out the oldest messages, or the middle of a prompt, of what is too long for the model, which it
    does without a word. Else such requests are refused with `context_length_exceeded`."""
    image_origins: list[str] = msgspec.field(default_factory=list)
    """Where pictures are fetched that a request names by their address, `https://images.example.com` for instance.
    Ollama fetches none; left out, such requests are refused."""
    ignore: list[Literal["tool_choice", "n"]] = msgspec.field(default_factory=list)
    """Fields that Ollama cannot obey, and that do not make a request fail: they are named in `x-headrace-dropped`."""
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)
    """More of Ollama's model parameters (https://docs.ollama.com/modelfile), `num_gpu` or `repeat_last_n` for instance.
    What a request says itself goes before."""

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise ValueError("; ".join(problems))

    def levels(self, model: str) -> list[str]:
        """How hard this model can be asked to think."""
        if self.think_levels is not None:
            return self.think_levels
        return list(GPT_OSS) if "gpt-oss" in model.lower() else []


def _problems(options: Options) -> Iterator[str]:
    if isinstance(options.keep_alive, str) and DURATION.fullmatch(options.keep_alive) is None:
        yield f'keep_alive: {options.keep_alive!r} is no duration such as "10m", "90s" or "1h30m"'
    for origin in options.image_origins:
        if not _is_origin(origin):
            yield f"image_origins: {origin!r} is not an origin such as https://images.example.com"
    for name in SAID_BY_REQUESTS:
        if name in options.parameters:
            hint = "set options.num_ctx" if name == "num_ctx" else "requests say it"
            yield f"parameters: {name} does not belong there: {hint}"


def _is_origin(text: str) -> bool:
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not parts.username
    except ValueError:  # a port that is no number, brackets that do not close
        return False
    return bool(usable) and text == f"{parts.scheme}://{parts.netloc}" == text.lower()


def read(given: dict[str, Any]) -> Options:
    """Read a backend's `options`. Raises ValueError: a sentence that says what is wrong."""
    try:
        options = msgspec.convert(given, Options)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `$")
        place = path.rstrip("`").removeprefix(".")
        raise ValueError(f"options: {f'{place}: ' if place else ''}{text}") from error
    idle = sorted(given.keys() - {"api"})
    if options.api == "openai" and idle:
        raise ValueError(f'options: with api = "openai" Ollama is not told {", ".join(idle)}: leave it out')
    return options
