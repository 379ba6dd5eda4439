"""``hetcache edit``: a video, a mask and a prompt go in, an edited video comes out."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import field, frozen

from hetcache.editing.config import EditConfig
from hetcache.editing.job import Job, prepare
from hetcache.editing.report import Comparison, Report, measure, speedup
from hetcache.media.video import write_video
from hetcache.quality.regions import compare
from hetcache.running.console import note
from hetcache.running.progress import Steps, step_bars
from hetcache.running.run import PolicyChoice, Runner, RunResult, check_policy, load
from hetcache.running.specs import REFERENCE

if TYPE_CHECKING:
    from hetcache_core import EditRequest, Registry, Trace

__all__ = ["Edited", "comment", "edit", "held_against", "run_both", "said_of"]


@frozen(eq=False, kw_only=True)
class Edited:
    """A finished edit.

    Attributes:
        output: The video that was written.
        trace: What every step did, and why.
        report: What it cost, what was written and what a person should know; with ``compare``, how it
            compares with the reference.
    """

    output: Path
    trace: Trace = field(repr=False)
    report: Report = field(repr=False)

    @property
    def speedup(self) -> float:
        """How many times fewer FLOPs were computed than in all steps in full."""
        return self.report.run.reached_speedup


def edit(config: EditConfig, registry: Registry) -> Edited:
    """Edit a video. Everything that can be wrong is checked before the model is loaded.

    Args:
        config: What is asked for.
        registry: Where the backbone and the policy are looked up.

    Raises:
        HetCacheError: Something is wrong with what was asked for; nothing was written.
    """
    policy = config.policy.choose(config.limits, config.cache, config.steps)
    check_policy(policy, registry)
    backbone = config.model.find(registry)
    device, dtype = config.place.choose()
    backbone.check_options(config.given.options)
    job = prepare(config, backbone)
    for text in job.notes:
        note(text)
    loaded = config.model.request(device, dtype)
    runner = load(backbone, loaded, registry, compiles=config.limits.compile)
    notice = backbone.notice(runner.pipeline)
    if notice:
        note(notice, kind="notice")
    with step_bars() as steps:
        if config.compare:
            reference, result = run_both(runner, job.request, policy, steps)
        else:
            reference, result = None, runner.run(job.request, policy, steps.track(policy.name))
    of_run = said_of(result.trace, notice)
    files = _write(config, job, result, notice)
    _, height, width, _ = job.request.video.shape
    report = Report(
        backbone=backbone.name,
        model=loaded.model,
        device=device,
        dtype=dtype,
        seed=config.seed,
        frames=len(job.request.video),
        height=height,
        width=width,
        fps=Fraction(job.clip.fps),
        load_seconds=runner.load_seconds,
        run=measure(result),
        comparison=held_against(result, reference, runner, job.request) if reference else None,
        files=files,
        notes=(*job.notes, *of_run),
        notice=notice,
    )
    return Edited(output=Path(config.output), trace=result.trace, report=report)


def run_both(
    runner: Runner, request: EditRequest, policy: PolicyChoice, steps: Steps
) -> tuple[RunResult, RunResult]:
    """Run an edit without and with caching, after one step that is not measured.

    The reference comes first. What a first call costs (allocations, kernels, plans) falls into
    the unmeasured step, so that it does not count against the reference.

    Args:
        runner: The loaded pipeline.
        request: The edit.
        policy: The policy of the second run.
        steps: Where progress is shown.

    Returns:
        The reference and the cached run.
    """
    runner.warm_up(request, policy)
    reference = runner.run(request, PolicyChoice(name=REFERENCE), steps.track("reference"))
    return reference, runner.run(request, policy, steps.track(policy.name))


def held_against(
    result: RunResult, reference: RunResult, runner: Runner, request: EditRequest
) -> Comparison:
    """Compare a run with the reference, on the frames as the model made them."""
    cost, run = measure(reference), measure(result)
    psnr = compare(
        result.frames,
        reference.frames,
        request.mask,
        runner.backbone.geometry.size_multiple,
    )
    met, inside = None, psnr["mask"]
    if run.target_quality is not None:
        met = inside.identical or (inside.db or 0.0) >= run.target_quality
    return Comparison(reference=cost, speedup=speedup(run, cost), psnr=psnr, met=met)


def said_of(trace: Trace, notice: str | None) -> tuple[str, ...]:
    """Say on stderr what a trace notes, and return it; the backbone's own notice is left out."""
    notes = tuple(text for text in trace.notes if text != notice)
    for text in notes:
        note(text)
    return notes


def comment(trace: Trace, notice: str | None) -> str:
    """Say in a video's metadata how it was made."""
    made = f"Edited by hetcache {version('hetcache')}: {trace.backbone}, policy {trace.policy}."
    return f"{made} {notice}" if notice else made


def _write(
    config: EditConfig, job: Job, result: RunResult, notice: str | None
) -> Mapping[str, str]:
    frames = job.finish(result.frames, composite=config.composite)
    about = comment(result.trace, notice)
    write_video(
        Path(config.output),
        frames,
        job.clip.fps,
        times=job.clip.times,
        aspect=job.clip.aspect,
        sound=job.clip.sound if config.audio else None,
        comment=about,
    )
    files = {"output": config.output}
    if config.trace is not None:
        result.trace.save(config.trace)
        files["trace"] = config.trace
    return files
