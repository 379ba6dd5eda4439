"""A Wan model whose parts are graphs, as DiffSynth's pipeline and ``model_fn`` see it.

The modules have no parameters. ``model_fn_wan_video`` stays the library's own: it finds here what
it looks for in a ``WanModel`` and a ``VaceWanModel``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from diffsynth.models.wan_video_dit import WanModel, precompute_freqs_cis_3d
from torch import Tensor, nn

from hetcache_backends.onnx.block import OnnxBlock, graphs_of
from hetcache_backends.onnx.folder import WanSizes
from hetcache_backends.onnx.session import Graph
from hetcache_backends.trunk import padded_rows

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines of the rows, (n, 1, d / 2) float64 each."""


def rotary(table: Tensor) -> Rotary:
    """Split a complex rotary table (n, 1, d / 2)."""
    return table.real.double().contiguous(), table.imag.double().contiguous()


class OnnxWanBlock(OnnxBlock):
    """A block as the library calls it."""

    def forward(self, x: Tensor, context: Tensor, t_mod: Tensor, freqs: Tensor) -> Tensor:
        """Run the block as the library calls it."""
        return self.run(x, (context,), t_mod, rotary(freqs), None)


@final
class OnnxControlBlock(OnnxWanBlock):
    """A control block, whose state becomes a hint."""

    def __init__(self, graphs: Callable[[str], Graph], heads: int) -> None:
        """Take the block's graphs, that of the hint among them."""
        super().__init__(graphs, heads)
        self.hint = graphs("hint")


@final
class OnnxControl(nn.Module):
    """The control branch in the place of a ``VaceWanModel``."""

    vace_blocks: Any

    def __init__(self, graphs: Mapping[str, Graph], sizes: WanSizes) -> None:
        """Take the branch's graphs out of all.

        Args:
            graphs: by their names.
            sizes: of the model.
        """
        super().__init__()
        self.vace_layers = sizes.control_layers
        self.vace_layers_mapping = {layer: i for i, layer in enumerate(sizes.control_layers)}
        self.vace_blocks = nn.ModuleList(
            OnnxControlBlock(graphs_of(graphs, f"control{i:02d}"), sizes.heads)
            for i in range(len(sizes.control_layers))
        )
        self.patch = graphs["control_patch"]
        self.before = graphs["control_before"]

    def embed(
        self, latents: Sequence[Tensor], x: Tensor, *, tokens: int, rows: Tensor | None
    ) -> Tensor:
        """Embed control latents and add the trunk's input, which the first block begins with.

        Args:
            latents: (C, T, H, W) each.
            x: (B, n, D) trunk input at the rows.
            tokens: tokens ``N`` of the trunk; zeros are embedded where the latents have fewer.
            rows: (n,) the rows, or None for all.

        Returns:
            (B, n, D).
        """
        embedded = torch.cat(
            [self.patch(each[None]).flatten(2).transpose(1, 2) for each in latents]
        )
        projected: Tensor = self.before(padded_rows(embedded, tokens, rows))  # (Bc, n, D)
        return projected + x

    def forward(
        self,
        x: Tensor,
        vace_context: Sequence[Tensor],
        context: Tensor,
        t_mod: Tensor,
        freqs: Tensor,
        **_checkpointing: bool,
    ) -> tuple[Tensor, ...]:
        """Return all hints, as the library calls the branch."""
        angles, state, hints = (
            rotary(freqs),
            self.embed(vace_context, x, tokens=x.shape[1], rows=None),
            [],
        )
        for block in self.vace_blocks:
            state = block.run(state, (context,), t_mod, angles, None)
            hints.append(block.hint(state))
        return tuple(hints)


@final
class OnnxWanModel(nn.Module):
    """The DiT in the place of a ``WanModel``."""

    blocks: Any

    seperated_timestep = False
    require_vae_embedding = False
    require_clip_embedding = False
    fuse_vae_embedding_in_latents = False
    has_image_input = False
    has_image_pos_emb = False
    control_adapter = None

    def __init__(self, graphs: Mapping[str, Graph], sizes: WanSizes) -> None:
        """Take the model's graphs out of all.

        Args:
            graphs: by their names.
            sizes: of the model.
        """
        super().__init__()
        self.sizes = sizes
        self.dim = sizes.width
        self.in_dim = sizes.in_channels
        self.freq_dim = sizes.freq_dim
        self.patch_size = sizes.patch_size
        self.freqs = precompute_freqs_cis_3d(sizes.width // sizes.heads)
        self.patch_embedding = graphs["patch"]
        self.text_embedding = graphs["text"]
        self.time_embedding = graphs["time"]
        self.time_projection = graphs["time_projection"]
        self.head = graphs["head"]
        self.blocks = nn.ModuleList(
            OnnxWanBlock(graphs_of(graphs, f"main{i:02d}"), sizes.heads)
            for i in range(sizes.layers)
        )

    def patchify(self, x: Tensor, control_camera_latents_input: Any = None) -> Tensor:
        """Turn latents (B, C, T, H, W) into tokens (B, D, t, h, w)."""
        tokens: Tensor = self.patch_embedding(x)
        return tokens

    def unpatchify(self, x: Tensor, grid_size: tuple[int, int, int]) -> Tensor:
        """Put flat patches (B, N, P) together as the library does."""
        latents: Tensor = WanModel.unpatchify(self, x, grid_size)
        return latents
