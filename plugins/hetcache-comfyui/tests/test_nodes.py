"""The nodes on a model: stand-ins, and ComfyUI's own where a checkout is named."""

from __future__ import annotations

import copy
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from torch import Tensor

from hetcache_comfyui import headless, stand_ins
from hetcache_comfyui.accelerated import found_on
from hetcache_comfyui.looking import areas, psnr, ssim_map
from hetcache_comfyui.nodes import (
    NODE_CLASS_MAPPINGS,
    NODE_DISPLAY_NAME_MAPPINGS,
    HetCache,
    HetCacheCompare,
    HetCacheTrace,
    policies,
)
from hetcache_core import ConfigError

DEFAULTS = {
    "policy": "every-nth",
    "preset": "none",
    "speedup": 0.0,
    "quality": 0.0,
    "first_steps": 0,
}


class StandIns:
    """Makes and samples stand-ins."""

    patcher = staticmethod(stand_ins.small_patcher)
    guider = staticmethod(stand_ins.small_guider)

    @staticmethod
    def run(guider: Any, steps: int = 6, kind: str = "wan") -> Tensor:
        return stand_ins.small_run(guider, steps, "merged", 0)


class Real:
    """Makes and samples ComfyUI's own."""

    patcher = staticmethod(headless.patcher)
    guider = staticmethod(headless.guider)

    @staticmethod
    def run(guider: Any, steps: int = 6, kind: str = "wan") -> Tensor:
        return headless.run(guider, steps, "merged", 0, kind=kind)


WORLDS: list[Any] = [StandIns]
if headless.checkout() is not None:
    headless.start(Path(mkdtemp()))
    WORLDS.append(Real)
everywhere = pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.__name__)


def put(model: Any, **settings: Any) -> tuple[Any, str]:
    return HetCache().apply(model=model, **{**DEFAULTS, **settings})


@everywhere
def test_a_model_behind_the_node_samples_with_the_policy_and_the_others_as_before(
    world: Any,
) -> None:
    plain = world.patcher("wan", 0)
    bare = world.run(world.guider("wan", 0, plain))
    computed, status = put(plain, policy="none", preset="balanced")  # it has no presets
    assert status == "none on Wan2.1 and 2.2, VACE among them, sampled by ComfyUI"
    assert torch.equal(world.run(world.guider("wan", 0, computed)), bare)
    cached, _ = put(plain)
    first = world.run(world.guider("wan", 0, cached))
    assert not torch.equal(first, bare)
    assert found_on(cached).trace.letters() == "FsFsFF"
    assert torch.equal(world.run(world.guider("wan", 0, plain)), bare)
    later = cached.clone()  # a LoRA behind the node
    assert torch.equal(world.run(world.guider("wan", 0, later)), first)
    again, _ = put(cached, policy="none")  # a second node takes the place of the first
    assert torch.equal(world.run(world.guider("wan", 0, again)), bare)
    assert torch.equal(world.run(world.guider("wan", 0, cached)), first)


@everywhere
def test_two_models_sampled_in_turn_do_not_see_each_other(world: Any) -> None:
    """One sampler step of the one, then a whole run of the other, and on."""
    models = [put(world.patcher("wan", seed))[0] for seed in (0, 1)]
    alone = [world.run(world.guider("wan", 0, model)) for model in models]
    inner = world.guider("wan", 0, models[1])
    between: list[Tensor] = []
    outer = world.guider("wan", 0, models[0])
    module = outer.model_patcher.model.diffusion_model
    hook = module.register_forward_hook(
        lambda *_: between.append(world.run(inner)) if len(between) < 2 else None
    )
    try:
        found = world.run(outer)
    finally:
        hook.remove()
    assert torch.equal(found, alone[0])
    assert len(between) == 2
    assert all(torch.equal(each, alone[1]) for each in between)


