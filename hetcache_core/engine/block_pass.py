"""One pass over the trunk's blocks: hints on demand, sub-layers reused, keys stored, FLOPs counted."""

from __future__ import annotations

from enum import Enum

from attrs import define, evolve, field
from torch import Tensor

from hetcache_core.backbone.ranks import Ranks
from hetcache_core.backbone.trunk import Attend, Compute, KeyLoan, TrunkCall, TrunkView
from hetcache_core.engine.active_rows import attention_scores
from hetcache_core.engine.kept_keys import KeptKeys
from hetcache_core.errors import UnsupportedBackboneError
from hetcache_core.policy.partial import ControlMode, KeySettings, KVMode, PartialSettings
from hetcache_core.policy.pieces import (
    RUN_BLOCK,
    RUN_PART,
    BlockAction,
    BlockDecider,
    PartAction,
    Predictor,
    Use,
)
from hetcache_core.records.recording import Recorder
from hetcache_core.steps import ALL_SUB_LAYERS, BlockKey, Stack, StepInfo, SubLayer
from hetcache_core.store import CacheStore, Kind, Slot, shared_memory, with_rows


class KeysUse(Enum):
    """What a pass does with the keys and values of self-attention."""

    OWN = "own"
    """Attend over the view's own rows; keep nothing."""
    STORE = "store"
    """Attend over the view's own rows (all tokens) and keep them."""
    CACHED = "cached"
    """Put the view's rows among the kept ones and attend over all tokens."""


@define(eq=False, kw_only=True)
class ScoreRequest:
    """Which attention to score while a full pass runs.

    Attributes:
        layers: main blocks, by index from the front.
        queries: (m,) token indices.
        batch_rows: rows of the deciding branch.
        total: (N,) fp32 sum over layers, filled by the pass.
    """

    layers: frozenset[int]
    queries: Tensor
    batch_rows: slice
    total: Tensor | None = None

    def add(self, q: Tensor, k: Tensor, heads: int) -> None:
        """Score one layer; q and k are (B, N, D)."""
        rows = self.batch_rows
        scores = attention_scores(q[rows].index_select(1, self.queries), k[rows], heads)
        self.total = scores if self.total is None else self.total + scores


