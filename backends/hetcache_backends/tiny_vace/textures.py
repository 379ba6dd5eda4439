"""Procedural moving backgrounds: what stands in for footage, without any.

Every background is a function of scene coordinates, seen by a camera that pans, zooms and turns,
under a light that changes. Wavelengths are in pixels of the frame, so the same kinds of structure
meet the model at every frame size.

Legend: `F` frames, `H` height, `W` width in pixels. Colours are RGB in [0, 1], float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from hetcache_backends.tiny_vace.shapes import draw_shape, random_colour, random_shape

FloatArray = npt.NDArray[np.float32]
Coordinates = tuple[FloatArray, FloatArray]

TILE_SIZE: Final = 512
TILE_COUNT: Final = 16
NATURAL_EXPONENT: Final = 1.0
"""Amplitude spectrum 1/f of natural images. Source: Field 1987, J. Opt. Soc. Am. A 4(12)."""

BACKGROUNDS: Final = ("noise", "gradient", "stripes", "checks", "scene", "spots", "clouds")


@lru_cache(maxsize=TILE_COUNT)
def noise_tile(index: int) -> FloatArray:
    """Make one periodic tile of fractal noise.

    Args:
        index: Which tile, in `[0, TILE_COUNT)`. The exponent of the spectrum grows with it, around
            the one of natural images.

    Returns:
        `(TILE_SIZE, TILE_SIZE)`, mean 0.5, most of it in [0, 1], periodic in both directions.
    """
    rng = np.random.default_rng([index, TILE_SIZE])
    exponent = NATURAL_EXPONENT + 0.9 * index / (TILE_COUNT - 1)
    fy = np.fft.fftfreq(TILE_SIZE)[:, None]
    fx = np.fft.rfftfreq(TILE_SIZE)[None, :]
    radius = np.sqrt(fy**2 + fx**2)
    # Waves longer than an eighth of the tile would make a clip a plain gradient.
    amplitude = 1.0 / np.maximum(radius, 8.0 / TILE_SIZE) ** (exponent + 0.5)
    amplitude[0, 0] = 0.0
    phase = rng.uniform(0.0, 2.0 * np.pi, amplitude.shape)
    tile = np.fft.irfft2(amplitude * np.exp(1j * phase), s=(TILE_SIZE, TILE_SIZE))
    return np.asarray(0.5 + 0.22 * tile / tile.std(), np.float32)


def sample_tile(tile: FloatArray, u: FloatArray, v: FloatArray) -> FloatArray:
    """Look up a periodic tile with bilinear interpolation; `u` runs along columns, `v` along rows."""
    u0, v0 = np.floor(u), np.floor(v)
    fu, fv = u - u0, v - v0
    left = u0.astype(np.int32) % TILE_SIZE
    top = v0.astype(np.int32) % TILE_SIZE
    right, bottom = (left + 1) % TILE_SIZE, (top + 1) % TILE_SIZE
    flat = tile.ravel()
    upper = flat[top * TILE_SIZE + left] * (1 - fu) + flat[top * TILE_SIZE + right] * fu
    lower = flat[bottom * TILE_SIZE + left] * (1 - fu) + flat[bottom * TILE_SIZE + right] * fu
    return np.asarray(upper * (1 - fv) + lower * fv, dtype=np.float32)


def camera(
    rng: np.random.Generator, frames: int, height: int, width: int
) -> tuple[Coordinates, FloatArray]:
    """Draw a camera path: pan, zoom and rotation at constant rates, often none of them.

    Args:
        rng: Source of every random choice.
        frames: `F`.
        height: `H` in pixels.
        width: `W` in pixels.

    Returns:
        Scene coordinates `(u, v)`, each `(F, H, W)` in pixels, and the pan in pixels a frame,
        `(2,)` as (x, y).
    """
    pan = rng.normal(0.0, 1.6, 2) * (rng.random() < 0.8)
    zoom = rng.normal(0.0, 0.008) * (rng.random() < 0.4)
    turn = rng.normal(0.0, 0.010) * (rng.random() < 0.4)
    angle = rng.uniform(0.0, 2.0 * np.pi)
    t = np.arange(frames, dtype=np.float32) - (frames - 1) / 2
    scale = np.exp(zoom * t)[:, None, None]
    theta = (angle + turn * t)[:, None, None]
    y = (
        np.arange(height, dtype=np.float32)[None, :, None]
        - height / 2
        - (pan[1] * t)[:, None, None]
    )
    x = np.arange(width, dtype=np.float32)[None, None, :] - width / 2 - (pan[0] * t)[:, None, None]
    u = scale * (np.cos(theta) * x - np.sin(theta) * y)
    v = scale * (np.sin(theta) * x + np.cos(theta) * y)
    return (u.astype(np.float32), v.astype(np.float32)), pan.astype(np.float32)


def palette(rng: np.random.Generator, count: int) -> FloatArray:
    """Draw `count` related colours, `(count, 3)`: one hue region, spread in lightness."""
    base = rng.uniform(0.15, 0.85, 3)
    spread = rng.uniform(0.15, 0.45)
    tint = rng.normal(0.0, 0.12, (count, 3))
    lightness = np.linspace(-spread, spread, count)[:, None] * rng.choice([-1.0, 1.0])
    return np.asarray(np.clip(base + lightness + tint, 0.02, 0.98), np.float32)


def colourise(level: FloatArray, colours: FloatArray) -> FloatArray:
    """Map a scalar field onto a palette. `(F, H, W)` in [0, 1] and `(K, 3)` to `(F, H, W, 3)`."""
    stops = np.linspace(0.0, 1.0, len(colours))
    level = np.clip(level, 0.0, 1.0)
    return np.stack([np.interp(level, stops, colours[:, c]) for c in range(3)], -1).astype(
        np.float32
    )


def _noise_level(rng: np.random.Generator, uv: Coordinates, *, smooth: bool) -> FloatArray:
    index = int(
        rng.integers(TILE_COUNT // 2, TILE_COUNT) if smooth else rng.integers(0, TILE_COUNT)
    )
    scale = float(np.exp(rng.uniform(np.log(0.35), np.log(1.6))))
    stretch = float(np.exp(rng.normal(0.0, 0.35)))
    ou, ov = rng.uniform(0, TILE_SIZE, 2)
    return sample_tile(
        noise_tile(index), uv[0] * scale * stretch + ou, uv[1] * scale / stretch + ov
    )


def _noise(rng: np.random.Generator, uv: Coordinates) -> FloatArray:
    return colourise(_noise_level(rng, uv, smooth=False), palette(rng, int(rng.integers(2, 5))))


def _clouds(rng: np.random.Generator, uv: Coordinates) -> FloatArray:
    coarse = _noise_level(rng, (uv[0] * 0.5, uv[1] * 0.5), smooth=True)
    fine = _noise_level(rng, uv, smooth=False)
    return colourise(0.7 * coarse + 0.3 * fine, palette(rng, 3))


def _gradient(rng: np.random.Generator, uv: Coordinates) -> FloatArray:
    length = rng.uniform(120.0, 500.0)
    bend = rng.uniform(-0.6, 0.6)
    level = 0.5 + uv[0] / length + bend * (uv[1] / length) ** 2
    return colourise(level, palette(rng, int(rng.integers(2, 4))))


def _wave(rng: np.random.Generator, phase: FloatArray) -> FloatArray:
    sharpness = float(np.exp(rng.uniform(np.log(0.8), np.log(6.0))))
    return np.asarray(
        0.5 + 0.5 * np.tanh(sharpness * np.sin(phase)) / np.tanh(sharpness), np.float32
    )


def _stripes(rng: np.random.Generator, uv: Coordinates) -> FloatArray:
    wavelength = float(np.exp(rng.uniform(np.log(14.0), np.log(110.0))))
    return colourise(_wave(rng, 2 * np.pi * uv[0] / wavelength), palette(rng, 2))


def _checks(rng: np.random.Generator, uv: Coordinates) -> FloatArray:
    wavelength = float(np.exp(rng.uniform(np.log(24.0), np.log(120.0))))
    rows, columns = (_wave(rng, 2 * np.pi * axis / wavelength) for axis in uv)
    return colourise(rows * columns + (1 - rows) * (1 - columns), palette(rng, 2))


def _spots(rng: np.random.Generator, uv: Coordinates) -> FloatArray:
    spacing = float(np.exp(rng.uniform(np.log(28.0), np.log(110.0))))
    radius = rng.uniform(0.2, 0.42)
    cell_u, cell_v = (axis / spacing - np.round(axis / spacing) for axis in uv)
    level = 1.0 / (1.0 + np.exp((np.hypot(cell_u, cell_v) - radius) * spacing / 1.5))
    return colourise(level.astype(np.float32), palette(rng, 2))


_PLAIN: Final[dict[str, Callable[[np.random.Generator, Coordinates], FloatArray]]] = {
    "noise": _noise,
    "gradient": _gradient,
    "stripes": _stripes,
    "checks": _checks,
    "spots": _spots,
    "clouds": _clouds,
}


def _scene(rng: np.random.Generator, uv: Coordinates) -> FloatArray:
    """Two textures on either side of a wavy edge, as sky and ground are."""
    names = list(_PLAIN)
    first, second = rng.choice(["gradient", "clouds", "noise"]), rng.choice(names)
    wave = rng.uniform(0.0, 22.0) * np.sin(uv[0] / rng.uniform(25.0, 90.0))
    edge = 1.0 / (1.0 + np.exp(-np.clip((uv[1] - wave - rng.uniform(-30, 30)) / 1.2, -30, 30)))
    edge = edge[..., None].astype(np.float32)
    return np.asarray(
        _PLAIN[first](rng, uv) * (1 - edge) + _PLAIN[second](rng, uv) * edge, np.float32
    )


def background(
    rng: np.random.Generator, frames: int, height: int, width: int, *, kind: str | None = None
) -> FloatArray:
    """Draw a moving background.

    Args:
        rng: Source of every random choice.
        frames: `F`.
        height: `H` in pixels.
        width: `W` in pixels.
        kind: One of `BACKGROUNDS`, or None to choose one at random.

    Returns:
        `(F, H, W, 3)` in [0, 1].
    """
    kind = kind or str(rng.choice(BACKGROUNDS))
    uv, pan = camera(rng, frames, height, width)
    video = _scene(rng, uv) if kind == "scene" else _PLAIN[kind](rng, uv)
    if rng.random() < 0.4:
        grain = _noise_level(rng, uv, smooth=False) - 0.5
        video = video * (1.0 + rng.uniform(0.1, 0.5) * grain[..., None])
    video = _passers_by(rng, video, pan)
    return np.clip(_light(rng, video), 0.0, 1.0).astype(np.float32)


def _passers_by(rng: np.random.Generator, video: FloatArray, pan: FloatArray) -> FloatArray:
    """Draw none to three shapes that move over the background, the same way or their own."""
    frames, height, width = video.shape[:3]
    for _ in range(int(rng.integers(1, 4)) if rng.random() < 0.35 else 0):
        shape, colour = random_shape(rng), random_colour(rng)[1]
        radius = min(height, width) * rng.uniform(0.05, 0.2)
        start = rng.uniform(0.0, 1.0, 2) * (width, height)
        velocity = pan + rng.normal(0.0, 1.2, 2)
        t = np.arange(frames)[:, None] - (frames - 1) / 2
        video = draw_shape(video, shape, colour, start + velocity * t, np.full(frames, radius))
    return video


def _light(rng: np.random.Generator, video: FloatArray) -> FloatArray:
    """Let brightness drift over time and fall off over the frame."""
    frames, height, width = video.shape[:3]
    if rng.random() < 0.5:
        drift = rng.normal(0.0, 0.12) * np.linspace(-1, 1, frames)
        video = video * (1.0 + drift)[:, None, None, None].astype(np.float32)
    if rng.random() < 0.4:
        slope = rng.normal(0.0, 0.18, 2)
        y = np.linspace(-1, 1, height)[:, None] * slope[0]
        x = np.linspace(-1, 1, width)[None, :] * slope[1]
        video = video * (1.0 + y + x)[None, :, :, None].astype(np.float32)
    return video
