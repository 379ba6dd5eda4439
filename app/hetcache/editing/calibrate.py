"""``hetcache calibrate``: reference runs are watched, and what a policy needs is written to a file.

For ``--policy searched`` it is the steps themselves that are looked for, by runs that are held against the
reference: what comes out is a schedule for ``replay``. Source: LeMiCa (arXiv:2511.00090), whose cost is the
error of the final output; here it is that of whole schedules, not of single gaps that are then added up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

from attrs import asdict, define, evolve, field, frozen
from rich.console import Console
from rich.text import Text

from hetcache.editing.config import CalibrateConfig, EditConfig, SpanConfig
from hetcache.editing.job import prepare
from hetcache.media.fit import plan_frames
from hetcache.quality.regions import compare
from hetcache.running.console import note
from hetcache.running.progress import step_bars
from hetcache.running.run import PolicyChoice, Runner, RunResult, load
from hetcache.running.specs import TARGET
from hetcache_core import Calibration, ConfigError, Mode, Schedule
from hetcache_core.records.calibration import CALIBRATION_VERSION

if TYPE_CHECKING:
    from hetcache_core import Backbone, Calibrator, EditRequest, Registry, Trace

__all__ = ["Calibrated", "Searched", "calibrate", "print_calibration", "print_search", "search"]

SEARCHED: Final = "searched"
"""What ``--policy`` names where a schedule is looked for."""

BASE: Final = "auto"
"""The policy whose steps the search begins with; its predictor and corrector are part of the schedule."""

MOVES: Final = (-1, 1, -2, 2)
"""By how many steps one computed step is moved at a time."""

GAIN: Final = 0.05
"""Decibels by which a move must be nearer to the reference."""

MOST_RUNS: Final = 100
"""Schedules that are tried at most, each on every clip."""


@frozen(kw_only=True)
class Calibrated:
    """A finished calibration.

    Attributes:
        calibration: What was written.
        notice: The backbone's own warning, or None.
    """

    calibration: Calibration
    notice: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the file."""
        return {"version": CALIBRATION_VERSION, **asdict(self.calibration), "notice": self.notice}


def calibrate(config: CalibrateConfig, registry: Registry) -> Calibrated:
    """Run clips without caching, and write what a policy needs to know of the model.

    Args:
        config: What is asked for.
        registry: Where the backbone and the policy are looked up.

    Raises:
        HetCacheError: Something is wrong with what was asked for; nothing was written.
    """
    calibrator = _find_calibrator(config.policy, registry)
    runner, requests, notice = _prepare(config, registry)
    backbone = runner.backbone
    watch = PolicyChoice(name="calibrating", watch=calibrator.watch())
    sigmas: set[tuple[float, ...]] = set()
    with step_bars() as steps:
        for index, request in enumerate(requests):
            title = f"clip {index + 1} of {len(requests)}"
            reference = runner.run(request, watch, steps.track(title))
            sigmas.add(_sigmas(reference.trace))
            for trial, policy in calibrator.trials().items():
                choice = PolicyChoice(name=config.policy, watch=policy)
                run = runner.run(request, choice, steps.track(f"{title}, {trial:g}"))
                found = _decibels(run, reference, request, backbone)
                if found is not None:  # an identical run says nothing of the line
                    calibrator.tried(trial, found)
    _check_alike(sigmas)
    calibration = Calibration(
        policy=config.policy,
        model=backbone.describe(runner.pipeline),
        sigmas=sigmas.pop(),
        clips=len(requests),
        data=calibrator.result(),
    )
    calibration.save(config.output)
    return Calibrated(calibration=calibration, notice=notice)


def print_calibration(made: Calibrated, output: str) -> None:
    """Print for people what was measured, and where it is."""
    found, console = made.calibration, Console()
    model = found.model.variant or found.model.backbone
    runs = f"{found.clips} clip{'s' if found.clips > 1 else ''} of {found.steps} steps"
    console.print(Text(f"{found.policy} on {model}, {runs}", style="bold"), soft_wrap=True)
    for name, shown in _summary(found.data).items():
        console.print(Text(f"  {name}  {shown}"), soft_wrap=True)
    console.print(Text(f"output: {output}"), soft_wrap=True)
    used = f"--backbone {found.model.backbone} --policy {found.policy} --steps {found.steps}"
    console.print(Text(f"use: {used} --set calibration={output}"), soft_wrap=True)


