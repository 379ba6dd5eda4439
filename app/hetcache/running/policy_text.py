"""A policy with its settings in one text, ``NAME:setting=value;setting=value``, as comparisons have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hetcache_core import ConfigError

__all__ = ["read_policy"]


def read_policy(values: Mapping[str, Any]) -> dict[str, Any]:
    """Take apart a policy that names its own settings, preset or speed-up.

    Args:
        values: What is asked for, by the names of the options; ``settings`` win over those in the
            policy's text.

    Returns:
        The same with the policy's bare name, and the rest where it belongs.

    Raises:
        ConfigError: The text cannot be read, names several policies, or repeats another option.
    """
    read, text = dict(values), values.get("policy")
    if not isinstance(text, str) or not {":", "@"} & {*text}:
        return read

    from hetcache.comparison.plan.specs import parse_policies

    spec, *others = parse_policies(text, option="--policy")
    if others:
        raise ConfigError(
            f"{text!r} names {1 + len(others)} policies, and a run has one",
            where="--policy",
            remedy="Join policies that go together by +; hetcache compare runs several.",
        )
    read["policy"] = spec.name
    for name in ("preset", "target_speedup"):
        said = getattr(spec, name)
        if said is None:
            continue
        if read.get(name) is not None:
            option = "--" + name.replace("_", "-")
            raise ConfigError(f"{text!r} goes with no {option}", where="--policy")
        read[name] = said
    given = read.get("settings", {})
    if spec.settings and isinstance(given, Mapping):
        read["settings"] = {**spec.settings, **given}
    return read
