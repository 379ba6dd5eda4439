"""What a run may spend and keep, whatever the policy: options of several commands."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

from attrs import frozen

from hetcache.running.device import choose_device
from hetcache_core import ConfigError, setting
from hetcache_core.policy.guards import GuardSettings
from hetcache_core.settings.fitting import NUMBER

if TYPE_CHECKING:
    from hetcache_core import Guards, StoreSettings

__all__ = ["LimitsConfig", "Precision", "guards", "read_size", "read_texts", "store_settings"]

Precision = Literal["auto", "float32", "bfloat16", "float16"]

SIZE: Final = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>([KMGT]i?)?B?)", re.IGNORECASE)
UNITS: Final = {
    "": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4,
    "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40,
}  # fmt: skip

EXTENTS: Final = ("first_steps", "last_steps", "longest_reuse")
"""Options that are a count or, with a point, a share of the run: that is why they are read as text."""

INDICES: Final = re.compile(r"\d+(\s*,\s*\d+)*")


@frozen(kw_only=True)
class LimitsConfig(GuardSettings):
    """What a run with caching may spend and keep.

    Its fields are options, and keys of ``--config``, and say themselves what they mean.
    """

    target_speedup: float | None = setting(
        None, ge=1, doc="how many times fewer FLOPs to compute; the policy's thresholds follow"
    )
    max_cache_bytes: int | None = setting(
        None, ge=1, doc="most that the cache may hold, such as 500MB or 2GiB"
    )
    cache_dtype: Precision = setting(
        "auto", doc="precision of the cache: auto (the model's), float32, bfloat16 or float16"
    )
    cache_device: str = setting(
        "auto", doc="where the cache is kept: auto (with the model), cpu, cuda or cuda:N"
    )
    compile: bool = setting(
        False, doc="run the model's blocks with torch.compile; the first steps then take longer"
    )


def read_texts(values: Mapping[str, Any]) -> dict[str, Any]:
    """Read the values that are written as text: sizes, steps and lists of steps.

    Args:
        values: Options by the names of their fields.

    Raises:
        ConfigError: A text cannot be read.
    """
    read = dict(values)
    if isinstance(read.get("max_cache_bytes"), str):
        read["max_cache_bytes"] = read_size(read["max_cache_bytes"], option="--max-cache-bytes")
    for name in EXTENTS:
        if isinstance(read.get(name), str):
            read[name] = _extent(read[name], name)
    if isinstance(read.get("full_steps"), str):
        read["full_steps"] = _indices(read["full_steps"])
    return read


def _extent(text: str, name: str) -> int | float:
    if NUMBER.fullmatch(text.strip()) is None:
        raise ConfigError(
            f"cannot read {text!r} as steps",
            where=f"--{name.replace('_', '-')}",
            setting=name,
            given=text,
            remedy="Write a count, such as 3, or a share of the run with a point, such as 0.1",
        )
    return int(text) if text.strip().isdigit() else float(text)


def guards(limits: LimitsConfig, steps: int) -> Guards:
    """Make the guards of a run.

    Args:
        limits: What was asked for.
        steps: Steps of the run.

    Raises:
        ConfigError: A step is to be computed that the run does not have.
    """
    from hetcache_core import Guards

    beyond = [index for index in limits.full_steps if index >= steps]
    if beyond:
        raise ConfigError(
            f"there is no step {beyond[0]}: the {steps} steps are counted from 0",
            where="--full-steps",
            setting="full_steps",
            given=limits.full_steps,
        )
    return Guards.of(limits)


def store_settings(limits: LimitsConfig) -> StoreSettings:
    """Say how the cache is kept.

    Args:
        limits: What was asked for.

    Raises:
        ConfigError: Its device is not there.
    """
    from hetcache_core import StoreSettings

    device = limits.cache_device
    return StoreSettings(
        dtype=None if limits.cache_dtype == "auto" else limits.cache_dtype,
        device=None if device == "auto" else choose_device(device, option="--cache-device"),
        max_bytes=limits.max_cache_bytes,
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
    return int(float(found["number"]) * UNITS[unit])


def _indices(text: str) -> tuple[int, ...]:
    if INDICES.fullmatch(text.strip()) is None:
        raise ConfigError(
            f"cannot read {text!r} as steps",
            where="--full-steps",
            setting="full_steps",
            given=text,
            remedy="Write their numbers, counted from 0, such as 3,7.",
        )
    return tuple(int(index) for index in text.split(","))
