"""What a comparison was asked to do, written down: so that it can be gone on with, and understood."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from hetcache.comparison.config import CompareConfig
from hetcache.comparison.plan.planning import Wanted
from hetcache.comparison.results.folder import Results
from hetcache_core import ConfigError
from hetcache_core.settings.declare import declared, values_of

__all__ = [
    "arguments_of",
    "check_grown",
    "check_same",
    "comparison_there",
    "now",
    "software",
]

LIBRARIES: Final = ("torch", "numpy", "diffsynth", "diffusers", "transformers", "ray")
"""Whose versions a comparison notes."""

FIXED: Final = (
    "steps", "cfg_scale", "options", "composite", "lpips", "video_features", "clip",
    "max_cache_bytes", "cache_dtype", "cache_device", "dtype", "clip_set",
)  # fmt: skip
"""What must not change when a comparison goes on: rows with and without it cannot be compared."""

GROWING: Final = ("backbones", "policies", "clips", "seeds", "repeat")
"""What may grow."""


def comparison_there(results: Results, *, resume: bool) -> dict[str, Any] | None:
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


def arguments_of(config: CompareConfig, wanted: Wanted) -> dict[str, Any]:
    """Return the options of a comparison, for JSON."""
    plain = {n: value for n, value in values_of(config).items() if n not in {"resume", "json"}}
    return {**plain, "clip_set": dict(wanted.clip_set) if wanted.clip_set else None}


def check_same(arguments: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Make sure that new rows can stand beside the old ones.

    Raises:
        ConfigError: Something is asked for otherwise than before.
    """
    # What an option had that did not exist yet.
    usual = {name: info.default for name, info in declared(CompareConfig).items()}
    for name in FIXED:
        earlier = before["arguments"].get(name, usual.get(name))
        if earlier != arguments[name]:
            raise ConfigError(
                f"the comparison in the folder was begun with {earlier}, not with "
                f"{arguments[name]}",
                where=f"--{name.replace('_', '-')}",
                setting=name,
                remedy="Name another --output.",
            )


def check_grown(grid: Mapping[str, Any], before: Mapping[str, Any]) -> None:
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


def software() -> dict[str, Any]:
    """Return the versions of everything that figures depend on."""
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


def now() -> str:
    """Return the time in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
