"""A comparison's pictures: what is drawn where, and that labels can be read."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from attrs import evolve

pytest.importorskip("PIL")
pytest.importorskip("rich")

from PIL import Image

from hetcache.comparison.page.drawing import FONT_SIZE, Drawing, Shape, Words
from hetcache.comparison.page.labels import Box, overlap, place
from hetcache.comparison.page.plots import (
    CHARACTER,
    MODES,
    drawn_columns,
    looks_of,
    panels,
    pareto,
    timelines,
    write_plots,
)
from hetcache.comparison.results.folder import Results, Row, RowKey
from hetcache.comparison.results.summary import Speed, Summary, summarize
from hetcache.quality.metric import find_metrics
from hetcache_core import discover

METRICS = find_metrics(discover())

KEY = RowKey(
    backbone="tiny-vace", clip="a", seed=0, policy="none", steps=8, frames=9, height=64, width=96
)
POLICIES = ("teacache", "pab", "hetcache", "toca", "fbcache", "magcache", "adacache", "dicache")


def run(label: str, speed: float, decibels: float | None, **key: object) -> Row:
    policy, _, variant = label.partition(" ")
    return Row(
        key=evolve(KEY, **{"policy": policy, "variant": variant, **key}),
        modes="ffprrrff",
        flops=int(1e12 / speed),
        flops_full=10**12,
        denoise_seconds=10 / speed,
        total_seconds=11 / speed,
        metrics={} if decibels is None else {"psnr_reference_mask": decibels},
        metric_notes={} if decibels is not None else {"psnr_reference_mask": "identical"},
    )


def summary_of(folder: Path, *rows: Row) -> Summary:
    results = Results(folder=folder)
    for row in rows:
        results.append(row)
    return summarize(results, METRICS)


@pytest.fixture
def many(tmp_path: Path) -> Summary:
    """Forty-eight points, most of them in one corner."""
    chance = random.Random(1)
    rows = [
        run(f"{policy} {variant}", chance.uniform(1.5, 2.5), chance.gauss(40, 3))
        for policy in POLICIES
        for variant in ("quality", "balanced", "fast", "2x", "3x", "4x")
    ]
    return summary_of(tmp_path / "many", run("none", 1, None), *rows)


def test_labels_cover_neither_each_other_nor_a_point() -> None:
    chance = random.Random(0)
    points = [(chance.gauss(300, 80), chance.gauss(200, 60)) for _ in range(50)]
    sizes = [(chance.uniform(30, 90), 11.0) for _ in points]
    boxes = place(points, sizes, (0, 0, 600, 400), marker=4)
    assert not [1 for one, other in itertools.combinations(boxes, 2) if overlap(one, other)]
    markers = [(x - 4, y - 4, x + 4, y + 4) for x, y in points]
    assert not [1 for box, marker in itertools.product(boxes, markers) if overlap(box, marker)]
    assert all(box[0] >= 0 and box[1] >= 0 and box[2] <= 600 and box[3] <= 400 for box in boxes)


def test_a_label_stands_beside_its_point_where_there_is_room() -> None:
    (box,) = place([(50, 50)], [(20, 10)], (0, 0, 200, 100), marker=3)
    assert box == (55, 45, 75, 55)


def test_where_no_place_is_free_a_label_still_gets_one() -> None:
    boxes = place([(5, 5), (6, 6)], [(50, 50)] * 2, (0, 0, 20, 20), marker=1)
    assert len(boxes) == 2


def drawn(summary: Summary, speed: Speed = "flops") -> Drawing:
    """The only panel of a summary."""
    (panel,) = panels(summary)
    assert summary.fidelity is not None
    return pareto(panel, speed, summary.fidelity, looks_of(summary))


def words_of(drawing: Drawing, kind: str = "") -> list[Words]:
    return [part for part in drawing.parts if isinstance(part, Words) and part.kind == kind]


def shapes_of(drawing: Drawing) -> list[Shape]:
    return [part for part in drawing.parts if isinstance(part, Shape)]


def boxes_of(words: list[Words], width: Callable[[str], float]) -> list[Box]:
    """Where words are whose baseline is at their middle."""
    return [
        (x - width(text) / 2 + 0.5, y - 9.5, x + width(text) / 2 - 0.5, y + 2.5)
        for text, (x, y) in ((each.text, each.at) for each in words)
    ]


@pytest.mark.parametrize("speed", ["flops", "clock"])
@pytest.mark.parametrize("where", ["page", "file"])
def test_the_labels_of_many_points_do_not_overlap(many: Summary, speed: Speed, where: str) -> None:
    from PIL import ImageFont

    widths = {
        "page": lambda text: len(text) * CHARACTER,
        "file": ImageFont.load_default(FONT_SIZE).getlength,
    }
    labels = words_of(drawn(many, speed), "label")
    assert len(labels) == 48
    boxes = boxes_of(labels, widths[where])
    assert not [1 for one, other in itertools.combinations(boxes, 2) if overlap(one, other)]


def test_there_is_a_panel_for_each_backbone_size_and_number_of_steps(tmp_path: Path) -> None:
    rows = [
        run("pab", 2, 40.0, **key)
        for key in ({}, {"backbone": "wan-vace"}, {"steps": 9}, {"height": 1})
    ]
    summary = summary_of(tmp_path, run("none", 1, None), *rows)
    assert len(panels(summary)) == 4
    titles = {panel.title for panel in panels(summary)}
    assert "wan-vace, 9 frames of 64x96, 8 steps" in titles
    assert len(titles) == 4
    text = write_plots(summary, tmp_path)["pareto_svg"].read_text()
    assert all(f">{title}</text>" in text for title in titles)


def test_identical_videos_are_drawn_above_all_others_on_a_line_of_their_own(
    tmp_path: Path,
) -> None:
    drawing = drawn(summary_of(tmp_path, run("pab", 1.5, None), run("toca", 2, 40.0)))
    assert "identical" in [each.text for each in words_of(drawing, "tick")]
    same, other = (min(y for _, y in shape.points) for shape in shapes_of(drawing))
    assert same < other
    assert shapes_of(drawing)[0].said == "pab: 1.50x, identical; clips x seeds: 1"


def test_names_are_neither_markup_nor_formulas_in_a_file(tmp_path: Path) -> None:
    rows = (run(label, 2, 40.0, backbone="$\\frac$ <b>") for label in ("none", "pab $x_{$ <i>&"))
    summary = summary_of(tmp_path, *rows)
    files = write_plots(summary, tmp_path)
    for name in ("pareto_svg", "pareto_clock_svg", "timelines_svg"):
        root = ElementTree.fromstring(files[name].read_text())
        assert {element.tag.split("}")[1] for element in root.iter()} <= {
            "svg", "path", "text", "title",
        }  # fmt: skip
        texts = [element.text or "" for element in root.iter()]
        assert any("$x_{$ <i>&" in text for text in texts)


def test_pictures_show_what_the_drawings_do(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, run("none", 1, None), run("pab", 2, 40.0))
    files = write_plots(summary, tmp_path)
    for name in ("pareto", "pareto_clock", "timelines"):
        picture = Image.open(files[name]).convert("RGB")
        root = ElementTree.fromstring(files[f"{name}_svg"].read_text())
        assert picture.size == tuple(2 * float(root.get(side)) for side in ("width", "height"))
        colors = {color for _, color in picture.getcolors(2**20)}
        filled = {element.get("fill", "none").lower() for element in root.iter()} - {
            "none",
            "#1b1b1b",
            "#666666",
        }
        assert {"#{:02x}{:02x}{:02x}".format(*color) for color in colors} >= filled - {"none"}


def test_policies_without_a_figure_are_left_out_of_the_plot_alone(tmp_path: Path) -> None:
    row = evolve(run("pab", 2, None), metric_notes={})
    summary = summary_of(tmp_path, row)
    assert [each.text for each in words_of(drawn(summary))] == ["nothing to draw"]
    (panel,) = panels(summary)
    assert [each.text for each in words_of(timelines(panel))] == ["pab"]


def test_every_metric_that_was_measured_is_drawn_the_right_way_up(tmp_path: Path) -> None:
    """Of two policies that are equally fast, the better one alone is on the front."""
    rows = [
        evolve(
            run(policy, 2, 40.0), metrics={"lpips_reference": value, "ssim_reference": 1 - value}
        )
        for policy, value in (("pab", 0.1), ("toca", 0.3))
    ]
    summary = summary_of(tmp_path, *rows)
    fidelity, *others = drawn_columns(summary)
    assert fidelity == summary.fidelity
    assert [column.name for column in others] == ["ssim_reference", "lpips_reference"]
    (panel,) = panels(summary)
    for column in others:
        drawing = pareto(panel, "flops", column, looks_of(summary))
        assert [shape.said[:3] for shape in shapes_of(drawing) if shape.best] == ["pab"]
        assert any(column.better in each.text for each in words_of(drawing))


def test_a_timeline_has_a_row_for_each_policy_and_a_colour_for_each_mode(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, run("none", 1, None), run("pab", 2, 40.0))
    (panel,) = panels(summary)
    drawing = timelines(panel)
    assert [each.text for each in words_of(drawing)] == ["pab"]
    assert Counter(shape.color for shape in shapes_of(drawing)) == {
        MODES[mode].color: "ffprrrff".count(mode) for mode in "fpr"
    }


def test_inline_pictures_name_every_point_and_step(many: Summary) -> None:
    (panel,) = panels(many)
    text = drawn(many).svg()
    assert text.count('class="mark') == 48
    assert (
        len(re.findall(r"<title>\w+ \w+: [\d.]+x, [\d.]+ dB; clips x seeds: 1</title>", text)) == 48
    )
    steps = timelines(panel).svg()
    assert steps.count('class="step"') == 48 * 8
    assert "step 2: partial" in steps


def test_inline_pictures_hold_names_as_text(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, run("pab <script>", 2, 40.0, backbone='"><script>'))
    (panel,) = panels(summary)
    for text in (drawn(summary).svg(), timelines(panel).svg()):
        assert "<script>" not in text


def test_a_policy_looks_the_same_in_all_panels_and_unlike_the_others(many: Summary) -> None:
    looks = looks_of(many)
    assert set(looks) == set(POLICIES)
    assert len(set(looks.values())) == len(POLICIES)
