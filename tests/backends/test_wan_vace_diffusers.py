"""The adapter for diffusers' Wan-VACE, alone and against the one for DiffSynth."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from attrs import asdict

from hetcache_core import (
    CachePolicy,
    CacheStateError,
    ConfigError,
    EditRequest,
    LoadRequest,
    Mode,
    PartialSettings,
    PipelineBusyError,
    Role,
    Session,
    Trace,
    UnsupportedBackboneError,
    accelerate,
    discover,
    mask_to_tokens,
)
from hetcache_core.policy.partial import ControlMode, KVMode
from hetcache_core.testing.scripted import FULL_STEPS, BlockScript, scripted
from hetcache_core.testing.watch import WatchedEngine

pytest.importorskip("diffusers")

from diffusers import (
    FirstBlockCacheConfig,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanVACETransformer3DModel,
)
from PIL import Image

from hetcache_backends.diffusers.cases import (
    sample_text,
    sample_video,
    small_ltx,
    small_wan_vace,
    wan_vace_arguments,
)
from hetcache_backends.diffusers.wan_vace import WanVaceDiffusers

BACKBONE = WanVaceDiffusers()
STEPS = 6
F, P, R = Mode.FULL, Mode.PARTIAL, Mode.REUSE
TOKENS, CONTROL_BLOCKS = 48, 2


def run(pipeline: Any, *, steps: int = STEPS, guided: bool = True, **changes: Any) -> torch.Tensor:
    arguments = {**wan_vace_arguments(guided=guided), **changes}
    latents: torch.Tensor = pipeline(num_inference_steps=steps, **arguments).frames
    return latents


def cached(pipeline: Any, policy: Any, **changes: Any) -> tuple[torch.Tensor, Session]:
    with accelerate(pipeline, policy, backbone=BACKBONE) as session:
        return run(pipeline, **changes), session


def partial(**changes: Any) -> PartialSettings:
    return PartialSettings(**{"context_ratio": 0.2, "pad_to": 1, **changes})


def modes(trace: Trace) -> str:
    return "".join(record.mode.value[0] for record in trace.records)


def state(pipeline: Any) -> list[dict[str, Any]]:
    """Attributes of the pipeline, its scheduler and its models, for a comparison by identity."""
    model = pipeline.transformer
    objects = (pipeline, pipeline.scheduler, model, *model.blocks, *model.vace_blocks)
    sampling = {
        "timesteps",
        "sigmas",
        "num_inference_steps",
        "_step_index",
        "_num_timesteps",
        "_current_timestep",
    }
    return [{k: v for k, v in vars(o).items() if k not in sampling} for o in objects]


def same(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> bool:
    return all(
        old.keys() == new.keys() and all(old[k] is new[k] or old[k] == new[k] for k in old)
        for old, new in zip(before, after, strict=True)
    )


@pytest.fixture
def pipe() -> Any:
    pipeline = small_wan_vace(0)
    run(pipeline, steps=1)  # the library makes some of its attributes on first use
    return pipeline


# What a session computes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("guided", [True, False])
def test_full_steps_are_the_bare_pipeline(pipe: Any, dtype: torch.dtype, guided: bool) -> None:
    pipe.transformer.to(dtype)
    bare = run(pipe, guided=guided)
    out, session = cached(pipe, FULL_STEPS, guided=guided)
    assert torch.equal(out, bare)
    branches = ["cond", "uncond"] if guided else ["cond"]
    assert [r.branch for r in session.trace.records] == branches * STEPS
    assert {r.control_run for r in session.trace.records} == {CONTROL_BLOCKS}


def test_full_steps_that_look_into_every_block_are_the_bare_pipeline(pipe: Any) -> None:
    bare = run(pipe)
    blocks = CachePolicy(name="looking", blocks=BlockScript(reuses=False))
    assert torch.equal(cached(pipe, blocks)[0], bare)
    assert torch.equal(cached(pipe, scripted(F, partial=partial()))[0], bare)


def test_scaled_hints_are_the_library_s(pipe: Any) -> None:
    scales = [0.5, 2.0]
    bare = run(pipe, conditioning_scale=scales)
    assert torch.equal(cached(pipe, FULL_STEPS, conditioning_scale=scales)[0], bare)
    assert not torch.equal(bare, run(pipe))


def test_reused_steps_run_no_block_and_no_control_block(pipe: Any) -> None:
    out, session = cached(pipe, scripted(F, R))
    reused = [r for r in session.trace.records if r.mode is R]
    assert modes(session.trace) == "ffrrffrrffrr"
    assert {(r.blocks_run, r.control_run, r.active) for r in reused} == {(0, 0, 0)}
    assert not torch.equal(out, run(pipe))


@pytest.mark.parametrize("kv_mode", list(KVMode))
@pytest.mark.parametrize("control_mode", list(ControlMode))
def test_partial_steps_run_the_active_tokens(
    pipe: Any, kv_mode: KVMode, control_mode: ControlMode
) -> None:
    settings = partial(kv_mode=kv_mode, control_mode=control_mode)
    out, session = cached(pipe, scripted(F, P, R, partial=settings))
    assert modes(session.trace) == "ffpprr" * 2
    parts = [r for r in session.trace.records if r.mode is P]
    assert {r.active for r in parts} == {parts[0].active}
    assert parts[0].active < TOKENS
    expected = 0 if control_mode is ControlMode.REUSE else CONTROL_BLOCKS
    assert {r.control_run for r in parts} == {expected}
    assert torch.isfinite(out).all()


def test_the_pipeline_may_take_fewer_steps(pipe: Any) -> None:
    out, session = cached(pipe, CachePolicy(name="half", sampler_share=0.5))
    assert torch.equal(out, run(pipe, steps=3))
    assert (session.trace.steps, session.trace.requested_steps) == (3, 6)


def test_integer_timesteps_are_unrounded_from_the_noise_levels(pipe: Any) -> None:
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe.register_modules(scheduler=scheduler)
    bare = run(pipe)
    assert not pipe.scheduler.timesteps.is_floating_point()
    out, session = cached(pipe, FULL_STEPS)
    assert torch.equal(out, bare)
    for record, rounded in zip(session.trace.records[::2], scheduler.timesteps, strict=True):
        assert record.timestep == pytest.approx(1000 * record.sigma)
        assert abs(record.timestep - float(rounded)) <= 1


def test_signals_are_the_model_s_own_embedding(pipe: Any) -> None:
    engine = WatchedEngine(policy=FULL_STEPS)
    with BACKBONE.attach(pipe, engine):
        run(pipe, steps=2)
    trunk, info = engine.seen[0].trunk, engine.infos[0]
    assert trunk is not None
    modulations = trunk.timestep_modulations(info.timesteps)
    own = trunk.blocks.modulation.flatten(1)[0]  # type: ignore[attr-defined]  # of this adapter
    assert modulations.shape == (2, own.shape[0])
    torch.testing.assert_close(modulations[0], own, rtol=1e-5, atol=1e-5)
    assert trunk.modulated_input(modulations[0]).dtype is torch.float32
    assert trunk.modulated_input(modulations[0]).shape == trunk.x.shape


# The mask


def test_the_mask_is_the_union_over_all_pixel_frames(pipe: Any) -> None:
    """The control latents hold every fourth frame only; here the mask is in another one."""
    video, _ = sample_video(5, 64, 96)
    mask = np.zeros((5, 64, 96), np.uint8)
    mask[4, 16:32, 32:48] = 255
    engine = WatchedEngine(policy=FULL_STEPS)
    with BACKBONE.attach(pipe, engine):
        run(pipe, steps=1, video=video, mask=[Image.fromarray(m) for m in mask])
    info = engine.infos[0]
    assert info.mask is not None
    assert torch.equal(info.mask, torch.from_numpy(mask > 127))
    tokens = mask_to_tokens(info.mask, info.grid)
    assert tokens.sum() == 1
    assert tokens[1, 1, 2]
    assert (info.grid.pixel_height, info.grid.pixel_width, info.grid.frame_stride) == (16, 16, 4)


def test_without_a_mask_everything_is_edited(pipe: Any) -> None:
    engine = WatchedEngine(policy=FULL_STEPS)
    with BACKBONE.attach(pipe, engine):
        run(pipe, steps=1, mask=None)
    assert engine.infos[0].mask is not None
    assert engine.infos[0].mask.all()


def test_reference_images_are_pinned_tokens_before_the_video(pipe: Any) -> None:
    image = Image.new("RGB", (96, 64), (200, 30, 30))
    bare = run(pipe, reference_images=[image])
    engine = WatchedEngine(policy=scripted(F, P, partial=partial()))
    with BACKBONE.attach(pipe, engine):
        run(pipe, reference_images=[image])
    assert (engine.infos[0].grid.prefix, engine.infos[0].grid.tokens) == (24, 72)
    assert engine.trace.tokens_by_role["pinned"] == 24
    out, _ = cached(pipe, FULL_STEPS, reference_images=[image])
    assert torch.equal(out, bare)


# What a session leaves behind


def test_leaving_restores_the_pipeline_exactly(pipe: Any) -> None:
    before = state(pipe)
    with accelerate(pipe, FULL_STEPS, backbone=BACKBONE):
        assert not same(before, state(pipe))
        run(pipe)
    assert same(before, state(pipe))
    assert pipe.config.scheduler[1] == "FlowMatchEulerDiscreteScheduler"


def test_an_exception_restores_the_pipeline_exactly(pipe: Any) -> None:
    before, bare = state(pipe), run(pipe)

    def fail(*_: Any) -> Any:
        raise RuntimeError("in the middle")

    session = accelerate(pipe, FULL_STEPS, backbone=BACKBONE)
    with pytest.raises(RuntimeError, match="in the middle"), session:
        run(pipe, callback_on_step_end=fail)
    assert same(before, state(pipe))
    assert torch.equal(run(pipe), bare)


def test_a_run_after_a_broken_one_starts_anew(pipe: Any) -> None:
    def fail(pipeline: Any, step: int, *_: Any) -> dict[str, Any]:
        if step == 1:
            raise RuntimeError("in the middle")
        return {}

    with accelerate(pipe, scripted(F, R), backbone=BACKBONE) as session:
        with pytest.raises(RuntimeError, match="in the middle"):
            run(pipe, callback_on_step_end=fail)
        run(pipe)
    assert len(session.traces) == 1
    assert modes(session.trace) == "ffrr" * 3


def test_calls_outside_the_loop_are_the_library_s(pipe: Any) -> None:
    arguments = {
        "hidden_states": torch.ones(1, 16, 2, 8, 8),
        "timestep": torch.tensor([7.0]),
        "encoder_hidden_states": sample_text(0)[0],
        "control_hidden_states": torch.ones(1, 96, 2, 8, 8),
    }
    with torch.no_grad():
        bare = pipe.transformer(**arguments).sample
        with accelerate(pipe, FULL_STEPS, backbone=BACKBONE) as session:
            run(pipe)
            assert torch.equal(pipe.transformer(**arguments).sample, bare)
    assert len(session.trace.records) == 2 * STEPS


def test_a_call_with_another_timestep_is_refused(pipe: Any) -> None:
    arguments = {
        "hidden_states": torch.ones(1, 16, 2, 8, 8),
        "timestep": torch.tensor([7.0]),
        "encoder_hidden_states": sample_text(0)[0],
        "control_hidden_states": torch.ones(1, 96, 2, 8, 8),
    }
    with accelerate(pipe, FULL_STEPS, backbone=BACKBONE):
        pipe.scheduler.set_timesteps(STEPS)
        with pytest.raises(CacheStateError, match="while the scheduler is at step 0"):
            pipe.transformer(**arguments)


@pytest.mark.parametrize("timestep", [3.0, None])
def test_a_callback_s_own_call_is_the_library_s(pipe: Any, timestep: float | None) -> None:
    """Whatever its timestep, also the next step's own: the loop is not there yet."""
    bare, answers, model = run(pipe), [], pipe.transformer

    def call(pipeline: Any, step: int, now: Any, values: dict[str, Any]) -> dict[str, Any]:
        following = pipeline.scheduler.timesteps[min(step + 1, STEPS - 1)]
        arguments = {
            "hidden_states": values["latents"],
            "timestep": following[None] if timestep is None else torch.tensor([timestep]),
            "encoder_hidden_states": values["prompt_embeds"],
            "control_hidden_states": torch.ones(1, 96, *values["latents"].shape[2:]),
        }
        library = type(model).forward(model, **arguments).sample
        answers.append(torch.equal(model(**arguments).sample, library))
        return {}

    names = ["latents", "prompt_embeds"]
    with accelerate(pipe, FULL_STEPS, backbone=BACKBONE) as session:
        out = run(pipe, callback_on_step_end=call, callback_on_step_end_tensor_inputs=names)
    assert answers == [True] * STEPS
    assert torch.equal(out, bare)
    assert len(session.trace.records) == 2 * STEPS


