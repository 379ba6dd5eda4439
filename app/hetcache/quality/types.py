"""The names of the quality metrics, and what one measurement of them is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

from attrs import field, frozen
from attrs.validators import in_

__all__ = [
    "METRICS",
    "NEEDS_CLIP",
    "NEEDS_LPIPS",
    "NEEDS_VIDEO_FEATURES",
    "MetricInfo",
    "QualityTools",
    "Value",
]

NEEDS_LPIPS: Final = "--lpips FILE"
NEEDS_VIDEO_FEATURES: Final = "--video-features FILE"
NEEDS_CLIP: Final = "--clip FOLDER"


@frozen(kw_only=True)
class QualityTools:
    """Files of weights that metrics need; None where the user gave none.

    None of them is ever downloaded: a metric without its file has no value, and says so.

    Attributes:
        lpips: torchvision's ImageNet weights of AlexNet, VGG16 or SqueezeNet 1.1, as it publishes
            them; which of the three is told by the file. The rest of LPIPS comes with torchmetrics.
        video_features: A network that turns (B, 3, F, H, W) float32 in [0, 1] into (B, D) floats:
            TorchScript (``.pt``), torch.export (``.pt2``) or ONNX (``.onnx``).
        clip: A folder with a CLIP checkpoint and its processor, as transformers saves both.
        device: Where the networks run.
    """

    lpips: Path | None = None
    video_features: Path | None = None
    clip: Path | None = None
    device: str = "cpu"


@frozen(kw_only=True)
class Value:
    """One metric's value.

    Attributes:
        value: The value in the metric's unit; None where there is none, and ``note`` says why.
        note: Why there is no value ("identical", "needs --lpips FILE", "no pixels"), or what to
            know about the one there is.
    """

    value: float | None
    note: str = ""


@frozen(kw_only=True)
class MetricInfo:
    """What a metric is.

    Attributes:
        title: Its name for people.
        measure: What is measured against ``against``; the same for two metrics that differ in that.
        unit: Its unit; empty where it has none.
        better: Whether higher or lower values are better.
        against: What the result is held against: the uncached output of the same seed, the ground
            truth or the prompt.
        needs: The option that names its weights; empty where it needs none.
        level: Whether it belongs to a clip or to a set of clips.
        digits: Digits after the point that are worth showing.
    """

    title: str
    measure: str
    unit: str = ""
    better: Literal["higher", "lower"] = field(validator=in_(("higher", "lower")))
    against: Literal["uncached", "truth", "prompt"] = field(
        validator=in_(("uncached", "truth", "prompt"))
    )
    needs: str = ""
    level: Literal["clip", "set"] = field(default="clip", validator=in_(("clip", "set")))
    digits: int = 2

    def show(self, value: Value) -> str:
        """Write a value of this metric for a table."""
        if value.value is None:
            return value.note
        number = f"{value.value:.{self.digits}f}"
        shown = f"{number} {self.unit}" if self.unit else number
        return f"{shown} ({value.note})" if value.note else shown


METRICS: Final[Mapping[str, MetricInfo]] = MappingProxyType(
    {
        "psnr_uncached": MetricInfo(
            measure="psnr", title="PSNR to uncached", unit="dB", better="higher", against="uncached"
        ),
        "psnr_uncached_mask": MetricInfo(
            measure="psnr_mask",
            title="PSNR to uncached, mask",
            unit="dB",
            better="higher",
            against="uncached",
        ),
        "psnr_uncached_margin": MetricInfo(
            measure="psnr_margin",
            title="PSNR to uncached, margin",
            unit="dB",
            better="higher",
            against="uncached",
        ),
        "psnr_uncached_background": MetricInfo(
            measure="psnr_background",
            title="PSNR to uncached, background",
            unit="dB",
            better="higher",
            against="uncached",
        ),
        "ssim_uncached": MetricInfo(
            measure="ssim", title="SSIM to uncached", better="higher", against="uncached", digits=4
        ),
        "lpips_uncached": MetricInfo(
            measure="lpips",
            title="LPIPS to uncached",
            better="lower",
            against="uncached",
            needs=NEEDS_LPIPS,
            digits=4,
        ),
        "flicker": MetricInfo(
            measure="flicker",
            title="flicker over uncached",
            unit="levels",
            better="lower",
            against="uncached",
        ),
        "psnr_truth": MetricInfo(
            measure="psnr", title="PSNR", unit="dB", better="higher", against="truth"
        ),
        "psnr_truth_mask": MetricInfo(
            measure="psnr_mask", title="PSNR, mask", unit="dB", better="higher", against="truth"
        ),
        "ssim_truth": MetricInfo(
            measure="ssim", title="SSIM", better="higher", against="truth", digits=4
        ),
        "lpips_truth": MetricInfo(
            measure="lpips",
            title="LPIPS",
            better="lower",
            against="truth",
            needs=NEEDS_LPIPS,
            digits=4,
        ),
        "vfid": MetricInfo(
            measure="vfid",
            title="VFID",
            better="lower",
            against="truth",
            needs=NEEDS_VIDEO_FEATURES,
            level="set",
            digits=4,
        ),
        "clip_score": MetricInfo(
            measure="clip_score",
            title="CLIP score",
            better="higher",
            against="prompt",
            needs=NEEDS_CLIP,
        ),
    }
)
"""The metrics by name; ``docs/metrics.md`` defines each."""
