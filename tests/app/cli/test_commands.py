"""Commands are made from config classes, those of strangers as those that come with hetcache."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest

pytest.importorskip("typer")

import typer
from attrs import frozen

from hetcache.cli.commands import COMMANDS
from hetcache.cli.main import main
from hetcache.cli.options import function_of
from hetcache.running.groups import JsonConfig
from hetcache.running.options import written
from hetcache_core import discover, setting
from hetcache_core.settings.declare import declared, group


@frozen(kw_only=True)
class Sample:
    """An option of every kind."""

    name: str = setting(doc="what it is called", metadata=written(positional=True, metavar="NAME"))
    output: str = setting(doc="where to", metadata=written("--output", "-o", metavar="FILE"))
    count: int = setting(3, ge=1, doc="how many")
    share: float | None = setting(
        None, ge=0, le=1, doc="which share", metadata=written(unset="all")
    )
    extent: int | float = setting(1, doc="a count or a share")
    mode: Literal["fast", "slow"] | None = setting(None, doc="in which way")
    steps: tuple[int, ...] = setting((), doc="which steps")
    clips: tuple[str, ...] = setting((), doc="which clips")
    merge: bool = setting(default=True, doc="merge them")
    size: int = setting(
        7, doc="how large", metadata=written(metavar="SIZE", read=lambda text, _: len(text))
    )
    settings: Any = attrs.field(factory=dict, metadata={"doc": "of the policy"})
    answer: JsonConfig = group(JsonConfig())


Call = Callable[..., Any]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs a command with the options of ``Sample``; returns its config, or what it prints."""
    made: list[Sample] = []

    def run(*words: str) -> Any:
        app = typer.Typer(rich_markup_mode=None, add_completion=False)
        function = function_of(Sample, where="sample", reads_file=False, run=made.append)
        app.command(help="A sample.")(function)
        app(words, prog_name="sample", standalone_mode=False)
        return made.pop() if made else " ".join(capsys.readouterr().out.split())

    return run


def test_every_kind_of_option_becomes_a_value_of_its_type(call: Call) -> None:
    assert call("clip", "-o", "x") == Sample(name="clip", output="x")
    words = (
        "clip -o x --count 5 --share 0.5 --extent 0.25 --mode slow --steps 3,7 --clips a --clips b "
        "--no-merge --size four --json"
    )
    assert call(*words.split()) == Sample(
        name="clip", output="x", count=5, share=0.5, extent=0.25, mode="slow", steps=(3, 7),
        clips=("a", "b"), merge=False, size=4, answer=JsonConfig(json=True),
    )  # fmt: skip
    assert call("clip", "-o", "x", "--extent", "2").extent == 2


@pytest.mark.parametrize(
    "line",
    [
        "-o, --output FILE where to [required]",
        "--count INT how many [>= 1; default: 3]",
        "--share FLOAT which share [>= 0 and <= 1; default: all]",
        "--extent INT|FLOAT a count or a share [default: 1]",
        "--mode CHOICE in which way [fast|slow; default: none]",
        "--steps INT,... which steps [default: none]",
        "--clips TEXT which clips [repeatable; default: none]",
        "--merge / --no-merge merge them [default: merge]",
        "--size SIZE how large [default: 7]",
        "--json / --no-json print JSON, and nothing else, on stdout [default: no-json]",
        "what it is called [required]",
    ],
)
def test_help_says_what_an_option_takes_and_what_holds_without_it(call: Call, line: str) -> None:
    assert line.replace(" ", "") in call("--help").replace(" ", "")  # wrapped at hyphens, too


def test_every_option_of_every_command_has_a_text() -> None:
    registry = discover()
    for registration in COMMANDS:
        config = registry.load("command", registration.name).config
        assert all(info.info.doc for info in declared(config).values())


def test_no_summary_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for registration in COMMANDS:
        assert registration.summary in shown or registration.name.startswith("plugins-")


