"""Masks as people have them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

from hetcache_core.errors import ConfigError

pytest.importorskip("av")

import av
import numpy as np
from PIL import Image

from hetcache.media.masks import Mask, read_mask, resize_nearest
from hetcache.media.options import MaskConfig
from hetcache.media.video import write_video

FRAMES, HEIGHT, WIDTH = 4, 48, 64


def read(path: Path, frames: int = FRAMES, total: int | None = None, **options: object) -> Mask:
    return read_mask(
        path,
        frames=frames,
        height=HEIGHT,
        width=WIDTH,
        total=total,
        options=MaskConfig(**options),
    )


def said(mask: Mask) -> str:
    return "; ".join(mask.notes)


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
    found = read(tmp_path / "mask.mp4").pixels
    assert found.dtype == bool
    # 4:2:0 may move an edge by a pixel; inside and outside there is no speckle.
    assert (found != mask).mean() < 0.01


def test_a_folder_of_pictures_is_read_in_the_natural_order_of_names(tmp_path: Path) -> None:
    mask = moving_square()
    folder = save_pictures(tmp_path / "masks", mask)
    (folder / "notes.txt").touch()
    assert (read(folder).pixels == mask).all()


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp"])
def test_a_single_picture_serves_for_all_frames(tmp_path: Path, suffix: str) -> None:
    mask = moving_square()[0]
    path = tmp_path / f"mask.{suffix}"
    Image.fromarray(painted(mask)).save(path, quality=95)
    assert (read(path).pixels == mask).all()


def test_a_video_of_one_frame_serves_for_all_frames(tmp_path: Path) -> None:
    mask = moving_square()[:1]
    write_video(tmp_path / "mask.mp4", painted(mask), Fraction(25))
    assert (read(tmp_path / "mask.mp4").pixels == mask).all()


def test_black_means_edit_when_inverted(tmp_path: Path) -> None:
    mask = moving_square()
    folder = save_pictures(tmp_path / "masks", ~mask)
    assert (read(folder, invert_mask=True).pixels == mask).all()


@pytest.mark.parametrize("scale", [0.5, 2, 3])
def test_another_resolution_is_resized_by_nearest_neighbour(tmp_path: Path, scale: float) -> None:
    mask = moving_square()[0]
    size = (round(WIDTH * scale), round(HEIGHT * scale))
    picture = Image.fromarray(painted(mask)).resize(size, Image.Resampling.NEAREST)
    picture.save(tmp_path / "mask.png")
    assert (read(tmp_path / "mask.png").pixels == mask).all()


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
    assert (read(tmp_path / "mask.png").pixels == mask).all()


def test_a_longer_mask_is_cut(tmp_path: Path) -> None:
    mask = moving_square()
    folder = save_pictures(tmp_path / "masks", mask)
    assert (read(folder, frames=2).pixels == mask[:2]).all()


def test_a_shorter_mask_is_refused(tmp_path: Path) -> None:
    folder = save_pictures(tmp_path / "masks", moving_square()[:3])
    with pytest.raises(ConfigError, match="has 3 frames, but 4 frames") as raised:
        read(folder)
    assert "--frames 3" in str(raised.value)


@pytest.mark.parametrize(("level", "invert"), [(0, False), (30, False), (255, True)])
def test_an_empty_mask_is_refused_with_a_hint(tmp_path: Path, level: int, invert: bool) -> None:
    frames = np.full((FRAMES, HEIGHT, WIDTH, 3), level, np.uint8)
    write_video(tmp_path / "mask.mp4", frames, Fraction(25))
    with pytest.raises(ConfigError, match="is empty") as raised:
        read(tmp_path / "mask.mp4", invert_mask=invert)
    assert "--invert-mask" in str(raised.value)


def test_a_mask_may_cover_everything(tmp_path: Path) -> None:
    Image.new("L", (8, 8), 255).save(tmp_path / "mask.png")
    assert read(tmp_path / "mask.png").pixels.all()


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
            read(tmp_path / name)
        assert raised.value.where == "--mask"
        assert name in str(raised.value)


# Alpha


def cut_out(mask: np.ndarray) -> np.ndarray:
    """An object, dark and bright, on nothing, as background removers save it."""
    rows, columns = np.indices(mask.shape)
    pixels = np.zeros((*mask.shape, 4), np.uint8)
    pixels[..., 0], pixels[..., 1] = rows * 5 % 256, columns * 3 % 256
    pixels[..., 3] = mask * 255
    return pixels


def test_a_cut_out_is_masked_where_it_is_opaque(tmp_path: Path) -> None:
    mask = moving_square()[0]
    Image.fromarray(cut_out(mask)).save(tmp_path / "mask.png")
    found = read(tmp_path / "mask.png")
    assert (found.pixels == mask).all()
    assert "opacity is the mask" in said(found)


@pytest.mark.parametrize("suffix", ["png", "webp", "tiff"])
def test_white_with_a_varying_alpha_is_masked_by_alpha(tmp_path: Path, suffix: str) -> None:
    mask = moving_square()[0]
    pixels = np.full((*mask.shape, 4), 255, np.uint8)
    pixels[~mask, 3] = 0
    Image.fromarray(pixels).save(tmp_path / f"mask.{suffix}", lossless=True, exact=True)
    assert (read(tmp_path / f"mask.{suffix}").pixels == mask).all()


def test_grey_and_palettes_with_alpha_are_masked_by_alpha(tmp_path: Path) -> None:
    mask = moving_square()[0]
    grey = np.stack([np.full(mask.shape, 200), mask * 255], -1).astype(np.uint8)
    Image.fromarray(grey, "LA").save(tmp_path / "grey.png")
    palette = Image.fromarray((~mask).astype(np.uint8), "P")
    palette.putpalette([10, 200, 30, 255, 255, 255])
    palette.save(tmp_path / "palette.png", transparency=1)
    for name in ("grey.png", "palette.png"):
        assert (read(tmp_path / name).pixels == mask).all()


def test_among_cut_outs_a_frame_that_is_full_or_empty_is_so(tmp_path: Path) -> None:
    """Nothing of a picture without the object is edited, even if its hidden colours are white."""
    mask = moving_square()
    mask[1], mask[2] = False, True
    for index, frame in enumerate(mask):
        pixels = cut_out(frame)
        if index == 1:
            pixels[..., :3] = 255
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    found = read(tmp_path)
    assert (found.pixels == mask).all()
    assert "2.png: it is opaque everywhere, so all of it is edited" in said(found)


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("mask.mov", "qtrle", "argb"),
        ("mask.mov", "prores_ks", "yuva444p10le"),
        ("mask.mkv", "ffv1", "yuva420p"),
        ("mask.webm", "libvpx-vp9", "yuva420p"),
    ],
)
def test_video_with_alpha_is_masked_by_alpha(
    tmp_path: Path, name: str, codec: str, pixels: str
) -> None:
    mask = moving_square()
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pixels
        if codec == "libvpx-vp9":
            stream.metadata["alpha_mode"] = "1"
        for frame in mask:
            layers = np.full((*frame.shape, 4), 255, np.uint8)
            layers[..., 3] = frame * 255
            picture = av.VideoFrame.from_ndarray(layers, format="rgba").reformat(format=pixels)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    found = read(tmp_path / name)
    assert (found.pixels != mask).mean() < 0.01  # an edge of lossy 4:2:0 may move by a pixel
    assert "opacity is the mask" in said(found)


# Labels


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_labels_are_masked_but_for_0(tmp_path: Path, dtype: type) -> None:
    labels = np.zeros((HEIGHT, WIDTH), dtype)
    labels[4:12, 4:20], labels[20:30, 30:50] = 1, 7
    Image.fromarray(labels).save(tmp_path / "mask.png")
    found = read(tmp_path / "mask.png")
    assert (found.pixels == (labels > 0)).all()
    assert "its values 0, 1, 7 are labels" in said(found)


def test_numbers_from_0_to_1_are_halved(tmp_path: Path) -> None:
    soft = np.linspace(0, 1, WIDTH, dtype=np.float32)[None].repeat(HEIGHT, 0)
    Image.fromarray(soft).save(tmp_path / "mask.tiff")
    assert (read(tmp_path / "mask.tiff").pixels == (soft > 0.5)).all()


def test_one_picture_of_labels_is_read_as_that_among_black_and_white_ones(tmp_path: Path) -> None:
    mask = moving_square()
    for index, frame in enumerate(mask):
        white = 255 if index == 0 else 1
        Image.fromarray(frame.astype(np.uint8) * white).save(tmp_path / f"{index}.png")
    assert (read(tmp_path).pixels == mask).all()


def test_a_grey_soft_palette_is_a_grey_picture(tmp_path: Path) -> None:
    soft = np.linspace(0, 255, WIDTH).astype(np.uint8)[None].repeat(HEIGHT, 0)
    picture = Image.fromarray(soft, "P")
    picture.putpalette([value for grey in range(256) for value in (grey, grey, grey)])
    picture.save(tmp_path / "mask.png")
    assert (read(tmp_path / "mask.png").pixels == (soft > 127.5)).all()


def test_dark_colours_are_masked_as_bright_ones_are(tmp_path: Path) -> None:
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[4:12, 4:20], pixels[20:30, 30:50] = (64, 0, 0), (255, 255, 255)
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    assert (read(tmp_path / "mask.png").pixels == pixels.any(-1)).all()


def test_a_palette_without_black_has_its_background_at_0(tmp_path: Path) -> None:
    mask = moving_square()[0]
    picture = Image.fromarray(mask.astype(np.uint8), "P")
    picture.putpalette([68, 1, 84, 253, 231, 37])  # the ends of a colour map
    picture.save(tmp_path / "mask.png")
    assert (read(tmp_path / "mask.png").pixels == mask).all()


def test_noise_below_half_is_no_label(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 31, (HEIGHT, WIDTH)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "mask.png")
    with pytest.raises(ConfigError, match=r"is empty.*its values are 0, 1, 2, .* and \d+ more"):
        read(tmp_path / "mask.png")


def test_one_label_is_picked(tmp_path: Path) -> None:
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[4:12, 4:20], labels[20:30, 30:50] = 1, 2
    Image.fromarray(labels).save(tmp_path / "grey.png")
    palette = Image.fromarray(labels, "P")
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    palette.save(tmp_path / "palette.png")
    for name in ("grey.png", "palette.png"):
        assert (read(tmp_path / name, mask_label=2).pixels == (labels == 2)).all()
        with pytest.raises(ConfigError, match="its values are 0, 1, 2") as raised:
            read(tmp_path / name, mask_label=9)
        assert "--mask-label" in str(raised.value)
    Image.fromarray(painted(labels > 0)).convert("RGB").save(tmp_path / "colour.png")
    colour = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    colour[4:12, 4:20] = (0, 0, 255)
    Image.fromarray(colour).save(tmp_path / "colour.png")
    with pytest.raises(ConfigError, match="colours, not labels"):
        read(tmp_path / "colour.png", mask_label=2)


# Proportions


def test_a_turned_mask_is_refused_and_said_to_be_turned(tmp_path: Path) -> None:
    Image.fromarray(painted(moving_square()[0]).transpose(1, 0, 2)).save(tmp_path / "mask.png")
    with pytest.raises(ConfigError, match="is 48x64 pixels, the video 64x48") as raised:
        read(tmp_path / "mask.png")
    assert "turned by 90 degrees" in str(raised.value)


def test_other_proportions_are_refused(tmp_path: Path) -> None:
    wide = np.zeros((27, 48), bool)
    wide[:9] = True
    Image.fromarray(wide).save(tmp_path / "mask.png")
    with pytest.raises(ConfigError, match="other proportions") as raised:
        read(tmp_path / "mask.png")
    assert "Crop or pad it" in str(raised.value)


def test_sizes_that_were_rounded_are_taken(tmp_path: Path) -> None:
    frame = np.zeros((1080, 1920), bool)
    frame[:540] = True
    for height in (1080, 1088, 1072):
        Image.fromarray(np.resize(frame, (height, 1920))).save(tmp_path / "mask.png")
        found = read_mask(tmp_path / "mask.png", frames=1, height=1080, width=1920)
        assert 0.45 < found.pixels.mean() < 0.55


def test_the_orientation_that_a_camera_notes_is_applied(tmp_path: Path) -> None:
    mask = moving_square()[0]
    turned = Image.fromarray(painted(np.rot90(mask)))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise
    turned.save(tmp_path / "mask.png", exif=exif)
    assert (read(tmp_path / "mask.png").pixels == mask).all()


# Folders


def save_numbered(folder: Path, mask: np.ndarray, numbers: list[int], name: str) -> Path:
    folder.mkdir()
    for number, frame in zip(numbers, mask, strict=True):
        Image.fromarray(frame.astype(np.uint8) * 255).save(folder / name.format(number))
    return folder


@pytest.mark.parametrize("start", [0, 1])
def test_a_gap_in_the_numbers_is_an_error_or_filled(tmp_path: Path, start: int) -> None:
    mask = moving_square()
    numbers = [start, start + 1, start + 3]
    folder = save_numbered(tmp_path / "masks", mask[[0, 1, 3]], numbers, "shot2_{:04}_mask.png")
    with pytest.raises(ConfigError, match="no picture for frames 2 of 4") as raised:
        read(folder)
    assert "--missing-masks" in str(raised.value)
    empty = read(folder, missing_masks="empty")
    assert (empty.pixels[[0, 1, 3]] == mask[[0, 1, 3]]).all()
    assert not empty.pixels[2].any()
    assert "frames 2 of 4: nothing is edited there" in said(empty)
    previous = read(folder, missing_masks="previous")
    assert (previous.pixels[2] == mask[1]).all()


def test_numbers_within_the_clip_are_frames_of_it(tmp_path: Path) -> None:
    mask = moving_square()
    folder = save_numbered(tmp_path / "masks", mask[2:], [2, 3], "{}.png")
    found = read(folder, missing_masks="empty", total=20)
    assert not found.pixels[:2].any()
    assert (found.pixels[2:] == mask[2:]).all()
    assert "2.png is frame 2 of the video" in said(found)
    whole = save_numbered(tmp_path / "counted", mask[2:], [3, 4], "{}.png")
    assert (read(whole, missing_masks="empty", total=4).pixels[2:] == mask[2:]).all()


def test_numbers_beyond_the_clip_begin_with_its_first_frame(tmp_path: Path) -> None:
    mask = moving_square()
    folder = save_numbered(tmp_path / "masks", mask, [1001, 1002, 1003, 1004], "plate.{}.png")
    found = read(folder)
    assert (found.pixels == mask).all()
    assert "plate.1001.png is the first frame's" in said(found)


def test_hidden_files_are_no_masks(tmp_path: Path) -> None:
    mask = moving_square()
    folder = save_pictures(tmp_path / "masks", mask)
    for index in range(FRAMES):
        (folder / f"._mask{index + 8}.png").write_bytes(b"resource fork")
    assert (read(folder).pixels == mask).all()


@pytest.mark.parametrize("suffix", ["tiff", "png", "webp"])
def test_files_of_several_frames_are_read_whole(tmp_path: Path, suffix: str) -> None:
    mask = moving_square()
    first, *others = [Image.fromarray(painted(frame)) for frame in mask]
    path = tmp_path / f"mask.{suffix}"
    first.save(path, save_all=True, append_images=others, lossless=True)
    assert (read(path).pixels == mask).all()


def test_a_picture_that_claims_to_be_huge_is_refused(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    data = (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    )
    (tmp_path / "mask.png").write_bytes(data)
    with pytest.raises(ConfigError, match=r"mask\.png: no readable picture"):
        read(tmp_path / "mask.png")