@everywhere
def test_an_interrupted_sampling_leaves_nothing(world: Any) -> None:
    model, _ = put(world.patcher("wan", 0))
    expected = world.run(world.guider("wan", 0, model))
    guider = world.guider("wan", 0, model)
    options, calls = guider.model_options, []

    def interrupt(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    module = model.model.diffusion_model
    hook = module.blocks[0].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        world.run(guider)
    hook.remove()
    assert guider.model_options is options
    assert "edit_mask" not in vars(guider)
    assert found_on(model).trace is None
    assert torch.equal(world.run(world.guider("wan", 0, model)), expected)


@everywhere
def test_a_mask_input_comes_before_the_conditionings(world: Any) -> None:
    plain = world.patcher("wan", 0)
    mask = torch.zeros(1, 48, 64)
    mask[:, 16:32, :16] = 1
    told = []
    for given in (None, mask):
        model, _ = put(plain, policy="hetcache", mask=given)
        world.run(world.guider("wan", 0, model), 12)
        told.append(found_on(model).trace.tokens_by_role)
    assert [roles["generative"] for roles in told] == [6, 3]  # of 3 x 4 a frame


@everywhere
def test_what_a_model_cannot_carry_is_said_and_it_is_sampled_as_without(world: Any) -> None:
    plain = world.patcher("any", 0)
    bare = world.run(world.guider("any", 0, plain), kind="any")
    for policy, words in {"pab": "lacks", "fbcache": "leave none to reuse"}.items():
        same, status = put(plain, policy=policy)
        assert same is plain
        assert status.startswith("passed through as it is")
        assert words in status
    model, _ = put(plain, policy="teacache", preset="balanced")  # that shows with the first call
    assert torch.equal(world.run(world.guider("any", 0, model), kind="any"), bare)
    latent = {"samples": bare}
    shown = HetCacheTrace().show(model=model, latent=latent)["result"]
    assert shown[0] is latent
    assert "which is not known" in shown[1]
    model, _ = put(plain, policy="every-nth")
    assert not torch.equal(world.run(world.guider("any", 0, model), kind="any"), bare)
    assert found_on(model).trace.letters() == "FsFsFF"


def test_a_wrong_setting_is_an_error() -> None:
    with pytest.raises(ConfigError, match="speed"):
        put(stand_ins.small_patcher("wan", 0), speedup=0.5)
    with pytest.raises(ConfigError, match="quality"):
        put(stand_ins.small_patcher("wan", 0), policy="teacache", quality=30.0)


def test_first_steps_and_speedup_reach_the_run() -> None:
    model, _ = put(stand_ins.small_patcher("wan", 0), policy="auto", speedup=2.0, first_steps=4)
    stand_ins.small_run(stand_ins.small_guider("wan", 0, model), 20, "merged", 0)
    trace = found_on(model).trace
    assert trace.letters().startswith("FFFF")
    assert trace.totals().flops_speedup == pytest.approx(2, rel=0.15)


def test_the_trace_is_told_as_text_and_picture() -> None:
    model, _ = put(stand_ins.small_patcher("wan", 0))
    latent = {"samples": stand_ins.small_run(stand_ins.small_guider("wan", 0, model), 6, "none", 0)}
    made = HetCacheTrace().show(model=model, latent=latent)
    passed, text, picture = made["result"]
    assert passed is latent
    assert made["ui"]["text"] == [text]
    assert sum(line.startswith("step ") for line in text.splitlines()) == 6
    heights = (picture[0, :, 4 + 12 :: 28].sum(-1) > 0.4).sum(0).tolist()
    assert heights[0] == heights[2] == 96  # computed
    assert heights[1] == heights[3] < 30  # reused
    bare = stand_ins.small_patcher("wan", 0)
    assert "no HetCache" in HetCacheTrace().show(model=bare, latent=latent)["result"][1]
    unchanged = HetCacheTrace.IS_CHANGED(model=model, latent=latent)
    assert unchanged != unchanged  # noqa: PLR0124 - ComfyUI compares so


def test_two_videos_are_compared_by_region() -> None:
    reference = torch.rand(5, 64, 96, 3, generator=torch.Generator().manual_seed(0)) * 0.9
    mask = torch.zeros(5, 64, 96)
    mask[:, 16:32, 16:32] = 1
    result = reference.clone()
    result[:, 16:32, 16:32] += 0.1
    made = HetCacheCompare().compare(
        result=result, reference=reference, mask=mask, token_size=16, frame_stride=4
    )
    text, picture = made["result"]
    lines = {line.split()[0]: line.split()[1:] for line in text.splitlines()[1:]}
    assert lines["mask"][0] == "20.0"
    assert lines["background"][0] == lines["margin"][0] == "identical"
    assert picture.shape == (5, 64, 96, 3)
    changed = (picture != result).any(-1)[0].view(4, 16, 6, 16).any(1).any(-1)
    assert int(changed.sum()) == 4 * 4  # 1 token of the edit, and 2 around it within the picture
    with pytest.raises(ConfigError, match="same size"):
        HetCacheCompare().compare(
            result=result[:1], reference=reference, token_size=16, frame_stride=4
        )
    with pytest.raises(ConfigError, match="mask"):
        HetCacheCompare().compare(
            result=result, reference=reference, mask=mask[:2], token_size=16, frame_stride=4
        )


def test_the_measures_are_those_of_torchmetrics() -> None:
    image = pytest.importorskip("torchmetrics.functional.image")
    draw = torch.Generator().manual_seed(0)
    one = torch.rand(3, 40, 48, 3, generator=draw)
    other = (one + 0.1 * torch.randn(one.shape, generator=draw)).clamp(0, 1)
    pictures = [video.movedim(-1, 1) for video in (one, other)]
    whole = areas(torch.ones(3, 40, 48, dtype=torch.bool), 16)["whole"]
    expected = float(image.peak_signal_noise_ratio(*pictures, data_range=1.0))
    assert psnr(one, other, whole) == pytest.approx(expected, abs=1e-3)
    inner = ssim_map(one, other)[:, 5:-5, 5:-5].mean()
    expected = float(image.structural_similarity_index_measure(*pictures, data_range=1.0))
    assert float(inner) == pytest.approx(expected, abs=2e-3)


def test_the_nodes_describe_themselves() -> None:
    assert NODE_CLASS_MAPPINGS.keys() == NODE_DISPLAY_NAME_MAPPINGS.keys()
    for node in NODE_CLASS_MAPPINGS.values():
        given = node.INPUT_TYPES()
        fields = {**given["required"], **given.get("optional", {})}
        assert all(options[1]["tooltip"] for options in fields.values())
        assert callable(getattr(node, node.FUNCTION))
        assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) == len(node.OUTPUT_TOOLTIPS)
    assert policies()[0] == "auto"
    assert {"hetcache", "teacache", "none"} <= set(policies())
    assert copy.deepcopy(HetCache.INPUT_TYPES()) == HetCache.INPUT_TYPES()
