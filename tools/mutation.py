"""Puts deliberate faults into a copy of the packages, and makes sure that a named test notices each.

``python tools/mutation.py`` prints the table of docs/mutation.md, and fails where a fault went unnoticed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[1]
SOURCES: Final = (".", "app", "backends", "policies")
"""Folders that hold the packages; a copy of each goes before what is installed."""

PACKAGES: Final = ("hetcache_core", "hetcache", "hetcache_backends", "hetcache_policies")
FAILED: Final = 1
"""What pytest ends with where a test failed; anything else says that it was not run."""


class Fault(NamedTuple):
    """One fault: what is written in place of what, and the test that has to fail."""

    file: str
    right: str
    wrong: str
    test: str


FAULTS: Final = (
    Fault(
        "hetcache_core/engine/active_rows.py",
        "seed=self.settings.seed",
        "seed=0",
        "tests/core/engine/test_active_rows.py::test_a_selector_is_given_the_seed_of_the_settings",
    ),
    Fault(
        "hetcache_core/engine/run_state.py",
        "timestep=self.info.timesteps[index]",
        "timestep=self.info.timesteps[index - 1]",
        "tests/core/test_session.py::test_a_step_is_described_with_its_own_timestep_and_sigma",
    ),
    Fault(
        "hetcache_core/engine/loop.py",
        "run.store.count_outside(own_bytes(run.deciders))",
        "run.store.count_outside(0)",
        "tests/core/engine/test_byte_limit.py::test_a_decider_that_cannot_be_foreseen_is_stopped_at_the_limit",
    ),
    Fault(
        "hetcache_core/engine/loop.py",
        "self.abort_run()  # whoever",
        "pass  # whoever",
        "tests/core/test_session.py::test_an_error_that_is_caught_inside_the_session_frees_the_cache",
    ),
    Fault(
        "hetcache_core/store.py",
        "while len(entries) >= history:",
        "while len(entries) > history:",
        "tests/core/test_store.py::test_values_come_oldest_first_with_their_steps_and_old_ones_go",
    ),
    Fault(
        "hetcache_core/files.py",
        "yield part",
        "yield final",
        "tests/core/test_files.py::test_a_limit_on_file_sizes_leaves_the_old_file_and_nothing_else",
    ),
    Fault(
        "policies/hetcache_policies/fastcache.py",
        "known.hits < self._policy.max_hits",
        "known.hits <= self._policy.max_hits",
        "tests/policies/test_fastcache.py::test_a_block_that_never_moves_is_left_out_three_times_in_a_row_at_most",
    ),
    Fault(
        "policies/hetcache_policies/shared/drift.py",
        "return [0.0, *(self._rescaled(change, steps) for change in read)]",
        "return [*(self._rescaled(change, steps) for change in read), 0.0]",
        "tests/policies/test_teacache.py::test_no_number_of_steps_lets_a_polynomial_skip_for_ever",
    ),
    Fault(
        "backends/hetcache_backends/onnx/folder.py",
        "path.resolve().parent != folder.resolve()",
        "False",
        "tests/backends/test_onnx_folder.py::test_a_graph_outside_of_the_folder_is_refused",
    ),
)


def noticed(fault: Fault, copy: Path) -> bool:
    """Put one fault into the copy, run its test, and take it out again."""
    path = copy / fault.file
    whole = path.read_text(encoding="utf-8")
    if whole.count(fault.right) != 1:
        raise SystemExit(
            f"{fault.file} holds {fault.right!r} {whole.count(fault.right)} times, not once"
        )
    path.write_text(whole.replace(fault.right, fault.wrong), encoding="utf-8")
    paths = os.pathsep.join(str(copy / source) for source in SOURCES)
    try:
        done = subprocess.run(  # noqa: S603 - of our own tests
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", fault.test],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            check=False,
        )
    finally:
        path.write_text(whole, encoding="utf-8")
    return done.returncode == FAILED


def main() -> int:
    """Try every fault."""
    survived = 0
    print("| file | right | wrong | test | noticed |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for source, package in zip(SOURCES, PACKAGES, strict=True):
            shutil.copytree(ROOT / source / package, copy / source / package)
        for beside in ("tests", "pyproject.toml"):
            place = ROOT / beside
            (shutil.copytree if place.is_dir() else shutil.copy)(place, copy / beside)
        for fault in FAULTS:
            found = noticed(fault, copy)
            survived += not found
            cells = (fault.file, fault.right, fault.wrong, fault.test)
            shown = " | ".join(f"`{cell}`" for cell in cells)
            print(f"| {shown} | {'yes' if found else '**no**'} |", flush=True)
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
