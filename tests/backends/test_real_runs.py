"""What people do with pipelines, on the libraries' own classes with small random weights."""

from __future__ import annotations

import json
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve

pytest.importorskip("diffusers")
pytest.importorskip("diffsynth")

from diffusers import FlowMatchHeunDiscreteScheduler, FlowMatchLCMScheduler
from safetensors.torch import save_file

from hetcache_backends.diffusers.cases import (
    ltx_arguments,
    small_ltx,
    small_wan_vace,
    wan_vace_arguments,
)
from hetcache_backends.diffusers.ltx_video import LtxVideo
from hetcache_backends.diffusers.wan_vace import WanVaceDiffusers
from hetcache_backends.tiny_vace.backbone import TinyVace
from hetcache_backends.wan.wan_vace import WanVace
from hetcache_core import (
    Backbone,
    ConfigError,
    EditRequest,
    LoadRequest,
    Mode,
    NonFiniteError,
    PipelineBusyError,
    RunCancelledError,
    Session,
    StepInfo,
    StoreSettings,
    Trace,
    UnsupportedBackboneError,
    accelerate,
)

BACKBONES: list[Backbone] = [LtxVideo(), WanVaceDiffusers(), WanVace(), TinyVace()]

backbones = pytest.mark.parametrize("backbone", BACKBONES, ids=lambda b: b.name)


def request(backbone: Backbone, **changes: Any) -> EditRequest:
    """A small masked edit of a length and size that every backbone takes."""
    video = np.random.default_rng(0).integers(0, 256, (9, 64, 96, 3), np.uint8)
    mask = np.zeros(video.shape[:3], np.bool_)
    mask[:, 16:40, 20:44] = True
    return EditRequest(
        **{"video": video, "mask": mask, "steps": 4, "prompt": "a red circle", **changes}
    )


def session(backbone: Backbone, policy: str, **options: Any) -> Session:
    models = backbone.random_models
    assert models is not None
    pipeline = models.pipeline(LoadRequest())
    return accelerate(pipeline, policy, backbone=backbone, **options)


@backbones
@pytest.mark.parametrize("policy", ["none", "teacache"])
def test_a_run_that_ends_in_nan_is_an_error(backbone: Backbone, policy: str) -> None:
    run = session(backbone, policy)
    asked = request(backbone, guidance_scale=1e39)
    with pytest.raises(NonFiniteError, match="from step 0 of 4 on"), run:
        backbone.edit(run.pipeline, asked)


PARTIAL = ("hetcache", "auto", "toca")
"""Policies that compute chosen tokens: in partial steps, or in single sub-layers."""


@backbones
@pytest.mark.parametrize("policy", PARTIAL)
@pytest.mark.parametrize("settings", [{}, {"target_speedup": 2.0}], ids=["", "target"])
def test_a_window_with_nothing_to_edit_is_carried(
    backbone: Backbone, policy: str, settings: dict[str, Any]
) -> None:
    asked = request(backbone)
    with session(backbone, policy, **settings) as run:
        backbone.edit(run.pipeline, evolve(asked, mask=asked.mask & False, steps=8))
    assert Mode.PARTIAL not in run.trace.modes()
    said = [note for note in run.trace.notes if note.startswith("The mask touches no token")]
    assert len(said) == bool(run.policy.partial)


HEUN_STEPS = 6


def heun(policy: str, **options: Any) -> Trace:
    pipeline = small_wan_vace(0)
    pipeline.scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    with accelerate(pipeline, policy, **options) as run:
        pipeline(num_inference_steps=HEUN_STEPS, **wan_vace_arguments())
    return run.trace


def test_two_evaluations_of_a_step_are_counted_as_two() -> None:
    trace = heun("none")
    evaluations = 2 * HEUN_STEPS - 1
    assert (trace.steps, trace.requested_steps) == (evaluations, evaluations)
    assert len(trace.records) == 2 * evaluations
    assert trace.totals().flops_speedup == 1
    assert any(note.startswith("The sampler evaluates the model 2 times") for note in trace.notes)


def test_a_sampler_that_draws_noise_draws_what_it_draws_without_a_session() -> None:
    """The pipeline passes it no generator, so that it draws from torch's own."""
    pipeline, made = small_wan_vace(0), []
    pipeline.scheduler = FlowMatchLCMScheduler()
    for context in (nullcontext(), accelerate(pipeline, "none")):
        torch.manual_seed(0)
        with context:
            made.append(pipeline(num_inference_steps=4, **wan_vace_arguments()).frames)
    assert torch.equal(*made)


def test_a_target_that_is_met_with_two_evaluations_a_step_is_reported_as_met() -> None:
    trace = heun("every-nth", target_speedup=2.0)
    totals = trace.totals()
    assert totals.flops_speedup == sum(r.flops_full for r in trace.records) / totals.flops
    assert totals.flops_speedup >= 2


