"""What a worker is sent, and what it answers: values that can be pickled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

from attrs import field, frozen

from hetcache.comparison.plan.footage import Footage
from hetcache.comparison.results.folder import Row, RowKey
from hetcache.running.specs import BackboneSpec, PolicySpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hetcache.comparison.work.bench import Bench
    from hetcache_core import ModelInfo

__all__ = ["Done", "Examine", "Found", "Open", "Reference", "Run", "Task"]


@frozen(kw_only=True)
class Found:
    """What a worker found when it loaded a model.

    Attributes:
        model: The model.
        notice: The backbone's own warning, or None.
        load_seconds: How long loading took.
        device: Where it runs.
        device_name: What that is called.
        dtype: In which precision.
        threads: Threads of the CPU.
    """

    model: ModelInfo
    notice: str | None
    load_seconds: float
    device: str
    device_name: str
    dtype: str
    threads: int


@frozen(eq=False, kw_only=True)
class Done:
    """What came out of a run.

    Attributes:
        row: The finished run.
        video: The bytes of an MP4 of what the run made; empty where it was refused.
        trace: The trace as JSON; empty where it was refused.
        features: What metrics of sets make of the video, by the names of files.
        reference: The exact frames as the bytes of an NPZ, where they are the reference of others.
        frame_psnr: (F,) dB, how close each frame is to the uncached one in the mask.
    """

    row: Row
    video: bytes = field(default=b"", repr=False)
    trace: str = field(default="", repr=False)
    features: Mapping[str, NDArray[np.floating[Any]]] = field(factory=dict, repr=False)
    reference: bytes = field(default=b"", repr=False)
    frame_psnr: NDArray[np.float64] | None = field(default=None, repr=False)


class Task(ABC):
    """Something that a worker is sent. Subclasses are frozen values that can be pickled."""

    @abstractmethod
    def perform(self, bench: Bench) -> Any:
        """Do it, and return the answer."""


@final
@frozen(kw_only=True)
class Examine(Task):
    """Load a model and describe it; answers with ``Found``."""

    backbone: BackboneSpec

    def perform(self, bench: Bench) -> Found:
        """Do it."""
        return bench.examine(self.backbone)


@final
@frozen(eq=False, kw_only=True)
class Open(Task):
    """Take a clip and load the model for it; answers with features of the right answer.

    Attributes:
        backbone: The model.
        footage: The clip.
        seed: Seed of the noise.
        steps: Steps of the sampler.
        reference: The exact frames of the uncached run as the bytes of an NPZ, or None.
    """

    backbone: BackboneSpec
    footage: Footage
    seed: int
    steps: int
    reference: bytes | None = field(default=None, repr=False)

    def perform(self, bench: Bench) -> dict[str, NDArray[np.floating[Any]]]:
        """Do it."""
        return bench.open(self)


@final
@frozen
class Reference(Task):
    """Run the open clip uncached once more; answers with the bytes of an NPZ."""

    def perform(self, bench: Bench) -> bytes:
        """Do it."""
        return bench.reference()


@final
@frozen(kw_only=True)
class Run(Task):
    """Run a policy on the open clip; answers with ``Done``.

    Attributes:
        key: Which run it is.
        policy: The policy.
    """

    key: RowKey
    policy: PolicySpec

    def perform(self, bench: Bench) -> Done:
        """Do it."""
        return bench.run(self.key, self.policy)
