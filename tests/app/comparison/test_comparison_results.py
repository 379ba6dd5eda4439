from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import evolve

pytest.importorskip("rich")

from hetcache.comparison.results.folder import Results, Row, RowKey
from hetcache_core.errors import ConfigError

KEY = RowKey(
    backbone="tiny-vace", clip="a, b", seed=3, policy="teacache", variant="3x", steps=20,
    frames=9, height=96, width=112, repeat=1,
)  # fmt: skip
ROW = Row(
    key=KEY,
    settings={"threshold": 0.1, "name": 'a "quoted"\nword'},
    note="two\nlines",
    target_speedup=3.0,
    modes="ffrp",
    flops=12345678901234567,
    flops_full=3,
    denoise_seconds=0.1 + 0.2,
    total_seconds=1.0,
    peak_cache_bytes=7,
    metrics={"psnr_reference": 41.25, "ssim_reference": None},
    metric_notes={"ssim_reference": "identical"},
)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(folder=tmp_path / "results")


def test_a_row_is_read_as_it_was_written(results: Results) -> None:
    results.append(ROW)
    results.append(evolve(ROW, key=evolve(KEY, repeat=2), target_speedup=None))
    first, second = results.rows()
    assert first == evolve(ROW, note="two lines")
    assert (second.key.repeat, second.target_speedup) == (2, None)


@pytest.mark.parametrize("kept", [0, 1, 40, 4000])
def test_a_half_written_line_is_dropped_and_overwritten(results: Results, kept: int) -> None:
    results.append(ROW)
    whole = results.rows_path.read_bytes()
    results.append(evolve(ROW, key=evolve(KEY, repeat=2)))
    after = results.rows_path.read_bytes()
    results.rows_path.write_bytes(after[: min(len(whole) + kept, len(after) - 1)])
    assert results.rows() == [evolve(ROW, note="two lines")]
    results.append(evolve(ROW, key=evolve(KEY, repeat=2)))
    assert results.rows_path.read_bytes() == after


def test_a_half_written_header_is_written_again(results: Results) -> None:
    results.folder.mkdir()
    results.rows_path.write_bytes(b"id,backb")
    assert results.rows() == []
    results.append(ROW)
    assert len(results.rows()) == 1


def rewrite(results: Results, change: Callable[[dict[str, str]], dict[str, str]]) -> None:
    """Write the rows of a folder as another release would have."""
    with results.rows_path.open(newline="", encoding="utf-8") as file:
        records = [change(record) for record in csv.DictReader(file)]
    with results.rows_path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, records[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)


def without(record: dict[str, str], *names: str) -> dict[str, str]:
    return {name: text for name, text in record.items() if name not in names}


def test_a_column_that_an_older_folder_lacks_is_at_its_default(results: Results) -> None:
    results.append(ROW)
    rewrite(results, lambda record: without(record, "peak_cache_bytes", "repeat", "metrics"))
    (row,) = results.rows()
    assert (row.peak_cache_bytes, row.key.repeat, row.metrics) == (0, 0, {})
    assert row.flops == ROW.flops


def test_a_column_of_a_newer_folder_is_passed_over_and_kept(results: Results) -> None:
    results.append(ROW)
    rewrite(results, lambda record: {"watts": "250", **without(record, "note"), "joules": "7"})
    results.append(evolve(ROW, key=evolve(KEY, repeat=2)))
    first, second = results.rows()
    assert (first.note, second.note) == ("", "two lines")
    with results.rows_path.open(newline="", encoding="utf-8") as file:
        watts = [(record["watts"], record["joules"]) for record in csv.DictReader(file)]
    assert watts == [("250", "7"), ("", "")]


@pytest.mark.parametrize("column", ["seed", "policy", "frames"])
def test_a_column_without_a_default_is_named_where_it_is_missing(
    results: Results, column: str
) -> None:
    results.append(ROW)
    rewrite(results, lambda record: without(record, column))
    with pytest.raises(ConfigError, match=f"rows.csv, line 2: there is no '{column}'"):
        results.rows()


def test_the_folders_of_runs_are_called_as_they_always_were() -> None:
    """A field that is added to the key, and is at its default, must not rename them."""
    assert KEY.id == "tiny-vace-a-b-teacache-3x-ebbe682935-r1"


def test_every_part_of_the_key_gives_another_name() -> None:
    changes = (
        {"backbone": "b"}, {"model": "m"}, {"clip": "c"}, {"seed": 4}, {"policy": "p"},
        {"variant": "v"}, {"steps": 21}, {"frames": 13}, {"height": 1}, {"width": 1}, {"repeat": 0},
    )  # fmt: skip
    keys = [KEY, *(evolve(KEY, **change) for change in changes)]
    assert len({key.id for key in keys}) == len(keys)
    assert len({key.case_id for key in keys}) == len(keys) - 1  # the repetition does not count


def test_a_run_is_held_against_the_uncached_run_of_its_repetition() -> None:
    reference = KEY.reference()
    assert (reference.policy, reference.variant, reference.repeat) == ("none", "", 1)
    assert reference.reference() == reference


def test_a_line_that_is_no_row_is_named(results: Results) -> None:
    results.append(ROW)
    text = results.rows_path.read_text()
    results.rows_path.write_text(text.replace("12345678901234567", "many"))
    with pytest.raises(ConfigError, match="line 2"):
        results.rows()


def test_a_folder_without_a_comparison_is_refused(results: Results) -> None:
    with pytest.raises(ConfigError, match="holds no comparison"):
        results.read_plan()


def test_a_comparison_of_another_version_is_refused(results: Results) -> None:
    results.folder.mkdir()
    results.write_plan({"steps": 20})
    assert results.read_plan()["steps"] == 20
    path = results.folder / "comparison.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 99}))
    with pytest.raises(ConfigError, match="of version 99"):
        results.read_plan()


def test_two_comparisons_do_not_write_into_one_folder(results: Results) -> None:
    other = Results(folder=results.folder)
    with (
        results.alone(),
        pytest.raises(ConfigError, match="another comparison is writing"),
        other.alone(),
    ):
        pass
    with other.alone():
        pass
