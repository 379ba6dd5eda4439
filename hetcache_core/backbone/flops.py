"""What the pieces of a DiT cost, in FLOPs, from the sizes of its matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from attrs import field, frozen
from torch import Tensor, nn

from hetcache_core.backbone.adapter import FlopModel
from hetcache_core.steps import Stack, SubLayer


@final
@frozen(kw_only=True)
class DitFlops(FlopModel):
    """Costs of blocks that are alike, in both stacks, from multiply-accumulates.

    Norms, rotary embedding and activations are left out, as ``torch.utils.flop_counter`` does.
    ``matrix_macs`` counts the matrices of modules.

    Attributes:
        batch: rows ``B`` of the call.
        width: trunk width ``D``.
        around: everything around the trunk: embeddings and head, of all batch rows.
        row: matrices of each sub-layer, for one token; none where a block has no such sub-layer.
        call: what each sub-layer does once for a batch row, such as projecting the timestep.
        text: tokens of one batch row that cross-attention reads.
        hint: projection behind a control block, for one token.
        control_row: what is done before the first control block for one token, of all batch rows.
        control_call: what is done before it whatever the rows, of all batch rows: the embedding.
    """

    batch: int
    width: int
    around: int
    row: Mapping[SubLayer, int]
    call: Mapping[SubLayer, int] = field(factory=dict)
    text: int = 0
    hint: int = 0
    control_row: int = 0
    control_call: int = 0

    @classmethod
    def of(cls, x: Tensor, *, around: int, **parts: tuple[nn.Module, nn.Module]) -> DitFlops:
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
            around=x.shape[0] * around,
            row={SubLayer(name): matrix_macs(on_tokens) for name, (on_tokens, _) in parts.items()},
            call={SubLayer(name): matrix_macs(once) for name, (_, once) in parts.items()},
        )

    @classmethod
    def of_blocks(
        cls,
        x: Tensor,
        *,
        around: int,
        ffn: int,
        text: int,
        control_batch: int = 0,
        control_call: int = 0,
    ) -> DitFlops:
        """Count blocks of self-attention, cross-attention and a feed-forward of two matrices.

        Control blocks end in a projection of width ``D``, and another one is before the first.

        Args:
            x: (B, N, D) trunk input.
            around: everything around the trunk, of all batch rows.
            ffn: hidden width of the feed-forward.
            text: tokens that cross-attention reads, of one batch row.
            control_batch: batch rows of the control input.
            control_call: its embedding, of all batch rows.
        """
        batch, _, width = x.shape
        square = width**2
        return cls(
            batch=batch,
            width=width,
            around=around,
            row={
                SubLayer.SELF_ATTENTION: 4 * square,
                SubLayer.CROSS_ATTENTION: 2 * square,
                SubLayer.FEED_FORWARD: 2 * width * ffn,
            },
            call={SubLayer.CROSS_ATTENTION: 2 * text * square},
            text=text,
            hint=square,
            control_row=control_batch * square,
            control_call=control_call,
        )

    def outside(self) -> int:
        """Everything around the trunk."""
        return 2 * self.around

    def sub_layer(self, stack: Stack, part: SubLayer, *, rows: int, keys: int) -> int:
        """One sub-layer on some rows."""
        macs = rows * self.row.get(part, 0) + self.call.get(part, 0)
        if part is SubLayer.SELF_ATTENTION:
            macs += 2 * rows * keys * self.width
        elif part is SubLayer.CROSS_ATTENTION:
            macs += 2 * rows * self.text * self.width
        return 2 * self.batch * macs

    def control_extra(self, index: int, *, rows: int) -> int:
        """The projection behind a control block; before the first one, that of its input, embedded."""
        macs = self.batch * rows * self.hint
        if index == 0:
            macs += rows * self.control_row + self.control_call
        return 2 * macs


def matrix_macs(*modules: nn.Module) -> int:
    """Count the multiply-accumulates of all matrices and kernels in some modules, for one token."""
    return sum(_own_macs(part) for module in modules for part in module.modules())


def _own_macs(module: nn.Module) -> int:
    if isinstance(module, nn.Linear):  # whose weight may be packed
        return module.in_features * module.out_features
    return sum(p.numel() for p in module.parameters(recurse=False) if p.dim() > 1)
