"""When the certificate expires, as the plugin `metrics` wants it; without it nobody asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from headrace.gateway import Gateway

    from .config import NginxConfig


class Measures:
    """See `Gateway.collectors`. The file is read again when it has changed."""

    def __init__(self, config: NginxConfig, gateway: Gateway) -> None:
        self._config, self._gateway = config, gateway
        self._known: tuple[int, float | None] = (0, None)

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily  # whoever calls this has it

        text = "When the certificate of nginx expires, in seconds since 1970."
        family = GaugeMetricFamily("headrace_certificate_expiry_timestamp_seconds", text, labels=[])
        expires = self._expires() if self._config.tls and not self._gateway.superseded.is_set() else None
        if expires is not None:
            family.add_metric([], expires)
        yield family

    def _expires(self) -> float | None:
        """None if there is no certificate that can be read."""
        from .layout import Layout

        layout, own = Layout.of(self._gateway), self._config.certificate
        path = layout.resolve(own) if own is not None else layout.tls / "server.pem"
        try:
            changed = path.stat().st_mtime_ns
            if changed != self._known[0]:
                self._known = changed, _expiry(path)
        except (OSError, ValueError):
            return None
        return self._known[1]


def _expiry(path: Path) -> float:
    from cryptography import x509

    return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc.timestamp()