def test_fewer_steps_are_counted_in_evaluations_too() -> None:
    trace = heun("fewer-steps", settings={"share": 0.5})
    assert (trace.steps, trace.requested_steps) == (HEUN_STEPS - 1, 2 * HEUN_STEPS - 1)
    assert trace.totals().flops_speedup == pytest.approx((2 * HEUN_STEPS - 1) / (HEUN_STEPS - 1))


def test_one_evaluation_a_step_says_nothing_of_it() -> None:
    pipeline = small_wan_vace(0)
    with accelerate(pipeline, "none") as run:
        pipeline(num_inference_steps=2, **wan_vace_arguments())
    assert (run.trace.steps, run.trace.notes) == (2, [])


WRONG = ["wan-vace", "ltx-video", "diffusers", WanVace(), LtxVideo()]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_backbone_of_another_kind_is_one_error_that_names_the_right_one(wrong: Any) -> None:
    with pytest.raises(UnsupportedBackboneError, match="or name 'wan-vace-diffusers'"):
        accelerate(small_wan_vace(0), "none", backbone=wrong)


@pytest.mark.parametrize("options", [{}, {"backbone": "ltx-video"}])
def test_a_model_in_place_of_its_pipeline_is_told_to_pass_the_pipeline(options: Any) -> None:
    with pytest.raises(UnsupportedBackboneError, match="Pass the pipeline itself"):
        accelerate(small_wan_vace(0).transformer, "none", **options)


@backbones
def test_a_busy_pipeline_is_waited_for_where_that_is_asked_for(backbone: Backbone) -> None:
    first = session(backbone, "none")
    busy = accelerate(first.pipeline, "none", backbone=backbone)
    patient = accelerate(first.pipeline, "none", backbone=backbone, wait=True)
    hasty = accelerate(first.pipeline, "none", backbone=backbone, wait=0.01)
    order: list[str] = []

    def queue() -> None:
        with pytest.raises(PipelineBusyError, match="wait=True"), hasty:
            pass
        order.append("hasty")
        began.set()
        with patient:
            order.append("patient")

    began = threading.Event()
    thread = threading.Thread(target=queue)
    with first:
        with pytest.raises(PipelineBusyError), busy:
            pass
        with pytest.raises(PipelineBusyError), patient:  # would wait for itself
            pass
        thread.start()
        assert began.wait(60)
        order.append("first")
    thread.join(60)
    assert order == ["hasty", "first", "patient"]


@backbones
def test_a_run_that_is_cancelled_leaves_a_pipeline_that_runs_as_before(backbone: Backbone) -> None:
    def cancel(step: StepInfo, _records: object) -> None:
        if step.index == 1:
            thread = threading.Thread(target=run.cancel)
            thread.start()
            thread.join(60)

    run = session(backbone, "hetcache", on_step=cancel)
    before = backbone.edit(run.pipeline, request(backbone))
    with run, pytest.raises(RunCancelledError) as caught:
        backbone.edit(run.pipeline, request(backbone))
    assert (caught.value.steps_done, caught.value.steps) == (2, 4)
    assert (len(run.trace.modes()), run.trace.complete) == (2, False)
    assert np.array_equal(backbone.edit(run.pipeline, request(backbone)), before)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_cache_in_float16_holds_a_model_with_large_values_and_says_so(dtype: str) -> None:
    """Residuals of 1e5 and more are past the range of float16, and within that of bfloat16."""
    pipeline = small_wan_vace(0)
    with torch.no_grad():
        pipeline.transformer.blocks[-1].ffn.net[-1].bias.fill_(1e7)
    settings = {"threshold": 1e9}
    with accelerate(
        pipeline, "teacache", settings=settings, store=StoreSettings(dtype=dtype)
    ) as run:
        out = pipeline(num_inference_steps=4, **wan_vace_arguments()).frames
    assert out.isfinite().all()
    assert Mode.REUSE in run.trace.modes()
    said = [note for note in run.trace.notes if "largest number" in note]
    assert len(said) == (dtype == "float16")


KNOWN = {
    "ltx-video": "denoise_strength",
    "wan-vace-diffusers": "conditioning_scale",
    "wan-vace": "sigma_shift",
    "tiny-vace": "sigma_shift",
}


@backbones
def test_options_are_held_against_the_library_s_own_call(backbone: Backbone) -> None:
    known = KNOWN[backbone.name]
    backbone.check_options({known: 1.0})
    with pytest.raises(ConfigError, match=f"there is no {known}s. Did you mean {known}") as caught:
        backbone.check_options({known + "s": 1.0})
    assert caught.value.nearest == known
    for name in ("height", "num_inference_steps", "num_frames", "prompt", "output_type"):
        with pytest.raises(ConfigError, match=f"{name} is passed by hetcache itself"):
            backbone.check_options({name: 1})


