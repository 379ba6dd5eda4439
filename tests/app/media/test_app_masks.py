"""Masks as people have them."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

from hetcache_core.errors import ConfigError

pytest.importorskip("av")

import numpy as np
from PIL import Image

from hetcache.media.masks import read_mask, resize_nearest
from hetcache.media.video import write_video

FRAMES, HEIGHT, WIDTH = 4, 48, 64
SIZES = {"frames": FRAMES, "height": HEIGHT, "width": WIDTH}


def moving_square() -> np.ndarray:
    mask = np.zeros((FRAMES, HEIGHT, WIDTH), bool)
    for frame in range(FRAMES):
        mask[frame, 16:32, 8 + 8 * frame : 24 + 8 * frame] = True
    return mask


def painted(mask: np.ndarray, black: int = 0, white: int = 255) -> np.ndarray:
    grey = np.where(mask, white, black).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def save_pictures(folder: Path, mask: np.ndarray) -> Path:
    folder.mkdir()
    for index, frame in enumerate(mask):
        # Names without leading zeros: 10 sorts before 9 as text.
        Image.fromarray(frame.astype(np.uint8) * 255).save(folder / f"mask{index + 8}.png")
    return folder


def test_a_video_with_compression_noise_gives_the_mask(tmp_path: Path) -> None:
    mask = moving_square()
    noise = np.random.default_rng(0).integers(-40, 41, (*mask.shape, 3))
    noisy = np.clip(painted(mask, 40, 215) + noise, 0, 255).astype(np.uint8)
    write_video(tmp_path / "mask.mp4", noisy, Fraction(25))
    read = read_mask(tmp_path / "mask.mp4", **SIZES)
    assert read.dtype == bool
    # 4:2:0 may move an edge by a pixel; inside and outside there is no speckle.
    assert (read != mask).mean() < 0.01


def test_a_folder_of_pictures_is_read_in_the_natural_order_of_names(tmp_path: Path) -> None:
    mask = moving_square()
    folder = save_pictures(tmp_path / "masks", mask)
    (folder / "notes.txt").touch()
    assert (read_mask(folder, **SIZES) == mask).all()


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp"])
def test_a_single_picture_serves_for_all_frames(tmp_path: Path, suffix: str) -> None:
    mask = moving_square()[0]
    path = tmp_path / f"mask.{suffix}"
    Image.fromarray(painted(mask)).save(path, quality=95)
    assert (read_mask(path, **SIZES) == mask).all()


def test_a_video_of_one_frame_serves_for_all_frames(tmp_path: Path) -> None:
    mask = moving_square()[:1]
    write_video(tmp_path / "mask.mp4", painted(mask), Fraction(25))
    assert (read_mask(tmp_path / "mask.mp4", **SIZES) == mask).all()


def test_black_means_edit_when_inverted(tmp_path: Path) -> None:
    mask = moving_square()
    folder = save_pictures(tmp_path / "masks", ~mask)
    assert (read_mask(folder, **SIZES, invert=True) == mask).all()


@pytest.mark.parametrize("scale", [0.5, 2, 3])
def test_another_resolution_is_resized_by_nearest_neighbour(tmp_path: Path, scale: float) -> None:
    mask = moving_square()[0]
    size = (round(WIDTH * scale), round(HEIGHT * scale))
    picture = Image.fromarray(painted(mask)).resize(size, Image.Resampling.NEAREST)
    picture.save(tmp_path / "mask.png")
    assert (read_mask(tmp_path / "mask.png", **SIZES) == mask).all()


def test_nearest_neighbour_takes_the_pixel_at_the_centre() -> None:
    picture = np.array([[True, False, False]])
    assert resize_nearest(picture, 1, 1).tolist() == [[False]]
    assert resize_nearest(picture, 2, 6).tolist() == [[True, True, False, False, False, False]] * 2


def save_16_bit(path: Path, mask: np.ndarray) -> None:
    Image.fromarray(np.where(mask, 65535, 0).astype(np.uint16)).save(path)


def save_labels(path: Path, mask: np.ndarray) -> None:
    Image.fromarray(mask.astype(np.uint8)).save(path)


def save_palette(path: Path, mask: np.ndarray) -> None:
    """As annotation tools do: dark red for the first object, a darker one for the next."""
    picture = Image.fromarray(mask.astype(np.uint8) * 2)
    picture.putpalette([0, 0, 0, 128, 0, 0, 64, 0, 0])
    picture.save(path)


def save_colour(path: Path, mask: np.ndarray) -> None:
    pixels = np.zeros((*mask.shape, 3), np.uint8)
    pixels[mask] = (0, 0, 255)
    Image.fromarray(pixels).save(path)


def save_transparent(path: Path, mask: np.ndarray) -> None:
    Image.fromarray(painted(mask)).convert("RGBA").save(path)


def save_one_bit(path: Path, mask: np.ndarray) -> None:
    Image.fromarray(mask).save(path)


@pytest.mark.parametrize(
    "save",
    [save_16_bit, save_labels, save_palette, save_colour, save_transparent, save_one_bit],
)
def test_pictures_of_every_kind_are_understood(
    tmp_path: Path, save: Callable[[Path, np.ndarray], None]
) -> None:
    mask = moving_square()[0]
    save(tmp_path / "mask.png", mask)
    assert (read_mask(tmp_path / "mask.png", **SIZES) == mask).all()


def test_a_longer_mask_is_cut(tmp_path: Path) -> None:
    mask = moving_square()
    folder = save_pictures(tmp_path / "masks", mask)
    assert (read_mask(folder, frames=2, height=HEIGHT, width=WIDTH) == mask[:2]).all()


def test_a_shorter_mask_is_refused(tmp_path: Path) -> None:
    folder = save_pictures(tmp_path / "masks", moving_square()[:3])
    with pytest.raises(ConfigError, match="has 3 frames, but 4 frames") as raised:
        read_mask(folder, **SIZES)
    assert "--frames 3" in str(raised.value)


@pytest.mark.parametrize(("level", "invert"), [(0, False), (30, False), (255, True)])
def test_an_empty_mask_is_refused_with_a_hint(tmp_path: Path, level: int, invert: bool) -> None:
    frames = np.full((FRAMES, HEIGHT, WIDTH, 3), level, np.uint8)
    write_video(tmp_path / "mask.mp4", frames, Fraction(25))
    with pytest.raises(ConfigError, match="is empty") as raised:
        read_mask(tmp_path / "mask.mp4", **SIZES, invert=invert)
    assert "--invert-mask" in str(raised.value)


def test_a_mask_may_cover_everything(tmp_path: Path) -> None:
    Image.new("L", (8, 8), 255).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png", **SIZES).all()


def test_a_mask_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "noise.png").write_bytes(b"noise")
    (tmp_path / "nothing").mkdir()
    for name, said in {
        "noise.png": "no readable picture",
        "missing.png": "not found",
        "missing.mp4": "No such file",
        "nothing": "holds no pictures",
    }.items():
        with pytest.raises(ConfigError, match=said) as raised:
            read_mask(tmp_path / name, **SIZES)
        assert raised.value.where == "--mask"
        assert name in str(raised.value)
