"""What Anthropic's messages are made of, as a chat says it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from headrace import chat
from headrace.errors import InvalidRequest

from . import wire

BETWEEN = "\n\n"
"""Between texts that are one text in a chat: not every backend takes a text in parts."""
BILLING = "x-anthropic-billing-header:"
"""Begins a block that Claude Code puts before its system prompt: for Anthropic, different in each request, so that no
prompt would be found in a cache."""
FAILED = "Error: "
"""Begins the result of a tool that failed: a chat has no other way to say so."""

Blocks = Sequence[wire.Block]


def as_blocks(content: str | list[wire.Block]) -> list[wire.Block]:
    return [wire.TextBlock(content)] if isinstance(content, str) else content


def system(given: str | list[wire.TextBlock] | None, dropped: list[str]) -> Iterator[chat.Message]:
    """The system message, if there is one."""
    texts = [given] if isinstance(given, str) else [block.text for block in given or ()]
    kept = [text for text in texts if not text.startswith(BILLING)]
    if len(kept) < len(texts):
        dropped.append("system.x-anthropic-billing-header")
    if any(kept):
        yield chat.System(BETWEEN.join(filter(None, kept)))


def later_system(blocks: Blocks) -> Iterator[chat.Message]:
    """A system message among the others."""
    yield chat.System(BETWEEN.join(_only(block, wire.TextBlock, "system").text for block in blocks))


def user(blocks: Blocks) -> Iterator[chat.Message]:
    """One turn of the user: what tools have returned comes first, since a chat wants it right behind their calls."""
    parts: list[chat.Part] = []
    for block in blocks:
        if isinstance(block, wire.ToolResultBlock):
            message, media = _result(block)
            yield message
            parts += media
    for block in blocks:
        if not isinstance(block, wire.ToolResultBlock):
            parts += _parts(block)
    if parts or not any(isinstance(block, wire.ToolResultBlock) for block in blocks):
        yield chat.User(content(parts))


def assistant(blocks: Blocks) -> Iterator[chat.Message]:
    """One turn of the assistant."""
    said: list[str] = []
    thought: list[str] = []
    calls: list[chat.ToolCall] = []
    for block in blocks:
        if isinstance(block, wire.TextBlock):
            said.append(block.text)
        elif isinstance(block, wire.ThinkingBlock):
            thought.append(block.thinking)
        elif isinstance(block, wire.ToolUseBlock):
            arguments = msgspec.json.encode(block.input).decode()
            calls.append(chat.ToolCall(block.id, chat.FunctionCall(block.name, arguments)))
        elif not isinstance(block, wire.RedactedThinkingBlock):
            _only(block, wire.TextBlock, "assistant")
    yield chat.Assistant(
        content="".join(said) if said or not calls else None,
        tool_calls=calls or None,
        reasoning_content=BETWEEN.join(filter(None, thought)) or None,
    )


def content(parts: list[chat.Part]) -> chat.Content:
    """One text if that is all there is."""
    texts = [part.text for part in parts if isinstance(part, chat.Text)]
    return BETWEEN.join(texts) if len(texts) == len(parts) else parts


def _result(block: wire.ToolResultBlock) -> tuple[chat.Message, list[chat.Part]]:
    """The message, and what comes in the user's: messages of tools have texts alone."""
    given: list[wire.Returned] = [wire.TextBlock(block.content)] if isinstance(block.content, str) else []
    if isinstance(block.content, list):
        given = block.content
    parts = [part for each in given for part in _parts(each)]
    texts = [part.text for part in parts if isinstance(part, chat.Text)]
    media: list[chat.Part] = [part for part in parts if not isinstance(part, chat.Text)]
    text = (FAILED if block.is_error else "") + BETWEEN.join(texts)
    if media:
        text = BETWEEN.join(filter(None, (text, "(See the user's next message.)")))
        media.insert(0, chat.Text(f"What the tool call {block.tool_use_id} returned:"))
    return chat.ToolResult(block.tool_use_id, text), media


def _parts(block: wire.Block) -> list[chat.Part]:
    if isinstance(block, wire.TextBlock):
        return [chat.Text(block.text)]
    if isinstance(block, wire.ImageBlock):
        return [chat.Image(chat.ImageURL(_address(block.source)))]
    if isinstance(block, wire.DocumentBlock):
        return _document(block)
    if isinstance(block, wire.SearchResultBlock):
        return [chat.Text("\n".join((block.title, block.source, *(each.text for each in block.content))))]
    _only(block, wire.TextBlock, "user")
    return []


def _document(block: wire.DocumentBlock) -> list[chat.Part]:
    """A text is said as a text, which every backend can read; anything else is a file."""
    source = block.source
    context: list[chat.Part] = [chat.Text(block.context)] if block.context else []
    title: list[chat.Part] = [chat.Text(block.title)] if block.title else []
    if isinstance(source, wire.TextSource):
        return [chat.Text("\n".join(filter(None, (block.title, block.context, source.data))))]
    if isinstance(source, wire.ContentSource):
        inside = [wire.TextBlock(source.content)] if isinstance(source.content, str) else source.content
        return [*title, *context, *(part for each in inside for part in _parts(each))]
    if isinstance(source, wire.Base64Source):
        name = block.title or "document.pdf"
        return [*context, chat.File(chat.FileData(file_data=_address(source), filename=name))]
    raise _not_carried("A document by its address or file id", "source")


def _address(source: wire.Base64Source | wire.URLSource | wire.FileSource) -> str:
    if isinstance(source, wire.URLSource):
        return source.url
    if isinstance(source, wire.Base64Source):
        return f"data:{source.media_type};base64,{source.data}"
    raise _not_carried("A file of Anthropic's Files API", "source.file_id")


def _not_carried(what: str, param: str) -> InvalidRequest:
    return InvalidRequest(f"{what} cannot be carried to this backend: send its content.", param=f"messages.{param}")


def _only(block: wire.Block, kind: type[wire.TextBlock], role: str) -> wire.TextBlock:
    if not isinstance(block, kind):
        name = block.__struct_config__.tag
        raise InvalidRequest(f"A block of the type {name!r} does not belong in a message of {role}.", param="messages")
    return block
