"""A stranger's walk: what the pages show, put into one distribution, works from the command line.

A policy with a selector of its own, a described model and a metric are typed in from the pages, nothing of
which is written here. That the pages' own runs work is tested with all pages.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("av")
pytest.importorskip("diffusers")
pytest.importorskip("diffsynth")
pytest.importorskip("torchmetrics")
pytest.importorskip("typer")

from hetcache.media.video import write_video

DOCS = Path(__file__).parents[2] / "docs"
PYTHON = re.compile(r"^```python\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = {"write-a-piece": "pieces", "carry-a-model": "models", "metrics": "metrics"}
PLUGIN = """
from hetcache_core import Registration, hookimpl


def registered(name, target):
    return [Registration(name=name, target=f"stranger.{target}", summary=f"a stranger's {name}")]


@hookimpl
def hetcache_register_policies():
    return registered("edit-first", "pieces:EditFirst")


@hookimpl
def hetcache_register_selectors():
    return registered("nearest", "pieces:Nearest")


@hookimpl
def hetcache_register_model_sets():
    return registered("audio", "models:AudioModels")


@hookimpl
def hetcache_register_metrics():
    return registered("worst_pixel", "metrics:WorstPixel")
"""


def definitions(page: str) -> str:
    """What a page defines, in order, without the runs between: a module, as its reader would write it."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    nodes = ast.parse("\n".join(found["text"] for found in PYTHON.finditer(text))).body
    kept = (ast.Import, ast.ImportFrom, ast.ClassDef, ast.AnnAssign)
    constants = (
        node
        for node in nodes
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).isupper()
    )
    wanted = [*constants, *(node for node in nodes if isinstance(node, kept))]
    return "\n".join(ast.unparse(node) for node in sorted(wanted, key=lambda node: node.lineno))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("walk")
    package, info = folder / "stranger", folder / "stranger-1.0.dist-info"
    for path in (package, info):
        path.mkdir()
    (package / "__init__.py").touch()
    (package / "plugin.py").write_text(PLUGIN)
    for page, module in PAGES.items():
        (package / f"{module}.py").write_text(definitions(page))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[hetcache]\nstranger = stranger.plugin\n")
    frames = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), np.uint8)
    mask = np.zeros_like(frames)
    mask[:, 16:40, 16:40] = 255
    for name, video in {"clip": frames, "dark": frames // 2, "mask": mask}.items():
        write_video(folder / f"{name}.mp4", video, Fraction(8))
    return folder


def hetcache(folder: Path, *words: str, **environment: str) -> Any:
    """Run a command as the stranger does, and return its JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "hetcache", *words, "--json"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.mark.timeout(400)
def test_the_contract_kit_passes_on_all_of_it(folder: Path) -> None:
    # The toy's pairs with the policy say it; those of the built-in backbones take minutes.
    said = hetcache(
        folder, "plugins", "check", "stranger", HETCACHE_DISABLE_PLUGINS="builtin-backbones"
    )
    checked = {(check["kind"], check["name"]) for check in said["checks"]}
    assert checked >= {
        ("policy", "edit-first"),
        ("selector", "nearest"),
        ("model set", "audio"),
        ("metric", "worst_pixel"),
    }
    assert said["failed"] == 0


@pytest.mark.timeout(400)
def test_the_policy_edits_with_the_selector_and_the_metric_measures(folder: Path) -> None:
    words = ["--video", "clip.mp4", "--mask", "mask.mp4", "--output", "out.mp4", "--steps", "8"]
    policy = ["--policy", "edit-first", "--set", "selector=nearest"]
    said = hetcache(folder, "edit", *words, *policy)
    assert said["run"]["policy"] == "edit-first"
    assert said["run"]["settings"]["selector"] == "nearest"
    assert said["run"]["steps_partial"] > 0
    measured = hetcache(folder, "evaluate", "--pred", "dark.mp4", "--gt", "clip.mp4")
    assert measured["clips"][0]["metrics"]["worst_pixel"]["value"] > 100
