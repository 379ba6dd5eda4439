"""LPIPS: how far apart two videos are to a network that was trained on pictures."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, final

from attrs import frozen

from hetcache.quality.metric import QualityTools, Value, VideoMetric
from hetcache.quality.regions import as_pictures, parts
from hetcache_core import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

__all__ = ["Lpips", "lpips"]

Backbone = Literal["alex", "vgg", "squeeze"]

BACKBONES: Final[Mapping[Backbone, tuple[str, tuple[int, ...]]]] = {
    "alex": ("features.0.weight", (64, 3, 11, 11)),
    "vgg": ("features.28.weight", (512, 512, 3, 3)),
    "squeeze": ("features.12.expand3x3.weight", (256, 64, 3, 3)),
}
"""A weight that only this network has, and its shape. Source: torchvision.models 0.21."""

SMALLEST: Final = 32
"""Side below which the pooling layers of a backbone have nothing left to pool."""


@final
@frozen
class Lpips(VideoMetric):
    """LPIPS over whole frames."""

    name = "lpips"
    title = "LPIPS"
    better = "lower"
    digits = 4
    needs = "--lpips FILE"
    rank = 30

    def check(self, tools: QualityTools) -> None:
        """Load the weights."""
        if tools.lpips is not None:
            lpips_network(tools.lpips, tools.device)

    def measure(
        self,
        result: NDArray[np.uint8],
        wanted: NDArray[np.uint8],
        areas: Mapping[str, NDArray[np.bool_]],
        tools: QualityTools,
    ) -> Mapping[str, Value]:
        """Measure the whole frames."""
        return {"whole": lpips(result, wanted, tools)}


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
        return Value(value=None, note=f"needs {Lpips.needs}")
    if min(result.shape[1:3]) < SMALLEST:
        return Value(value=None, note=f"needs {SMALLEST} pixels a side")
    network = lpips_network(tools.lpips, tools.device)
    total = 0.0
    with torch.inference_mode():
        for part in parts(result):
            given, aim = (as_pictures(frames[part], tools.device) for frames in (result, wanted))
            total += float(network(given, aim, normalize=True).double().sum())
    return Value(value=total / len(result))


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


def _unreadable(path: Path, option: str, reason: str) -> ConfigError:
    return ConfigError(f"{path} cannot be read: {reason}", where=option)
