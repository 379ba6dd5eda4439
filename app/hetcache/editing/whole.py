"""A whole clip, window by window."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen

from hetcache.editing.kept import KeptWindows
from hetcache.running.run import PolicyChoice, Runner, RunResult
from hetcache.running.specs import REFERENCE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hetcache.editing.job import Job
    from hetcache.editing.windows import Window
    from hetcache.running.progress import Steps
    from hetcache_core import EditRequest
    from hetcache_core.session import StepCallback

__all__ = ["EditedWindow", "run_windows"]


@frozen(eq=False, kw_only=True)
class EditedWindow:
    """A window that the model has made.

    Attributes:
        window: Which frames.
        request: What was asked for.
        result: What came out.
        reference: What comes out of the same request without caching, or None where nobody asked.
    """

    window: Window
    request: EditRequest = field(repr=False)
    result: RunResult = field(repr=False)
    reference: RunResult | None = field(repr=False)


def run_windows(
    job: Job,
    runner: Runner,
    policy: PolicyChoice,
    steps: Steps,
    *,
    compare: bool,
    kept: KeptWindows | None,
) -> tuple[NDArray[np.uint8], list[EditedWindow]]:
    """Run the windows in which there is something to edit; the others stay as they are.

    Args:
        job: The edit.
        runner: The loaded pipeline.
        policy: The policy.
        steps: Where progress is shown.
        compare: Whether each window is run without caching as well, first.
        kept: Where finished windows are kept, or None where there is but one.

    Returns:
        (F, H, W, 3) uint8, the whole clip, and what was run.
    """
    result = job.clip.frames.copy()
    done: list[EditedWindow] = []
    for index, window in enumerate(job.windows):
        request = job.request(window, result)
        if request is None:
            continue
        if compare and not done:
            # What a first call costs (allocations, kernels, plans) counts against neither.
            runner.warm_up(request, policy)
        title = f"window {index + 1} of {len(job.windows)}, " if len(job.windows) > 1 else ""
        reference = None
        if compare:
            none = PolicyChoice(name=REFERENCE)
            track = steps.track(f"{title}1 of 2, reference")
            reference = _run(runner, request, none, track, kept, f"reference-{index:05}")
        track = steps.track(f"{title}{'2 of 2, ' if compare else ''}{policy.name}")
        made = _run(runner, request, policy, track, kept, f"cached-{index:05}")
        job.put(window, made.frames, result)
        done.append(EditedWindow(window=window, request=request, result=made, reference=reference))
    return result, done


def _run(
    runner: Runner,
    request: EditRequest,
    policy: PolicyChoice,
    track: StepCallback | None,
    kept: KeptWindows | None,
    name: str,
) -> RunResult:
    """Run a window, unless an earlier command has finished it."""
    result = kept.load(name, request.video.shape) if kept else None
    if result is None:
        result = runner.run(request, policy, track)
        if kept:
            kept.save(name, result)
    return result
