"""What a run may spend and keep, whatever the policy: groups of options."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, final

from attrs import frozen

from hetcache.running.device import Precision, choose_device
from hetcache.running.options import written
from hetcache_core import ConfigError, Guards, setting
from hetcache_core.settings.declare import group

if TYPE_CHECKING:
    from hetcache_core import StoreSettings

__all__ = ["CacheConfig", "LimitsConfig", "guards", "read_size", "store_settings"]

SIZE: Final = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>([KMGT]i?)?B?)", re.IGNORECASE)
MOST: Final = 2.0**60
"""More bytes than there are; a number of hundreds of digits would be infinite."""

UNITS: Final = {
    "": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4,
    "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40,
}  # fmt: skip


@final
@frozen(kw_only=True)
class LimitsConfig:
    """What a run with caching may spend, whatever the policy."""

    target_speedup: float | None = setting(
        None,
        ge=1,
        doc="how many times fewer FLOPs to compute; the policy's thresholds follow",
        metadata=written(unset="the policy's own settings"),
    )
    target_quality: float | None = setting(
        None,
        gt=0,
        doc="decibels inside the mask to the reference; steps are computed until it is met (auto)",
        metadata=written(unset="no quality is asked for"),
    )
    guards: Guards = group(Guards())
    compile: bool = setting(
        False, doc="run the model's blocks with torch.compile; the first steps then take longer"
    )


@final
@frozen(kw_only=True)
class CacheConfig:
    """How the cache is kept, whatever the policy."""

    max_cache_bytes: int | None = setting(
        None,
        ge=1,
        doc="most that the cache may hold, such as 500MB or 2GiB",
        metadata=written(
            metavar="SIZE", unset="no limit", read=lambda t, o: read_size(t, option=o)
        ),
    )
    cache_dtype: Precision = setting("auto", doc="precision of the cache; auto is the model's")
    cache_device: str = setting(
        "auto",
        doc="where the cache is kept: auto (with the model), cpu, cuda or cuda:N",
        metadata=written(metavar="DEVICE"),
    )


def guards(limits: LimitsConfig, steps: int) -> Guards:
    """Return the guards of a run.

    Args:
        limits: What was asked for.
        steps: Steps of the run.

    Raises:
        ConfigError: A step is to be computed that the run does not have.
    """
    full_steps = limits.guards.full_steps
    beyond = [index for index in full_steps if index >= steps]
    if beyond:
        raise ConfigError(
            f"there is no step {beyond[0]}: the {steps} steps are counted from 0",
            where="--full-steps",
            setting="full_steps",
            given=full_steps,
        )
    return limits.guards


def store_settings(cache: CacheConfig) -> StoreSettings:
    """Say how the cache is kept.

    Args:
        cache: What was asked for.

    Raises:
        ConfigError: Its device is not there.
    """
    from hetcache_core import StoreSettings

    device = cache.cache_device
    return StoreSettings(
        dtype=None if cache.cache_dtype == "auto" else cache.cache_dtype,
        device=None if device == "auto" else choose_device(device, option="--cache-device"),
        max_bytes=cache.max_cache_bytes,
    )


def read_size(text: str, *, option: str) -> int:
    """Read a number of bytes, such as "500MB" or "2GiB".

    Args:
        text: The number and its unit.
        option: The command-line option that gave it.

    Raises:
        ConfigError: It is no such number.
    """
    found = SIZE.fullmatch(text.strip())
    if found is None:
        raise ConfigError(
            f"cannot read {text!r} as a size",
            where=option,
            setting=option.removeprefix("--").replace("-", "_"),
            given=text,
            remedy="Write a number of bytes, such as 500MB or 2GiB.",
        )
    unit = found["unit"].lower().removesuffix("b")
    return int(min(float(found["number"]), MOST) * UNITS[unit])
