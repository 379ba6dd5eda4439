"""Sizes of clips and of models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from attrs import frozen

from hetcache_core import ConfigError

WAN_CONTROL: Final = tuple(range(0, 30, 2))


@frozen
class ClipSize:
    """Size of a clip in pixels.

    Attributes:
        frames: frames ``F``.
        height: rows ``H``.
        width: columns ``W``.
    """

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"

    @classmethod
    def parse(cls, text: str) -> ClipSize:
        """Read "FxHxW".

        Raises:
            ConfigError: it is no such size.
        """
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", text):
            raise ConfigError(
                f"{text!r} is no size", remedy="Write frames x height x width, such as 33x480x832."
            )
        return cls(*(int(part) for part in text.split("x")))


@frozen(kw_only=True)
class ModelSize:
    """Size of a transformer, whatever the library.

    Attributes:
        width: width ``D``.
        heads: attention heads.
        layers: main blocks ``L``.
        ffn: hidden width of the feed-forward; LTX-Video always has four times the width.
        text_width: width of a word's embedding.
        words: words of a prompt.
        control: main blocks that take a control hint, where the model has a control branch.
    """

    width: int
    heads: int
    layers: int
    ffn: int
    text_width: int
    words: int
    control: tuple[int, ...]


TINY: Final = ModelSize(width=48, heads=2, layers=2, ffn=96, text_width=32, words=8, control=(0,))
"""Runs in milliseconds: for tests of the benchmarks."""

SMALL: Final = ModelSize(
    width=128, heads=4, layers=8, ffn=512, text_width=64, words=16, control=(0, 3, 6)
)
"""Runs on a laptop: the embedded model's own size."""

WAN: Final = ModelSize(
    width=1536, heads=12, layers=30, ffn=8960, text_width=4096, words=512, control=WAN_CONTROL
)
"""Wan2.1-VACE-1.3B. Source: DiffSynth 2.1.12, ``configs/model_configs.py``."""

LTX: Final = ModelSize(
    width=2048, heads=32, layers=28, ffn=8192, text_width=4096, words=256, control=()
)
"""LTX-Video 2B. Source: transformer/config.json of Lightricks/LTX-Video; 256 words are the pipeline's."""

SCALES: Final[Mapping[str, Mapping[str, ModelSize]]] = {
    "tiny": {"": TINY},
    "small": {"": SMALL},
    "published": {"": WAN, "ltx-video": LTX},
}
"""Sizes by scale and backbone; "" holds for the others."""


def model_size(scale: str, backbone: str) -> ModelSize:
    """Find the size of a backbone's model.

    Raises:
        ConfigError: there is no such scale.
    """
    if scale not in SCALES:
        raise ConfigError(f"There is no scale {scale!r}", remedy=f"Use one of {', '.join(SCALES)}.")
    sizes = SCALES[scale]
    return sizes.get(backbone, sizes[""])
