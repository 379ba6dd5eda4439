"""What the pieces of a DiT cost, in FLOPs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from attrs import field, frozen
from torch import Tensor, nn

from hetcache_core.backbone.adapter import FlopModel
from hetcache_core.steps import Stack, SubLayer


@final
@frozen(kw_only=True)
class RowFlops(FlopModel):
    """Costs of blocks that are alike, from multiply-accumulates; ``matrix_macs`` counts them.

    Attributes:
        batch: rows ``B`` of the call.
        width: trunk width ``D``.
        around: everything around the trunk, for one batch row.
        row: matrices of each sub-layer, for one token; none where a block has no such sub-layer.
        call: what each sub-layer does once for a batch row, such as projecting the timestep.
    """

    batch: int
    width: int
    around: int
    row: Mapping[SubLayer, int]
    call: Mapping[SubLayer, int] = field(factory=dict)

    @classmethod
    def of(
        cls,
        x: Tensor,
        *,
        around: int,
        **parts: tuple[nn.Module, nn.Module],
    ) -> RowFlops:
        """Count the matrices of a block's modules.

        Args:
            x: (B, N, D) trunk input.
            around: everything around the trunk, for one batch row.
            **parts: by the names of sub-layers ("self_attention", "feed_forward"), the module that
                runs on tokens and the one that runs once for a batch row.
        """
        return cls(
            batch=x.shape[0],
            width=x.shape[2],
            around=around,
            row={SubLayer(name): matrix_macs(on_tokens) for name, (on_tokens, _) in parts.items()},
            call={SubLayer(name): matrix_macs(once) for name, (_, once) in parts.items()},
        )

    def outside(self) -> int:
        """Everything around the trunk."""
        return 2 * self.batch * self.around

    def sub_layer(self, stack: Stack, part: SubLayer, *, rows: int, keys: int) -> int:
        """One sub-layer on some rows."""
        macs = rows * self.row.get(part, 0) + self.call.get(part, 0)
        if part is SubLayer.SELF_ATTENTION:
            macs += 2 * rows * keys * self.width
        return 2 * self.batch * macs

    def control_extra(self, index: int, *, rows: int) -> int:
        """There is no control branch."""
        return 0


def matrix_macs(*modules: nn.Module) -> int:
    """Count the multiply-accumulates of all matrices and kernels in some modules, for one token."""
    return sum(p.numel() for module in modules for p in module.parameters() if p.dim() > 1)
