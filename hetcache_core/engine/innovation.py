"""What a computed step finds out about the steps before it that were not computed.

Before the blocks run, the library's own call is answered once or twice with what a reused step would have
put in place of the trunk: embedding and head run, nothing else. The difference to the true output is the
*innovation*. A corrector pays it back, and a predictor whose gain is measured learns from it how far its
next line may go. Both are linear in the outputs of the branches, so that they hold for the guided output
too, which is the one that the sampler takes; it tells how much of each branch is in it.

Nothing waits for the device before the run has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import torch
from attrs import define, field
from torch import Tensor
from torch.nn import functional as F

from hetcache_core.policy.pieces import Gap, Measured
from hetcache_core.store import Kind, Slot
from hetcache_core.tokens import mask_to_tokens

if TYPE_CHECKING:
    from hetcache_core.backbone.adapter import ModelCall, RunInfo
    from hetcache_core.policy.recipe import CachePolicy
    from hetcache_core.records.trace import StepRecord
    from hetcache_core.store import CacheStore

HELD, LINE, OUTPUT = (Slot(Kind.INNOVATION, place) for place in range(3))
"""Until the blocks have run, outputs with the gains 0 and 1; then what the first missed, and how far the
second lies from it. Last, the step's own output."""

USELESS: Final = 0.1
"""Where no measured gain is above it, a run has not been helped by its lines."""

TINY: Final = 1e-20
"""Of a squared length: shorter than that, two outputs are the same."""


SHORTEST: Final = 3
"""Steps of the shortest run in which a step can be reused between two that are computed."""


