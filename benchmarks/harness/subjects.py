"""A model at a size, and its denoising loop with and without a session, timed step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

import numpy as np
from attrs import define, evolve, frozen
from numpy.typing import NDArray
from torch import Tensor

from harness.models import EMBEDDED, SEED, make_model, text_options, transformers
from harness.sizes import ClipSize, model_size
from harness.timing import Stopwatch, peak_mib, reset_peak
from hetcache.running.specs import PolicySpec
from hetcache_core import (
    Backbone,
    CachePolicy,
    ConfigError,
    EditRequest,
    Engine,
    ModelCall,
    RunInfo,
    RunTrunk,
    Session,
    StoreSettings,
    Trace,
    TrunkCall,
    accelerate,
)
from hetcache_core.session import StepCallback

EMBEDDED_CLIP: Final = "medium-moving-object-0"
MASK_HEIGHT: Final = 0.5
MASK_WIDTH: Final = 0.25
"""Sides of the edited box as shares of the picture's: an eighth of it is edited."""


@frozen(eq=False, kw_only=True)
class Denoised:
    """One run of the denoising loop.

    Attributes:
        laps_s: seconds of every step, the scheduler's part included.
        trace: what the session decided, or None for the bare pipeline.
        frames: (F, H, W, 3) uint8 result.
        peak_mib: most memory in use, see ``timing.Measured``; encoding and decoding are part of it.
    """

    laps_s: list[float]
    trace: Trace | None
    frames: NDArray[np.uint8]
    peak_mib: float

    @property
    def seconds(self) -> float:
        """Of the whole loop."""
        return sum(self.laps_s)


class _Catcher(Engine):
    """An engine that keeps what a backbone hands to it."""

    info: RunInfo
    trunk: TrunkCall
    latents: Tensor

    def begin_run(self, info: RunInfo) -> None:
        self.info = info
        super().begin_run(info)

    def model_call(self, call: ModelCall, forward: Callable[[RunTrunk], Tensor]) -> Tensor:
        def caught(run: RunTrunk) -> Tensor:
            def catching(trunk: TrunkCall) -> Tensor:
                self.trunk, self.latents = trunk, call.latents
                return run(trunk)

            return forward(catching)

        return super().model_call(call, caught)


