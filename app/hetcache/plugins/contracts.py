"""Checks of what plugins provide to the app: metrics, commands and sections of the report."""

from __future__ import annotations

import re
from typing import Any, Final

import attrs

from hetcache_core.settings.declare import declared
from hetcache_core.testing.comparing import require
from hetcache_core.testing.subject import PieceSubject

__all__ = ["COMMAND_CHECKS", "METRIC_CHECKS", "REPORT_SECTION_CHECKS"]


def check_it_says_what_it_is_called(subject: PieceSubject) -> None:
    """It has a title for people."""
    title = getattr(type(subject.make()), "title", None)
    require(isinstance(title, str) and bool(title.strip()), f"title is {title!r}, not a text")


def check_its_name_can_begin_a_column(subject: PieceSubject) -> None:
    """The name consists of letters, digits and "_", as those of columns do."""
    name = type(subject.make()).name
    require(bool(re.fullmatch(r"\w+", name)), f"{name!r} cannot be the name of a column")


def check_its_options_are_declared(subject: PieceSubject) -> None:
    """Its configuration is an attrs class, of which every field says what it does."""
    config: Any = getattr(type(subject.make()), "config", None)
    require(attrs.has(config), f"config is {config!r}, not an attrs class")
    for name, option in declared(config).items():
        require(bool(option.info.doc), f"option {name!r} does not say what it does")


METRIC_CHECKS: Final = (check_it_says_what_it_is_called, check_its_name_can_begin_a_column)
COMMAND_CHECKS: Final = (check_its_options_are_declared,)
REPORT_SECTION_CHECKS: Final = (check_it_says_what_it_is_called,)
"""All checks of each kind, in the order in which they run."""
