"""The gate: a policy proposes what a step does, and here its guards dispose."""

from __future__ import annotations

import math
from typing import Final, final

from attrs import define, evolve, field

from hetcache_core.policy.guards import Guards, count_of
from hetcache_core.steps import Decision, Mode, StepInfo

SLACK: Final = 2
"""So many times the even gap of a target may be reused in a row where nobody set a limit: signals need
gaps of different lengths to be of use."""


@final
@define(eq=False, kw_only=True)
class Gate:
    """What guards make of the proposals of one run.

    What a user has set holds. What the policy brings gives way to a target (``give_way``).

    Attributes:
        steps: steps ``S`` of the run.
        asked: what a user has set.
        defaults: what the policy brings.
        starts: steps at which a model took over; the first steps are counted from each.
        first: steps computed from each start on.
        last: steps computed at the end.
        longest: most steps reused in a row, or None.
    """

    steps: int
    asked: Guards = field(factory=Guards)
    defaults: Guards = field(factory=Guards)
    starts: list[int] = field(factory=lambda: [0], init=False)
    first: int = field(init=False)
    last: int = field(init=False)
    longest: int | None = field(init=False)
    _listed: frozenset[int] = field(init=False)
    _target: float | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        """Count the steps of this run."""
        guards = self.asked.over(self.defaults)
        self.first = count_of(guards.first_steps or 0, self.steps)
        self.last = count_of(guards.last_steps or 0, self.steps)
        limit = guards.longest_reuse
        self.longest = None if limit is None else count_of(limit, self.steps)
        self._listed = frozenset(guards.full_steps)

    def give_way(self, computed: float) -> None:
        """Let what nobody set give way to a target.

        First and last steps take no greater part of the steps that are computed than they do of the
        run, and one step at least. The longest reuse is at least ``SLACK`` times the gap of an even spacing.

        Args:
            computed: steps that the target leaves to be computed; asked at every step, and looked at again
                only where it has changed.
        """
        if computed == self._target:
            return
        self._target = computed
        share = min(1.0, max(0.0, computed / self.steps))
        defaults = self.defaults
        if self.asked.first_steps is None and defaults.first_steps:
            self.first = max(1, int(count_of(defaults.first_steps, self.steps) * share))
        if self.asked.last_steps is None and defaults.last_steps:
            self.last = max(1, int(count_of(defaults.last_steps, self.steps) * share))
        if self.asked.longest_reuse is None and defaults.longest_reuse is not None:
            even = math.ceil((self.steps - computed) / computed) if computed > 0 else self.steps
            own = count_of(defaults.longest_reuse, self.steps)
            self.longest = max(own, min(self.steps, SLACK * even))
            # First steps that were set take their part of the target from all others.
            while self.longest < self.steps and self.fewest(0) > computed:
                self.longest += 1

    def computes(self, index: int) -> str | None:
        """Return the reason for which all of a step is computed, blocks too, or None."""
        start = max(start for start in self.starts if start <= index)
        if index - start < self.first:
            return "guard: first steps"
        if index >= self.steps - self.last:
            return "guard: last steps"
        return "guard: listed step" if index in self._listed else None

    def apply(self, step: StepInfo, decision: Decision, reused_in_row: int) -> Decision:
        """Turn a proposal into what may be done, with the reason where that is something else.

        Args:
            step: the step.
            decision: what is proposed.
            reused_in_row: steps that were reused directly before this one.
        """
        if decision.mode is Mode.FULL:
            return decision
        reason = self.computes(step.index)
        if reason is not None:
            return evolve(decision, mode=Mode.FULL, reason=reason)
        if decision.mode is Mode.REUSE and not self._may_follow(reused_in_row):
            reason = f"guard: {reused_in_row} reused in a row"
            return evolve(decision, mode=decision.instead, reason=reason)
        return decision

    def may_reuse(self, index: int, reused_in_row: int) -> bool:
        """Whether a step may be reused after so many reused in a row."""
        return self.computes(index) is None and self._may_follow(reused_in_row)

    def fewest(self, index: int, reused_in_row: int = 0) -> int:
        """Return how many steps are computed at least, from a step on to the end; the last one is.

        Args:
            index: the step.
            reused_in_row: steps reused directly before it.
        """
        computed = 0
        for at in range(index, self.steps):
            last = at == self.steps - 1
            forced = last or at in self.starts or self.computes(at) is not None
            if forced or not self._may_follow(reused_in_row):
                computed, reused_in_row = computed + 1, 0
            else:
                reused_in_row += 1
        return computed

    def described(self) -> dict[str, dict[str, object]]:
        """Return the guards of the run by name: as given, by whom, and the steps that they came to."""
        counts = {
            "first_steps": self.first,
            "last_steps": self.last,
            "longest_reuse": self.longest,
            "full_steps": len(self._listed),
        }
        return {
            name: {
                "given": list(value) if isinstance(value, tuple) else value,
                "by": "user" if name in self.asked.named else "policy",
                "steps": counts[name],
            }
            for name, value in self.asked.over(self.defaults).named.items()
        }

    def obstacles(self) -> list[str]:
        """Say in words which of the guards that a user set leave more to be computed than without them."""
        asked, found = self.asked.named, []
        all_asked = self._with(self.asked).fewest(0)
        for name, guard in self.described().items():
            others = {other: given for other, given in asked.items() if other != name}
            if name in asked and self._with(Guards(**others)).fewest(0) < all_asked:
                unit = "in a row" if name == "longest_reuse" else "steps"
                found.append(f"{name}={guard['given']} ({guard['steps']} {unit})")
        return found

    def _with(self, asked: Guards) -> Gate:
        """Make the gate of these guards alone."""
        gate = Gate(steps=self.steps, asked=asked)
        gate.starts = self.starts
        return gate

    def _may_follow(self, reused_in_row: int) -> bool:
        return self.longest is None or reused_in_row < self.longest