def test_values_are_completed(tmp_path: Path) -> None:
    def completed(words: str) -> list[str]:
        environment = {
            "_HETCACHE_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        }
        done = subprocess.run(
            [sys.executable, "-c", "from hetcache.cli.main import main; main()"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.split()

    assert "compile-schedule" in completed("hetcache comp")
    presets = ["quality", "balanced", "fast", "paper", "code"]
    assert completed("hetcache edit --preset ") == presets
    assert completed("hetcache edit --cache-de") == ["--cache-device"]


BASH = """
hetcache --install-completion bash && source ~/.bashrc
COMP_WORDS=(hetcache edit --preset f) COMP_CWORD=3
$(complete -p hetcache | sed 's/.*-F \\([^ ]*\\).*/\\1/') hetcache
echo "completed: ${COMPREPLY[*]}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_a_shell_in_which_completion_was_installed_completes_values(tmp_path: Path) -> None:
    scripts = sysconfig.get_path("scripts")
    done = subprocess.run(
        ["bash", "--norc", "-c", BASH],
        env={
            "HOME": str(tmp_path),
            "SHELL": "/bin/bash",
            "PATH": f"{scripts}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"bash completion installed in {tmp_path}" in done.stdout
    assert (tmp_path / ".bashrc").read_text().strip().startswith("source ")
    assert done.stdout.splitlines()[-1] == "completed: fast"


# Strangers

STRANGER = """
from typing import ClassVar

from attrs import frozen

from hetcache.cli.command import Command
from hetcache_core import ConfigError, setting

import heavy


@frozen(kw_only=True)
class Config:
    times: int = setting(2, ge=1, doc="how often to greet")


class Greet(Command):
    name: ClassVar[str] = "greet"
    config: ClassVar[type] = Config

    def run(self, config, registry):
        if config.times > 3:
            raise ConfigError("that is too often", where="--times")
        print("hello " * config.times)
        return 5
"""

PLUGIN = """
from hetcache_core import Registration, hookimpl

@hookimpl
def hetcache_register_commands():
    return [Registration(name="{name}", target="{target}", summary="Say hello to everybody.")]
"""


@pytest.fixture
def install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, dict[str, str]], None]:
    """Installs a distribution with a plugin of its own name, found as any other is."""

    def write(name: str, modules: dict[str, str]) -> None:
        folder = tmp_path / name
        info = folder / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[hetcache]\n{name} = {name}_plugin\n")
        for module, source in modules.items():
            (folder / f"{module}.py").write_text(textwrap.dedent(source))
        monkeypatch.syspath_prepend(folder)

    return write


def test_a_strangers_command_stands_beside_the_others(
    install: Callable[[str, dict[str, str]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    modules = {"greeting_plugin": PLUGIN.format(name="greet", target="greeting:Greet")}
    install("greeting", {**modules, "greeting": STRANGER, "heavy": "loaded = True"})
    assert main(["--help"]) == 0
    assert re.search(r"greet +Say hello to everybody\.\n", capsys.readouterr().out)
    assert "heavy" not in sys.modules, "help loads no command"
    assert main(["greet", "--help"]) == 0
    assert "--times INT  how often to greet [>= 1; default: 2]" in capsys.readouterr().out
    assert main(["greet", "--times", "3"]) == 5
    assert capsys.readouterr().out == "hello hello hello \n"
    assert main(["greet", "--times", "0"]) == 2
    assert "hetcache greet: times must be >= 1" in capsys.readouterr().err
    assert main(["greet", "--times", "9"]) == 2
    assert capsys.readouterr().err == "error: --times: that is too often\n"


@pytest.mark.parametrize(
    ("source", "words"),
    [("1 / 0", ["--help"]), ("1 / 0", ["policies", "--json"]), ("1 / 0", ["greet"])],
)
def test_a_broken_plugin_of_commands_is_one_line_and_the_others_work(
    install: Callable[[str, dict[str, str]], None],
    capsys: pytest.CaptureFixture[str],
    source: str,
    words: list[str],
) -> None:
    install("broken", {"broken_plugin": source})
    status = main(words)
    out, err = capsys.readouterr()
    if words == ["greet"]:
        assert status == 2
        assert "there is no command 'greet'" in err
        assert "broken (distribution broken 1.0)" in err
        return
    assert status == 0
    assert err.startswith("warning: ")
    assert err.count("\n") == 1
    assert "broken" in err
    assert json.loads(out) if words[-1] == "--json" else "edit" in out


def test_a_command_that_cannot_be_loaded_is_an_error_only_where_it_is_called(
    install: Callable[[str, dict[str, str]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    install("lost", {"lost_plugin": PLUGIN.format(name="lost", target="nowhere.at_all:Lost")})
    assert main(["--help"]) == 0
    out, err = capsys.readouterr()
    assert "lost" in out
    assert not err
    assert main(["lost"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "nowhere" in err
    assert err.count("\n") == 1


def test_two_commands_of_one_name_are_refused_by_naming_both(
    install: Callable[[str, dict[str, str]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        install(name, {f"{name}_plugin": PLUGIN.format(name="greet", target="nowhere:Greet")})
    assert main(["greet"]) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert "one" in err
    assert "two" in err
