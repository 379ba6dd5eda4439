"""What a worker does: load a model, take a clip, run a policy on it, and measure the result.

A worker holds one model and one clip at a time. It is sent tasks, which are small values, performs
them one after the other, and answers with values: it writes no file of the comparison itself, so
that it may run on another machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from attrs import define, evolve, field, frozen

from hetcache.comparison.plan.footage import (
    Footage,
    frames_from_bytes,
    frames_to_bytes,
    video_to_bytes,
)
from hetcache.comparison.results.folder import Row, RowKey
from hetcache.comparison.work.tasks import Done, Found
from hetcache.quality.measure import check_tools, describe, measure_quality
from hetcache.quality.metric import Metric, QualityTools, find_metrics
from hetcache.quality.psnr import frame_psnr
from hetcache.running.device import choose_device, choose_dtype
from hetcache.running.limits import CacheConfig, store_settings
from hetcache.running.run import PolicyChoice, Runner, RunResult, load
from hetcache.running.specs import REFERENCE, BackboneSpec, PolicySpec
from hetcache_core import (
    CacheBudgetError,
    CacheStateError,
    ConfigError,
    EditRequest,
    HetCacheError,
    NonFiniteError,
    UnsupportedBackboneError,
)
from hetcache_core.session import resolve_policy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hetcache.comparison.work.tasks import Open
    from hetcache_core import Registry

__all__ = ["Bench", "BenchSettings"]


REFUSALS: Final = (CacheBudgetError, ConfigError, NonFiniteError, UnsupportedBackboneError)
"""What says that a model cannot carry a policy; anything else is a fault of one of the two."""


@frozen(kw_only=True)
class BenchSettings:
    """What all runs of a comparison have in common.

    Attributes:
        device: "auto", "cpu", "cuda" or "cuda:N".
        dtype: "auto" or a precision.
        threads: Threads of the CPU, or None for torch's own choice.
        cache: How the cache is kept.
        tools: Files of weights for metrics; they run on the device of the model.
        composite: Measure after the video's own pixels were put back outside of the mask.
        cfg_scale: Strength of the guidance, or None for the backbone's own.
        options: Arguments of the model library's own call.
    """

    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    cache: CacheConfig = field(factory=CacheConfig)
    tools: QualityTools = field(factory=QualityTools)
    composite: bool = False
    cfg_scale: float | None = None
    options: Mapping[str, Any] = field(factory=dict)


@define(eq=False)
class Bench:
    """A worker's state: one loaded model, one clip, and the uncached output to compare with."""

    settings: BenchSettings
    registry: Registry
    _metrics: tuple[Metric, ...] = field(init=False)
    _spec: BackboneSpec | None = field(default=None, init=False)
    _runner: Runner | None = field(default=None, init=False)
    _warm: set[tuple[int, ...]] = field(factory=set, init=False)
    _footage: Footage | None = field(default=None, init=False)
    _request: EditRequest | None = field(default=None, init=False)
    _reference: NDArray[np.uint8] | None = field(default=None, init=False)

    @_metrics.default
    def _load_metrics(self) -> tuple[Metric, ...]:
        return find_metrics(self.registry)

    def examine(self, spec: BackboneSpec) -> Found:
        """Load the weights of metrics and a model, and describe the model."""
        import torch

        check_tools(self._metrics, self._tools)
        runner = self._load(spec)
        device = self.device
        cuda = device.startswith("cuda")
        return Found(
            model=runner.backbone.describe(runner.pipeline),
            notice=runner.backbone.notice(runner.pipeline),
            load_seconds=runner.load_seconds,
            device=device,
            device_name=torch.cuda.get_device_name(device) if cuda else _processor(),
            dtype=choose_dtype(self.settings.dtype, device),
            threads=torch.get_num_threads(),
        )

    @property
    def device(self) -> str:
        """The device that models run on."""
        return choose_device(self.settings.device)

    @property
    def _tools(self) -> QualityTools:
        return evolve(self.settings.tools, device=self.device)

    def open(self, task: Open) -> dict[str, NDArray[np.floating[Any]]]:
        """Take a clip, load the model and run one step that is not measured.

        Returns:
            What metrics of sets make of the right answer, by the names of files.
        """
        runner = self._load(task.backbone)
        clip, settings = task.footage.clip, self.settings
        scale = settings.cfg_scale
        request = EditRequest(
            video=clip.video,
            mask=clip.mask,
            prompt=clip.prompt,
            steps=task.steps,
            seed=task.seed,
            guidance_scale=runner.backbone.guidance_scale if scale is None else scale,
            options=dict(settings.options),
        )
        self._footage, self._request = task.footage, request
        self._reference = (
            None if task.reference is None else frames_from_bytes(task.reference, clip.video.shape)
        )
        if clip.video.shape not in self._warm:
            runner.warm_up(request)
            self._warm.add(clip.video.shape)
        return {} if clip.truth is None else describe(self._metrics, clip.truth, self._tools)

    def reference(self) -> bytes:
        """Run the open clip uncached, and keep what it makes to compare with."""
        runner, request, _ = self._opened()
        frames = runner.run(request, PolicyChoice(name=REFERENCE)).frames
        self._reference = frames
        return frames_to_bytes(frames)

    def run(self, key: RowKey, policy: PolicySpec) -> Done:
        """Run a policy on the open clip, and measure what it makes.

        A policy that the model cannot carry makes a row that says so.
        """
        runner, request, footage = self._opened()
        try:
            result = runner.run(request, self._choice(policy))
        except REFUSALS as error:
            return Done(row=_refused(key, policy, error))
        first = self._reference is None
        if first and key.policy == REFERENCE:
            self._reference = result.frames
        if self._reference is None:
            raise CacheStateError(f"{key.id} has no uncached run to be held against")
        return self._measured(key, policy, result, footage, store=first)

    def _measured(
        self, key: RowKey, policy: PolicySpec, result: RunResult, footage: Footage, *, store: bool
    ) -> Done:
        runner, request, _ = self._opened()
        judged, reference = self._composited(result.frames), self._composited(self._reference)
        values = measure_quality(
            self._metrics,
            judged,
            mask=request.mask,
            token_pixels=runner.backbone.geometry.size_multiple,
            reference=reference,
            truth=footage.clip.truth,
            prompt=footage.clip.prompt,
            tools=self._tools,
        )
        notice = runner.backbone.notice(runner.pipeline)
        totals = result.trace.totals()
        row = Row(
            key=key,
            note=" ".join(text for text in result.trace.notes if text != notice),
            settings=result.trace.settings,
            target_speedup=policy.target_speedup,
            modes="".join(mode.value[0] for mode in result.trace.modes()),
            flops=totals.flops,
            flops_full=totals.flops_full,
            denoise_seconds=totals.denoise_seconds,
            total_seconds=result.total_seconds,
            peak_cache_bytes=totals.peak_cache_bytes,
            metrics={name: value.value for name, value in values.items()},
            metric_notes={name: value.note for name, value in values.items() if value.note},
        )
        return Done(
            row=row,
            video=video_to_bytes(result.frames, footage),
            trace=json.dumps(result.trace.to_dict(), indent=1) + "\n",
            features=describe(self._metrics, judged, self._tools),
            reference=frames_to_bytes(result.frames) if store else b"",
            frame_psnr=frame_psnr(judged, reference, request.mask),
        )

    def _composited(self, frames: Any) -> NDArray[np.uint8]:
        import numpy as np

        _, request, _ = self._opened()
        made: NDArray[np.uint8] = frames
        if self.settings.composite:
            made = np.where(request.mask[..., None], frames, request.video)
        return made

    def _choice(self, policy: PolicySpec) -> PolicyChoice:
        """Say how a policy is run, after making sure that it can meet what is asked of it.

        Raises:
            HetCacheError: It cannot run on the model, or not at an asked speed-up.
        """
        runner, _, _ = self._opened()
        choice = PolicyChoice(
            name=policy.name,
            settings=policy.settings,
            preset=policy.preset,
            target_speedup=policy.target_speedup,
            store=store_settings(self.settings.cache),
        )
        if policy.target_speedup is None:
            return choice
        given: dict[str, object] = {}
        if len(policy.names) == 1:
            kind = self.registry.policy(policy.name)
            given = dict(kind.at_speedup(policy.target_speedup))
        if given:
            return evolve(choice, settings={**given, **policy.settings}, target_speedup=None)
        model = runner.backbone.describe(runner.pipeline)
        composed, _ = resolve_policy(
            policy.name, policy.settings, policy.preset, model, self.registry
        )
        if composed.step is None:
            raise ConfigError(
                f"policy {policy.name} decides no whole steps, so no speed-up can be asked of it",
                remedy="Its settings say what it leaves out.",
            )
        return choice

    def _load(self, spec: BackboneSpec) -> Runner:
        if self._runner is not None and self._spec == spec:
            return self._runner
        self._runner = self._spec = None  # the memory of one model may not be enough for two
        self._warm.clear()
        backbone = self.registry.backbone(spec.name)().for_model(spec.model or None)
        request = spec.request(self.device, choose_dtype(self.settings.dtype, self.device))
        self._runner = load(backbone, request, self.registry)
        self._spec = spec
        return self._runner

    def _opened(self) -> tuple[Runner, EditRequest, Footage]:
        if self._runner is None or self._request is None or self._footage is None:
            raise CacheStateError("this worker was given no clip yet")
        return self._runner, self._request, self._footage


def _refused(key: RowKey, policy: PolicySpec, error: HetCacheError) -> Row:
    return Row(
        key=key,
        status="refused",
        note=str(error),
        settings=policy.settings,
        target_speedup=policy.target_speedup,
    )


def _processor() -> str:
    """Name the CPU, as far as the system says."""
    import platform

    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    names = [line.partition(":")[2] for line in text.splitlines() if line.startswith("model name")]
    return names[0].strip() if names else platform.processor() or platform.machine()
