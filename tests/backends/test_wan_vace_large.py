"""Wan2.1-VACE-14B and Wan2.2's two experts through the adapter, with DiffSynth's own classes.

The 14B model differs from the 1.3B one in its sizes and in its list of control blocks, every fifth main
block instead of every second; here it keeps its 40 blocks and the list at a small width. Wan2.2-VACE-Fun
is two models of those sizes, the second of which takes over below a noise level.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hetcache_core import Mode, UnsupportedBackboneError, accelerate, discover
from hetcache_core.testing import FULL_STEPS, scripted

pytest.importorskip("diffsynth")

from hetcache_backends.tiny_vace.config import TinyVaceConfig
from hetcache_backends.wan.case import SMALL, WanModels
from hetcache_backends.wan.wan_vace import WanVace

LARGE_CONTROL = (0, 5, 10, 15, 20, 25, 30, 35)
LARGE = TinyVaceConfig(
    dim=48, num_heads=4, num_layers=40, control_layers=LARGE_CONTROL, ffn_dim=130, freq_dim=32
)
"""Sizes of the 14B model but for the width, and the feed-forward's 2.7 times that."""

F, R = Mode.FULL, Mode.REUSE
LARGE_CASE = WanModels(WanVace(), LARGE).case()
SMALL_CASE = WanModels(WanVace(), SMALL).case()
REGISTRY = discover()
STEPS = 16


@pytest.fixture(scope="module")
def large() -> Any:
    return LARGE_CASE.make_pipeline(0)


@pytest.fixture
def experts() -> Any:
    pipeline, second = SMALL_CASE.make_pipeline(0), SMALL_CASE.make_pipeline(1)
    pipeline.dit2, pipeline.vace2 = second.dit, second.vace
    return pipeline


def test_hints_go_where_the_models_own_list_says(large: Any) -> None:
    """A session that computes everything is the library, bit for bit, so every hint lands right."""
    assert WanVace().describe(large).control_layers == LARGE_CONTROL
    plain = LARGE_CASE.run(large, 2, "separate", 0)
    with accelerate(large, FULL_STEPS, backbone=WanVace()) as session:
        assert torch.equal(LARGE_CASE.run(large, 2, "separate", 0), plain)
    ran = {(record.blocks_run, record.control_run) for record in session.trace.records}
    assert ran == {(40, len(LARGE_CONTROL))}


def test_no_block_of_it_runs_in_a_reused_step(large: Any) -> None:
    ran: Counter[str] = Counter()
    blocks = [("main", b) for b in LARGE_CASE.main_blocks(large)]
    blocks += [("control", b) for b in LARGE_CASE.control_blocks(large)]
    hooks = [
        block.register_forward_hook(lambda *_, name=name: ran.update([name]))
        for name, block in blocks
    ]
    with accelerate(large, scripted(F, R, R), backbone=WanVace()) as session:
        LARGE_CASE.run(large, 4, "none", 0)
    for hook in hooks:
        hook.remove()
    assert session.trace.modes() == [F, R, R, F]
    assert ran == {"main": 2 * 40, "control": 2 * len(LARGE_CONTROL)}


@pytest.mark.parametrize("policy", ["hetcache", "teacache", "pab", "dbcache"])
def test_policies_run_on_it(large: Any, policy: str) -> None:
    with accelerate(large, policy, backbone=WanVace()) as session:
        latents = LARGE_CASE.run(large, STEPS, "none", 0)
    assert bool(latents.isfinite().all())
    assert session.trace.complete
    assert session.trace.totals().flops < session.trace.totals().flops_full


