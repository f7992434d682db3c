"""Wrong keys, counted per address: whoever tries many is told to wait."""

from __future__ import annotations

import ipaddress
import logging
import math
import time
from collections import OrderedDict

import msgspec

from headrace.errors import GatewayError, RateLimited

from .ring import WrongKey

logger = logging.getLogger("headrace.keys")

WINDOW_SECONDS = 60.0
ADDRESSES = 10_000
"""How many are remembered, about 2 MB; beyond, the one whose last failure is longest ago is forgotten."""
NETWORK_BITS = 64
"""An IPv6 host has a whole network of addresses: they count as one."""


class Window(msgspec.Struct):
    """The failures of an address since the first of them, for a minute."""

    began: float
    count: int = 0


class Failures:
    """Counts. Costs nothing while keys are right: it is asked only once a key was found to be wrong."""

    def __init__(self, per_minute: int) -> None:
        """`per_minute`: failures that are answered as such; 0: all of them."""
        self._limit = per_minute
        self._windows: OrderedDict[str, Window] = OrderedDict()

    def __len__(self) -> int:
        return len(self._windows)

    def answer(self, address: str, error: WrongKey) -> GatewayError:
        """Count a failure of this address; what to answer to it."""
        if not self._limit:
            return error
        now = time.monotonic()
        source = network_of(address)
        window = self._window(source, now)
        window.count += 1
        if window.count <= self._limit:
            return error
        if window.count == self._limit + 1:
            logger.warning("more than %d wrong keys within a minute from %s", self._limit, source)
        wait = max(1, math.ceil(window.began + WINDOW_SECONDS - now))
        message = "Too many requests with wrong API keys came from this address: wait, and check the key."
        return RateLimited(message, code="too_many_failures", headers={"Retry-After": str(wait)})

    def _window(self, source: str, now: float) -> Window:
        window = self._windows.pop(source, None)
        if window is None or now - window.began >= WINDOW_SECONDS:
            window = Window(now)
        self._windows[source] = window  # the last one now
        if len(self._windows) > ADDRESSES:
            self._windows.popitem(last=False)
        return window


def network_of(address: str) -> str:
    """An IPv4 address as it is, an IPv6 address as its network; anything else is one and the same."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return "an unknown address"
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(found), NETWORK_BITS), strict=False))
