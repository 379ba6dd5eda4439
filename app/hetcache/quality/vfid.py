"""VFID: the Fréchet distance between sets of videos, over features from a network of the user's."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

from attrs import frozen

from hetcache.quality.metric import QualityTools, SetMetric, Value
from hetcache.quality.regions import to_tensor
from hetcache_core import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

__all__ = ["Vfid", "frechet_distance", "video_features"]

OPTION: Final = "--video-features"

FEWEST: Final = 2
"""Videos in a set for which there is a covariance."""


@final
@frozen
class Vfid(SetMetric):
    """The Fréchet distance between results and right answers."""

    name = "vfid"
    title = "VFID"
    better = "lower"
    digits = 4
    needs = "--video-features FILE"
    footnote = "VFID: one value over all videos of a line."
    rank = 50
    file = "features.npy"

    def check(self, tools: QualityTools) -> None:
        """Load the network."""
        if tools.video_features is not None:
            features_network(tools.video_features, tools.device)

    def describe(
        self, frames: NDArray[np.uint8], tools: QualityTools
    ) -> NDArray[np.floating[Any]] | None:
        """Ask the network."""
        return video_features(frames, tools)

    def distance(
        self, results: NDArray[np.floating[Any]], truths: NDArray[np.floating[Any]]
    ) -> Value:
        """Measure between the Gaussians of the two sets."""
        return frechet_distance(results, truths)


def video_features(
    frames: NDArray[np.uint8], tools: QualityTools
) -> NDArray[np.floating[Any]] | None:
    """Describe a video by a vector, with the network that the user gave.

    Args:
        frames: (F, H, W, 3) uint8.
        tools: Names the network, which maps (B, 3, F, H, W) float32 in [0, 1] to (B, D).

    Returns:
        (D,) float64; None where no network was given.

    Raises:
        ConfigError: The file is no such network, or it does not take a video of this size.
    """
    import numpy as np

    if tools.video_features is None:
        return None
    network = features_network(tools.video_features, tools.device)
    video = to_tensor(frames).permute(3, 0, 1, 2)[None].float() / 255  # (1, 3, F, H, W)
    try:
        found = network(video)
    except Exception as error:  # a network in a file may raise anything
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"{tools.video_features} does not take a video of {tuple(video.shape)}: {reason}",
            where=OPTION,
        ) from error
    features: NDArray[np.float64] = np.asarray(found, dtype=np.float64)  # (1, D)
    if features.ndim != FEATURE_DIMS or len(features) != 1 or not np.isfinite(features).all():
        raise ConfigError(
            f"{tools.video_features} made {features.shape} of one video, not (1, D) finite numbers",
            where=OPTION,
        )
    vector: NDArray[np.float64] = features[0]  # (D,)
    return vector


def frechet_distance(one: NDArray[np.floating[Any]], other: NDArray[np.floating[Any]]) -> Value:
    """Measure the squared Fréchet distance between the Gaussians of two sets of features.

    Args:
        one: (n, D), a row for each video.
        other: (m, D).

    Returns:
        ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`` with means and covariances of the sets;
        noted where a set has no more videos than features, since the covariances are singular then
        and the distance says more about the number of videos than about the videos.

    Raises:
        ConfigError: The two have different numbers of features.

    Source: Heusel et al., NeurIPS 2017, for the distance, here torchmetrics'; Wang et al.,
    "Video-to-video synthesis", NeurIPS 2018, for features of videos.
    """
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    fewest, size = min(len(one), len(other)), one.shape[1]
    if fewest < FEWEST:
        return Value(value=None, note=f"needs {FEWEST} clips")
    if other.shape[1] != size:
        raise ConfigError(
            f"one set of videos has {size} features, the other {other.shape[1]}", where=OPTION
        )

    class Given(torch.nn.Identity):
        """Stands for the network, since the features are there already."""

        num_features = size

    measure = FrechetInceptionDistance(feature=Given())
    # The distance is the same around any centre; sums of squares are more exact around this one.
    centre = torch.from_numpy(one).double().mean(0)
    measure.update(torch.from_numpy(one).double() - centre, real=True)
    measure.update(torch.from_numpy(other).double() - centre, real=False)
    distance = max(0.0, float(measure.compute()))  # rounding may leave less than nothing
    few = f"{fewest} clips for {size} features" if fewest <= size else ""
    return Value(value=distance, note=few)


@lru_cache(maxsize=1)
def features_network(path: Path, device: str) -> Callable[[torch.Tensor], Any]:
    """Load the network that describes videos.

    Args:
        path: A TorchScript, torch.export or ONNX file.
        device: Where the network runs.

    Raises:
        ConfigError: It cannot be read.
    """
    if not path.is_file():
        raise ConfigError(f"there is no file {path}", where=OPTION)
    read = READERS.get(path.suffix.lower(), _torchscript)
    try:
        return read(path, device)
    except ConfigError:
        raise
    except Exception as error:  # what readers raise for damaged files has many types
        raise ConfigError(
            f"{path} is no network that can be read",
            where=OPTION,
            remedy="Give a TorchScript file, or a .pt2 file of torch.export, or a .onnx file.",
        ) from error


def _torchscript(path: Path, device: str) -> Callable[[torch.Tensor], Any]:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer torch advises the author of the file, not its user
        network = torch.jit.load(str(path), map_location=device).eval()
    return _on_torch(network, device)


def _exported(path: Path, device: str) -> Callable[[torch.Tensor], Any]:
    import torch

    return _on_torch(torch.export.load(path).module().to(device), device)


def _on_torch(network: torch.nn.Module, device: str) -> Callable[[torch.Tensor], Any]:
    import torch

    def run(video: torch.Tensor) -> Any:
        with torch.inference_mode():
            return network(video.to(device)).cpu()

    return run


def _onnx(path: Path, device: str) -> Callable[[torch.Tensor], Any]:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{path} needs onnxruntime", where=OPTION, remedy="Run: pip install 'hetcache[onnx]'"
        ) from error

    wanted = ["CPUExecutionProvider"]
    if device.startswith("cuda"):
        wanted.insert(0, "CUDAExecutionProvider")
    known = onnxruntime.get_available_providers()
    session = onnxruntime.InferenceSession(
        str(path), providers=[name for name in wanted if name in known]
    )
    (entry,) = session.get_inputs()

    def run(video: torch.Tensor) -> Any:
        return session.run(None, {entry.name: video.numpy()})[0]

    return run


READERS: Final = {".onnx": _onnx, ".pt2": _exported}
"""How a file is read, by its suffix; any other is TorchScript."""

FEATURE_DIMS: Final = 2
"""Dimensions of what a network makes of videos: (B, D)."""
