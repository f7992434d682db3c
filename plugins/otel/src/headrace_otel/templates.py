"""What all spans of one kind have in common, and what all spans of this process have: encoded by the SDK, once."""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode

from . import wire

SCHEMA = "https://opentelemetry.io/schemas/1.41.0"
"""Names and units are those of this version."""
Value = str | int | float | bool
_OWN = ("trace_id", "span_id", "parent_span_id", "start_time_unix_nano", "end_time_unix_nano", "flags")
"""Each span has its own."""
_NOWHERE, _NOTHING = SpanContext(1, 1, is_remote=False), Resource.get_empty()
_REQUEST, _RESOURCE, _SCOPE_SPANS, _SCOPE, _SCHEMA = b"\x0a", b"\x0a", b"\x12", b"\x0a", b"\x1a"
"""Tags: `ExportTraceServiceRequest.resource_spans`; `ResourceSpans.resource`, `.scope_spans`; `ScopeSpans.scope`;
`.schema_url` of both."""


def template(name: str, kind: SpanKind, attributes: Mapping[str, Value | None], *, failed: bool) -> bytes:
    """The encoding of a span but for what is its own. Attributes that are None are left out."""
    said = {key: value for key, value in attributes.items() if value is not None}
    status = Status(StatusCode.ERROR if failed else StatusCode.UNSET)
    span = ReadableSpan(*(name, _NOWHERE, None, _NOTHING, said), kind=kind, status=status, start_time=0, end_time=0)
    message = encode_spans([span]).resource_spans[0].scope_spans[0].spans[0]
    for own in _OWN:
        message.ClearField(own)
    return bytes(message.SerializeToString())


class Envelope:
    """What stands around the spans of one export."""

    def __init__(self, resource: Resource, scope: InstrumentationScope) -> None:
        span = ReadableSpan(name="", context=_NOWHERE, resource=resource, instrumentation_scope=scope)
        encoded = encode_spans([span]).resource_spans[0]
        schema = wire.field(_SCHEMA, SCHEMA.encode())
        self._resource = wire.field(_RESOURCE, encoded.resource.SerializeToString()) + schema
        self._scope = wire.field(_SCOPE, encoded.scope_spans[0].scope.SerializeToString()) + schema

    def around(self, spans: bytes) -> bytes:
        """An ExportTraceServiceRequest with these spans, each of them a field `ScopeSpans.spans`."""
        return wire.field(_REQUEST, self._resource + wire.field(_SCOPE_SPANS, self._scope + spans))
