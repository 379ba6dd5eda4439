"""How partial steps run, and how keys are kept for them. Imports no torch, as policies are listed without."""

from __future__ import annotations

from enum import Enum
from typing import Final

from attrs import field, frozen

from hetcache_core.errors import ConfigError
from hetcache_core.policy.pieces import Hold, Predictor

__all__ = ["ControlMode", "KVMode", "KeySettings", "PartialSettings"]


KEY_DTYPES: Final = ("float64", "float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")
"""What keys and values can be kept in: they are copied, and computed with in the model's own dtype."""


def _is_storable(_instance: object, _attribute: object, name: str | None) -> None:
    if name is not None and name not in KEY_DTYPES:
        raise ConfigError(
            f"keys and values cannot be kept as {name!r}, which is none of {', '.join(KEY_DTYPES)}",
            setting="dtype",
            given=name,
            remedy="Use bfloat16 or float8_e4m3fn.",
        )


def _is_positive(_instance: object, _attribute: object, stride: int) -> None:
    if stride < 1:
        raise ConfigError(
            f"keys and values are kept of every n-th token, with n at least 1, not {stride}",
            setting="stride",
            given=stride,
        )


@frozen(kw_only=True)
class KeySettings:
    """How keys and values are kept for partial steps, where these see the keys of all tokens.

    Attributes:
        dtype: name of a floating dtype ("float8_e4m3fn") to keep them in, None for that of the store.
        layers: main blocks whose keys are kept, negative ones from the end, None for all; in the
            others, active tokens see each other only. A control block goes with the main block that
            takes its hint.
        stride: every n-th token's are kept, and stand in for those of the tokens after it.
        predictor: what stands in for them at a later step.
    """

    dtype: str | None = field(default=None, validator=_is_storable)
    layers: tuple[int, ...] | None = None
    stride: int = field(default=1, validator=_is_positive)
    predictor: Predictor = field(factory=Hold)

    @property
    def history(self) -> int:
        """Computed keys and values that are held of each block."""
        return self.predictor.history

    def kept_layers(self, layers: int) -> frozenset[int]:
        """Return the main blocks whose keys are kept, of ``layers``."""
        if self.layers is None:
            return frozenset(range(layers))
        return frozenset(index % layers for index in self.layers if -layers <= index < layers)


class KVMode(str, Enum):
    """Which keys the active queries of a partial step see."""

    CACHED = "cached"
    """Those of all tokens; the inactive ones are the stored ones."""
    PRUNED = "pruned"
    """Those of the active tokens only (the HetCache paper's mode)."""


class ControlMode(str, Enum):
    """Where the control hints of a partial step come from."""

    REUSE = "reuse"
    """Hints of the last full step at the active rows."""
    RECOMPUTE = "recompute"
    """The control blocks, run on the active rows."""


@frozen(kw_only=True)
class PartialSettings:
    """How a partial step is run (``docs/policies/hetcache.md``, HetCache).

    Attributes:
        kv_mode: which keys the active queries see.
        keys: how the keys of all tokens are kept, with ``KVMode.CACHED``.
        control_mode: where control hints come from.
        context_ratio: share of the context tokens that stays active.
        margin_ratio: share of the margin tokens that stays active, evenly spread.
        max_active_share: above this share of active tokens a partial step is run as a full one.
        pad_to: the number of active tokens is a multiple of this; None picks one for the grid.
        refresh_after: computed full steps after which the selection is made again.
        score_layers: main blocks whose attention is scored; negative ones count from the end.
        score_queries: at most this many generative queries are scored.
        residual_ema: weight of the old residual when active rows are written, 0 to replace it.
        seed: seed of sampled queries and of the selector.
    """

    kv_mode: KVMode = KVMode.CACHED
    keys: KeySettings = field(factory=KeySettings)
    control_mode: ControlMode = ControlMode.REUSE
    context_ratio: float = 0.0
    margin_ratio: float = 1.0
    max_active_share: float = 0.85
    pad_to: int | None = None
    refresh_after: int = 4
    score_layers: tuple[int, ...] = (-1,)
    score_queries: int = 512
    residual_ema: float = 0.0
    seed: int = 0
