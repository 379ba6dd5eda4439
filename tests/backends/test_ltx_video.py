"""The LTX-Video adapter, and the pipeline that edits inside a mask."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hetcache_core import (
    CachePolicy,
    ConfigError,
    Decision,
    EditRequest,
    LoadRequest,
    Mode,
    PartialSettings,
    RunInfo,
    Session,
    Signals,
    StepDecider,
    StepInfo,
    StepPolicy,
    Trace,
    UnsupportedBackboneError,
    accelerate,
    mask_to_tokens,
)
from hetcache_core.policy.partial import KVMode
from hetcache_core.steps import BranchRows
from hetcache_core.testing.scripted import FULL_STEPS, BlockScript, scripted
from hetcache_core.testing.watch import WatchedEngine

pytest.importorskip("diffusers")

from diffusers import FirstBlockCacheConfig, LTXConditionPipeline, LTXPipeline
from diffusers.models.transformers.transformer_ltx import LTXVideoTransformerBlock
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition
from PIL import Image

from hetcache_backends.diffusers.cases import (
    ltx_arguments,
    sample_text,
    sample_video,
    small_ltx,
    small_wan_vace,
)
from hetcache_backends.diffusers.ltx_video import LtxVideo

BACKBONE = LtxVideo()
STEPS = 6
TOKENS, ROWS, COLUMNS = 36, 3, 4
F, P, R = Mode.FULL, Mode.PARTIAL, Mode.REUSE


def run(pipeline: Any, *, steps: int = STEPS, guided: bool = True, **changes: Any) -> torch.Tensor:
    arguments = {**ltx_arguments(guided=guided), **changes}
    latents: torch.Tensor = pipeline(num_inference_steps=steps, **arguments).frames
    return latents


def cached(pipeline: Any, policy: Any, **changes: Any) -> tuple[torch.Tensor, Session]:
    with accelerate(pipeline, policy, backbone=BACKBONE) as session:
        return run(pipeline, **changes), session


def watched(pipeline: Any, policy: Any = FULL_STEPS, **changes: Any) -> WatchedEngine:
    engine = WatchedEngine(policy=policy)
    with BACKBONE.attach(pipeline, engine):
        run(pipeline, **changes)
    return engine


def unmasked(**changes: Any) -> dict[str, Any]:
    """Arguments of a run without source video and mask."""
    arguments = {**ltx_arguments(), "num_frames": 17, "height": 96, "width": 128, **changes}
    return {k: v for k, v in arguments.items() if k not in {"source_video", "edit_mask"}}


def partial(**changes: Any) -> PartialSettings:
    return PartialSettings(**{"context_ratio": 0.2, "pad_to": 1, **changes})


def modes(trace: Trace) -> str:
    return "".join(record.mode.value[0] for record in trace.records)


def edited_tokens() -> torch.Tensor:
    """(T, h, w) tokens that the sample's mask touches, by looking at every token's pixels."""
    _, mask = sample_video(17, 96, 128)
    frames = [slice(0, 1), slice(1, 9), slice(9, 17)]
    tokens = torch.zeros(3, ROWS, COLUMNS, dtype=torch.bool)
    for t, row, column in np.ndindex(3, ROWS, COLUMNS):
        box = mask[frames[t], 32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
        tokens[t, row, column] = box.any()
    return tokens


def source_latents(pipeline: Any) -> torch.Tensor:
    video, _ = sample_video(17, 96, 128)
    frames = pipeline.video_processor.preprocess_video(video, 96, 128)
    with torch.no_grad():
        latents = pipeline.vae.encode(frames).latent_dist.mode()
    normalized: torch.Tensor = pipeline._normalize_latents(
        latents, pipeline.vae.latents_mean, pipeline.vae.latents_std
    )
    return normalized


@pytest.fixture
def pipe() -> Any:
    pipeline = small_ltx(0)
    run(pipeline, steps=1)  # the library makes some of its attributes on first use
    return pipeline


# The masked pipeline itself


def test_tokens_outside_the_mask_stay_the_source_s(pipe: Any) -> None:
    latents, source = run(pipe), source_latents(pipe)
    unchanged = (latents == source).all(dim=1)[0]  # (T, h, w)
    assert torch.equal(unchanged, ~edited_tokens())
    assert 0 < int(edited_tokens().sum()) < TOKENS


def test_kept_tokens_have_timestep_zero(pipe: Any) -> None:
    seen: list[torch.Tensor] = []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["timestep"]), with_kwargs=True
    )
    run(pipe, steps=2)
    handle.remove()
    assert seen[0].shape == (2, TOKENS)
    assert torch.equal(seen[0] == 0, (~edited_tokens()).flatten().expand(2, -1))
    assert seen[1][0].unique().numel() == 2


def test_without_a_mask_it_is_the_library_s_own_pipeline(pipe: Any) -> None:
    plain = LTXConditionPipeline(**pipe.components)
    plain.set_progress_bar_config(disable=True)
    expected = plain(num_inference_steps=2, **unmasked()).frames
    assert torch.equal(pipe(num_inference_steps=2, **unmasked()).frames, expected)


def test_a_condition_at_a_later_frame_is_put_before_the_video(pipe: Any) -> None:
    image = Image.new("RGB", (128, 96), (20, 200, 20))
    condition = LTXVideoCondition(image=image, frame_index=8)
    engine = watched(pipe, scripted(F, P, partial=partial()), conditions=condition)
    grid = engine.infos[0].grid
    assert (grid.prefix, grid.frames, grid.height, grid.width) == (12, 3, ROWS, COLUMNS)
    assert engine.trace.tokens_by_role["pinned"] == 12
    assert modes(engine.trace) == "fp" * 3
    bare = run(pipe, conditions=condition)
    assert torch.equal(cached(pipe, FULL_STEPS, conditions=condition)[0], bare)
    assert torch.equal((bare == source_latents(pipe)).all(dim=1)[0], ~edited_tokens())


def test_a_condition_at_the_first_frame_goes_before_the_source(pipe: Any) -> None:
    image = Image.new("RGB", (128, 96), (20, 200, 20))
    latents = run(pipe, conditions=[LTXVideoCondition(image=image, frame_index=0)])
    source, edited = source_latents(pipe), edited_tokens()
    unchanged = (latents == source).all(dim=1)[0]
    assert not unchanged[0].any()
    assert torch.equal(unchanged[1:], ~edited[1:])
    others = run(pipe, conditions=[LTXVideoCondition(image=image)], prompt_embeds=sample_text(5)[0])
    assert torch.equal(latents[:, :, 0], others[:, :, 0])


def test_less_denoising_starts_nearer_to_the_source(pipe: Any) -> None:
    source = source_latents(pipe)
    distance = [
        float((run(pipe, steps=10, denoise_strength=share) - source).abs().mean())
        for share in (1.0, 0.2)
    ]
    assert 0 < distance[1] < 0.7 * distance[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edit_mask": None}, "go together"),
        ({"source_video": None}, "go together"),
        ({"edit_mask": np.zeros((9, 96, 128), bool)}, "9 frames but source_video has 17"),
        ({"height": 64}, "mask is"),
    ],
)
def test_source_and_mask_must_fit(pipe: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, ConfigError), match=message):
        run(pipe, **changes)
    assert pipe.edit_mask is None


# What a session computes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("guided", [True, False])
def test_full_steps_are_the_bare_pipeline(pipe: Any, dtype: torch.dtype, guided: bool) -> None:
    pipe.transformer.to(dtype)
    text, negative = (t.to(dtype) for t in sample_text(0))
    texts = {"prompt_embeds": text, "negative_prompt_embeds": negative}
    if dtype is torch.bfloat16:
        pipe.vae.to(dtype)
    bare = run(pipe, guided=guided, **texts)
    out, session = cached(pipe, FULL_STEPS, guided=guided, **texts)
    assert torch.equal(out, bare)
    assert [r.branch for r in session.trace.records] == [
        "cond+uncond" if guided else "cond"
    ] * STEPS


@pytest.mark.parametrize("adapted", [False, True])
def test_full_steps_that_look_into_every_block_are_the_bare_pipeline(
    pipe: Any, adapted: bool
) -> None:
    plain, kwargs = run(pipe), {}
    if adapted:
        peft = pytest.importorskip("peft")
        layers = ["to_q", "to_k", "to_v", "timestep_embedder.linear_1"]
        lora = peft.LoraConfig(r=2, target_modules=layers, init_lora_weights=False)
        torch.manual_seed(0)
        pipe.transformer.add_adapter(lora)
        kwargs = {"attention_kwargs": {"scale": 0.5}}
    bare = run(pipe, **kwargs)
    assert torch.equal(bare, plain) != adapted
    blocks = CachePolicy(name="looking", blocks=BlockScript(reuses=False))
    assert torch.equal(cached(pipe, blocks, **kwargs)[0], bare)
    assert torch.equal(cached(pipe, scripted(F, partial=partial()), **kwargs)[0], bare)
    assert torch.isfinite(cached(pipe, "teacache", **kwargs)[0]).all()


def test_the_text_to_video_pipeline_is_carried(pipe: Any) -> None:
    """It calls the model with sizes instead of coordinates, and has no mask."""
    plain = LTXPipeline(**pipe.components)
    plain.set_progress_bar_config(disable=True)
    assert BACKBONE.accepts(plain)

    def sample() -> torch.Tensor:
        latents: torch.Tensor = plain(num_inference_steps=3, **unmasked()).frames
        return latents

    bare = sample()
    with accelerate(plain, scripted(F, F, R), backbone=BACKBONE) as session:
        assert not torch.equal(sample(), bare)
    assert modes(session.trace) == "ffr"
    with accelerate(plain, FULL_STEPS, backbone=BACKBONE):
        assert torch.equal(sample(), bare)
    session = accelerate(plain, scripted(F, P, partial=partial()), backbone=BACKBONE)
    with pytest.raises(ConfigError, match="mask"), session:
        sample()


@pytest.mark.parametrize("kv_mode", list(KVMode))
def test_partial_steps_run_the_active_tokens_and_keep_the_others(
    pipe: Any, kv_mode: KVMode
) -> None:
    out, session = cached(pipe, scripted(F, P, R, partial=partial(kv_mode=kv_mode)))
    assert modes(session.trace) == "fpr" * 2
    edited = int(edited_tokens().sum())
    parts = [r for r in session.trace.records if r.mode is P]
    assert {r.active_by_role["generative"] for r in parts} == {edited}
    assert {r.active for r in parts} == {edited + round(0.2 * (TOKENS - edited))}
    assert torch.equal((out == source_latents(pipe)).all(dim=1)[0], ~edited_tokens())


def test_reused_steps_run_no_block(pipe: Any) -> None:
    ran: list[Any] = []
    for block in pipe.transformer.transformer_blocks:
        block.register_forward_hook(lambda *_: ran.append(1))
    _, session = cached(pipe, scripted(F, R))
    assert modes(session.trace) == "fr" * 3
    assert len(ran) == 3 * len(pipe.transformer.transformer_blocks)


def test_left_out_first_steps_do_not_count_as_saved(pipe: Any) -> None:
    bare = run(pipe, steps=10, denoise_strength=0.4)
    out, session = cached(pipe, FULL_STEPS, steps=10, denoise_strength=0.4)
    assert torch.equal(out, bare)
    assert (session.trace.steps, session.trace.requested_steps) == (4, 4)


def test_the_pipeline_may_take_fewer_steps(pipe: Any) -> None:
    out, session = cached(pipe, CachePolicy(name="half", sampler_share=0.5), steps=8)
    assert (session.trace.steps, session.trace.requested_steps) == (4, 8)
    torch.testing.assert_close(out, run(pipe, steps=4), rtol=1e-4, atol=1e-4)


# Branches in one batch


class Reading(StepPolicy, StepDecider):
    """Runs every step in full and keeps the signals that it was shown."""

    def __init__(self) -> None:
        self.seen: list[list[torch.Tensor]] = []

    def begin(self, run: RunInfo) -> StepDecider:
        return self

    def decide(self, step: StepInfo, signals: Signals) -> Decision:
        self.seen.append([signals.modulated_input(), signals.latent(), signals.probe(1)])
        return Decision(F, "reading")


def test_merged_branches_decide_as_the_conditional_one_alone(pipe: Any) -> None:
    """The conditional rows come second in the batch; a run without guidance has no others."""
    seen = []
    for guided in (True, False):
        reading = Reading()
        cached(pipe, CachePolicy(name="reading", step=reading), guided=guided, steps=1)
        seen.append(reading.seen[0])
    for merged, alone in zip(*seen, strict=True):
        assert merged.shape == alone.shape
        torch.testing.assert_close(merged, alone, rtol=1e-5, atol=1e-5)


def test_branches_keep_their_rows(pipe: Any) -> None:
    engine = watched(pipe, steps=1)
    assert engine.seen[0].call.branches == (BranchRows("cond", 1, 2), BranchRows("uncond", 0, 1))
    assert engine.infos[0].branches == ("cond", "uncond")


def test_several_videos_a_prompt_share_a_branch(pipe: Any) -> None:
    engine = watched(pipe, steps=1, prompt_embeds=sample_text(0)[0].repeat(2, 1, 1),
                     negative_prompt_embeds=sample_text(0)[1].repeat(2, 1, 1),
                     prompt_attention_mask=torch.ones(2, 7),
                     negative_prompt_attention_mask=torch.ones(2, 7))  # fmt: skip
    assert engine.seen[0].call.branches == (BranchRows("cond", 2, 4), BranchRows("uncond", 0, 2))


def passing_over(self: Any, hidden_states: torch.Tensor, **arguments: Any) -> torch.Tensor:
    """A block that leaves the rows from the third on as they are (spatio-temporal guidance)."""
    out: torch.Tensor = LTXVideoTransformerBlock.forward(self, hidden_states, **arguments)
    return torch.cat([out[:2], hidden_states[2:]])


class GuidedByPerturbation(LTXPipeline):
    """Text-to-video with three branches in one batch, as diffusers' community pipeline does it."""

    do_spatio_temporal_guidance = True

    @torch.no_grad()
    def sample(self, steps: int) -> torch.Tensor:
        text, negative = sample_text(0)
        self._guidance_scale = 3.0
        block = self.transformer.transformer_blocks[1]
        block.forward = types.MethodType(passing_over, block)
        self.scheduler.set_timesteps(steps)
        self._num_timesteps = steps
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(1, TOKENS, 128, generator=generator)
        for timestep in self.scheduler.timesteps:
            self._current_timestep = timestep
            noise = self.transformer(
                hidden_states=torch.cat([latents] * 3),
                encoder_hidden_states=torch.cat([negative, text, text]),
                timestep=timestep.expand(3),
                encoder_attention_mask=torch.ones(3, text.shape[1]),
                num_frames=3,
                height=ROWS,
                width=COLUMNS,
                return_dict=False,
            )[0]
            uncond, cond, perturbed = noise.chunk(3)
            noise = uncond + 3 * (cond - uncond) + (cond - perturbed)
            latents = self.scheduler.step(noise, timestep, latents, return_dict=False)[0]
        del block.forward
        return latents


