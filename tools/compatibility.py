"""Turn what tox reported of the matrix into docs/compatibility.md.

    tox run -m matrix --result-json .tox/matrix.json
    python tools/compatibility.py .tox/matrix.json

Several files may be given; of an environment that is in more than one, the newest counts. Environments that
no file tells of keep the row that the table has. Exit code 2 and no table where a file is none of tox's, or
tells of no environment that tox.ini has in its matrix.
"""

from __future__ import annotations

import argparse
import configparser
import json
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from attrs import frozen

ROOT: Final = Path(__file__).resolve().parent.parent
TABLE: Final = ROOT / "docs" / "compatibility.md"
LIBRARIES: Final = ("torch", "diffsynth", "diffusers", "pluggy", "onnxruntime")
COLUMNS: Final = ("environment", "Python", *LIBRARIES, "result", "tests", "minutes", "on")
COUNTS: Final = re.compile(
    r"^=+ (?P<counts>[^=]*(?:passed|failed|error)[^=]*) in [\d.]+s.*=+$", re.MULTILINE
)
REASON: Final = re.compile(r"^(?:E  +(\S.*)|(?:FAILED|ERROR) (\S.*)|error: (.*))$", re.MULTILINE)
BRACES: Final = re.compile(r"\{([^{}]*)\}")
REASON_LENGTH: Final = 160

HEADER: Final = """# Compatibility

Which releases hetcache was run with, on the built wheel: `py` is the newest of everything (and the Python of
whoever runs it), the rows below change one thing each, `lowest` has the floor of every dependency, `core` no
optional package, `plugins` the example distributions. Written by `tools/compatibility.py` from what tox
reported; how to run it is said in [CONTRIBUTING.md](../CONTRIBUTING.md).

"""

FOOTER: Final = """
## What cannot be

| | why | what the package says |
|---|---|---|
| diffsynth 2.0.6 to 2.0.11 | they import torchaudio and do not require it | excluded in `pyproject.toml` |
| diffsynth below 2.0.4 | not measured; 1.x has other pipeline units | `diffsynth>=2.0.4` |
| diffusers below 0.42 with huggingface_hub 2 | they require `huggingface_hub<2` | the resolver takes 1.x |
| diffusers 0.42 on Python 3.10 | it requires Python 3.11 | the resolver takes 0.41 there |

Each release of diffsynth from 2.0.4 to 2.1.12 was installed with what it requires and torchvision, and
`hetcache_backends.tiny_vace.pipeline.build_pipeline(seed=0)` was called: only the six above failed.
"""


@frozen(kw_only=True)
class Row:
    """One environment's result, as text.

    Attributes:
        cells: by the names of ``COLUMNS``.
    """

    cells: Mapping[str, str]

    def line(self) -> str:
        """The row of a Markdown table."""
        return "| " + " | ".join(self.cells[name] for name in COLUMNS) + " |"


def environments(tox_ini: str) -> list[str]:
    """List the environments of the matrix, in its order.

    Args:
        tox_ini: the text of tox.ini.
    """
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(tox_ini)
    _, _, names = parser["tox"]["labels"].strip().partition("=")
    return [name for group in _split(names) for name in expand(group.strip())]


def _split(text: str) -> list[str]:
    """Split at the commas outside of braces."""
    return re.split(r",(?![^{]*\})", text)


def expand(name: str) -> list[str]:
    """Expand the braces of an environment's name: ``py3{10,11}`` is ``py310`` and ``py311``."""
    found = BRACES.search(name)
    if found is None:
        return [name]
    variants = found[1].split(",")
    return [
        each
        for variant in variants
        for each in expand(name[: found.start()] + variant.strip() + name[found.end() :])
    ]


def rows(report: Mapping[str, Any], on: str) -> Iterator[tuple[str, Row]]:
    """Read tox's report.

    Args:
        report: what ``--result-json`` wrote.
        on: the day of the run.

    Yields:
        Environments and their rows.
    """
    for name, said in report["testenvs"].items():
        if "result" not in said or said["result"].get("skipped"):
            continue
        versions = dict(p.split("==", 1) for p in said.get("installed_packages", ()) if "==" in p)
        runs = [run for run in said.get("test", ()) if run["retcode"] is not None]
        texts = [run["output"] + run["err"] for run in runs]
        if said["result"]["success"]:
            result = "passed" if runs else "failed: it ran nothing"
        else:
            result = f"failed: {_reason(said, texts)}"
        cells = {
            "environment": f"`{name}`",
            "Python": _python(said["python"]["version_info"]),
            **{library: versions.get(library, "") for library in LIBRARIES},
            "result": result,
            "tests": "; ".join(m["counts"] for text in texts for m in COUNTS.finditer(text)),
            "minutes": f"{said['result']['duration'] / 60:.1f}",
            "on": on,
        }
        yield name, Row(cells=cells)


def _python(version: list[Any]) -> str:
    """Write a version; of another Python than its own, tox knows only what was asked for."""
    major, minor, micro, level, _ = version
    return f"{major}.{minor}.{micro}" if level else f"{major}.{minor}"


def _reason(said: Mapping[str, Any], texts: Iterable[str]) -> str:
    """Say in a few words why an environment failed."""
    setup = [run["output"] + run["err"] for run in said.get("setup", ()) if run["retcode"]]
    for text in (*setup, *texts):
        found = REASON.search(text)
        if found is not None:
            words = next(group for group in found.groups() if group)
            return words.replace("|", "/")[:REASON_LENGTH]
    return "see its log"


def kept(table: str) -> dict[str, Row]:
    """Read the rows that a table has."""
    found = {}
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) == len(COLUMNS) and cells[0].startswith("`"):
            found[cells[0].strip("`")] = Row(cells=dict(zip(COLUMNS, cells, strict=True)))
    return found


def render(found: Mapping[str, Row], order: Iterable[str]) -> str:
    """Write the page, its rows in the matrix's order."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += [found[name].line() for name in order if name in found]
    return HEADER + "\n".join(lines) + "\n" + FOOTER


def read(path: Path, order: Collection[str]) -> dict[str, Row]:
    """Read one file of tox's.

    Args:
        path: the file; its age is the day of the run.
        order: the environments of the matrix.

    Raises:
        ValueError: it tells of none of them.
    """
    day = datetime.fromtimestamp(path.stat().st_mtime, tz=timezone.utc).date().isoformat()
    new = dict(rows(json.loads(path.read_text(encoding="utf-8")), day))
    found = {name: row for name, row in new.items() if name in order}
    if not found:
        raise ValueError(f"{path}: no environment of the matrix in tox.ini, but {', '.join(new)}")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Read the reports and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("reports", type=Path, nargs="+", help="what tox --result-json wrote")
    parser.add_argument("--output", type=Path, default=TABLE)
    options = parser.parse_args(arguments)
    order = environments((ROOT / "tox.ini").read_text(encoding="utf-8"))
    found = kept(options.output.read_text(encoding="utf-8")) if options.output.exists() else {}
    found = {name: row for name, row in found.items() if name in order}
    try:
        for path in sorted(options.reports, key=lambda path: path.stat().st_mtime):
            found |= read(path, order)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        print(f"compatibility: {error!r}: give files that tox --result-json wrote", file=sys.stderr)
        return 2
    options.output.write_text(render(found, order), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
