"""Metrics and sections of the report that break a promise are told which."""

from __future__ import annotations

import math
from typing import Any

import pytest

from hetcache.comparison.page.section import ReportSection
from hetcache.plugins.contracts import METRIC_CHECKS, REPORT_SECTION_CHECKS
from hetcache.quality import Value, VideoMetric
from hetcache_core import ContractError
from hetcache_core.testing.subject import PieceSubject

pytest.importorskip("torchmetrics")


class Loudness(VideoMetric):
    """What derives from it breaks one promise."""

    name = "loudness"
    title = "Loudness"
    better = "higher"
    regions = ("whole", "mask")

    def measure(self, result: Any, wanted: Any, areas: Any, tools: Any) -> dict[str, Value]:
        return {
            region: Value(value=float(result[areas[region]].mean()))
            if areas[region].any()
            else Value(value=None, note="no pixels")
            for region in self.regions
            if region in areas
        }


class Changing(Loudness):
    def measure(self, result: Any, wanted: Any, areas: Any, tools: Any) -> dict[str, Value]:
        result -= 1
        return super().measure(result, wanted, areas, tools)


class Forgetful(Loudness):
    def measure(self, result: Any, wanted: Any, areas: Any, tools: Any) -> dict[str, Value]:
        return {"whole": Value(value=1.0)}


class Endless(Loudness):
    def measure(self, result: Any, wanted: Any, areas: Any, tools: Any) -> dict[str, Value]:
        return {region: Value(value=math.inf) for region in areas if region in self.regions}


class MadeUp(Loudness):
    def measure(self, result: Any, wanted: Any, areas: Any, tools: Any) -> dict[str, Value]:
        return {region: Value(value=0.0) for region in areas if region in self.regions}


class Section(ReportSection):
    name = "count"
    title = "Count"

    def render(self, reported: Any) -> str:
        return f"<p>{len(reported.summary.lines)}</p>"


class Scripted(Section):
    def render(self, reported: Any) -> str:
        return "<script>alert(1)</script>"


class Unescaped(Section):
    """The clip of the comparison that is rendered is called "<clip>"."""

    def render(self, reported: Any) -> str:
        return f"<p>{reported.summary.lines[0].clips[0]}</p>"


def failures(kind: type[Any]) -> list[str]:
    checks = REPORT_SECTION_CHECKS if issubclass(kind, ReportSection) else METRIC_CHECKS
    failed = []
    for check in checks:
        try:
            check(PieceSubject(kind))
        except ContractError as error:
            failed.append(str(error))
    return failed


@pytest.mark.parametrize("kind", [Loudness, Section])
def test_who_keeps_the_promises_passes(kind: type[Any]) -> None:
    assert failures(kind) == []


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Changing, "the frames were changed"),
        (Forgetful, "regions ('whole', 'mask'), values of {'whole'}"),
        (Endless, "whole: inf is no number"),
        (MadeUp, "0.0 of a mask without pixels"),
        (Scripted, "<script>"),
        (Unescaped, "Escape what was read"),
    ],
)
def test_what_is_broken_is_said(kind: type[Any], said: str) -> None:
    assert any(said in failure for failure in failures(kind))
