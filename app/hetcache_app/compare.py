"""``hetcache compare``: policies, backbones, clips and seeds are crossed, and every run is a row."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from attrs import asdict, field, frozen

from hetcache_app.compare_config import CompareConfig
from hetcache_app.comparison.bench import BenchSettings, Found
from hetcache_app.comparison.grid import Grid
from hetcache_app.comparison.planning import Wanted, grid_of, plan
from hetcache_app.comparison.results import Results
from hetcache_app.comparison.schedule import Desk, Failure, examine, run_units, write_clip
from hetcache_app.comparison.specs import BackboneSpec
from hetcache_app.comparison.workers import Crew
from hetcache_app.console import note, one_line
from hetcache_app.device import choose_device
from hetcache_app.files import check_folder
from hetcache_app.limits import LimitsConfig, store_settings
from hetcache_app.progress import row_bar
from hetcache_app.quality import QualityTools
from hetcache_core.errors import ConfigError

if TYPE_CHECKING:
    from hetcache_core.registry import Registry

__all__ = ["Compared", "compare"]

LIBRARIES: Final = ("torch", "numpy", "diffsynth", "diffusers", "transformers", "ray")
"""Whose versions a comparison notes."""

FIXED: Final = (
    "steps", "cfg_scale", "options", "composite", "lpips", "video_features", "clip",
    "max_cache_bytes", "cache_dtype", "cache_device", "dtype", "clip_set",
)  # fmt: skip
"""What must not change when a comparison goes on: rows with and without it cannot be compared."""

GROWING: Final = ("backbones", "policies", "clips", "seeds", "repeat")
"""What may grow."""


@frozen(kw_only=True)
class Compared:
    """A finished comparison.

    Attributes:
        results: Its folder.
        grid: What was crossed.
        made: Runs that were made now.
        kept: Runs that were there already.
        notices: The backbones' own warnings, by their names.
    """

    results: Results
    grid: Grid
    made: int
    kept: int
    notices: Mapping[str, str] = field(factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return values for JSON."""
        from hetcache_app.comparison.summary import summarize

        return {
            "output": str(self.results.folder),
            "runs": {"made": self.made, "kept": self.kept},
            "grid": self.grid.to_dict(),
            "notices": dict(self.notices),
            **summarize(self.results).to_dict(),
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
    check_folder(results.folder, option="--output")
    before = _comparison_there(results, resume=config.resume)
    settings = _bench_settings(config)
    wanted = plan(config, registry)
    arguments = _arguments(config, wanted)
    if before is not None:
        _check_same(arguments, before)
    with _crew(config, settings) as crew:
        found, first = examine(wanted.backbones, crew)
        models = [info.model for info in found.values()]
        grid = grid_of(wanted, config, models, registry)
        notices = {str(spec): info.notice for spec, info in found.items() if info.notice}
        for text in dict.fromkeys(notices.values()):
            note(text, kind="notice")
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
    if desk.failures:
        raise _failed(desk.failures)
    return Compared(
        results=results,
        grid=grid,
        made=len(grid.all_keys()) - already,
        kept=already,
        notices=notices,
    )


def _crew(config: CompareConfig, settings: BenchSettings) -> Crew:
    from hetcache_app.comparison.engine_processes import Processes, devices_for

    return Processes(settings, devices_for(config.device, config.workers))


def _bench_settings(config: CompareConfig) -> BenchSettings:
    """Collect what all runs have in common, and check it."""
    limits = LimitsConfig(
        max_cache_bytes=config.max_cache_bytes,
        cache_dtype=config.cache_dtype,
        cache_device=config.cache_device,
    )
    store_settings(limits)
    choose_device(config.device)
    return BenchSettings(
        device=config.device,
        dtype=config.dtype,
        limits=limits,
        tools=QualityTools(
            lpips=_there(config.lpips, "--lpips"),
            video_features=_there(config.video_features, "--video-features"),
            clip=_there(config.clip, "--clip"),
        ),
        composite=config.composite,
        cfg_scale=config.cfg_scale,
        options=dict(config.options),
    )


def _there(text: str | None, option: str) -> Path | None:
    if text is None:
        return None
    path = Path(text).absolute()
    if not path.exists():
        raise ConfigError(f"there is no {text}", where=option)
    return path


def _comparison_there(results: Results, *, resume: bool) -> dict[str, Any] | None:
    """Return what was asked for before, where the folder holds a comparison to go on with.

    Raises:
        ConfigError: It holds one, and this is not to go on with it.
    """
    path = results.folder / "comparison.json"
    if not path.exists() and not results.rows_path.exists():
        return None
    if not resume:
        raise ConfigError(
            f"{results.folder} holds a comparison already",
            where="--output",
            remedy="Name another folder, or go on with it by --resume.",
        )
    return results.read_plan()


def _arguments(config: CompareConfig, wanted: Wanted) -> dict[str, Any]:
    plain = asdict(config, filter=lambda attribute, _: attribute.name != "resume")
    return {**plain, "clip_set": dict(wanted.clip_set) if wanted.clip_set else None}


def _check_same(arguments: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Make sure that new rows can stand beside the old ones.

    Raises:
        ConfigError: Something is asked for otherwise than before.
    """
    earlier = before["arguments"]
    for name in FIXED:
        if earlier.get(name) != arguments[name]:
            raise ConfigError(
                f"the comparison in the folder was begun with {earlier.get(name)}, not with "
                f"{arguments[name]}",
                where=f"--{name.replace('_', '-')}",
                setting=name,
                remedy="Name another --output.",
            )


def _check_grown(grid: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Make sure that nothing that was asked for is left out now.

    Raises:
        ConfigError: Something is.
    """
    for name in GROWING:
        earlier, now = before["grid"][name], grid[name]
        if name == "repeat":
            lost = [f"{earlier} repetitions"] if now < earlier else []
        else:
            lost = [value for value in earlier if value not in now]
        if lost:
            shown = lost[0]["name"] if isinstance(lost[0], Mapping) else lost[0]
            changed = name == "clips" and shown in [clip["name"] for clip in now]
            raise ConfigError(
                f"the comparison in the folder was begun with {shown}, which "
                + ("is another clip now" if changed else "is left out now"),
                where=f"--{name}",
                setting=name,
                remedy="Name it again, or another --output. More of everything may be added.",
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
        _check_grown(crossed, before)
    kept = {row.key.id for row in results.rows()}
    results.folder.mkdir(parents=True, exist_ok=True)
    results.write_plan(
        {
            "arguments": _arguments(config, wanted),
            "grid": crossed,
            "runs": len(grid.all_keys()),
            "models": {
                str(spec): asdict(info, filter=lambda attribute, _: attribute.name != "notice")
                for spec, info in found.items()
            },
            "notices": {str(spec): info.notice for spec, info in found.items() if info.notice},
            "software": _software(),
            "started": (before or {}).get("started") or _now(),
            "resumed": [*(before or {}).get("resumed", []), *([_now()] if before else [])],
        }
    )
    for clip in grid.clips:
        if not (results.clip_folder(clip.source.name) / "clip.json").exists():
            write_clip(results, clip.source.read(clip.size))
    return kept


def _software() -> dict[str, Any]:
    found: dict[str, Any] = {"hetcache": version("hetcache"), "commit": _commit()}
    found |= {"python": platform.python_version(), "system": platform.platform()}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    threads = os.environ.get("OMP_NUM_THREADS")
    return found | {"OMP_NUM_THREADS": threads, "cores": os.cpu_count()}


def _commit() -> str | None:
    """Name the commit that this code was checked out at, or None where it was not."""
    try:
        done = subprocess.run(  # noqa: S603 - of our own folder
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"],  # noqa: S607 - the git that the user has
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _failed(failures: list[Failure]) -> ConfigError:
    first = failures[0]
    last_line = one_line(first.traceback.strip().splitlines()[-1])
    return ConfigError(
        f"{len(failures)} runs failed; the first was {first.key.label} on {first.key.backbone}, clip "
        f"{first.key.clip}: {last_line}",
        where="hetcache compare",
        remedy="What is finished is kept, and --resume tries them again.",
    )