@define(eq=False, kw_only=True)
class Pass:
    """Runs blocks of one view in order, from wherever the last call stopped.

    Attributes:
        trunk: the call.
        rows: (n,) active rows, or None for all.
        branch: key under which state is kept.
        step: the step.
        store: where things are kept.
        predictor: what stands in for sub-layers that are not run.
        blocks: decides blocks and sub-layers, or None to run all.
        recorder: takes note of what was decided of them, or None.
        computes_all: nothing is reused, whatever ``blocks`` says; what it stores is stored.
        keys: what to do with keys and values, in the blocks whose keys are kept; others attend over
            the view's own rows.
        key_settings: how they are kept.
        stored_hints: take control hints from the store instead of running control blocks.
        keep_hints: remember the hints, for storing them afterwards.
        hint_rows: (n,) rows of the hints that are remembered, or None for all.
        score: attention to score on the way, or None.
        keep_at: block indices before which the state is kept in ``marks``.
        ranks: processes that share the rows, or None where this one has all.
        shows_hidden: ``blocks`` looks at the input of a block.
        hidden: (B, n, D) state after the blocks that have run.
    """

    trunk: TrunkCall
    rows: Tensor | None
    branch: str
    step: StepInfo
    store: CacheStore
    predictor: Predictor
    blocks: BlockDecider | None = None
    recorder: Recorder | None = None
    computes_all: bool = False
    keys: KeysUse = KeysUse.OWN
    key_settings: KeySettings = field(factory=KeySettings)
    stored_hints: bool = False
    keep_hints: bool = False
    hint_rows: Tensor | None = None
    score: ScoreRequest | None = None
    keep_at: frozenset[int] = frozenset()
    ranks: Ranks | None = None
    shows_hidden: bool = True
    marks: dict[int, Tensor] = field(factory=dict, init=False)
    view: TrunkView = field(init=False)
    hidden: Tensor = field(init=False)
    hints: list[Tensor] = field(factory=list, init=False)
    flops: int = field(default=0, init=False)
    blocks_run: int = field(default=0, init=False)
    control_run: int = field(default=0, init=False)
    parts_reused: int = field(default=0, init=False)
    next: int = field(default=0, init=False)
    _hint_at: dict[int, int] = field(init=False)
    _kept: KeptKeys = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Gather the rows."""
        self.view = self.trunk.view(self.rows)
        self.hidden = self.view.x
        self._hint_at = {layer: i for i, layer in enumerate(self.trunk.control_layers)}
        self._kept = KeptKeys(
            settings=self.key_settings,
            trunk=self.trunk,
            store=self.store,
            branch=self.branch,
            step=self.step.index,
            rows=self.rows,
        )

    @property
    def row_count(self) -> int:
        """Rows ``n`` of the view, those of all ranks."""
        return tokens_of(self.view, self.ranks)

    def advance(self, stop: int) -> Tensor:
        """Run blocks up to, not including, ``stop``; return the state (B, n, D)."""
        while self.next < stop:
            if self.next in self.keep_at:
                self.marks[self.next] = self.hidden
            self._block(BlockKey(Stack.MAIN, self.next))
            self.next += 1
        return self.hidden

    def _block(self, key: BlockKey) -> None:
        action = RUN_BLOCK
        if self.blocks is not None:
            shown = self._gathered(self.hidden) if self.shows_hidden else self.hidden
            action = self._allowed(key, self.blocks.block(self.step, self.branch, key, shown))
        slot = Slot(Kind.BLOCK, key)
        if action.use is Use.REUSE and self.store.has(self.branch, slot):
            # The stored residual holds the control hint of its step, so no control block runs.
            self.hidden = self.hidden + self._predict(slot)
            return
        before = self.hidden
        hint = self._hint(key.index)
        self.hidden = self.view.block(key.index, before, hint, self._hooks(key, action))
        self.blocks_run += 1
        if action.store:
            self.store.put_difference(
                self.branch,
                slot,
                self.hidden,
                before,
                step=self.step.index,
                history=self.predictor.history,
            )
        if action.observe_block and self.blocks is not None:
            self.blocks.observe(self.step, self.branch, key, None, self._gathered(self.hidden))

    def _hint(self, layer: int) -> Tensor | None:
        wanted = self._hint_at.get(layer)
        if wanted is None:
            return None
        if self.stored_hints:
            return self.store.get(self.branch, Slot(Kind.HINT, wanted), like=self.hidden)[-1].value
        hint = None
        # Control blocks feed each other, so those whose hints a reused block did not need are
        # caught up on here.
        while self.control_run <= wanted:
            hint = self._control(BlockKey(Stack.CONTROL, self.control_run))
        return hint

    def _control(self, key: BlockKey) -> Tensor:
        action = RUN_BLOCK
        if self.blocks is not None:
            action = self._allowed(key, self.blocks.control(self.step, self.branch, key))
        hint = self.view.control(key.index, self._hooks(key, action))
        self.control_run += 1
        self.flops += self.trunk.flops.control_extra(key.index, rows=self.row_count)
        if self.keep_hints:
            rows = self.hint_rows
            self.hints.append(hint if rows is None else hint.index_select(1, rows))
        return hint

    def _allowed(self, key: BlockKey, action: BlockAction) -> BlockAction:
        if self.computes_all:
            parts = {part: PartAction(store=act.store) for part, act in action.parts.items()}
            action = evolve(action, use=Use.RUN, parts=parts)
        if self.recorder is not None:
            self.recorder.action(self.step.index, self.branch, key, action)
        return action

    def _hooks(self, key: BlockKey, action: BlockAction) -> _Hooks | None:
        parts = action.observe | frozenset(
            part for part, act in action.parts.items() if act != RUN_PART or act.rows is not None
        )
        scored = (
            self.score is not None and key.stack is Stack.MAIN and key.index in self.score.layers
        )
        # Where hints are kept instead, no later step runs control blocks and asks for their keys.
        unasked = key.stack is Stack.CONTROL and self.keep_hints
        keyed = self.keys is not KeysUse.OWN and self._kept.has(key) and not unasked
        attends = keyed or scored
        if parts:
            for part in ALL_SUB_LAYERS - parts:
                self._count(key, part)
        else:
            self.flops += self.trunk.flops.block(
                key.stack, key.index, rows=self.row_count, keys=self._keys_seen(key)
            )
        if not parts and not attends:
            return None
        return _Hooks(
            owner=self,
            key=key,
            action=action,
            parts=parts,
            attends=attends,
            keys=self.keys if keyed else KeysUse.OWN,
            scored=scored,
        )

    def _keys_seen(self, key: BlockKey) -> int:
        every = self.keys is KeysUse.CACHED and self._kept.has(key)
        return tokens_of(self.trunk, self.ranks) if every else self.row_count

    def _count(self, key: BlockKey, part: SubLayer, rows: int | None = None) -> None:
        self.flops += self.trunk.flops.sub_layer(
            key.stack,
            part,
            rows=self.row_count if rows is None else rows,
            keys=self._keys_seen(key),
        )

    def _gathered(self, rows: Tensor) -> Tensor:
        """Bring rows (B, n, D) of all ranks together."""
        if self.ranks is None:
            return rows
        return self.ranks.gather(rows, self.trunk.leading or 0)

    def _predict(self, slot: Slot) -> Tensor:
        values = self.store.get(self.branch, slot, like=self.hidden)
        return self.predictor.predict(values, step=self.step.index, gain=None)

    def sub_layer(
        self, key: BlockKey, part: SubLayer, action: BlockAction, compute: Compute
    ) -> Tensor:
        """Run, reuse or partly recompute one sub-layer (called by the hooks)."""
        act = action.parts.get(part, RUN_PART)
        slot = Slot(Kind.SUB_LAYER, key, part)
        if act.rows is not None and self.ranks is not None:
            raise some_tokens_refused("this policy")
        if act.use is Use.REUSE and self.store.has(self.branch, slot):
            values = self.store.get(self.branch, slot, like=self.hidden)
            output = self.predictor.predict(values, step=self.step.index, gain=None)
            self.parts_reused += 1
            if act.rows is not None and act.rows.numel():
                fresh = compute(act.rows)
                self._count(key, part, act.rows.numel())
                # Where the kept value stands in as it is, writing into it is enough.
                if not shared_memory(output, self.store.newest(self.branch, slot)):
                    output = with_rows(output, act.rows, fresh, values)
                self.store.write_rows(self.branch, slot, act.rows, fresh, step=self.step.index)
        else:
            output = compute()
            self._count(key, part)
            if act.store:
                self.store.put(
                    self.branch,
                    slot,
                    output,
                    step=self.step.index,
                    history=self.predictor.history,
                )
        if part in action.observe and self.blocks is not None:
            self.blocks.observe(self.step, self.branch, key, part, self._gathered(output))
        return output

    def complete(self, key: BlockKey, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put keys and values (B, n, D) among the kept ones, (B, N, D) (called by the hooks)."""
        return self._kept.complete(key, k, v)

    def lend_keys(self, key: BlockKey, like: Tensor) -> KeyLoan | None:
        """Lend the kept keys and values where they can be written as they are."""
        return self._kept.lend(key, like)

    def keep_keys(self, key: BlockKey, k: Tensor, v: Tensor) -> None:
        """Keep keys and values (B, N, D) (called by the hooks)."""
        self._kept.put(key, k, v)

    def add_score(self, q: Tensor, k: Tensor) -> None:
        """Score what a block attends over (called by the hooks); q and k are (B, n, D)."""
        if self.score is None:
            return
        self.score.add(q, k, self.trunk.heads)
        m = self.score.queries.numel()
        self.flops += 2 * q[self.score.batch_rows].shape[0] * m * k.shape[1] * k.shape[2]


