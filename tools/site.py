"""Pages of the site that are made when it is built: those outside of docs/, the policies, the reference."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from importlib import import_module
from inspect import getdoc, getmembers, isclass, isfunction
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from mkdocs.structure.files import File, Files

from hetcache.cli.command_line import GROUPS
from hetcache.cli.main import main
from hetcache.plugins.listing import policies_as_json
from hetcache_core import discover
from hetcache_core.plugins import hookspecs

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

    from hetcache_core import PolicyRecipe, Registry

ROOT: Final = Path(__file__).parents[1]
OUTSIDE: Final = {
    "README.md": "start.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "changelog.d/README.md": "fragments.md",
    "benchmarks/README.md": "benchmarks.md",
    "backends/hetcache_backends/tiny_vace/MODEL_CARD.md": "model-card.md",
}
"""Pages of the repository that are not in docs/, and their names in the site."""

LINK: Final = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
REFERENCE: Final = {
    "reference/hetcache.md": ("hetcache", "For people who use it: `import hetcache`."),
    "reference/core.md": ("hetcache_core", "For people who write policies, pieces and models."),
    "reference/testing.md": (
        "hetcache_core.testing",
        "The contract kit, and a toy to try things on.",
    ),
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is made."""
    registry = discover()
    made = {name: (ROOT / path).read_text(encoding="utf-8") for path, name in OUTSIDE.items()}
    made |= {name: _module(title, said) for name, (title, said) in REFERENCE.items()}
    for name, text in _policies(registry):
        path = f"policies/{name}.md"
        by_hand = files.get_file_from_path(path)
        if by_hand is not None:
            files.remove(by_hand)
        made[path] = text
    made["first-steps.md"] = _notebook(ROOT / "docs" / "first-steps.ipynb")
    made["reference/hooks.md"] = _hooks()
    made["reference/cli.md"] = _commands(registry)
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: object) -> str:
    """Point links to where their pages are in the site."""
    name = page.file.src_uri
    source = next((path for path, made in OUTSIDE.items() if made == name), f"docs/{name}")
    below = "../" * name.count("/")
    if name == "policies.md":
        markdown += _list_of_policies(files)

    def relinked(found: re.Match[str]) -> str:
        target, _, anchor = found["target"].partition("#")
        if not target or "://" in target or name.startswith(("policies/", "reference/")):
            return found[0]
        path = (ROOT / PurePosixPath(source).parent / target).resolve()
        place = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""
        inside = OUTSIDE.get(place) or (
            place.removeprefix("docs/") if place.startswith("docs/") else None
        )
        if inside is None:  # a file of the repository, which is not in the site
            return found["text"]
        return f"{found['image']}[{found['text']}]({below}{inside}{'#' * bool(anchor)}{anchor})"

    return LINK.sub(relinked, markdown)


def _policies(registry: Registry) -> Iterator[tuple[str, str]]:
    plain: dict[str, Any] = {each["name"]: each for each in policies_as_json(registry)}
    for name, each in plain.items():
        kind = registry.policy(name)
        yield name, "\n\n".join(_policy(kind, each))


def _policy(kind: type[PolicyRecipe], plain: dict[str, Any]) -> Iterator[str]:
    by_hand = ROOT / "docs" / "policies" / f"{plain['name']}.md"
    if by_hand.exists():
        _, _, said = by_hand.read_text(encoding="utf-8").partition("\n\n")
    else:
        said = getdoc(import_module(kind.__module__)) or ""
    yield f"# {plain['name']}"
    yield f"{plain['summary'][:1].upper()}{plain['summary'][1:]}."
    yield f"**Decides on** {kind.decides_on or 'what it is given'}. **Source:** {plain['source']}."
    yield said
    edit = "hetcache edit --video clip.mp4 --mask mask.mp4 --output out.mp4"
    yield f"```bash\n{edit} --policy {plain['name']}\n```"
    yield "## Settings\n\n" + _table(
        ["setting", "type", "default", "allowed", "is"],
        [
            [
                f"`{s['name']}`",
                s["type"],
                f"`{s['default']}`",
                ", ".join(map(str, s["allowed"])),
                s["doc"],
            ]
            for s in plain["settings"]
        ],
    )
    if kind.presets:
        yield "## Presets\n\n" + _table(
            ["preset", "settings", "share of FLOPs computed"],
            [
                [
                    f"`{name}`",
                    ", ".join(f"`{k}={v}`" for k, v in found.items()) or "-",
                    _share(kind, name),
                ]
                for name, found in kind.presets.items()
            ],
        )


def _share(kind: type[PolicyRecipe], preset: str) -> str:
    share = kind.preset_shares.get(preset)
    return "-" if share is None else f"{share:.0%}"


def _list_of_policies(files: Files) -> str:
    names = sorted(f.src_uri for f in files if f.src_uri.startswith("policies/"))
    lines = [f"- [{PurePosixPath(name).stem}]({name})" for name in names]
    return "\n## One page for each\n\n" + "\n".join(lines) + "\n"


def _notebook(path: Path) -> str:
    """Show a notebook as a page: texts, code, and what it printed and drew."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                picture = "".join(data["image/png"].split())
                parts.append(f'<img alt="" src="data:image/png;base64,{picture}">')
            else:
                text = "".join(data.get("text/plain", output.get("text", "")))
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts)


def _module(name: str, said: str) -> str:
    module, parts = import_module(name), [f"# {name}", said]
    for each in sorted(name for name in module.__all__ if name[0] != "_"):
        value = getattr(module, each)
        if isclass(value) or isfunction(value):
            parts.append(f"::: {value.__module__}.{value.__qualname__}")
        else:
            parts.append(f"### {each}\n\n`{value!r}`")
    return "\n\n".join(parts)


def _hooks() -> str:
    names = [name for name, _ in getmembers(hookspecs, isfunction) if name.startswith("hetcache_")]
    return (
        "# Hooks\n\nWhat a plugin may implement, with `hetcache_core.hookimpl`.\n\n"
        + "\n\n".join(f"::: {hookspecs.__name__}.{name}" for name in names)
    )


def _commands(registry: Registry) -> str:
    parts = ["# The command line", "What `--help` says of each command."]
    for name in registry.names("command"):
        group, _, rest = name.partition("-")
        words = [group, rest] if group in GROUPS else [name]
        said = io.StringIO()
        with redirect_stdout(said):
            main([*words, "--help"])
        parts.append(f"## hetcache {' '.join(words)}\n\n```text\n{said.getvalue().strip()}\n```")
    return "\n\n".join(parts)


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )
