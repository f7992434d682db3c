"""How the other gateways are started, each as small as it can be: one backend, one worker, no database.

vllm-router, smg and portkey check no key and log no request here: they do less than Headrace, which is theirs to gain.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from headrace.testing import free_port

from . import answers
from .peers import PEERS, Peer
from .targets import Endpoint, Failed, Site, Start, ready, running

KEY = "sk-bench-1234"
LITELLM_LOG = """\
import json

from litellm.integrations.custom_logger import CustomLogger

FIELDS = "id model api_base status startTime completionStartTime endTime prompt_tokens completion_tokens".split()


class RequestLog(CustomLogger):
    def __init__(self):
        super().__init__()
        self.file = open("requests.log", "a", buffering=1)

    def write(self, kwargs):
        told = kwargs["standard_logging_object"]
        key = told["metadata"].get("user_api_key_hash")
        self.file.write(json.dumps({"key": key, **{name: told.get(name) for name in FIELDS}}) + "\\n")

    async def async_log_success_event(self, kwargs, response, started, ended):
        self.write(kwargs)

    async def async_log_failure_event(self, kwargs, response, started, ended):
        self.write(kwargs)


log = RequestLog()
"""


@contextlib.contextmanager
def _peer(
    arguments: Sequence[str],
    site: Site,
    port: int,
    headers: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[Endpoint]:
    with running(arguments, site, environment) as child:
        yield ready(Endpoint(port, child.pid, headers), child, site)


@contextlib.contextmanager
def rust_router(peer: Peer, site: Site, *words: str) -> Iterator[Endpoint]:
    """vllm-router and smg, which have a common ancestor and most of its options."""
    port = free_port()
    arguments = [str(peer.path), *words, "--worker-urls", f"http://127.0.0.1:{site.upstream}"]
    arguments += ["--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin"]
    arguments += ["--prometheus-port", str(free_port()), "--prometheus-host", "127.0.0.1"]
    with _peer(arguments, site, port) as endpoint:
        yield endpoint


@contextlib.contextmanager
def litellm(peer: Peer, site: Site) -> Iterator[Endpoint]:
    """LiteLLM's proxy, asked for what Headrace does as well: it checks a key and logs a line per request.

    The key is the master key, which needs no database. The line tells who asked which model, when the answer came and
    how many tokens it had, as ours does: LiteLLM gives that to callbacks, of which this is its documented kind. Prices
    come from its own package, not from the network.
    """
    port = free_port()
    (site.folder / "request_log.py").write_text(LITELLM_LOG)
    (site.folder / "litellm.yaml").write_text(f"""\
model_list:
  - model_name: {answers.MODEL}
    litellm_params:
      model: openai/{answers.MODEL}
      api_base: http://127.0.0.1:{site.upstream}/v1
      api_key: none
litellm_settings:
  callbacks: request_log.log
general_settings:
  master_key: {KEY}
""")
    arguments = [str(peer.path), "--config", "litellm.yaml", "--host", "127.0.0.1", "--port", str(port)]
    environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}
    with _peer(arguments, site, port, (f"Authorization: Bearer {KEY}",), environment) as endpoint:
        yield endpoint


@contextlib.contextmanager
def portkey(peer: Peer, site: Site) -> Iterator[Endpoint]:
    """Portkey's gateway, which is told its backend by headers."""
    port = free_port()
    node = shutil.which("node")
    if node is None:
        raise Failed("node is not installed")
    headers = (
        f"Authorization: Bearer {KEY}",
        "x-portkey-provider: openai",
        f"x-portkey-custom-host: http://127.0.0.1:{site.upstream}/v1",
    )
    with _peer([node, str(peer.path), f"--port={port}", "--headless"], site, port, headers) as endpoint:
        yield endpoint


STARTS: Mapping[str, Start] = {
    "vllm-router": lambda site: rust_router(PEERS["vllm-router"], site, "--log-level", "warning"),
    "smg": lambda site: rust_router(PEERS["smg"], site, "launch", "--log-level", "warn"),
    "litellm": partial(litellm, PEERS["litellm"]),
    "portkey": partial(portkey, PEERS["portkey"]),
}


def installed() -> dict[str, Start]:
    """Those that `make bench-peers` has installed."""
    return {name: start for name, start in STARTS.items() if PEERS[name].installed()}
