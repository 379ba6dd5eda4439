"""The distributions in plugins/ are strangers: installed they work everywhere, removed they are gone."""

from __future__ import annotations

import ast
import csv
import json
import os
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from subprocess import run

import numpy as np
import pytest
from attrs import frozen

import hetcache_core
from hetcache_core import Registry, accelerate, discover
from hetcache_core.errors import ConfigError
from hetcache_core.records.trace import Trace
from hetcache_core.steps import Mode
from hetcache_core.testing import tiny_case

ROOT = Path(__file__).parents[2]
CASE = tiny_case()


@frozen
class Stranger:
    """A distribution in plugins/, the policy, backbone or metric that it provides, and what that takes."""

    distribution: str
    policy: str = ""
    backbone: str = ""
    library: str = ""
    metric: str = ""

    def __str__(self) -> str:
        return self.distribution

    @property
    def source(self) -> Path:
        return ROOT / "plugins" / self.distribution

    @property
    def package(self) -> str:
        return self.distribution.replace("-", "_")

    @property
    def hook(self) -> str:
        kind = "policies" if self.policy else "backbones" if self.backbone else "metrics"
        return f"hetcache_register_{kind}"

    def names_in(self, registry: Registry) -> tuple[str, ...]:
        """Which of its names a registry has."""
        mine = {self.policy, self.backbone, self.metric} - {""}
        kinds = ("policy", "backbone", "metric")
        return tuple(mine & {name for kind in kinds for name in registry.names(kind)})


POLICIES = [
    Stranger("hetcache-bwcache", "bwcache"),
    Stranger("hetcache-mixcache", "mixcache"),
    Stranger("hetcache-template", "latent-change"),
]
BWCACHE, MIXCACHE, _ = POLICIES
COGVIDEOX = Stranger("hetcache-cogvideox", backbone="cogvideox", library="diffusers")
COMFYUI = Stranger("hetcache-comfyui", backbone="comfy-wan")
PIECE = Stranger("hetcache-template-piece")
GMSD = Stranger("hetcache-metric-gmsd", metric="gmsd", library="torchmetrics")
TELEMETRY = Stranger("hetcache-opentelemetry", library="opentelemetry.sdk")
STRANGERS = [*POLICIES, COGVIDEOX, COMFYUI, GMSD]
each = pytest.mark.parametrize("stranger", STRANGERS, ids=str)
observing_too = pytest.mark.parametrize("stranger", [*STRANGERS, TELEMETRY], ids=str)
each_policy = pytest.mark.parametrize("stranger", POLICIES, ids=str)


def uv(*words: str | Path) -> None:
    pytest.importorskip("uv")
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "uv", "--offline", "--quiet", "pip", *words]
    done = run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stderr}"


def install(stranger: Stranger, folder: Path) -> None:
    """Build a distribution and install it, and nothing else, to a folder."""
    options = ("--no-deps", "--no-build-isolation", "--python", sys.executable)
    uv("install", *options, "--target", folder, stranger.source)


