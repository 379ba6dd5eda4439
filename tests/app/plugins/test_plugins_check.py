"""``hetcache plugins check``: the contract kit on what installed distributions register."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import run

import pytest

pytest.importorskip("typer")

from hetcache.cli.main import main
from hetcache.plugins.check import CheckedDistribution, CheckRow, check_distribution
from hetcache_core import Registration, discover
from hetcache_core.plugins.kinds import KINDS, Kind
from hetcache_core.plugins.registry import Registry
from hetcache_core.testing import TinyBackbone
from hetcache_core.testing.kit import piece_checks

ROOT = Path(__file__).parents[3]
DISTRIBUTIONS = ("hetcache-template", "hetcache-bwcache", "hetcache-mixcache", "hetcache-cogvideox")
BACKBONES = "builtin-backbones"
"""The plugin of the backbones that come with hetcache, whose random models take minutes."""

MODULE = "strange_plugin"
PLUGIN = f"""
from hetcache_core import Registration, hookimpl

@hookimpl
def hetcache_register_policies():
    return [Registration(name="strange", target="{MODULE}:Strange", summary="strange")]
"""
POLICY = """
from typing import ClassVar, final

from attrs import frozen

from hetcache_core import (
    CachePolicy, Decision, Mode, PolicyRecipe, RunInfo, Signals, StepDecider, StepInfo,
    StepPolicy, setting,
)

@final
@frozen
class Steps(StepPolicy):
    def begin(self, run: RunInfo) -> StepDecider:
        return Decider()

class Decider(StepDecider):
    def decide(self, step: StepInfo, signals: Signals) -> Decision:
        {decide}
        return Decision(Mode.FULL if step.index % 2 == 0 else Mode.REUSE, "strange")

@final
@frozen(kw_only=True)
class Strange(PolicyRecipe):
    name: ClassVar[str] = "strange"
    summary: ClassVar[str] = "strange"
    source: ClassVar[str] = "this test"
    {settings}

    def compose(self, model):
        return CachePolicy(name=self.name, step=Steps())
