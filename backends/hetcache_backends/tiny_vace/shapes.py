"""Named shapes in named colours: what prompts put into a clip, and the regions that are masked.

Legend: `F` frames, `H` height, `W` width in pixels. Centres are (x, y) in pixels.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

SHAPES: Final = ("circle", "square", "triangle", "diamond", "star", "ring", "cross", "heart")

COLOURS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (214, 40, 40),
    "green": (46, 158, 70),
    "blue": (38, 84, 214),
    "yellow": (245, 208, 36),
    "orange": (243, 131, 32),
    "purple": (126, 52, 168),
    "pink": (244, 128, 178),
    "cyan": (52, 204, 216),
    "brown": (122, 76, 40),
    "white": (244, 244, 244),
    "black": (22, 22, 22),
    "grey": (128, 128, 128),
}
"""RGB, 0 to 255, of every colour word that the model was trained on."""


def random_shape(rng: np.random.Generator) -> str:
    """Choose one of `SHAPES`."""
    return str(rng.choice(SHAPES))


def random_colour(rng: np.random.Generator) -> tuple[str, FloatArray]:
    """Choose one of `COLOURS`; return its name and its RGB in [0, 1], `(3,)`."""
    name = str(rng.choice(list(COLOURS)))
    return name, colour_rgb(name)


def colour_rgb(name: str) -> FloatArray:
    """Return the RGB of a colour word, `(3,)` in [0, 1]."""
    return np.asarray(COLOURS[name], np.float32) / 255.0


def distance(shape: str, x: FloatArray, y: FloatArray) -> FloatArray:
    """Evaluate the signed distance to a shape of radius 1, negative inside.

    The values are exact distances or bounds of them, good enough for an edge one pixel wide.

    Args:
        shape: One of `SHAPES`.
        x: Coordinates to the right, in radii.
        y: Coordinates downwards, in radii, of the same shape as `x`.

    Returns:
        Distances in radii, of the same shape as `x`.

    Raises:
        ValueError: If the shape has no such name.
    """
    r = np.hypot(x, y)
    if shape == "circle":
        d = r - 1.0
    elif shape == "square":
        d = np.maximum(np.abs(x), np.abs(y)) - 0.86
    elif shape == "diamond":
        d = (np.abs(x) + np.abs(y) - 1.1) * 0.71
    elif shape == "triangle":
        d = np.maximum(np.abs(x) * 0.894 - (y + 1.0) * 0.447, y - 0.8)
    elif shape == "ring":
        d = np.abs(r - 0.74) - 0.26
    elif shape == "cross":
        wide, narrow = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
        d = np.maximum(wide - 1.0, narrow - 0.34)
    elif shape == "star":
        sector = np.pi / 5
        angle = np.mod(np.arctan2(x, -y) + sector, 2 * sector) - sector
        px, py = r * np.cos(angle), r * np.abs(np.sin(angle))
        # The edge from the tip (1, 0) to the notch at 0.45 of the radius, half a sector on.
        nx, ny = 0.45 * np.cos(sector), 0.45 * np.sin(sector)
        length = np.hypot(1 - nx, ny)
        d = ((px - 1.0) * ny + py * (1 - nx)) / length
    elif shape == "heart":
        hx, hy = np.abs(x), -(y - 0.15)
        lobe = np.hypot(hx - 0.46, hy - 0.36) - 0.56
        # Below the lobes, the side from (0.86, -0.03) down to the tip at (0, -1).
        tip = np.maximum(hx * 0.748 - (hy + 1.0) * 0.664, hy - 0.36 - 0.4 * (0.46 - hx).clip(0))
        d = np.minimum(lobe, tip)
    else:
        msg = f"no shape is called {shape!r}; there are {', '.join(SHAPES)}"
        raise ValueError(msg)
    return np.asarray(d, np.float32)


def draw_shape(
    video: FloatArray,
    shape: str,
    colour: FloatArray,
    centres: npt.NDArray[np.floating],
    radii: npt.NDArray[np.floating],
) -> FloatArray:
    """Draw a softly lit shape over a video.

    Args:
        video: `(F, H, W, 3)` in [0, 1]; not modified.
        shape: One of `SHAPES`.
        colour: `(3,)` in [0, 1].
        centres: `(F, 2)`, (x, y) in pixels.
        radii: `(F,)` in pixels.

    Returns:
        A new video, `(F, H, W, 3)`.
    """
    frames, height, width = video.shape[:3]
    out: FloatArray = video.copy()
    for t in range(frames):
        (cx, cy), radius = centres[t], max(float(radii[t]), 1.0)
        top, bottom = (int(np.clip(cy + s * (radius * 1.15 + 1), 0, height)) for s in (-1, 1))
        left, right = (int(np.clip(cx + s * (radius * 1.15 + 1), 0, width)) for s in (-1, 1))
        if top >= bottom or left >= right:
            continue
        y = ((np.arange(top, bottom, dtype=np.float32) + 0.5 - cy) / radius)[:, None]
        x = ((np.arange(left, right, dtype=np.float32) + 0.5 - cx) / radius)[None, :]
        x, y = np.broadcast_arrays(x.astype(np.float32), y.astype(np.float32))
        d = distance(shape, x, y)
        alpha = np.clip(0.5 - d * radius / 1.5, 0.0, 1.0)[..., None]
        # Light from the upper left and a darker rim: flat shapes would read as cut-outs.
        light = 1.0 - 0.16 * (x + y) - 0.22 * np.clip(1.0 + d / 0.25, 0.0, 1.0)
        patch = np.clip(colour * light[..., None] + 0.03, 0.0, 1.0)
        out[t, top:bottom, left:right] += alpha * (patch - out[t, top:bottom, left:right])
    return out


def region(
    shape: str,
    height: int,
    width: int,
    centres: npt.NDArray[np.floating],
    half_sizes: npt.NDArray[np.floating],
) -> npt.NDArray[np.bool_]:
    """Rasterise a masked region.

    Args:
        shape: `"box"`, `"ellipse"`, or `"border"` (everything but the box: outpainting).
        height: `H` in pixels.
        width: `W` in pixels.
        centres: `(F, 2)`, (x, y) in pixels.
        half_sizes: `(F, 2)`, half width and half height in pixels.

    Returns:
        `(F, H, W)`, True where the model is to paint.

    Raises:
        ValueError: If the shape has no such name.
    """
    y = (np.arange(height) + 0.5)[None, :, None]
    x = (np.arange(width) + 0.5)[None, None, :]
    dx = np.abs(x - centres[:, 0, None, None]) / half_sizes[:, 0, None, None]
    dy = np.abs(y - centres[:, 1, None, None]) / half_sizes[:, 1, None, None]
    if shape == "box":
        return np.asarray(np.maximum(dx, dy) <= 1.0)
    if shape == "ellipse":
        return np.asarray(dx**2 + dy**2 <= 1.0)
    if shape == "border":
        return np.asarray(np.maximum(dx, dy) > 1.0)
    msg = f"no masked region is called {shape!r}; there are box, ellipse and border"
    raise ValueError(msg)
