"""``import hetcache``: quick to import, and what it promises is there."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

import hetcache

NAMES = ["__version__", "accelerate", "compare", "discover", "edit"]


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_promised_is_there() -> None:
    assert hetcache.__all__ == NAMES
    assert all(getattr(hetcache, name) for name in NAMES)
    assert dir(hetcache) == NAMES
    assert hetcache.__version__ == version("hetcache")
    with pytest.raises(AttributeError, match="no attribute 'edti'"):
        _ = hetcache.edti  # type: ignore[attr-defined]


def test_importing_it_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'numpy', 'typer', 'rich', 'yaml', 'av', 'pluggy'}"
    run(f"import sys, hetcache; assert not {heavy} & set(sys.modules)")


def test_without_the_extra_a_clear_error_says_what_to_install() -> None:
    said = run(
        "import sys; sys.modules['av'] = sys.modules['PIL'] = None\n"
        "import hetcache\n"
        "assert 'hetcache' in hetcache.discover().names('policy')\n"
        "try: hetcache.edit('a.mp4', 'b.mp4', output='c.mp4')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    assert "PIL is not installed. Run: pip install 'hetcache[app]'" in said
