"""From OpenAI's requests to Ollama's.

What cannot be carried is named; what would change the meaning of a request is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import msgspec

from headrace import chat
from headrace.errors import InvalidRequest

from .leftovers import leftovers
from .messages import Pictures, messages
from .options import LEVELS, Options
from .requests import Completion, Embedding, read_completion
from .wire import Asking, ChatRequest, EmbedRequest, GenerateRequest

_encode = msgspec.json.Encoder().encode

NOT_KNOWN = {
    "functions": "Use tools in its place.",
    "function_call": "Use tool_choice in its place.",
    "audio": "Ollama's models do not speak.",
    "web_search_options": "Ollama's models do not search.",
    **dict.fromkeys(
        ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs", "grammar"),
        "Use response_format with a JSON schema in its place.",
    ),
}
"""Fields of other servers without which an answer would be another one, and what to do."""
CONTINUES = ("continue_final_message", "add_generation_prompt")
"""Whether the last message is the beginning of the answer."""


class Asked(msgspec.Struct, frozen=True):
    """A request as Ollama is asked it."""

    path: str
    body: bytes
    dropped: tuple[str, ...] = ()
    """What it does not carry, by name."""


class Wish(msgspec.Struct, frozen=True):
    """What a request does not say itself.

    Attributes:
        model: the model's name at the backend.
        options: the backend's.
        limit: how many tokens an answer may have if the request sets no limit.
        prefill: whether the backend goes on with an answer whose beginning it is given.
    """

    model: str
    options: Options
    streaming: bool = False
    limit: int | None = None
    prefill: bool = False


def ask_chat(request: chat.Request, fields: Mapping[str, msgspec.Raw], wish: Wish, pictures: Pictures) -> Asked:
    """A chat. Raises InvalidRequest."""
    dropped: list[str] = []
    said = list(messages(request.messages, pictures, dropped))
    asked = ChatRequest(model=wish.model, messages=said, tools=_tools(request, wish, dropped))
    asked.think = _think(request.reasoning_effort, wish, dropped)
    asked.logprobs = request.logprobs or None
    asked.top_logprobs = request.top_logprobs if request.logprobs else None
    _sample(asked, request, wish, dropped)
    dropped += _unsaid(
        ("logit_bias", request.logit_bias),
        ("top_logprobs", request.top_logprobs and not request.logprobs),
        ("parallel_tool_calls", request.tools and request.parallel_tool_calls is False),
        ("user", request.user),
        ("metadata", request.metadata),
    )
    return Asked("/api/chat", _encode(asked), _all_dropped(dropped, leftovers(fields), fields, wish))


def ask_completion(body: bytes, fields: Mapping[str, msgspec.Raw], wish: Wish) -> Asked:
    """A completion: the prompt goes to the model as it is, without the template of chats; but for one with a suffix,
    where only the template knows how to say that. Raises InvalidRequest."""
    request = read_completion(body)
    dropped: list[str] = []
    if request.echo:
        _refuse("echo", "Ollama does not repeat the prompt.")
    if (request.best_of or 1) > 1:
        _refuse("best_of", "Ollama gives one answer.")
    asked = GenerateRequest(model=wish.model, prompt=_prompt(request.prompt), suffix=request.suffix or None)
    asked.raw = None if asked.suffix else True
    asked.think = False
    if request.logprobs is not None:
        asked.logprobs, asked.top_logprobs = True, request.logprobs or None
    _sample(asked, request, wish, dropped)
    dropped += _unsaid(("logit_bias", request.logit_bias), ("user", request.user))
    rest = leftovers(fields, dict.fromkeys(Completion.__struct_fields__))
    return Asked("/api/generate", _encode(asked), _all_dropped(dropped, rest, fields, wish))


def ask_embedding(request: Embedding, fields: Mapping[str, msgspec.Raw], wish: Wish) -> Asked:
    """Embeddings. Raises InvalidRequest."""
    options = wish.options
    asked = EmbedRequest(model=wish.model, input=_texts(request.input), dimensions=request.dimensions)
    asked.options = _parameters(options) or None
    asked.keep_alive = options.keep_alive
    asked.truncate = options.shorten
    dropped = _unsaid(("user", request.user))
    rest = leftovers(fields, dict.fromkeys(Embedding.__struct_fields__))
    return Asked("/api/embed", _encode(asked), _all_dropped(dropped, rest, fields, wish))


def _sample(asked: Asking, request: chat.Request | Completion, wish: Wish, dropped: list[str]) -> None:
    """What chats and completions have in common."""
    options = wish.options
    if (request.n or 1) > 1:
        if "n" not in options.ignore:
            _refuse("n", "Ollama gives one answer to a request: ask again for another one.")
        dropped.append("n")
    said = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "min_p": request.min_p,
        "seed": request.seed,
        "stop": request.stops or None,
        "num_predict": _limit(request.answer_tokens, wish.limit),
        "repeat_penalty": request.repetition_penalty,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
    }
    asked.options = _parameters(options) | {name: value for name, value in said.items() if value is not None} or None
    asked.stream = wish.streaming
    asked.format = _format(request.response_format, dropped)
    asked.keep_alive = options.keep_alive
    if not options.shorten:
        asked.truncate = asked.shift = False


def _parameters(options: Options) -> dict[str, Any]:
    return options.parameters | ({"num_ctx": options.num_ctx} if options.num_ctx else {})


def _limit(asked: int | None, otherwise: int | None) -> int | None:
    if asked is not None and asked < 1:
        if otherwise is None:
            _refuse("max_tokens", "An answer has at least one token.")
        return otherwise
    return otherwise if asked is None else asked


def _format(wanted: chat.ResponseFormat | None, dropped: list[str]) -> Any:
    """Ollama's `format`: it holds models to a schema, whether that is called strict or not."""
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return "json"
    if wanted.type != "json_schema" or wanted.json_schema is None:
        _refuse("response_format", f"There is no such format: {wanted.type[:64]!r}, or it lacks its schema.")
    dropped += _unsaid(("response_format.json_schema.description", wanted.json_schema.description))
    return "json" if wanted.json_schema.schema is None else wanted.json_schema.schema