def test_an_interrupted_run_is_closed_with_its_loop(pipe: Any) -> None:
    """Its cache is freed before the library decodes, and what ran is kept as a trace."""
    held: list[bool] = []

    def interrupt(pipeline: Any, step: int, now: Any, values: dict[str, Any]) -> dict[str, Any]:
        pipeline._interrupt = step == 3
        held.append(session._engine.running)
        return {}

    def decode(*_: Any, **__: Any) -> Any:
        held.append(session._engine.running)
        raise RuntimeError("as far as this test goes")

    arguments = wan_vace_arguments(0)
    session = accelerate(pipe, "every-nth", backbone=BACKBONE, keep_traces=None)
    with session:
        run(pipe, callback_on_step_end=interrupt)
        assert not session._engine.running
        vars(pipe.vae)["decode"] = decode
        with pytest.raises(RuntimeError, match="as far as"):
            pipe(
                **{**arguments, "output_type": "np"},
                num_inference_steps=STEPS,
                callback_on_step_end=interrupt,
            )
    del vars(pipe.vae)["decode"]
    assert held == [*([True] * 4), *([True] * 4), False]
    assert [trace.complete for trace in session.traces] == [False, False]
    assert [len(trace.records) for trace in session.traces] == [8, 8]


def test_a_call_after_an_interrupted_run_is_the_library_s(pipe: Any) -> None:
    """With the timestep at which the run would go on, so that only the end of the loop tells."""

    def interrupt(pipeline: Any, step: int, now: Any, values: dict[str, Any]) -> dict[str, Any]:
        pipeline._interrupt = step == 3
        return {}

    with torch.no_grad(), accelerate(pipe, "every-nth", backbone=BACKBONE) as session:
        latents = run(pipe, callback_on_step_end=interrupt)
        arguments = {
            "hidden_states": latents,
            "timestep": pipe.scheduler.timesteps[4][None],
            "encoder_hidden_states": sample_text(0)[0],
            "control_hidden_states": torch.ones(1, 96, *latents.shape[2:]),
        }
        answer = pipe.transformer(**arguments).sample
        library = type(pipe.transformer).forward(pipe.transformer, **arguments).sample
    assert torch.equal(answer, library)
    assert not session.trace.complete


