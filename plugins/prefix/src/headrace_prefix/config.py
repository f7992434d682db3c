"""What `[plugins.prefix]` may say."""

from __future__ import annotations

from typing import Annotated

import msgspec

from headrace.config import Count, Strict

Part = Annotated[float, msgspec.Meta(ge=0, le=1)]


class PolicyConfig(Strict, frozen=True):
    """How one policy weighs a warm cache against a busy backend."""

    imbalance: Annotated[float, msgspec.Meta(ge=1, le=10)] = 1.5
    """A backend that would then have more than this many times the mean of requests in flight (by weight) is not
    chosen for its cache."""
    spare: Annotated[float, msgspec.Meta(ge=1, le=10_000)] = 4
    """So many requests in flight, by weight, are never too many: below, `imbalance` does not count."""
    pressure: Annotated[float, msgspec.Meta(ge=0, le=10)] = 0.3
    """What being twice as busy as usual costs: of the prompt, the part that another backend may have less of in its
    cache and still be chosen. 0: only `imbalance` counts."""
    balance: Part = 0.2
    """The part of the work of late that a backend may do again, for a cache it does not have, if it did less than
    others. 0: prompts stay where they are as long as there is room."""


class PrefixConfig(PolicyConfig, frozen=True):
    """`[plugins.prefix]`: the policy `prefix`, and what all of its variants know together."""

    policies: dict[str, PolicyConfig] = msgspec.field(default_factory=dict)
    """More policies, by name: `[plugins.prefix.policies.NAME]` with any of the keys above."""
    block_bytes: Annotated[int, msgspec.Meta(ge=32, le=65_536)] = 256
    """A prompt is compared in pieces of this size. Smaller ones find more and cost more."""
    max_bytes: Annotated[int, msgspec.Meta(ge=1024, le=16_777_216)] = 65_536
    """So much of a prompt is looked at; what follows is taken for new."""
    max_blocks: Annotated[int, msgspec.Meta(ge=16, le=16_777_216)] = 16_384
    """Pieces remembered for one backend, some 200 bytes of memory each."""
    cache_tokens: Count | None = None
    """Tokens that fit into the KV cache of a backend (vLLM logs `GPU KV cache size` at its start): no more is taken to
    be in it. Left out: as many as `max_blocks` stand for."""
    backends: dict[str, Count] = msgspec.field(default_factory=dict)
    """`cache_tokens` of single backends, by name."""
    ttl: Annotated[float, msgspec.Meta(gt=0, le=31_536_000)] = 3600.0
    """Seconds after which a piece that nobody has asked for is taken to be gone from a cache."""
    verify: bool = True
    """Compare predictions with what backends report (`usage.prompt_tokens_details.cached_tokens`). It asks them for
    token counts in streams."""
    max_error: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.3
    """A backend whose cache has on average this much less of a prompt than predicted is chosen by load alone, until
    it is less than half of that."""
    probe_every: Annotated[int, msgspec.Meta(ge=2, le=100_000)] = 20
    """Of the requests that would go to such a backend for its cache, one in so many does, to see whether it has
    become better."""
    admin_api: bool = False
    """Serve `GET /admin/prefix` to administrators."""

    def __post_init__(self) -> None:
        for name in ("prefix", "in_order"):
            if name in self.policies:
                raise ValueError(f"policies.{name}: there is a policy of that name, choose another")
