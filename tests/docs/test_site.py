"""The pages of docs/ become a site without a warning, and nothing in it is loaded from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hetcache_core import discover

pytest.importorskip("material")
pytest.importorskip("mkdocstrings_handlers")

from mkdocs.commands.build import build
from mkdocs.config import load_config

ROOT = Path(__file__).parents[2]
LOADED = re.compile(
    r"""<(?:script|img|link|iframe)[^>]+(?:src|href)=["']?(?:https?:)?//[^"'\s>]+"""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True)
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    return folder


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    loaded = {
        page.name: found
        for page in pages
        if (found := [x for x in LOADED.findall(page.read_text()) if 'rel="canonical"' not in x])
    }
    assert not loaded
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert not re.search(r"url\((?:https?:)?//|@import", styles)


def test_every_policy_has_a_page_with_its_settings(site: Path) -> None:
    registry = discover()
    for name in registry.names("policy"):
        text = (site / "policies" / f"{name}.html").read_text()
        assert "<h2" in text
        assert "first_steps" in text or name in {"none", "replay", "fewer-steps"}


def test_the_reference_has_every_public_name_hook_and_command(site: Path) -> None:
    import hetcache_core

    core = (site / "reference" / "core.html").read_text()
    missing = [name for name in hetcache_core.__all__ if f">{name}<" not in core]
    assert not missing
    hooks = (site / "reference" / "hooks.html").read_text()
    assert "hetcache_register_policies" in hooks
    commands = (site / "reference" / "cli.html").read_text()
    assert "hetcache plugins list" in commands
    assert "--target-speedup" in commands


def test_the_notebook_is_a_page_with_what_it_drew(site: Path) -> None:
    text = (site / "first-steps.html").read_text()
    assert text.count("data:image/png;base64,") == 2
    assert "later-more on tiny" in text
