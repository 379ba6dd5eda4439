"""Processes that share the rows of one call, each with a model of its own: context parallelism.

A library splits the rows before its first block and gathers them behind its last. In between, attention
alone exchanges anything. What looks at all rows is gathered here, and what is read is the first rank's,
so that the ranks take one decision and not each its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

import torch
import torch.distributed as dist
from attrs import frozen

if TYPE_CHECKING:
    from torch import Tensor


@final
@frozen(eq=False)
class Ranks:
    """The ranks among which the rows of a call are shared evenly, each with ``N / size`` of them.

    Attributes:
        group: their process group, of torch.distributed.
    """

    group: Any

    @property
    def size(self) -> int:
        """How many there are."""
        return dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        """Which one this is, from 0."""
        return dist.get_rank(self.group)

    def meet(self) -> None:
        """Wait until all have come here."""
        dist.barrier(self.group)

    def gather(self, own: Tensor, leading: int = 0) -> Tensor:
        """Bring the rows of all ranks together.

        Args:
            own: (B, n, D) of this rank, as many as every other one has.
            leading: rows of these that stand before the video's; those of all ranks come first.

        Returns:
            (B, n * size, D).
        """
        parts = [
            torch.empty(own.shape, dtype=own.dtype, device=own.device) for _ in range(self.size)
        ]
        dist.all_gather(parts, own.contiguous(), group=self.group)
        first, others = [p[:, :leading] for p in parts], [p[:, leading:] for p in parts]
        return torch.cat([*first, *others] if leading else parts, dim=1)

    def share(self, every: Tensor) -> Tensor:
        """Take this rank's rows (B, n, ...) out of those of all, (B, n * size, ...)."""
        return every.chunk(self.size, dim=1)[self.rank]

    def agreed(self, values: Tensor) -> Tensor:
        """Return the first rank's values, of a shape that all have."""
        told = values.detach().clone(memory_format=torch.contiguous_format)
        dist.broadcast(told, src=dist.get_global_rank(self.group, 0), group=self.group)
        return told
