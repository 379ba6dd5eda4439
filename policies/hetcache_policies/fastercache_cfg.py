"""FasterCache's CFG-cache: the unconditional branch predicted from the conditional one.

Where both branches run, the low and the high frequencies of their difference are kept. In the steps after
that only the conditional branch runs, and the unconditional output is taken to be its output plus the kept
difference, of which the low frequencies weigh more in the middle of the run and the high ones at its end.
Beside a policy that decides steps, both branches run in full steps alone: where one branch has reused what
is many steps old, guidance would multiply the mismatch.

It needs a backbone that calls the model once for each branch, the conditional one first. Where both are in
one call, where the unconditional one comes first or where there is no guidance, every call simply runs.

Source: FasterCache (ICLR 2025, arXiv:2410.19355), section 3.3, and its reference code. Different from that
code: weights are applied to the differences once (its script for Latte multiplies what it keeps by 1.1 at
each predicted step, so that they grow), windows are shares of the run, and the last step runs both branches.
The reuse of attention that FasterCache adds to this is not part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final, final

import torch
from attrs import define, field, frozen
from torch import Tensor

from hetcache_core import (
    CachePolicy,
    ConfigError,
    ContractError,
    Grid,
    Guards,
    GuidanceDecider,
    GuidancePolicy,
    Mode,
    ModelInfo,
    PolicyRecipe,
    RunInfo,
    Signals,
    StepInfo,
    setting,
)

__all__ = ["FasterCacheCFG", "PredictedUncond", "low_frequencies"]

COND: Final = "cond"
UNCOND: Final = "uncond"

EVERY: Final = 5
"""Source: FasterCache's code."""

WEIGHT: Final = 1.1
"""Source: FasterCache's code, for low and for high frequencies."""

WINDOW: Final = (0.36, 1.0)
LOW_WINDOW: Final = (0.1, 0.9)
HIGH_WINDOW: Final = (0.7, 1.0)
"""Shares of the run. Source: FasterCache's code has timesteps, below 641, from 99 to 901 and below 301, of an
evenly spaced schedule; in a shifted one those would lie elsewhere."""

LOW: Final = "low frequencies of uncond - cond"
HIGH: Final = "high frequencies of uncond - cond"
"""Names under which the difference is kept."""

RADIUS: Final = 0.2
"""Source: FasterCache's code: a fifth of the shorter side of the spectrum."""

PRESETS: Final[Mapping[str, Mapping[str, object]]] = {
    "quality": {"window": (0.5, 1.0)},
    "balanced": {"window": WINDOW},
    "fast": {"window": (0.2, 1.0), "every": 10},
}
"""About 80, 75 and 64 % of the calls, of which half always run; our design around the published setting."""


def low_frequencies(planes: Tensor, radius: float) -> Tensor:
    """Return the part of planes (..., H, W) that varies slowly; fp32.

    Args:
        planes: the planes.
        radius: of the disc of frequencies that are low, as a share of the spectrum's shorter side.
    """
    height, width = planes.shape[-2:]
    spectrum = torch.fft.fft2(planes.float())
    down = torch.fft.fftfreq(height, device=planes.device) * height  # (H,) cycles along a side
    across = torch.fft.fftfreq(width, device=planes.device) * width  # (W,)
    low = torch.hypot(down[:, None], across[None, :]) <= radius * min(height, width)  # (H, W)
    slow: Tensor = torch.fft.ifft2(spectrum * low).real
    return slow


@final
@frozen(kw_only=True)
class PredictedUncond(GuidancePolicy):
    """Runs the unconditional branch in every n-th step of a window and predicts it in the others.

    Attributes:
        every: distance ``n`` of the steps that run both branches.
        window: shares of the run between which it is predicted.
        low_weight: weight of the difference's low frequencies within ``low_window``; 1 outside.
        low_window: shares of the run.
        high_weight: weight of its high frequencies within ``high_window``; 1 outside.
        high_window: shares of the run.
        radius: where low frequencies end, as a share of the spectrum's shorter side.
    """

    every: int
    window: tuple[float, float]
    low_weight: float
    low_window: tuple[float, float]
    high_weight: float
    high_window: tuple[float, float]
    radius: float

    def begin(self, run: RunInfo) -> GuidanceDecider:
        """Start without a difference."""
        return _Decider(self, run.grid, possible=_in_order(run.branches))

    def inside(self, step: StepInfo) -> bool:
        """Whether the branch may be predicted in a step."""
        guarded = step.is_first or step.computed
        return not guarded and _within(self.window, step.index, step.total)

    def weights(self, step: StepInfo) -> tuple[float, float]:
        """Return the weights of low and high frequencies in a step."""
        low = _within(self.low_window, step.index, step.total)
        high = _within(self.high_window, step.index, step.total)
        return self.low_weight if low else 1.0, self.high_weight if high else 1.0


