"""What one evaluation is asked to do: the options of ``hetcache evaluate``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from attrs import frozen

from hetcache_core import ConfigError, setting
from hetcache_core.settings.declare import build

__all__ = ["EvaluateConfig", "make_evaluate_config"]

TOKEN_PIXELS: Final = 16
"""Side of a token in pixels. Source: Wan2.1, whose codec divides by 8 and its transformer by 2."""


@frozen(kw_only=True)
class EvaluateConfig:
    """One evaluation, as it is asked for; its fields are the options of ``hetcache evaluate``."""

    gt: str = setting(doc="the ground truth: a video, or a folder of videos")
    pred: str = setting(doc="what is judged: a video, or a folder of videos of the same names")
    mask: str | None = setting(
        None, doc="where was edited, for PSNR by region; one for all, or a folder with one for each"
    )
    composite: str | None = setting(
        None, doc="measure with the pixels of this video, or of this folder's, outside of the mask"
    )
    prompt: str = setting("", doc="what the videos should show, for the CLIP score")
    token_pixels: int = setting(
        TOKEN_PIXELS, ge=1, doc="side of a token in pixels; the margin is two tokens wide"
    )
    lpips: str | None = setting(None, doc="torchvision's weights of the network that LPIPS uses")
    video_features: str | None = setting(
        None, doc="a TorchScript, torch.export or ONNX file that describes videos, for VFID"
    )
    clip: str | None = setting(None, doc="folder with a CLIP checkpoint")
    device: str = setting("auto", doc="auto, cpu, cuda or cuda:N")
    output: str | None = setting(None, doc="write the values of every clip to this CSV file")


def make_evaluate_config(given: Mapping[str, Any]) -> EvaluateConfig:
    """Check the options of an evaluation.

    Args:
        given: The options that were given, by the names of the fields.

    Raises:
        ConfigError: One is missing, out of range, or needs another.
    """
    missing = [name for name in ("gt", "pred") if name not in given]
    if missing:
        names = ", ".join("--" + name for name in missing)
        raise ConfigError(f"missing {names}", where="hetcache evaluate", setting=missing[0])
    config = build(EvaluateConfig, given, where="hetcache evaluate")
    if config.composite is not None and config.mask is None:
        raise ConfigError("compositing needs a --mask", where="--composite", setting="mask")
    return config
