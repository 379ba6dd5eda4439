"""Clips with a masked region, a prompt and a known answer, made from a seed.

A clip is a moving background, a region that moves over it and, in half of them, an object that the
prompt names and that sits in the region. The masked pixels of the video are grey, as Wan-VACE
expects of an inpainting task; `target` shows what was behind them.

`builtin_clips` is the evaluation set: fixed specifications, versioned, rendered on demand. Seeds
below `RESERVED_SEEDS` belong to evaluation; training draws its seeds from above.

Legend: `F` frames, `H` height, `W` width in pixels.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from attrs import evolve, field, frozen, validators

from hetcache_backends.tiny_vace.shapes import (
    COLOURS,
    SHAPES,
    colour_rgb,
    draw_shape,
    random_colour,
    random_shape,
    region,
)
from hetcache_backends.tiny_vace.textures import BACKGROUNDS, background

CLIP_SET_VERSION: Final = 1
"""Goes up whenever any clip of `builtin_clips` would render differently."""

RESERVED_SEEDS: Final = 1 << 20
GREY: Final = 128
NO_OBJECT_PROMPT: Final = "background"
REGIONS: Final = ("box", "ellipse", "border")
FRACTIONS: Final = {"small": 0.05, "medium": 0.15, "large": 0.40}
OBJECT_FILL: Final = 0.84
"""Radius of an object, as a share of the shorter half side of its region."""
ELLIPSE_AREA: Final = float(np.pi / 4)


@frozen(eq=False, kw_only=True)
class Clip:
    """One editing task and its answer.

    Attributes:
        name: What the clip is called in tables.
        prompt: What belongs into the masked region.
        video: `(F, H, W, 3)` uint8, grey where masked.
        mask: `(F, H, W)` uint8, 255 where the model is to paint and 0 elsewhere.
        target: `(F, H, W, 3)` uint8, the answer; equals `video` outside the mask.
    """

    name: str
    prompt: str
    video: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.uint8]
    target: npt.NDArray[np.uint8]


@frozen(kw_only=True)
class ClipSpec:
    """The recipe of one clip; the same recipe always renders the same pixels.

    Attributes:
        name: What the clip is called in tables.
        seed: Of every choice the recipe leaves open.
        frames: `F`, 4k+1.
        height: `H` in pixels, a multiple of 16.
        width: `W` in pixels, a multiple of 16.
        background: One of `textures.BACKGROUNDS`, or None to leave it to the seed.
        region: Shape of the masked region, one of `REGIONS`.
        fraction: Masked share of each frame, in (0, 1).
        speed: Speed of the region, in shorter sides of the frame per frame; 0 for a still one.
        colour: Colour word of the object; None for no object.
        shape: Shape word of the object; None for no object.
    """

    name: str
    seed: int
    frames: int = field(default=17, validator=validators.ge(1))
    height: int = field(default=384, validator=validators.ge(16))
    width: int = field(default=384, validator=validators.ge(16))
    background: str | None = field(default=None, validator=validators.in_((None, *BACKGROUNDS)))
    region: str = field(default="box", validator=validators.in_(REGIONS))
    fraction: float = field(default=0.15, validator=[validators.gt(0.0), validators.lt(1.0)])
    speed: float = field(default=0.0, validator=validators.ge(0.0))
    colour: str | None = field(default=None, validator=validators.in_((None, *COLOURS)))
    shape: str | None = field(default=None, validator=validators.in_((None, *SHAPES)))

    @frames.validator
    def _frames_fit_groups_of_four(self, _: object, value: int) -> None:
        if value % 4 != 1:
            msg = f"a clip has 4k+1 frames (1, 5, 9, ...), not {value}"
            raise ValueError(msg)

    @property
    def prompt(self) -> str:
        """The prompt that names the object, or `NO_OBJECT_PROMPT`."""
        return f"a {self.colour} {self.shape}" if self.has_object else NO_OBJECT_PROMPT

    @property
    def has_object(self) -> bool:
        """Whether the answer shows an object in the region."""
        return self.colour is not None and self.shape is not None

    def at(self, *, frames: int, height: int, width: int) -> ClipSpec:
        """Return this recipe at another length and size."""
        return evolve(self, frames=frames, height=height, width=width)

    def render(self) -> Clip:
        """Draw the clip."""
        rng = np.random.default_rng([self.seed, CLIP_SET_VERSION])
        scene = background(rng, self.frames, self.height, self.width, kind=self.background)
        centres, half_sizes = _region_path(rng, self)
        mask = region(self.region, self.height, self.width, centres, half_sizes)
        if self.colour is not None and self.shape is not None:
            radii = OBJECT_FILL * half_sizes.min(axis=1)
            drawn = draw_shape(scene, self.shape, colour_rgb(self.colour), centres, radii)
            scene = np.where(mask[..., None], drawn, scene)
        target = np.round(scene * 255.0).astype(np.uint8)
        video = np.where(mask[..., None], np.uint8(GREY), target)
        return Clip(
            name=self.name,
            prompt=self.prompt,
            video=video,
            mask=(mask * np.uint8(255)).astype(np.uint8),
            target=target,
        )


def _region_path(
    rng: np.random.Generator, spec: ClipSpec
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Place the region in every frame: centres `(F, 2)` and half sizes `(F, 2)`, (x, y) in pixels."""
    size = np.array([spec.width, spec.height], np.float64)
    area = 1.0 - spec.fraction if spec.region == "border" else spec.fraction
    area /= ELLIPSE_AREA if spec.region == "ellipse" else 1.0
    aspect = float(np.clip(np.exp(rng.normal(0.0, 0.2)), area * 1.05, 0.95 / area))
    half = np.sqrt(area) * size / 2 * np.array([np.sqrt(aspect), 1 / np.sqrt(aspect)])
    half = np.minimum(half, 0.5 * size)
    room = np.maximum(size - 2 * half, 0.0)
    heading = rng.uniform(0.0, 2.0 * np.pi)
    velocity = spec.speed * size.min() * np.array([np.cos(heading), np.sin(heading)])
    start = rng.uniform(0.1, 0.9, 2) * room
    travelled = start + velocity * np.arange(spec.frames)[:, None]
    # Reflect at the edges of the frame, so that the region never leaves it.
    period = np.maximum(2 * room, 1e-6)
    folded = np.mod(travelled, period)
    centres = half + np.minimum(folded, period - folded)
    return centres, np.broadcast_to(half, centres.shape)