def test_three_branches_with_perturbed_rows_are_carried(pipe: Any) -> None:
    stg = GuidedByPerturbation(**pipe.components)
    bare = stg.sample(3)
    looking = CachePolicy(name="looking", blocks=BlockScript(reuses=False))
    for policy in (FULL_STEPS, looking):
        with accelerate(stg, policy, backbone=BACKBONE) as session:
            assert torch.equal(stg.sample(3), bare)
        assert session.trace.records[0].branch == "cond+uncond+perturbed"
    engine = WatchedEngine(policy=scripted(F, R, F))
    with BACKBONE.attach(stg, engine):
        stg.sample(3)
    rows = engine.seen[0].call.branches
    assert rows[0] == BranchRows("cond", 1, 2)
    assert rows[2] == BranchRows("perturbed", 2, 3)
    trunk, out = engine.seen[0].trunk, engine.seen[0].trunk_output
    assert trunk is not None
    assert out is not None
    assert not torch.equal(out[1], out[2])


def test_a_batch_that_does_not_hold_the_branches_is_refused(pipe: Any) -> None:
    stg = GuidedByPerturbation(**pipe.components)
    session = accelerate(stg, FULL_STEPS, backbone=BACKBONE)
    with pytest.raises(UnsupportedBackboneError, match="in equal parts"), session:
        stg(num_inference_steps=1, **unmasked())