@pytest.mark.parametrize("name", ["num_frames", "tilde"])
def test_a_wrong_option_is_refused_before_anything_is_read_or_loaded(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("av")
    from hetcache.cli.main import main

    files = ["--video", "none.mp4", "--mask", "none.mp4", "--output", str(tmp_path / "out.mp4")]
    assert main(["edit", *files, "--backbone", "wan-vace", "--option", f"{name}=3"]) == 2
    assert f"{name}" in capsys.readouterr().err.splitlines()[-1]


def saved(make: Any, folder: Path, **options: Any) -> str:
    make(0).save_pretrained(folder, **options)
    return str(folder)


LOADED = [(WanVaceDiffusers(), small_wan_vace), (LtxVideo(), small_ltx)]


@pytest.mark.parametrize(("backbone", "make"), LOADED, ids=["wan", "ltx"])
def test_a_variant_of_the_weights_is_loaded(backbone: Backbone, make: Any, tmp_path: Path) -> None:
    folder = saved(make, tmp_path, variant="fp16")
    loaded = backbone.load(LoadRequest(model=folder, variant="fp16"))
    assert backbone.describe(loaded) == backbone.describe(make(0))
    with pytest.raises(UnsupportedBackboneError, match="--variant"):
        backbone.load(LoadRequest(model=folder))


@backbones
@pytest.mark.parametrize("name", ["variant", "around"])
def test_what_would_not_be_read_of_a_request_is_refused(
    backbone: Backbone, name: str, tmp_path: Path
) -> None:
    given = {"model": str(tmp_path / "weights.gguf"), name: "fp16"}
    if backbone.name in {"wan-vace", "tiny-vace"}:
        with pytest.raises((ConfigError, UnsupportedBackboneError), match=r"not be read|not read"):
            backbone.load(LoadRequest(**given))
    elif name == "around":
        with pytest.raises(ConfigError, match=r"fp16 would not be read: .* is no single file"):
            backbone.load(LoadRequest(**{**given, "model": str(tmp_path)}))


@pytest.mark.parametrize(("backbone", "make"), LOADED, ids=["wan", "ltx"])
def test_a_single_file_is_loaded_with_the_rest_from_elsewhere(
    backbone: Backbone, make: Any, tmp_path: Path
) -> None:
    around = saved(make, tmp_path / "around")
    other = make(1).transformer
    file = tmp_path / "transformer.safetensors"
    save_file({name: value.contiguous() for name, value in other.state_dict().items()}, file)
    loaded = backbone.load(LoadRequest(model=str(file), around=around)).transformer.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in other.state_dict().items())


def test_a_gguf_file_is_loaded_and_runs_in_a_session(tmp_path: Path) -> None:
    """GGUF holds up to four dimensions, so that Wan's patch embedding does not go into one as it is."""
    gguf = pytest.importorskip("gguf")
    around = saved(small_ltx, tmp_path / "around")
    file = tmp_path / "transformer.gguf"
    writer = gguf.GGUFWriter(file, "ltxv")
    kinds = gguf.GGMLQuantizationType
    for name, value in small_ltx(1).transformer.state_dict().items():
        kind = kinds.BF16 if value.dim() == 2 and "table" not in name else kinds.F32
        packed = gguf.quants.quantize(value.numpy(), kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
    for write in ("header_to_file", "kv_data_to_file", "tensors_to_file"):
        getattr(writer, f"write_{write}")()
    writer.close()
    loaded = LtxVideo().load(LoadRequest(model=str(file), around=around))
    assert type(loaded.transformer.transformer_blocks[0].attn1.to_q).__name__ == "GGUFLinear"
    bare = loaded(num_inference_steps=4, **ltx_arguments()).frames
    with accelerate(loaded, "none"):
        assert torch.equal(loaded(num_inference_steps=4, **ltx_arguments()).frames, bare)
    with accelerate(loaded, "hetcache") as session:
        loaded(num_inference_steps=4, **ltx_arguments())
    assert session.trace.totals().flops_full > session.trace.totals().flops


@pytest.mark.parametrize(("backbone", "make"), LOADED, ids=["wan", "ltx"])
def test_a_folder_without_its_text_encoder_is_loaded_for_embeddings(
    backbone: Backbone, make: Any, tmp_path: Path
) -> None:
    folder = Path(saved(make, tmp_path))
    index = json.loads((folder / "model_index.json").read_text())
    index |= {
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    assert backbone.load(LoadRequest(model=str(folder))).text_encoder is None


def test_a_folder_of_another_backbone_names_the_right_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its index says what it is: no weights are read, which are not there."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folders = {}
    for name, make in (("ltx-video", small_ltx), ("wan-vace-diffusers", small_wan_vace)):
        folder = tmp_path / name
        folder.mkdir()
        index = {"transformer": ["diffusers", type(make(0).transformer).__name__]}
        (folder / "model_index.json").write_text(json.dumps(index))
        folders[name] = folder
    for name, file in (("wan-vace", "Wan2.1_VAE.pth"), ("onnx-runtime", "manifest.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("")
        folders[name] = tmp_path / name
    for backbone in (LtxVideo(), WanVaceDiffusers(), WanVace()):
        for right, folder in folders.items():
            if right != backbone.name:
                with pytest.raises(UnsupportedBackboneError, match=f"--backbone {right}"):
                    backbone.load(LoadRequest(model=str(folder)))
