"""The CLIP score: how well a video goes with a prompt."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from attrs import frozen

from hetcache.quality.metric import PromptMetric, QualityTools, Value
from hetcache.quality.regions import parts, to_tensor
from hetcache_core import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["ClipScore", "clip_score"]


@final
@frozen
class ClipScore(PromptMetric):
    """The CLIP score, the mean over all frames."""

    name = "clip_score"
    title = "CLIP score"
    better = "higher"
    needs = "--clip FOLDER"
    rank = 60

    def check(self, tools: QualityTools) -> None:
        """Load the checkpoint."""
        if tools.clip is not None:
            clip_measure(tools.clip, tools.device)

    def measure(self, result: NDArray[np.uint8], prompt: str, tools: QualityTools) -> Value:
        """Measure all frames."""
        return clip_score(result, prompt, tools)


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
        return Value(value=None, note=f"needs {ClipScore.needs}")
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
