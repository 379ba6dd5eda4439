"""``hetcache demo``: a backbone's embedded clip, without and with caching, side by side."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import evolve

from hetcache.editing.config import DemoConfig
from hetcache.editing.edit import comment, held_against, said_of
from hetcache.editing.report import Report, measure
from hetcache.editing.strip import outlined, side_by_side, strip
from hetcache.editing.whole import EditedWindow
from hetcache.editing.windows import Window
from hetcache.media.video import write_video
from hetcache.running.console import note
from hetcache.running.progress import step_bars
from hetcache.running.run import PolicyChoice, RunResult, check_policy, load
from hetcache.running.specs import REFERENCE
from hetcache_core import ConfigError
from hetcache_core.files import replacing, write_text

if TYPE_CHECKING:
    from hetcache_core import EditRequest, Registry

__all__ = ["demo"]

FPS: Final = Fraction(16)
"""Rate of the demonstration's videos. Source: what Wan2.1 was trained at."""


def demo(config: DemoConfig, registry: Registry) -> Report:
    """Edit a backbone's embedded clip without and with caching, and write both.

    The videos show what the model made, without compositing: so they show as well what caching
    does to the surroundings of the edit.

    Args:
        config: What is asked for.
        registry: Where the backbone and the policy are looked up.

    Raises:
        HetCacheError: Something is wrong with what was asked for, or the backbone has no clip.
    """
    folder = Path(config.output)
    policy = config.policy.choose(config.limits, config.cache, config.steps)
    check_policy(policy, registry)
    backbone = config.model.find(registry)
    device, dtype = config.place.choose()
    sample = backbone.sample()
    if sample is None:
        raise ConfigError(
            f"the backbone {backbone.name} has no embedded clip",
            where="--backbone",
            remedy="Take --backbone tiny-vace, or `hetcache edit --compare` with a clip of yours.",
        )
    request = evolve(sample, steps=config.steps, seed=config.seed)
    loaded = config.model.request(device, dtype)
    runner = load(backbone, loaded, registry, compiles=config.limits.compile)
    notice = backbone.notice(runner.pipeline)
    if notice:
        note(notice, kind="notice")
    with step_bars() as steps:
        # What a first call costs (allocations, kernels, plans) counts against neither run.
        runner.warm_up(request, policy)
        none = PolicyChoice(name=REFERENCE)
        reference = runner.run(request, none, steps.track("1 of 2, reference"))
        result = runner.run(request, policy, steps.track(f"2 of 2, {policy.name}"))
    whole = EditedWindow(
        window=Window(start=0, stop=len(request.video)),
        request=request,
        result=result,
        reference=reference,
    )
    frames, height, width, _ = request.video.shape
    report = Report(
        backbone=backbone.name,
        model=loaded.model,
        device=device,
        dtype=dtype,
        seed=config.seed,
        frames=frames,
        windows=1,
        height=height,
        width=width,
        fps=FPS,
        load_seconds=runner.load_seconds,
        run=measure([result]),
        comparison=held_against([whole], runner),
        files=_write(folder, request, reference, result, notice),
        notes=said_of([result.trace], notice),
        notice=notice,
    )
    write_text(folder / "summary.json", json.dumps(report.to_dict(), indent=2) + "\n")
    return report


def _write(
    folder: Path,
    request: EditRequest,
    reference: RunResult,
    result: RunResult,
    notice: str | None,
) -> dict[str, str]:
    """Write everything but the summary, and list all of it by role."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made: {error.strerror}", where="--output") from error
    policy = result.trace.policy
    marked = outlined(request.video, request.mask)
    columns = {
        "source, and outline of the mask": marked,
        "reference": reference.frames,
        policy: result.frames,
    }
    videos = {
        "source": request.video,
        "reference": reference.frames,
        policy: result.frames,
        "side_by_side": side_by_side(columns),
    }
    about = comment(result.trace, notice)
    files = {}
    for name, frames in videos.items():
        files[name] = folder / f"{name}.mp4"
        write_video(files[name], frames, FPS, comment=about)
    files["strip"] = folder / "strip.png"
    picture = strip(
        request.video,
        request.mask,
        reference.frames,
        result.frames,
        policy=policy,
        footer=notice or "",
    )
    with replacing(files["strip"]) as part:
        picture.save(part)
    for name, trace in (("trace", result.trace), ("trace-reference", reference.trace)):
        files[name] = folder / f"{name}.json"
        trace.save(files[name])
    files["summary"] = folder / "summary.json"
    return {name: str(path) for name, path in files.items()}
