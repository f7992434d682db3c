"""What rows are called: each key says what its numbers are, so that any process can show what another has counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

Labels = tuple[tuple[str, str], ...]


class Key(msgspec.Struct, frozen=True, array_like=True):
    """The key of a row.

    `counter`: one number. `histogram`: one for each bound, one for what is above the last, and their sum.
    `live`: whether it is true now (1 or 0), and a number that is gone with its process.
    `family`: no number; it tells how a family is described.
    """

    what: Literal["counter", "histogram", "live", "family"]
    family: str
    sample: str = ""
    labels: Labels = ()
    bounds: tuple[float, ...] = ()
    type: str = ""
    help: str = ""


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Key)


def encode(key: Key) -> bytes:
    return _encoder.encode(key)


def decode(data: bytes) -> Key | None:
    """None if it is no key of ours: of another version, or damaged."""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def counter(name: str, names: Sequence[str], values: Sequence[str]) -> bytes:
    """The key of a counter of this plugin's own; `name` without `_total`."""
    return encode(Key("counter", name, f"{name}_total", _labels(names, values)))


def histogram(name: str, names: Sequence[str], values: Sequence[str], bounds: Sequence[float]) -> bytes:
    return encode(Key("histogram", name, name, _labels(names, values), tuple(bounds)))


def of_sample(live: bool, family: str, sample: str, labels: Mapping[str, str]) -> bytes:
    """The key of what a collector has said."""
    return encode(Key("live" if live else "counter", family, sample, tuple(labels.items())))


def described(family: str, kind: str, text: str) -> bytes:
    return encode(Key("family", family, type=kind, help=text))


def _labels(names: Sequence[str], values: Sequence[str]) -> Labels:
    """To Prometheus an empty label is none."""
    return tuple((name, value) for name, value in zip(names, values, strict=True) if value)
