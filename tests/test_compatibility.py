"""The table of what hetcache was run with, and the tool that writes it."""

from __future__ import annotations

import configparser
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "docs" / "compatibility.md"
AXIS = re.compile(r"(?P<library>[a-z]+)(?P<version>\d+(\.\d+)+)")


def load_tool() -> Any:
    path = ROOT / "tools" / "compatibility.py"
    spec = importlib.util.spec_from_file_location("compatibility", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = load_tool()
MATRIX = tool.environments((ROOT / "tox.ini").read_text(encoding="utf-8"))
ROWS = tool.kept(TABLE.read_text(encoding="utf-8"))


def report(name: str, *, success: bool, output: str = "", **setup: Any) -> dict[str, Any]:
    """One environment as tox 4 reports it."""
    return {
        "reportversion": "1",
        "testenvs": {
            name: {
                "python": {"version_info": [3, 11, 0, "", 0]},
                "installed_packages": ["torch==2.15.0", "pluggy==1.6.0"],
                "result": {"success": success, "duration": 90.0, "skipped": False},
                "test": [{"retcode": int(not success), "output": output, "err": ""}],
                **setup,
            }
        },
    }


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return tmp_path / "page.md"


def written(tmp_path: Path, content: Any) -> str:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def test_the_committed_table_tells_of_the_matrix_and_of_nothing_else() -> None:
    assert ROWS
    assert list(ROWS) == [name for name in MATRIX if name in ROWS]


@pytest.mark.parametrize("name", [name for name in ROWS if AXIS.fullmatch(name)])
def test_a_row_ran_with_the_release_that_it_is_named_after(name: str) -> None:
    found = AXIS.fullmatch(name)
    assert found is not None
    installed = ROWS[name].cells[found["library"]]
    assert f"{installed}.".startswith(f"{found['version']}.")


def test_every_failure_in_the_table_has_its_reason() -> None:
    for row in ROWS.values():
        result = row.cells["result"]
        assert result == "passed" or len(result.removeprefix("failed: ")) > len("failed")


def test_what_cannot_be_is_what_the_package_excludes() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["optional-dependencies"]["diffsynth"][0]
    excluded = sorted(int(patch) for patch in re.findall(r"!=2\.0\.(\d+)", wanted))
    assert excluded == list(range(excluded[0], excluded[-1] + 1))
    assert f"diffsynth 2.0.{excluded[0]} to 2.0.{excluded[-1]}" in TABLE.read_text(encoding="utf-8")


def test_every_environment_runs_something() -> None:
    """Those without commands of their own have the Pythons', which other names do not match."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "tox.ini", encoding="utf-8")
    sections = [name for name in parser.sections() if name.startswith("testenv:")]
    assert sections
    assert not [name for name in sections if not parser[name].get("commands", "").strip()]


def test_groups_of_environments_are_spelt_out() -> None:
    assert tool.expand("py3{10,11}") == ["py310", "py311"]
    assert tool.expand("torch{2.6, 2.13}") == ["torch2.6", "torch2.13"]
    text = "[tox]\nlabels =\n    matrix = core, py3{10,11}\n"
    assert tool.environments(text) == ["core", "py310", "py311"]


def test_a_report_becomes_a_row_with_versions_and_counts(tmp_path: Path, page: Path) -> None:
    output = "== 298 passed, 4 skipped in 31.49s (0:00:31) ==\n"
    given = written(tmp_path, report("pluggy1.6", success=True, output=output))
    assert tool.main([given, "--output", str(page)]) == 0
    row = tool.kept(page.read_text(encoding="utf-8"))["pluggy1.6"].cells
    assert (row["torch"], row["pluggy"], row["diffsynth"]) == ("2.15.0", "1.6.0", "")
    assert row["Python"] == "3.11"
    assert (row["result"], row["tests"], row["minutes"]) == (
        "passed",
        "298 passed, 4 skipped",
        "1.5",
    )


def test_a_failure_says_why_and_other_rows_stay(tmp_path: Path, page: Path) -> None:
    given = written(tmp_path, report("pluggy1.5", success=True))
    assert tool.main([given, "--output", str(page)]) == 0
    output = "E   ModuleNotFoundError: No module named 'x|y'\n= 1 failed in 1.00s =\n"
    given = written(tmp_path, report("pluggy1.6", success=False, output=output))
    assert tool.main([given, "--output", str(page)]) == 0
    rows = tool.kept(page.read_text(encoding="utf-8"))
    assert list(rows) == ["pluggy1.5", "pluggy1.6"]
    assert rows["pluggy1.6"].cells["result"] == "failed: ModuleNotFoundError: No module named 'x/y'"
    assert rows["pluggy1.6"].cells["tests"] == "1 failed"


def test_an_environment_that_ran_nothing_has_not_passed(tmp_path: Path, page: Path) -> None:
    given = written(tmp_path, report("core", success=True, test=[]))
    assert tool.main([given, "--output", str(page)]) == 0
    cells = tool.kept(page.read_text(encoding="utf-8"))["core"].cells
    assert cells["result"] == "failed: it ran nothing"


def test_an_environment_that_could_not_be_made_says_why(tmp_path: Path, page: Path) -> None:
    setup = [{"retcode": 1, "output": "", "err": "error: no solution found\n"}]
    given = written(tmp_path, report("torch2.6", success=False, setup=setup))
    assert tool.main([given, "--output", str(page)]) == 0
    cells = tool.kept(page.read_text(encoding="utf-8"))["torch2.6"].cells
    assert cells["result"] == "failed: no solution found"


@pytest.mark.parametrize(
    "content", [[], {"testenvs": 1}, report("torch1.0", success=True), "no report"]
)
def test_what_is_no_report_of_the_matrix_is_refused_and_nothing_is_written(
    content: Any, tmp_path: Path, page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main([written(tmp_path, content), "--output", str(page)]) == 2
    assert "tox --result-json" in capsys.readouterr().err
    assert not page.exists()