def random_spec(
    seed: int, frames: int, height: int, width: int, *, kind: str | None = None
) -> ClipSpec:
    """Draw a recipe at random.

    Args:
        seed: Of the recipe and of the clip.
        frames: `F`, 4k+1.
        height: `H` in pixels, a multiple of 16.
        width: `W` in pixels, a multiple of 16.
        kind: `"object"`, `"background"` (nothing to insert), `"outpainting"`, or None for a mix.

    Returns:
        The recipe.

    Raises:
        ValueError: If the kind has no such name.
    """
    rng = np.random.default_rng([seed, CLIP_SET_VERSION, 1])
    kind = kind or str(rng.choice(["object", "background", "outpainting"], p=[0.55, 0.33, 0.12]))
    if kind not in {"object", "background", "outpainting"}:
        msg = f"no clip is of kind {kind!r}; there are object, background and outpainting"
        raise ValueError(msg)
    fraction = float(np.exp(rng.uniform(np.log(0.04), np.log(0.45))))
    moving = rng.random() < 0.6
    speed = float(rng.uniform(0.002, 0.014)) if moving else 0.0
    shape, (colour, _) = random_shape(rng), random_colour(rng)
    outside = kind == "outpainting"
    return ClipSpec(
        name=f"{kind}-{seed}",
        seed=seed,
        frames=frames,
        height=height,
        width=width,
        region="border" if outside else str(rng.choice(["box", "ellipse"], p=[0.65, 0.35])),
        fraction=float(rng.uniform(0.2, 0.5)) if outside else fraction,
        speed=0.0 if outside else speed,
        colour=colour if kind == "object" else None,
        shape=shape if kind == "object" else None,
    )


def make_clip(seed: int, frames: int, height: int, width: int, *, kind: str | None = None) -> Clip:
    """Draw a recipe at random and render it; see `random_spec` for the arguments."""
    return random_spec(seed, frames, height, width, kind=kind).render()


def demo_clip(frames: int = 17, height: int = 384, width: int = 384) -> Clip:
    """Render the clip that demonstrations use: an object put into a moving region of 12 %."""
    return ClipSpec(
        name="demo",
        seed=7,
        frames=frames,
        height=height,
        width=width,
        background="scene",
        region="ellipse",
        fraction=0.12,
        speed=0.010,
        colour="red",
        shape="circle",
    ).render()


def builtin_clips(*, frames: int = 17, height: int = 256, width: int = 256) -> tuple[ClipSpec, ...]:
    """List the recipes of the evaluation set.

    Args:
        frames: `F`, 4k+1.
        height: `H` in pixels, a multiple of 16.
        width: `W` in pixels, a multiple of 16.

    Returns:
        28 recipes: small, medium and large regions, still and moving, with and without an object
        (two of each), and four outpainting tasks. Names are unique and tell what the clip is.
    """
    colours, shapes = list(COLOURS), list(SHAPES)
    specs: list[ClipSpec] = []
    for size, fraction in FRACTIONS.items():
        for motion, speed in (("still", 0.0), ("moving", 0.010)):
            for content in ("object", "background"):
                for copy in range(2):
                    n = len(specs)
                    chosen = content == "object"
                    specs.append(
                        ClipSpec(
                            name=f"{size}-{motion}-{content}-{copy}",
                            seed=1000 + n,
                            frames=frames,
                            height=height,
                            width=width,
                            background=BACKGROUNDS[n % len(BACKGROUNDS)],
                            region="ellipse" if copy else "box",
                            fraction=fraction,
                            speed=speed,
                            colour=colours[(5 * n + copy) % (len(colours) - 1)] if chosen else None,
                            shape=shapes[(n // 2 + copy) % len(shapes)] if chosen else None,
                        )
                    )
    for copy in range(4):
        specs.append(
            ClipSpec(
                name=f"outpainting-{copy}",
                seed=2000 + copy,
                frames=frames,
                height=height,
                width=width,
                background=BACKGROUNDS[(2 * copy) % len(BACKGROUNDS)],
                region="border",
                fraction=0.3,
            )
        )
    return tuple(specs)