def _tools(request: chat.Request, wish: Wish, dropped: list[str]) -> list[Any] | None:
    choice = request.tool_choice
    if choice == "none" or not request.tools:
        return None
    if choice not in (None, "auto"):
        if "tool_choice" not in wish.options.ignore:
            _refuse("tool_choice", "Ollama cannot make a model call a tool: say auto or none.")
        dropped.append("tool_choice")
    dropped += _unsaid(("tools.function.strict", any(each.function.strict for each in request.tools)))
    return [{"type": "function", "function": _function(each.function)} for each in request.tools]


def _function(function: chat.Function) -> dict[str, Any]:
    described = {} if function.description is None else {"description": function.description}
    return {
        "name": function.name,
        **described,
        "parameters": function.parameters or {"type": "object", "properties": {}},
    }


def _think(effort: str | None, wish: Wish, dropped: list[str]) -> bool | str | None:
    """Ollama's `think`. Raises InvalidRequest."""
    levels = wish.options.levels(wish.model)
    if effort is None:
        return wish.options.think
    if effort == "none":
        return False
    if effort in levels:
        return effort
    if effort not in LEVELS:
        _refuse("reasoning_effort", f"There is no {effort[:64]!r}: say none, {', '.join(LEVELS)}.")
    dropped.append("reasoning_effort")  # it is not said as it was meant
    rank = LEVELS.index(effort)
    known = [level for level in levels if level in LEVELS]
    return min(known, key=lambda level: abs(LEVELS.index(level) - rank)) if known else True


def _prompt(given: Any) -> str:
    texts = [given] if isinstance(given, str) else given
    if len(texts) != 1 or not isinstance(texts[0], str):
        _refuse("prompt", "Ollama completes one text: send a string.")
    if not texts[0]:
        _refuse("prompt", "There is nothing to complete.")
    return str(texts[0])


def _texts(given: Any) -> str | list[str]:
    if isinstance(given, str):
        return given
    if not given or not all(isinstance(each, str) for each in given):
        _refuse("input", "Ollama embeds texts: send a string, or a list of strings.")
    return list(given)


def _refuse(field: str, why: str) -> NoReturn:
    raise InvalidRequest(f"This backend cannot obey {field!r}. {why}", param=field, code="unsupported_parameter")


def _unsaid(*given: tuple[str, Any]) -> list[str]:
    """The names of what was given."""
    return [name for name, value in given if value]


def _all_dropped(dropped: list[str], rest: list[str], fields: Mapping[str, msgspec.Raw], wish: Wish) -> tuple[str, ...]:
    """What is dropped, and what nobody has read. Raises InvalidRequest."""
    return tuple(dict.fromkeys((*dropped, *_harmless(rest, fields, wish))))


def _harmless(rest: list[str], fields: Mapping[str, msgspec.Raw], wish: Wish) -> Iterator[str]:
    for name in rest:
        if name in NOT_KNOWN:
            _refuse(name, NOT_KNOWN[name])
        if name == "modalities":
            if msgspec.json.decode(fields[name]) != ["text"]:
                _refuse(name, "Ollama's models write.")
        elif not (name in CONTINUES and wish.prefill):
            yield name
