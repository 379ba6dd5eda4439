"""What is kept between steps: tensors by branch and slot, within a byte budget."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Final

import torch
from attrs import define, field, frozen
from torch import Tensor

from hetcache_core.errors import CacheBudgetError, CacheStateError, ConfigError
from hetcache_core.steps import BlockKey, Span, SubLayer


class Kind(str, Enum):
    """What a stored tensor is."""

    RESIDUAL = "residual"
    """Output minus input of a span of the trunk."""
    ACTIVE = "active"
    """The whole trunk's residual at the active rows, where more than the last one is kept."""
    OUTPUT = "output"
    """Model output minus its latent input."""
    BLOCK = "block"
    """Output minus input of one block, its control hint included."""
    SUB_LAYER = "sub_layer"
    """Output of a sub-layer before its gate."""
    KEYS = "keys"
    VALUES = "values"
    HINT = "hint"
    """A control hint at the active rows."""
    INNOVATION = "innovation"
    """Model outputs that a computed step is compared with, until it ends."""
    SIGNAL = "signal"
    """Something that a decision compares with later on."""


@frozen
class Slot:
    """Names one stored tensor within a branch.

    ``where`` is a ``Span`` for RESIDUAL, a ``BlockKey`` for BLOCK, SUB_LAYER, KEYS and VALUES,
    the hint's index for HINT, a place for INNOVATION, a name for SIGNAL and None for ACTIVE and OUTPUT.
    """

    kind: Kind
    where: Span | BlockKey | int | str | None = None
    part: SubLayer | None = None


@frozen(eq=False)
class Stored:
    """One kept value and the step at which it was computed."""

    value: Tensor
    step: int


STORABLE: Final = ("float64", "float32", "bfloat16", "float16")
"""Dtypes that sums and copies of rows are carried out in, on every device."""


@frozen(kw_only=True)
class StoreSettings:
    """How a store keeps its tensors.

    Attributes:
        dtype: name of one of ``STORABLE`` ("bfloat16") to keep them in, or None for the model's own.
        device: device to keep them on ("cpu" spills to host memory), or None for the model's own.
        max_bytes: hard limit for one run, or None.
        spill: past ``max_bytes``, keep in host memory what would otherwise be refused.
    """

    dtype: str | None = None
    device: str | None = None
    max_bytes: int | None = None
    spill: bool = False

    def __attrs_post_init__(self) -> None:
        """Check everything, so that what is wrong is an error before the run and not inside it."""
        for name, hint in (("dtype", str), ("device", str), ("max_bytes", int), ("spill", bool)):
            value = getattr(self, name)
            optional = name != "spill" and value is None
            if not optional and (
                not isinstance(value, hint) or (hint is int and isinstance(value, bool))
            ):
                kind = {str: "text", int: "a whole number", bool: "true or false"}[hint]
                raise ConfigError(
                    f"{name} must be {kind}, got {value!r}",
                    where="StoreSettings",
                    setting=name,
                    given=value,
                )
        if self.dtype is not None and self.dtype not in STORABLE:
            raise ConfigError(
                f"nothing can be kept as {self.dtype!r}",
                where="cache dtype",
                remedy=f"Use one of {', '.join(STORABLE)}. Keys and values alone may take 8 bits "
                "(KeySettings, kv_dtype).",
                setting="dtype",
                given=self.dtype,
                allowed=STORABLE,
            )
        if self.device is not None:
            try:
                torch.device(self.device)
            except RuntimeError as error:
                raise ConfigError(
                    f"Cache device {self.device!r} is unknown: use cpu or cuda."
                ) from error
        if self.max_bytes is not None and self.max_bytes <= 0:
            raise ConfigError(f"max_bytes is {self.max_bytes}; it must be a positive byte count.")


