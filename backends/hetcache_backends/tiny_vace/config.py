"""The dimensions of the tiny model, in one place.

The names are those of DiffSynth's `WanModel` and `VaceWanModel`; see `MODEL_CARD.md` for how the
numbers were chosen.
"""

from __future__ import annotations

from typing import Any, Final

from attrs import field, frozen

SPATIAL_FACTOR: Final = 8
TEMPORAL_FACTOR: Final = 4
MASK_CHANNELS: Final = SPATIAL_FACTOR * SPATIAL_FACTOR
"""`WanVideoUnit_VACE` unshuffles the mask by 8 x 8 pixels. Source: DiffSynth 2.1.12."""


@frozen(kw_only=True)
class TinyVaceConfig:
    """Architecture of the diffusion transformer and its control branch.

    Attributes:
        z_dim: Latent channels of the codec.
        dim: Width of the token stream.
        num_heads: Attention heads; `dim // num_heads // 3` must be even for DiffSynth's rotary
            embedding to split a head into time, height and width.
        num_layers: Blocks of the main branch.
        control_layers: Main blocks that receive a hint; one control block for each.
        ffn_dim: Hidden width of the feed-forward layers.
        text_dim: Width of a word vector.
        text_length: Words kept of a prompt; shorter prompts are filled with zeros.
        freq_dim: Width of the sinusoidal embedding of the timestep.
        patch_size: Latents joined in one token: time, height, width.
        eps: Of the normalisations.
    """

    z_dim: int = 24
    dim: int = 128
    num_heads: int = field(default=4)
    num_layers: int = 8
    control_layers: tuple[int, ...] = (0, 3, 6)
    ffn_dim: int = 512
    text_dim: int = 64
    text_length: int = 16
    freq_dim: int = 256
    patch_size: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6

    @num_heads.validator
    def _head_splits_into_three_axes(self, _: object, value: int) -> None:
        if self.dim % value or (self.dim // value // 3) % 2:
            msg = f"a head of {self.dim}/{value} does not split into even parts for three axes"
            raise ValueError(msg)

    def dit_arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of `WanModel`."""
        return {
            "dim": self.dim,
            "in_dim": self.z_dim,
            "ffn_dim": self.ffn_dim,
            "out_dim": self.z_dim,
            "text_dim": self.text_dim,
            "freq_dim": self.freq_dim,
            "eps": self.eps,
            "patch_size": self.patch_size,
            "num_heads": self.num_heads,
            "num_layers": self.num_layers,
            "has_image_input": False,
        }

    def vace_arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of `VaceWanModel`."""
        return {
            "vace_layers": self.control_layers,
            "vace_in_dim": 2 * self.z_dim + MASK_CHANNELS,
            "patch_size": self.patch_size,
            "has_image_input": False,
            "dim": self.dim,
            "num_heads": self.num_heads,
            "ffn_dim": self.ffn_dim,
            "eps": self.eps,
        }


TINY_VACE: Final = TinyVaceConfig()
