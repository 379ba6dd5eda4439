"""A small network that guesses what the codec left out.

The codec keeps 24 of 768 coefficients of a block. Where edges run is mostly visible in the kept
coefficients of a block and its neighbours; this network predicts the other 744 from them, one
latent frame at a time. Kept coefficients stay as they are, so encoding a decoded video still gives
back the very latents.

Legend: `B` batch, `C` latent channels, `T` latent frames, `h`, `w` latent height and width.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

HIDDEN: Final = 96
OUTPUT_SCALE: Final = 0.1
"""Dropped coefficients have deviations of 0.3 at most; the last layer works at unit scale."""


class DetailDecoder(nn.Module):
    """Three convolutions over the latents of one frame; untrained, it adds nothing."""

    def __init__(self, latent_channels: int, outputs: int) -> None:
        """Build the layers.

        Args:
            latent_channels: `C`.
            outputs: Dropped coefficients of a block.
        """
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(latent_channels + 1, HIDDEN, 3, padding=1),
            nn.GELU(approximate="tanh"),
            nn.Conv2d(HIDDEN, HIDDEN, 3, padding=1),
            nn.GELU(approximate="tanh"),
        )
        self.out = nn.Conv2d(HIDDEN, outputs, 1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, latents: Tensor) -> Tensor:
        """Predict the dropped coefficients.

        Args:
            latents: `(B, C, T, h, w)`, float32.

        Returns:
            `(B, outputs, T, h, w)`, in the units of the transform.
        """
        batch, _, frames = latents.shape[:3]
        first = torch.zeros_like(latents[:, :1])
        first[:, :, 0] = 1.0
        x = torch.cat([latents, first], 1).transpose(1, 2).flatten(0, 1)  # (BT, C+1, h, w)
        x = OUTPUT_SCALE * self.out(self.layers(x))  # (BT, outputs, h, w)
        out: Tensor = x.unflatten(0, (batch, frames)).transpose(1, 2)
        return out