# Signals, the mask, the grid


def test_signals_are_the_model_s_own_embedding(pipe: Any) -> None:
    engine = watched(pipe, steps=2)
    trunk, info = engine.seen[0].trunk, engine.infos[0]
    assert trunk is not None
    modulations = trunk.timestep_modulations(info.timesteps)
    edited = edited_tokens().flatten().nonzero()[0, 0]
    own = trunk.blocks.modulation[1, edited]  # type: ignore[attr-defined]  # of this adapter
    torch.testing.assert_close(modulations[0], own, rtol=1e-5, atol=1e-5)
    block = pipe.transformer.transformer_blocks[0]
    inputs = trunk.modulated_input(modulations[0])
    shift, scale = (block.scale_shift_table + modulations[0].view(6, -1))[:2]
    expected = block.norm1(trunk.x) * (1 + scale) + shift
    torch.testing.assert_close(inputs, expected, rtol=1e-5, atol=1e-5)


def test_the_mask_reaches_the_engine_with_all_of_its_frames(pipe: Any) -> None:
    mask = np.zeros((17, 96, 128), bool)
    mask[5, 40, 70] = True
    engine = watched(pipe, steps=1, edit_mask=mask)
    info = engine.infos[0]
    assert info.mask is not None
    assert np.array_equal(info.mask.numpy(), mask)
    tokens = mask_to_tokens(info.mask, info.grid)
    assert tokens.nonzero().tolist() == [[1, 1, 2]]
    assert (info.grid.pixel_height, info.grid.pixel_width, info.grid.frame_stride) == (32, 32, 8)
    assert pipe.edit_mask is None
    assert "edit_mask" not in vars(pipe)


