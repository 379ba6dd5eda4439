"""The codec in the VAE's place: shapes, causality, and what survives it."""

from __future__ import annotations

import pytest
import torch

from hetcache_backends.tiny_vace.codec import CHANNELS, TinyCodec, cosines, dct_matrix, edge_filter


@pytest.fixture(scope="module")
def codec() -> TinyCodec:
    """The codec as it is without trained detail."""
    return TinyCodec()


def smooth_video(frames: int = 5, height: int = 64, width: int = 48) -> torch.Tensor:
    """A slowly moving colour gradient, `(1, 3, F, H, W)` in [-0.8, 0.8]."""
    t = torch.arange(frames).view(-1, 1, 1) / 20
    y = torch.arange(height).view(1, -1, 1) / height
    x = torch.arange(width).view(1, 1, -1) / width
    planes = [torch.sin(3 * x + t + y), torch.cos(2 * y - t - x), torch.sin(x - 2 * y + t)]
    return 0.8 * torch.stack(planes)[None]


def random_latents(frames: int = 2, height: int = 4, width: int = 6) -> torch.Tensor:
    """Small latents whose first frame has no temporal part."""
    generator = torch.Generator().manual_seed(0)
    z = 0.05 * torch.randn(2, len(CHANNELS), frames, height, width, generator=generator)
    moving = torch.tensor([channel[1] > 0 for channel in CHANNELS])
    z[:, moving, 0] = 0
    return z


def test_the_matrices_are_orthonormal() -> None:
    for matrix in (dct_matrix(8), dct_matrix(4), cosines(4, offset=0.5), edge_filter()):
        unit = torch.eye(len(matrix), dtype=torch.float64)
        assert torch.allclose(matrix @ matrix.T, unit, atol=1e-12)


def test_the_filter_across_edges_leaves_constants_alone() -> None:
    ones = torch.ones(8, dtype=torch.float64)
    assert torch.allclose(edge_filter() @ ones, ones, atol=1e-12)


@pytest.mark.parametrize("frames", [1, 5, 17])
def test_latents_are_eight_times_smaller_in_space_and_four_times_in_time(
    codec: TinyCodec, frames: int
) -> None:
    z = codec.encode(smooth_video(frames))
    assert z.shape == (1, codec.model.z_dim, (frames - 1) // 4 + 1, 8, 6)
    assert codec.decode(z).shape == (1, 3, frames, 64, 48)


def test_smooth_video_survives(codec: TinyCodec) -> None:
    video = smooth_video(9)
    error = (codec.decode(codec.encode(video)) - video).square().mean()
    assert 10 * torch.log10(4 / error) > 40


def test_decoding_and_encoding_gives_the_latents_back(codec: TinyCodec) -> None:
    z = random_latents()
    assert torch.allclose(codec.encode(codec.decode(z)), z, atol=1e-5)


def test_detail_leaves_the_kept_coefficients_alone() -> None:
    codec, z = TinyCodec(), random_latents()
    plain = codec.decode(z)
    torch.nn.init.normal_(codec.detail.out.weight, std=0.2)
    sharp = codec.decode(z)
    assert (sharp - plain).abs().max() > 1e-3
    assert torch.allclose(codec.encode(sharp), z, atol=1e-5)


def test_the_past_does_not_depend_on_the_future(codec: TinyCodec) -> None:
    video = smooth_video(9)
    changed = video.clone()
    changed[:, :, 5:] = 0
    before, after = codec.encode(video), codec.encode(changed)
    assert torch.equal(before[:, :, :2], after[:, :, :2])
    assert not torch.equal(before[:, :, 2:], after[:, :, 2:])


def test_a_video_of_zeros_has_latents_of_zeros(codec: TinyCodec) -> None:
    assert codec.encode(torch.zeros(1, 3, 5, 16, 16)).abs().max() == 0


def test_lists_of_videos_and_a_single_block_are_accepted(codec: TinyCodec) -> None:
    video = smooth_video(1, 8, 8)
    z = codec.encode([video[0], video[0]], device="cpu", tiled=True, tile_size=(1, 1))
    assert z.shape == (2, codec.model.z_dim, 1, 1, 1)
    assert codec.decode(list(z), device="cpu", tiled=True).shape == (2, 3, 1, 8, 8)


def test_half_precision_stays_half_precision(codec: TinyCodec) -> None:
    z = codec.encode(smooth_video().bfloat16())
    assert z.dtype == torch.bfloat16
    assert codec.decode(z).dtype == torch.bfloat16


def test_building_a_codec_leaves_the_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    TinyCodec()
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("shape", [(1, 3, 4, 16, 16), (1, 3, 5, 20, 16)])
def test_a_size_that_does_not_fit_is_refused(codec: TinyCodec, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"4k\+1 frames"):
        codec.encode(torch.zeros(shape))
