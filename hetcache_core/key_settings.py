"""How keys and values are kept for partial steps. Imports no torch, as little as the policies do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen

from hetcache_core.errors import ConfigError

if TYPE_CHECKING:
    from hetcache_core.policy import Predictor

__all__ = ["KeySettings"]


def _is_floating(_instance: object, _attribute: object, name: str | None) -> None:
    if name is None:
        return
    import torch  # here, since policies can be listed without it

    kept = getattr(torch, name, None)
    if not isinstance(kept, torch.dtype) or not kept.is_floating_point:
        raise ConfigError(
            f"keys and values cannot be kept as {name!r}, which is no floating torch dtype",
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
        predictor: what stands in for them at a later step, None for the last computed ones.
    """

    dtype: str | None = field(default=None, validator=_is_floating)
    layers: tuple[int, ...] | None = None
    stride: int = field(default=1, validator=_is_positive)
    predictor: Predictor | None = None

    @property
    def history(self) -> int:
        """Computed keys and values that are held of each block."""
        return 1 if self.predictor is None else self.predictor.history

    def kept_layers(self, layers: int) -> frozenset[int]:
        """Return the main blocks whose keys are kept, of ``layers``."""
        if self.layers is None:
            return frozenset(range(layers))
        return frozenset(index % layers for index in self.layers if -layers <= index < layers)
