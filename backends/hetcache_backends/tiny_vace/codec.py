"""The codec in the VAE's place: a lapped orthogonal transform of which 24 of 768 parts are kept.

Wan's own VAE has 127 M parameters and takes longer than this whole model. A fixed transform needs
none: blocks of 8 x 8 pixels and 4 frames, three colour planes, 768 coefficients a block. The blocks
overlap (a lapped transform), so coarse quantities join smoothly where plain blocks would show.
Like Wan's it is causal: frame 0 is a latent frame of its own, then every four frames are one.

The transform is orthonormal and decoding is its transpose, with the dropped coefficients filled in
by `tiny_vace.detail`. Latents whose first frame has no temporal part survive decoding and encoding
unchanged, as long as no pixel is clipped.

Legend: `B` batch, `F` frames, `H` height, `W` width in pixels, `C` latent channels, `T` latent
frames, `h` = H/8, `w` = W/8, `P` pairs of colour plane and temporal frequency, `K` spatial
frequencies an axis.

Source: the lapped transform by pre-filtering across block edges and DCT is Tran, Liang and Tu 2003,
"Lapped transform via time-domain pre- and post-filtering", IEEE Trans. Signal Processing 51(6),
eqs. 13 and 19 (the orthogonal solution); it equals Malvar's LOT.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
from attrs import frozen
from torch import Tensor, nn

from hetcache_backends.tiny_vace.config import SPATIAL_FACTOR, TEMPORAL_FACTOR
from hetcache_backends.tiny_vace.detail import DetailDecoder

LUMA, RED_BLUE, GREEN = 0, 1, 2

CHANNELS: Final[tuple[tuple[int, int, int, int, float], ...]] = (
    (LUMA, 0, 0, 0, 10.652),
    (LUMA, 0, 0, 1, 2.028),
    (LUMA, 0, 1, 0, 2.028),
    (LUMA, 0, 1, 1, 0.723),
    (LUMA, 0, 0, 2, 0.389),
    (LUMA, 0, 2, 0, 0.389),
    (LUMA, 0, 0, 3, 0.320),
    (LUMA, 0, 3, 0, 0.320),
    (LUMA, 1, 0, 0, 2.158),
    (LUMA, 1, 0, 1, 0.906),
    (LUMA, 1, 1, 0, 0.906),
    (LUMA, 1, 1, 1, 0.431),
    (LUMA, 2, 0, 0, 0.617),
    (LUMA, 2, 0, 1, 0.381),
    (LUMA, 2, 1, 0, 0.381),
    (LUMA, 2, 1, 1, 0.268),
    (RED_BLUE, 0, 0, 0, 6.147),
    (RED_BLUE, 0, 0, 1, 0.550),
    (RED_BLUE, 0, 1, 0, 0.550),
    (RED_BLUE, 1, 0, 0, 0.521),
    (GREEN, 0, 0, 0, 6.147),
    (GREEN, 0, 0, 1, 0.550),
    (GREEN, 0, 1, 0, 0.550),
    (GREEN, 1, 0, 0, 0.521),
)
"""The kept coefficients: plane, temporal, vertical and horizontal frequency, standard deviation.

The 24 of largest variance over 300 random training clips of 9 x 128 x 128 (seeds 2**21 and up),
variances averaged over the two directions and the two chroma planes. `python
training/measure_codec.py` prints the table.
"""

WHITENING: Final = 0.7
"""Latents are coefficients over deviation**WHITENING: their deviations span 0.7 to 2.0.

