"""A comparison's pictures: what is drawn where, and that labels can be read."""

from __future__ import annotations

import itertools
import random
import re
from pathlib import Path

import pytest
from attrs import evolve

pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from hetcache.comparison.page.labels import overlap, place
from hetcache.comparison.page.palette import MODES, looks_of
from hetcache.comparison.page.plots import panels, pareto, timelines, write_plots
from hetcache.comparison.page.svg import pareto_svg, timelines_svg
from hetcache.comparison.results.folder import Results, Row, RowKey
from hetcache.comparison.results.lines import Summary
from hetcache.comparison.results.summary import summarize

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
        metrics={} if decibels is None else {"psnr_uncached_mask": decibels},
        metric_notes={} if decibels is not None else {"psnr_uncached_mask": "identical"},
    )


def summary_of(folder: Path, *rows: Row) -> Summary:
    results = Results(folder=folder)
    for row in rows:
        results.append(row)
    return summarize(results)


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


@pytest.mark.parametrize("speed", ["flops", "clock"])
def test_the_labels_of_many_points_do_not_overlap_in_the_picture(many: Summary, speed: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = pareto(many, speed)
    (axes,) = figure.axes
    renderer = FigureCanvasAgg(figure).get_renderer()
    texts = [text for text in axes.texts if text.get_text() != "identical"]
    assert len(texts) == 48
    extents = [text.get_window_extent(renderer) for text in texts]
    boxes = [(e.x0 + 0.5, e.y0 + 0.5, e.x1 - 0.5, e.y1 - 0.5) for e in extents]
    assert not [1 for one, other in itertools.combinations(boxes, 2) if overlap(one, other)]


def test_there_is_a_panel_for_each_backbone_size_and_number_of_steps(tmp_path: Path) -> None:
    rows = [
        run("pab", 2, 40.0, **key)
        for key in ({}, {"backbone": "wan-vace"}, {"steps": 9}, {"height": 1})
    ]
    summary = summary_of(tmp_path, run("none", 1, None), *rows)
    assert len(panels(summary)) == 4
    titles = [axes.get_title() for axes in pareto(summary, "flops").axes]
    assert "wan-vace, 9 frames of 64x96, 8 steps" in titles
    assert len(set(titles)) == 4


def test_identical_videos_are_drawn_above_all_others_on_a_line_of_their_own(
    tmp_path: Path,
) -> None:
    summary = summary_of(tmp_path, run("pab", 1.5, None), run("toca", 2, 40.0))
    (axes,) = pareto(summary, "flops").axes
    assert "identical" in [text.get_text() for text in axes.texts]
    (panel,) = panels(summary)
    assert "identical" in pareto_svg(panel, "flops", looks_of(summary))


def test_names_are_no_formulas(tmp_path: Path) -> None:
    """Matplotlib would read dollars as mathematics, and refuse what is none."""
    summary = summary_of(tmp_path, run("pab $x_{$", 2, 40.0, backbone="$\\frac$"))
    assert set(write_plots(summary, tmp_path)) >= {"pareto", "timelines"}


def test_policies_without_a_figure_are_left_out_of_the_plot_alone(tmp_path: Path) -> None:
    row = evolve(run("pab", 2, None), metric_notes={})
    summary = summary_of(tmp_path, row)
    (axes,) = pareto(summary, "flops").axes
    assert [text.get_text() for text in axes.texts] == ["nothing to draw"]
    (panel,) = panels(summary)
    assert "nothing to draw" in pareto_svg(panel, "flops", looks_of(summary))
    assert timelines(summary).axes[0].get_yticklabels()[0].get_text() == "pab"


def test_a_timeline_has_a_row_for_each_policy_and_a_colour_for_each_mode(tmp_path: Path) -> None:
    from matplotlib.colors import to_hex

    summary = summary_of(tmp_path, run("none", 1, None), run("pab", 2, 40.0))
    (axes,) = timelines(summary).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["pab"]
    drawn = {to_hex(c.get_facecolor()[0]): len(c.get_paths()) for c in axes.collections}
    assert drawn == {MODES[m].color.lower(): "ffprrrff".count(m) for m in "fpr"}


def test_inline_pictures_name_every_point_and_step(many: Summary) -> None:
    (panel,) = panels(many)
    text = pareto_svg(panel, "flops", looks_of(many))
    assert text.count('class="mark') == 48
    assert (
        len(re.findall(r"<title>\w+ \w+: [\d.]+x, [\d.]+ dB; clips x seeds: 1</title>", text)) == 48
    )
    steps = timelines_svg(panel)
    assert steps.count("<rect") == 48 * 8
    assert "step 2: partial" in steps


def test_inline_pictures_hold_names_as_text(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, run("pab <script>", 2, 40.0, backbone='"><script>'))
    (panel,) = panels(summary)
    for text in (pareto_svg(panel, "flops", looks_of(summary)), timelines_svg(panel)):
        assert "<script>" not in text


def test_a_policy_looks_the_same_in_all_panels_and_unlike_the_others(many: Summary) -> None:
    looks = looks_of(many)
    assert set(looks) == set(POLICIES)
    assert len(set(looks.values())) == len(POLICIES)