def test_timesteps_are_those_of_the_scheduler(pipe: Any) -> None:
    engine = watched(pipe, steps=4)
    info, scheduler = engine.infos[0], pipe.scheduler
    assert info.timesteps == tuple(scheduler.timesteps.tolist())
    assert info.sigmas == tuple(scheduler.sigmas[:4].tolist())


# What a session leaves behind and what it refuses


@pytest.mark.parametrize("fails", [False, True])
def test_leaving_restores_the_pipeline_exactly(pipe: Any, fails: bool) -> None:
    objects = (pipe, pipe.transformer, *pipe.transformer.transformer_blocks)
    sampling = {"_num_timesteps", "_current_timestep"}
    before = [{k: v for k, v in vars(o).items() if k not in sampling} for o in objects]
    bare, scheduler = run(pipe), pipe.scheduler

    def callback(*_: Any) -> dict[str, Any]:
        if fails:
            raise RuntimeError("in the middle")
        return {}

    try:
        with accelerate(pipe, FULL_STEPS, backbone=BACKBONE):
            assert pipe.scheduler is not scheduler
            run(pipe, callback_on_step_end=callback)
    except RuntimeError:
        assert fails
    after = [{k: v for k, v in vars(o).items() if k not in sampling} for o in objects]
    for old, new in zip(before, after, strict=True):
        assert old.keys() == new.keys()
        assert all(old[k] is new[k] or old[k] == new[k] for k in old)
    assert torch.equal(run(pipe), bare)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (lambda p: p.transformer.enable_cache(FirstBlockCacheConfig()), "enable_cache"),
        (lambda p: p.transformer.enable_gradient_checkpointing(), "gradient checkpointing"),
    ],
)
def test_options_that_a_session_cannot_carry_are_named(
    pipe: Any, option: Callable[[Any], Any], message: str
) -> None:
    option(pipe)
    session = accelerate(pipe, FULL_STEPS, backbone=BACKBONE)
    with pytest.raises(UnsupportedBackboneError, match=message), session:
        pytest.fail("entered")