def _check_alike(kinds: set[Any]) -> None:
    """Refuse runs of several kinds.

    Raises:
        ConfigError: There is more than one.
    """
    if len(kinds) > 1:
        raise ConfigError(
            "the clips were run with different noise levels, which depend on their sizes here, or tokens",
            where="hetcache calibrate",
            remedy="Give clips of one size and length, or --height, --width and --frames.",
        )


def _prepare(
    config: CalibrateConfig, registry: Registry
) -> tuple[Runner, list[EditRequest], str | None]:
    """Load the model and make the edits; the backbone's own warning comes last, or None."""
    backbone = config.model.find(registry)
    device, dtype = config.place.choose()
    backbone.check_options(config.given.options)
    requests = list(_requests(config, backbone))
    runner = load(backbone, config.model.request(device, dtype), registry)
    notice = backbone.notice(runner.pipeline)
    if notice:
        note(notice, kind="notice")
    return runner, requests, notice


def _decibels(
    run: RunResult, reference: RunResult, request: EditRequest, backbone: Backbone
) -> float | None:
    """Return the PSNR to the reference inside the mask, None where they are identical."""
    token = backbone.geometry.size_multiple
    return compare(run.frames, reference.frames, request.mask, token)["mask"].db


# Schedules by search


@frozen(kw_only=True)
class Searched:
    """A schedule that was found.

    Attributes:
        output: The file, for ``replay``.
        computed: The steps that it computes, counted from 0.
        steps: How many steps a run has.
        budget: How many times fewer FLOPs were asked for.
        decibels: PSNR to the reference inside the mask, mean of the clips.
        before: The same with the steps that the search began with.
        runs: Schedules that were tried.
        clips: Clips that each was tried on.
        notice: The backbone's own warning, or None.
    """

    output: str
    computed: tuple[int, ...]
    steps: int
    budget: float
    decibels: float
    before: float
    runs: int
    clips: int
    notice: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--json`` prints; where nothing differs from the reference there are no decibels."""
        return {name: None if value == math.inf else value for name, value in asdict(self).items()}


@define(eq=False)
class _Trials:
    """Runs of schedules on all clips; each is made once."""

    runner: Runner
    requests: Sequence[EditRequest]
    references: Sequence[RunResult]
    track: Any
    found: dict[tuple[int, ...], tuple[float, RunResult]] = field(factory=dict)

    def decibels(self, computed: tuple[int, ...]) -> float:
        """Return how near a schedule comes, mean of the clips."""
        if computed not in self.found:
            total = self.requests[0].steps
            settings = {"every": 2.0 * total, "full_steps": computed}  # nothing but what is listed
            choice = PolicyChoice(name=BASE, settings=settings)
            title = f"schedule {len(self.found) + 1}"
            runs = [self.runner.run(each, choice, self.track(title)) for each in self.requests]
            near = [
                _decibels(run, reference, request, self.runner.backbone)
                for run, reference, request in zip(
                    runs, self.references, self.requests, strict=True
                )
            ]
            mean = fmean(math.inf if found is None else found for found in near)
            self.found[computed] = mean, runs[0]
        return self.found[computed][0]


def search(config: CalibrateConfig, registry: Registry) -> Searched:
    """Look for the steps to compute within a budget, and write their schedule.

    One computed step after the other is moved, and stays where the final output is nearer to the reference,
    until no move brings anything.

    Args:
        config: What is asked for.
        registry: Where the backbone is looked up.

    Raises:
        HetCacheError: Something is wrong with what was asked for; nothing was written.
    """
    budget = _budget(config.budget)
    runner, requests, notice = _prepare(config, registry)
    with step_bars() as bars:
        references = [
            runner.run(request, PolicyChoice(name="none"), bars.track(f"reference {index + 1}"))
            for index, request in enumerate(requests)
        ]
        asked = PolicyChoice(name=BASE, target_speedup=budget)
        begun = [runner.run(each, asked, bars.track("the budget")).trace for each in requests]
        _check_alike({(_sigmas(trace), trace.plan and trace.plan.grid) for trace in begun})
        modes = begun[0].modes()
        best = tuple(index for index, mode in enumerate(modes) if mode is Mode.FULL)
        trials = _Trials(runner, requests, references, bars.track)
        before = near = trials.decibels(best)
        improved = len(best) < len(modes)
        while improved and len(trials.found) < MOST_RUNS:
            improved = False
            for place, move in product(range(1, len(best) - 1), MOVES):
                moved = best[place] + move
                if not best[place - 1] < moved < best[place + 1] or len(trials.found) >= MOST_RUNS:
                    continue
                changed = (*best[:place], moved, *best[place + 1 :])
                if trials.decibels(changed) > near + GAIN:
                    best, near, improved = changed, trials.decibels(changed), True
    Schedule.of(trials.found[best][1].trace).save(config.output)
    return Searched(
        output=config.output,
        computed=best,
        steps=len(modes),
        budget=budget,
        decibels=near,
        before=before,
        runs=len(trials.found),
        clips=len(requests),
        notice=notice,
    )


def print_search(made: Searched) -> None:
    """Print for people what was found, and where it is."""
    console = Console()
    shown = ", ".join(map(str, made.computed))
    tried = f"{made.runs} schedules on {made.clips} clip{'s' if made.clips > 1 else ''}"
    for line in (
        f"{len(made.computed)} of {made.steps} steps are computed: {shown}",
        f"mask  {made.decibels:.1f} dB to the reference, {made.before:.1f} dB at first ({tried})",
        f"output: {made.output}",
        f"use: --steps {made.steps} --policy replay --set schedule={made.output}",
    ):
        console.print(Text(line), soft_wrap=True)


def _budget(text: str | None) -> float:
    """Read ``4x``.

    Raises:
        ConfigError: It is not given, or no number of at least 1 with an x.
    """
    found = TARGET.fullmatch(text or "")
    if found is None or not float(found["number"]) >= 1:
        raise ConfigError(
            "a schedule is looked for within a budget" if text is None else f"cannot read {text!r}",
            where="--budget",
            setting="budget",
            given=text,
            remedy="Give how many times fewer FLOPs there should be, such as 4x.",
        )
    return float(found["number"])


def _find_calibrator(policy: str, registry: Registry) -> Calibrator:
    calibrator = registry.policy(policy).calibrator()
    if calibrator is not None:
        return calibrator
    able = [name for name in registry.names("policy") if _can_be_calibrated(name, registry)]
    raise ConfigError(
        f"policy {policy} has nothing to calibrate",
        where="--policy",
        setting="policy",
        given=policy,
        allowed=able,
        remedy=f"Those that take one: {', '.join(able) or 'none'}; {SEARCHED} looks for a schedule.",
    )


def _can_be_calibrated(policy: str, registry: Registry) -> bool:
    try:
        return registry.policy(policy).calibrator() is not None
    except Exception:  # noqa: BLE001 - another author's plugin must not hide this message
        return False


def _requests(config: CalibrateConfig, backbone: Backbone) -> Iterator[EditRequest]:
    """Make the edits that are watched, each with a seed of its own."""
    if not config.video:
        sample = backbone.sample()
        if sample is None:
            raise ConfigError(
                f"the backbone {backbone.name} has no embedded clip",
                where="--backbone",
                remedy="Give clips of yours with --video and --mask.",
            )
        for index in range(config.clips):
            yield evolve(
                sample,
                prompt=config.prompt or sample.prompt,
                steps=config.steps,
                seed=config.seed + index,
                guidance_scale=(
                    sample.guidance_scale
                    if config.given.cfg_scale is None
                    else config.given.cfg_scale
                ),
                options=dict(config.given.options),
            )
        return
    geometry = backbone.geometry
    wanted = geometry.default_frames if config.frames is None else config.frames
    length = plan_frames(
        geometry, wanted, wanted
    )  # one window: the noise levels are those of a length
    for index, (video, mask) in enumerate(zip(config.video, config.mask, strict=True)):
        job = prepare(
            EditConfig(
                video=video,
                mask=mask,
                output=config.output,
                prompt=config.prompt,
                model=config.model,
                steps=config.steps,
                seed=config.seed + index,
                span=SpanConfig(frames=length, window=length),
                given=config.given,
            ),
            backbone,
        )
        for text in job.notes:
            note(f"{video}: {text}")
        request = job.request(job.windows[0], job.clip.frames)
        if request is not None:
            yield request


def _sigmas(trace: Trace) -> tuple[float, ...]:
    of_step = {record.step: record.sigma for record in trace.records}
    return tuple(of_step[step] for step in sorted(of_step))


def _summary(data: Mapping[str, Any]) -> dict[str, str]:
    """Write what was measured in a line each; of a list, its length and its range."""
    shown = {}
    for name, value in data.items():
        if isinstance(value, list | tuple) and value:
            shown[name] = f"{len(value)} values from {min(value):.4g} to {max(value):.4g}"
        else:
            shown[name] = f"{value:.4g}" if isinstance(value, float) else str(value)
    if data.get("residual_rms") is not None and data.get("mean_change"):
        shown["residual_rms"] += f" ({data['residual_rms'] / data['mean_change']:.0%} of the mean)"
    return shown