@final
@define(eq=False)
class _Decider(GuidanceDecider):
    _policy: PredictedUncond
    _grid: Grid
    _possible: bool = field(kw_only=True)
    _observed: int | None = field(default=None, init=False)
    _stale: bool = field(default=False, init=False)

    def predicts(self, step: StepInfo, branch: str, mode: Mode) -> str | None:
        if branch != UNCOND or self._observed is None:
            return None
        if mode is Mode.REUSE:
            # Its own residual is as old as that of the other branch, unless it was predicted since.
            return f"predicted from {COND}" if self._stale else None
        fresh = step.index - self._observed < self._policy.every
        # What a partial step would write into is stale until a full step has run both branches.
        if not (self._policy.inside(step) and fresh) and not (mode is Mode.PARTIAL and self._stale):
            return None
        self._stale = True
        return f"predicted from {COND}"

    def predict(
        self, step: StepInfo, branch: str, outputs: Mapping[str, Tensor], signals: Signals
    ) -> Tensor:
        kept_low, kept_high = signals.kept(LOW), signals.kept(HIGH)
        if kept_low is None or kept_high is None:
            raise ContractError("the unconditional branch is predicted, but nothing was observed")
        cond = outputs[COND]
        low, high = self._policy.weights(step)
        return (cond.float() + low * kept_low + high * kept_high).to(cond.dtype)

    def observe_outputs(
        self, step: StepInfo, outputs: Mapping[str, Tensor], mode: Mode, signals: Signals
    ) -> None:
        if not self._possible or mode is not Mode.FULL or not {COND, UNCOND} <= outputs.keys():
            return
        self._observed, self._stale = step.index, False
        difference = outputs[UNCOND].float() - outputs[COND].float()
        planes = _planes(difference, self._grid)
        slow = low_frequencies(planes, self._policy.radius)
        low = slow if planes is difference else slow.movedim(1, -1).flatten(1, 3)
        signals.keep(LOW, low)
        signals.keep(HIGH, difference - low)


def _planes(output: Tensor, grid: Grid) -> Tensor:
    """Return a model output as planes (..., H, W).

    Video latents (B, C, T, H, W) are that already; packed ones (B, N, C), which have no rows of other tokens
    such as the text's, are laid out (B, C, T, h, w).
    """
    if output.ndim > 3:  # noqa: PLR2004 - packed latents have three dimensions
        return output
    if output.shape[1] != grid.tokens - grid.prefix:
        raise ContractError(
            f"a model output of shape {tuple(output.shape)} is neither video latents nor one row for "
            f"each of {grid.tokens - grid.prefix} tokens",
            remedy="Leave fastercache-cfg out on this backbone.",
        )
    laid_out: Tensor = output.unflatten(
        1, (grid.frames, grid.height, grid.width)
    )  # (B, T, h, w, C)
    return laid_out.movedim(-1, 1)


def _in_order(branches: tuple[str, ...]) -> bool:
    """Whether the conditional branch is run before the unconditional one."""
    wanted = [branch for branch in branches if branch in {COND, UNCOND}]
    return wanted == [COND, UNCOND]


def _within(window: tuple[float, float], index: int, steps: int) -> bool:
    low, high = window
    return low * (steps - 1) <= index <= high * (steps - 1)


@final
@frozen(kw_only=True)
class FasterCacheCFG(PolicyRecipe):
    """Settings of the predicted unconditional branch."""

    name: ClassVar[str] = "fastercache-cfg"
    summary: ClassVar[str] = "predict the unconditional branch of guidance from the conditional one"
    source: ClassVar[str] = "FasterCache, ICLR 2025, arXiv:2410.19355 (CFG-cache)"
    decides_on: ClassVar[str] = "the step's index"
    default_guards: ClassVar[Guards] = Guards(last_steps=1)
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = PRESETS
    preset_shares: ClassVar[Mapping[str, float]] = {"quality": 0.80, "balanced": 0.75, "fast": 0.65}

    every: int = setting(EVERY, ge=1, doc="every n-th step runs both branches; 1 predicts nothing")
    window: tuple[float, float] = setting(
        WINDOW, ge=0, le=1, doc="shares of the run between which the branch is predicted"
    )
    low_weight: float = setting(WEIGHT, ge=0, doc="weight of low frequencies in low_window")
    low_window: tuple[float, float] = setting(
        LOW_WINDOW, ge=0, le=1, doc="shares of the run between which low_weight holds"
    )
    high_weight: float = setting(WEIGHT, ge=0, doc="weight of high frequencies in high_window")
    high_window: tuple[float, float] = setting(
        HIGH_WINDOW, ge=0, le=1, doc="shares of the run between which high_weight holds"
    )
    radius: float = setting(
        RADIUS, ge=0, le=1, doc="where low frequencies end, as a share of the shorter side"
    )

    def __attrs_post_init__(self) -> None:
        """Refuse windows that end before they begin.

        Raises:
            ConfigError: One does.
        """
        for name in ("window", "low_window", "high_window"):
            low, high = getattr(self, name)
            if low >= high:
                raise ConfigError(
                    f"{name} must begin before it ends, got [{low}, {high}]",
                    setting=name,
                    given=(low, high),
                )

    def compose(self, model: ModelInfo) -> CachePolicy:
        """Make the guidance policy; it is the same for every model."""
        return CachePolicy(
            name=self.name,
            guidance=PredictedUncond(
                every=self.every,
                window=self.window,
                low_weight=self.low_weight,
                low_window=self.low_window,
                high_weight=self.high_weight,
                high_window=self.high_window,
                radius=self.radius,
            ),
        )
