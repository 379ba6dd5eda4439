"""Prompts without a language model: one fixed vector a word.

A word's vector is drawn from a generator seeded with the word, so every string has an embedding and
no vocabulary is stored. Colour words also carry their RGB value and shape words their own slot,
which makes related words neighbours. Words without content (articles, "photo", "on") are left out.

Legend: `L` words, `D` width of a word vector.
"""

from __future__ import annotations

import re
import zlib
from functools import lru_cache
from typing import Any, Final

import numpy as np
import torch
from diffsynth.diffusion.base_pipeline import PipelineUnit
from PIL import ImageColor

from hetcache_backends.tiny_vace.config import TINY_VACE, TinyVaceConfig
from hetcache_backends.tiny_vace.shapes import COLOURS, SHAPES

STOP_WORDS: Final = frozenset(
    {
        "a",
        "an",
        "the",
        "of",
        "on",
        "in",
        "at",
        "with",
        "and",
        "is",
        "it",
        "this",
        "that",
        "there",
        "some",
        "one",
        "high",
        "quality",
        "photo",
        "picture",
        "image",
        "video",
        "clip",
        "shows",
        "showing",
        "best",
        "beautiful",
        "very",
        "realistic",
        "detailed",
        "put",
        "here",
        "moving",
    }
)
SYNONYMS: Final = {
    "ball": "circle",
    "disc": "circle",
    "disk": "circle",
    "sphere": "circle",
    "dot": "circle",
    "round": "circle",
    "box": "square",
    "block": "square",
    "cube": "square",
    "rectangle": "square",
    "pyramid": "triangle",
    "rhombus": "diamond",
    "donut": "ring",
    "torus": "ring",
    "plus": "cross",
    "gray": "grey",
    "violet": "purple",
    "nothing": "background",
    "empty": "background",
    "clean": "background",
}
RGB_SLOT: Final = slice(0, 3)
COLOUR_FLAG: Final = 3
SHAPE_FLAG: Final = 4
SHAPE_SLOT: Final = 5
"""First of `len(SHAPES)` entries; the rest of the vector is drawn at random."""
RANDOM_START: Final = SHAPE_SLOT + len(SHAPES)
RANDOM_SCALE: Final = 0.5


def words(prompt: str) -> list[str]:
    """Split a prompt into the words that mean something, lower case, synonyms resolved."""
    found = re.findall(r"[^\W_]+", prompt.lower())
    singular = (word[:-1] if word.endswith("s") and word[:-1] in SHAPES else word for word in found)
    return [SYNONYMS.get(word, word) for word in singular if word not in STOP_WORDS]


@lru_cache(maxsize=4096)
def word_vector(word: str, width: int = TINY_VACE.text_dim) -> torch.Tensor:
    """Embed one word, `(D,)` float32; the same word has the same vector everywhere."""
    rng = np.random.default_rng([zlib.crc32(word.encode()), width])
    vector = np.zeros(width, np.float32)
    vector[RANDOM_START:] = rng.normal(0.0, RANDOM_SCALE, width - RANDOM_START)
    rgb = COLOURS.get(word) or _css_colour(word)
    if rgb is not None:
        vector[RGB_SLOT] = np.asarray(rgb) / 127.5 - 1.0
        vector[COLOUR_FLAG] = 1.0
    if word in SHAPES:
        vector[SHAPE_FLAG] = 1.0
        vector[SHAPE_SLOT + SHAPES.index(word)] = 1.0
    return torch.from_numpy(vector)


def _css_colour(word: str) -> tuple[int, ...] | None:
    """Look a word up among the CSS colour names."""
    return ImageColor.getrgb(word)[:3] if word in ImageColor.colormap else None


def embed_prompt(prompt: str, config: TinyVaceConfig = TINY_VACE) -> torch.Tensor:
    """Embed a prompt.

    Args:
        prompt: Any string, also an empty one.
        config: For the width and the number of words.

    Returns:
        `(1, L, D)` float32 on the CPU; rows beyond the last word are zero.
    """
    out = torch.zeros(1, config.text_length, config.text_dim)
    for i, word in enumerate(words(prompt)[: config.text_length]):
        out[0, i] = word_vector(word, config.text_dim)
    return out


class WordEmbedder(PipelineUnit):  # type: ignore[misc]  # diffsynth has no type information
    """The pipeline unit in the place of `WanVideoUnit_PromptEmbedder`."""

    def __init__(self, config: TinyVaceConfig = TINY_VACE) -> None:
        """Declare the inputs and outputs that the pipeline routes.

        Args:
            config: For the width and the number of words.
        """
        super().__init__(
            seperate_cfg=True,
            input_params_posi={"prompt": "prompt"},
            input_params_nega={"prompt": "negative_prompt"},
            output_params=("context",),
        )
        self.config = config

    def process(self, pipe: Any, prompt: str | None) -> dict[str, torch.Tensor]:
        """Embed one prompt on the pipeline's device and in its dtype."""
        context = embed_prompt(prompt or "", self.config)
        return {"context": context.to(device=pipe.device, dtype=pipe.torch_dtype)}