def test_offloading_of_whole_models_is_carried(pipe: Any) -> None:
    bare = run(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    with accelerate(pipe, FULL_STEPS, backbone=BACKBONE) as session:
        out = run(pipe)
    assert torch.equal(out, bare)
    assert len(session.trace.records) == 2 * STEPS
    pipe.remove_all_hooks()
    assert torch.equal(run(pipe), bare)
    assert vars(pipe.transformer)["forward"].__func__ is WanVACETransformer3DModel.forward


# What a session refuses


def split_context(pipeline: Any) -> None:
    pipeline.transformer._parallel_config = SimpleNamespace()


def replace_forward(pipeline: Any) -> None:
    pipeline.transformer.forward = lambda **_: None


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (lambda p: p.transformer.enable_cache(FirstBlockCacheConfig()), "enable_cache"),
        (lambda p: p.transformer.enable_gradient_checkpointing(), "gradient checkpointing"),
        (split_context, "enable_parallelism"),
        (replace_forward, "replaced forward"),
    ],
)
def test_options_that_a_session_cannot_carry_are_named(
    pipe: Any, option: Callable[[Any], Any], message: str
) -> None:
    option(pipe)
    session = accelerate(pipe, FULL_STEPS, backbone=BACKBONE)
    with pytest.raises(UnsupportedBackboneError, match=message) as caught, session:
        pytest.fail("entered")
    assert caught.value.remedy
    assert type(pipe.scheduler) is FlowMatchEulerDiscreteScheduler


