"""Keys and values of tokens that a partial step leaves out: how they are kept, and attended over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from attrs import field, frozen

from hetcache_core.steps import BlockKey, Stack
from hetcache_core.store import CacheStore, Kind, Slot, with_rows

if TYPE_CHECKING:
    from torch import Tensor

    from hetcache_core.backbone.trunk import KeyLoan, TrunkCall
    from hetcache_core.policy.partial import KeySettings

__all__ = ["KeptKeys"]


@frozen(eq=False, kw_only=True)
class KeptKeys:
    """The keys and values that one call of the trunk keeps, or attends over.

    Attributes:
        settings: how they are kept.
        trunk: the call.
        store: where.
        branch: key under which.
        step: index of the step.
        rows: (n,) active rows, or None where all tokens are computed.
    """

    settings: KeySettings
    trunk: TrunkCall
    store: CacheStore
    branch: str
    step: int
    rows: Tensor | None
    _layers: frozenset[int] = field(init=False)

    @_layers.default
    def _kept_layers(self) -> frozenset[int]:
        return self.settings.kept_layers(self.trunk.layers)

    def has(self, key: BlockKey) -> bool:
        """Whether a block's are kept."""
        at = key.index if key.stack is Stack.MAIN else self.trunk.control_layers[key.index]
        return at in self._layers

    def put(self, key: BlockKey, k: Tensor, v: Tensor) -> None:
        """Keep those of all tokens, (B, N, D)."""
        name = self.settings.dtype
        dtype: torch.dtype | None = None if name is None else getattr(torch, name)
        for kind, value in ((Kind.KEYS, k), (Kind.VALUES, v)):
            kept = value[:, :: self.settings.stride]
            self.store.put(
                self.branch,
                Slot(kind, key),
                kept,
                step=self.step,
                history=self.settings.history,
                dtype=dtype,
            )

    def complete(self, key: BlockKey, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put those of the active rows, (B, n, D), among the kept ones; both (B, N, D)."""
        if self.rows is None:
            return k, v
        loan = self.lend(key, k)
        if loan is None:
            # Active rows are computed in every partial step, so nothing is lost by not keeping them.
            return (
                self._among_stale(Slot(Kind.KEYS, key), k),
                self._among_stale(Slot(Kind.VALUES, key), v),
            )
        keys, values, rows = loan
        return keys.index_copy_(1, rows, k), values.index_copy_(1, rows, v)

    def lend(self, key: BlockKey, like: Tensor) -> KeyLoan | None:
        """Lend the kept ones to be written into, where they are kept as they are attended over."""
        if self.rows is None or self.settings.stride > 1 or self.settings.history > 1:
            return None
        keys = self.store.lend(self.branch, Slot(Kind.KEYS, key), like=like, step=self.step)
        values = self.store.lend(self.branch, Slot(Kind.VALUES, key), like=like, step=self.step)
        return None if keys is None or values is None else (keys, values, self.rows)

    def _among_stale(self, slot: Slot, fresh: Tensor) -> Tensor:
        assert self.rows is not None  # noqa: S101 - for mypy: only some rows are computed
        values = self.store.get(self.branch, slot, like=fresh)
        stale = self.settings.predictor.predict(values, step=self.step, gain=None)
        if self.settings.stride > 1:
            stale = stale.repeat_interleave(self.settings.stride, 1)
        return with_rows(stale[:, : self.trunk.x.shape[1]], self.rows, fresh, values)
