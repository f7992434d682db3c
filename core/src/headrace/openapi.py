"""`/openapi.json`, put together from the endpoints and routes there are, and a plain page to read it by."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from importlib import metadata
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from .gateway import Gateway, Route

if TYPE_CHECKING:
    from .dialects import Endpoint

ERROR_SCHEMA = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
STYLE = """
body { font: 16px/1.6 system-ui, sans-serif; max-width: 48rem; margin: 3rem auto; padding: 0 1rem; color: #1c2733;
background: #fff }
code { font-family: ui-monospace, monospace; background: #eef2f6; padding: .1em .35em; border-radius: 4px }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; padding: .5rem .75rem .5rem 0;
border-bottom: 1px solid #dde4ea; vertical-align: top }
@media (prefers-color-scheme: dark) { body { color: #d6dee6; background: #12181f } code { background: #212b36 }
td, th { border-color: #2a3642 } a { color: #7cc4ff } }
"""


_CONVERTER = re.compile(r":\w+}")
"""Starlette's `{name:path}`; OpenAPI has `{name}` alone."""


def docs_routes(gateway: Gateway) -> list[Route]:
    """The two public routes that describe the others."""
    document = _Document(gateway)
    return [
        Route("/openapi.json", document.json, ("GET",), "public", "This description"),
        Route("/docs", document.page, ("GET",), "public", "This description to read"),
    ]


def describe(gateway: Gateway) -> dict[str, Any]:
    """The OpenAPI 3.1 document (https://spec.openapis.org/oas/v3.1.0)."""
    from .routes import core_routes

    schemas: dict[str, Any] = {"Error": ERROR_SCHEMA}
    paths = {path: {"post": _endpoint(endpoint, schemas)} for path, endpoint in gateway.endpoints.items()}
    for route in (*core_routes(gateway), *gateway.routes):
        path = _CONVERTER.sub("}", route.path)
        paths[path] = {method.lower(): _route(route) for method in route.methods}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Headrace", "version": metadata.version("headrace")},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _endpoint(endpoint: Endpoint, schemas: dict[str, Any]) -> dict[str, Any]:
    """One endpoint; what its body is made of goes to `schemas`."""
    (body,), components = msgspec.json.schema_components([endpoint.peek], ref_template="#/components/schemas/{name}")
    checked, more = msgspec.json.schema_components(
        list(endpoint.peek.checks.values()), ref_template="#/components/schemas/{name}"
    )
    schemas.update(components | more)
    name = str(body["$ref"]).rpartition("/")[2]
    properties = components[name]["properties"] | dict(zip(endpoint.peek.checks, checked, strict=True))
    schemas[name] = {**components[name], "properties": properties, "additionalProperties": True}
    return {
        "summary": endpoint.summary,
        "operationId": endpoint.name,
        "security": [{"key": []}],
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {
            "200": {
                "description": "The backend's answer, unaltered: JSON, or server-sent events if `stream` is true",
                "content": {"application/json": {}, "text/event-stream": {}},
            },
            "default": _error_response(),
        },
    }


def _route(route: Route) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": route.summary,
        "responses": {"200": {"description": "OK"}, "default": _error_response()},
    }
    names = re.findall(r"{(\w+)", route.path)
    if names:
        described["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if route.require != "public":
        described["security"] = [{"key": []}]
    return described


def _error_response() -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Error"}
    return {"description": "An error", "content": {"application/json": {"schema": schema}}}


class _Document:
    """Built at the first request, when every plugin has added its routes; the same bytes from then on."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._json: bytes | None = None
        digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
        self._policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"

    async def json(self, request: Request) -> Response:
        if self._json is None:
            self._json = msgspec.json.encode(describe(self._gateway))
        return Response(self._json, media_type="application/json")

    async def page(self, request: Request) -> Response:
        return HTMLResponse(_page(describe(self._gateway)), headers={"Content-Security-Policy": self._policy})


def _page(document: dict[str, Any]) -> str:
    rows = [
        f"<tr><td><code>{method.upper()}</code><td><code>{html.escape(path)}</code>"
        f"<td>{html.escape(operation['summary'])}{' (needs a key)' if 'security' in operation else ''}"
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Headrace API</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style><h1>Headrace API</h1><p>Point any OpenAI client at <code>/v1</code> of this address. "
        "Fields that are not described here are passed on to the backend. The machine-readable description: "
        f'<a href="/openapi.json">openapi.json</a>.<table>{"".join(rows)}</table></html>'
    )
