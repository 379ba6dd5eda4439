"""No command overwrites what it was given, or what is no regular file; links and permissions stay."""

from __future__ import annotations

import json
import os
import socket
from contextlib import nullcontext
from pathlib import Path

import pytest
from attrs import frozen

pytest.importorskip("yaml")  # a configuration is among the inputs

from hetcache.cli.commands.compile_schedule import CompileScheduleConfig
from hetcache.cli.commands.report import ReportConfig
from hetcache.comparison.config import CompareConfig
from hetcache.editing.config import CalibrateConfig, DemoConfig, EditConfig
from hetcache.editing.preview import PreviewConfig
from hetcache.quality.evaluate import EvaluateConfig
from hetcache.running.export import ExportConfig
from hetcache.running.options import make, make_jobs, written
from hetcache_core import ConfigError, setting
from hetcache_core.files import replacing, write_text

CONTENT = b"precious"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with files and folders that commands read."""
    monkeypatch.chdir(tmp_path)
    for folder in ("masks", "model", "clips/dog", "results/runs"):
        (tmp_path / folder).mkdir(parents=True)
    for file in (
        "clip.mp4", "mask.png", "masks/0.json", "masks/0.png", "model/config.json", "plan.json", "trace.json",
        "results/rows.csv", "results/comparison.json", "clips/dog/video.mp4", "settings.yaml",
    ):  # fmt: skip
        (tmp_path / file).write_bytes(CONTENT)
    (tmp_path / "settings.yaml").write_text("steps: 3")
    (tmp_path / "link.mp4").symlink_to("clip.mp4")
    (tmp_path / "nowhere").symlink_to("gone/for/good")
    os.link(tmp_path / "mask.png", tmp_path / "hard.json")
    return tmp_path


EDIT = {"video": "clip.mp4", "mask": "mask.png", "output": "out.mp4"}
CALIBRATE = {"policy": "teacache", "video": ["clip.mp4"], "mask": ["mask.png"]}


@pytest.mark.parametrize(
    ("config", "given", "said"),
    [
        (EditConfig, {**EDIT, "output": "./clip.mp4"}, "overwrite the video"),
        (EditConfig, {**EDIT, "output": "link.mp4"}, "overwrite the video"),
        (EditConfig, {**EDIT, "video": "link.mp4", "output": "clip.mp4"}, "overwrite the video"),
        (EditConfig, {**EDIT, "trace": "clip.mp4"}, "overwrite the video"),
        (EditConfig, {**EDIT, "trace": "mask.png"}, "overwrite the mask"),
        (EditConfig, {**EDIT, "trace": "hard.json"}, "overwrite the mask"),
        (EditConfig, {**EDIT, "trace": "out.mp4"}, "--output names the same file"),
        (EditConfig, {**EDIT, "trace": "masks/../out.mp4"}, "--output names the same file"),
        (EditConfig, {**EDIT, "trace": "settings.yaml"}, "overwrite the configuration"),
        (
            EditConfig,
            {**EDIT, "mask": "masks", "trace": "masks/0.json"},
            "replace a file of the mask",
        ),
        (EditConfig, {**EDIT, "model": "model", "trace": "model/config.json"}, "of the model"),
        (
            EditConfig,
            {**EDIT, "policy": "replay:schedule=plan.json", "trace": "plan.json"},
            "overwrite the policy",
        ),
        (
            EditConfig,
            {**EDIT, "settings": {"schedule": "plan.json"}, "trace": "plan.json"},
            "overwrite the settings",
        ),
        (EditConfig, {**EDIT, "trace": "clip.mp4/trace.json"}, "Not a directory"),
        (EditConfig, {**EDIT, "trace": "t" * 256}, "File name too long"),
        (EditConfig, {**EDIT, "trace": "-"}, "- is no file"),
        (EditConfig, {**EDIT, "trace": "/dev/zero"}, "a device, a pipe or a socket"),
        (EditConfig, {**EDIT, "trace": "a\0b"}, "cannot be written"),
        (EditConfig, {**EDIT, "trace": "/dev/fd/1"}, "where this command prints"),
        (PreviewConfig, {**EDIT, "mask": "masks", "output": "masks/0.png"}, "replace a file of"),
        (PreviewConfig, {**EDIT, "mask": "masks", "output": "masks/9.png"}, "one more picture"),
        (PreviewConfig, {**EDIT, "output": "new.png", "clip": "link.mp4"}, "overwrite the video"),
        (CalibrateConfig, {**CALIBRATE, "output": "mask.png"}, "overwrite the mask"),
        (CalibrateConfig, {**CALIBRATE, "output": "clip.mp4"}, "overwrite the video"),
        (CompileScheduleConfig, {"trace": "trace.json", "output": "trace.json"}, "the trace"),
        (ReportConfig, {"folder": "results", "output": "results/rows.csv"}, ".html"),
        (EvaluateConfig, {"gt": "clip.mp4", "pred": "x", "output": "clip.mp4"}, ".csv"),
        (CompareConfig, {"clips": "clips", "output": "clips"}, "overwrite the clips"),
        (
            CompareConfig,
            {"video": "results/runs/a.mp4", "mask": "mask.png", "output": "results"},
            "which is written to",
        ),
        (CompareConfig, {"clips": "clips", "output": "clips/dog"}, "clips clips, which is read"),
        (CompareConfig, {"clips": "clips", "output": "."}, "which is written to"),
        (DemoConfig, {"model": "model", "output": "model"}, "overwrite the model"),
        (DemoConfig, {"output": "nowhere"}, "a link that leads to nothing"),
        (DemoConfig, {"output": "nowhere/below"}, "a link that leads to nothing"),
        (ExportConfig, {"model": "model", "output": "model"}, "overwrite the model"),
        (DemoConfig, {"output": "d" * 256}, "File name too long"),
    ],
    ids=str,
)  # fmt: skip
def test_no_output_is_an_input_another_output_or_no_file(
    folder: Path, config: type, given: dict[str, str], said: str
) -> None:
    (folder / "results/runs/a.mp4").touch()
    file = "settings.yaml" if config is EditConfig else None
    with (folder / "printed").open("w") as printed:
        stdout = os.dup(1)
        os.dup2(printed.fileno(), 1)
        try:
            with pytest.raises(ConfigError) as raised:
                make(config, given, where="test", file=file)
        finally:
            os.dup2(stdout, 1)
            os.close(stdout)
    assert said in str(raised.value)
    assert (folder / "clip.mp4").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("jobs", "said"),
    [
        ([{"output": "b.mp4"}, {"output": "./b.mp4"}], "job 2: --output: b.mp4 would overwrite"),
        ([{"output": "q.mp4"}, {"output": "z.mp4", "video": "q.mp4"}], ""),  # made by the first
        ([{"output": "old.mp4"}, {"output": "z.mp4", "video": "old.mp4"}], "the video of job 2"),
        ([{"output": "hard.mp4"}, {"output": "z.mp4", "video": "old.mp4"}], "the video of job 2"),
        ([{"output": "a-reference.mp4"}, {"output": "a.mp4", "compare": True}], "output of job 1"),
        ([{"output": "a.mp4"}, {"output": "b.mp4", "trace": "a.mp4"}], "the output of job 1"),
        ([{"trace": "/dev/null", "output": f"{i}.mp4"} for i in range(2)], ""),
    ],
    ids=str,
)
def test_no_job_writes_what_another_reads_or_writes(
    folder: Path, jobs: list[dict[str, object]], said: str
) -> None:
    (folder / "old.mp4").write_bytes(CONTENT)
    os.link(folder / "old.mp4", folder / "hard.mp4")
    (folder / "jobs.yaml").write_text(json.dumps([{**EDIT, **job} for job in jobs]))
    with pytest.raises(ConfigError, match=said) if said else nullcontext():
        make_jobs(EditConfig, {}, where="test", jobs="jobs.yaml")


def test_a_command_of_a_plugin_is_checked_by_its_fields_alone(folder: Path) -> None:
    @frozen(kw_only=True)
    class Config:
        source: str = setting(doc="what is read")
        into: str = setting(doc="what is written", metadata=written(writes="file"))

    with pytest.raises(ConfigError, match="overwrite the source"):
        make(Config, {"source": "clip.mp4", "into": "link.mp4"}, where="test")
    make(Config, {"source": "clip.mp4", "into": "new"}, where="test")


def test_what_is_no_mistake_passes(folder: Path) -> None:
    (folder / "auto").touch()
    (folder / "results/report.html").touch()
    for config, given in (
        (EditConfig, {**EDIT, "trace": "/dev/null"}),
        (EditConfig, {**EDIT, "trace": "trace.json"}),  # one of an earlier run
        (EditConfig, {**EDIT, "output": "x" * 251 + ".mp4"}),
        (CompareConfig, {"clips": "clips", "output": "results"}),
        (CompareConfig, {"video": "clip.mp4", "mask": "mask.png", "output": "results"}),
        (ReportConfig, {"folder": "results", "output": "results/report.html"}),
        (EvaluateConfig, {"gt": "clips", "pred": "clips", "output": "clips/scores.csv"}),
    ):
        make(config, given, where="test")


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_pipes_and_sockets_are_refused_and_stay(folder: Path, kind: str) -> None:
    path = folder / "node"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind("node")  # a short name: those of sockets are limited
    before = path.stat()
    with pytest.raises(ConfigError, match="a device, a pipe or a socket"):
        make(EditConfig, {**EDIT, "trace": "node"}, where="test")
    assert path.stat().st_mode == before.st_mode


def test_a_link_is_written_through_and_stays(folder: Path) -> None:
    (folder / "current.json").symlink_to("trace.json")
    (folder / "later.json").symlink_to("new.json")
    write_text(folder / "current.json", "new")
    write_text(folder / "later.json", "new")
    assert (folder / "trace.json").read_text() == (folder / "new.json").read_text() == "new"
    assert (folder / "current.json").is_symlink()
    assert (folder / "later.json").is_symlink()


def test_a_replaced_file_keeps_its_permissions(folder: Path) -> None:
    (folder / "trace.json").chmod(0o600)
    write_text(folder / "trace.json", "new")
    assert (folder / "trace.json").stat().st_mode & 0o777 == 0o600


def test_the_null_device_takes_everything_and_stays(folder: Path) -> None:
    before = Path(os.devnull).stat()
    write_text(Path(os.devnull), "gone")
    assert Path(os.devnull).stat() == before


def test_the_old_file_stays_when_writing_fails(folder: Path) -> None:
    before = set(folder.rglob("*"))

    def broken() -> None:
        with replacing(folder / "trace.json") as part:
            part.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert (folder / "trace.json").read_bytes() == CONTENT
    assert set(folder.rglob("*")) == before
