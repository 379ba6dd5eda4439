"""Options, clocks, tables, bounds and comparisons of the benchmarks."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import frozen

pytest.importorskip("diffsynth")
pytest.importorskip("diffusers")

from harness import (
    Benchmark,
    Better,
    Options,
    Report,
    Row,
    Stopwatch,
    Watched,
    alternate,
    at_least,
    at_most,
    main,
    markdown,
    measure,
    option,
    read_csv,
    regressions,
    write_csv,
)
from harness.environment import environment
from harness.options import shares
from harness.schedules import Schedules, letters
from harness.sizes import ClipSize

from hetcache_core import ConfigError, Mode

ROWS: list[Row] = [
    {"name": "a", "share": 0.5, "speed": 2.0, "seconds": 1.0},
    {"name": "b", "share": 1.0, "speed": 3.0, "seconds": 9.0},
]
WATCHED = {"speed": Watched(better=Better.HIGHER)}


@frozen(kw_only=True)
class SpeedOptions(Options):
    speed: float = option(2.0, doc="what is found")


def found(options: SpeedOptions) -> Report:
    row: Row = {"name": "a", "speed": options.speed}
    return Report(rows=[row], bounds=[at_least("speed", options.speed, 1.5)])


SPEED = Benchmark(
    name="speed",
    question="How fast?",
    options=SpeedOptions,
    run=found,
    keys=("name",),
    watched=WATCHED,
)


def test_variants_take_turns() -> None:
    seen: list[str] = []
    results = alternate({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, 2)
    assert seen == ["a", "b"] * 3
    assert {name: len(each) for name, each in results.items()} == {"a": 2, "b": 2}


def test_twice_the_work_takes_about_twice_as_long() -> None:
    """Processor time on one thread, so that other work on the machine hardly shows."""
    torch.set_num_threads(1)
    one = torch.ones(256, 256)

    def work(times: int) -> None:
        for _ in range(times):
            one @ one

    measured = measure({"once": lambda: work(5), "twice": lambda: work(10)}, 5, "cpu")
    assert 1.4 < measured["twice"].seconds / measured["once"].seconds < 2.8
    assert len(measured["once"].samples_s) == 5
    assert measured["once"].peak_mib > 10


def test_marks_are_apart_by_what_was_done_between_them() -> None:
    torch.set_num_threads(1)
    watch = Stopwatch("cpu")
    watch.mark()
    watch.mark()
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    watch.mark()
    nothing, burned = watch.laps_s()
    assert nothing < 0.02
    assert burned >= 0.05


def test_a_table_can_be_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.csv"
    write_csv(path, ROWS, environment("cpu"))
    rows = read_csv(path)
    assert [row["name"] for row in rows] == ["a", "b"]
    assert float(rows[0]["speed"]) == 2.0
    assert rows[0]["torch"] == torch.__version__
    assert rows[0]["device"]
    assert markdown(ROWS).splitlines()[0] == "| name | share | speed | seconds |"


@pytest.mark.parametrize("content", ["", "a,b\n"])
def test_a_file_without_rows_is_no_table(tmp_path: Path, content: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match="holds no rows"):
        read_csv(path)


@pytest.mark.parametrize(
    ("was", "margin", "expected"), [(2.0, 0.1, 0), (2.1, 0.1, 0), (2.4, 0.1, 1), (2.4, 0.3, 0)]
)
def test_a_ratio_may_get_worse_by_the_margin(was: float, margin: float, expected: int) -> None:
    old = [{"name": "a", "share": "0.5", "speed": str(was)}]
    worse = regressions(old, ROWS, keys=("name", "share"), watched=WATCHED, margin=margin)
    assert len(worse) == expected


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Watched(better=Better.LOWER), 0),
        (Watched(better=Better.SAME), 1),
        (Watched(better=Better.HIGHER), 1),
        (Watched(better=Better.HIGHER, floor=2.0), 0),
    ],
)
def test_which_change_is_worse_depends_on_the_ratio(rule: Watched, expected: int) -> None:
    old = [{"name": "a", "speed": "3.5"}]
    worse = regressions(old, ROWS, keys=("name",), watched={"speed": rule}, margin=0.1)
    assert len(worse) == expected


@pytest.mark.parametrize(
    ("old", "message"),
    [
        ({"name": "a"}, "lacks the columns speed"),
        ({"name": "c", "speed": "1"}, "No row"),
        ({"name": "a", "speed": "fast"}, "no number"),
    ],
)
def test_what_cannot_be_compared_is_refused(old: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        regressions([old], ROWS, keys=("name",), watched=WATCHED, margin=0.1)


def test_bounds_hold_on_their_own_side() -> None:
    assert at_most("x", 0.5, 0.5).holds
    assert not at_most("x", 0.6, 0.5).holds
    assert at_least("x", 0.6, 0.5).holds
    assert at_least("x", 0.4, 0.5).row()["holds"] == "NO"


def test_exit_codes_of_a_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "speed.csv"
    assert main(SPEED, ["--output", str(path)]) == 0
    against = ["--compare", str(path), "--fail-if-regression"]
    assert main(SPEED, against) == 0
    assert main(SPEED, [*against, "--speed", "1.7"]) == 1
    assert "| a | speed | 2 | 1.7 |" in capsys.readouterr().out
    assert main(SPEED, [*against, "--speed", "1.7", "--margin", "0.2"]) == 0
    assert main(SPEED, ["--compare", str(path), "--speed", "1.7"]) == 0
    assert main(SPEED, ["--speed", "1", "--check"]) == 1
    assert main(SPEED, ["--speed", "1"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compare", "missing.csv"], "missing.csv cannot be read"),
        (["--fail-if-regression"], "nothing to find a regression against"),
        (["--device", "tpu"], "no device 'tpu'"),
        (["--dtype", "int8"], "no floating torch dtype"),
    ],
)
def test_bad_input_is_said_and_exits_with_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(SPEED, arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--repeats", "0"], ["--margin", "-1"], ["--quick"]])
def test_a_bad_option_exits_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(SPEED, arguments)
    assert stopped.value.code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [("0", "above 0"), ("0.5,1.5", "at most 1"), ("", "names nothing"), ("a", "could not convert")],
)
def test_shares_are_above_0_and_at_most_1(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shares(text)


@pytest.mark.parametrize("text", ["33x480", "0x16x16", "9x16x16x16", "x"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no size"):
        ClipSize.parse(text)


def test_schedules_can_be_read_back(tmp_path: Path) -> None:
    path = tmp_path / "schedules.json"
    said = letters([Mode.FULL, Mode.PARTIAL, Mode.REUSE, Mode.FULL])
    Schedules(backbone="b", size="9x64x64", steps=4, policies={"hetcache": said}).save(path)
    found = Schedules.load(path)
    assert found.policies == {"hetcache": "FpsF"}
    assert found.steps == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"backbone": "b", "size": "s", "steps": 2, "schema": 9}', "another layout"),
        ('{"backbone": "b", "size": "s", "steps": 2, "policies": {"p": "Fx"}}', "of F, p and s"),
    ],
)
def test_what_is_no_schedule_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "schedules.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        Schedules.load(path)


def test_a_script_says_its_error_in_one_line() -> None:
    """From the command line, as a person meets it."""
    script = Path(__file__).parents[2] / "benchmarks" / "growth.py"
    command: list[Any] = [sys.executable, "-W", "ignore", script, "--dtype", "int8"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("growth: 'int8' is no floating torch dtype")
    assert done.stdout == ""
