"""Checks of what plugins provide to the app: metrics, commands and sections of the report."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import attrs

from hetcache_core.settings.declare import declared
from hetcache_core.testing.comparing import require
from hetcache_core.testing.subject import PieceSubject

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hetcache.comparison.page.section import Reported
    from hetcache.quality import Metric, SetMetric, Value

__all__ = ["COMMAND_CHECKS", "METRIC_CHECKS", "REPORT_SECTION_CHECKS"]


def check_it_says_what_it_is_called(subject: PieceSubject) -> None:
    """It has a title for people."""
    title = getattr(type(subject.make()), "title", None)
    require(isinstance(title, str) and bool(title.strip()), f"title is {title!r}, not a text")


def check_its_name_can_begin_a_column(subject: PieceSubject) -> None:
    """The name consists of letters, digits and "_", as those of columns do."""
    name = type(subject.make()).name
    require(bool(re.fullmatch(r"\w+", name)), f"{name!r} cannot be the name of a column")


def check_it_measures(subject: PieceSubject) -> None:
    """It gives each of its regions a number or the reason why there is none, and changes no frame."""
    from hetcache.quality import QualityTools, SetMetric

    metric = subject.make()
    result, wanted, areas = _clip()
    before = result.copy(), wanted.copy()
    if isinstance(metric, SetMetric):
        found: Mapping[str, Value] = {"whole": _of_sets(metric, result, wanted)}
    else:
        found = metric.values(result, wanted, areas, "a dog", QualityTools())
    require(
        set(found) == set(metric.regions), f"regions {metric.regions!r}, values of {set(found)}"
    )
    for region, value in found.items():
        _check_value(region, value, metric)
    unchanged = bool((result == before[0]).all() and (wanted == before[1]).all())
    require(unchanged, "the frames were changed")


def check_it_leaves_out_what_has_no_pixels(subject: PieceSubject) -> None:
    """Without a mask it has values of the whole frame alone; of an empty mask it has none."""
    from hetcache.quality import QualityTools, VideoMetric

    metric = subject.make()
    if not isinstance(metric, VideoMetric):
        return
    result, wanted, areas = _clip()
    whole = metric.measure(result, wanted, {"whole": areas["whole"]}, QualityTools())
    require(set(whole) <= {"whole"}, f"values of {set(whole)} without a mask")
    empty = {**areas, "mask": areas["mask"] & False}
    for region, value in metric.measure(result, wanted, empty, QualityTools()).items():
        made_up = region == "mask" and value.value is not None
        require(not made_up, f"{value.value} of a mask without pixels")


def _clip() -> tuple[NDArray[np.uint8], NDArray[np.uint8], dict[str, NDArray[np.bool_]]]:
    """Two clips of nine frames of 64x64, and regions as ``values`` takes them."""
    import numpy as np

    noise = np.random.default_rng(0)
    wanted = noise.integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)
    result = wanted.copy()
    result[:, 16:48, 16:48] = noise.integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    areas = {"whole": np.ones((9, 64, 64), np.bool_)}
    for region, columns in (
        ("mask", np.s_[:24]),
        ("margin", np.s_[24:40]),
        ("background", np.s_[40:]),
    ):
        areas[region] = np.zeros((9, 64, 64), np.bool_)
        areas[region][:, :, columns] = True
    return result, wanted, areas


def _of_sets(metric: SetMetric, result: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> Value:
    import numpy as np

    from hetcache.quality import QualityTools, Value

    described = [metric.describe(frames, QualityTools()) for frames in (result, wanted)]
    if described[0] is None or described[1] is None:
        return Value(value=None, note=f"needs {metric.needs}")
    one, other = (np.stack([vector, vector * 1.1]) for vector in described if vector is not None)
    return metric.distance(one, other)


def _check_value(region: str, value: Value, metric: Metric) -> None:
    if value.value is None:
        require(bool(value.note), f"{region}: no value, and no note that says why")
    else:
        require(math.isfinite(value.value), f"{region}: {value.value} is no number")
    missing = value.value is None and not metric.needs and region == "whole"
    require(
        not missing, f"{region}: no value of a small clip, though it needs no file: {value.note}"
    )


def check_its_options_are_declared(subject: PieceSubject) -> None:
    """Its configuration is an attrs class, of which every field says what it does."""
    config: Any = getattr(type(subject.make()), "config", None)
    require(attrs.has(config), f"config is {config!r}, not an attrs class")
    for name, option in declared(config).items():
        require(bool(option.info.doc), f"option {name!r} does not say what it does")


def check_it_renders_a_comparison(subject: PieceSubject) -> None:
    """Of a comparison of two runs it makes HTML that stays in its place."""
    from hetcache.comparison.page.section import check_html

    section = subject.make()
    with TemporaryDirectory() as folder:
        text = section.render(_reported(Path(folder)))
    require(isinstance(text, str), f"render returned {type(text).__name__}, not a text")
    check_html(text, subject=section.name)


def _reported(folder: Path) -> Reported:
    from hetcache.comparison.page.section import Reported
    from hetcache.comparison.results.folder import Results, Row, RowKey
    from hetcache.comparison.results.summary import summarize
    from hetcache.running.specs import REFERENCE

    results = Results(folder=folder)
    plan = {"policies": ["every-nth"], "steps": 4}
    results.write_plan(plan)
    for policy, modes in ((REFERENCE, "ffff"), ("every-nth", "frrf")):
        key = RowKey(
            backbone="tiny",
            clip="<clip>",
            seed=0,
            policy=policy,
            steps=4,
            frames=9,
            height=64,
            width=64,
        )
        flops = 100 * modes.count("f")
        results.append(Row(key=key, modes=modes, flops=flops, flops_full=400, denoise_seconds=1.0))
    return Reported(results=results, summary=summarize(results, ()), plan=plan, scenes=())


METRIC_CHECKS: Final = (
    check_it_says_what_it_is_called,
    check_its_name_can_begin_a_column,
    check_it_measures,
    check_it_leaves_out_what_has_no_pixels,
)
COMMAND_CHECKS: Final = (check_its_options_are_declared,)
REPORT_SECTION_CHECKS: Final = (check_it_says_what_it_is_called, check_it_renders_a_comparison)
"""All checks of each kind, in the order in which they run."""
