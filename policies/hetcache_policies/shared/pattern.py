"""Steps by a pattern that a person writes down, such as "Fsspss": for experiments and ablations."""

from __future__ import annotations

from typing import Final, final

from attrs import frozen

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
    """Repeats a pattern; the first steps and the last one run in full.

    Attributes:
        pattern: letters F, p and s, beginning with F.
        warmup_steps: steps that always run in full first; the pattern begins with the last of them.
    """

    pattern: str
    warmup_steps: int = 1

    def __attrs_post_init__(self) -> None:
        """Refuse what is no pattern."""
        check_pattern(self.pattern)

    @property
    def schedule_only(self) -> bool:
        """Nothing of the run is looked at."""
        return True

    def begin(self, run: RunInfo) -> StepDecider:
        """Make the decider, which has no state."""
        return _Decider(self)

    def mode(self, index: int, steps: int) -> Mode:
        """Say what a step does.

        Args:
            index: the step.
            steps: steps ``S`` of the run.
        """
        if index < self.warmup_steps or index == steps - 1:
            return Mode.FULL
        return LETTERS[self.pattern[(index - self.warmup_steps + 1) % len(self.pattern)]]


@final
@frozen
class _Decider(StepDecider):
    _policy: PatternSteps

    def decide(self, step: StepInfo, signals: Signals) -> Decision:
        return Decision(
            self._policy.mode(step.index, step.total), f"pattern {self._policy.pattern}"
        )
