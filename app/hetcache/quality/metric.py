"""What a metric is: base classes for what plugins provide, the columns it fills, and its values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from attrs import field, frozen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hetcache_core import Registry

__all__ = [
    "Against",
    "Better",
    "Metric",
    "MetricColumn",
    "PromptMetric",
    "QualityTools",
    "Region",
    "SetMetric",
    "Value",
    "VideoMetric",
    "columns_of",
    "find_metrics",
]

Better = Literal["higher", "lower"]

Against = Literal["reference", "truth", "prompt"]
"""What a result is held against: the reference, which is the uncached run; the right answer; a text."""

Region = Literal["whole", "mask", "margin", "background"]
"""Where a metric is measured: see ``hetcache.quality.regions``."""

ORDER: Final = ("reference", "truth", "prompt")
"""Order of the columns by what a result is held against."""


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


class Metric(ABC):
    """A number that says how good a video is. Subclasses are final and hold no state.

    A plugin derives from one of the three below: ``VideoMetric`` holds a video against another one,
    ``PromptMetric`` against a text, and ``SetMetric`` many videos against as many others.

    Attributes:
        name: What it is registered as: letters, digits and "_"; begins the names of its columns.
        title: Its name for people.
        unit: Its unit, "" where it has none.
        better: Whether higher or lower values are better.
        digits: Digits after the point that are worth showing.
        against: What a comparison holds results against; a column for each.
        needs: The option that names its weights, such as "--lpips FILE"; "" where it needs none.
        footnote: A sentence that belongs below its tables, or "".
        rank: Columns of lower ranks come first, those of one rank by name.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    unit: ClassVar[str] = ""
    better: ClassVar[Better]
    digits: ClassVar[int] = 2
    against: ClassVar[tuple[Against, ...]]
    regions: ClassVar[tuple[Region, ...]] = ("whole",)
    needs: ClassVar[str] = ""
    footnote: ClassVar[str] = ""
    rank: ClassVar[int] = 100

    def check(self, tools: QualityTools) -> None:
        """Load the weights where they were given, so that bad ones are found before long work.

        Raises:
            ConfigError: They cannot be used.
        """

    @abstractmethod
    def values(
        self,
        result: NDArray[np.uint8],
        wanted: NDArray[np.uint8],
        areas: Mapping[str, NDArray[np.bool_]],
        prompt: str,
        tools: QualityTools,
    ) -> Mapping[str, Value]:
        """Measure one clip, by region; each of the three kinds of metrics takes of it what it needs."""

    def columns(self) -> tuple[MetricColumn, ...]:
        """Return a column for each thing that results are held against, and each region."""
        several = len(self.against) > 1
        return tuple(
            MetricColumn(
                metric=self,
                against=against,
                region=region,
                name="_".join((self.name, *([against] * several), *([region] * _is_part(region)))),
                title=self.title + (" to uncached" if against == "reference" else ""),
            )
            for against in self.against
            for region in self.regions
        )

    def truth_columns(self) -> tuple[MetricColumn, ...]:
        """Return the columns of an evaluation, which knows the right answer and no reference."""
        against: Against = "prompt" if "prompt" in self.against else "truth"
        return tuple(
            MetricColumn(
                metric=self,
                against=against,
                region=region,
                name="_".join((self.name, *([region] * _is_part(region)))),
                title=self.title,
            )
            for region in self.regions
        )


class VideoMetric(Metric):
    """Holds a video against another one: what is called a full-reference metric.

    Attributes:
        regions: Where it is measured; "mask", "margin" and "background" need a mask.
    """

    against: ClassVar[tuple[Against, ...]] = ("reference", "truth")

    def values(
        self,
        result: NDArray[np.uint8],
        wanted: NDArray[np.uint8],
        areas: Mapping[str, NDArray[np.bool_]],
        prompt: str,
        tools: QualityTools,
    ) -> Mapping[str, Value]:
        """Measure against the other video."""
        return self.measure(result, wanted, areas, tools)

    @abstractmethod
    def measure(
        self,
        result: NDArray[np.uint8],
        wanted: NDArray[np.uint8],
        areas: Mapping[str, NDArray[np.bool_]],
        tools: QualityTools,
    ) -> Mapping[str, Value]:
        """Measure one video.

        Args:
            result: (F, H, W, 3) uint8, what is judged.
            wanted: (F, H, W, 3) uint8, what it is held against.
            areas: (F, H, W) bool by the names of regions, ``True`` where a pixel belongs to it;
                "whole" alone where there is no mask.
            tools: Files of weights, and the device for networks.

        Returns:
            A value for each of ``regions`` that is in ``areas``.

        Raises:
            ConfigError: A file of weights cannot be used.
        """


