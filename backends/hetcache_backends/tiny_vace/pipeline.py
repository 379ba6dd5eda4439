"""Build the pipeline: DiffSynth's own, with the tiny model, the codec and the word embedding.

torch and diffsynth are imported on use, so that listing what is installed stays cheap.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hetcache_backends.tiny_vace.config import TINY_VACE, TinyVaceConfig

if TYPE_CHECKING:
    import torch
    from diffsynth.pipelines.wan_video import WanVideoPipeline

WEIGHTS_PATH: Final = Path(__file__).with_name("weights.safetensors")
DIT_PREFIX: Final = "dit."
VACE_PREFIX: Final = "vace."
CODEC_PREFIX: Final = "codec."
PROMPT_UNIT: Final = "WanVideoUnit_PromptEmbedder"


def build_pipeline(
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    weights: Path | None = None,
    seed: int | None = None,
    config: TinyVaceConfig = TINY_VACE,
) -> WanVideoPipeline:
    """Build a `WanVideoPipeline` around the tiny model.

    Args:
        device: Where the models live.
        dtype: Of weights and activations; float32 by default.
        weights: A safetensors file; by default the one in the package.
        seed: Draw random weights from this seed instead of loading any. The global random state is
            left as it was.
        config: Dimensions; anything but the default needs `seed` or `weights`.

    Returns:
        The pipeline, in evaluation mode. With the default dimensions it fills the masked region before
        it shows the video to the model (`fill.py`).

    Raises:
        FileNotFoundError: If there is no such weights file.
        ValueError: If both `weights` and `seed` are given.
    """
    import torch
    from safetensors.torch import load_file

    from hetcache_backends.tiny_vace.fill import add_fill

    if weights is not None and seed is not None:
        msg = "give either weights or a seed for random ones, not both"
        raise ValueError(msg)
    dtype = dtype or torch.float32
    pipe = pipeline_without_models(config, device=device, dtype=dtype)
    pipe.dit, pipe.vace = random_models(config, seed=seed or 0)
    if seed is None:
        state = load_file(str(weights or WEIGHTS_PATH))
        parts = {DIT_PREFIX: pipe.dit, VACE_PREFIX: pipe.vace, CODEC_PREFIX: pipe.vae}
        for prefix, model in parts.items():
            part = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            model.load_state_dict(part)
    for model in (pipe.dit, pipe.vace):
        model.to(device=device, dtype=dtype).eval().requires_grad_(False)
    pipe.vae.to(device=device)
    if config == TINY_VACE:
        add_fill(pipe)
    return pipe


def pipeline_without_models(
    config: TinyVaceConfig, *, device: str, dtype: torch.dtype
) -> WanVideoPipeline:
    """Build a pipeline with the codec and the word embedding, but no transformer.

    Args:
        config: for the width and the number of words.
        device: Where the models will live.
        dtype: Of weights and activations.

    Returns:
        The pipeline; the codec's own weights are still to be loaded.
    """
    from diffsynth.pipelines.wan_video import WanVideoPipeline

    from hetcache_backends.tiny_vace.codec import TinyCodec
    from hetcache_backends.tiny_vace.text import WordEmbedder

    pipe = WanVideoPipeline(device=device, torch_dtype=dtype)
    pipe.vae = TinyCodec()
    pipe.units = [
        WordEmbedder(config) if type(unit).__name__ == PROMPT_UNIT else unit for unit in pipe.units
    ]
    return pipe


def random_models(config: TinyVaceConfig = TINY_VACE, *, seed: int) -> tuple[Any, Any]:
    """Build the transformer and its control branch with weights drawn from a seed.

    Args:
        config: Dimensions.
        seed: Of the weights; the global random state is left as it was.

    Returns:
        A `WanModel` and a `VaceWanModel`, float32 on the CPU.
    """
    import torch
    from diffsynth.models.wan_video_dit import WanModel
    from diffsynth.models.wan_video_vace import VaceWanModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WanModel(**config.dit_arguments()), VaceWanModel(**config.vace_arguments())


def weights_info(path: Path | None = None) -> dict[str, Any]:
    """Tell what a weights file holds, without reading the weights into memory.

    Args:
        path: A safetensors file; by default the one in the package.

    Returns:
        The file's metadata with `trained` as a bool and `steps` and `seed` as integers, and
        `sha256`, `bytes` and `parameters`; `{"trained": False}` if there is no such file.
    """
    path = path or WEIGHTS_PATH
    if not path.is_file():
        return {"trained": False}
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    info: dict[str, Any] = dict(header.pop("__metadata__", {}))
    info["trained"] = info.get("trained") == "true"
    for name in ("steps", "seed"):
        if name in info:
            info[name] = int(info[name])
    info["parameters"] = sum(_size(entry["shape"]) for entry in header.values())
    info["bytes"] = len(content)
    info["sha256"] = hashlib.sha256(content).hexdigest()
    return info


def _size(shape: list[int]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size
