"""``hetcache calibrate``: reference runs are watched, and what a policy needs is written to a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from attrs import asdict, evolve, frozen
from rich.console import Console
from rich.text import Text

from hetcache.editing.config import CalibrateConfig, EditConfig, SpanConfig
from hetcache.editing.job import prepare
from hetcache.media.fit import plan_frames
from hetcache.quality.regions import compare
from hetcache.running.console import note
from hetcache.running.progress import step_bars
from hetcache.running.run import PolicyChoice, load
from hetcache_core import Calibration, ConfigError
from hetcache_core.records.calibration import CALIBRATION_VERSION

if TYPE_CHECKING:
    from hetcache_core import Backbone, Calibrator, EditRequest, Registry, Trace

__all__ = ["Calibrated", "calibrate", "print_calibration"]


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
    backbone = config.model.find(registry)
    device, dtype = config.place.choose()
    backbone.check_options(config.given.options)
    requests = list(_requests(config, backbone))
    loaded = config.model.request(device, dtype)
    runner = load(backbone, loaded, registry)
    notice = backbone.notice(runner.pipeline)
    if notice:
        note(notice, kind="notice")
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
                token = backbone.geometry.size_multiple
                found = compare(run.frames, reference.frames, request.mask, token)["mask"].db
                if found is not None:  # an identical run says nothing of the line
                    calibrator.tried(trial, found)
    if len(sigmas) > 1:
        raise ConfigError(
            "the clips were run with different noise levels, which depend on their sizes here",
            where="hetcache calibrate",
            remedy="Give clips of one size and length, or --height, --width and --frames.",
        )
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
        remedy=f"Those that take one: {', '.join(able) or 'none'}.",
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