Full whitening (1.0) would let a relative error in the mean colour weigh as little as one in the
finest detail, which is 40 times weaker in the picture.
"""

COLOUR_BASIS: Final = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0))
"""Rows: luma, red against blue, green against both; normalised on use."""


@frozen
class CodecShape:
    """What DiffSynth reads from `pipe.vae.model`.

    Attributes:
        z_dim: Latent channels.
    """

    z_dim: int


def cosines(n: int, *, offset: float = 0.0) -> Tensor:
    """Build waves sampled at `n` points, `(n, n)` float64, one row a wave of frequency k + offset."""
    k = torch.arange(n, dtype=torch.float64)[:, None] + offset
    i = torch.arange(n, dtype=torch.float64)[None, :]
    return math.sqrt(2 / n) * torch.cos(math.pi * (i + 0.5) * k / n)


def dct_matrix(n: int) -> Tensor:
    """Build the orthonormal cosine transform of type 2, `(n, n)` float64."""
    matrix = cosines(n)
    matrix[0] /= math.sqrt(2)
    return matrix


def edge_filter(n: int = SPATIAL_FACTOR) -> Tensor:
    """Build the orthonormal filter across the edge of two blocks, `(n, n)` float64.

    It leaves constants alone and moves what differs between the two sides; see the module's source.
    """
    half = n // 2
    eye = torch.eye(half, dtype=torch.float64)
    flip, zero = eye.flip(0), torch.zeros_like(eye)
    turn = flip @ dct_matrix(half).T @ cosines(half, offset=0.5) @ flip
    butterfly = torch.cat([torch.cat([eye, flip], 1), torch.cat([flip, -eye], 1)], 0)
    middle = torch.cat([torch.cat([eye, zero], 1), torch.cat([zero, turn], 1)], 0)
    return 0.5 * butterfly @ middle @ butterfly


class TinyCodec(nn.Module):
    """A causal video codec, 8x in space and 4x in time, with the interface of `WanVideoVAE`."""

    upsampling_factor: int = SPATIAL_FACTOR
    mix: Tensor
    space: Tensor
    edge: Tensor
    scale: Tensor
    pairs: Tensor
    local: Tensor
    place: Tensor
    dropped: Tensor
    still: Tensor

    def __init__(self) -> None:
        """Build the matrices; the only weights are those of `detail`, which start at nothing."""
        super().__init__()
        self.model = CodecShape(z_dim=len(CHANNELS))
        colour = torch.tensor(COLOUR_BASIS, dtype=torch.float64)
        colour /= colour.norm(dim=1, keepdim=True)
        mix = torch.einsum("pc,st->psct", colour, dct_matrix(TEMPORAL_FACTOR)).flatten(0, 1)
        kept = torch.tensor([channel[:4] for channel in CHANNELS])
        pair, row, column = kept[:, 0] * TEMPORAL_FACTOR + kept[:, 1], kept[:, 2], kept[:, 3]
        # Encoding computes only what some kept coefficient needs: certain pairs of plane and
        # temporal frequency, and the lowest spatial frequencies.
        pairs, local = pair.unique(return_inverse=True)
        self._waves = 1 + int(kept[:, 2:].max())
        place = (pair * SPATIAL_FACTOR + row) * SPATIAL_FACTOR + column
        dropped = torch.ones(len(mix) * SPATIAL_FACTOR**2, dtype=torch.bool)
        dropped[place] = False
        scale = torch.tensor([channel[4] for channel in CHANNELS], dtype=torch.float64)
        self._buffer("mix", mix.float())
        self._buffer("space", dct_matrix(SPATIAL_FACTOR).float())
        self._buffer("edge", edge_filter().float())
        self._buffer("scale", (scale**WHITENING).float())
        self._buffer("pairs", pairs)
        self._buffer("local", (local * self._waves + row) * self._waves + column)
        self._buffer("place", place)
        self._buffer("dropped", dropped.nonzero()[:, 0])
        frequency = self.dropped // SPATIAL_FACTOR**2 % TEMPORAL_FACTOR
        self._buffer("still", frequency.eq(0).float().view(-1, 1, 1, 1))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.detail = DetailDecoder(len(CHANNELS), len(mix) * SPATIAL_FACTOR**2 - len(kept))
        self.requires_grad_(requires_grad=False)

    def _buffer(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)

    def encode(
        self,
        videos: Tensor | Sequence[Tensor],
        device: torch.device | str | None = None,
        tiled: bool = False,
        tile_size: Any = None,
        tile_stride: Any = None,
    ) -> Tensor:
        """Encode videos of one size.

        Args:
            videos: `(B, 3, F, H, W)`, or a sequence of `(3, F, H, W)`, in [-1, 1], with F = 4k+1
                and H and W multiples of 8.
            device: Where to compute; by default where the videos are.
            tiled: Accepted for the pipeline's sake; the transform is local and needs no tiles.
            tile_size: As `tiled`.
            tile_stride: As `tiled`.

        Returns:
            Latents `(B, C, T, h, w)` in the dtype of the videos, T = k+1.

        Raises:
            ValueError: If the length or the size does not fit.
        """
        x = videos if isinstance(videos, Tensor) else torch.stack(list(videos))
        frames, height, width = x.shape[2:]
        if frames % TEMPORAL_FACTOR != 1 or height % SPATIAL_FACTOR or width % SPATIAL_FACTOR:
            msg = (
                f"a video of {frames} frames of {height} x {width} does not fit: 4k+1 frames "
                f"and sides in multiples of {SPATIAL_FACTOR}"
            )
            raise ValueError(msg)
        dtype = x.dtype
        x = x.to(device=device or x.device, dtype=torch.float32)
        self.to(x.device)
        # A frame that stands for a whole group: the first latent frame has no temporal part, but
        # otherwise means what all others mean.
        x = torch.cat([x[:, :, :1].expand(-1, -1, TEMPORAL_FACTOR - 1, -1, -1), x], 2)
        x = self.transform(x, pairs=self.pairs, waves=self._waves)  # (B, P, K, K, T, h, w)
        x = x.flatten(1, 3).index_select(1, self.local)
        return (x / self.scale.view(1, -1, 1, 1, 1)).to(dtype)  # (B, C, T, h, w)

    def transform(
        self, x: Tensor, *, pairs: Tensor | None = None, waves: int = SPATIAL_FACTOR
    ) -> Tensor:
        """Transform groups of four frames.

        Args:
            x: `(B, 3, 4T, H, W)` float32, the first frame four times over.
            pairs: Which pairs of plane and temporal frequency to compute; by default all 12.
            waves: How many of the 8 spatial frequencies to compute, lowest first.

        Returns:
            Coefficients `(B, P, K, K, T, h, w)`, unscaled.
        """
        mix = self.mix if pairs is None else self.mix[pairs]
        size = x.shape[3:]
        x = x.unflatten(2, (-1, TEMPORAL_FACTOR)).transpose(1, 2)  # (B, T, 3, 4, H, W)
        x = mix.flatten(1) @ x.flatten(4).flatten(2, 3)  # (B, T, P, HW)
        x = x.unflatten(3, size).transpose(1, 2)  # (B, P, T, H, W)
        x = self._analyse(self._analyse(x, -1, waves), -3, waves)  # (B, P, T, h, K, w, K)
        return x.permute(0, 1, 4, 6, 2, 3, 5)

    def decode(
        self,
        hidden_states: Tensor | Sequence[Tensor],
        device: torch.device | str | None = None,
        tiled: bool = False,
        tile_size: Any = None,
        tile_stride: Any = None,
    ) -> Tensor:
        """Decode latents.

        Args:
            hidden_states: `(B, C, T, h, w)`, or a sequence of `(C, T, h, w)`.
            device: Where to compute; by default where the latents are.
            tiled: Accepted for the pipeline's sake; the transform is local and needs no tiles.
            tile_size: As `tiled`.
            tile_stride: As `tiled`.

        Returns:
            Videos `(B, 3, F, H, W)` in [-1, 1], in the dtype of the latents, F = 4(T-1)+1.
        """
        z = hidden_states if isinstance(hidden_states, Tensor) else torch.stack(list(hidden_states))
        dtype = z.dtype
        z = z.to(device=device or z.device, dtype=torch.float32)
        self.to(z.device)
        kept = z * self.scale.view(1, -1, 1, 1, 1)
        detail = self.detail(z)
        # Frame 0 stands for a whole group in which nothing moves.
        detail = torch.cat([detail[:, :, :1] * self.still, detail[:, :, 1:]], 2)
        x = kept.new_zeros(z.shape[0], self.mix.shape[0] * SPATIAL_FACTOR**2, *z.shape[2:])
        x = x.index_copy(1, self.place, kept).index_copy(1, self.dropped, detail)
        x = x.unflatten(1, (-1, SPATIAL_FACTOR, SPATIAL_FACTOR))  # (B, P, K, K, T, h, w)
        x = x.permute(0, 1, 4, 5, 2, 6, 3)  # (B, P, T, h, K, w, K)
        x = self._synthesise(self._synthesise(x, -4), -2)  # (B, P, T, H, W)
        x = torch.einsum("bpthw,pcs->bctshw", x, self.mix).flatten(2, 3)
        return x[:, :, TEMPORAL_FACTOR - 1 :].clamp(-1.0, 1.0).to(dtype)  # (B, 3, F, H, W)

    def _analyse(self, x: Tensor, axis: int, waves: int) -> Tensor:
        """Transform one spatial axis: `(..., H, ...)` to `(..., h, K, ...)`."""
        x = self._across_edges(x.movedim(axis, -1), self.edge.T)
        x = x.unflatten(-1, (-1, SPATIAL_FACTOR)) @ self.space[:waves].T  # (..., h, K)
        return x.movedim((-2, -1), (axis - 1, axis))

    def _synthesise(self, x: Tensor, axis: int) -> Tensor:
        """Undo `_analyse`: `(..., h, K, ...)`, with `h` at `axis`, to `(..., H, ...)`."""
        x = x.movedim((axis, axis + 1), (-2, -1)) @ self.space  # (..., h, 8)
        x = self._across_edges(x.flatten(-2), self.edge)
        return x.movedim(-1, axis + 1)

    @staticmethod
    def _across_edges(x: Tensor, matrix: Tensor) -> Tensor:
        """Filter the pixels on both sides of every inner block edge along the last axis."""
        half = SPATIAL_FACTOR // 2
        if x.shape[-1] <= SPATIAL_FACTOR:
            return x
        inner = x[..., half:-half].unflatten(-1, (-1, SPATIAL_FACTOR)) @ matrix
        return torch.cat([x[..., :half], inner.flatten(-2), x[..., -half:]], -1)