Installer = Callable[[Stranger], Path]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Installer:
    """Install each distribution once, when it is first asked for."""
    done: dict[Stranger, Path] = {}

    def folder_of(stranger: Stranger) -> Path:
        if stranger not in done:
            done[stranger] = tmp_path_factory.mktemp(stranger.package)
            install(stranger, done[stranger])
        return done[stranger]

    return folder_of


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Put a folder where Python looks for packages, as long as the test runs."""

    def forget() -> None:
        packages = {stranger.package for stranger in (*STRANGERS, PIECE)}
        for name in [name for name in sys.modules if name.split(".")[0] in packages]:
            del sys.modules[name]

    forget()
    yield monkeypatch.syspath_prepend
    forget()


def edit(policy: str, registry: Registry, steps: int = 20, preset: str | None = None) -> Trace:
    pipeline = CASE.make_pipeline(0)
    with accelerate(
        pipeline, policy, preset=preset, backbone=CASE.backbone, registry=registry
    ) as session:
        CASE.run(pipeline, steps, "separate", 0)
    return session.trace


@each_policy
def test_installed_its_policy_is_found_by_name_and_reuses(
    stranger: Stranger, folders: Installer, add: Callable[[Path], None]
) -> None:
    add(folders(stranger))
    registry = discover(strict=True)
    assert stranger.policy in registry.names("policy")
    (record,) = (r for r in registry.plugins if r.distribution == stranger.distribution)
    assert (record.status, record.version, record.error) == ("ok", "0.1.0", None)
    assert record.names("policy") == (stranger.policy,)
    trace = edit(stranger.policy, registry)
    assert trace.policy == stranger.policy
    assert trace.totals().steps_reused > 3
    assert trace.totals().flops_speedup > 1.2


def test_installed_its_backbone_is_listed_with_what_it_carries(
    folders: Installer, add: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(COGVIDEOX.library)
    main = pytest.importorskip("hetcache.cli.main").main
    add(folders(COGVIDEOX))
    registry = discover(strict=True)
    (record,) = (r for r in registry.plugins if r.distribution == COGVIDEOX.distribution)
    assert (record.status, record.version, record.error) == ("ok", "0.1.0", None)
    assert record.names("backbone") == (COGVIDEOX.backbone,)

    assert main(["backbones", "--json"]) == 0
    listed = {backbone["name"]: backbone for backbone in json.loads(capsys.readouterr().out)}
    found = listed[COGVIDEOX.backbone]
    assert found["error"] is None
    assert found["library_version"] == metadata.version("diffusers")
    assert found["library_supported"] == ">=0.36"
    assert found["guidance"] == ["merged", "none"]
    lacking = sorted(name for name, has in found["features"].items() if not has)
    assert lacking == ["compiled", "control", "sub_layers"]
    assert main(["backbones"]) == 0
    assert COGVIDEOX.backbone in capsys.readouterr().out


def test_installed_a_selector_is_taken_by_name_with_its_settings(
    folders: Installer, add: Callable[[Path], None]
) -> None:
    add(folders(PIECE))
    registry = discover(strict=True)
    assert registry.provider("selector", "near").distribution == PIECE.distribution
    settings = {"context_ratio": 0.3, "selector": "near", "selector.radius": 3}
    pipeline = CASE.make_pipeline(0)
    with accelerate(
        pipeline, "hetcache", settings=settings, backbone=CASE.backbone, registry=registry
    ) as session:
        CASE.run(pipeline, 20, "separate", 0)
    used = session.trace.settings
    assert (used["selector"], used["selector.radius"]) == ("near", 3)
    partial = [record for record in session.trace.records if record.mode is Mode.PARTIAL]
    assert partial
    assert all(record.active_by_role["context"] for record in partial)
    with pytest.raises(ConfigError, match=r"unknown setting 'radus'.*radius"):
        accelerate(
            pipeline,
            "hetcache",
            settings={"selector": "near", "selector.radus": 3},
            backbone=CASE.backbone,
            registry=registry,
        )


@each
def test_removed_it_is_gone(
    stranger: Stranger, tmp_path: Path, add: Callable[[Path], None]
) -> None:
    install(stranger, tmp_path)
    add(tmp_path)
    assert stranger.names_in(discover(strict=True))
    uv("uninstall", "--target", tmp_path, stranger.distribution)
    registry = discover(strict=True)
    assert not stranger.names_in(registry)
    assert stranger.distribution not in {record.distribution for record in registry.plugins}
    name = stranger.policy or stranger.backbone or stranger.metric
    kind = "backbone" if stranger.backbone else "metric"
    use = edit if stranger.policy else lambda name, registry: registry.load(kind, name)
    with pytest.raises(ConfigError, match=name):
        use(name, registry)


@observing_too
def test_blocked_it_is_listed_and_not_imported(
    stranger: Stranger, folders: Installer, add: Callable[[Path], None]
) -> None:
    add(folders(stranger))
    registry = discover(blocked=[stranger.distribution])
    (record,) = (r for r in registry.plugins if r.distribution == stranger.distribution)
    assert record.status == "blocked"
    assert stranger.package not in sys.modules


@pytest.mark.timeout(400)
@observing_too
def test_its_own_tests_pass_on_what_is_installed(stranger: Stranger, folders: Installer) -> None:
    """They run the contract kit, among others."""
    if stranger.library:
        pytest.importorskip(stranger.library)
    folder = folders(stranger)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        stranger.source / "tests",
    ]
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@each
def test_listing_it_imports_no_torch(stranger: Stranger, folders: Installer) -> None:
    code = (
        f"import sys, {stranger.package}.plugin as plugin; "
        f"plugin.{stranger.hook}(); sys.exit('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(folders(stranger))}
    assert run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


@observing_too
def test_it_depends_on_hetcache_by_version(stranger: Stranger, folders: Installer) -> None:
    (found,) = metadata.distributions(path=[str(folders(stranger))])
    requires = found.requires or []
    assert any(
        line.startswith("hetcache") and ">=0.2" in line and "<0.3" in line for line in requires
    )
    assert "hetcache" in found.entry_points.groups


@observing_too
def test_it_imports_what_is_promised_and_nothing_else(stranger: Stranger) -> None:
    """Names in ``hetcache_core.__all__``, and in tests and cases those of the contract kit."""
    promised = set(hetcache_core.__all__)
    for path in stranger.source.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith("hetcache") for alias in node.names), path
            if not isinstance(node, ast.ImportFrom) or not node.module:
                continue
            package = node.module.split(".")[0]
            if package == "hetcache_core" and node.module == "hetcache_core":
                assert {alias.name for alias in node.names} <= promised, path
            elif package.startswith("hetcache"):
                tests = path.parent.name == "tests" or path.name == "case.py"
                kit = tests and node.module == "hetcache_core.testing"
                quality = stranger.metric and node.module == "hetcache.quality"
                assert kit or quality or package == stranger.package, f"{path}: {node.module}"


def test_all_of_them_together_are_no_conflict(
    folders: Installer, add: Callable[[Path], None]
) -> None:
    for stranger in STRANGERS:
        add(folders(stranger))
    registry = discover(strict=True)
    assert all(stranger.names_in(registry) for stranger in STRANGERS)


@pytest.mark.parametrize(
    ("stranger", "other", "piece"),
    [
        (BWCACHE, "teacache", "step"),
        (BWCACHE, "pab", "blocks"),
        (MIXCACHE, "every-nth", "step"),
        (MIXCACHE, "fastercache-cfg", "guidance"),
    ],
    ids=str,
)
def test_with_a_policy_that_answers_the_same_question_it_is_refused_by_name(
    stranger: Stranger, other: str, piece: str, folders: Installer, add: Callable[[Path], None]
) -> None:
    add(folders(stranger))
    pipeline = CASE.make_pipeline(0)
    with pytest.raises(ConfigError, match=piece) as caught:
        accelerate(
            pipeline,
            f"{stranger.policy}+{other}",
            backbone=CASE.backbone,
            registry=discover(strict=True),
        )
    assert f"'{stranger.policy}'" in str(caught.value)
    assert f"'{other}'" in str(caught.value)


@pytest.mark.parametrize("name", ["bwcache+fastercache-cfg", "mixcache+pab", "latent-change+toca"])
def test_with_policies_that_answer_other_questions_they_compose(
    name: str, folders: Installer, add: Callable[[Path], None]
) -> None:
    for stranger in POLICIES:
        add(folders(stranger))
    alone, other = name.split("+")
    registry = discover(strict=True)
    both = edit(name, registry).totals()
    assert both.flops < edit(alone, registry).totals().flops
    assert both.flops < edit(other, registry).totals().flops


@pytest.mark.parametrize(
    ("stranger", "preset"), [(BWCACHE, "fast"), (MIXCACHE, "quality")], ids=str
)
def test_its_presets_are_taken(
    stranger: Stranger, preset: str, folders: Installer, add: Callable[[Path], None]
) -> None:
    add(folders(stranger))
    assert edit(stranger.policy, discover(strict=True), preset=preset).totals().steps_reused


@pytest.mark.parametrize("stranger", [BWCACHE], ids=str)
def test_on_the_command_line_it_is_a_policy_like_any_other(
    stranger: Stranger,
    folders: Installer,
    add: Callable[[Path], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("diffsynth")
    main = pytest.importorskip("hetcache.cli.main").main
    video = pytest.importorskip("hetcache.media.video")
    add(folders(stranger))

    assert main(["plugins", "list", "--json"]) == 0
    plugins = json.loads(capsys.readouterr().out)
    assert stranger.distribution in {plugin["distribution"] for plugin in plugins}
    assert main(["policies", "--json"]) == 0
    policies = json.loads(capsys.readouterr().out)
    assert stranger.policy in {policy["name"] for policy in policies}

    clip, mask = np.zeros((5, 64, 64, 3), np.uint8), np.zeros((5, 64, 64, 3), np.uint8)
    clip[:, :, 20:] = mask[:, 16:48, 16:48] = 255
    files = {name: str(tmp_path / f"{name}.mp4") for name in ("video", "mask", "output")}
    for name, frames in (("video", clip), ("mask", mask)):
        video.write_video(Path(files[name]), frames, Fraction(24))
    options = [word for name, path in files.items() for word in (f"--{name}", path)]
    trace = tmp_path / "trace.json"
    words = ["edit", *options, "--steps", "20", "--device", "cpu", "--trace", str(trace)]
    assert main([*words, "--policy", stranger.policy, "--set", "threshold=0.5"]) == 0
    found = Trace.load(trace)
    assert found.policy == stranger.policy
    assert found.settings["threshold"] == 0.5
    assert found.totals().steps_reused > 0


def headings(shown: str) -> list[str]:
    """The headings of tables in a terminal, each of which is broken into lines."""
    found = []
    for table in shown.split("┡"):
        rows = [line.strip("┃").split("┃") for line in table.splitlines() if line.startswith("┃")]
        found += [" ".join(" ".join(parts).split()) for parts in zip(*rows, strict=True)]
    return found


@pytest.mark.timeout(400)
def test_the_columns_of_its_metric_reach_tables_files_plots_page_and_evaluation(
    folders: Installer,
    add: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing but the installed distribution knows of it."""
    pytest.importorskip("diffsynth")
    main = pytest.importorskip("hetcache.cli.main").main
    video = pytest.importorskip("hetcache.media.video")
    folder = folders(GMSD)
    add(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))  # workers are processes of their own
    output = tmp_path / "results"
    words = ["--policies", "every-nth", "--clips", "builtin:small-still-object-0", "--repeat", "1"]
    words += ["--frames", "5", "--height", "64", "--width", "64", "--steps", "6", "--device", "cpu"]
    assert main(["compare", "--output", str(output), *words]) == 0
    shown = headings(capsys.readouterr().out)
    assert {"GMSD to uncached", "GMSD to uncached, mask"} <= set(shown)
    with (output / "rows.csv").open(newline="", encoding="utf-8") as file:
        reference, cached = csv.DictReader(file)
    for region in ("", "_mask"):
        assert json.loads(reference["metrics"])[f"gmsd_reference{region}"] == 0
        assert json.loads(cached["metrics"])[f"gmsd_reference{region}"] > 0
        assert json.loads(cached["metrics"])[f"gmsd_truth{region}"] > 0
    table = (output / "table.md").read_text(encoding="utf-8")
    assert "| GMSD to uncached | GMSD to uncached, mask |" in table
    assert "- GMSD: the deviation of gradient similarity" in table
    assert "gmsd_truth_mask_mean" in (output / "summary.csv").read_text(encoding="utf-8")
    plot = (output / "metrics" / "gmsd_reference_mask.svg").read_text(encoding="utf-8")
    assert "GMSD to uncached, mask (lower is better)" in plot
    assert "every-nth" in plot
    assert main(["report", str(output)]) == 0
    page = (output / "report.html").read_text(encoding="utf-8")
    assert 'data-name="gmsd_reference_mask" data-better="lower"' in page
    assert "<summary>GMSD to uncached, mask</summary>" in page

    files = {name: str(tmp_path / f"{name}.mp4") for name in ("gt", "pred")}
    clip = np.zeros((3, 64, 64, 3), np.uint8)
    for name, path in files.items():
        clip[:, 16:48, 20:] = 255 if name == "gt" else 60
        video.write_video(Path(path), clip, Fraction(24))
    capsys.readouterr()
    options = [word for name, path in files.items() for word in (f"--{name}", path)]
    assert main(["evaluate", *options, "--device", "cpu", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["clips"]
    assert found["metrics"]["gmsd"]["value"] > 0.01
    assert found["metrics"]["gmsd_mask"] == {"value": None, "note": "needs --mask"}
