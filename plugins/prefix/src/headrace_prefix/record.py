"""How good the predictions for one backend were, and so whether they are followed."""

from __future__ import annotations

LEARNING = 0.1
"""Of one answer in the moving averages."""
TOLERANCE, TOLERATED_TOKENS = 0.25, 64
"""A prediction is wrong if the backend had less cached than it says: by more than this part of the prompt, and by more
tokens than that. JSON's own bytes are not tokens, and engines cache whole blocks."""


class Record:
    """Predictions and what became of them.

    Args:
        max_error: as configured, and `probe_every`.
    """

    def __init__(self, max_error: float, probe_every: int) -> None:
        self._max_error, self._probe_every = max_error, probe_every
        self._doubted = 0
        self.trusted = True
        self.reports = False
        """Whether the backend says how much it had cached: until it has, nothing can be said."""
        self.predictions = 0
        """Requests it was asked for which something was predicted."""
        self.checked = 0
        """Answers to them that say how much was cached."""
        self.hits = 0
        """Of these, as predicted, or more."""
        self.error = 0.0
        """The moving average of what the prediction was off by, as a part of the prompt."""
        self.excess = 0.0
        """The same, where more was predicted than there was: what costs something."""
        self.prompt_tokens = 0
        self.cached_tokens = 0
        """Of all answers with token counts, as reported."""

    def believed(self) -> bool:
        """Whether to follow a prediction: always, or now and then."""
        if self.trusted:
            return True
        self._doubted += 1
        return self._doubted % self._probe_every == 0

    def count(self, prompt_tokens: int, cached_tokens: int, *, told: bool) -> None:
        """An answer has come. `told`: whether the backend surely said how many tokens were cached."""
        self.reports = self.reports or told or cached_tokens > 0
        self.prompt_tokens += prompt_tokens
        self.cached_tokens += min(cached_tokens, prompt_tokens)

    def check(self, predicted: float, cached: float, prompt_tokens: int) -> bool:
        """Compare, both as parts of the prompt. Returns whether the prediction was right."""
        excess = max(0.0, predicted - cached)
        wrong = excess > TOLERANCE and excess * prompt_tokens > TOLERATED_TOKENS
        self.checked += 1
        self.hits += not wrong
        self.error += LEARNING * (abs(predicted - cached) - self.error)
        self.excess += LEARNING * ((excess if wrong else 0.0) - self.excess)
        self.trusted = self.excess < self._max_error * (1.0 if self.trusted else 0.5)
        return not wrong

    def begin_anew(self) -> None:
        """The backend has been restarted: what was wrong before says nothing about it now."""
        self.trusted, self.error, self.excess = True, 0.0, 0.0
