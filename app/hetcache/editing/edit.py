"""``hetcache edit``: a video, a mask and a prompt go in, an edited video comes out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import field, frozen

from hetcache.editing.config import EditConfig
from hetcache.editing.job import Job, prepare
from hetcache.editing.kept import KeptWindows
from hetcache.editing.report import Comparison, Report, measure, speedup
from hetcache.editing.strip import outlined, side_by_side, strip
from hetcache.editing.texts import texts_once
from hetcache.editing.whole import EditedWindow, run_windows
from hetcache.media.options import PICTURE_SUFFIX
from hetcache.media.video import write_image, write_video
from hetcache.quality.regions import compare
from hetcache.running.console import note
from hetcache.running.outputs import check_outputs
from hetcache.running.progress import step_bars
from hetcache.running.run import Runner, check_policy, load
from hetcache_core import ConfigError
from hetcache_core.files import replacing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hetcache_core import Backbone, LoadRequest, Ranks, Registry, Trace

__all__ = ["Edited", "comment", "edit", "held_against", "said_of"]


@frozen(eq=False, kw_only=True)
class Edited:
    """A finished edit.

    Attributes:
        output: The video that was written.
        traces: What every step did, and why, of each window that was run.
        report: What it cost, what was written and what a person should know; with ``compare``, how it
            compares with the reference.
    """

    output: Path
    traces: tuple[Trace, ...] = field(repr=False)
    report: Report = field(repr=False)

    @property
    def trace(self) -> Trace:
        """The trace of the first window; most clips have one."""
        return self.traces[0]

    @property
    def speedup(self) -> float:
        """How many times fewer FLOPs were computed than in all steps in full."""
        return self.report.run.reached_speedup


def edit(
    config: EditConfig,
    registry: Registry,
    *,
    loaded: dict[Any, Runner] | None = None,
    ranks: Ranks | None = None,
) -> Edited:
    """Edit a video or a picture. Everything that can be wrong is checked before the model is loaded.

    Args:
        config: What is asked for.
        registry: Where the backbone and the policy are looked up.
        loaded: What earlier edits have loaded; a model that is in there is not loaded again, and another
            one takes its place.
        ranks: All processes that share the rows of the model and call this; the first one writes.

    Raises:
        HetCacheError: Something is wrong with what was asked for; no output was written, and finished
            windows of a long clip are kept.
    """
    if config.gpus is not None and ranks is None:
        raise ConfigError(
            "several GPUs share one edit of the command line, no list of jobs and no call from Python",
            where="--gpus",
            remedy="Run hetcache edit for each, or leave it out.",
        )
    policy = config.policy.choose(config.limits, config.cache, config.steps)
    check_policy(policy, registry)
    backbone = config.model.find(registry)
    device, dtype = config.place.choose()
    backbone.check_options(config.given.options)
    job = prepare(config, backbone)
    for text in job.notes:
        note(text)
    traces = _traces(config, job)
    if traces:
        check_outputs(config, beside=traces)
    request = config.model.request(device, dtype)
    runner = _loaded(backbone, request, registry, config.limits.compile, loaded)
    notice = backbone.notice(runner.pipeline)
    if notice:
        note(notice, kind="notice")
    if ranks is not None:
        backbone.share_rows(runner.pipeline)
    # Windows of an earlier run would be there for the first process alone.
    kept = KeptWindows.of(config) if len(job.windows) > 1 and ranks is None else None
    with step_bars() as steps, _goes_on(kept, job), texts_once(runner.pipeline):
        frames, done = run_windows(job, runner, policy, steps, compare=config.compare, kept=kept)
        of_run = said_of([each.result.trace for each in done], notice)
        if ranks is not None:
            ranks.meet()  # nothing is written where one has failed
        writes = ranks is None or ranks.rank == 0
        files = _write(config, job, frames, done, traces, notice) if writes else {}
    if kept:
        kept.remove()
    height, width = job.fit.size
    report = Report(
        backbone=backbone.name,
        model=request.model,
        device=device,
        dtype=dtype,
        seed=config.seed,
        frames=len(frames),
        windows=len(done),
        height=height,
        width=width,
        fps=Fraction(job.clip.fps),
        load_seconds=runner.load_seconds,
        run=measure([each.result for each in done]),
        comparison=held_against(done, runner) if config.compare else None,
        files=files,
        notes=(*job.notes, *of_run),
        notice=notice,
    )
    return Edited(
        output=Path(config.output),
        traces=tuple(each.result.trace for each in done),
        report=report,
    )


def _loaded(
    backbone: Backbone,
    request: LoadRequest,
    registry: Registry,
    compiles: bool,  # noqa: FBT001 - one of what tells models apart
    loaded: dict[Any, Runner] | None,
) -> Runner:
    key = (backbone.name, request, compiles)
    if loaded is None or key not in loaded:
        if loaded is not None:
            loaded.clear()  # two may not fit into memory
        runner = load(backbone, request, registry, compiles=compiles)
        if loaded is None:
            return runner
        loaded[key] = runner
    return loaded[key]


@contextmanager
def _goes_on(kept: KeptWindows | None, job: Job) -> Iterator[None]:
    """Say what of a long clip is kept where it does not come to its end."""
    if kept and kept.count():
        note(f"{kept.count()} of {len(job.windows)} windows are finished from an earlier run")
    try:
        yield
    except BaseException:
        if kept and kept.count():
            note(
                f"{kept.count()} of {len(job.windows)} windows are kept in {kept.folder}; the same "
                "command goes on from there"
            )
        raise


def held_against(done: Sequence[EditedWindow], runner: Runner) -> Comparison:
    """Compare runs with their references, on the frames as the model made them."""
    references = [each.reference for each in done if each.reference is not None]
    run, cost = measure([each.result for each in done]), measure(references)
    psnr = compare(
        np.concatenate([each.result.frames for each in done]),
        np.concatenate([reference.frames for reference in references]),
        np.concatenate([each.request.mask for each in done]),
        runner.backbone.geometry.size_multiple,
    )
    met, inside = None, psnr["mask"]
    if run.target_quality is not None:
        met = inside.identical or (inside.db or 0.0) >= run.target_quality
    return Comparison(reference=cost, speedup=speedup(run, cost), psnr=psnr, met=met)


def said_of(traces: Sequence[Trace], notice: str | None) -> tuple[str, ...]:
    """Say on stderr what traces note, each note once, and return it; without the backbone's notice."""
    said = dict.fromkeys(text for trace in traces for text in trace.notes if text != notice)
    for text in said:
        note(text)
    return tuple(said)