def test_a_second_session_is_refused(pipe: Any) -> None:
    second = accelerate(pipe, FULL_STEPS, backbone=BACKBONE)
    twin = small_wan_vace(1)
    twin.register_modules(transformer=pipe.transformer)
    sharing = accelerate(twin, FULL_STEPS, backbone=BACKBONE)
    with accelerate(pipe, FULL_STEPS, backbone=BACKBONE):
        with pytest.raises(PipelineBusyError, match="already in a session"), second:
            pass
        with pytest.raises(UnsupportedBackboneError, match="shares the model"), sharing:
            pass
        run(pipe)
    with sharing:
        run(twin)


class OwnProcessor:
    """A processor that computes attention by itself."""

    def __call__(self, attn: Any, hidden_states: Any, *_: Any) -> Any:
        return attn.to_out[0](attn.to_v(hidden_states))


def test_an_attention_processor_that_hides_q_and_k_is_refused_where_they_are_needed(
    pipe: Any,
) -> None:
    pipe.transformer.blocks[1].attn1.set_processor(OwnProcessor())
    bare = run(pipe)
    assert torch.equal(cached(pipe, FULL_STEPS)[0], bare)
    session = accelerate(pipe, scripted(F, P, partial=partial()), backbone=BACKBONE)
    with pytest.raises(UnsupportedBackboneError, match="OwnProcessor"), session:
        pass


