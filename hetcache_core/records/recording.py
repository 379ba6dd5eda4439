"""Notes of what a run does, from which its ``Plan`` is made when it has ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import torch
from attrs import define, field
from torch import Tensor

from hetcache_core.policy.partial import PartialSettings
from hetcache_core.policy.pieces import BlockAction
from hetcache_core.records.plan import (
    RUN,
    Plan,
    PlannedCall,
    PlannedStep,
    action_text,
    fingerprint,
    pack_places,
    pack_rows,
)
from hetcache_core.steps import BlockKey, Decision, Stack

if TYPE_CHECKING:
    from hetcache_core.backbone.adapter import RunInfo
    from hetcache_core.tokens import Partition

NARROW: Final = torch.int32
"""Wide enough for token indices, and half of what they come in."""


@define(eq=False)
class _Call:
    """Actions of one call, as places in the table, by block index."""

    main: dict[int, int] = field(factory=dict)
    control: dict[int, int] = field(factory=dict)

    def of(self, stack: Stack) -> dict[int, int]:
        return self.main if stack is Stack.MAIN else self.control


@define(eq=False)
class Recorder:
    """Takes note of one run. Nothing waits for the device before ``plan``."""

    _decisions: dict[int, Decision] = field(factory=dict, init=False)
    _probes: dict[int, int] = field(factory=dict, init=False)
    _predicted: dict[int, list[str]] = field(factory=dict, init=False)
    _branches: dict[str, None] = field(factory=dict, init=False)
    _calls: dict[tuple[int, str], _Call] = field(factory=dict, init=False)
    _actions: dict[str, int] = field(factory=dict, init=False)
    _keeping: set[tuple[int, str]] = field(factory=set, init=False)
    _rows: list[Tensor] = field(factory=list, init=False)
    _known: dict[int, tuple[Tensor, int]] = field(factory=dict, init=False)
    """Rows of the step under way by identity: branches share them."""
    _selections: list[int] = field(factory=list, init=False)

    def call(self, branch: str) -> None:
        """Note that a call is made."""
        self._branches.setdefault(branch)

    def decided(self, step: int, decision: Decision) -> None:
        """Note what a step is to do."""
        self._decisions[step] = decision
        self._known.clear()

    def predicted(self, step: int, branch: str) -> None:
        """Note that a branch is predicted."""
        self._predicted.setdefault(step, []).append(branch)

    def action(self, step: int, branch: str, key: BlockKey, action: BlockAction) -> None:
        """Note what a block does."""
        rows = {part: act.rows for part, act in action.parts.items() if act.rows is not None}
        text = action_text(action, {part: self._place(kept) for part, kept in rows.items()})
        place = self._actions.setdefault(text, len(self._actions))
        self._calls.setdefault((step, branch), _Call()).of(key.stack)[key.index] = place
        if action.store or rows or any(act.store for act in action.parts.values()):
            self._keeping.add((step, branch))

    def keeps(self, step: int, branch: str) -> bool:
        """Whether a block of the call kept or wrote anything."""
        return (step, branch) in self._keeping

    def probed(self, step: int, blocks: int) -> None:
        """Note that blocks which nobody but the decision asked for have kept something."""
        self._probes[step] = blocks

    def selected(self, rows: Tensor) -> None:
        """Note rows (n,) that were chosen for partial steps."""
        self._selections.append(self._place(rows))

    def plan(
        self, info: RunInfo, partition: Partition | None, partial: PartialSettings | None
    ) -> Plan:
        """Make the plan of the steps so far; reads rows and roles from the device.

        Args:
            info: the run.
            partition: the roles of its tokens, or None where they had none.
            partial: how partial steps were run, or None where there are none.
        """
        tokens, plain = info.grid.tokens, set(self._actions) <= {RUN}
        return Plan(
            model=info.model,
            grid=info.grid,
            sigmas=info.sigmas[: len(self._decisions)],
            steps=tuple(self._step(step) for step in sorted(self._decisions)),
            branches=tuple(self._branches),
            actions=() if plain else tuple(self._actions),
            calls=() if plain else tuple(self._packed(*key) for key in self._calls),
            rows=tuple(pack_rows(rows.numpy(), tokens) for rows in self._read_rows()),
            roles="" if partition is None else fingerprint(partition.roles),
            selections=tuple(self._selections),
            kv_mode=None if partial is None else partial.kv_mode,
            control_mode=None if partial is None else partial.control_mode,
            kv_dtype=None if partial is None else partial.keys.dtype,
        )

    def _read_rows(self) -> Sequence[Tensor]:
        """Bring all rows to the host at once."""
        if not self._rows:
            return ()
        return torch.split(torch.cat(self._rows).cpu(), [len(rows) for rows in self._rows])

    def _step(self, step: int) -> PlannedStep:
        decision = self._decisions[step]
        return PlannedStep(
            mode=decision.mode,
            span=decision.span,
            gain=decision.gain,
            probe=self._probes.get(step, 0),
            predicted=tuple(self._predicted.get(step, ())),
        )

    def _packed(self, step: int, branch: str) -> PlannedCall:
        stacks = {}
        for stack in Stack:
            places = self._calls[step, branch].of(stack)
            asked = range(max(places, default=-1) + 1)
            stacks[stack.value] = pack_places([places.get(index) for index in asked])
        return PlannedCall(step=step, branch=branch, **stacks)

    def _place(self, rows: Tensor) -> int:
        if id(rows) not in self._known:
            self._known[id(rows)] = (rows, len(self._rows))  # holding on to it keeps its id taken
            self._rows.append(rows.detach().to(NARROW, copy=True))
        return self._known[id(rows)][1]
