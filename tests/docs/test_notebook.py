"""The notebook of the docs runs from top to bottom."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")
pytest.importorskip("pandas")
nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOK = Path(__file__).parents[2] / "docs" / "first-steps.ipynb"


@pytest.mark.timeout(600)
def test_every_cell_runs_and_shows_what_the_stored_one_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    monkeypatch.delenv("MPLBACKEND", raising=False)  # a notebook draws into itself
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    stored = nbformat.read(NOTEBOOK, as_version=4)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    for made, kept in zip(notebook.cells, stored.cells, strict=True):
        assert kinds(made) == kinds(kept), f"run the notebook anew: {made.source}"


def kinds(cell: object) -> set[str]:
    """What a cell shows: text, tables, pictures."""
    outputs = getattr(cell, "outputs", [])
    return {kind for output in outputs for kind in output.get("data", {"text/plain": ""})}
