"""A folder of graphs may come from anybody: its names stay inside, and its numbers are a model's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetcache_backends.onnx.folder import FORMAT, MANIFEST, read_manifest
from hetcache_core import UnsupportedBackboneError

SIZES = {
    "width": 32, "layers": 4, "heads": 2, "ffn": 64, "control_layers": [0, 2], "patch_size": [1, 2, 2],
    "in_channels": 16, "control_channels": 96, "head_channels": 64, "text_width": 8, "freq_dim": 16,
    "eps": 1e-6,
}  # fmt: skip
GOOD: dict[str, Any] = {
    "format": FORMAT, "backbone": "wan-vace", "model": "WanModel", "sizes": SIZES,
    "graphs": {"patch": {"file": "patch.onnx", "kind": "patch"}}, "words": None,
    "checkpoint": "somebody/model", "notice": None, "hetcache": "9.9", "kinds": {},
}  # fmt: skip


def folder_with(tmp_path: Path, content: object) -> Path:
    (tmp_path / "graphs").mkdir(exist_ok=True)
    (tmp_path / "graphs" / "patch.onnx").touch()
    (tmp_path / "outside.onnx").touch()
    (tmp_path / "graphs" / MANIFEST).write_text(
        content if isinstance(content, str) else json.dumps(content)
    )
    return tmp_path / "graphs"


def test_a_whole_manifest_is_read(tmp_path: Path) -> None:
    manifest = read_manifest(folder_with(tmp_path, GOOD))
    assert (manifest.sizes.heads, manifest.graphs) == (2, {"patch": "patch.onnx"})


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../outside.onnx",
        "sub/../../outside.onnx",
        "..",
        ".",
        "",
        "link.onnx",
        "no.onnx",
    ],
)
def test_a_graph_outside_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder = folder_with(tmp_path, {**GOOD, "graphs": {"patch": {"file": name}}})
    (folder / "link.onnx").symlink_to(tmp_path / "outside.onnx")
    with pytest.raises(UnsupportedBackboneError, match=r"not in the folder|no file"):
        read_manifest(folder)


def test_a_checkpoint_outside_is_taken_only_from_whoever_loads(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, GOOD)
    with pytest.raises(UnsupportedBackboneError, match="pass --around somebody/model"):
        read_manifest(folder).outside()
    assert read_manifest(folder, around="mine").outside() == "mine"
    inside = folder_with(tmp_path, {**GOOD, "checkpoint": None})
    assert read_manifest(inside).outside() is None


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"heads": 0}, "sizes.heads must be from 1"),
        ({"width": -32}, "sizes.width"),
        ({"width": 33}, "a multiple of heads"),
        ({"layers": 10**30}, "sizes.layers"),
        ({"layers": 1.5}, "layers must be a whole number"),
        ({"layers": True}, "layers must be a whole number"),
        ({"control_layers": [9]}, "control_layers must be among the 4 layers"),
        ({"patch_size": [1, 2]}, "patch_size"),
        ({"eps": 0}, "sizes.eps"),
        ({"eps": "small"}, "eps must be a number"),
    ],
    ids=str,
)
def test_numbers_of_no_model_are_named(tmp_path: Path, sizes: dict[str, Any], said: str) -> None:
    folder = folder_with(tmp_path, {**GOOD, "sizes": {**SIZES, **sizes}})
    with pytest.raises(UnsupportedBackboneError, match=said):
        read_manifest(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    key=st.sampled_from(sorted(GOOD)), value=JSON, size=st.sampled_from(sorted(SIZES)), number=JSON
)
@settings(max_examples=100)
def test_whatever_a_manifest_holds_it_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: Any, size: str, number: Any
) -> None:
    tmp_path = tmp_path_factory.mktemp("folder")
    for content in ({**GOOD, key: value}, {**GOOD, "sizes": {**SIZES, size: number}}, value):
        try:
            read_manifest(folder_with(tmp_path, content))
        except UnsupportedBackboneError as error:
            said = str(error)
            assert len(said) < 1000


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format": 2, "format": 2}', "\x00", "{", ""])
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UnsupportedBackboneError, match="manifest"):
        read_manifest(folder_with(tmp_path, text))
