"""What a step policy may look at, computed on first use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Final

from attrs import define, field

from hetcache_core.errors import ContractError
from hetcache_core.steps import WHOLE_TRUNK, Span, StepInfo
from hetcache_core.store import CacheStore, Kind, Slot

if TYPE_CHECKING:
    from torch import Tensor

    from hetcache_core.backbone.adapter import ModelCall
    from hetcache_core.backbone.ranks import Ranks
    from hetcache_core.backbone.trunk import TrunkCall
    from hetcache_core.tokens import Grid


SIGNALS: Final = ""
"""Name under which the store keeps what belongs to the decision and to no branch."""


def relative_l1(new: Tensor, old: Tensor) -> Tensor:
    """Return ``mean|new - old| / mean|old|`` as an fp32 scalar tensor; no wait for the device."""
    old = old.float()
    return (new.float() - old).abs().mean() / old.abs().mean().clamp_min(1e-12)


@define(eq=False)
class ScheduleSignals:
    """Signals of all noise levels, shared by the steps of a run.

    Attributes:
        tables: fp32 (S, k) by name, on the trunk's device.
        numbers: what was read of them.
    """

    tables: dict[str, Tensor] = field(factory=dict)
    numbers: dict[str, list[float]] = field(factory=dict)


@define(eq=False)
class Signals:
    """Signals of one step, taken from the branch that is run first.

    Where one call holds several branches, only the rows of the first are looked at, so merged and
    separate guidance decide alike. A signal that was not asked for costs nothing.

    Attributes:
        step: the step.
        timesteps: unrounded timesteps of the whole run.
        grid: the token grid; the video's tokens are the last of a sequence.
        threshold_factor: multiply thresholds with it; how an asked speed-up is reached.
        reads: numbers brought to the host so far.
    """

    step: StepInfo
    timesteps: tuple[float, ...]
    grid: Grid
    _call: ModelCall
    _trunk: TrunkCall | None
    _probe: Callable[[int], Tensor] | None
    _ahead: ScheduleSignals
    _store: CacheStore
    threshold_factor: float = 1.0
    _gap_error: Tensor | None = None
    _told: float | None = field(default=None, kw_only=True)
    """What is read where tensors have sizes and no values: memory is counted ahead like that."""
    _ranks: Ranks | None = field(default=None, kw_only=True)
    """Who shares the trunk's rows: all of them look at all rows, and read what the first one reads."""
    _modulated: Tensor | None = field(default=None, init=False)
    reads: int = field(default=0, init=False)

    def timestep_embedding(self, index: int | None = None) -> Tensor:
        """Embedding of a step's unrounded timestep: (D,) fp32.

        Args:
            index: the step, which may lie ahead; None for the current one.
        """
        trunk = self._need_trunk("timestep_embedding")
        return self._row("embedding", trunk.timestep_embeddings, index)

    def timestep_modulation(self, index: int | None = None) -> Tensor:
        """Block modulation of a step's unrounded timestep: (6 * D,) fp32; ``index`` as above."""
        trunk = self._need_trunk("timestep_modulation")
        return self._row("modulation", trunk.timestep_modulations, index)

    def modulated_input(self) -> Tensor:
        """First block's modulated input (b, N, D) in fp32, rows of the deciding branch."""
        if self._modulated is None:
            trunk = self._need_trunk("modulated_input")
            modulated = trunk.modulated_input(self.timestep_modulation())[self._rows]
            self._modulated = self._whole(modulated)
        return self._modulated

    def hidden(self) -> Tensor:
        """Trunk input (b, N, D), rows of the deciding branch."""
        return self._whole(self._need_trunk("hidden").x[self._rows])

    def latent(self) -> Tensor:
        """Noisy latents that the model was called with; shape as in the library, b rows or 1."""
        latents = self._call.latents
        return latents[self._rows] if latents.shape[0] > 1 else latents

    def probe(self, blocks: int = 1) -> Tensor:
        """Output (b, N, D) of the first blocks; a step that then runs does not run them again.

        Args:
            blocks: how many, at least 1.
        """
        self._need_trunk("probe")
        if self._probe is None:
            raise ContractError(
                "a policy whose decisions depend on the noise levels alone asks for a probe",
                remedy="Return False from sigmas_only",
            )
        return self._whole(self._probe(blocks)[self._rows])

    def read(self, value: Tensor) -> float:
        """Bring one number to the host. Only here and below does a decision wait for the device."""
        self.reads += 1
        return float(self._agreed(value).item()) if self._told is None else self._told

    def read_many(self, values: Tensor) -> list[float]:
        """Bring several numbers (k,) to the host at once; counts as one read."""
        self.reads += 1
        if self._told is not None:
            return [self._told] * values.numel()
        return [float(v) for v in self._agreed(values).tolist()]

    def read_ahead(self, name: str, compute: Callable[[], Tensor]) -> list[float]:
        """Bring numbers (k,) that depend on the noise levels alone to the host, once a run.

        Args:
            name: what they are; later calls of the run with this name get the same list.
            compute: makes them, on the first call.
        """
        numbers = self._ahead.numbers
        if name not in numbers:
            numbers[name] = self.read_many(compute())
        return numbers[name]

    def gap_error(self) -> float | None:
        """Bring to the host what the last gap did to the latents, as ``StepRecord.error`` has it.

        None before the first gap, and where the policy has nothing measured.
        """
        return None if self._gap_error is None else self.read(self._gap_error)

    def residual(self, span: Span = WHOLE_TRUNK) -> Tensor | None:
        """Newest kept residual (b, N, D) of a span, rows of the deciding branch, or None.

        It must not be written to, and the next full step overwrites it: keep a clone.
        """
        slot = Slot(Kind.RESIDUAL, span)
        if not self._store.has(self._call.key, slot):
            return None
        kept = self._store.get(self._call.key, slot, like=self._call.latents)[-1].value
        return self._whole(kept[self._rows])

    def keep(self, name: str, value: Tensor) -> None:
        """Keep a tensor for later steps of the run, within the cache's byte budget."""
        # In its own dtype, whatever the cache's: decisions are taken in fp32.
        self._store.put(SIGNALS, Slot(Kind.SIGNAL, name), value, step=self.step.index, exact=True)

    def kept(self, name: str) -> Tensor | None:
        """Return what ``keep`` was last given under this name, or None."""
        slot = Slot(Kind.SIGNAL, name)
        if not self._store.has(SIGNALS, slot):
            return None
        return self._store.newest(SIGNALS, slot).to(self._call.latents.device)

    @property
    def _rows(self) -> slice:
        return self._call.branches[0].rows

    def _agreed(self, values: Tensor) -> Tensor:
        return values if self._ranks is None else self._ranks.agreed(values)

    def _whole(self, rows: Tensor) -> Tensor:
        """Bring rows (b, n, D) of the trunk, or of its video alone, together: (b, N, D)."""
        if self._ranks is None or self._trunk is None:
            return rows
        every = rows.shape[1] == self._trunk.x.shape[1]
        return self._ranks.gather(rows, self._trunk.leading or 0 if every else 0)

    def _row(
        self, name: str, compute: Callable[[Sequence[float]], Tensor], index: int | None
    ) -> Tensor:
        # All steps at once, once a run: fp32 copies of the weights live only for this call.
        tables = self._ahead.tables
        if name not in tables:
            tables[name] = compute(self.timesteps)
        return tables[name][self.step.index if index is None else index]

    def _need_trunk(self, name: str) -> TrunkCall:
        if self._trunk is None:
            raise ContractError(
                f"The signal {name!r} needs the model's embedding, but this policy reuses whole model "
                "outputs and decides before the embedding runs. Use signals.latent(), or set "
                "reuse_point to TRUNK."
            )
        return self._trunk


class Signal(ABC):
    """What a policy watches: a tensor of every step, whose relative change to the next one counts.

    Subclasses are final ``attrs.frozen`` classes whose fields are the settings of the signal.
    """

    name: ClassVar[str]
    summary: ClassVar[str]

    @property
    def sigmas_only(self) -> bool:
        """Whether it depends on the noise levels alone, so that all of a run is known at its first step."""
        return False

    @abstractmethod
    def value(self, signals: Signals, index: int) -> Tensor:
        """Return the signal of a step, in fp32 and in any shape that stays the same over a run.

        Args:
            signals: what may be looked at; ask for no number on the host.
            index: the step; another than the current one only where ``sigmas_only``.
        """
