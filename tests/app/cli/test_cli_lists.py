"""Commands that show what there is, and how the command line behaves as a whole."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

pytest.importorskip("typer")
pytest.importorskip("yaml")

from hetcache.cli.main import main
from hetcache.plugins.listing import supported_versions
from hetcache_core.plugins.discovery import discover
from hetcache_core.plugins.kinds import KINDS
from hetcache_core.settings.declare import describe

PLUGIN_KEYS = {
    "name", "distribution", "version", "status", "hooks", "error",
    *(kind.key for kind in KINDS.values()),
}  # fmt: skip
POLICY_KEYS = {
    "name",
    "summary",
    "source",
    "settings",
    "presets",
    "preset_shares",
    "needs",
    "error",
}
SETTING_KEYS = {"name", "type", "default", "doc", "allowed", "required", "pieces"}
BACKBONE_KEYS = {
    "name", "summary", "library", "library_version", "library_supported", "features", "guidance",
    "geometry", "models", "masked", "error",
}  # fmt: skip
DOCTOR_KEYS = {
    "hetcache", "python", "executable", "platform", "cpu_count", "torch", "cuda_devices",
    "libraries", "plugins", "policies", "backbones", "codecs", "models", "free_disk_bytes", "problems",
}  # fmt: skip


def output(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 0
    return capsys.readouterr().out


def test_the_version_is_that_of_the_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    assert output(capsys, "--version") == f"hetcache {version('hetcache')}\n"


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["edit", "--help"], ["plugins"]])
def test_help_is_shown(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert output(capsys, *words).startswith("Usage: hetcache")


@pytest.mark.parametrize(
    "words",
    [["--version"], ["--help"], ["edit", "--help"], ["plugins", "list"], ["edit", "--steps", "0"]],
    ids=" ".join,
)
def test_nothing_heavy_is_imported_for_a_quick_answer(words: list[str]) -> None:
    code = (
        "import sys\n"
        "from hetcache.cli.main import main\n"
        f"main({words!r})\n"
        "heavy = {'torch', 'diffsynth', 'av', 'torchmetrics'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("given", "used"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_sleep_while_they_wait_unless_asked_otherwise(
    given: str | None, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    assert main(["--version"]) == 0
    assert os.environ["OMP_WAIT_POLICY"] == used


def test_plugins_are_listed_with_what_they_provide(capsys: pytest.CaptureFixture[str]) -> None:
    plugins = json.loads(output(capsys, "plugins", "list", "--json"))
    assert all(set(plugin) == PLUGIN_KEYS for plugin in plugins)
    by_name = {plugin["name"]: plugin for plugin in plugins}
    assert "hetcache" in by_name["builtin-policies"]["policies"]
    assert "builtin-policies" in output(capsys, "plugins", "list")
    hook = ("--hook", "hetcache_register_backbones")
    listed = json.loads(output(capsys, "plugins", "list", "--json", *hook))
    assert "builtin-policies" not in {plugin["name"] for plugin in listed}


def test_a_blocked_plugin_is_missing_and_said_to_be_blocked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HETCACHE_DISABLE_PLUGINS", "builtin-policies")
    plugins = json.loads(output(capsys, "plugins", "list", "--json"))
    status = {plugin["name"]: plugin["status"] for plugin in plugins}
    assert status["builtin-policies"] == "blocked"
    assert json.loads(output(capsys, "policies", "--json")) == []


def test_a_name_that_blocks_nothing_is_warned_of_on_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HETCACHE_DISABLE_PLUGINS", "builtin-polices")
    assert main(["policies", "--json"]) == 0
    out, err = capsys.readouterr()
    json.loads(out)
    assert err.startswith("warning: ")
    assert "builtin-polices" in err
    assert err.count("\n") == 1


def test_policies_are_listed_with_every_setting_and_preset(
    capsys: pytest.CaptureFixture[str],
) -> None:
    registry = discover()
    policies = {
        policy["name"]: policy for policy in json.loads(output(capsys, "policies", "--json"))
    }
    listed = output(capsys, "policies")
    assert set(policies) == set(registry.names("policy"))
    for name, policy in policies.items():
        assert name in listed
        shown = output(capsys, "policies", name)
        assert "".join(policy["source"].split()) in "".join(shown.split())
        assert set(policy) == POLICY_KEYS
        assert policy["error"] is None
        assert policy["source"]
        assert ("--preset balanced" in shown) == ("balanced" in policy["presets"])
        settings = describe(registry.policy(name))
        assert [given["name"] for given in policy["settings"]] == [info.name for info in settings]
        for given in policy["settings"]:
            assert set(given) == SETTING_KEYS
            assert given["doc"]
            assert given["required"] == (given["name"] in registry.policy(name).needs_settings())
            assert f"{given['name']}=" in shown
    guards = {each["name"]: each["default"] for each in policies["every-nth"]["settings"]}
    assert (guards["first_steps"], guards["last_steps"], guards["longest_reuse"]) == (1, 1, None)
    assert {*policies["hetcache"]["presets"]} - {"paper", "code"} == {"quality", "balanced", "fast"}
    assert set(policies["hetcache"]["preset_shares"]) == {"quality", "balanced", "fast"}
    assert policies["none"]["presets"] == {}
    assert policies["hetcache"]["needs"] == ["attention", "mask", "rows"]
    shown = output(capsys, "policies", "hetcache")
    assert "% of the FLOPs)" in shown
    assert "needs a backbone with: attention, mask, rows" in shown
    (alone,) = json.loads(output(capsys, "policies", "hetcache", "--json"))
    assert alone == policies["hetcache"]
    assert main(["policies", "hetcach"]) == 2
    assert "did you mean 'hetcache'" in capsys.readouterr().err


def test_the_list_of_policies_needs_no_torch() -> None:
    code = (
        "import sys; from hetcache.cli.main import main; main(['policies']); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_table_of_the_documentation_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    document = (Path(__file__).parents[3] / "docs" / "policies.md").read_text(encoding="utf-8")
    _, _, after = document.partition("<!-- begin: hetcache policies --markdown -->\n")
    written, _, _ = after.partition("<!-- end -->")
    assert written == output(capsys, "policies", "--markdown"), (
        "write the output of `hetcache policies --markdown` between the marks"
    )


def test_backbones_are_listed_with_what_they_can_carry(capsys: pytest.CaptureFixture[str]) -> None:
    backbones = json.loads(output(capsys, "backbones", "--json"))
    shown = output(capsys, "backbones")
    assert [backbone["name"] for backbone in backbones] == list(discover().names("backbone"))
    for backbone in backbones:
        assert set(backbone) == BACKBONE_KEYS
        assert backbone["name"] in shown
    tiny = next(backbone for backbone in backbones if backbone["name"] == "tiny-vace")
    assert tiny["features"]["mask"] is True
    assert tiny["geometry"]["size_multiple"] == tiny["geometry"]["token_size"] == 16
    assert "separate" in tiny["guidance"]
    described = next(backbone for backbone in backbones if backbone["name"] == "diffusers")
    assert {"flux", "wan", "ltx2"} <= set(described["models"])
    assert "  models " in shown
    ltx = shown[shown.index("ltx-video") : shown.index("onnx-runtime")]
    about = dict(line.split(maxsplit=1) for line in ltx.splitlines() if line.startswith("  "))
    assert about["library"].endswith(" (supported: >=0.36)")
    assert about["tokens"] == "one for 32x32 pixels and 8 frames"
    assert about["guidance"] == "merged, none"
    assert about["control"] == "none"
    assert about["carries"] == "rows, sub_layers, attention, mask, output, sampler, compiled"


def test_versions_of_a_library_are_those_that_the_distribution_asks_for() -> None:
    assert supported_versions("hetcache", "diffusers") == ">=0.36"
    assert supported_versions("hetcache", "Type_Ing.Nothing") is None
    assert supported_versions("no-such-distribution", "diffusers") is None
    assert supported_versions("none, added by the program", "diffusers") is None


WAN_PFLOP = 43
"""Of 50 steps of Wan2.1-VACE-1.3B with guidance: 2 x 50 x (45 blocks of 8 n d^2 + 4 n^2 d of self-attention,
4 n d^2 + 2048 (d^2 + n d) of cross-attention and 4 n d 8960, and 15 hints and one input of 2 n d^2), with
n = 32,760 tokens and d = 1,536."""


def test_the_doctor_sees_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("av")
    pytest.importorskip("diffsynth")
    found = json.loads(output(capsys, "doctor", "--json"))
    assert set(found) == DOCTOR_KEYS
    assert found["problems"] == []
    assert found["libraries"]["torch"] == version("torch")
    assert "libx264" in found["codecs"]
    assert found["backbones"]["tiny-vace"] is None
    assert found["free_disk_bytes"] > 0
    large, small = found["models"]
    assert large["model"].endswith("14B")
    assert large["weights_bytes"] > small["weights_bytes"]
    whole = small["weights_bytes"] + small["encoder_bytes"] + small["cache_bytes"]
    assert (small["fits"] == "at once") == (whole <= 0.8 * small["memory_bytes"])
    assert small["flops_per_second"] > 1e8
    assert round(small["flops"] / 1e15) == WAN_PFLOP
    assert "builtin-policies" in output(capsys, "doctor")


def test_the_doctor_says_what_is_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HETCACHE_DISABLE_PLUGINS", "builtin-policies")
    assert main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["problems"] == ["no plugin provides a policy"]
    assert main(["doctor"]) == 1
    assert "no plugin provides a policy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("typer", ["--version"]),
        ("rich", ["plugins", "list"]),
        ("yaml", ["edit", "--config", "run.yaml"]),
    ],
)
def test_a_missing_library_is_named_with_the_extra_that_brings_it(
    module: str, words: list[str]
) -> None:
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from hetcache.cli.main import main\n"
        f"sys.exit(main({words!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"error: {module} is not installed. Run: pip install 'hetcache[app]'\n"


@pytest.mark.parametrize("pending", [True, False])
@pytest.mark.parametrize(("words", "status"), [(["--version"], 0), (["policies", "--x"], 2)])
def test_the_program_leaves_at_once_with_all_that_was_asked_for_at_the_end(
    words: list[str], status: int, *, pending: bool
) -> None:
    code = (
        "import atexit, sys, threading, time\n"
        "from hetcache.cli.main import program\n"
        "atexit.register(print, 'at the end')\n"
        f"sys.argv = ['hetcache', *{words!r}]\n"
        f"if {pending}:\n"
        "    later = lambda: (time.sleep(0.5), print('waited for'))\n"
        "    threading.Thread(target=later).start()\n"
        "program()\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert done.stdout.count("at the end") == 1
    assert done.stdout.count("waited for") == pending
    assert ("hetcache 0." in done.stdout) == (status == 0)
    assert done.stderr.startswith("error: ") == (status == 2)


def test_a_reader_that_has_seen_enough_is_not_answered_with_a_traceback() -> None:
    """Buffered as in a pipe, where a short answer is not written before the interpreter leaves."""
    code = "from hetcache.cli.main import main; main(['plugins', 'list', '--json'])"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=buffered,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    process.wait()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no disk that is always full")
@pytest.mark.parametrize(
    ("streams", "status", "said"),
    [
        (">/dev/full", 2, "error: stdout cannot be written: No space left on device\n"),
        (">/dev/full 2>/dev/full", 2, ""),
        (">&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
    ],
)
def test_streams_that_take_nothing_are_no_fault_of_the_program(
    streams: str, status: int, said: str
) -> None:
    command = f"{shlex.quote(sys.executable)} -m hetcache policies {streams}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (status, said)
