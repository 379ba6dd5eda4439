"""What one comparison is asked to do: the options of ``hetcache compare``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import attrs
from attrs import frozen

from hetcache.running.limits import Precision, read_texts
from hetcache_core import ConfigError, setting
from hetcache_core.settings.declare import build

__all__ = ["CompareConfig", "GridName", "make_compare_config"]

GridName = Literal[
    "ablation-guidance", "ablation-context", "resolution", "length", "outpainting", "front"
]

REPEAT: Final = 3
"""Of three clocks the middle one is told from a disturbed one."""


@frozen(kw_only=True)
class CompareConfig:
    """One comparison, as it is asked for; its fields are the options of ``hetcache compare``."""

    output: str = setting("results", doc="folder for rows, videos, tables and plots")
    backbones: str = setting(
        "tiny-vace", doc="NAME or NAME=MODEL, by commas; =stand-in takes a small random model"
    )
    policies: str | None = setting(
        None,
        doc="NAME, NAME@fast, NAME@3x or NAME:setting=value;setting=value, by commas; or all, which "
        "is the default",
    )
    grid: GridName | None = setting(None, doc="a ready grid instead, or its clips and sizes")
    target_speedups: str | None = setting(
        None, doc="ask every policy for each of these speed-ups, by commas"
    )
    video: str | None = setting(None, doc="the video to edit")
    mask: str | None = setting(
        None, doc="where to edit: a video, a folder of pictures or one picture; white is edited"
    )
    prompt: str = setting("", doc="what to put into the mask")
    invert_mask: bool = setting(default=False, doc="black is edited instead of white")
    clips: str | None = setting(
        None, doc="a folder with a folder for each clip, or a clip set: builtin, builtin:small-*"
    )
    seeds: str = setting("0", doc="seeds of the noise, by commas")
    steps: int = setting(50, ge=1, doc="steps of the sampler")
    repeat: int = setting(REPEAT, ge=1, doc="how often every run is made, for the clock")
    frames: int | None = setting(None, ge=1, doc="how many frames to edit")
    height: int | None = setting(None, ge=1, doc="height that the models work at")
    width: int | None = setting(None, ge=1, doc="width that the models work at")
    cfg_scale: float | None = setting(
        None, ge=0, doc="strength of the guidance; 1 goes without; by default the model's own"
    )
    options: Mapping[str, object] = attrs.field(
        factory=dict, metadata={"doc": "further arguments of the model library's own call, by name"}
    )
    composite: bool = setting(
        default=False, doc="measure with the video's own pixels outside of the mask"
    )
    lpips: str | None = setting(None, doc="torchvision's weights of the network that LPIPS uses")
    video_features: str | None = setting(
        None, doc="a TorchScript, torch.export or ONNX file that describes videos, for VFID"
    )
    clip: str | None = setting(None, doc="folder with a CLIP checkpoint")
    max_cache_bytes: int | None = setting(
        None, ge=1, doc="most that a cache may hold, such as 500MB or 2GiB"
    )
    cache_dtype: Precision = setting(
        "auto", doc="precision of caches: auto (the model's), float32, bfloat16 or float16"
    )
    cache_device: str = setting(
        "auto", doc="where caches are kept: auto (with the model), cpu, cuda or cuda:N"
    )
    device: str = setting("auto", doc="auto, cpu, cuda or cuda:N")
    dtype: Precision = setting("auto", doc="auto, float32, bfloat16 or float16")
    engine: Literal["processes", "ray"] = setting(
        "processes", doc="what runs the workers: processes of this machine, or ray"
    )
    workers: int | None = setting(
        None, ge=1, doc="how many runs are made side by side; by default one for each CUDA device"
    )
    ray_address: str | None = setting(
        None, doc="a Ray cluster that is there; by default one is started on this machine"
    )
    resume: bool = setting(default=False, doc="go on with the comparison in the folder")


def make_compare_config(given: Mapping[str, Any]) -> CompareConfig:
    """Check the options of a comparison.

    Args:
        given: The options that were given, by the names of the fields.

    Raises:
        ConfigError: One is out of range, or goes with another that is missing.
    """
    config = build(CompareConfig, read_texts(given), where="hetcache compare")
    files = [f"--{name}" for name in ("video", "mask") if getattr(config, name) is not None]
    if config.clips is not None and files:
        raise ConfigError(
            f"--clips and {' and '.join(files)} name different clips",
            where="hetcache compare",
            remedy="Give one of the two.",
        )
    outside = config.grid == "outpainting"
    if config.mask is not None and (config.video is None or outside):
        what = "--grid outpainting makes its own mask" if outside else "--mask needs a --video"
        raise ConfigError(what, where="--mask")
    if config.video is not None and config.mask is None and not outside:
        raise ConfigError("--video needs a --mask", where="--video")
    if config.video is None and config.clips is None and config.grid is None:
        raise ConfigError(
            "no clips are named",
            where="hetcache compare",
            remedy="Give --video and --mask, or --clips FOLDER, or --clips builtin.",
        )
    if config.ray_address is not None and config.engine != "ray":
        raise ConfigError("goes with --engine ray", where="--ray-address")
    return config