def test_an_option_turned_on_during_a_session_is_refused_at_the_next_run(pipe: Any) -> None:
    with accelerate(pipe, FULL_STEPS, backbone=BACKBONE):
        run(pipe, steps=1)
        pipe.transformer.enable_cache(FirstBlockCacheConfig())
        with pytest.raises(UnsupportedBackboneError, match="enable_cache"):
            run(pipe, steps=1)


def test_only_its_own_pipelines_are_accepted(pipe: Any) -> None:
    windowed = type("LTXI2VLongMultiPromptPipeline", (type(pipe),), {})(**pipe.components)
    assert BACKBONE.accepts(pipe)
    assert not BACKBONE.accepts(windowed)
    assert not BACKBONE.accepts(small_wan_vace(0))
    assert not BACKBONE.accepts(None)
    with pytest.raises(UnsupportedBackboneError, match="LTXI2VLongMultiPromptPipeline"):
        BACKBONE.attach(windowed, WatchedEngine(policy=FULL_STEPS)).__enter__()


# Loading and editing


def request(**changes: Any) -> EditRequest:
    video, mask = sample_video(9, 64, 64)
    values = {
        "video": np.stack([np.asarray(frame) for frame in video]),
        "mask": mask.numpy(),
        "steps": 2,
        **changes,
    }
    return EditRequest(**values)


