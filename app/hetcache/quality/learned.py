"""Metrics that need the weights of a network: LPIPS and CLIP score. Nothing is downloaded."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from hetcache.quality.pixels import as_pictures
from hetcache.quality.regions import parts, to_tensor
from hetcache.quality.types import NEEDS_CLIP, NEEDS_LPIPS, QualityTools, Value
from hetcache_core import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

__all__ = ["clip_measure", "clip_score", "lpips", "lpips_network"]

Backbone = Literal["alex", "vgg", "squeeze"]

BACKBONES: Final[Mapping[Backbone, tuple[str, tuple[int, ...]]]] = {
    "alex": ("features.0.weight", (64, 3, 11, 11)),
    "vgg": ("features.28.weight", (512, 512, 3, 3)),
    "squeeze": ("features.12.expand3x3.weight", (256, 64, 3, 3)),
}
"""A weight that only this network has, and its shape. Source: torchvision.models 0.21."""

SMALLEST: Final = 32
"""Side below which the pooling layers of a backbone have nothing left to pool."""


def lpips(result: NDArray[np.uint8], wanted: NDArray[np.uint8], tools: QualityTools) -> Value:
    """Measure LPIPS, the mean over whole frames; 0 where both are identical.

    Args:
        result: (F, H, W, 3) uint8.
        wanted: (F, H, W, 3) uint8.
        tools: Names the backbone's weights.

    Raises:
        ConfigError: The file holds no weights that LPIPS can use.

    Source: Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric",
    CVPR 2018, version 0.1; torchmetrics.
    """
    import torch

    if tools.lpips is None:
        return Value(value=None, note=f"needs {NEEDS_LPIPS}")
    if min(result.shape[1:3]) < SMALLEST:
        return Value(value=None, note=f"needs {SMALLEST} pixels a side")
    network = lpips_network(tools.lpips, tools.device)
    total = 0.0
    with torch.inference_mode():
        for part in parts(result):
            given, aim = (as_pictures(frames[part], tools.device) for frames in (result, wanted))
            total += float(network(given, aim, normalize=True).double().sum())
    return Value(value=total / len(result))


def clip_score(result: NDArray[np.uint8], prompt: str, tools: QualityTools) -> Value:
    """Measure how well frames go with a prompt: 100 times the cosine, at least 0.

    Args:
        result: (F, H, W, 3) uint8.
        prompt: The text.
        tools: Names the checkpoint.

    Returns:
        The mean over the frames, noted where the model took only the beginning of the prompt.

    Raises:
        ConfigError: The folder holds no CLIP model, or transformers is not installed.

    Source: Hessel et al., "CLIPScore", EMNLP 2021, with the weight of 100 that torchmetrics takes
    where the paper has 2.5.
    """
    import torch

    if tools.clip is None:
        return Value(value=None, note=f"needs {NEEDS_CLIP}")
    measure = clip_measure(tools.clip, tools.device)
    measure.reset()
    with torch.inference_mode(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for part in parts(result):
            frames = to_tensor(result[part]).to(tools.device)
            pictures = frames.permute(0, 3, 1, 2)  # (n, 3, H, W)
            measure.update(pictures, [prompt] * len(pictures))
    cut = any("caption longer" in str(warning.message) for warning in caught)
    return Value(value=float(measure.compute()), note="prompt cut" if cut else "")


@lru_cache(maxsize=1)
def lpips_network(path: Path, device: str) -> torch.nn.Module:
    """Build LPIPS with torchmetrics' linear layers and a backbone's weights from a file.

    Args:
        path: torchvision's file of weights.
        device: Where the network runs.

    Raises:
        ConfigError: The file holds no weights that LPIPS can use.
    """
    import torch
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise _unreadable(path, "--lpips", error.strerror or str(error)) from error
    except (
        Exception
    ) as error:  # what torch raises for files that are none of its own has many types
        raise _unreadable(path, "--lpips", "it is no file of weights") from error
    kind = _backbone(weights)
    if kind is None:
        raise ConfigError(
            f"{path} holds neither AlexNet's, VGG16's nor SqueezeNet 1.1's weights",
            where="--lpips",
            remedy="Take alexnet-owt-7be5be79.pth of torchvision; docs/metrics.md says where from.",
        )
    network = _NoTrainLpips(net=kind, pnet_rand=True)  # random at first, so nothing is downloaded
    # "slice2.3.weight" and "slices.1.3.weight" are both "features.3.weight" in torchvision.
    inner = {}
    for name in network.net.state_dict():
        _, _, rest = name.removeprefix("slices.").partition(".")
        inner[name] = weights[f"features.{rest}"]
    network.net.load_state_dict(inner)
    return network.to(device)


def _backbone(weights: Any) -> Backbone | None:
    if not isinstance(weights, dict):
        return None
    for kind, (name, shape) in BACKBONES.items():
        if tuple(getattr(weights.get(name), "shape", ())) == shape:
            return kind
    return None


@lru_cache(maxsize=1)
def clip_measure(path: Path, device: str) -> Any:
    """Let torchmetrics load a CLIP checkpoint.

    Args:
        path: The folder.
        device: Where the network runs.

    Raises:
        ConfigError: The folder holds no CLIP model, or transformers is not installed.
    """
    from torchmetrics.multimodal import CLIPScore

    if not (path / "config.json").is_file():
        raise ConfigError(
            f"{path} is no folder with a CLIP checkpoint: it has no config.json", where="--clip"
        )
    with tempfile.TemporaryDirectory() as folder:
        # torchmetrics tells the kind of a checkpoint by a word in its name.
        named = Path(folder) / "openai-clip"
        named.symlink_to(path.absolute(), target_is_directory=True)
        try:
            at: Any = str(named)  # annotated by the few names on the hub, but any folder is loaded
            measure = CLIPScore(model_name_or_path=at)
        except ModuleNotFoundError as error:
            raise ConfigError(
                "the CLIP score needs transformers",
                where="--clip",
                remedy="Run: pip install transformers",
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} holds no CLIP model: {error}", where="--clip") from error
    for name in ("get_image_features", "get_text_features"):
        setattr(measure.model, name, _projected(getattr(measure.model, name)))
    return measure.to(device)


def _projected(features: Callable[..., Any]) -> Callable[..., Any]:
    """Take the projected vector out of what transformers 5 returns; before, it was returned alone."""

    def vector(*given: Any, **named: Any) -> Any:
        found = features(*given, **named)
        return getattr(found, "pooler_output", found)  # (n, D)

    return vector


def _unreadable(path: Path, option: str, reason: str) -> ConfigError:
    return ConfigError(f"{path} cannot be read: {reason}", where=option)
