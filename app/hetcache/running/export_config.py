"""What ``hetcache export`` is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from hetcache_core import ConfigError, setting
from hetcache_core.settings.declare import build

__all__ = ["ExportConfig", "make_export_config"]


@frozen(kw_only=True)
class ExportConfig:
    """One export, as it is asked for; its fields are the options of ``hetcache export``."""

    output: str = setting(doc="the folder to write; it must not exist yet")
    backbone: str = setting("tiny-vace", doc="the model to export")
    model: str | None = setting(None, doc="folder or hub id of a checkpoint")


def make_export_config(given: Mapping[str, Any]) -> ExportConfig:
    """Check the options of an export.

    Args:
        given: The options that were given, by the names of the fields.

    Raises:
        ConfigError: The output is missing.
    """
    if "output" not in given:
        raise ConfigError("missing --output", where="hetcache export", setting="output")
    return build(ExportConfig, given, where="hetcache export")