def test_the_published_size_costs_what_torch_counts() -> None:
    """Wan2.1-VACE-14B at 33 x 480 x 832: the library's own call, on the meta device.

    The numbers are those of DiffSynth's ``configs/model_configs.py``, which gives them for
    Wan-AI/Wan2.1-VACE-14B.
    """
    from diffsynth.models.wan_video_dit import WanModel
    from diffsynth.models.wan_video_vace import VaceWanModel
    from diffsynth.pipelines.wan_video import model_fn_wan_video

    from hetcache_backends.wan.trunk import WanControl, wan_trunk
    from hetcache_core.engine.block_pass import full_flops

    frames, height, width = 9, 30, 52
    with torch.device("meta"):
        dit = WanModel(
            dim=5120, in_dim=16, ffn_dim=13824, out_dim=16, text_dim=4096, freq_dim=256, eps=1e-6,
            patch_size=(1, 2, 2), num_heads=40, num_layers=40, has_image_input=False,
        )  # fmt: skip
        vace = VaceWanModel(
            vace_layers=LARGE_CONTROL, vace_in_dim=96, patch_size=(1, 2, 2), has_image_input=False,
            dim=5120, num_heads=40, ffn_dim=13824, eps=1e-6,
        )  # fmt: skip
        control = torch.empty(1, 96, frames, height * 2, width * 2)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model_fn_wan_video(
                dit=dit,
                vace=vace,
                latents=torch.empty(1, 16, frames, height * 2, width * 2),
                timestep=torch.empty(1),
                context=torch.empty(1, 512, 4096),
                vace_context=control,
                vace_scale=1.0,
            )
        trunk = wan_trunk(
            dit=dit,
            inputs=torch.empty(1, frames * height * width, 5120),
            context=torch.empty(1, 512, 5120),
            modulation=torch.empty(1, 6, 5120),
            freqs=torch.empty(frames * height * width, 1, 64),
            control_branch=WanControl(model=vace, context=control, scale=1.0),
        )
    said, counted = full_flops(trunk) + trunk.flops.outside(), counter.get_total_flops()
    assert said == pytest.approx(counted, rel=0.001)
    assert counted / 1e12 == pytest.approx(612.96, abs=0.05)


@pytest.mark.parametrize(
    "name", [n for n in REGISTRY.names("policy") if not REGISTRY.policy(n).needs_settings()]
)
def test_every_policy_begins_anew_where_the_second_expert_takes_over(
    experts: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing stored and nothing decided for the first model reaches the second one."""
    kind = REGISTRY.policy(name)
    session = accelerate(experts, kind(**kind.anywhere), backbone=WanVace())
    begun: Counter[str] = Counter()
    pieces = {
        type(piece)
        for piece in (session.policy.step, session.policy.blocks, session.policy.guidance)
        if piece is not None
    }
    for piece in pieces:

        def begin(self: Any, run: Any, own: Any = piece.begin) -> Any:
            begun.update([type(self).__name__])
            return own(self, run)

        monkeypatch.setattr(piece, "begin", begin)
    with session:
        SMALL_CASE.run(experts, STEPS, "separate", 0)
    trace = session.trace
    switch = next(r.step for r in trace.records if r.expert == "low-noise")
    assert 0 < switch < trace.steps - 1
    for record in trace.records:
        assert record.expert == ("high-noise" if record.step < switch else "low-noise")
    for record in (r for r in trace.records if r.step == switch):
        assert record.mode is F
        assert record.parts_reused == 0
        assert record.blocks_run == SMALL.num_layers
        assert record.control_run == len(SMALL.control_layers)
    assert set(begun.values()) <= {2}
    assert begun.keys() == {piece.__name__ for piece in pieces}
    assert [note for note in trace.notes if f"reset at step {switch}" in note]


@pytest.mark.parametrize("name", ["every-nth", "fbcache", "hetcache", "pab", "taylorseer"])
def test_policies_reuse_under_both_experts(experts: Any, name: str) -> None:
    with accelerate(experts, name, backbone=WanVace()) as session:
        SMALL_CASE.run(experts, STEPS, "separate", 0)
    reusing = {
        record.expert
        for record in session.trace.records
        if record.mode is not F or record.parts_reused or record.blocks_run < SMALL.num_layers
    }
    assert reusing == {"high-noise", "low-noise"}


def test_two_experts_computing_everything_are_the_library(experts: Any) -> None:
    plain = SMALL_CASE.run(experts, 6, "merged", 0)
    with accelerate(experts, FULL_STEPS, backbone=WanVace()):
        assert torch.equal(SMALL_CASE.run(experts, 6, "merged", 0), plain)


def test_a_second_expert_of_another_kind_is_refused(experts: Any) -> None:
    experts.dit2 = torch.nn.Linear(1, 1)
    with (
        pytest.raises(UnsupportedBackboneError, match="dit is a Linear"),
        accelerate(experts, FULL_STEPS, backbone=WanVace()),
    ):
        pass