def comment(trace: Trace, notice: str | None) -> str:
    """Say in a video's metadata how it was made."""
    made = f"Edited by hetcache {version('hetcache')}: {trace.backbone}, policy {trace.policy}."
    return f"{made} {notice}" if notice else made


def _write(
    config: EditConfig,
    job: Job,
    frames: NDArray[np.uint8],
    done: Sequence[EditedWindow],
    traces: Mapping[str, Path],
    notice: str | None,
) -> Mapping[str, str]:
    said = comment(done[0].result.trace, notice)
    _save(job, Path(config.output), frames, sound=config.audio, comment=said)
    files = {"output": config.output}
    if config.compare:
        files |= _write_comparison(config, job, frames, done)
    if len(job.windows) == 1 and config.trace is not None:
        done[0].result.trace.save(config.trace)
        return {**files, "trace": config.trace}
    for each in done if traces else ():
        role = f"trace {job.windows.index(each.window) + 1}"
        each.result.trace.save(traces[role])
        files[role] = str(traces[role])
    return files


def _save(
    job: Job,
    path: Path,
    frames: NDArray[np.uint8],
    *,
    sound: bool = False,
    comment: str = "",
) -> None:
    """Write a video or a picture, by the name of the file."""
    if path.suffix.lower() == PICTURE_SUFFIX:
        write_image(path, frames, comment=comment)
        return
    clip = job.clip
    write_video(
        path,
        frames,
        clip.fps,
        times=clip.times,
        aspect=clip.aspect,
        sound=clip.sound if sound else None,
        comment=comment,
    )


def _traces(config: EditConfig, job: Job) -> dict[str, Path]:
    """Name the traces of the windows, by role, where there are several."""
    if config.trace in {None, os.devnull} or len(job.windows) == 1:
        return {}
    path, numbers = Path(str(config.trace)), range(1, 1 + len(job.windows))
    return {f"trace {number}": path.with_stem(f"{path.stem}-{number}") for number in numbers}


def _write_comparison(
    config: EditConfig, job: Job, frames: NDArray[np.uint8], done: Sequence[EditedWindow]
) -> dict[str, str]:
    """Write what the reference made, everything side by side, and a strip of frames."""
    reference, policy = job.clip.frames.copy(), done[0].result.trace.policy
    for each in done:
        if each.reference is not None:
            job.put(each.window, each.reference.frames, reference)
    marked = {"source, and outline of the mask": outlined(job.clip.frames, job.mask)}
    videos = {
        "reference": reference,
        "side by side": side_by_side({**marked, "reference": reference, policy: frames}),
    }
    files = config.beside()
    for role, made in videos.items():
        _save(job, files[role], made)
    picture = strip(job.clip.frames, job.mask, reference, frames, policy=policy)
    with replacing(files["strip"]) as part:
        picture.save(part)
    return {role: str(path) for role, path in files.items()}
