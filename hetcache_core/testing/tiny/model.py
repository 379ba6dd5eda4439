"""A small diffusion transformer in plain torch, which knows nothing of caching.

It has every part that a video transformer with a control branch has (Wan2.1-VACE is the model for
it): patch embedding, rotary self-attention, cross-attention to a text, a feed-forward network,
modulation by the timestep, and control blocks that run before the trunk on the control embedding
plus the trunk's input, whose hints are added after mapped blocks of the trunk. The letters of the
shapes are those of ``hetcache_core.steps``; ``C`` is the channels of the latents.
"""

from __future__ import annotations

import math
from typing import Final, final

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.nn import functional as F

PATCH: Final = (1, 2, 2)
"""Latent frames, rows and columns that one token covers."""

ROTARY_BASE: Final = 100.0
"""Ratio of the slowest to the fastest rotary frequency; small, as the grids are."""


@frozen(kw_only=True)
class TinyConfig:
    """Sizes of a ``TinyDiT``.

    Attributes:
        channels: channels ``C`` of the latents.
        width: trunk width ``D``.
        heads: attention heads.
        layers: blocks ``L``.
        feed_forward: width inside the feed-forward network.
        text_tokens: tokens of the text.
        text_width: width of the text's embedding.
        control_layers: block after which each control hint is added; empty for no control branch.
    """

    channels: int = 4
    width: int = 32
    heads: int = 2
    layers: int = 4
    feed_forward: int = 64
    text_tokens: int = 6
    text_width: int = 16
    control_layers: tuple[int, ...] = (0, 2)


def sinusoid(timestep: Tensor, width: int) -> Tensor:
    """Spread timesteps (B,) over sines and cosines: (B, D) fp32."""
    half = width // 2
    rates = torch.exp(-math.log(10000.0) * torch.arange(half, device=timestep.device) / half)
    angles = timestep.float()[:, None] * rates  # (B, D / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=1)  # (B, D)


