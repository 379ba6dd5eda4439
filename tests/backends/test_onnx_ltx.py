"""LTX-Video as ONNX graphs, and ``onnx-runtime`` on them, against the torch model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("diffusers")
if torch.__version__ < (2, 13):
    pytest.skip("this torch does not export LTX-Video", allow_module_level=True)

import onnx
from diffusers import LTXPipeline

from hetcache_backends.diffusers.cases import (
    ltx_arguments,
    sample_text,
    sample_video,
    small_ltx,
)
from hetcache_backends.diffusers.ltx_video import LtxVideo
from hetcache_backends.onnx.folder import AROUND, MANIFEST, OPSET, WEIGHTS, LtxSizes, read_manifest
from hetcache_backends.onnx.ltx import OnnxLtx, assemble_ltx, open_ltx
from hetcache_backends.onnx.ltx_parts import ltx_parts
from hetcache_backends.onnx.runtime import OnnxRuntime
from hetcache_backends.onnx.session import Graph, OpenedFolder, open_sessions
from hetcache_core import (
    Backbone,
    EditRequest,
    LoadRequest,
    Mode,
    PartialSettings,
    UnsupportedBackboneError,
    accelerate,
    discover,
)
from hetcache_core.policy.partial import KVMode
from hetcache_core.records.trace import Trace
from hetcache_core.testing import (
    BACKBONE_CHECKS,
    PAIR_CHECKS,
    BackboneCase,
    NotApplicableError,
    PolicySubject,
    bind,
)
from hetcache_core.testing.comparing import Snapshot
from hetcache_core.testing.scripted import scripted

TOLERANCE = 1e-4
"""What is promised; what is measured on this model is below 1e-6."""

POLICIES = [
    "none", "every-nth", "teacache", "hetcache", "taylorseer", "auto", "pab", "toca", "fbcache",
    "fastcache", "easycache", "hetcache+taylorseer",
]  # fmt: skip

WIDTH = 48


@pytest.fixture
def pipeline() -> Any:
    return small_ltx(0)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of graphs of a small LTX-Video, with VAE and scheduler."""
    folder = tmp_path_factory.mktemp("onnx") / "ltx"
    source = small_ltx(0)
    before = Snapshot.of(source)
    LtxVideo().exporter.export(source, folder)
    before.require_unchanged(source, "an export")
    return folder


@pytest.fixture(scope="module")
def opened(graphs: Path) -> OpenedFolder[LtxSizes]:
    return open_ltx(graphs, "cpu")


@pytest.fixture(scope="module")
def case(opened: OpenedFolder[LtxSizes]) -> BackboneCase:
    """The contract kit's case on the exported folder; only seed 1 has other weights."""
    own = OnnxLtx().random_models.case()
    fresh = own.make_pipeline

    def make(seed: int) -> Any:
        return fresh(seed) if seed else assemble_ltx(opened)

    return own.with_values(make_pipeline=make)


# What is written


def test_onnx_finds_no_fault_and_knows_every_rank(graphs: Path) -> None:
    paths = sorted(graphs.glob("*.onnx"))
    assert len(paths) == 4 * 5 + 5  # of blocks, around the trunk
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
                assert len(tensor.raw_data) <= 4 * WIDTH, f"{tensor.name} is no small constant"
    parameters = list(pipeline.transformer.parameters())
    assert len(places) == len(parameters)
    assert set(places.values()) == {1}
    assert sum(int(length) for _, length in places) == sum(p.numel() * 4 for p in parameters)


def test_the_manifest_says_what_every_graph_takes(
    graphs: Path, opened: OpenedFolder[LtxSizes]
) -> None:
    content = json.loads((graphs / MANIFEST).read_text(encoding="utf-8"))
    assert (content["backbone"], content["runs_with"]) == ("ltx-video", "onnx-runtime")
    assert (content["model"], content["opset"]) == ("LTXVideoTransformer3DModel", OPSET)
    assert content["checkpoint"] is None
    sessions = opened.sessions
    assert set(content["graphs"]) == set(sessions)
    for name, graph in content["graphs"].items():
        kind = content["kinds"][graph["kind"]]
        ports = {"inputs": sessions[name].get_inputs(), "outputs": sessions[name].get_outputs()}
        for side, values in ports.items():
            assert all(port["meaning"] for port in kind[side])
            said = [(port["name"], port["shape"]) for port in kind[side]]
            assert [(v.name, list(v.shape)) for v in values] == said, name


