"""Folders of ONNX graphs: what is in them, and what is refused before anything is written."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("diffsynth")

import onnx
from attrs import evolve

from hetcache_backends.onnx import export as onnx_export
from hetcache_backends.onnx import wan as onnx_wan
from hetcache_backends.onnx.folder import MANIFEST, OPSET, WEIGHTS, read_manifest
from hetcache_backends.onnx.session import Graph
from hetcache_backends.onnx.wan_parts import wan_parts
from hetcache_backends.tiny_vace.pipeline import build_pipeline
from hetcache_backends.wan.case import SMALL
from hetcache_backends.wan.wan_vace import WanVace
from hetcache_core import ConfigError, UnsupportedBackboneError


@pytest.fixture
def pipeline() -> Any:
    return build_pipeline(seed=0, config=SMALL)


def test_onnx_finds_no_fault_and_knows_every_rank(graphs: Path) -> None:
    paths = sorted(graphs.glob("*.onnx"))
    assert len(paths) == 6 * 5 + 2 + 5 + 2  # of blocks, hints, around the trunk, before control
    for path in paths:
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(str(path), load_external_data=False)
        assert model.opset_import[0].version == OPSET
        assert {node.domain for node in model.graph.node} == {""}
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
        values = [*inferred.value_info, *inferred.output]
        known = {v.name for v in values if v.type.tensor_type.HasField("shape")}
        assert {name for node in model.graph.node for name in node.output if name} <= known


def test_every_parameter_is_in_the_one_weights_file_once(graphs: Path, pipeline: Any) -> None:
    places: Counter[tuple[str, ...]] = Counter()
    for path in graphs.glob("*.onnx"):
        for tensor in onnx.load(str(path), load_external_data=False).graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                entry = {each.key: each.value for each in tensor.external_data}
                assert entry["location"] == WEIGHTS
                places[entry["offset"], entry["length"]] += 1
            else:
                assert len(tensor.raw_data) <= 4 * SMALL.dim, f"{tensor.name} is no small constant"
    models = (pipeline.dit, pipeline.vace)
    parameters = [p for model in models for p in model.parameters()]
    assert len(places) == len(parameters)
    assert set(places.values()) == {1}
    held = sum(int(length) for _, length in places)
    assert held == sum(p.numel() * 4 for p in parameters)
    assert (graphs / WEIGHTS).stat().st_size < held + 64 * len(parameters)


def test_the_manifest_says_what_every_graph_takes(graphs: Path, opened: Any) -> None:
    content = json.loads((graphs / MANIFEST).read_text(encoding="utf-8"))
    assert content["opset"] == OPSET
    assert content["runs_with"] == "onnx-runtime"
    assert content["weights"]["bytes"] == (graphs / WEIGHTS).stat().st_size
    assert content["sizes"]["control_layers"] == list(SMALL.control_layers)
    sessions = opened.sessions
    assert set(content["graphs"]) == set(sessions)
    for name, graph in content["graphs"].items():
        assert (graphs / graph["file"]).is_file()
        kind = content["kinds"][graph["kind"]]
        ports = {"inputs": sessions[name].get_inputs(), "outputs": sessions[name].get_outputs()}
        for side, values in ports.items():
            said = [(port["name"], port["shape"]) for port in kind[side]]
            assert all(port["meaning"] for port in kind[side])
            taken = [(v.name, [_without_one(d) for d in v.shape]) for v in values]
            assert taken == [(n, [_without_one(d) for d in shape]) for n, shape in said], name


def _without_one(dim: int | str) -> int | str:
    return dim.removeprefix("1*") if isinstance(dim, str) else dim


@pytest.mark.parametrize(("batch", "rows", "keys"), [(1, 1, 64), (2, 37, 37), (1, 64, 5)])
def test_rows_and_keys_may_be_as_many_as_they_like(
    batch: int, rows: int, keys: int, pipeline: Any, opened: Any
) -> None:
    sessions = opened.sessions
    width, half = SMALL.dim, SMALL.dim // SMALL.num_heads // 2
    hidden, modulation = torch.randn(batch, rows, width), torch.randn(1, 6, width)
    angles = torch.randn(rows, 1, half, dtype=torch.float64)
    modules = {
        n: m for part in wan_parts(pipeline.dit, pipeline.vace) for n, m in part.modules.items()
    }
    stored = torch.randn(batch, keys, width)
    for name, given in (
        ("main01.queries", (hidden, modulation, angles.cos(), angles.sin())),
        ("main01.attend", (hidden, stored, stored)),
        ("control00.feed_forward", (hidden, modulation)),
    ):
        expected = modules[name](*given)
        result = Graph(name, sessions[name])(*given)
        for mine, theirs in zip(_tuple(result), _tuple(expected), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_no_rows_give_no_rows(opened: Any) -> None:
    """Where the mask touches nothing, partial steps have none; onnxruntime takes no empty memory."""
    sessions = opened.sessions
    graph = Graph("main00.attend", sessions["main00.attend"])
    stored = torch.randn(1, 8, SMALL.dim)
    assert graph(stored[:, :0], stored, stored).shape == (1, 0, SMALL.dim)


def _tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def test_the_parts_hold_the_library_s_own_modules_unchanged(pipeline: Any) -> None:
    before = dict(pipeline.dit.named_parameters())
    parts = wan_parts(pipeline.dit, pipeline.vace)
    held = {p for part in parts for module in part.modules.values() for p in module.parameters()}
    assert set(before.values()) <= held
    assert not pipeline.dit.training
    assert dict(pipeline.dit.named_parameters()) == before


def refuse(pipeline: Any, output: Path, match: str, **arguments: Any) -> None:
    with pytest.raises((UnsupportedBackboneError, ConfigError), match=match):
        WanVace().exporter.export(pipeline, output, **arguments)
    assert not list(output.parent.glob(f".{output.name}*")), "something half-written was left"


def test_a_folder_that_is_in_use_is_left_alone(pipeline: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    refuse(pipeline, tmp_path, "is not empty")
    refuse(pipeline, tmp_path / "mine.txt", "is a file")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_what_breaks_off_leaves_nothing(
    pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx_export, "write_graphs", full)
    refuse(pipeline, tmp_path / "graphs", "cannot be written: No space left on device")
    assert not list(tmp_path.iterdir())


def test_models_that_the_parts_do_not_describe_are_refused(pipeline: Any, tmp_path: Path) -> None:
    output = tmp_path / "graphs"
    pipeline.dit.seperated_timestep = True
    refuse(pipeline, output, "one timestep for each token")
    pipeline.dit.seperated_timestep = False
    pipeline.dit.to(torch.bfloat16)
    refuse(pipeline, output, "bfloat16 weights")
    pipeline.dit2 = pipeline.dit
    refuse(pipeline, output, "two experts")
    assert not output.exists()


def test_a_model_whose_codec_is_not_ours_needs_its_checkpoint(
    pipeline: Any, tmp_path: Path
) -> None:
    pipeline.vae = torch.nn.Identity()
    refuse(pipeline, tmp_path / "graphs", "Name the checkpoint")


def test_without_the_exporter_the_extra_is_named(
    pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    refuse(pipeline, tmp_path / "graphs", r"needs onnxscript.*hetcache\[onnx\]")


def test_a_part_that_torch_cannot_export_is_named(
    pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("no decomposition\nand more")

    monkeypatch.setattr(torch.onnx, "export", fail)
    refuse(pipeline, tmp_path / "graphs", "cannot export patch: no decomposition$")


def test_a_checkpoint_is_noted_and_its_vae_and_text_encoder_loaded_from_it(
    pipeline: Any, opened: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = {"kinds": {}, "graphs": {}, "weights": {}}
    monkeypatch.setattr(onnx_export, "write_graphs", lambda *_: written)
    around, pipeline.vae = pipeline.vae, torch.nn.Identity()
    WanVace().exporter.export(pipeline, tmp_path / "graphs", model=str(tmp_path))
    manifest = read_manifest(tmp_path / "graphs", around=str(tmp_path))
    assert (manifest.checkpoint, manifest.words) == (str(tmp_path), None)
    asked = []

    def loaded(request: Any, files: tuple[str, ...]) -> Any:
        asked.append((request.model, files))
        pipeline.vae = around
        return pipeline

    monkeypatch.setattr(onnx_wan, "load_checkpoint", loaded)
    made = onnx_wan.assemble(evolve(opened, manifest=manifest, around=None))
    assert asked == [(str(tmp_path), ("models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth"))]
    assert type(made.dit).__name__ == "OnnxWanModel"
