"""Exported graphs on ONNX Runtime against the torch models that they were made from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("diffsynth")

import onnx
import onnxruntime

from hetcache_backends.onnx import wan as onnx_wan
from hetcache_backends.onnx.folder import MANIFEST, WEIGHTS, WanSizes
from hetcache_backends.onnx.runtime import OnnxRuntime
from hetcache_backends.onnx.session import OpenedFolder, open_sessions
from hetcache_backends.onnx.wan import assemble
from hetcache_backends.wan.wan_vace import WanVace
from hetcache_core import LoadRequest, UnsupportedBackboneError, accelerate, discover
from hetcache_core.records.trace import Trace
from hetcache_core.testing import BackboneCase

TOLERANCE = 1e-4
"""What is promised; what is measured on this model is below 1e-6."""

POLICIES = [
    "none", "every-nth", "teacache", "hetcache", "taylorseer", "auto", "pab", "toca", "fbcache",
    "easycache", "hetcache+taylorseer",
]  # fmt: skip


def run(case: BackboneCase, policy: str, layout: str = "separate") -> tuple[torch.Tensor, Trace]:
    pipeline = case.make_pipeline(0)
    with accelerate(pipeline, policy, backbone=case.backbone) as session:
        latents = case.run(pipeline, 8, layout, 0)
    return latents, session.trace


def compare(opened: OpenedFolder[WanSizes], policy: str, layout: str) -> None:
    case = OnnxRuntime().random_models.case().with_values(make_pipeline=lambda _: assemble(opened))
    result, trace = run(case, policy, layout)
    expected, theirs = run(WanVace().random_models.case(), policy, layout)
    error = float((result - expected).abs().max() / expected.abs().max())
    assert error < TOLERANCE
    for mine, other in zip(trace.records, theirs.records, strict=True):
        assert evolve(mine, seconds=other.seconds, signal=other.signal) == other
        assert (mine.signal is None) == (other.signal is None)
        assert mine.signal is None or mine.signal == pytest.approx(other.signal, rel=1e-3)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_result_and_the_trace_are_those_of_torch(
    opened: OpenedFolder[WanSizes], policy: str
) -> None:
    compare(opened, policy, "separate")


@pytest.mark.parametrize("layout", ["merged", "none"])
def test_they_are_in_every_layout_of_guidance(opened: OpenedFolder[WanSizes], layout: str) -> None:
    compare(opened, "hetcache", layout)


def test_there_is_no_parameter_of_the_transformer_in_the_pipeline(
    opened: OpenedFolder[WanSizes],
) -> None:
    pipeline = assemble(opened)
    assert not list(pipeline.dit.parameters())
    assert not list(pipeline.vace.parameters())
    assert OnnxRuntime().accepts(pipeline)
    assert not WanVace().accepts(pipeline)


def test_the_random_model_is_an_export_too(
    opened: OpenedFolder[WanSizes], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = OnnxRuntime()
    monkeypatch.setattr(onnx_wan, "_exported", lambda _seed, _device: opened)
    pipeline = backbone.random_models.pipeline(LoadRequest())
    assert backbone.accepts(pipeline)
    assert "onnx-runtime runs on a small random model" in (backbone.notice(pipeline) or "")
    with pytest.raises(UnsupportedBackboneError, match="float32"):
        backbone.random_models.pipeline(LoadRequest(dtype="bfloat16"))


def test_everything_that_wan_vace_carries_is_carried(opened: OpenedFolder[WanSizes]) -> None:
    assert OnnxRuntime().features == WanVace().features.with_values(compiled=False)
    registry = discover()
    pipeline = assemble(opened)
    for name in registry.names("policy"):
        kind = registry.policy(name)
        if kind.needs_settings():
            continue
        accelerate(pipeline, kind(**kind.anywhere), backbone=OnnxRuntime())


# What is refused


@pytest.fixture
def copied(graphs: Path, tmp_path: Path) -> Path:
    """A folder of graphs that a test may spoil."""
    for path in graphs.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def load(folder: Path | None, **request: Any) -> Any:
    model = None if folder is None else str(folder)
    return OnnxRuntime().load(LoadRequest(model=model, **request))


def refused(folder: Path | None, match: str, **request: Any) -> None:
    with pytest.raises(UnsupportedBackboneError, match=match) as caught:
        load(folder, **request)
    assert "\n" not in str(caught.value)


def test_a_graph_for_another_number_of_tokens_says_so(
    opened: OpenedFolder[WanSizes], copied: Path
) -> None:
    path = copied / "main00.queries.onnx"
    model = onnx.load(str(path), load_external_data=False)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 7
    del model.graph.value_info[:]
    onnx.save(model, str(path))
    only = evolve(opened.manifest, graphs={"main00.queries": path.name})
    sessions = {**opened.sessions, **open_sessions(copied, only, "cpu")}
    case = OnnxRuntime().random_models.case()
    pipeline = assemble(evolve(opened, sessions=sessions))
    with pytest.raises(
        UnsupportedBackboneError,
        match=r"main00.queries was built for hidden of \(batch, 7, 48\).*not \(1, 48, 48\)",
    ):
        case.run(pipeline, 1, "none", 0)


def test_an_operator_that_the_runtime_lacks_is_named(copied: Path) -> None:
    path = copied / "main00.attend.onnx"
    model = onnx.load(str(path), load_external_data=False)
    node = next(node for node in model.graph.node if node.op_type == "Softmax")
    node.op_type = "Softermax"
    onnx.save(model, str(path))
    refused(copied, r"onnxruntime .* cannot load .*main00\.attend\.onnx.*Softermax")


def test_a_folder_that_is_no_export_says_how_to_make_one(tmp_path: Path) -> None:
    refused(None, "needs a folder that `hetcache export` wrote")
    refused(tmp_path, "manifest.json cannot be read.*hetcache export")
    (tmp_path / MANIFEST).write_text("[]")
    refused(tmp_path, "is no manifest")
    (tmp_path / MANIFEST).write_text(json.dumps({"format": 99}))
    refused(tmp_path, "has format 99.*Export the model again")


def test_missing_weights_are_named(copied: Path) -> None:
    (copied / WEIGHTS).unlink()
    refused(copied, "cannot load .*weights.bin")


def test_another_precision_and_another_device_are_refused(copied: Path) -> None:
    refused(copied, "bfloat16 was asked for.*--dtype float32", dtype="bfloat16")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        refused(copied, "no CUDAExecutionProvider.*--device cpu", device="cuda")


def test_without_onnxruntime_the_extra_is_named(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    refused(copied, r"needs onnxruntime.*hetcache\[onnx\]")


def test_the_modules_are_imported_without_the_libraries() -> None:
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['onnx', 'onnxruntime', 'onnxscript'], None))\n"
        "from pathlib import Path\n"
        "from hetcache_backends.onnx import export, runtime, session\n"
        "from hetcache_backends.tiny_vace.backbone import TinyVace\n"
        "from hetcache_core import UnsupportedBackboneError\n"
        "try:\n"
        "    TinyVace().exporter.export(None, Path('graphs'))\n"
        "except UnsupportedBackboneError as error:\n"
        "    sys.exit('hetcache[onnx]' not in str(error))\n"
        "sys.exit('nothing was refused')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sessions_of_others_in_the_process_are_not_affected(tmp_path: Path) -> None:
    """onnxruntime refuses them once the process has threads of its own for all sessions."""
    case = OnnxRuntime().random_models.case()
    case.make_pipeline(0)
    number = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Neg", ["x"], ["y"])],
        "negated",
        [onnx.helper.make_tensor_value_info("x", number, ["N"])],
        [onnx.helper.make_tensor_value_info("y", number, ["N"])],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9
    )
    onnx.save(model, tmp_path / "negated.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "negated.onnx"))
    assert [input_.name for input_ in session.get_inputs()] == ["x"]
