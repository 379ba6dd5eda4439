"""Where a model runs, and in which precision."""

from __future__ import annotations

import re
from typing import Final, Literal, final

from attrs import frozen

from hetcache.media.files import memory_bytes
from hetcache.running.options import written
from hetcache_core import ConfigError, setting

__all__ = ["PlaceConfig", "Precision", "choose_device", "choose_dtype", "memory_of"]

Precision = Literal["auto", "float32", "bfloat16", "float16"]

DEVICE: Final = re.compile(r"cpu|cuda(:\d+)?")


@final
@frozen(kw_only=True)
class PlaceConfig:
    """Where a model runs, and in which precision: a group of options."""

    device: str = setting(
        "auto", doc="auto, cpu, cuda or cuda:N", metadata=written(metavar="DEVICE")
    )
    dtype: Precision = setting("auto", doc="precision; auto is bfloat16 on CUDA, float32 elsewhere")

    def choose(self) -> tuple[str, str]:
        """Return the device, and the name of the torch dtype.

        Raises:
            ConfigError: There is no such device.
        """
        device = choose_device(self.device)
        return device, choose_dtype(self.dtype, device)


def choose_device(asked: str, *, option: str = "--device") -> str:
    """Turn an option into a device of torch.

    Args:
        asked: "auto", "cpu", "cuda" or "cuda:N".
        option: The option, for messages.

    Returns:
        The device; for "auto", "cuda" where there is one.

    Raises:
        ConfigError: It is none of these, or is not there.
    """
    import torch

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not DEVICE.fullmatch(asked):
        raise ConfigError(
            f"there is no device {asked!r}",
            where=option,
            given=asked,
            allowed=("auto", "cpu", "cuda", "cuda:N"),
            remedy="Take auto, cpu, cuda or cuda:N.",
        )
    if asked == "cpu":
        return asked
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise ConfigError(
            "CUDA is not available here",
            where=option,
            given=asked,
            remedy=f"Take {option} cpu, or see `hetcache doctor`.",
        )
    if int(asked.partition(":")[2] or 0) >= count:
        raise ConfigError(
            f"there is no {asked}; the last one is cuda:{count - 1}", where=option, given=asked
        )
    return asked


def memory_of(device: str) -> int:
    """Return the bytes of memory that a device has."""
    if device == "cpu":
        return memory_bytes()
    import torch

    return int(torch.cuda.get_device_properties(device).total_memory)


def choose_dtype(asked: str, device: str) -> str:
    """Turn ``--dtype`` into the name of a torch dtype; "auto" depends on the device."""
    if asked != "auto":
        return asked
    return "bfloat16" if device.startswith("cuda") else "float32"
