"""What a policy watches: the timestep's embedding, its modulation, the first block's input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final, final

from attrs import frozen
from torch import Tensor

from hetcache_core import Signal, Signals

__all__ = ["SIGNALS", "SIGNAL_TOKENS", "ModulatedInput", "Modulation", "Timestep", "name_of"]

SIGNAL_TOKENS: Final = 4096
"""At most about this many tokens of a modulated input are compared and kept.

Our design: means over a few million numbers do not change in their third digit with more, and the
whole input of a 720p video would be 1.5 GB in fp32.
"""


@final
@frozen
class Timestep(Signal):
    """The timestep's embedding, Wan's ``e``."""

    name: ClassVar[str] = "timestep"
    summary: ClassVar[str] = "the timestep's embedding"

    @property
    def sigmas_only(self) -> bool:
        """Yes."""
        return True

    def value(self, signals: Signals, index: int) -> Tensor:
        """Return the embedding: (D,) fp32."""
        return signals.timestep_embedding(index)


@final
@frozen
class Modulation(Signal):
    """What the blocks make of the timestep's embedding, Wan's ``e0``."""

    name: ClassVar[str] = "modulation"
    summary: ClassVar[str] = "what the blocks make of the timestep's embedding"

    @property
    def sigmas_only(self) -> bool:
        """Yes."""
        return True

    def value(self, signals: Signals, index: int) -> Tensor:
        """Return the modulation: (6 * D,) fp32."""
        return signals.timestep_modulation(index)


@final
@frozen
class ModulatedInput(Signal):
    """The first block's modulated input, which depends on the content too."""

    name: ClassVar[str] = "modulated_input"
    summary: ClassVar[str] = "the first block's modulated input, which depends on the content"

    def value(self, signals: Signals, index: int) -> Tensor:
        """Return the input at evenly spread tokens: (b, n, D) fp32."""
        modulated = signals.modulated_input()
        return modulated[:, :: -(-modulated.shape[1] // SIGNAL_TOKENS)]


SIGNALS: Final[Mapping[str, Signal]] = {
    signal.name: signal for signal in (Timestep(), Modulation(), ModulatedInput())
}
"""Those that polynomials were fitted to, by the names that fits give them."""


def name_of(signal: Signal) -> str:
    """Name a signal; one that only a program knows goes by its class."""
    return getattr(signal, "name", type(signal).__name__)