@pytest.mark.parametrize(("batch", "rows", "keys"), [(1, 1, 64), (2, 37, 37), (3, 64, 5)])
def test_batch_rows_keys_and_words_may_be_as_many_as_they_like(
    batch: int, rows: int, keys: int, pipeline: Any, opened: OpenedFolder[LtxSizes]
) -> None:
    sizes = {"batch": batch, "rows": rows, "keys": keys, "words": 7, "times": batch * rows}
    generator = torch.Generator().manual_seed(rows)
    for part in ltx_parts(pipeline.transformer):
        shapes = [[d if isinstance(d, int) else sizes[d] for d in p.shape] for p in part.inputs]
        given = [torch.randn(shape, generator=generator) for shape in shapes]
        name, module = list(part.modules.items())[-1]
        with torch.no_grad():
            expected = module(*given)
        result = Graph(name, opened.sessions[name])(*given)
        for mine, theirs in zip(_tuple(result), _tuple(expected), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def _tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


# What runs


def run(
    pipeline: Any, backbone: Backbone, policy: Any, **changes: Any
) -> tuple[torch.Tensor, Trace]:
    """Edit 17 x 192 x 256 pixels, 144 tokens, so that partial steps are worth it."""
    video, mask = sample_video(17, 192, 256)
    pipeline.set_progress_bar_config(disable=True)
    changes = {"source_video": video, "edit_mask": mask, **changes}
    with accelerate(pipeline, policy, backbone=backbone) as session:
        out = pipeline(num_inference_steps=8, **{**ltx_arguments(), **changes})
    return out.frames, session.trace


def require_same(mine: tuple[torch.Tensor, Trace], theirs: tuple[torch.Tensor, Trace]) -> None:
    (result, trace), (expected, other) = mine, theirs
    assert float((result - expected).abs().max() / expected.abs().max()) < TOLERANCE
    for record, same in zip(trace.records, other.records, strict=True):
        assert evolve(record, seconds=same.seconds, signal=same.signal) == same
        assert (record.signal is None) == (same.signal is None)
        assert record.signal is None or record.signal == pytest.approx(same.signal, rel=1e-3)


@pytest.mark.parametrize("guidance", [3.0, 1.0])
@pytest.mark.parametrize("policy", POLICIES)
def test_the_result_and_the_trace_are_those_of_torch(
    opened: OpenedFolder[LtxSizes], pipeline: Any, policy: str, guidance: float
) -> None:
    mine = run(assemble_ltx(opened), OnnxRuntime(), policy, guidance_scale=guidance)
    require_same(mine, run(pipeline, LtxVideo(), policy, guidance_scale=guidance))
    if policy.startswith("hetcache"):
        assert Mode.PARTIAL in {record.mode for record in mine[1].records}


@pytest.mark.parametrize("kv_mode", list(KVMode))
def test_partial_steps_are_those_of_torch(
    opened: OpenedFolder[LtxSizes], pipeline: Any, kv_mode: KVMode
) -> None:
    modes = (Mode.FULL, Mode.PARTIAL, Mode.REUSE, Mode.PARTIAL)
    settings = PartialSettings(context_ratio=0.2, pad_to=1, kv_mode=kv_mode)
    policy = scripted(*modes, partial=settings)
    mine = run(assemble_ltx(opened), OnnxRuntime(), policy)
    require_same(mine, run(pipeline, LtxVideo(), policy))
    assert tuple(record.mode for record in mine[1].records) == modes * 2


@pytest.mark.parametrize("policy", ["teacache", "pab"])
def test_one_timestep_for_all_tokens_is_given_to_each(
    opened: OpenedFolder[LtxSizes], pipeline: Any, policy: str
) -> None:
    """Text-to-video calls the model with sizes in place of coordinates, and has no mask."""
    out = []
    for masked, backbone in ((assemble_ltx(opened), OnnxRuntime()), (pipeline, LtxVideo())):
        plain = LTXPipeline(**masked.components)
        plain.set_progress_bar_config(disable=True)
        arguments = {**ltx_arguments(), "num_frames": 17, "height": 96, "width": 128}
        del arguments["source_video"], arguments["edit_mask"]
        with accelerate(plain, policy, backbone=backbone) as session:
            out.append((plain(num_inference_steps=6, **arguments).frames, session.trace))
    require_same(*out)


def test_there_is_no_transformer_of_torch_in_the_pipeline(opened: OpenedFolder[LtxSizes]) -> None:
    made = assemble_ltx(opened)
    assert opened.around.transformer is None
    assert not list(made.transformer.parameters())
    assert OnnxRuntime().accepts(made)
    assert not LtxVideo().accepts(made)


def test_adapters_are_chosen_by_the_folder_and_found_by_the_pipeline(
    graphs: Path, opened: OpenedFolder[LtxSizes], tmp_path: Path
) -> None:
    backbone = OnnxRuntime()
    fitting = backbone.for_model(str(graphs))
    assert (fitting.name, fitting.geometry) == (backbone.name, LtxVideo.geometry)
    assert fitting.features == LtxVideo.features.with_values(compiled=False)
    assert backbone.for_model(str(tmp_path)) is backbone
    assert backbone.for_model(None) is backbone
    session = accelerate(assemble_ltx(opened), "none")
    assert session.backbone.name == backbone.name


def test_a_policy_that_needs_two_calls_a_step_is_refused(opened: OpenedFolder[LtxSizes]) -> None:
    pipeline = assemble_ltx(opened)
    for backbone in (OnnxRuntime(), OnnxLtx()):
        with (
            pytest.raises(UnsupportedBackboneError, match="one call"),
            accelerate(pipeline, "fastercache-cfg", backbone=backbone),
        ):
            pass
    assert "SchedulerStandIn" not in repr(type(pipeline.scheduler))


@pytest.mark.parametrize("check", BACKBONE_CHECKS, ids=lambda check: check.__name__)
def test_the_contract_holds(case: BackboneCase, check: Any) -> None:
    holds(check, case)


@pytest.mark.parametrize("policy", ["hetcache", "teacache", "pab", "toca", "fbcache", "auto"])
@pytest.mark.parametrize("check", PAIR_CHECKS, ids=lambda check: check.__name__)
def test_the_contract_of_policies_holds(case: BackboneCase, policy: str, check: Any) -> None:
    kind = discover().policy(policy)
    settings: dict[str, Any] = dict(getattr(kind, "anywhere", {}))
    holds(check, PolicySubject(name=policy, make=lambda: kind(**settings), case=case))


def holds(check: Any, subject: Any) -> None:
    try:
        bind([check], subject, "onnx-runtime on LTX-Video")[0]()
    except NotApplicableError as error:
        pytest.skip(str(error))


# Checkpoints, and the command line


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small pipeline that reads prompts, as ``save_pretrained`` writes it."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("checkpoint") / "saved"
    pipeline = LtxVideo().random_models.pipeline(LoadRequest())
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("typer")
    from hetcache.cli.main import main

    folder = tmp_path_factory.mktemp("exported") / "graphs"
    words = ["--backbone", "ltx-video", "--model", str(checkpoint), "--output", str(folder)]
    assert main(["export", *words]) == 0
    return folder


def test_what_is_around_the_transformer_stays_in_the_checkpoint(
    exported: Path, checkpoint: Path, tmp_path: Path
) -> None:
    assert read_manifest(exported).checkpoint == str(checkpoint)
    assert not (exported / AROUND).exists()
    clip = np.random.default_rng(0).integers(0, 256, (9, 64, 96, 3), np.uint8)
    mask = np.zeros(clip.shape[:3], bool)
    mask[:, 16:48, 32:64] = True
    request = EditRequest(video=clip, mask=mask, prompt="a red ball", steps=4)
    expected = LtxVideo().edit(LtxVideo().load(LoadRequest(model=str(checkpoint))), request)

    moved = shutil.copytree(checkpoint, tmp_path / "saved")
    shutil.rmtree(moved / "transformer")  # nothing of it is read
    folder = shutil.copytree(exported, tmp_path / "graphs")
    with pytest.raises(UnsupportedBackboneError, match="If you trust it, pass --around"):
        OnnxRuntime().load(LoadRequest(model=str(folder)))
    pipeline = OnnxRuntime().load(LoadRequest(model=str(folder), around=str(moved)))
    frames = OnnxRuntime().edit(pipeline, request).astype(int)
    assert np.abs(frames - expected.astype(int)).max() <= 1


def test_an_edit_on_the_command_line_decides_as_with_the_model(
    exported: Path, checkpoint: Path, tmp_path: Path
) -> None:
    pytest.importorskip("av")
    from hetcache.cli.main import main
    from hetcache.media.video import write_video

    mask = np.zeros((9, 192, 256, 3), np.uint8)
    write_video(tmp_path / "clip.mp4", mask + 90, Fraction(10))
    mask[:, 64:96, 64:128] = 255
    write_video(tmp_path / "mask.mp4", mask, Fraction(10))
    modes = []
    for backbone, model in (("onnx-runtime", exported), ("ltx-video", checkpoint)):
        trace = tmp_path / f"{backbone}.json"
        files = ["--video", str(tmp_path / "clip.mp4"), "--mask", str(tmp_path / "mask.mp4")]
        made = ["--output", str(tmp_path / f"{backbone}.mp4"), "--trace", str(trace)]
        common = ["--steps", "8", "--device", "cpu", "--policy", "hetcache"]
        chosen = ["--backbone", backbone, "--model", str(model)]
        chosen += ["--around", str(checkpoint)] if model is exported else []
        assert main(["edit", *files, *made, *common, *chosen]) == 0
        content = json.loads(trace.read_text(encoding="utf-8"))
        assert content["backbone"] == backbone
        modes.append([record["mode"] for record in content["records"]])
    assert modes[0] == modes[1]
    assert {"full", "partial"} <= set(modes[0])


def test_a_size_that_only_wan_takes_is_refused_before_anything_is_loaded(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("av")
    from hetcache.cli.main import main
    from hetcache.media.video import write_video

    for name in ("clip.mp4", "mask.mp4"):
        write_video(tmp_path / name, np.full((9, 64, 96, 3), 255, np.uint8), Fraction(10))
    files = ["--video", str(tmp_path / "clip.mp4"), "--mask", str(tmp_path / "mask.mp4")]
    chosen = ["--backbone", "onnx-runtime", "--model", str(exported)]
    capsys.readouterr()
    sizes = ["--height", "48", "--width", "96", "--output", str(tmp_path / "out.mp4")]
    assert main(["edit", *files, *chosen, *sizes]) == 2
    assert "32" in capsys.readouterr().err
    assert not (tmp_path / "out.mp4").exists()


def test_the_random_model_is_an_export_that_reads_prompts() -> None:
    pytest.importorskip("transformers")
    pipeline = OnnxLtx().random_models.pipeline(LoadRequest())
    assert OnnxRuntime().accepts(pipeline)
    assert pipeline.text_encoder is not None
    assert "onnx-runtime runs on a small random model" in (OnnxLtx().notice(pipeline) or "")
    with pytest.raises(UnsupportedBackboneError, match="float32"):
        OnnxLtx().random_models.pipeline(LoadRequest(dtype="bfloat16"))


def test_diffsynth_is_not_needed(graphs: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules['diffsynth'] = None\n"
        "from hetcache_core import LoadRequest, discover\n"
        "backbone = discover().backbone('onnx-runtime')()\n"
        f"pipeline = backbone.load(LoadRequest(model={str(graphs)!r}))\n"
        "sys.exit(backbone.describe(pipeline).layers != 4)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# What is refused


def refuse(pipeline: Any, output: Path, match: str) -> None:
    with pytest.raises(UnsupportedBackboneError, match=match):
        LtxVideo().exporter.export(pipeline, output)
    assert not list(output.parent.iterdir()), "something half-written was left"


def test_models_that_the_parts_do_not_describe_are_refused(pipeline: Any, tmp_path: Path) -> None:
    output = tmp_path / "graphs"
    model = pipeline.transformer
    model.transformer_blocks[0].norm1.weight = torch.nn.Parameter(torch.ones(WIDTH))
    refuse(pipeline, output, "weights in the norms")
    model.transformer_blocks[0].norm1.weight = None
    torch.nn.Module.to(model, torch.float16)
    refuse(pipeline, output, "float16 weights.*loaded in float32")


def test_adapters_are_refused(pipeline: Any, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    pipeline.transformer.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"]))
    refuse(pipeline, tmp_path / "graphs", r"adapters \(LoRA\).*fused")


def test_arguments_for_adapters_are_refused(opened: OpenedFolder[LtxSizes]) -> None:
    pipeline = assemble_ltx(opened)
    pipeline.set_progress_bar_config(disable=True)
    with pytest.raises(UnsupportedBackboneError, match=r"no attention_kwargs \(scale\)"):
        pipeline(num_inference_steps=1, attention_kwargs={"scale": 0.5}, **ltx_arguments())


def test_a_graph_for_another_number_of_tokens_says_so(
    graphs: Path, opened: OpenedFolder[LtxSizes], tmp_path: Path
) -> None:
    copied = shutil.copytree(graphs, tmp_path / "graphs")
    path = copied / "main00.queries.onnx"
    model = onnx.load(str(path), load_external_data=False)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 7
    del model.graph.value_info[:]
    onnx.save(model, str(path))
    only = evolve(opened.manifest, graphs={"main00.queries": path.name})
    sessions = {**opened.sessions, **open_sessions(copied, only, "cpu")}
    pipeline = assemble_ltx(evolve(opened, sessions=sessions))
    pipeline.set_progress_bar_config(disable=True)
    with pytest.raises(
        UnsupportedBackboneError,
        match=r"main00.queries was built for hidden of \(batch, 7, 48\).*not \(2, 36, 48\)",
    ):
        pipeline(num_inference_steps=1, **ltx_arguments())


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda folder: _softermax(folder / "main00.attend.onnx"), "cannot load .*Softermax"),
        (lambda folder: (folder / WEIGHTS).unlink(), "cannot load .*weights.bin"),
        (lambda folder: shutil.rmtree(folder / AROUND), "MaskedLTXPipeline could not be loaded"),
    ],
)
def test_a_folder_that_is_not_whole_is_one_clear_error(
    graphs: Path, tmp_path: Path, spoil: Any, match: str
) -> None:
    folder = shutil.copytree(graphs, tmp_path / "graphs")
    spoil(folder)
    with pytest.raises(UnsupportedBackboneError, match=match) as caught:
        OnnxRuntime().load(LoadRequest(model=str(folder)))
    assert "\n" not in str(caught.value)


def _softermax(path: Path) -> None:
    model = onnx.load(str(path), load_external_data=False)
    next(node for node in model.graph.node if node.op_type == "Softmax").op_type = "Softermax"
    onnx.save(model, str(path))


def test_sizes_of_the_model_are_read_back(opened: OpenedFolder[LtxSizes], pipeline: Any) -> None:
    sizes = opened.manifest.sizes
    assert isinstance(sizes, LtxSizes)
    text, _ = sample_text(0)
    assert (sizes.width, sizes.layers, sizes.heads) == (WIDTH, 4, 2)
    assert (sizes.in_channels, sizes.text_width) == (
        pipeline.transformer.config.in_channels,
        text.shape[2],
    )
