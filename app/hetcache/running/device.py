"""Where a model runs, and in which precision."""

from __future__ import annotations

import re
from typing import Final

from hetcache_core import ConfigError

__all__ = ["choose_device", "choose_dtype"]

DEVICE: Final = re.compile(r"cpu|cuda(:\d+)?")


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


def choose_dtype(asked: str, device: str) -> str:
    """Turn ``--dtype`` into the name of a torch dtype; "auto" depends on the device."""
    if asked != "auto":
        return asked
    return "bfloat16" if device.startswith("cuda") else "float32"