"""


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Put a folder where Python looks for packages, as long as the test runs."""
    before = set(sys.modules)
    yield lambda folder: monkeypatch.syspath_prepend(str(folder))
    packages = {name.replace("-", "_") for name in (*DISTRIBUTIONS, MODULE)}
    for name in set(sys.modules) - before:
        if name.split(".")[0] in packages:
            del sys.modules[name]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The distributions in plugins/, built and installed to a folder, and nothing else."""
    pytest.importorskip("uv")
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("installed")
    options = ("--no-deps", "--no-build-isolation", "--python", sys.executable, "--target", folder)
    sources = [ROOT / "plugins" / name for name in DISTRIBUTIONS]
    command = [sys.executable, "-m", "uv", "--offline", "--quiet", "pip", "install"]
    done = run([*command, *options, *sources], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def distribution(folder: Path, policy: str = "", plugin: str = PLUGIN) -> Path:
    """Lay out an installed distribution whose one module is its plugin."""
    info = folder / "strange-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strange\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[hetcache]\nstrange = {MODULE}\n")
    (folder / f"{MODULE}.py").write_text(policy + plugin)
    return folder


def strange(folder: Path, decide: str = "pass", settings: str = "") -> Path:
    return distribution(folder, POLICY.format(decide=decide, settings=settings))


def toys() -> Registry:
    """The installed plugins, with the toy backbone in place of those of libraries."""
    registry = discover(blocked=[BACKBONES])
    return registry.with_registrations(
        "backbone", Registration(name="tiny", target=TinyBackbone, summary=TinyBackbone.summary)
    )


def failures(checked: CheckedDistribution) -> list[CheckRow]:
    return [row for row in checked.rows if row.result == "failed"]


@pytest.mark.parametrize("name", DISTRIBUTIONS[:3])
def test_policies_by_third_parties_pass_on_the_toy_and_on_every_backbone(
    name: str, installed: Path, add: Callable[[Path], None]
) -> None:
    add(installed)
    begun: list[str] = []
    checked = check_distribution(name.replace("-", "_").upper(), toys(), begun.append)
    assert (checked.distribution, checked.version) == (name, "0.1.0")
    assert not failures(checked)
    (policy,) = {row.name for row in checked.rows if row.kind == "policy"}
    assert begun == [f"policy {policy}"]
    ran = {row.check for row in checked.rows if row.result == "ok"}
    assert {"is_found_and_loads", "loads", "check_two_runs_decide_alike"} <= ran
    expected = {row.check for row in checked.rows if row.result == "failed as expected"}
    assert expected == {*toys().policy(policy).expected_failures}
    assert checked.counts["ok"] > 20


@pytest.mark.timeout(300)
def test_a_backbone_by_a_third_party_passes(installed: Path, add: Callable[[Path], None]) -> None:
    pytest.importorskip("diffusers")
    add(installed)
    checked = check_distribution("hetcache-cogvideox", toys())
    assert not failures(checked)
    passed = {row.check for row in checked.rows if row.kind == "backbone" and row.result == "ok"}
    assert "check_full_steps_are_the_bare_model" in passed
    reasons = {row.reason for row in checked.rows if row.result == "not applicable"}
    assert "the model has no control branch" in reasons


@pytest.mark.timeout(300)
def test_a_policy_runs_on_the_backbones_of_libraries(
    installed: Path, add: Callable[[Path], None]
) -> None:
    pytest.importorskip("diffsynth")
    pytest.importorskip("diffusers")
    add(installed)
    registry = discover(blocked=[BACKBONES])
    registry = registry.with_registrations(
        "backbone",
        Registration(
            name="wan-vace", target="hetcache_backends.wan.wan_vace:WanVace", summary="Wan-VACE"
        ),
    )
    checked = check_distribution("hetcache-template", registry)
    assert not failures(checked)
    assert {row.on for row in checked.rows} == {"", "tiny", "wan-vace", "cogvideox"}


def test_a_broken_policy_is_reported_with_what_is_wrong_and_what_to_do(
    tmp_path: Path,
    add: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    twice = "[signals.read(signals.latent().sum()) for _ in range(2)]"
    add(strange(tmp_path, decide=twice))
    monkeypatch.setenv("HETCACHE_DISABLE_PLUGINS", BACKBONES)
    assert main(["plugins", "check", "strange", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["distribution"], found["version"], found["failed"]) == ("strange", "1.0", 1)
    (row,) = (row for row in found["checks"] if row["result"] == "failed")
    assert row["check"] == "check_the_host_waits_once_a_step"
    assert (row["kind"], row["name"], row["on"]) == ("policy", "strange", "tiny")
    assert "read 2 numbers one by one" in row["reason"]
    assert row["remedy"] == "Use signals.read_many."
    assert found["failed_as_expected"] == 0
    total = found["ok"] + found["failed"] + found["not_applicable"]
    assert len(found["checks"]) == total

    assert main(["plugins", "check", "strange"]) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "policy strange on tiny" in text
    assert "failed the host waits once a step: step 0 read 2 numbers one by one" in text
    assert "1 failed" in text


def test_a_failure_with_a_reason_is_none_and_one_that_never_comes_is(
    tmp_path: Path, add: Callable[[Path], None]
) -> None:
    twice = "[signals.read(signals.latent().sum()) for _ in range(2)]"
    expected = {
        "check_the_host_waits_once_a_step": "two numbers, on purpose",
        "check_two_runs_decide_alike": "nothing is certain",
    }
    add(strange(tmp_path, decide=twice, settings=f"expected_failures: ClassVar = {expected}"))
    checked = check_distribution("strange", toys())
    reasons = {row.check: row.reason for row in checked.rows if row.result == "failed as expected"}
    assert reasons == {"check_the_host_waits_once_a_step": "two numbers, on purpose"}
    (row,) = failures(checked)
    assert row.check == "check_two_runs_decide_alike"
    assert row.reason == "it passes, but was expected to fail: nothing is certain"


def test_one_that_keeps_its_promises_exits_with_0(
    tmp_path: Path,
    add: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    add(strange(tmp_path))
    monkeypatch.setenv("HETCACHE_DISABLE_PLUGINS", BACKBONES)
    assert main(["plugins", "check", "strange"]) == 0
    assert "0 failed" in capsys.readouterr().out


def test_an_error_that_nobody_foresaw_is_a_failed_check_and_the_others_go_on(
    tmp_path: Path, add: Callable[[Path], None]
) -> None:
    add(strange(tmp_path, decide="1 / (step.index - 5)"))
    checked = check_distribution("strange", toys())
    assert "ZeroDivisionError: division by zero" in {row.reason for row in failures(checked)}
    assert checked.counts["ok"] > 3


def test_a_policy_that_needs_a_setting_is_said_to(
    tmp_path: Path, add: Callable[[Path], None]
) -> None:
    add(strange(tmp_path, settings='file: str = setting(doc="a file")'))
    checked = check_distribution("strange", toys())
    assert not failures(checked)
    assert checked.rows[-1].reason == "it needs file, which has no default"


def test_a_policy_that_cannot_be_loaded_is_a_failed_check(
    tmp_path: Path, add: Callable[[Path], None]
) -> None:
    add(distribution(tmp_path, plugin=PLUGIN.replace(":Strange", ":Missing")))
    (row,) = failures(check_distribution("strange", toys()))
    assert (row.kind, row.check) == ("policy", "loads")
    assert "Missing" in row.reason


def test_a_plugin_that_cannot_be_imported_is_a_failed_check(
    tmp_path: Path, add: Callable[[Path], None]
) -> None:
    add(distribution(tmp_path, plugin="raise RuntimeError('no such luck')"))
    with pytest.warns(match="no such luck"):
        registry = toys()
    (row,) = failures(check_distribution("strange", registry))
    assert (row.kind, row.check) == ("plugin", "is_found_and_loads")
    assert "no such luck" in row.reason


def test_a_module_without_hooks_is_a_failed_check(
    tmp_path: Path, add: Callable[[Path], None]
) -> None:
    add(distribution(tmp_path, plugin="x = 1"))
    with pytest.warns(match="implements no hook"):
        registry = toys()
    (row,) = failures(check_distribution("strange", registry))
    assert "implements no hook" in row.reason


def test_a_backbone_without_a_case_is_a_failed_check(
    tmp_path: Path, add: Callable[[Path], None]
) -> None:
    plugin = PLUGIN.replace("policies", "backbones") + (
        "from hetcache_core.testing import TinyBackbone\n"
        "class Strange(TinyBackbone):\n"
        "    name = 'strange'\n"
        "    random_models = None\n"
    )
    add(distribution(tmp_path, plugin=plugin))
    (row,) = failures(check_distribution("strange", toys()))
    assert row.check == "has_a_case"
    assert "BackboneCase" in row.remedy


CLIPS = (
    PLUGIN.replace("policies", "clip_sets")
    + """