@define(eq=False, kw_only=True)
class _Hooks:
    """Hands one block's sub-layers to its pass (``trunk.BlockHooks``)."""

    owner: Pass
    key: BlockKey
    action: BlockAction
    parts: frozenset[SubLayer]
    attends: bool
    keys: KeysUse
    scored: bool

    def sub_layer(self, part: SubLayer, compute: Compute) -> Tensor:
        return self.owner.sub_layer(self.key, part, self.action, compute)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        if self.keys is KeysUse.CACHED:
            k, v = self.owner.complete(self.key, k, v)
        else:
            self.take(q, k, v)
        return attend(q, k, v)

    @property
    def needs_keys(self) -> bool:
        return self.keys is KeysUse.CACHED

    def lend_keys(self, like: Tensor) -> KeyLoan | None:
        return self.owner.lend_keys(self.key, like) if self.needs_keys else None

    def take(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        if self.scored:
            self.owner.add_score(q, k)
        if self.keys is KeysUse.STORE:
            self.owner.keep_keys(self.key, k, v)


def some_tokens_refused(who: str) -> UnsupportedBackboneError:
    """Make the error for a policy that picks tokens where processes share them."""
    return UnsupportedBackboneError(
        f"{who} computes some of the tokens, which processes that share them do not carry",
        option="context parallel",
        remedy="Use a policy of whole steps or blocks, such as teacache, or run in one process.",
    )


def tokens_of(trunk: TrunkCall | TrunkView, ranks: Ranks | None) -> int:
    """Tokens of a call or a view, those of all ranks."""
    return trunk.x.shape[1] * (1 if ranks is None else ranks.size)


def partial_flops(
    trunk: TrunkCall, rows: int, partial: PartialSettings, ranks: Ranks | None = None
) -> int:
    """FLOPs of the trunk over some rows; counts, runs nothing.

    Args:
        trunk: the call.
        rows: active rows.
        partial: how the step is run.
        ranks: processes that share the rows.
    """
    tokens, cached = tokens_of(trunk, ranks), partial.kv_mode is KVMode.CACHED
    kept = partial.keys.kept_layers(trunk.layers) if cached else frozenset[int]()

    def block(stack: Stack, index: int, layer: int) -> int:
        keys = tokens if layer in kept else rows
        return trunk.flops.block(stack, index, rows=rows, keys=keys)

    flops = sum(block(Stack.MAIN, layer, layer) for layer in range(trunk.layers))
    if partial.control_mode is ControlMode.RECOMPUTE:
        for index, layer in enumerate(trunk.control_layers):
            flops += block(Stack.CONTROL, index, layer) + trunk.flops.control_extra(
                index, rows=rows
            )
    return flops


def full_flops(trunk: TrunkCall, ranks: Ranks | None = None) -> int:
    """FLOPs of the trunk when nothing is left out; counts, runs nothing."""
    tokens, costs = tokens_of(trunk, ranks), trunk.flops
    flops = sum(
        costs.block(Stack.MAIN, index, rows=tokens, keys=tokens) for index in range(trunk.layers)
    )
    for index in range(len(trunk.control_layers)):
        flops += costs.block(Stack.CONTROL, index, rows=tokens, keys=tokens)
        flops += trunk.flops.control_extra(index, rows=tokens)
    return flops
