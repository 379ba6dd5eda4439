"""A model at a size, and its denoising loop with and without a session, timed step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Final

import numpy as np
import torch
from attrs import define, evolve, frozen
from numpy.typing import NDArray

from harness.models import EMBEDDED, SEED, make_model, text_options, transformers
from harness.sizes import ClipSize, model_size
from harness.timing import Stopwatch, peak_mib, reset_peak
from hetcache_core import (
    Backbone,
    CachePolicy,
    ConfigError,
    EditRequest,
    StoreSettings,
    Trace,
    accelerate,
)
from hetcache_core.session import StepCallback

MASK_SIDE: Final = 0.45
"""Side of the edited box as a share of the picture's: a fifth of it is edited."""


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
        policy: CachePolicy | str | None = None,
        *,
        target_speedup: float | None = None,
        store: StoreSettings | None = None,
        on_step: StepCallback | None = None,
        guided: bool = False,
    ) -> Denoised:
        """Run the pipeline's own loop once.

        Args:
            steps: sampler steps.
            policy: what a session does, or None to run the bare pipeline.
            target_speedup: as in ``accelerate``.
            store: as in ``accelerate``.
            on_step: as in ``accelerate``.
            guided: run both guidance branches.
        """
        watch = Stopwatch(self.device)
        options = {**self.request.options, **self._marks(watch)}
        scale = self.request.guidance_scale if guided else 1.0
        request = evolve(self.request, steps=steps, options=options, guidance_scale=scale)
        session = (
            nullcontext()
            if policy is None
            else accelerate(
                self.pipeline,
                policy,
                backbone=self.backbone,
                target_speedup=target_speedup,
                store=store,
                on_step=on_step,
            )
        )
        reset_peak(self.device)
        with session as run, self._first_call_marked(watch):
            frames = self.backbone.edit(self.pipeline, request)
        return Denoised(
            laps_s=watch.laps_s(),
            trace=None if run is None else run.trace,
            frames=frames,
            peak_mib=peak_mib(self.device),
        )

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


def make_subject(
    name: str, scale: str, size: ClipSize | None, device: str, dtype: str
) -> Subject:
    """Make a subject; its clip is noise under a moving box, or the backbone's own.

    Args:
        name: of the backbone.
        scale: of the model.
        size: of the clip; None takes the embedded one.
        device: where it runs.
        dtype: of weights and activations.

    Raises:
        ConfigError: the size does not fit the backbone, or there is no embedded clip.
    """
    backbone, pipeline = make_model(name, scale, device, dtype)
    sample = backbone.sample()
    if size is None:
        if sample is None:
            raise ConfigError(f"{name} has no embedded clip", remedy="Give a size.")
        request, size = sample, ClipSize(*sample.video.shape[:3])
    else:
        _check(size, backbone, name)
        video, mask = clip(size)
        request = EditRequest(
            video=video,
            mask=mask,
            prompt="a red circle",
            guidance_scale=backbone.guidance_scale if name == EMBEDDED else 5.0,
        )
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


def clip(size: ClipSize) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draw noise (F, H, W, 3) and the mask (F, H, W) of a box that moves a little."""
    shape = (size.frames, size.height, size.width)
    video = np.random.default_rng(SEED).integers(0, 256, (*shape, 3), np.uint8)
    mask = np.zeros(shape, np.bool_)
    tall, wide = round(size.height * MASK_SIDE), round(size.width * MASK_SIDE)
    top, last = (size.height - tall) // 2, size.width - wide
    for frame in range(size.frames):
        left = last // 4 + last // 4 * frame // max(size.frames - 1, 1)
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


def each(
    names: Iterable[str], scale: str, sizes: Iterable[ClipSize | None], device: str, dtype: str
) -> Iterator[Subject]:
    """Make subjects one after the other; each is freed before the next one."""
    for name in names:
        for size in sizes:
            subject = make_subject(name, scale, size, device, dtype)
            yield subject
            del subject
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


Runner = Callable[[], Denoised]
