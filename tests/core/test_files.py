"""Files are whole or not there, whatever happens while they are written, and one module writes them."""

from __future__ import annotations

import ast
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import hetcache_core
from hetcache_core import ConfigError
from hetcache_core.files import LARGEST_TEXT, read_bytes, read_json, write_bytes, write_text

SIZE = 1 << 20
ROOT = Path(hetcache_core.__file__).parents[1]
PACKAGES = (
    "hetcache_core",
    "app/hetcache",
    "backends/hetcache_backends",
    "policies/hetcache_policies",
)

WRITERS = {
    "hetcache_core/files.py": "the one writer",
    "app/hetcache/comparison/results/folder.py": "appends rows, and cuts off half a line",
    "backends/hetcache_backends/onnx/export.py": "writes into a folder that is renamed when it is whole",
    "backends/hetcache_backends/onnx/wan.py": "writes into that folder",
}
"""Modules that write files, and why each may."""


def test_files_are_written_by_one_writer() -> None:
    found = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                    continue
                opens = node.func.attr == "open" and any(
                    isinstance(a, ast.Constant)
                    and {*str(a.value)} & {*"wax+"}
                    and len(str(a.value)) < 4
                    for a in node.args
                )
                writes = node.func.attr in {"write_text", "write_bytes"}
                part = isinstance(node.func.value, ast.Name) and node.func.value.id == "part"
                if (writes and not part) or opens:
                    found.add(path.relative_to(ROOT).as_posix())
    assert found - {"app/hetcache/media/video.py"} <= WRITERS.keys()


def test_kill_9_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    code = f"""
from pathlib import Path
from hetcache_core.files import write_text
while True:
    for letter in "ab":
        write_text(Path({str(path)!r}), letter * {SIZE})
"""
    for wait in (0.0, 0.013, 0.031):
        with subprocess.Popen([sys.executable, "-c", code]) as process:
            while not path.exists():
                time.sleep(0.01)
            time.sleep(wait)
            process.send_signal(signal.SIGKILL)
        content = path.read_bytes()
        assert content in {b"a" * SIZE, b"b" * SIZE}


def test_a_limit_on_file_sizes_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    write_text(path, "old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(ConfigError, match="File too large"):
            write_bytes(path, bytes(SIZE))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("length", [250, 255])
def test_a_name_may_be_as_long_as_the_file_system_lets_it(tmp_path: Path, length: int) -> None:
    path = tmp_path / ("x" * (length - 5) + ".json")
    write_text(path, "{}")
    assert read_json(path) == {}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": 1, "a": 2}', "names 'a' twice"),
        (b"\xff", "no text in UTF-8"),
        (b"{", "as JSON"),
    ],
)
def test_damaged_json_is_one_error_that_names_the_file(
    tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as error:
        read_json(path, remedy="Make it again.")
    assert str(path) in str(error.value)
    assert str(error.value).endswith("Make it again.")


@pytest.mark.parametrize("path", ["/dev/zero", ".", "nowhere", "a\0b"])
def test_what_has_no_end_or_is_no_file_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_bytes(Path(path), most=1000)
    assert os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") > LARGEST_TEXT
