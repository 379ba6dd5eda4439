"""CogVideoX through the contract kit, on a small model of diffusers' own classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attrs import frozen
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("diffusers")

import diffusers

from hetcache_cogvideox.backbone import CogVideoX, _Calls
from hetcache_cogvideox.case import (
    FRAMES,
    HEIGHT,
    WIDTH,
    WORDS,
    arguments,
    case,
    run,
    small_pipeline,
)
from hetcache_cogvideox.pipeline import MaskedCogVideoX
from hetcache_core import (
    BlockTrunk,
    CachePolicy,
    ConfigError,
    Decision,
    EditRequest,
    LoadRequest,
    Mode,
    PolicyRecipe,
    RunInfo,
    Signals,
    Stack,
    StepDecider,
    StepInfo,
    StepPolicy,
    SubLayer,
    UnsupportedBackboneError,
    accelerate,
    discover,
)
from hetcache_core.testing import (
    FULL_STEPS,
    BoundCheck,
    parametrize_with_checks,
    scripted,
)


def like_2b(seed: int) -> Any:
    """Make one without rotary embedding, as the 2B model is."""
    return small_pipeline(seed, rotary=False)


def like_5b(seed: int) -> Any:
    """Make one with the scheduler of the 5B model, which is called with other arguments."""
    pipeline = small_pipeline(seed)
    pipeline.scheduler = diffusers.CogVideoXDPMScheduler.from_config(pipeline.scheduler.config)
    return pipeline


CASE = case(CogVideoX(), "5b", like_5b)
INSTALLED = {name: discover().policy(name) for name in discover().names("policy")}
POLICIES = {name: kind for name, kind in INSTALLED.items() if not kind.needs_settings()}


def maker(kind: type[PolicyRecipe]) -> Any:
    return lambda: kind(**getattr(kind, "anywhere", {}))


def missing(kind: type[PolicyRecipe]) -> tuple[str, ...]:
    """What a policy needs and this backbone does not carry."""
    model = CASE.backbone.describe(CASE.make_pipeline(0))
    needs = maker(kind)().compose(model).needs()
    return CogVideoX.features.missing(needs)


REFUSED = {name: missing(kind) for name, kind in POLICIES.items() if missing(kind)}


@parametrize_with_checks(backbones=[CASE, case(CogVideoX(), "2b", like_2b)])
def test_contract_of_the_backbone(check: BoundCheck) -> None:
    check()


@parametrize_with_checks(
    policies={n: maker(kind) for n, kind in POLICIES.items() if n not in REFUSED}, case=CASE
)
def test_contract_of_every_policy_that_it_carries(check: BoundCheck) -> None:
    check()


@pytest.mark.parametrize("policy", REFUSED)
def test_a_policy_that_needs_more_is_refused_with_what_is_missing(policy: str) -> None:
    pipeline = CASE.make_pipeline(0)
    with pytest.raises(UnsupportedBackboneError, match=f"'{policy}'.*lacks: sub_layers"):
        accelerate(pipeline, maker(POLICIES[policy])(), backbone=CogVideoX())


def test_what_it_carries_and_what_it_does_not_are_both_there() -> None:
    assert {"hetcache", "teacache", "fbcache", "taylorseer"} <= POLICIES.keys() - REFUSED.keys()
    assert {"pab", "toca"} <= REFUSED.keys()


def test_tokens_outside_of_the_mask_end_as_the_source() -> None:
    """Also from a later start, and with steps that compute the tokens of the edit only."""
    given = arguments()
    pipeline = CASE.make_pipeline(0)
    frames = pipeline.video_processor.preprocess_video(given["video"], HEIGHT, WIDTH)
    with torch.no_grad():
        source = pipeline.vae.encode(frames.float()).latent_dist.mode().movedim(2, 1)
    source = source * pipeline.vae_scaling_factor_image  # (1, T, C, h, w)
    for strength in (1.0, 0.5):
        settings = {"margin": 0, "pad_to": 1, "threshold": 0.7}
        with accelerate(pipeline, "hetcache", settings=settings, backbone=CogVideoX()) as session:
            latents = pipeline(num_inference_steps=12, **{**given, "strength": strength}).frames
        assert session.trace.steps == round(12 * strength)
        assert session.trace.totals().steps_partial > 0
        roles = session.trace.tokens_by_role
        assert roles["pinned"] == WORDS
        same = (latents == source).all(2)[0].unflatten(1, (-1, 2)).unflatten(3, (-1, 2))
        kept = same.all(2).all(3)  # (T, h, w)
        assert int((~kept).sum()) == roles["generative"]


def test_signals_are_what_the_first_block_computes() -> None:
    """Its own normalization, with hooks on it, against what policies are told."""
    pipeline = CASE.make_pipeline(0)
    norm = pipeline.transformer.transformer_blocks[0].norm1
    inside: list[Tensor] = []
    handle = norm.register_forward_hook(
        lambda _module, _given, out: inside.append(torch.cat([out[1], out[0]], dim=1))
    )
    told: list[Tensor] = []

    @frozen
    class Asking(StepPolicy, StepDecider):
        def begin(self, run: RunInfo) -> StepDecider:
            return self

        def decide(self, step: StepInfo, signals: Signals) -> Decision:
            told.append(signals.modulated_input())
            return Decision(Mode.FULL, "asking")

    with accelerate(pipeline, CachePolicy(name="asks", step=Asking()), backbone=CogVideoX()):
        run(pipeline, 2, "merged", 0)
    handle.remove()
    assert len(told) == len(inside) == 2
    for signal, computed in zip(told, inside, strict=True):
        torch.testing.assert_close(signal, computed[1:] if len(signal) == 1 else computed)


def test_a_run_without_a_mask_takes_policies_that_need_none() -> None:
    masked = CASE.make_pipeline(0)
    plain = diffusers.CogVideoXVideoToVideoPipeline(**masked.components)
    plain.set_progress_bar_config(disable=True)
    given = arguments()
    del given["edit_mask"]
    with accelerate(plain, "every-nth", backbone=CogVideoX()) as session:
        plain(num_inference_steps=6, **given)
    assert session.trace.totals().steps_reused > 0
    with (
        accelerate(plain, "hetcache", backbone=CogVideoX()),
        pytest.raises(ConfigError, match="needs the edit mask"),
    ):
        plain(num_inference_steps=6, **given)


def test_the_models_own_cache_and_the_other_generation_are_refused() -> None:
    pipeline = CASE.make_pipeline(0)
    pipeline.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1))
    with (
        pytest.raises(UnsupportedBackboneError, match="disable_cache"),
        accelerate(pipeline, FULL_STEPS, backbone=CogVideoX()),
    ):
        pass
    newer = small_pipeline(0)
    newer.transformer.register_to_config(patch_size_t=2)
    assert not CogVideoX().accepts(newer)


def test_a_saved_pipeline_is_loaded_and_edits(tmp_path: Path) -> None:
    CASE.make_pipeline(0).save_pretrained(tmp_path)
    backbone, given = CogVideoX(), arguments()
    pipeline = backbone.load(LoadRequest(model=str(tmp_path)))
    assert isinstance(pipeline, MaskedCogVideoX)
    request = EditRequest(
        video=(np.stack(given["video"]) * 255).astype(np.uint8),
        mask=given["edit_mask"].numpy(),
        steps=3,
        options={name: given[name] for name in ("prompt_embeds", "negative_prompt_embeds")},
    )
    with accelerate(pipeline, scripted(Mode.FULL, Mode.REUSE), backbone=backbone) as session:
        frames = backbone.edit(pipeline, request)
    assert (frames.shape, frames.dtype) == ((FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    assert session.trace.modes() == [Mode.FULL, Mode.REUSE, Mode.FULL]
    for model, message in ((None, "needs a checkpoint"), (str(tmp_path / "no"), "could not be")):
        with pytest.raises(UnsupportedBackboneError, match=message):
            backbone.load(LoadRequest(model=model))


def test_the_published_model_costs_what_torch_counts() -> None:
    """CogVideoX-2B at 49 x 480 x 720, one row; nothing is allocated on the meta device."""
    with torch.device("meta"):
        model = diffusers.CogVideoXTransformer3DModel()
    assert (model.config.num_layers, model.config.num_attention_heads) == (30, 30)
    given = {
        "hidden_states": torch.empty(1, 13, 16, 60, 90, device="meta"),
        "encoder_hidden_states": torch.empty(1, 226, 4096, device="meta"),
        "timestep": torch.empty(1, device="meta"),
    }
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**given)
    trunks: list[BlockTrunk] = []

    def keep(trunk: BlockTrunk) -> Tensor:
        trunks.append(trunk)
        return trunk.x

    stand_in, _ = _Calls(None).stand_in(model, given, keep)
    with torch.no_grad():
        type(model).forward(stand_in, **given)
    flops, tokens = trunks[0].flops, trunks[0].x.shape[1]
    parts = [flops.sub_layer(Stack.MAIN, part, rows=tokens, keys=tokens) for part in SubLayer]
    assert tokens == 226 + 13 * 30 * 45
    said = flops.outside() + 30 * sum(parts)
    assert said == pytest.approx(counter.get_total_flops(), rel=0.001)


def test_the_random_model_takes_an_edit_with_prompts() -> None:
    pytest.importorskip("transformers")
    backbone = CogVideoX()
    pipeline = backbone.random_models.pipeline(LoadRequest())
    assert "small random model" in (backbone.notice(pipeline) or "")
    video = np.random.default_rng(0).integers(0, 256, (FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    mask = np.zeros(video.shape[:3], np.bool_)
    mask[:, 16:32, 16:32] = True
    asked = EditRequest(video=video, mask=mask, prompt="a red circle", steps=2)
    frames = backbone.edit(pipeline, asked)
    assert frames.shape == video.shape
    assert frames.dtype == np.uint8