def test_only_its_own_pipelines_are_accepted(pipe: Any) -> None:
    ltx = small_ltx(0)
    assert BACKBONE.accepts(pipe)
    assert not BACKBONE.accepts(ltx)
    assert not BACKBONE.accepts(object())
    with pytest.raises(UnsupportedBackboneError, match="not a MaskedLTXPipeline"):
        BACKBONE.attach(ltx, WatchedEngine(policy=FULL_STEPS)).__enter__()


def test_the_library_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == "diffusers"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UnsupportedBackboneError, match=r"pip install 'hetcache\[diffusers\]'"):
        BACKBONE.load(LoadRequest(model="somewhere"))


# Two experts


def test_the_cache_is_reset_where_the_second_expert_takes_over(pipe: Any) -> None:
    pipe.register_modules(transformer_2=small_wan_vace(1).transformer)
    pipe.register_to_config(boundary_ratio=0.7)
    bare = run(pipe)
    out, session = cached(pipe, FULL_STEPS)
    assert torch.equal(out, bare)
    experts = [r.expert for r in session.trace.records]
    switch = experts.index("low-noise")
    assert experts == ["high-noise"] * switch + ["low-noise"] * (2 * STEPS - switch)
    _, session = cached(pipe, scripted(F, R, R, R, R, R))
    assert session.trace.records[switch].reason == "no cache yet"


# Loading and editing


