"""``hetcache vbench`` with a stand-in that records how it was called."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("typer")

from hetcache.cli.main import main

STAND_IN = """#!{python}
import json, os, sys
from pathlib import Path
called = {{"arguments": sys.argv[1:], "path": os.environ["PATH"].split(os.pathsep)}}
Path({record!r}).write_text(json.dumps(called))
print("scores of VBench")
{end}
"""


@pytest.fixture
def videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of videos, below the current folder, where no VBench is installed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    folder = tmp_path / "my videos"
    folder.mkdir()
    return folder


def install(folder: Path, end: str = "sys.exit(0)") -> Path:
    """Install a stand-in as tools are: in an environment of its own, with a link on the path."""
    environment = folder / "environment" / "bin"
    environment.mkdir(parents=True)
    (folder / "bin").mkdir()
    program = environment / "vbench"
    record = str(folder / "called.json")
    program.write_text(STAND_IN.format(python=sys.executable, record=record, end=end))
    program.chmod(0o755)
    (folder / "bin" / "vbench").symlink_to(program)
    return environment


def called(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "called.json").read_text())
    return found


def test_the_folder_and_the_arguments_are_handed_on_as_they_are(
    videos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    install(tmp_path)
    rest = ["--dimension", "subject_consistency", "--output_path", "of clips/", "--ngpus=2"]
    assert main(["vbench", "my videos", "--", *rest]) == 0
    assert called(tmp_path)["arguments"] == [
        "evaluate", "--videos_path", str(videos), "--mode", "custom_input", *rest
    ]  # fmt: skip
    assert capfd.readouterr().out == "scores of VBench\n"


@pytest.mark.parametrize("mode", [["--mode", "vbench_standard"], ["--mode=vbench_category"]])
def test_a_mode_that_is_given_is_the_only_one(
    videos: Path, tmp_path: Path, mode: list[str]
) -> None:
    install(tmp_path)
    assert main(["vbench", str(videos), "--", *mode]) == 0
    assert called(tmp_path)["arguments"] == ["evaluate", "--videos_path", str(videos), *mode]


def test_the_python_that_vbench_calls_is_its_own(videos: Path, tmp_path: Path) -> None:
    environment = install(tmp_path)
    assert main(["vbench", str(videos)]) == 0
    assert called(tmp_path)["path"] == [str(environment), str(tmp_path / "bin")]


@pytest.mark.parametrize("status", [0, 1, 2, 7])
def test_the_exit_status_is_that_of_vbench(videos: Path, tmp_path: Path, status: int) -> None:
    install(tmp_path, f"sys.exit({status})")
    assert main(["vbench", str(videos)]) == status


def test_the_end_by_a_signal_is_told_as_shells_do(videos: Path, tmp_path: Path) -> None:
    install(tmp_path, "os.kill(os.getpid(), 15)")
    assert main(["vbench", str(videos)]) == 128 + 15


def refusal(words: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    assert main(["vbench", *words]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("error: hetcache vbench: ")
    return line


def test_without_vbench_it_is_said_how_to_install_it(
    videos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = refusal([str(videos)], capfd)
    assert "VBench is not installed" in said
    assert "uv tool install --python 3.10 vbench" in said


def test_what_is_no_folder_is_refused(
    videos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    install(tmp_path)
    (tmp_path / "clip.mp4").touch()
    assert "nowhere does not exist" in refusal(["nowhere"], capfd)
    assert "clip.mp4 is no folder" in refusal(["clip.mp4"], capfd)
    assert not (tmp_path / "called.json").exists()


@pytest.mark.parametrize("name", ["$(touch here)", "`touch here`", 'a"b', "a\\b"])
def test_a_name_that_the_shell_of_vbench_would_change_is_refused(
    videos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    install(tmp_path)
    (tmp_path / name).mkdir()
    assert "Rename it" in refusal([name], capfd)
    assert not (tmp_path / "called.json").exists()


def test_a_program_that_cannot_be_run_is_one_line(
    videos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (install(tmp_path) / "vbench").write_text("#!/nowhere/python\n")
    assert "cannot be run: " in refusal([str(videos)], capfd)


def test_a_folder_has_to_be_named(videos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["vbench"]) == 2
    assert "folder" in capfd.readouterr().err.lower()
