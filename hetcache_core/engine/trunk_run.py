"""Runs one trunk call in full, in part or not at all, and keeps what later steps need."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from attrs import define, field

from hetcache_core.engine.block_pass import KeysUse, Pass, ScoreRequest, tokens_of
from hetcache_core.engine.run_state import RunState
from hetcache_core.errors import ContractError
from hetcache_core.policy.partial import ControlMode, KeySettings, KVMode
from hetcache_core.policy.pieces import Predictor
from hetcache_core.policy.recipe import ReusePoint
from hetcache_core.records.trace import CallRecord
from hetcache_core.steps import WHOLE_TRUNK, Decision, Mode, Span, StepInfo
from hetcache_core.store import Kind, Slot, Stored, with_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hetcache_core.backbone.adapter import ModelCall
    from hetcache_core.backbone.trunk import TrunkCall


@define(eq=False, kw_only=True)
class TrunkExecution:
    """One trunk call of one run.

    Attributes:
        run: the run.
        step: the step.
        call: the model call.
        trunk: its trunk.
        record: what is recorded of the call.
        computes_all: block-level reuse is off in this step.
    """

    run: RunState
    step: StepInfo
    call: ModelCall
    trunk: TrunkCall
    record: CallRecord
    computes_all: bool
    _full: Pass | None = field(default=None, init=False)
    _probed: int = field(default=0, init=False)

    @property
    def predictor(self) -> Predictor:
        """What stands in for what is not computed."""
        return self.run.policy.predictor

    @property
    def _rows(self) -> Tensor:
        """Active rows (n,) of this call, which may have other tokens before the video's than the run."""
        if self.run.active is None:
            raise ContractError("there are no active rows without a mask")
        rows, prefix = self.run.active.current(), self.run.info.grid.prefix
        leading = self.trunk.leading
        if leading is None or leading == prefix:
            return rows
        first = torch.arange(leading, device=rows.device)
        return torch.cat([first, rows[prefix:] - prefix + leading])

    @property
    def _prepares(self) -> bool:
        """Whether a full step keeps what partial steps after it need."""
        active = self.run.active
        usable = active is not None and not active.too_many and not active.empty
        return usable and not self.step.is_last

    def probe(self, blocks: int) -> Tensor:
        """Run the first blocks over all tokens; (B, N, D). They are not run again in this call."""
        self._probed = max(self._probed, blocks)
        return self._all_rows().advance(blocks)

    def full(self) -> Tensor:
        """Run everything; (B, N, D)."""
        run, trunk, policy = self.run, self.trunk, self.run.policy
        keeps = run.step_decider is not None and not self.step.is_last
        keeps = keeps and policy.reuse_point is ReusePoint.TRUNK
        everything = self._all_rows()
        output = everything.advance(trunk.layers)
        everything.marks[trunk.layers] = output
        for span in policy.spans if keeps else ():
            slot = Slot(Kind.RESIDUAL, span)
            run.store.put_difference(
                self.call.key,
                slot,
                everything.marks[trunk.layers - span.back],
                everything.marks[span.front],
                step=self.step.index,
                history=self.predictor.history,
            )
            newest = run.store.newest(self.call.key, slot)
            run.sizes.append(newest.abs().sum(dtype=torch.float32))
        if keeps and self._prepares:
            self._choose_rows(everything, output)
        self.record.active = tokens_of(trunk, run.info.ranks)
        self.record.active_by_role = dict(run.trace.tokens_by_role)
        return output

    def partial(self) -> Tensor:
        """Run the active rows; the others take their stored residual; (B, N, D)."""
        run, trunk, partial, active = self.run, self.trunk, self.run.policy.partial, self.run.active
        if partial is None or active is None:
            raise ContractError(
                "asks for a partial step but has no PartialSettings",
                where=f"policy {run.policy.name}",
            )
        rows = self._rows
        part = Pass(
            trunk=trunk,
            rows=rows,
            branch=self.call.key,
            step=self.step,
            store=run.store,
            predictor=self.predictor,
            keys=KeysUse.CACHED if partial.kv_mode is KVMode.CACHED else KeysUse.OWN,
            key_settings=partial.keys,
            stored_hints=partial.control_mode is ControlMode.REUSE,
        )
        computed = part.advance(trunk.layers)  # (B, n, D)
        stale = self.expected(run.innovation.gain)
        output = trunk.x + stale
        output.index_copy_(1, rows, computed)
        change = computed - part.view.x
        if partial.residual_ema:
            change.lerp_(stale.index_select(1, rows), partial.residual_ema)
        if self.predictor.history == 1:
            slot = Slot(Kind.RESIDUAL, WHOLE_TRUNK)
            run.store.write_rows(self.call.key, slot, rows, change, step=self.step.index)
        else:
            run.store.put(
                self.call.key,
                Slot(Kind.ACTIVE),
                change,
                step=self.step.index,
                history=self.predictor.history,
            )
        self.record.active, self.record.active_by_role = active.count, dict(active.counts)
        self._tally(part)
        return output

    def reuse(self, decision: Decision) -> Tensor:
        """Add the stored residual to the state before the reused span; (B, N, D)."""
        trunk, span = self.trunk, decision.span
        hidden = trunk.x
        if span.front:
            front = self._all_rows()
            hidden = front.advance(span.front)
            # A probe may have gone further than the reused span begins.
            hidden = front.marks.get(span.front, hidden)
        gain = self.run.innovation.gain if decision.gain is None else decision.gain
        output = hidden + self.expected(gain, span)
        if span.back:
            tail = self._all_rows()
            tail.hidden, tail.next = output, trunk.layers - span.back
            output = tail.advance(trunk.layers)
        if self._full is not None and self._full.next:
            self.record.active = tokens_of(trunk, self.run.info.ranks)
        return output

    def expected(self, gain: float | Tensor | None, span: Span = WHOLE_TRUNK) -> Tensor:
        """Predict a span's residual, each token's from its own last computed values; (B, N, D).

        Active rows were computed in partial steps too. What the others had there was predicted, and a
        line through a predicted value and a computed one would have the wrong slope.
        """
        store, like, key = self.run.store, self.trunk.x, self.call.key

        def predict(values: Sequence[Stored]) -> Tensor:
            return self.predictor.predict(values, step=self.step.index, gain=gain)

        values = store.get(key, Slot(Kind.RESIDUAL, span), like=like)
        whole, own, active = predict(values), Slot(Kind.ACTIVE), self.run.active
        if span != WHOLE_TRUNK or active is None or not store.has(key, own):
            return whole
        return with_rows(whole, self._rows, predict(store.get(key, own, like=like)), values)

    def close(self) -> None:
        """Add what the pass over all rows did, a probe's blocks included, to the record."""
        if self._full is None:
            return
        self._tally(self._full)
        if self._probed and self.record.mode is not Mode.FULL:
            recorder, step = self.run.recorder, self.step.index
            # Later steps may take what the probe has kept, so that a replay has to keep it too.
            if self._full.keys is KeysUse.STORE or recorder.keeps(step, self.call.key):
                recorder.probed(step, self._probed)

    def _tally(self, done: Pass) -> None:
        self.record.flops += done.flops
        self.record.blocks_run += done.blocks_run
        self.record.control_run += done.control_run
        self.record.parts_reused += done.parts_reused

    def _all_rows(self) -> Pass:
        """Make the pass over all rows when it is first needed."""
        if self._full is not None:
            return self._full
        run, policy, trunk = self.run, self.run.policy, self.trunk
        partial, active = policy.partial, run.active
        keys, key_settings, score, keep_hints = KeysUse.OWN, KeySettings(), None, False
        hint_rows = None
        if self._prepares and partial is not None and active is not None:
            keep_hints = partial.control_mode is ControlMode.REUSE
            if keep_hints and (run.chosen_at == self.step.index or not active.stale):
                hint_rows = self._rows  # no hint has to be held whole until rows are chosen
            if partial.kv_mode is KVMode.CACHED:
                keys, key_settings = KeysUse.STORE, partial.keys
            if active.needs_scores and run.chosen_at != self.step.index:
                score = ScoreRequest(
                    layers=frozenset(i % trunk.layers for i in partial.score_layers),
                    queries=active.score_queries(),
                    batch_rows=self.call.branches[0].rows,
                )
        self._full = Pass(
            trunk=trunk,
            rows=None,
            branch=self.call.key,
            step=self.step,
            store=run.store,
            predictor=self.predictor,
            blocks=run.block_decider,
            recorder=run.recorder,
            computes_all=self.computes_all,
            keys=keys,
            key_settings=key_settings,
            keep_hints=keep_hints,
            hint_rows=hint_rows,
            score=score,
            keep_at=frozenset(
                edge for s in policy.spans for edge in (s.front, trunk.layers - s.back)
            ),
            ranks=run.info.ranks,
            shows_hidden=policy.blocks is not None and policy.blocks.looks_at_hidden,
        )
        return self._full

    def _choose_rows(self, full: Pass, output: Tensor) -> None:
        run, active = self.run, self.run.active
        if active is None:
            return
        if run.chosen_at != self.step.index:  # the first branch of a step chooses for all
            run.chosen_at = self.step.index
            features = output[self.call.branches[0].start] if active.needs_features else None
            before = active.rows
            active.after_full_step(full.score.total if full.score is not None else None, features)
            if active.rows is not before:
                run.recorder.selected(active.current())
                # Hints of other rows are of no use; a branch that has none computes the step.
                run.store.drop(Kind.HINT)
                run.store.drop(Kind.ACTIVE)
        for index, hint in enumerate(full.hints):
            run.store.put(
                self.call.key,
                Slot(Kind.HINT, index),
                hint if full.hint_rows is not None else hint.index_select(1, self._rows),
                step=self.step.index,
            )
        full.hints.clear()
        self._keep_active(self._rows)

    def _keep_active(self, rows: Tensor) -> None:
        """Keep the residual of the active rows by itself where partial steps will add to its history."""
        store, key, history = self.run.store, self.call.key, self.predictor.history
        if history == 1:
            return
        whole = store.get(key, Slot(Kind.RESIDUAL, WHOLE_TRUNK), like=self.trunk.x)
        own = Slot(Kind.ACTIVE)
        for kept in whole[-1:] if store.has(key, own) else whole:
            value = kept.value.index_select(1, rows)
            store.put(key, own, value, step=kept.step, history=history)
