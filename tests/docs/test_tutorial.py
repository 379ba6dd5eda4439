"""The tutorial on writing a policy: its files are the template's, and make a plugin that works.

That its code runs and type-checks from top to bottom is tested with all other pages.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import run

import pytest

from hetcache_core import accelerate, discover
from hetcache_core.testing import tiny_case

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "write-a-policy.md"
TEMPLATE = ROOT / "plugins" / "hetcache-template"
TITLED = re.compile(
    r'^```\w+ title="(?P<title>[^"]+)"\n(?P<text>.*?)^```$', re.MULTILINE | re.DOTALL
)
FILES = {m["title"]: m["text"] for m in TITLED.finditer(PAGE.read_text(encoding="utf-8"))}
MOST_LINES = 60


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_tutorial_is_the_one_of_the_template(name: str) -> None:
    assert FILES[name] == (TEMPLATE / name).read_text(encoding="utf-8")


def test_the_tutorial_shows_every_file_that_a_plugin_needs() -> None:
    shown = {path for path in TEMPLATE.rglob("*") if str(path.relative_to(TEMPLATE)) in FILES}
    wanted = {path for path in TEMPLATE.rglob("*.py") if path.read_text().count("\n") > 1}
    assert shown == wanted | {TEMPLATE / "pyproject.toml"}


def test_the_policy_has_under_sixty_lines() -> None:
    assert len(FILES["hetcache_template/policy.py"].splitlines()) < MOST_LINES


def test_the_test_imports_nothing_but_the_kit_and_the_policy() -> None:
    imports = [line for line in FILES["tests/test_policy.py"].splitlines() if "import " in line]
    assert [line.split()[1] for line in imports] == [
        "hetcache_core.testing",
        "hetcache_template.policy",
    ]


@pytest.fixture
def no_other_import() -> Iterator[None]:
    """Forget what another test has imported under the template's name, and what this one will."""

    def forget() -> None:
        for name in [name for name in sys.modules if name.split(".")[0] == "hetcache_template"]:
            del sys.modules[name]

    forget()
    yield
    forget()


@pytest.fixture
def installed(tmp_path: Path, no_other_import: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a reader has typed in, installed to a folder of its own."""
    pytest.importorskip("uv")
    pytest.importorskip("hatchling")
    source, target = tmp_path / "typed", tmp_path / "site"
    for name, text in FILES.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text, encoding="utf-8")
    (source / "README.md").write_text("# my policy\n", encoding="utf-8")
    (source / "hetcache_template" / "__init__.py").touch()
    command = [sys.executable, "-m", "uv", "pip", "install", "-q", "--no-deps", "--offline"]
    command += ["--no-build-isolation", "--python", sys.executable, "--target", str(target)]
    done = run([*command, str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    monkeypatch.syspath_prepend(target)
    return target


def test_what_the_tutorial_writes_is_found_by_name_and_reuses_steps(installed: Path) -> None:
    registry = discover()
    (record,) = (r for r in registry.plugins if r.distribution == "hetcache-template")
    assert (record.status, record.names("policy")) == ("ok", ("latent-change",))
    case = tiny_case()
    pipeline = case.make_pipeline(0)
    with accelerate(
        pipeline,
        "latent-change",
        settings={"threshold": 0.1},
        backbone=case.backbone,
        registry=registry,
    ) as session:
        case.run(pipeline, 20, "separate", 0)
    assert session.trace.totals().steps_reused > 5
    module = sys.modules["hetcache_template.policy"]
    assert Path(str(module.__file__)).is_relative_to(installed)


@pytest.mark.timeout(400)
def test_the_tests_that_the_tutorial_writes_pass(installed: Path) -> None:
    tests = installed.parent / "typed" / "tests"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    done = run(command, cwd=installed, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
