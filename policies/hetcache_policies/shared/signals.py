"""What a policy watches: the timestep's embedding, its modulation, the first block's input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final, final

import torch
from attrs import frozen
from torch import Tensor

from hetcache_core import Signal, Signals, setting

__all__ = [
    "SIGNALS",
    "SIGNAL_TOKENS",
    "FilteredInput",
    "ModulatedInput",
    "Modulation",
    "Timestep",
    "name_of",
]

SIGNAL_TOKENS: Final = 4096
"""At most about this many tokens of a modulated input are compared and kept.

Our design: means over a few million numbers do not change in their third digit with more, and the
whole input of a 720p video would be 1.5 GB in fp32.
"""

AXES: Final = (1, 2, 3)
"""Frames, rows and columns of tokens."""

LEAST_SIGNAL: Final = 1e-6
"""Share of the signal where there is nothing but noise. Source: SeaCache's code."""


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


@final
@frozen
class FilteredInput(Signal):
    """The first block's modulated input without what is noise at the step's noise level.

    Of a signal with the power ``f**-power`` at frequency ``f`` that reaches the model as
    ``(1 - sigma) signal + sigma noise``, the Wiener filter keeps ``a / (a**2 + sigma**2 f**power)`` with
    ``a = 1 - sigma``, along frames, rows and columns one after the other. Each filter has a mean of 1 over
    its frequencies, so that changes of different steps can be added up.

    Source: SeaCache (arXiv:2602.18993), equation 7.

    Attributes:
        power: how fast a clean video's power falls with the frequency.
    """

    name: ClassVar[str] = "filtered_input"
    summary: ClassVar[str] = "the first block's modulated input without its noise"

    power: float = setting(3.0, gt=0, doc="how fast a clean video's power falls with the frequency")

    def value(self, signals: Signals, index: int) -> Tensor:
        """Return evenly spread channels of the video's filtered tokens: (b, T, h, w, c) fp32."""
        modulated, grid = signals.modulated_input(), signals.grid
        video = grid.frames * grid.height * grid.width
        # Channels instead of tokens, which have neighbours.
        thinned = -(-video // SIGNAL_TOKENS)
        sizes = (grid.frames, grid.height, grid.width)
        x = modulated[:, -video:, ::thinned].unflatten(1, sizes)  # (b, T, h, w, c)
        spectrum = torch.fft.rfftn(x, dim=AXES)  # (b, T, h, w // 2 + 1, c)
        for axis, size in zip(AXES, sizes, strict=True):
            gain = self._gain(size, signals.step.sigma, x.device)[: spectrum.shape[axis]]
            spectrum = spectrum * gain.view([-1, *(1 for _ in range(x.ndim - axis - 1))])
        filtered: Tensor = torch.fft.irfftn(spectrum, s=sizes, dim=AXES)
        return filtered

    def _gain(self, size: int, sigma: float, device: torch.device) -> Tensor:
        """Return what one axis keeps of each of its frequencies (size,)."""
        noise = min(max(sigma, 0.0), 1.0)
        clean = max(1.0 - noise, LEAST_SIGNAL)
        powers = torch.fft.fftfreq(size, device=device).abs() ** self.power
        kept: Tensor = clean / (clean**2 + noise**2 * powers)
        return kept / kept.mean()


SIGNALS: Final[Mapping[str, Signal]] = {
    signal.name: signal for signal in (Timestep(), Modulation(), ModulatedInput())
}
"""Those that polynomials were fitted to, by the names that fits give them."""


def name_of(signal: Signal) -> str:
    """Name a signal; one that only a program knows goes by its class."""
    return getattr(signal, "name", type(signal).__name__)
