"""The items of a request's `input`, as https://platform.openai.com/docs/api-reference/responses/create has them."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

from headrace.chat import AudioData


class InputText(msgspec.Struct, tag_field="type", tag="input_text"):
    text: str


class InputImage(msgspec.Struct, tag_field="type", tag="input_image"):
    image_url: str | None = None
    file_id: str | None = None
    detail: str | None = None


class InputFile(msgspec.Struct, tag_field="type", tag="input_file"):
    file_data: str | None = None
    file_id: str | None = None
    file_url: str | None = None
    filename: str | None = None


class InputAudio(msgspec.Struct, tag_field="type", tag="input_audio"):
    input_audio: AudioData


class OutputText(msgspec.Struct, tag_field="type", tag="output_text"):
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class OutputRefusal(msgspec.Struct, tag_field="type", tag="refusal"):
    refusal: str


Part: TypeAlias = InputText | InputImage | InputFile | InputAudio | OutputText | OutputRefusal
Content: TypeAlias = str | list[Part]


class Message(msgspec.Struct):
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    type: str | None = None
    id: str | None = None
    status: str | None = None


class FunctionCall(msgspec.Struct):
    call_id: str
    name: str
    arguments: str
    type: str | None = None
    id: str | None = None
    status: str | None = None


class FunctionCallOutput(msgspec.Struct):
    call_id: str
    output: Content
    type: str | None = None
    id: str | None = None
    status: str | None = None


class ReasoningPart(msgspec.Struct):
    text: str
    type: str = ""


class Reasoning(msgspec.Struct):
    summary: list[ReasoningPart] = []
    content: list[ReasoningPart] | None = None
    encrypted_content: str | None = None
    type: str | None = None
    id: str | None = None
    status: str | None = None


Item: TypeAlias = Message | FunctionCall | FunctionCallOutput | Reasoning
KINDS: dict[str, type[Item]] = {
    "message": Message,
    "function_call": FunctionCall,
    "function_call_output": FunctionCallOutput,
    "reasoning": Reasoning,
}
REFERENCE = "item_reference"


class Head(msgspec.Struct):
    """By what an item is known."""

    type: str | None = None
    role: str | None = None
    id: str | None = None

    @property
    def kind(self) -> str:
        """Messages and references may leave their type out."""
        return self.type or ("message" if self.role is not None or self.id is None else REFERENCE)


head_of = msgspec.json.Decoder(Head).decode
