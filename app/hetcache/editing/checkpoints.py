"""Published models: what their weights take, and what an edit with one costs, without loading it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen

from hetcache_core import Grid, ModelInfo, RunInfo, footprint

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from hetcache_core import CachePolicy

__all__ = ["CHECKPOINTS", "ROOM", "STEPS", "Checkpoint", "measured_rate"]

STEPS: Final = 50
BRANCHES: Final = ("cond", "uncond")

ROOM: Final = 0.8
"""Share of the memory for weights and cache; the rest is for activations and the VAE. Our choice."""

SIDE: Final = 2048
"""Side of the matrices that the machine is timed with: large enough to keep a GPU busy."""

BUDGET: Final = 0.3
"""Seconds to spend on timing."""


@frozen
class Checkpoint:
    """A published model.

    Attributes:
        model: What ``--model`` takes.
        weights: Bytes of its transformer in bfloat16.
        encoder: Bytes of its text encoder in bfloat16, which can leave before the transformer runs.
        info: Its sizes.
        ffn: Hidden width of its feed-forward. Source: the checkpoint's configuration.
        text: Tokens of text that cross-attention reads.
        latents: Numbers of its latents in a token.
    """

    model: str
    weights: float
    encoder: float
    info: ModelInfo
    ffn: int
    text: int = 512
    latents: int = 64

    def run(self, grid: Grid, mask: NDArray[Any] | None = None) -> RunInfo:
        """Describe a run of ``STEPS`` steps with guidance.

        Args:
            grid: Its tokens.
            mask: (F, H, W) bool, or None for one without.
        """
        import torch

        sigmas = tuple(1 - index / STEPS for index in range(STEPS))
        return RunInfo(
            model=self.info,
            timesteps=tuple(1000 * sigma for sigma in sigmas),
            sigmas=sigmas,
            grid=grid,
            mask=None if mask is None else torch.from_numpy(mask),
            branches=BRANCHES,
            device="cpu",
        )

    def cache_bytes(self, policy: CachePolicy, run: RunInfo) -> int:
        """Return what a policy keeps in bfloat16, of both guidance branches."""
        import torch

        kept = footprint(policy, run, latents=self.latents * run.grid.tokens)
        return kept.bytes(torch.bfloat16) * len(BRANCHES)

    def flops(self, run: RunInfo) -> int:
        """Return the FLOPs of all blocks in all steps and branches of a run, nothing being left out."""
        import torch

        from hetcache_core.backbone.flops import DitFlops
        from hetcache_core.steps import Stack

        tokens = run.grid.tokens
        costs = DitFlops.of_blocks(
            torch.empty(1, tokens, self.info.width, device="meta"),
            around=0,
            ffn=self.ffn,
            text=self.text,
            control_batch=1,
        )
        of = {Stack.MAIN: self.info.layers, Stack.CONTROL: len(self.info.control_layers)}
        call = sum(
            costs.block(stack, index, rows=tokens, keys=tokens)
            for stack, count in of.items()
            for index in range(count)
        )
        hints = range(of[Stack.CONTROL])
        call += sum(costs.control_extra(index, rows=tokens) for index in hints)
        return call * len(run.branches) * run.steps


CHECKPOINTS: Final = (
    Checkpoint(
        "Wan-AI/Wan2.1-VACE-14B", 34.7e9, 11.4e9,
        ModelInfo(
            backbone="wan-vace", variant="wan2.1-14b", layers=40, width=5120, heads=40,
            control_layers=tuple(range(0, 40, 5)),
        ),
        ffn=13824,
    ),
    Checkpoint(
        "Wan-AI/Wan2.1-VACE-1.3B", 4.3e9, 11.4e9,
        ModelInfo(
            backbone="wan-vace", variant="wan2.1-1.3b", layers=30, width=1536, heads=12,
            control_layers=tuple(range(0, 30, 2)),
        ),
        ffn=8960,
    ),
)  # fmt: skip
"""The largest first: it edits best. Bytes are those of docs/backbones.md."""


def measured_rate(device: str) -> float:
    """Time matrix products for a moment.

    Args:
        device: A torch device; bfloat16 is timed on a GPU, float32 elsewhere.

    Returns:
        FLOPs in a second that blocks can at most expect.
    """
    import torch

    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    matrix = torch.ones(SIDE, SIDE, dtype=dtype, device=device)
    _product(matrix)  # loads the library
    products, begun = 0, time.perf_counter()
    while (seconds := time.perf_counter() - begun) < BUDGET:
        _product(matrix)
        products += 1
    return 2 * SIDE**3 * products / seconds


def _product(matrix: Tensor) -> None:
    (matrix @ matrix)[0, 0].item()  # waits for the device
