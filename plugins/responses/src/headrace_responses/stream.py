"""A chat's stream as the events of this API.

Thoughts and words come one after the other, each in an item that ends when something else begins. Calls may come in
pieces that take turns: their items stay open until the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from headrace import chat

from . import events, shape
from .shape import FunctionCall, Message, OutputRefusal, OutputText, Reasoning, ReasoningText, Response, fresh


class _Call:
    """A call whose pieces are being collected. It is told of once its name is known."""

    __slots__ = ("arguments", "given_id", "index", "item", "name")

    def __init__(self, given_id: str) -> None:
        self.given_id = given_id
        self.name = ""
        self.arguments: list[str] = []
        self.item: FunctionCall | None = None
        self.index = 0
        """Its place among the items."""


class Stream:
    """Translates one stream.

    Args:
        begin: makes the response, once it is known which model answers.
    """

    def __init__(self, begin: Callable[[str], Response]) -> None:
        self._begin = begin
        self._response: Response | None = None
        self._number = 0
        """Of the next event."""
        self._output: list[shape.Item] = []
        self._open: Message | Reasoning | None = None
        """What is being said, or thought: the last item but for calls."""
        self._open_index = 0
        self._texts: list[str] = []
        """The pieces of the last part of it."""
        self._logprobs: list[Any] = []
        self._calls: dict[int, _Call] = {}
        """Those that go on, by the number that the chat gives them."""
        self._all_calls: list[_Call] = []
        self._finish_reason: str | None = None
        self._usage: chat.Usage | None = None
        self._out: list[bytes] = []

    def feed(self, chunk: chat.Chunk) -> bytes:
        if self._response is None:
            self._start(chunk.model)
        self._usage = chunk.usage or self._usage
        for choice in chunk.choices:
            if choice.index == 0:  # more than one is not asked for
                self._delta(choice.delta, choice.logprobs)
                self._finish_reason = choice.finish_reason or self._finish_reason
        return self._taken()

    def end(self) -> bytes:
        response = self._response or self._start("")
        status = shape.finish(response, self._finish_reason, self._usage)
        self._end_items(status)
        response.output = self._output
        self._tell(events.Completed if status == "completed" else events.Incomplete, response=response)
        return self._taken()

    # --- pieces ---------------------------------------------------------------------------------------------------

    def _delta(self, delta: chat.Delta, logprobs: Any) -> None:
        if thought := delta.thought:
            self._think(thought)
        if delta.content:
            self._speak(delta.content, shape.tokens_of(logprobs) if logprobs is not None else [])
        if delta.refusal:
            self._refuse(delta.refusal)
        for piece in delta.tool_calls or ():
            self._call(piece)

    def _think(self, text: str) -> None:
        if not isinstance(self._open, Reasoning):
            self._open_item(Reasoning(fresh("rs"), "in_progress", []))
            self._open_part(ReasoningText())
        self._texts.append(text)
        self._tell(events.ThoughtDelta, delta=text, **self._place())

    def _speak(self, text: str, logprobs: list[Any]) -> None:
        self._have_part(OutputText)
        self._texts.append(text)
        self._logprobs += logprobs
        self._tell(events.TextDelta, delta=text, logprobs=logprobs, **self._place())

    def _refuse(self, text: str) -> None:
        self._have_part(OutputRefusal)
        self._texts.append(text)
        self._tell(events.RefusalDelta, delta=text, **self._place())

    def _call(self, piece: chat.ToolCallDelta) -> None:
        self._close_item("completed")
        call = self._call_of(piece)
        function = piece.function or chat.FunctionDelta()
        if function.name and call.item is None:
            call.name += function.name
        if call.item is None and call.name and (function.arguments or call.given_id):
            self._open_call(call)
        if function.arguments:
            call.arguments.append(function.arguments)
            self._tell_arguments(call, function.arguments)

    def _call_of(self, piece: chat.ToolCallDelta) -> _Call:
        """The call that this is a piece of. Some servers count all of them 0: then another id begins another call."""
        given_id = piece.id if isinstance(piece.id, str) else ""
        call = self._calls.get(piece.index)
        if call is None or (given_id and call.given_id and given_id != call.given_id):
            call = self._calls[piece.index] = _Call(given_id)
            self._all_calls.append(call)
        call.given_id = call.given_id or given_id
        return call

    # --- items and their parts ------------------------------------------------------------------------------------

    def _start(self, model: str) -> Response:
        response = self._response = self._begin(model)
        self._tell(events.Created, response=response)
        self._tell(events.InProgress, response=response)
        return response

    def _add(self, item: shape.Item) -> int:
        """A new item, and its place."""
        index = len(self._output)
        self._tell(events.ItemAdded, output_index=index, item=item)
        self._output.append(item)
        return index

    def _open_item(self, item: Message | Reasoning) -> None:
        self._close_item("completed")
        self._open, self._open_index = item, self._add(item)

    def _have_part(self, kind: type[OutputText | OutputRefusal]) -> None:
        """Have such a part of a message be the last one."""
        if not isinstance(self._open, Message):
            self._open_item(Message(fresh("msg"), "in_progress", []))
        assert self._open is not None
        if not self._open.content or type(self._open.content[-1]) is not kind:
            self._close_part()
            self._open_part(kind())

    def _open_part(self, part: OutputText | OutputRefusal | ReasoningText) -> None:
        assert self._open is not None
        self._open.content.append(part)  # type: ignore[arg-type]  # a message's in a message, a thought in thoughts
        self._tell(events.PartAdded, part=part, **self._place())

    def _place(self) -> dict[str, Any]:
        """The item that is open, and its last part."""
        item = self._open
        assert item is not None
        return {"item_id": item.id, "output_index": self._open_index, "content_index": len(item.content) - 1}

    def _close_part(self) -> None:
        if self._open is None or not self._open.content:
            return
        part, text, place = self._open.content[-1], "".join(self._texts), self._place()
        match part:
            case OutputText():
                part.text, part.logprobs = text, self._logprobs
                self._tell(events.TextDone, text=text, logprobs=part.logprobs, **place)
            case OutputRefusal():
                part.refusal = text
                self._tell(events.RefusalDone, refusal=text, **place)
            case ReasoningText():
                part.text = text
                self._tell(events.ThoughtDone, text=text, **place)
        self._tell(events.PartDone, part=part, **place)
        self._texts, self._logprobs = [], []

    def _close_item(self, status: shape.Status) -> None:
        if self._open is None:
            return
        self._close_part()
        self._open.status = status
        self._tell(events.ItemDone, output_index=self._open_index, item=self._open)
        self._open = None

    def _open_call(self, call: _Call) -> FunctionCall:
        call.item = FunctionCall(fresh("fc"), "in_progress", call.given_id or fresh("call"), call.name)
        call.index = self._add(call.item)
        for piece in call.arguments:
            self._tell_arguments(call, piece)
        return call.item

    def _tell_arguments(self, call: _Call, piece: str) -> None:
        if call.item is not None:
            self._tell(events.ArgumentsDelta, item_id=call.item.id, output_index=call.index, delta=piece)

    def _close_call(self, call: _Call, status: shape.Status) -> None:
        item = call.item
        assert item is not None
        item.arguments, item.status = "".join(call.arguments), status
        said = {"name": item.name, "arguments": item.arguments}
        self._tell(events.ArgumentsDone, item_id=item.id, output_index=call.index, **said)
        self._tell(events.ItemDone, output_index=call.index, item=item)

    def _end_items(self, status: shape.Status) -> None:
        """End what is open; of an incomplete answer the last item is incomplete."""
        for call in self._all_calls:
            if call.item is None:
                self._open_call(call)
        if not self._output:
            self._have_part(OutputText)
        last = len(self._output) - 1
        self._close_item(status if self._open_index == last else "completed")
        for call in self._all_calls:
            self._close_call(call, status if call.index == last else "completed")

    # --- what is sent ---------------------------------------------------------------------------------------------

    def _tell(self, kind: Callable[..., events.Event], **said: Any) -> None:
        self._out.append(events.written(kind(sequence_number=self._number, **said)))
        self._number += 1

    def _taken(self) -> bytes:
        out, self._out = self._out, []
        return b"".join(out)
