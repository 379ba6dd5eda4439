"""What README.md and docs/ show is true: code runs, commands parse, links lead somewhere."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from attrs import fields, frozen

import hetcache_core
from hetcache_core import discover
from hetcache_core.plugins import hookspecs

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "changelog.d" / "README.md", *DOCS.rglob("*.md")]
FENCE = re.compile(
    r'^```(?P<language>\w*)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)
HELP = {"-h", "--help"}
LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


@frozen
class Block:
    """A fenced block of a page; one with a title is the file of that name."""

    language: str
    title: str | None
    text: str
    line: int


def blocks(page: Path, *languages: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(m["language"], m["title"], m["text"], text.count("\n", 0, m.start("text")))
        for m in FENCE.finditer(text)
        if m["language"] in languages
    ]


def shown_commands(page: Path) -> list[list[str]]:
    """The shell commands of a page, split into words, with continued lines joined."""
    text = "".join(block.text for block in blocks(page, "bash", "console", "sh"))
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]


PAGES_WITH_CODE = [page for page in PAGES if blocks(page, "python")]
HETCACHE_COMMANDS = [
    pytest.param(words[1:], id=f"{page_id(page)}: {shlex.join(words)}")
    for page in PAGES
    for words in shown_commands(page)
    if words[:1] == ["hetcache"]
]


def write_files(page: Path, folder: Path) -> None:
    """Write the blocks of a page that are files; their folders are packages."""
    for block in blocks(page, "python", "toml", "yaml"):
        if block.title is not None:
            path = folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
            if path.parent != folder:
                (path.parent / "__init__.py").touch()


@pytest.mark.timeout(400)  # a page that edits a video loads a model's library
@pytest.mark.parametrize("page", PAGES_WITH_CODE, ids=page_id)
def test_the_python_blocks_of_a_page_run_in_order(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks share one namespace, as a reader does who types them in from top to bottom."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    write_files(page, tmp_path)
    script = ModuleType("typed_in")
    monkeypatch.setitem(sys.modules, script.__name__, script)  # where attrs looks annotations up
    for block in blocks(page, "python"):
        if block.title is None:
            if "hetcache" in block.text:
                pytest.importorskip("torchmetrics", reason="the extra app is not installed")
            # The empty lines put the page's own line numbers into a traceback.
            source = "\n" * block.line + block.text
            exec(compile(source, str(page), "exec", dont_inherit=True), script.__dict__)


@pytest.mark.timeout(400)
def test_the_tests_that_the_page_on_plugins_shows_pass(tmp_path: Path) -> None:
    write_files(DOCS / "plugins.md", tmp_path)
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


@pytest.fixture(scope="session")
def mypy_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What mypy learns about torch takes half a minute, and is the same for all pages."""
    return tmp_path_factory.mktemp("mypy")


@pytest.mark.timeout(400)
@pytest.mark.parametrize("page", PAGES_WITH_CODE, ids=page_id)
def test_the_python_blocks_of_a_page_pass_a_strict_type_check(
    page: Path, tmp_path: Path, mypy_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The promise that comes with ``py.typed``: who follows the pages gets no complaint."""
    api = pytest.importorskip("mypy.api")
    monkeypatch.chdir(tmp_path)
    write_files(page, tmp_path)
    typed_in = (block.text for block in blocks(page, "python") if block.title is None)
    Path("typed_in.py").write_text("\n".join(typed_in), encoding="utf-8")
    report, complaints, status = api.run(["--strict", "--cache-dir", str(mypy_cache), "."])
    assert status == 0, f"{report}\n{complaints}"


def the_command_line() -> Any:
    pytest.importorskip("typer")
    commands = import_module("hetcache.cli.command_line")
    return commands.command_line(discover())


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The commands that do something, each with the words that lead to it."""
    below = getattr(command, "commands", {})
    if not below:
        yield path, command
    for name, child in below.items():
        yield from leaves(child, (*path, name))


def options(command: Any) -> set[str]:
    named = {opt for param in command.params for opt in (*param.opts, *param.secondary_opts)}
    return {opt for opt in named if opt.startswith("-")} | HELP


@pytest.mark.parametrize("words", HETCACHE_COMMANDS)
def test_a_command_shown_exists_with_the_options_it_is_shown_with(words: list[str]) -> None:
    command = the_command_line()
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words[0]]
        words = words[1:]
    own = (
        words[: words.index("--")] if "--" in words else words
    )  # what follows is for another program
    shown = {word.split("=")[0] for word in own if re.match(r"--?[a-z]", word)}
    assert shown <= options(command)
    assert not getattr(command, "commands", {}) or shown, f"no such sub-command: {words}"


def test_the_page_on_the_command_line_names_every_command_and_option() -> None:
    """A command stands as code by itself; an option too, or after its command."""
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    missing = []
    for path, command in leaves(the_command_line()):
        name = " ".join(("hetcache", *path))
        forms = {name: (name,)} | {o: (o, f"{name} {o}") for o in options(command) - HELP}
        missing += [
            (name, what)
            for what, written in forms.items()
            if not any(re.search(rf"`{re.escape(form)}(?![\w-])", text) for form in written)
        ]
    assert not missing


def test_the_page_on_the_command_line_lists_exactly_the_keys_of_the_json_output() -> None:
    report = pytest.importorskip("hetcache.editing.report")
    metrics = pytest.importorskip("hetcache.quality.regions")
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    section = text.split("\n### The JSON output\n")[1].split("\n#")[0]
    tables = [table for table in section.split("\n\n") if table.startswith("| key")]
    first_cells = ["".join(re.findall(r"^\|([^|]*)", table, re.MULTILINE)) for table in tables]
    listed = [set(re.findall(r"`(\w+)`", cells)) for cells in first_cells]
    top, run, speedup, region = (
        {field.name for cls in classes for field in fields(cls)}
        for classes in (
            (report.Report, report.Comparison),
            (report.Measures,),
            (report.Speedup,),
            (metrics.RegionQuality,),
        )
    )
    assert listed == [top - {"comparison"}, run, speedup, region]


