"""``hetcache compare``: policies, backbones, clips and seeds are crossed, and every run is a row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import asdict, field, frozen

from hetcache.comparison.config import CompareConfig
from hetcache.comparison.plan.grid import Grid
from hetcache.comparison.plan.planning import Wanted, grid_of, plan
from hetcache.comparison.plan.record import (
    arguments_of,
    check_grown,
    check_same,
    comparison_there,
    now,
    software,
)
from hetcache.comparison.results.folder import Results
from hetcache.comparison.results.summary import Summary, summarize
from hetcache.comparison.work.bench import BenchSettings
from hetcache.comparison.work.desk import Desk, Failure, write_clip
from hetcache.comparison.work.queue import examine, run_units
from hetcache.comparison.work.tasks import Found
from hetcache.comparison.work.workers import Crew
from hetcache.quality.metric import find_metrics
from hetcache.running.console import note
from hetcache.running.device import choose_device
from hetcache.running.limits import store_settings
from hetcache.running.progress import row_bar
from hetcache.running.specs import BackboneSpec

if TYPE_CHECKING:
    from hetcache_core import Registry

__all__ = ["Compared", "compare"]


@frozen(kw_only=True)
class Compared:
    """A finished comparison.

    Attributes:
        results: Its folder.
        grid: What was crossed.
        made: Runs that were made now.
        kept: Runs that were there already.
        summary: What its rows are summed up to.
        notices: The backbones' own warnings, by their names.
        failures: Runs that failed, which have no row.
    """

    results: Results
    grid: Grid
    made: int
    kept: int
    summary: Summary
    notices: Mapping[str, str] = field(factory=dict)
    failures: tuple[Failure, ...] = ()

    @property
    def failed(self) -> str:
        """What failed, on one line; empty where nothing did."""
        if not self.failures:
            return ""
        first = self.failures[0]
        return (
            f"{len(self.failures)} runs failed; the first was {first.key.label} on {first.key.backbone}, "
            f"clip {first.key.clip}: {first.reason} (its traceback is in {first.file}). What is finished "
            "is kept, and --resume tries them again."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return values for JSON."""
        return {
            "output": str(self.results.folder),
            "runs": {"made": self.made, "kept": self.kept},
            "grid": self.grid.to_dict(),
            "notices": dict(self.notices),
            "failed": [
                {"run": each.key.id, "reason": each.reason, "traceback": str(each.file)}
                for each in self.failures
            ],
            **self.summary.to_dict(),
        }


def compare(config: CompareConfig, registry: Registry) -> Compared:
    """Make the runs of a comparison that are not there yet.

    Args:
        config: What is asked for.
        registry: Where backbones, policies and clip sets are looked up.

    Raises:
        HetCacheError: Something is wrong with what was asked for, and nothing was run; or it turned
            out later, and finished runs are kept.
        KeyboardInterrupt: The user has had enough; finished runs are kept.
    """
    results = Results(folder=Path(config.output))
    metrics = find_metrics(registry)
    before = comparison_there(results, resume=config.resume)
    settings = _bench_settings(config)
    wanted = plan(config, registry)
    arguments = arguments_of(config, wanted)
    if before is not None:
        check_same(arguments, before)
    with _crew(config, settings) as crew:
        found, first = examine(wanted.backbones, crew)
        models = [info.model for info in found.values()]
        grid = grid_of(wanted, config, models, registry)
        notices = {str(spec): info.notice for spec, info in found.items() if info.notice}
        for text in dict.fromkeys(notices.values()):
            note(text, kind="notice")
        with results.alone():
            kept = _prepare(results, config, wanted, grid, found, before)
            desk = Desk(results, finished=kept)
            already = len(kept & {key.id for key in grid.all_keys()})
            try:
                with row_bar(len(grid.all_keys()), already) as progress:
                    desk.on_row = lambda row: progress(
                        f"{row.key.backbone} {row.key.clip} {row.key.label}"
                    )
                    run_units(grid.units(), crew, desk, first)
            except KeyboardInterrupt:
                note(f"{len(desk.finished)} finished runs are kept; the same with --resume goes on")
                raise
    return Compared(
        results=results,
        grid=grid,
        made=len(grid.all_keys()) - already,
        kept=already,
        summary=summarize(results, metrics),
        notices=notices,
        failures=tuple(desk.failures),
    )


def _crew(config: CompareConfig, settings: BenchSettings) -> Crew:
    if config.work.on_ray:
        from hetcache.comparison.work.ray import RayCrew

        return RayCrew(settings, config.work.count, config.work.ray_address)
    from hetcache.comparison.work.processes import Processes, devices_for

    return Processes(settings, devices_for(config.place.device, config.work.count))


def _bench_settings(config: CompareConfig) -> BenchSettings:
    """Collect what all runs have in common, and check it."""
    store_settings(config.cache)
    choose_device(config.place.device)
    return BenchSettings(
        device=config.place.device,
        dtype=config.place.dtype,
        cache=config.cache,
        tools=config.weights.tools(),
        composite=config.composite,
        cfg_scale=config.given.cfg_scale,
        options=dict(config.given.options),
    )


def _prepare(
    results: Results,
    config: CompareConfig,
    wanted: Wanted,
    grid: Grid,
    found: Mapping[BackboneSpec, Found],
    before: Mapping[str, Any] | None,
) -> set[str]:
    """Write what is asked for and the clips; return the ids of the runs that are there."""
    crossed = grid.to_dict()
    if before is not None:
        check_grown(crossed, before)
    kept = {row.key.id for row in results.rows()}
    results.folder.mkdir(parents=True, exist_ok=True)
    results.write_plan(
        {
            "arguments": arguments_of(config, wanted),
            "grid": crossed,
            "runs": len(grid.all_keys()),
            "models": {
                str(spec): asdict(info, filter=lambda attribute, _: attribute.name != "notice")
                for spec, info in found.items()
            },
            "notices": {str(spec): info.notice for spec, info in found.items() if info.notice},
            "software": software(),
            "started": (before or {}).get("started") or now(),
            "resumed": [*(before or {}).get("resumed", []), *([now()] if before else [])],
        }
    )
    for clip in grid.clips:
        if not (results.clip_folder(clip.name) / "clip.json").exists():
            write_clip(results, clip.read())
    return kept