def text_parts() -> dict[str, Any]:
    """A text encoder of the real class, and a tokenizer of five words."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = {"<pad>": 0, "<unk>": 1, "a": 2, "red": 3, "ball": 4}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    sizes = {"d_model": 24, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    torch.manual_seed(0)
    return {
        "text_encoder": transformers.UMT5EncoderModel(
            transformers.UMT5Config(vocab_size=8, **sizes)
        ).eval(),
        "tokenizer": transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>"
        ),
    }


def request(**changes: Any) -> EditRequest:
    video, mask = sample_video(5, 64, 64)
    values = {
        "video": np.stack([np.asarray(frame) for frame in video]),
        "mask": mask.numpy(),
        "prompt": "a red ball",
        "steps": 2,
        **changes,
    }
    return EditRequest(**values)


def test_a_saved_folder_is_loaded_and_edits_by_prompt(tmp_path: Path) -> None:
    saved = small_wan_vace(0)
    saved.register_modules(**text_parts())
    saved.save_pretrained(tmp_path)
    loaded = BACKBONE.load(LoadRequest(model=str(tmp_path)))
    assert BACKBONE.describe(loaded) == BACKBONE.describe(saved)
    frames = BACKBONE.edit(loaded, request())
    assert (frames.shape, frames.dtype) == ((5, 64, 64, 3), np.uint8)
    assert np.array_equal(frames, BACKBONE.edit(saved, request()))
    assert not np.array_equal(frames, BACKBONE.edit(saved, request(prompt="ball", steps=2)))
    assert "_progress_bar_config" not in vars(loaded)


def test_the_loaded_dtype_is_the_one_asked_for_and_the_vae_stays_fp32(tmp_path: Path) -> None:
    small_wan_vace(0).save_pretrained(tmp_path)
    loaded = BACKBONE.load(LoadRequest(model=str(tmp_path), dtype="bfloat16"))
    assert loaded.transformer.blocks[0].attn1.to_q.weight.dtype is torch.bfloat16
    assert loaded.vae.dtype is torch.float32
    run(loaded, steps=1)


def test_without_a_text_encoder_embeddings_take_the_prompt_s_place(pipe: Any) -> None:
    with pytest.raises(UnsupportedBackboneError, match="prompt_embeds"):
        BACKBONE.edit(pipe, request())
    text, negative = sample_text(0)
    options = {"prompt_embeds": text, "negative_prompt_embeds": negative}
    assert BACKBONE.edit(pipe, request(options=options)).shape == (5, 64, 64, 3)


def test_what_cannot_be_loaded_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    small_wan_vace(0).save_pretrained(tmp_path / "whole")
    small_ltx(0).save_pretrained(tmp_path / "other")
    (tmp_path / "whole" / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    for model, message in (
        (None, "Wan-AI/Wan2.1-VACE-1.3B-diffusers"),
        (str(tmp_path / "whole"), "could not be loaded"),
        (str(tmp_path / "other"), "--backbone ltx-video"),
        (str(tmp_path / "nothing"), "could not be loaded"),
        ("nobody/no-such-model", "could not be loaded"),
    ):
        with pytest.raises(UnsupportedBackboneError, match=message) as caught:
            BACKBONE.load(LoadRequest(model=model))
        assert "\n" not in str(caught.value)


def test_the_published_sizes_are_recognised() -> None:
    blocks = [SimpleNamespace()] * 30
    config = SimpleNamespace(
        num_attention_heads=12, attention_head_dim=128, vace_layers=list(range(0, 30, 2))
    )
    model = SimpleNamespace(blocks=blocks, config=config)
    described = BACKBONE.describe(SimpleNamespace(transformer=model, transformer_2=None))
    assert (described.variant, described.width, len(described.control_layers)) == (
        "wan2.1-1.3b",
        1536,
        15,
    )


# Against DiffSynth


class Codec:
    """DiffSynth's codec as diffusers' pipeline calls a VAE."""

    dtype = torch.float32

    def __init__(self, codec: Any, channels: int) -> None:
        self.codec = codec
        self.config = SimpleNamespace(
            z_dim=channels, latents_mean=[0.0] * channels, latents_std=[1.0] * channels
        )

    def encode(self, video: torch.Tensor) -> Any:
        return SimpleNamespace(latents=self.codec.encode(video))


class WanSteps(FlowMatchEulerDiscreteScheduler):
    """diffusers' sampler on the noise levels of DiffSynth's."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        sigmas = torch.linspace(1, 0, num_inference_steps + 1)[:-1]
        sigmas = 5 * sigmas / (1 + 4 * sigmas)
        super().set_timesteps(sigmas=sigmas.tolist(), device=device)