def test_the_configuration_file_shown_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("yaml")
    config = import_module("hetcache.editing.config")
    options = import_module("hetcache.running.options")
    monkeypatch.chdir(tmp_path)
    write_files(DOCS / "cli.md", tmp_path)
    made = options.make(config.EditConfig, {}, where="hetcache edit", file="run.yaml")
    assert made.policy.settings == {"context_ratio": 0.3}


def hooks() -> list[tuple[str, str]]:
    return [
        (name, f"{name}({', '.join(inspect.signature(spec).parameters)})")
        for name, spec in inspect.getmembers(hookspecs, inspect.isfunction)
        if name.startswith("hetcache_")
    ]


@pytest.mark.parametrize(("name", "signature"), hooks())
def test_every_hook_is_documented_with_its_arguments(name: str, signature: str) -> None:
    text = (DOCS / "plugins.md").read_text(encoding="utf-8")
    assert f"`{signature}`" in text


def test_every_public_name_is_in_the_docs() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in DOCS.rglob("*.md"))
    assert not [name for name in hetcache_core.__all__ if not re.search(rf"`{name}\b", text)]


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = {m["target"].split("#")[0] for m in LINK.finditer(prose)}
    local = {target for target in targets if target and "://" not in target}
    assert not {target for target in local if not (page.parent / target).exists()}


def test_the_legend_of_notation_is_the_one_in_the_code() -> None:
    """``docs/notation.md`` and the docstring of ``hetcache_core.steps`` say the same, row by row."""
    steps = inspect.getdoc(import_module("hetcache_core.steps")) or ""
    _, legend, _ = re.split(r"^=+ +=+$", steps, maxsplit=2, flags=re.MULTILINE)
    rows = [re.split(r" {2,}", line, maxsplit=1) for line in legend.strip().splitlines()]
    page = (DOCS / "notation.md").read_text(encoding="utf-8").replace("`", "")
    expected = [f"| {letter} | {meaning.replace('`', '')} |" for letter, meaning in rows]
    assert not [row for row in expected if row not in page]


def test_the_order_inside_core_is_shown_as_it_is_checked() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    layers = project.split("\nlayers = [\n")[1].split("\n]\n")[0]
    checked = [line.strip(' ",') for line in layers.splitlines()]
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    picture = text.split("Inside core, imports point downwards only.")[1].split("```")[1]
    assert [row.strip() for row in picture.strip("\n").splitlines()] == checked


def test_the_rooms_shown_are_the_folders_there_are() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    outline = text.split("\n## Rooms\n")[1].split("```")[1].strip("\n")
    shown, path = set(), [ROOT]
    for line in outline.splitlines():
        name = line.split()[0]
        path = [*path[: (len(line) - len(line.lstrip())) // 2 + 1], Path(name)]
        shown.add(Path(*path))
    packages = [folder for folder in shown if (folder / "__init__.py").exists()]
    tops = [folder for folder in packages if folder.parent not in packages]
    found = {module.parent for top in tops for module in top.rglob("__init__.py")}
    assert len(tops) == 4
    assert {str(folder) for folder in packages} == {str(folder) for folder in found}
    assert not [folder for folder in shown if not folder.is_dir()]


def test_what_people_do_with_pipelines_is_what_the_tests_do() -> None:
    page = (ROOT / "docs" / "backbones.md").read_text()
    table = page.partition("## What people do with pipelines")[2].partition("\n## ")[0]
    rows = [line.split("|")[2:5] for line in table.splitlines() if line.startswith("| ")][1:]
    tests = "".join(
        f.read_text()
        for room in ("backends", "device")
        for f in (ROOT / "tests" / room).glob("*.py")
    )
    assert len(rows) > 15
    for diffusers, diffsynth, test in rows:
        verdicts = [v.strip() for v in (diffusers, diffsynth) if v.strip()]
        assert verdicts
        assert all(v.startswith(("carried", "refused", "runs uncached")) for v in verdicts), (
            verdicts
        )
        assert f"def {test.strip().strip('`')}(" in tests, test


def test_the_readme_sets_up_with_two_commands() -> None:
    """``.ci/run`` runs what this section shows; a third command would be one more to get wrong."""
    section = README.read_text(encoding="utf-8").split("\n## Set up\n")[1].split("\n## ")[0]
    commands = [line for match in FENCE.finditer(section) for line in match["text"].splitlines()]
    assert len(commands) == 2
    assert commands[0].split(" && ")[-1].split("/")[-1].startswith("hetcache demo")
    assert commands[1].split(" && ")[-1].split("/")[-1].startswith("tox")


def test_every_tox_environment_named_in_the_pages_exists() -> None:
    tox = ConfigParser()
    tox.read(ROOT / "tox.ini")
    described = tox["testenv"]["description"].strip().splitlines()
    known = {line.split(":")[0].strip() for line in described}
    for section in (name.split(":")[1] for name in tox.sections() if ":" in name):
        head, _, releases = section.rstrip("}").partition("{")  # torch{2.6,2.13}
        known |= {head + release for release in releases.split(",")}
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = {
        env
        for envs in re.findall(r"\btox(?: run)? -e ([\w.,]*\w)", text)
        for env in envs.split(",")
    }
    assert named <= known
