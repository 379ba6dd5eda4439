"""The default policy: where it computes, what stands in, and that it beats uniform skipping."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from hetcache_core.records.trace import Trace
from hetcache_core.session import accelerate
from hetcache_core.steps import Mode, ModelInfo
from hetcache_core.testing import tiny_case
from hetcache_policies.auto import PRESETS, Auto, SpacedSteps, positions
from hetcache_policies.shared.correctors import Payback
from hetcache_policies.shared.predictors import Blend

MODEL = ModelInfo(backbone="tiny", variant="", layers=4, width=32, heads=2)
SHIFT = 5.0


def shifted(steps: int) -> tuple[float, ...]:
    """Noise levels as Wan's pipelines have them."""
    linear = [1 - index / steps for index in range(steps)]
    return tuple(SHIFT * t / (1 + (SHIFT - 1) * t) for t in linear)


def trace_of(recipe: Auto, steps: int, *, speedup: float | None = None) -> Trace:
    case = tiny_case()
    pipeline = case.make_pipeline(0)
    with accelerate(pipeline, recipe, backbone=case.backbone, target_speedup=speedup) as session:
        case.run(pipeline, steps, "separate", 0)
    return session.trace


def test_a_step_lies_as_far_along_as_the_noise_that_was_removed() -> None:
    assert positions((1.0, 0.9, 0.5), 1.0) == pytest.approx((0.0, 0.3, 1.5))
    assert positions((1.0, 0.75, 0.5, 0.25), 1.0) == pytest.approx((0, 1, 2, 3))
    root = math.sqrt(0.1), math.sqrt(0.4), math.sqrt(0.5)
    assert positions((1.0, 0.9, 0.5), 0.5)[1] == pytest.approx(3 * root[0] / sum(root))


@pytest.mark.parametrize("exponent", [0.0, 0.45])
@pytest.mark.parametrize("sigmas", [(0.0, 0.0, 0.0), (math.inf, 1.0, 0.5), (math.nan, 0.5, 0.1)])
def test_without_noise_levels_that_mean_anything_all_steps_are_alike(
    sigmas: tuple[float, ...], exponent: float
) -> None:
    assert positions(sigmas, exponent) == (0.0, 1.0, 2.0)


@pytest.mark.parametrize("steps", [8, 20, 50, 100])
def test_positions_rise_and_stay_within_the_run(steps: int) -> None:
    found = positions(shifted(steps), 0.45)
    assert found[0] == 0.0
    assert all(a < b for a, b in pairwise(found))
    assert found[-1] < steps


def test_steps_lie_denser_where_the_sampler_moves_more() -> None:
    computed = trace_of(Auto(every=4.0), 50).letters()
    gaps = [len(gap) for gap in computed[1:].split("F")]
    half = len(gaps) // 2
    assert sum(gaps[:half]) > 1.5 * sum(gaps[half:])
    assert computed.startswith("Fs")
    assert computed.endswith("F")


def test_with_exponent_zero_steps_lie_evenly() -> None:
    assert trace_of(Auto(every=3.0, exponent=0.0), 11).letters() == "FsssFssFssF"


def test_the_schedule_is_the_same_for_every_run() -> None:
    assert SpacedSteps(every=3.0).sigmas_only
    assert trace_of(Auto(), 20).modes() == trace_of(Auto(), 20).modes()


@pytest.mark.parametrize("partials", [0.5, 1.0, 2.0])
def test_partial_steps_lie_between_the_computed_ones(partials: float) -> None:
    plain, found = (
        trace_of(Auto(every=5.0), 40).letters(),
        trace_of(Auto(every=5.0, partials=partials), 40).letters(),
    )
    assert found.replace("p", "s") == plain
    assert found.count("p") == round(partials * (plain.count("F") - 1))
    assert all("p" in gap for gap in found[1:-1].split("F")) == (partials >= 1)


def test_a_partial_step_lies_in_the_middle_of_its_gap() -> None:
    found = trace_of(Auto(every=6.0, exponent=0.0, partials=1.0), 13).letters()
    assert found == "FsspssFsspssF"


def test_no_more_partial_steps_are_placed_than_there_is_room_for() -> None:
    assert trace_of(Auto(every=3.0, exponent=0.0, partials=9.0), 7).letters() == "FppFppF"


def test_only_partial_steps_need_a_mask() -> None:
    assert not Auto().compose(MODEL).needs()
    assert Auto(partials=1.0).compose(MODEL).needs() == {"attention", "mask", "rows"}