class PromptMetric(Metric):
    """Holds a video against a text."""

    against: ClassVar[tuple[Against, ...]] = ("prompt",)

    def values(
        self,
        result: NDArray[np.uint8],
        wanted: NDArray[np.uint8],
        areas: Mapping[str, NDArray[np.bool_]],
        prompt: str,
        tools: QualityTools,
    ) -> Mapping[str, Value]:
        """Measure against the prompt."""
        return {"whole": self.measure(result, prompt, tools)}

    @abstractmethod
    def measure(self, result: NDArray[np.uint8], prompt: str, tools: QualityTools) -> Value:
        """Measure one video.

        Args:
            result: (F, H, W, 3) uint8, what is judged.
            prompt: What it should show.
            tools: Files of weights, and the device for networks.

        Raises:
            ConfigError: A file of weights cannot be used.
        """


class SetMetric(Metric):
    """Holds many videos against as many right answers, each described by a vector.

    Attributes:
        file: Name of the file that keeps the vector of a video, such as "features.npy".
    """

    against: ClassVar[tuple[Against, ...]] = ("truth",)
    file: ClassVar[str]

    def values(
        self,
        result: NDArray[np.uint8],
        wanted: NDArray[np.uint8],
        areas: Mapping[str, NDArray[np.bool_]],
        prompt: str,
        tools: QualityTools,
    ) -> Mapping[str, Value]:
        """Measure nothing of one clip."""
        return {}

    @abstractmethod
    def describe(
        self, frames: NDArray[np.uint8], tools: QualityTools
    ) -> NDArray[np.floating[Any]] | None:
        """Describe (F, H, W, 3) uint8 frames by (D,) numbers; None where weights are missing.

        Raises:
            ConfigError: A file of weights cannot be used.
        """

    @abstractmethod
    def distance(
        self, results: NDArray[np.floating[Any]], truths: NDArray[np.floating[Any]]
    ) -> Value:
        """Measure how far (n, D) results are from (m, D) right answers."""


@frozen(kw_only=True)
class MetricColumn:
    """One column that a metric fills.

    Attributes:
        metric: The metric.
        against: What results are held against.
        region: Where it is measured.
        name: What it is called in files.
        title: What it is called for people, without region and unit.
    """

    metric: Metric = field(repr=False)
    against: Against
    region: Region = "whole"
    name: str
    title: str

    @property
    def label(self) -> str:
        """Title and region."""
        return f"{self.title}, {self.region}" if _is_part(self.region) else self.title

    @property
    def heading(self) -> str:
        """Title, region and unit."""
        return f"{self.label}, {self.metric.unit}" if self.metric.unit else self.label

    @property
    def better(self) -> Better:
        """Whether higher or lower values are better."""
        return self.metric.better

    def show(self, value: Value, *, unit: bool = True) -> str:
        """Write a value for people."""
        if value.value is None:
            return value.note
        number = f"{value.value:.{self.metric.digits}f}"
        shown = f"{number} {self.metric.unit}" if unit and self.metric.unit else number
        return f"{shown} ({value.note})" if value.note else shown


def find_metrics(registry: Registry) -> tuple[Metric, ...]:
    """Load the metrics that plugins provide, in the order of their ranks and names.

    Raises:
        HetCacheError: One cannot be loaded.
    """
    loaded = (registry.load("metric", name)() for name in registry.names("metric"))
    return tuple(sorted(loaded, key=lambda metric: (metric.rank, metric.name)))


def columns_of(metrics: Iterable[Metric]) -> tuple[MetricColumn, ...]:
    """Return the columns of a comparison: by what results are held against, then by metric."""
    columns = [column for metric in metrics for column in metric.columns()]
    return tuple(sorted(columns, key=lambda column: ORDER.index(column.against)))


def _is_part(region: str) -> bool:
    return region != "whole"
