"""What a computed step pays back for the steps before it that were not computed."""

from __future__ import annotations

from typing import ClassVar, Final, final

from attrs import frozen
from torch import Tensor

from hetcache_core import Corrector, Gap, setting

__all__ = ["Payback"]

EULER: Final = frozenset({"euler"})


@final
@frozen
class Payback(Corrector):
    """The error that is found at the end of a gap, taken off the latents once more.

    With ``d`` the innovation, the latents are off by ``e = d * gap.drift`` by then. The sampler is made to
    correct that by changing the model's output: ``v + e / (sigma' - sigma) + beta * e / sigma``. The last
    term is there because ``v`` was taken of latents that were off, and so undoes a part of the error by
    itself: the model pulls them back in proportion to ``1 / sigma``.

    Source: our design.

    Attributes:
        beta: how much of that part is given back.
    """

    name: ClassVar[str] = "payback"
    summary: ClassVar[str] = "the error found at the end of a gap, taken off the latents"

    beta: float = setting(
        0.5, ge=0, le=1, doc="how much of what the model corrects by itself is given back"
    )

    @property
    def samplers(self) -> frozenset[str]:
        """One step of Euler's method moves the latents by what the output says, and no later one does."""
        return EULER

    def correct(self, output: Tensor, expected: Tensor, gap: Gap) -> Tensor:
        """Add the innovation, times what the gap makes of it."""
        sigma, following = gap.sigmas[gap.step], gap.sigmas[gap.step + 1]
        if gap.drift == 0 or sigma in (0.0, following):
            return output
        factor = gap.drift * (1 / (following - sigma) + self.beta / sigma)
        innovation = output.float() - expected.float()
        return (output.float() + factor * innovation).to(output.dtype)