def rotary_table(frames: int, height: int, width: int, pairs: int) -> Tensor:
    """Make the rotations of all tokens of a grid: (N, pairs) complex64."""
    shares = (pairs - 2 * (pairs // 3), pairs // 3, pairs // 3)
    axes = torch.meshgrid(
        torch.arange(frames), torch.arange(height), torch.arange(width), indexing="ij"
    )
    angles = [
        axis.flatten()[:, None] * ROTARY_BASE ** (-torch.arange(share) / max(share, 1))
        for axis, share in zip(axes, shares, strict=True)
    ]
    phase = torch.cat(angles, dim=1)  # (N, pairs)
    return torch.polar(torch.ones_like(phase), phase)


def rotate(x: Tensor, rotary: Tensor, heads: int) -> Tensor:
    """Turn x (B, n, D) by the rotations (n, pairs) of its tokens."""
    pairs = torch.view_as_complex(x.float().unflatten(2, (heads, -1, 2)))  # (B, n, heads, pairs)
    turned = torch.view_as_real(pairs * rotary[:, None])
    return turned.flatten(2).to(x.dtype)  # (B, n, D)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attend with q (B, n, D) over k and v (B, m, D): (B, n, D)."""
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, n, D)


@final
class TinySelfAttention(nn.Module):
    """Self-attention with normalized queries and keys and a rotary table."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.to_q = nn.Linear(config.width, config.width)
        self.to_k = nn.Linear(config.width, config.width)
        self.to_v = nn.Linear(config.width, config.width)
        self.to_out = nn.Linear(config.width, config.width)
        self.norm_q = nn.RMSNorm(config.width, eps=1e-6)
        self.norm_k = nn.RMSNorm(config.width, eps=1e-6)

    def query(self, x: Tensor, rotary: Tensor) -> Tensor:
        """Project x (B, n, D) to turned queries (B, n, D)."""
        return rotate(self.norm_q(self.to_q(x)), rotary, self.heads)

    def key(self, x: Tensor, rotary: Tensor) -> Tensor:
        """Project x (B, n, D) to turned keys (B, n, D)."""
        return rotate(self.norm_k(self.to_k(x)), rotary, self.heads)

    def forward(self, x: Tensor, rotary: Tensor) -> Tensor:
        """Attend within x (B, n, D)."""
        q, k, v = self.query(x, rotary), self.key(x, rotary), self.to_v(x)
        out: Tensor = self.to_out(attention(q, k, v, self.heads))
        return out


@final
class TinyCrossAttention(nn.Module):
    """Attention to the text."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.to_q = nn.Linear(config.width, config.width)
        self.to_k = nn.Linear(config.width, config.width)
        self.to_v = nn.Linear(config.width, config.width)
        self.to_out = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """Attend with x (B, n, D) over the text (B, l, D)."""
        attended = attention(self.to_q(x), self.to_k(text), self.to_v(text), self.heads)
        out: Tensor = self.to_out(attended)
        return out


@final
class TinyBlock(nn.Module):
    """One transformer block; the blocks of the trunk and of the control branch are alike."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, elementwise_affine=False)
        self.self_attention = TinySelfAttention(config)
        self.norm2 = nn.LayerNorm(config.width)
        self.cross_attention = TinyCrossAttention(config)
        self.norm3 = nn.LayerNorm(config.width, elementwise_affine=False)
        self.feed_forward = nn.Sequential(
            nn.Linear(config.width, config.feed_forward),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.feed_forward, config.width),
        )
        self.modulation = nn.Parameter(torch.randn(6, config.width) / config.width**0.5)

    def modulate(self, modulation: Tensor) -> tuple[Tensor, ...]:
        """Split the timestep's modulation (B, 6, D) into shift, scale, gate, twice: (B, 1, D)."""
        parts: tuple[Tensor, ...] = (self.modulation + modulation).chunk(6, dim=1)
        return parts

    def forward(self, x: Tensor, text: Tensor, modulation: Tensor, rotary: Tensor) -> Tensor:
        """Run the block on x (B, n, D); text (B, l, D), modulation (B, 6, D), rotary (n, d / 2)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulate(modulation)
        x = x + gate1 * self.self_attention(self.norm1(x) * (1 + scale1) + shift1, rotary)
        x = x + self.cross_attention(self.norm2(x), text)
        x = x + gate2 * self.feed_forward(self.norm3(x) * (1 + scale2) + shift2)
        return x  # (B, n, D)


@final
class TinyControl(nn.Module):
    """The control branch: a chain of blocks, each of which gives one hint."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        count = len(config.control_layers)
        # The control video's channels and its mask.
        self.patch = nn.Conv3d(config.channels + 1, config.width, PATCH, PATCH)
        self.before = nn.Linear(config.width, config.width)
        self.blocks = nn.ModuleList(TinyBlock(config) for _ in range(count))
        self.after = nn.ModuleList(nn.Linear(config.width, config.width) for _ in range(count))

    def embed(self, control: Tensor) -> Tensor:
        """Embed the control video (B, C + 1, T, H, W): (B, N, D)."""
        tokens: Tensor = self.patch(control).flatten(2).transpose(1, 2)
        return tokens  # (B, N, D)

    def forward(
        self, x: Tensor, control: Tensor, text: Tensor, modulation: Tensor, rotary: Tensor
    ) -> list[Tensor]:
        """Return the hints, each (B, N, D); x is the trunk's input."""
        state = self.before(self.embed(control)) + x
        hints = []
        for block, after in zip(self.blocks, self.after, strict=True):
            state = block(state, text, modulation, rotary)
            hints.append(after(state))
        return hints


@final
class TinyDiT(nn.Module):
    """The whole transformer, with seeded random weights."""

    def __init__(self, config: TinyConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        width = config.width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.patch = nn.Conv3d(config.channels, width, PATCH, PATCH)
            self.time_embedding = nn.Sequential(
                nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)
            )
            self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
            self.text_embedding = nn.Linear(config.text_width, width)
            self.blocks = nn.ModuleList(TinyBlock(config) for _ in range(config.layers))
            self.control = TinyControl(config) if config.control_layers else None
            self.head_norm = nn.LayerNorm(width, elementwise_affine=False)
            self.head_modulation = nn.Linear(width, 2 * width)
            self.head = nn.Linear(width, config.channels * math.prod(PATCH))

    def forward(
        self, latents: Tensor, timestep: Tensor, text: Tensor, control: Tensor | None = None
    ) -> Tensor:
        """Predict the velocity.

        Args:
            latents: (B, C, T, H, W) noisy latents.
            timestep: (B,) in (0, 1000].
            text: (B, l, text_width).
            control: (B, C + 1, T, H, W) control video and mask, or None.

        Returns:
            (B, C, T, H, W).
        """
        x: Tensor = self.patch(latents)  # (B, D, T, h, w)
        frames, height, width = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)  # (B, N, D)
        time = self.time_embedding(sinusoid(timestep, self.config.width).to(x.dtype))  # (B, D)
        modulation = self.time_projection(time).unflatten(1, (6, -1))  # (B, 6, D)
        text = self.text_embedding(text)  # (B, l, D)
        pairs = self.config.width // self.config.heads // 2
        rotary = rotary_table(frames, height, width, pairs).to(x.device)  # (N, pairs)
        hints = []
        if self.control is not None and control is not None:
            hints = self.control(x, control, text, modulation, rotary)
        hint_after = dict(zip(self.config.control_layers, hints, strict=False))
        for index, block in enumerate(self.blocks):
            x = block(x, text, modulation, rotary)
            if index in hint_after:
                x = x + hint_after[index]
        shift, scale = self.head_modulation(time)[:, None].chunk(2, dim=2)  # (B, 1, D)
        x = self.head(self.head_norm(x) * (1 + scale) + shift)  # (B, N, C * patch)
        x = x.unflatten(1, (frames, height, width)).unflatten(4, (-1, *PATCH[1:]))
        return x.permute(0, 4, 1, 2, 5, 3, 6).flatten(5).flatten(3, 4)  # (B, C, T, H, W)
