"""Steps by a pattern that a person writes down, such as "Fsspss": for experiments and ablations."""

from __future__ import annotations

from typing import Final, final

from attrs import define, field, frozen

from hetcache_core import (
    ConfigError,
    Decision,
    Mode,
    RunInfo,
    Signals,
    StepDecider,
    StepInfo,
    StepPolicy,
)

__all__ = ["PatternSteps", "check_pattern"]

LETTERS: Final = {"F": Mode.FULL, "p": Mode.PARTIAL, "s": Mode.REUSE}


def check_pattern(pattern: str) -> None:
    """Refuse what is no pattern.

    Raises:
        ConfigError: It has other letters, or does not begin with a full step.
    """
    if not pattern.startswith("F") or set(pattern) - set(LETTERS):
        raise ConfigError(
            f"pattern must be of the letters F (full), p (partial) and s (reused) and begin with F, "
            f"got {pattern!r}",
            setting="pattern",
            given=pattern,
            remedy="Write for instance Fsspss; it is repeated to the end of the run.",
        )


@final
@frozen(kw_only=True)
class PatternSteps(StepPolicy):
    """Repeats a pattern, which begins with the last step that a guard computed.

    Attributes:
        pattern: letters F, p and s, beginning with F.
    """

    pattern: str

    def __attrs_post_init__(self) -> None:
        """Refuse what is no pattern."""
        check_pattern(self.pattern)

    @property
    def sigmas_only(self) -> bool:
        """Nothing of the run is looked at."""
        return True

    def begin(self, run: RunInfo) -> StepDecider:
        """Start with the pattern's first letter."""
        return _Decider(self.pattern)


@final
@define(eq=False)
class _Decider(StepDecider):
    _pattern: str
    _begun: int | None = field(default=None, init=False)

    def decide(self, step: StepInfo, signals: Signals) -> Decision:
        if self._begun is None or step.computed:
            self._begun = step.index
        letter = self._pattern[(step.index - self._begun) % len(self._pattern)]
        return Decision(LETTERS[letter], f"pattern {self._pattern}")
