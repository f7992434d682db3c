"""What `provider = "llamacpp"` means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from headrace.addresses import ca_bundle, http_proxy, openai_root
from headrace.config import BackendConfig
from headrace.errors import UpstreamError
from headrace.exchange import Attempt, Exchange, Target, UpstreamRequest
from headrace.openai_api import PATHS, OpenAIBackend
from headrace.upstream import target_headers

if TYPE_CHECKING:
    from headrace.gateway import Gateway

    from .config import EngineConfig, LlamacppConfig

COUNTED = frozenset(("chat", "completions", "embeddings"))
"""Endpoints whose prompts can be counted, without pictures."""
TEMPLATED = ("messages", "tools", "tool_choice", "chat_template_kwargs", "reasoning_effort", "add_generation_prompt")
"""Fields of a chat that become its prompt."""


class _Prompt(msgspec.Struct):
    prompt: str


class _Tokens(msgspec.Struct):
    tokens: list[Any]


class LlamacppProvider(OpenAIBackend):
    """A llama.cpp server by its address, or one that the gateway runs."""

    name = "llamacpp"
    endpoints = frozenset(PATHS)
    native = endpoints

    def __init__(self, gateway: Gateway, config: LlamacppConfig) -> None:
        super().__init__(gateway)
        self._engines = config.engines

    def target(self, name: str, config: BackendConfig) -> Target:
        """`options = { engine = "NAME" }`, or `base_url` with or without `/v1`."""
        engine = self._engine(config)
        return Target(
            name=name,
            provider=self.name,
            base_url=f"{engine.url}/v1" if engine is not None else _base_url(config.base_url),
            model=config.model or (engine.served_name if engine is not None else None),
            api_key=config.api_key or (engine.api_key if engine is not None else None),
            headers=config.headers,
            weight=config.weight,
            timeouts=config.timeouts,
            max_connections=config.max_connections,
            prefill=True,
            stream_usage=config.stream_usage,
            verify=ca_bundle(config.verify),
            proxy=http_proxy(config.proxy),
            endpoints=self.known(config) or _endpoints(engine),
            options=config.options,
        )

    def _engine(self, config: BackendConfig) -> EngineConfig | None:
        """The engine that is meant, if one is."""
        unknown = config.options.keys() - {"engine"}
        if unknown:
            raise ValueError(
                f"options: the provider 'llamacpp' has `engine` alone, but {', '.join(sorted(unknown))} was given"
            )
        name = config.options.get("engine")
        if name is None:
            return None
        if config.base_url or config.proxy:
            raise ValueError("base_url, proxy: an engine of the gateway's own has its address in [plugins.llamacpp]")
        if name not in self._engines:
            known = ", ".join(self._engines) or "none"
            raise ValueError(f"options: there is no [plugins.llamacpp.engines.{name}] (there are: {known})")
        return self._engines[name]

    def build(self, attempt: Attempt) -> UpstreamRequest:
        """As for any server that speaks OpenAI's API. A stream of a completion tells its token counts in its last
        piece, asked or not: there is nothing to hide."""
        request = super().build(attempt)
        if attempt.asked.endpoint.name == "completions":
            request.hides_usage = False
        return request

    async def count_prompt(self, exchange: Exchange, target: Target) -> int:
        """Tokens of a request's prompt, as llama.cpp's `/apply-template` and `/tokenize` count them
        (https://github.com/ggml-org/llama.cpp/tree/master/tools/server).

        Raises:
            GatewayError: the backend has no such thing, or cannot count this prompt.
        """
        if exchange.pictures or exchange.endpoint.name not in COUNTED:
            raise UpstreamError("The backend does not count the tokens of such prompts.")
        text = await self._prompt(exchange, target)
        found = await self._post(target, "/tokenize", {"content": text, "add_special": True, "parse_special": True})
        try:
            return len(msgspec.json.decode(found, type=_Tokens).tokens)
        except msgspec.MsgspecError as error:
            raise UpstreamError("The backend does not count tokens.", detail=str(error)) from error

    async def _prompt(self, exchange: Exchange, target: Target) -> str:
        """What the model is given. Raises GatewayError."""
        fields = exchange.fields
        try:
            if "messages" not in fields:
                return msgspec.json.decode(fields["prompt"] if "prompt" in fields else fields["input"], type=str)
            found = await self._post(
                target, "/apply-template", {name: fields[name] for name in TEMPLATED if name in fields}
            )
            return msgspec.json.decode(found, type=_Prompt).prompt
        except (KeyError, msgspec.MsgspecError) as error:
            raise UpstreamError("The backend does not count this prompt.", detail=str(error)) from error

    async def _post(self, target: Target, path: str, body: Any) -> bytes:
        request = UpstreamRequest(
            url=root_of(target) + path,
            headers={"Content-Type": "application/json", **target_headers(target)},
            body=msgspec.json.encode(body),
        )
        reply = await self._gateway.upstream.send(target, request)
        await reply.aclose()
        return reply.content or b""


def _base_url(url: str) -> str:
    if not url:
        raise ValueError('say where it is: base_url = "http://host:8080", or options = { engine = "NAME" }')
    return openai_root(url)


def _endpoints(engine: EngineConfig | None) -> frozenset[str]:
    """A server that was started for embeddings has nothing else, any other has all but them."""
    if engine is None:
        return LlamacppProvider.endpoints
    return frozenset(("embeddings",)) if engine.embeddings else LlamacppProvider.endpoints - {"embeddings"}


def root_of(target: Target) -> str:
    """The server's address without `/v1`."""
    return target.base_url.removesuffix("/v1")