@define(eq=False)
class CacheStore:
    """Tensors of one run, keyed by branch and slot.

    Values are kept oldest first, at most ``history`` of them a slot. The store owns what it is
    given: callers hand over fresh tensors and write into them again only through the store.
    """

    settings: StoreSettings = field(factory=StoreSettings)
    _values: dict[tuple[str, Slot], list[Stored]] = field(factory=dict, init=False)
    _bytes: int = field(default=0, init=False)
    _peak: int = field(default=0, init=False)
    _outside: int = field(default=0, init=False)
    _spilled: int = field(default=0, init=False)
    _peak_spilled: int = field(default=0, init=False)
    _clamped: Tensor | None = field(default=None, init=False)

    @property
    def bytes(self) -> int:
        """Bytes held now, without those spilled to host memory."""
        return self._bytes

    @property
    def peak_bytes(self) -> int:
        """Most bytes held at any time in this run, without those spilled to host memory."""
        return self._peak

    @property
    def peak_spilled_bytes(self) -> int:
        """Most bytes spilled to host memory at any time in this run."""
        return self._peak_spilled

    def bytes_of(self, kind: Kind) -> int:
        """Bytes held of one kind, in all branches."""
        kept = ((slot.kind, entries) for (_, slot), entries in self._values.items())
        return sum(_size(entry.value) for of, entries in kept if of is kind for entry in entries)

    def count_outside(self, held: int) -> None:
        """Take note of bytes that are held for the run elsewhere: by deciders, in fields of theirs.

        Raises:
            CacheBudgetError: together with what the store holds they pass ``max_bytes``.
        """
        self._bytes += held - self._outside
        self._outside = held
        self._peak = max(self._peak, self._bytes)
        limit = self.settings.max_bytes
        if limit is not None and self._bytes > limit:
            raise self._too_much(f"The decisions keep {held:,} bytes by themselves", limit)

    def clamped(self) -> bool:
        """Whether anything was past the range of what it is kept in; waits for the device, if at all."""
        return self._clamped is not None and bool(self._clamped)

    def has(self, branch: str, slot: Slot) -> bool:
        """Whether a value is held."""
        return bool(self._values.get((branch, slot)))

    def put(
        self,
        branch: str,
        slot: Slot,
        value: Tensor,
        *,
        step: int,
        history: int = 1,
        exact: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Keep a value; the oldest beyond ``history`` is dropped.

        Args:
            branch: whose it is.
            slot: what it is.
            value: the tensor; the store owns it from here on.
            step: the step that computed it.
            history: how many values the slot holds.
            exact: keep its dtype, whatever the settings say.
            dtype: keep it in this one, whatever the settings say.

        Raises:
            CacheBudgetError: the store would pass ``max_bytes``.
        """
        entries = self._values.setdefault((branch, slot), [])
        while len(entries) >= history:
            self._release(entries.pop(0).value)
        wanted = (
            None if exact or self.settings.dtype is None else getattr(torch, self.settings.dtype)
        )
        kept = self._narrowed(value.detach(), dtype or wanted or value.dtype).to(
            self.settings.device or value.device
        )
        # A view would keep its whole base alive and the byte count would be a lie.
        if kept.untyped_storage().nbytes() > _size(kept):
            kept = kept.clone()
        entries.append(Stored(self._reserve(kept, slot), step))

    def put_difference(
        self, branch: str, slot: Slot, after: Tensor, before: Tensor, *, step: int, history: int = 1
    ) -> None:
        """Keep ``after - before``, into the buffer already held where there is a matching one."""
        entries = self._values.get((branch, slot), [])
        if history == 1 and entries and _matches(entries[0].value, after):
            torch.sub(after, before, out=entries[0].value)
            entries[0] = Stored(entries[0].value, step)
            return
        self.put(branch, slot, after - before, step=step, history=history)

    def get(self, branch: str, slot: Slot, *, like: Tensor) -> tuple[Stored, ...]:
        """Return the kept values, oldest first, in the dtype and on the device of ``like``.

        Raises:
            CacheStateError: nothing is held under this branch and slot.
        """
        entries = self._values.get((branch, slot))
        if not entries:
            raise CacheStateError(
                f"Branch {branch!r} asks for {slot.kind.value} {slot.where}, which no computed step "
                "has stored. A step that stores it must run first."
            )
        return tuple(Stored(e.value.to(like.dtype).to(like.device), e.step) for e in entries)

    def newest(self, branch: str, slot: Slot) -> Tensor:
        """Return the newest kept value as it is kept; it must be there."""
        return self._values[(branch, slot)][-1].value

    def write_rows(
        self, branch: str, slot: Slot, rows: Tensor, value: Tensor, *, step: int
    ) -> None:
        """Overwrite rows of the newest kept value in place.

        Args:
            branch: the branch.
            slot: the slot; it must hold a value (B, N, D).
            rows: (n,) token indices.
            value: (B, n, D) new rows.
            step: the step that computed them.
        """
        entries = self._values[(branch, slot)]
        kept = entries[-1].value
        fresh = self._narrowed(value, kept.dtype).to(kept.device)
        kept.index_copy_(1, rows.to(kept.device), fresh)
        entries[-1] = Stored(kept, step)

    def lend(self, branch: str, slot: Slot, *, like: Tensor, step: int) -> Tensor | None:
        """Hand out the newest kept value to be written into, from then on one of this step.

        Args:
            branch: the branch.
            slot: the slot; it must hold a value.
            like: a tensor of the dtype and on the device that are needed.
            step: the step that writes.

        Returns:
            The value, or None where it is kept in another dtype or elsewhere.
        """
        entries = self._values[(branch, slot)]
        kept = entries[-1].value
        if kept.dtype != like.dtype or kept.device != like.device:
            return None
        entries[-1] = Stored(kept, step)
        return kept

    def drop(self, kind: Kind) -> None:
        """Forget every value of one kind, in all branches."""
        for key in [k for k in self._values if k[1].kind is kind]:
            for entry in self._values.pop(key):
                self._release(entry.value)

    def clear(self) -> None:
        """Forget everything; the peak is kept for the trace."""
        self._values.clear()
        self._bytes = self._spilled = self._outside = 0

    def _narrowed(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """Change a dtype; what it cannot hold (past 65504 in float16) becomes its largest number.

        Infinity would turn into NaN in the step that reuses it, and would look like the model's own.
        """
        if dtype.is_floating_point and value.is_floating_point():
            most = torch.finfo(dtype).max
            if most < torch.finfo(value.dtype).max:
                beyond = (value.abs() > most).any()
                self._clamped = beyond if self._clamped is None else self._clamped | beyond
                value = value.clamp(-most, most)
        return value.to(dtype)

    def _too_much(self, what: str, limit: int | None) -> CacheBudgetError:
        """Say that the limit is passed, and what would help that is not done already."""
        ways = ["Raise the limit"]
        if self.settings.dtype not in {"bfloat16", "float16"}:
            ways.append("keep the cache in bfloat16")
        if self.settings.device != "cpu" and not self.settings.spill:
            ways.append("keep it on the CPU")
        return CacheBudgetError(
            f"{what}; the limit is {limit:,}",
            remedy=f"{', '.join(ways)}, or choose a policy or a setting that keeps less",
            held_bytes=self._bytes,
            budget_bytes=limit,
        )

    def _is_spilled(self, value: Tensor) -> bool:
        return self.settings.spill and value.device.type == "cpu"

    def _release(self, value: Tensor) -> None:
        if self._is_spilled(value):
            self._spilled -= _size(value)
        else:
            self._bytes -= _size(value)

    def _reserve(self, value: Tensor, slot: Slot) -> Tensor:
        """Count a value in, and return it where it is to be kept."""
        size, limit = _size(value), self.settings.max_bytes
        full = limit is not None and self._bytes + size > limit
        if self.settings.spill and (full or value.device.type == "cpu"):
            self._spilled += size
            self._peak_spilled = max(self._peak_spilled, self._spilled)
            return value.cpu()
        if full:
            raise self._too_much(
                f"Storing {slot.kind.value} needs {size:,} bytes on top of {self._bytes:,} held",
                limit,
            )
        self._bytes += size
        self._peak = max(self._peak, self._bytes)
        return value


def with_rows(value: Tensor, rows: Tensor, fresh: Tensor, kept: Sequence[Stored]) -> Tensor:
    """Return a prediction with some rows overwritten, in place unless it is a kept value itself.

    Args:
        value: (B, N, D) what a predictor made of kept values, or one of them.
        rows: (n,) token indices.
        fresh: (B, n, D) what they become.
        kept: the values; they stay as they are.
    """
    if any(shared_memory(value, each.value) for each in kept):
        return value.index_copy(1, rows, fresh)
    return value.index_copy_(1, rows, fresh)


def shared_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are views of the same memory."""
    # By identity, since tensors without data have no addresses.
    return bool(one.untyped_storage()._cdata == other.untyped_storage()._cdata)  # noqa: SLF001


def _size(value: Tensor) -> int:
    return value.numel() * value.element_size()


def _matches(kept: Tensor, fresh: Tensor) -> bool:
    return kept.shape == fresh.shape and kept.dtype == fresh.dtype and kept.device == fresh.device
