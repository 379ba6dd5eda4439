"""Looking up a preset by name, with one error for all policies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from hetcache_core import ConfigError, nearest_name

__all__ = ["find_preset"]

T = TypeVar("T")


def find_preset(policy: str, preset: str, presets: Mapping[str, T]) -> T:
    """Return what a policy keeps under a preset's name.

    Args:
        policy: Name of the policy, for the message.
        preset: Name of the preset.
        presets: Presets by name.

    Raises:
        ConfigError: There is no such preset.
    """
    if preset in presets:
        return presets[preset]
    nearest = nearest_name(preset, presets)
    raise ConfigError(
        f"there is no preset {preset!r}" + (f", did you mean {nearest!r}?" if nearest else ""),
        where=f"policy {policy}",
        remedy=f"Known: {', '.join(presets)}.",
        setting="preset",
        given=preset,
        allowed=presets,
        nearest=nearest,
    )