import numpy as np
from hetcache_core import ClipSet, ConfigError, EvaluationClip

class Strange(ClipSet):
    name, summary, version = "strange", "one clip", "1"

    def names(self):
        return ("one",)

    def clip(self, name, *, frames, height, width):
        if name != "one":
            raise ConfigError("there is no such clip")
        size = (frames, height, width)
        video = np.random.default_rng({seed}).integers(256, size=(*size, 3), dtype=np.uint8)
        return EvaluationClip(name=name, prompt="", video=video, mask=np.ones(size, bool))
"""
)


@pytest.mark.parametrize(
    ("seed", "failed"), [("0", []), ("", ["check_a_clip_is_the_same_every_time"])]
)
def test_clip_sets_are_checked(
    seed: str, failed: list[str], tmp_path: Path, add: Callable[[Path], None]
) -> None:
    add(distribution(tmp_path, plugin=CLIPS.replace("{seed}", seed)))
    checked = check_distribution("strange", toys())
    assert [row.check for row in failures(checked)] == failed
    assert checked.counts["ok"] == 6 - len(failed)


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind.checks], ids=str)
def test_what_comes_with_hetcache_of_a_kind_passes(kind: Kind) -> None:
    if kind.name == "clip set":
        pytest.importorskip("diffsynth")
    registry = discover()
    for name in registry.names(kind.name):
        for check in piece_checks(kind.name, registry.load(kind.name, name)):
            check()


SELECTOR = (
    PLUGIN.replace("policies", "selectors")
    + """