def embeddings() -> dict[str, Any]:
    text, negative = sample_text(0)
    words = torch.ones(text.shape[:2])
    return {
        "prompt_embeds": text,
        "prompt_attention_mask": words,
        "negative_prompt_embeds": negative,
        "negative_prompt_attention_mask": words,
    }


def test_a_saved_folder_is_loaded_and_edits(tmp_path: Path) -> None:
    saved = small_ltx(0)
    LTXConditionPipeline(**saved.components).save_pretrained(tmp_path)
    loaded = BACKBONE.load(LoadRequest(model=str(tmp_path)))
    assert type(loaded) is type(saved)
    assert BACKBONE.describe(loaded) == BACKBONE.describe(saved)
    frames = BACKBONE.edit(loaded, request(options=embeddings()))
    assert (frames.shape, frames.dtype) == ((9, 64, 64, 3), np.uint8)
    assert np.array_equal(frames, BACKBONE.edit(saved, request(options=embeddings())))
    assert not np.array_equal(frames, BACKBONE.edit(saved, request(seed=1, options=embeddings())))


def test_prompts_go_through_the_library_s_text_encoder(pipe: Any) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = {"<pad>": 0, "<unk>": 1, "a": 2, "red": 3, "ball": 4}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    sizes = {"d_model": 24, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    torch.manual_seed(0)
    pipe.register_modules(
        text_encoder=transformers.T5EncoderModel(
            transformers.T5Config(vocab_size=8, **sizes)
        ).eval(),
        tokenizer=transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>"
        ),
    )
    frames = [BACKBONE.edit(pipe, request(prompt=p)) for p in ("a red ball", "a red ball", "ball")]
    assert np.array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[0], frames[2])


def test_what_cannot_be_edited_is_one_clear_error(pipe: Any) -> None:
    with pytest.raises(UnsupportedBackboneError, match="no text encoder"):
        BACKBONE.edit(pipe, request(prompt="a red ball"))
    plain = LTXConditionPipeline(**pipe.components)
    with pytest.raises(UnsupportedBackboneError, match="MaskedLTXPipeline"):
        BACKBONE.edit(plain, request(options=embeddings()))


def test_what_cannot_be_loaded_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    small_wan_vace(0).save_pretrained(tmp_path)
    for model, message in (
        (None, "Lightricks/LTX-Video"),
        (str(tmp_path), "--backbone wan-vace-diffusers"),
        ("nobody/no-such-model", "could not be loaded"),
    ):
        with pytest.raises(UnsupportedBackboneError, match=message):
            BACKBONE.load(LoadRequest(model=model))