@define(eq=False)
class Innovation:
    """The measurements of one run.

    Attributes:
        gain: what was measured for the predictor, an fp32 scalar in the device's memory, or None so far.
        error: fp32 scalar, root mean square of what the last gap did to the latents inside the mask, or
            None before the first gap.
    """

    _policy: CachePolicy
    _run: RunInfo
    _store: CacheStore
    gain: Tensor | None = field(default=None, init=False)
    error: Tensor | None = field(default=None, init=False)
    _last: int = field(default=-1, init=False)
    """Last step that was not reused."""
    _calls: dict[str, ModelCall] = field(factory=dict, init=False)
    """Calls of the step under way in which something was measured."""
    _found: list[tuple[StepRecord, Tensor, Tensor, Tensor]] = field(factory=list, init=False)
    _mask: Tensor | None = field(default=None, init=False)

    @property
    def _measured(self) -> Measured | None:
        return self._policy.predictor.measured

    @property
    def pays(self) -> bool:
        """Whether the corrector knows the steps of this run's sampler."""
        return self._run.sampler in self._policy.corrector.samplers

    def refused(self) -> str | None:
        """Say that nothing is paid back, and why, or return None: also where no step lies between two."""
        corrector = self._policy.corrector
        if self.pays or not corrector.samplers or self._run.steps < SHORTEST:
            return None
        name = self._run.sampler or "an unknown kind"
        return (
            f"Nothing is paid back: the corrector {corrector.name} is exact for the steps of "
            f"{', '.join(sorted(corrector.samplers))}, and this sampler's are of {name}."
        )

    def forget(self) -> None:
        """Begin anew with another expert."""
        self.gain = self.error = None
        self._last = -1
        self._calls.clear()

    def due(self, step: int) -> bool:
        """Whether a full step has reused ones directly before it that it can say something of."""
        return self._policy.measures and 0 <= self._last < step - 1

    def ask(self, call: ModelCall, answer: Callable[[float | Tensor | None], Tensor]) -> int:
        """Before a full step keeps anything: ask what a reused one would have answered.

        Args:
            call: the call.
            answer: the model's output where a reused step's residual has this gain.

        Returns:
            How often it was asked.
        """
        gains: tuple[float | None, ...] = (None,) if self._measured is None else (0.0, 1.0)
        for slot, gain in zip((HELD, LINE), gains, strict=False):
            self._store.put(call.key, slot, answer(gain), step=call.step, exact=True)
        self._calls[call.key] = call
        return len(gains)

    def correct(self, call: ModelCall, output: Tensor) -> Tensor:
        """Take the output of a step that was asked about, and return it with what is paid back."""
        if call.key not in self._calls:
            return output
        held = self._store.newest(call.key, HELD).to(output.device).float()
        expected, found = held, [(HELD, output.float() - held)]
        if self._measured is not None:
            span = self._store.newest(call.key, LINE).to(output.device).float() - held
            # The head is nearly linear over so short a way, and a third answer is saved.
            expected = held + self._reach() * span
            found.append((LINE, span))
        if self.pays:
            expected = expected.to(output.dtype)
            output = self._policy.corrector.correct(output, expected, self._gap(call.step))
        for slot, value in (*found, (OUTPUT, output.to(torch.float32, copy=True))):
            self._store.put(call.key, slot, value, step=call.step, exact=True)
        return output

    def close(
        self, step: int, guided: Tensor | None, record: StepRecord | None, *, reused: bool
    ) -> None:
        """End a step.

        Args:
            step: its index.
            guided: what the sampler took, made of the outputs of the branches, or None where the
                backbone does not tell; then the first branch stands for all.
            record: of the step, for what was measured.
            reused: whether it was.
        """
        if self._calls:
            self._measure(step, guided, record)
            self._calls.clear()
            self._store.drop(Kind.INNOVATION)
        if not reused:
            self._last = step

    def read(self) -> list[str]:
        """Write what was measured into the records of the steps, and say what is worth saying of it.

        Waits for the device once.
        """
        if not self._found:
            return []
        numbers = torch.stack([torch.stack(rest) for _, *rest in self._found]).tolist()
        for (record, *_), (gain, size, error) in zip(self._found, numbers, strict=True):
            record.innovation, record.error = size, error
            record.gain = None if self._measured is None else gain
        if self._measured is None or max(gain for gain, _, _ in numbers) > USELESS:
            return []
        said = "the last value was as good as the line through the last two"
        return [f"Lines never helped: after each of {len(numbers)} gaps {said}."]

    def _measure(self, step: int, guided: Tensor | None, record: StepRecord | None) -> None:
        weights = self._weights(guided)
        missed = self._guided(HELD, weights)
        gain = torch.zeros((), device=missed.device)
        if self._measured is not None:
            span, reach = self._guided(LINE, weights), self._reach()
            length = span.square().sum()
            fit = (missed * span).sum() / length.clamp_min(TINY)
            fit = fit.clamp(self._measured.low, self._measured.high)
            self.gain = gain = torch.where(length > TINY, fit, reach)
            missed = missed - reach * span
        size = self._inside(missed)
        self.error = abs(self._gap(step).drift) * size
        if record is not None:
            self._found.append((record, gain, size, self.error))

    def _reach(self) -> float | Tensor:
        """How far the last gap went along the line."""
        first = 0.0 if self._measured is None else self._measured.first
        return first if self.gain is None else self.gain

    def _gap(self, step: int) -> Gap:
        return Gap(step=step, last=self._last, sigmas=(*self._run.sigmas, 0.0))

    def _rows(self, slot: Slot) -> list[Tensor]:
        """One branch after the other, those of merged calls too, the deciding one first."""
        found = []
        for key, call in self._calls.items():
            value = self._store.newest(key, slot).to(call.latents.device)
            found += [value[branch.rows].float() for branch in call.branches]
        return found

    def _weights(self, guided: Tensor | None) -> tuple[Tensor, ...]:
        """How much of each branch is in the guided output: w of the second, and 1 - w of the first."""
        outputs = self._rows(OUTPUT)
        one = torch.ones((), device=outputs[0].device)
        if guided is None or len(outputs) != 2 or guided.shape != outputs[0].shape:  # noqa: PLR2004 - a pair
            return (one,)
        between = outputs[1] - outputs[0]
        length = between.square().sum()
        along = ((guided.float() - outputs[0]) * between).sum() / length.clamp_min(TINY)
        weight = torch.where(length > TINY, along, torch.zeros_like(along))
        return (one - weight, weight)

    def _guided(self, slot: Slot, weights: Sequence[Tensor]) -> Tensor:
        rows = self._rows(slot)
        total = rows[0] * weights[0]
        for row, weight in zip(rows[1:], weights[1:], strict=False):
            total = total + row * weight
        return total

    def _inside(self, value: Tensor) -> Tensor:
        """Return the root mean square inside the mask, of the whole where no mask fits the layout."""
        if self._mask is None:
            self._mask = _shares(self._run, value)
        mask = self._mask.expand_as(value)
        return ((value.square() * mask).sum() / mask.sum().clamp_min(1)).sqrt()


def _shares(run: RunInfo, output: Tensor) -> Tensor:
    """Mark what of a model's output lies in the mask: fp32, of a shape that expands to the output's."""
    whole = torch.ones((), device=output.device)
    if run.mask is None:
        return whole
    grid, layout = run.grid, output.shape
    tokens = mask_to_tokens(run.mask, grid).to(output.device, torch.float32)  # (T, h, w)
    if output.dim() == 3 and layout[1] == grid.tokens:  # noqa: PLR2004 - (B, N, C)
        found = F.pad(tokens.flatten(), (grid.prefix, 0))[None, :, None]
    elif output.dim() == 5:  # noqa: PLR2004 - (B, C, T, H, W), frames of references first
        before = max(0, layout[2] - grid.frames)
        size = (layout[2] - before, *layout[3:])
        found = F.interpolate(tokens[None, None], size=size)
        found = F.pad(found, (0, 0, 0, 0, before, 0))
    else:
        return whole
    return torch.where(tokens.any(), found, whole)  # nothing is edited: all counts