@pytest.mark.parametrize(
    ("steps", "speedup"),
    [(8, 1.5), (8, 2.0), (20, 1.5), (20, 3.0), (20, 4.0), (50, 2.0), (50, 4.0), (50, 6.0)],
)
@pytest.mark.parametrize("partials", [0.0, 1.0])
def test_a_speed_up_is_reached_to_within_half_a_step(
    steps: int, speedup: float, partials: float
) -> None:
    trace = trace_of(Auto(partials=partials), steps, speedup=speedup)
    spent = steps / trace.totals().flops_speedup
    assert abs(spent - steps / speedup) <= 0.75


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_computes_the_share_it_declares(preset: str) -> None:
    recipe = Auto(**Auto.preset(preset, MODEL))
    trace = trace_of(recipe, 50)
    share = 1 / trace.totals().flops_speedup
    assert share == pytest.approx(Auto.preset_shares[preset], abs=0.04)


def test_lines_are_measured_and_errors_paid_back() -> None:
    composed = Auto().compose(MODEL)
    assert (composed.predictor, composed.corrector) == (Blend(), Payback())
    decisions = trace_of(Auto(every=4.0), 20).decisions
    after = [b for a, b in pairwise(decisions) if (a.done, b.done) == (Mode.REUSE, Mode.FULL)]
    assert [d for d in decisions if d.gain is not None] == after
    assert all(0 <= (d.gain or 0) <= 1 and (d.innovation or 0) > (d.error or 0) > 0 for d in after)


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(10 * torch.log10(255.0**2 / (one - other).square().mean()))


Edit = Callable[..., tuple[torch.Tensor, float]]


def editing(name: str, *, size: int) -> Edit:
    """Return what edits a built-in clip with the embedded model: frames in the mask, and the speed-up."""
    pytest.importorskip("diffsynth", exc_type=ImportError)
    from hetcache_backends.tiny_vace.backbone import TinyVace
    from hetcache_backends.tiny_vace.clip_set import BuiltinClips
    from hetcache_core.backbone.adapter import EditRequest, LoadRequest

    backbone = TinyVace()
    pipeline = backbone.load(LoadRequest())
    clip = BuiltinClips().clip(name, frames=5, height=size, width=size)
    request = EditRequest(
        video=clip.video, mask=clip.mask, prompt=clip.prompt, steps=30,
        guidance_scale=backbone.guidance_scale,
    )  # fmt: skip
    mask = torch.from_numpy(clip.mask)

    def edited(policy: str, **options: object) -> tuple[torch.Tensor, float]:
        with accelerate(pipeline, policy, backbone=backbone, **options) as run:  # type: ignore[arg-type]
            frames = torch.from_numpy(backbone.edit(pipeline, request)).double()
        return frames[mask], run.trace.totals().flops_speedup

    return edited


@pytest.mark.parametrize("every", [3, 4, 6])
def test_on_a_trained_model_it_beats_uniform_skipping_at_no_more_cost(every: int) -> None:
    edited = editing("medium-moving-object-0", size=96)
    reference, _ = edited("none")
    uniform, reached = edited("every-nth", settings={"every": every})
    ours, ours_reached = edited("auto", target_speedup=reached)
    assert ours_reached >= 0.97 * reached
    assert psnr(ours, reference) > psnr(uniform, reference) + 3


def test_the_first_gap_can_be_limited() -> None:
    found = trace_of(Auto(every=5.0, first_gap=2), 20).letters()
    assert found.startswith("FsFss")
    assert found.count("F") <= trace_of(Auto(every=5.0), 20).letters().count("F") + 1
    met = trace_of(Auto(first_gap=2), 20, speedup=4.0)
    assert met.letters().startswith("FsFs")
    assert met.totals().flops_speedup == pytest.approx(4.0, rel=0.15)


@pytest.mark.parametrize("layout", ["separate", "merged", "none"])
def test_what_is_paid_back_is_nearer_to_the_reference(layout: str) -> None:
    case = tiny_case()

    def result(policy: str, **settings: object) -> torch.Tensor:
        pipeline = case.make_pipeline(0)
        with accelerate(pipeline, policy, settings=settings, backbone=case.backbone):
            return case.run(pipeline, 20, layout, 0)

    reference = result("none")

    def error(corrector: str) -> float:
        return float((result("auto", corrector=corrector) - reference).square().mean())

    assert error("payback") < error("none") / 2


@pytest.mark.parametrize("speedup", [6.0])
def test_on_a_small_mask_partial_steps_bring_more_at_no_more_cost(speedup: float) -> None:
    edited = editing("small-still-object-0", size=192)
    reference, _ = edited("none")
    plain, plain_reached = edited("auto", target_speedup=speedup)
    ours, reached = edited("auto", settings={"partials": 1.0}, target_speedup=speedup)
    assert reached >= 0.97 * plain_reached
    assert psnr(ours, reference) > psnr(plain, reference) + 1