@pytest.fixture(scope="module")
def twins() -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """The same weights in both libraries, each as a function from a policy to latents and trace."""
    pytest.importorskip("diffsynth")
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    from hetcache_backends.tiny_vace.config import TinyVaceConfig
    from hetcache_backends.tiny_vace.pipeline import build_pipeline
    from hetcache_backends.tiny_vace.text import embed_prompt
    from hetcache_backends.wan.wan_vace import WanVace

    config = TinyVaceConfig(
        dim=48, num_heads=4, num_layers=4, control_layers=(0, 2), ffn_dim=96, freq_dim=32
    )
    original = build_pipeline(seed=0, config=config)
    model = WanVACETransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=12,
        in_channels=config.z_dim,
        out_channels=config.z_dim,
        text_dim=config.text_dim,
        freq_dim=32,
        ffn_dim=96,
        num_layers=4,
        vace_layers=[0, 2],
        vace_in_channels=2 * config.z_dim + 64,
    ).eval()
    weights = {**original.dit.state_dict(), **original.vace.state_dict()}
    found = model.load_state_dict(convert_wan_transformer_to_diffusers(weights), strict=False)
    assert (found.missing_keys, found.unexpected_keys) == ([], [])
    converted = small_wan_vace(0)
    converted.register_modules(transformer=model, scheduler=WanSteps())
    vars(converted)["vae"] = Codec(original.vae, config.z_dim)
    video, mask = sample_video(5, 64, 96)
    masks = [Image.fromarray(m) for m in (mask.to(torch.uint8) * 255).numpy()]
    sizes = {"height": 64, "width": 96, "num_frames": 5}
    texts = ("a red circle", "blue")

    def run_diffusers(policy: Any) -> tuple[torch.Tensor, Trace | None]:
        def sample() -> torch.Tensor:
            text, negative = (embed_prompt(t, config) for t in texts)
            latents: torch.Tensor = converted(
                video=video,
                mask=masks,
                prompt_embeds=text,
                negative_prompt_embeds=negative,
                guidance_scale=5.0,
                num_inference_steps=12,
                generator=torch.Generator().manual_seed(3),
                output_type="latent",
                **sizes,
            ).frames
            return latents

        if policy is None:
            return sample(), None
        with accelerate(converted, policy, backbone=BACKBONE) as session:
            return sample(), session.trace

    def run_diffsynth(policy: Any) -> tuple[torch.Tensor, Trace | None]:
        caught: list[torch.Tensor] = []
        decode = original.vae.decode

        def keep(latents: torch.Tensor, **arguments: Any) -> torch.Tensor:
            caught.append(latents.clone())
            return decode(latents, **arguments)

        def sample() -> torch.Tensor:
            vars(original.vae)["decode"] = keep
            try:
                original(
                    prompt=texts[0],
                    negative_prompt=texts[1],
                    vace_video=video,
                    vace_video_mask=[m.convert("RGB") for m in masks],
                    seed=3,
                    cfg_scale=5.0,
                    num_inference_steps=12,
                    tiled=False,
                    output_type="floatpoint",
                    progress_bar_cmd=lambda steps: steps,
                    **sizes,
                )
            finally:
                del vars(original.vae)["decode"]
            return caught[-1]

        if policy is None:
            return sample(), None
        with accelerate(original, policy, backbone=WanVace()) as session:
            return sample(), session.trace

    return run_diffusers, run_diffsynth


def comparable(trace: Trace) -> list[dict[str, Any]]:
    """The records without durations, and without the digits of signals."""
    records = []
    for record in json.loads(json.dumps([asdict(r) for r in trace.records], default=str)):
        for name in ("seconds", "timestep", "sigma", "signal"):
            del record[name]
        record["reason"] = re.sub(r"[-+]?[0-9.]+(e[-+]?\d+)?", "#", record["reason"])
        records.append(record)
    return records


SCRIPTED = {
    "bare": None,
    "full": FULL_STEPS,
    "reuse": scripted(F, R),
    "cached keys": scripted(F, P, R, partial=partial()),
    "pruned keys": scripted(
        F, P, P, R, partial=partial(kv_mode=KVMode.PRUNED, control_mode=ControlMode.RECOMPUTE)
    ),
    "sub-layers": CachePolicy(name="parts", blocks=BlockScript()),
    "blocks": CachePolicy(name="blocks", blocks=BlockScript(whole=True)),
}


@pytest.mark.parametrize("policy", [*SCRIPTED, *discover().names("policy")])
def test_both_libraries_give_the_same_output_and_trace(twins: Any, policy: str) -> None:
    """Without caching they differ by 2e-6, in latents whose deviation is 1.2."""
    run_diffusers, run_diffsynth = twins
    chosen = SCRIPTED.get(policy, policy)
    try:
        (out, trace), (expected, expected_trace) = run_diffusers(chosen), run_diffsynth(chosen)
    except ConfigError as error:
        pytest.skip(f"not for this model: {error}")
    assert float((out - expected).abs().max()) < 2e-5
    if trace is None or expected_trace is None:
        return
    assert comparable(trace) == comparable(expected_trace)
    assert trace.peak_cache_bytes == expected_trace.peak_cache_bytes
    for record, other in zip(trace.records, expected_trace.records, strict=True):
        assert record.timestep == pytest.approx(other.timestep, rel=1e-6)
        if record.signal is not None:
            assert record.signal == pytest.approx(other.signal, rel=1e-3, abs=1e-6)


def test_roles_are_the_same_for_both_libraries(twins: Any) -> None:
    traces = [run(SCRIPTED["cached keys"])[1] for run in twins]
    assert traces[0].tokens_by_role == traces[1].tokens_by_role
    assert traces[0].tokens_by_role[Role.GENERATIVE.name.lower()] > 0