@define(eq=False, kw_only=True)
class Subject:
    """A pipeline and an edit for it.

    Attributes:
        name: of the backbone.
        scale: of the model.
        size: of the clip.
        backbone: the adapter.
        pipeline: the library's.
        request: the edit; its steps are those of each run.
        device: of the model.
    """

    name: str
    scale: str
    size: ClipSize
    backbone: Backbone
    pipeline: Any
    request: EditRequest
    device: str

    def denoise(
        self,
        steps: int,
        policy: CachePolicy | PolicySpec | None = None,
        *,
        store: StoreSettings | None = None,
        on_step: StepCallback | None = None,
        guided: bool = False,
        watch: Stopwatch | None = None,
    ) -> Denoised:
        """Run the pipeline's own loop once.

        Args:
            steps: sampler steps.
            policy: what a session does, or None to run the bare pipeline.
            store: as in ``accelerate``.
            on_step: as in ``accelerate``.
            guided: run both guidance branches.
            watch: what is told of the end of each step, in place of a new one.
        """
        watch = watch or Stopwatch(self.device)
        options = {**self.request.options, **self._marks(watch)}
        scale = self.request.guidance_scale if guided else 1.0
        request = evolve(self.request, steps=steps, options=options, guidance_scale=scale)
        reset_peak(self.device)
        with self._session(policy, store, on_step) as run, self._first_call_marked(watch):
            frames = self.backbone.edit(self.pipeline, request)
        return Denoised(
            laps_s=watch.laps_s(),
            trace=None if run is None else run.trace,
            frames=frames,
            peak_mib=peak_mib(self.device),
        )

    def _session(
        self,
        policy: CachePolicy | PolicySpec | None,
        store: StoreSettings | None,
        on_step: StepCallback | None,
    ) -> AbstractContextManager[Session | None]:
        if policy is None:
            return nullcontext()
        keeping: dict[str, Any] = {"backbone": self.backbone, "store": store, "on_step": on_step}
        if isinstance(policy, CachePolicy):
            return accelerate(self.pipeline, policy, **keeping)
        return accelerate(
            self.pipeline,
            policy.name,
            settings=policy.settings,
            preset=policy.preset,
            target_speedup=policy.target_speedup,
            **keeping,
        )

    def caught(self) -> tuple[RunInfo, TrunkCall, Tensor]:
        """Return what the backbone tells the engine of an edit, its first trunk call and latents (B, …)."""
        catcher = _Catcher(policy=CachePolicy(name="full steps"))
        with self.backbone.attach(self.pipeline, catcher):
            self.denoise(1)
        return catcher.info, catcher.trunk, catcher.latents

    @property
    def _of_diffusers(self) -> bool:
        return hasattr(self.pipeline, "transformer")

    def _marks(self, watch: Stopwatch) -> dict[str, Any]:
        """Arguments with which the library's loop marks its steps."""
        if self._of_diffusers:

            def ended(_pipeline: Any, _index: int, _timestep: Any, _given: Any) -> dict[str, Any]:
                watch.mark()
                return {}

            return {"callback_on_step_end": ended}

        def marked(timesteps: Iterable[Any]) -> Iterator[Any]:
            watch.mark()
            for timestep in timesteps:
                yield timestep
                watch.mark()

        return {"progress_bar_cmd": marked}

    @contextmanager
    def _first_call_marked(self, watch: Stopwatch) -> Iterator[None]:
        """Mark where diffusers' loop begins: at the first call of the transformer."""
        if not self._of_diffusers:
            yield
            return
        handles: list[Any] = []

        def begun(*_: Any) -> None:
            watch.mark()
            handles.pop().remove()

        (model,) = transformers(self.pipeline)
        handles.append(model.register_forward_pre_hook(begun))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def make_subject(name: str, scale: str, size: ClipSize, device: str, dtype: str) -> Subject:
    """Make a subject; its clip is noise under a box, and one to edit for the embedded model.

    Args:
        name: of the backbone.
        scale: of the model.
        size: of the clip.
        device: where it runs.
        dtype: of weights and activations.

    Raises:
        ConfigError: the size does not fit the backbone.
    """
    backbone, pipeline = make_model(name, scale, device, dtype)
    _check(size, backbone, name)
    request = _embedded_edit(size) if name == EMBEDDED else _edit(size)
    options = text_options(pipeline, name, model_size(scale, name))
    if name == "wan-vace":
        options["tiled"] = False
    return Subject(
        name=name,
        scale="embedded" if name == EMBEDDED else scale,
        size=size,
        backbone=backbone,
        pipeline=pipeline,
        request=evolve(request, seed=SEED, options=options),
        device=device,
    )


def _edit(size: ClipSize) -> EditRequest:
    video, mask = clip(size)
    return EditRequest(video=video, mask=mask, prompt="a red circle", guidance_scale=5.0)


def _embedded_edit(size: ClipSize) -> EditRequest:
    """Take a clip that the embedded model can edit, so that its schedules and PSNR mean something.

    At the size of the embedded clip it is that one, else one of the evaluation set.
    """
    from hetcache_backends.tiny_vace.backbone import TinyVace
    from hetcache_backends.tiny_vace.clips import builtin_clips

    sample = TinyVace().sample()
    if ClipSize(*sample.mask.shape) == size:
        return sample
    specs = builtin_clips(frames=size.frames, height=size.height, width=size.width)
    drawn = next(spec for spec in specs if spec.name == EMBEDDED_CLIP).render()
    return evolve(sample, video=drawn.video, mask=drawn.mask > 0, prompt=drawn.prompt)


def clip(size: ClipSize) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draw noise (F, H, W, 3) and the mask (F, H, W) of a box in the middle."""
    shape = (size.frames, size.height, size.width)
    video = np.random.default_rng(SEED).integers(0, 256, (*shape, 3), np.uint8)
    mask = np.zeros(shape, np.bool_)
    tall, wide = round(size.height * MASK_HEIGHT), round(size.width * MASK_WIDTH)
    top, left = (size.height - tall) // 2, (size.width - wide) // 2
    for frame in range(size.frames):
        mask[frame, top : top + tall, left : left + wide] = True
    return video, mask


def _check(size: ClipSize, backbone: Backbone, name: str) -> None:
    multiple, stride = backbone.geometry.size_multiple, backbone.geometry.frame_stride
    if size.height % multiple or size.width % multiple or (size.frames - 1) % stride:
        raise ConfigError(
            f"{size} is no size of {name}",
            remedy=f"Height and width are multiples of {multiple}, and frames 1 more than one of "
            f"{stride}.",
        )