import torch
from attrs import frozen
from hetcache_core import ContextSelector, Role, Selection, setting

@frozen(kw_only=True)
class Strange(ContextSelector):
    name, summary = "strange", "in some order"
    {field}

    def select(self, request):
        count = request.partition.count(Role.CONTEXT)
        return Selection({order})
"""
)


@pytest.mark.parametrize(
    ("order", "field", "failed"),
    [
        ("torch.arange(count)", "", []),
        ("torch.arange(request.count)", "", ["check_it_orders_every_context_token_once"]),
        ("torch.randperm(count)", "", ["check_it_selects_alike_by_its_seed"]),
        (
            "request.scores().argsort()",
            "",
            [
                "check_it_orders_every_context_token_once",
                "check_it_selects_alike_by_its_seed",
                "check_it_follows_on_a_selection",
                "check_it_does_not_wait_for_the_device",
            ],
        ),
        (
            "torch.arange(count).roll(int(torch.ones(1).item()))",
            "",
            ["check_it_does_not_wait_for_the_device"],
        ),
        (
            "torch.arange(count)",
            "radius: int = setting(2, doc='')",
            ["check_its_settings_are_described"],
        ),
    ],
)
def test_selectors_are_checked(
    order: str, field: str, failed: list[str], tmp_path: Path, add: Callable[[Path], None]
) -> None:
    plugin = SELECTOR.replace("{order}", order).replace("{field}", field)
    add(distribution(tmp_path, plugin=plugin))
    checked = check_distribution("strange", toys())
    assert [row.check for row in failures(checked)] == failed


def test_a_piece_that_has_to_be_given_a_setting_is_said_to_be_unchecked(
    tmp_path: Path, add: Callable[[Path], None]
) -> None:
    plugin = SELECTOR.replace("{order}", "torch.arange(count)")
    plugin = plugin.replace("{field}", "radius: int = setting(doc='how near')")
    add(distribution(tmp_path, plugin=plugin))
    *_, row = check_distribution("strange", toys()).rows
    assert (row.result, row.check) == ("not applicable", "works")
    assert "radius" in row.reason


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("long-gone", "no distribution 'long-gone' is installed"),
        ("hetcach", "did you mean 'hetcache'?"),
        ("numpy", "is installed, but registers nothing"),
    ],
)
def test_what_is_not_there_is_one_line_with_what_is(
    name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plugins", "check", name]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert "Installed distributions with plugins: hetcache" in err
    assert err.count("\n") == 1


def test_pytest_is_not_needed(tmp_path: Path) -> None:
    strange(tmp_path)
    code = (
        "import sys; sys.modules['pytest'] = None\n"
        "from hetcache.cli.main import main\n"
        "sys.exit(main(['plugins', 'check', 'strange']))"
    )
    environment = {
        "PYTHONPATH": str(tmp_path),
        "HETCACHE_DISABLE_PLUGINS": BACKBONES,
        "OMP_NUM_THREADS": "1",
    }
    done = run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
