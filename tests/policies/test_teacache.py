"""What TeaCache and HetCache decide for a signal whose changes are known, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby, pairwise
from pathlib import Path

import pytest
from attrs import evolve

from hetcache_core.errors import ConfigError
from hetcache_core.policy.guards import GUARDS, Guards
from hetcache_core.policy.partial import ControlMode, KVMode, PartialSettings
from hetcache_core.policy.recipe import CachePolicy
from hetcache_core.records.trace import Trace
from hetcache_core.steps import ModelInfo
from hetcache_core.testing import decide
from hetcache_policies.fits.teacache_fits import FIT_OF_VARIANT, FITS, Fit
from hetcache_policies.hetcache import HetCache
from hetcache_policies.shared.drift import DriftSettings
from hetcache_policies.shared.partition import MaskPartitioner
from hetcache_policies.shared.signals import SIGNALS
from hetcache_policies.shared.tiers import TieredSteps
from hetcache_policies.teacache import DriftSteps, TeaCache

STEPS = (8, 20, 50, 100)
WAN = ModelInfo(backbone="wan-vace", variant="wan2.1-1.3b", layers=30, width=1536, heads=12)
UNKNOWN = ModelInfo(backbone="tiny", variant="", layers=1, width=4, heads=1)


def signal_with(changes: Sequence[float]) -> list[float]:
    """Numbers whose relative changes from one to the next are those given, kept near 1."""
    values = [1.0]
    for change in changes:
        values.append(min((values[-1] * f for f in (1 + change, 1 - change)), key=closeness_to_one))
    return values


def closeness_to_one(value: float) -> float:
    return max(abs(value), 1 / max(abs(value), 1e-9))


def run(policy: CachePolicy, changes: Sequence[float], switch_at: int | None = None) -> Trace:
    """Run a policy over ``len(changes) + 1`` steps of a signal that changes so."""
    steps = len(changes) + 1
    experts = None
    if switch_at is not None:
        experts = ["first"] * switch_at + ["second"] * (steps - switch_at)
    signal = signal_with(changes)
    return decide(policy, steps=steps, signal=signal, experts=experts, model=UNKNOWN)


def computed(trace: Trace) -> float:
    return 1 - trace.letters().count("s") / trace.steps


def longest_reuse(trace: Trace) -> int:
    return max((len(list(run)) for mode, run in groupby(trace.letters()) if mode == "s"), default=0)


def raw(signal: str = "modulation") -> DriftSettings:
    return DriftSettings(signal=SIGNALS[signal], rescale="none")


def teacache(**changes: object) -> CachePolicy:
    steps = DriftSteps(drift=raw(), threshold=0.05)
    guards = Guards(first_steps=1, last_steps=1)
    return _changed(CachePolicy(name="teacache", step=steps, guards=guards), changes)


def hetcache(**changes: object) -> CachePolicy:
    steps = TieredSteps(
        drift=raw(),
        threshold=1.0,
        rho=1.5,
        reset_on_partial=False,
        max_partials=4,
    )
    policy = CachePolicy(
        name="hetcache",
        step=steps,
        partitioner=MaskPartitioner(margin=0),
        partial=PartialSettings(kv_mode=KVMode.PRUNED, control_mode=ControlMode.RECOMPUTE),
        guards=Guards(first_steps=2, last_steps=1),
    )
    return _changed(policy, changes)


def _changed(policy: CachePolicy, changes: dict[str, object]) -> CachePolicy:
    """Change the policy's guards, or else its steps."""
    guards = {name: value for name, value in changes.items() if name in GUARDS}
    steps = {name: value for name, value in changes.items() if name not in GUARDS}
    return evolve(policy, step=evolve(policy.step, **steps), guards=evolve(policy.guards, **guards))


# TeaCache ----------------------------------------------------------------------------------------


def test_teacache_computes_when_the_changes_add_up() -> None:
    trace = run(teacache(), [0.02] * 7)
    assert trace.letters() == "FssFssFF"
    assert [record.reason for record in trace.records[:4]] == [
        "guard: first steps",
        "signal 0.020 < 0.050",
        "signal 0.040 < 0.050",
        "signal 0.060 >= 0.050",
    ]
    assert trace.records[-1].reason == "guard: last steps"
    assert trace.records[3].signal == pytest.approx(0.06, rel=1e-4)


def test_teacache_at_threshold_zero_computes_every_step() -> None:
    assert run(teacache(threshold=0.0), [0.0, 0.1, 0.0, 0.1]).letters() == "FFFFF"


def test_teacache_forces_the_first_steps_and_starts_the_sum_after_them() -> None:
    trace = run(teacache(first_steps=3), [0.04] * 7)
    assert trace.letters() == "FFFsFsFF"


def test_teacache_without_a_forced_last_step_may_reuse_it() -> None:
    assert run(teacache(last_steps=0), [0.02] * 4).letters() == "FssFs"


def test_teacache_compares_with_the_step_before_whether_that_was_reused_or_not() -> None:
    """A change counts once: were the last *computed* step compared, two steps would add 0.02 + 0.04."""
    for signal in ("timestep", "modulation", "modulated_input"):
        trace = run(teacache(drift=raw(signal)), [0.02] * 5)
        assert trace.letters() == "FssFsF"


def test_a_run_of_reused_steps_ends_at_its_limit() -> None:
    trace = run(teacache(longest_reuse=0.2), [0.0] * 19)
    assert trace.letters() == "FssssFssssFssssFsssF"
    assert trace.records[5].reason == "guard: 4 reused in a row"


@pytest.mark.parametrize("signal", ["timestep", "modulation"])
def test_a_signal_of_the_schedule_is_read_once_a_run(signal: str) -> None:
    trace = run(teacache(drift=raw(signal)), [0.02] * 19)
    assert [record.host_reads for record in trace.records] == [1] + [0] * 19


def test_a_signal_of_the_content_is_read_once_a_step() -> None:
    trace = run(teacache(drift=raw("modulated_input")), [0.02] * 19)
    assert [record.host_reads for record in trace.records] == [0] + [1] * 19


def test_a_second_expert_starts_with_first_steps_of_its_own() -> None:
    tea = run(teacache(first_steps=2), [0.01] * 11, switch_at=6)
    assert tea.letters() == "FFssssFFsssF"
    assert tea.records[6].reason == "guard: first steps"
    assert run(hetcache(), [0.1] * 11, switch_at=6).letters() == "FFssssFFsssF"


# Polynomials -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FITS)
def test_a_polynomial_is_never_negative_and_greatest_at_the_end_of_its_range(name: str) -> None:
    fit = FITS[name]
    high = min(fit.high, 1.0)
    inside = [fit.low + (high - fit.low) * i / 1000 for i in range(1001)]
    values = [horner(fit, x) for x in inside]
    # Ends are rounded to four digits, so values may be off by the slope times half of the last.
    slope = max(abs(b - a) for a, b in pairwise(values)) / (inside[1] - inside[0])
    assert min(values) >= -slope * 5e-5
    assert max(values) <= values[-1] + slope * 5e-5
    assert fit.value(-1.0) == fit.value(fit.low) >= 0
    assert fit.value(high) == pytest.approx(horner(fit, high))


def horner(fit: Fit, x: float) -> float:
    powers = range(len(fit.coefficients) - 1, -1, -1)
    return sum(c * x**power for c, power in zip(fit.coefficients, powers, strict=True))


def test_the_first_polynomial_has_its_published_value() -> None:
    fit = FITS["wan2.1-t2v-1.3b/modulation"]
    assert fit.rescale(0.05, steps=50) == pytest.approx(0.1418984, abs=1e-7)  # by hand


def test_half_as_long_steps_add_up_to_the_same_sum() -> None:
    fit = FITS["wan2.1-t2v-1.3b/modulation"]
    assert 2 * fit.rescale(0.02, steps=100) == pytest.approx(fit.rescale(0.04, steps=50))


def test_every_variant_names_known_polynomials() -> None:
    assert {name for names in FIT_OF_VARIANT.values() for name in names} <= set(FITS)


# Runaway -----------------------------------------------------------------------------------------


def shifted(steps: int, shift: float = 5.0) -> list[float]:
    """Lengths of the steps of Wan's schedule, as shares of their sum."""
    linear = [1 - index / steps for index in range(steps)]
    sigmas = [shift * u / (1 + (shift - 1) * u) for u in linear]
    return [(a - b) / (sigmas[0] - sigmas[-1]) for a, b in pairwise(sigmas)]


@pytest.mark.parametrize("name", FITS)
def test_no_number_of_steps_lets_a_polynomial_skip_for_ever(name: str) -> None:
    """Changes that span the range of the fit at its own number of steps leave it at others.

    Taken at face value, the timestep polynomial of the 14B model computes most of these 50 steps and
    only the first and the last of 100.
    """
    fit = FITS[name]
    longest = {}
    for steps in (fit.steps, *STEPS):
        drift = DriftSettings(signal=SIGNALS[fit.signal], rescale="poly", fit=fit)
        high = min(fit.high, 0.3)
        changes = [
            (fit.low + (high - fit.low) * index / steps) * fit.steps / steps
            for index in range(1, steps)
        ]
        longest[steps] = (
            longest_reuse(run(teacache(drift=drift, threshold=fit.safe), changes)) / steps
        )
    # The same stretch of the run at any number of steps, give or take a step at each end.
    assert all(longest[steps] <= longest[fit.steps] + 2 / steps for steps in STEPS)
    assert max(longest.values()) < 0.3


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("model", [WAN, UNKNOWN], ids=["wan2.1-1.3b", "unknown"])
@pytest.mark.parametrize("change", [0.0, 1e-6, 0.02, 1.0])
def test_no_signal_makes_a_default_policy_skip_for_ever(
    steps: int, model: ModelInfo, change: float
) -> None:
    for recipe in (TeaCache(), HetCache(), HetCache(rescale="none")):
        trace = run(recipe.composed(model), [change] * (steps - 1))
        assert longest_reuse(trace) <= max(1, steps // 5)
        assert trace.letters()[-1] == "F"


# HetCache ----------------------------------------------------------------------------------------


def test_the_sum_decides_between_reuse_partial_and_full() -> None:
    """The paper's rule: partial steps leave the sum alone, so that a full one must follow."""
    trace = run(hetcache(), [0.6] * 10)
    assert trace.letters() == "FFspFspFspF"
    assert [record.reason for record in trace.records[:5]] == [
        "guard: first steps",
        "guard: first steps",
        "signal 0.600 <= 1.000",
        "1.000 < signal 1.200 <= 1.500",
        "signal 1.800 > 1.500",
    ]
    assert trace.records[-1].reason == "signal 1.800 > 1.500"


def test_a_partial_step_may_start_the_sum_again() -> None:
    trace = run(hetcache(reset_on_partial=True, max_partials=2), [0.6] * 13)
    assert trace.letters() == "FFspspsFspspsF"
    assert trace.records[7].reason == "2 partial steps since a full one"


def test_one_step_that_overshoots_runs_in_full() -> None:
    policy = hetcache(reset_on_partial=True)
    assert run(policy, [0.1, 0.6, 0.6, 1.6, 0.6, 0.6]).letters() == "FFspFsF"


def test_partial_steps_in_a_row_are_limited() -> None:
    trace = run(hetcache(rho=3.0), [0.5, 1.1, *[0.1] * 8])
    assert trace.letters() == "FFppppFsssF"
    assert trace.records[6].reason == "4 partial steps since a full one"


def test_no_partial_steps_leaves_two_kinds() -> None:
    assert run(hetcache(max_partials=0), [0.6] * 8).letters() == "FFsFsFsFF"


def test_a_long_run_of_reused_steps_ends_in_a_partial_one() -> None:
    trace = run(hetcache(longest_reuse=0.2, max_partials=1), [0.0] * 19)
    assert trace.letters() == "FFsssspssssFsssspssF"
    assert trace.records[6].reason == "guard: 4 reused in a row"


def test_hetcache_at_threshold_zero_runs_every_step() -> None:
    assert run(hetcache(threshold=0.0), [0.0, 0.1, 0.0, 0.1]).letters() == "FFFFF"


def test_partial_steps_that_would_run_nearly_all_tokens_run_in_full_and_start_the_sum_again() -> (
    None
):
    policy = hetcache()
    crowded = evolve(policy, partial=evolve(policy.partial, max_active_share=0.01))
    trace = run(crowded, [0.6] * 8)
    assert trace.letters() == "FFsFsFsFF"
    assert trace.records[3].reason == "6% of the tokens active, over 1%"


# Settings ----------------------------------------------------------------------------------------


def step_piece(recipe: TeaCache | HetCache, model: ModelInfo) -> DriftSteps | TieredSteps:
    piece = recipe.compose(model).step
    assert isinstance(piece, DriftSteps | TieredSteps)
    return piece


def test_teacache_takes_the_polynomial_of_a_known_model_with_its_threshold() -> None:
    piece = step_piece(TeaCache(), WAN)
    assert piece.drift.fit is FITS["wan2.1-t2v-1.3b/modulation"]
    assert (piece.threshold, TeaCache().composed(WAN).guards.first_steps) == (0.05, 5)
    other = step_piece(TeaCache(signal=SIGNALS["timestep"]), WAN)
    assert other.drift.fit is FITS["wan2.1-t2v-1.3b/timestep"]
    guards = TeaCache(signal=SIGNALS["timestep"]).composed(WAN).guards
    assert (other.threshold, guards.first_steps) == (0.05, 1)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (TeaCache(), ("modulation", "normalized", 1.5)),
        (TeaCache(signal=SIGNALS["timestep"]), ("timestep", "normalized", 1.5)),
        (TeaCache(signal=SIGNALS["modulated_input"]), ("modulated_input", "none", 0.1)),
        (TeaCache(coefficients="none"), ("modulation", "none", 0.1)),
        (TeaCache(coefficients="hunyuanvideo"), ("modulated_input", "poly", 0.1)),
        (TeaCache(threshold=2.0), ("modulation", "normalized", 2.0)),
        (HetCache(), ("modulation", "normalized", 1.5)),
        (HetCache(rescale="none"), ("modulation", "none", 0.1)),
        (HetCache(signal=SIGNALS["modulated_input"]), ("modulated_input", "none", 0.1)),
    ],
)
def test_an_unknown_model_gets_a_unit_and_the_threshold_that_belongs_to_it(
    recipe: TeaCache | HetCache, expected: tuple[str, str, float]
) -> None:
    piece = step_piece(recipe, UNKNOWN)
    assert (piece.drift.signal.name, piece.drift.rescale, piece.threshold) == expected


def test_hetcache_takes_the_polynomial_where_it_is_asked_to() -> None:
    piece = step_piece(HetCache(rescale="poly"), WAN)
    assert piece.drift.fit is FITS["wan2.1-t2v-1.3b/modulation"]
    assert piece.threshold == 0.05
    with pytest.raises(ConfigError, match=r"no polynomial of modulation .* this tiny model"):
        HetCache(rescale="poly").compose(UNKNOWN)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (
            lambda: TeaCache(coefficients="normalized", signal=SIGNALS["modulated_input"]),
            "normalized",
        ),
        (lambda: HetCache(rescale="normalized", signal=SIGNALS["modulated_input"]), "normalized"),
        (
            lambda: TeaCache(coefficients="ltx-video-0.9.1", signal=SIGNALS["timestep"]),
            "modulated_input",
        ),
        (lambda: HetCache(score_layers=(0, 1)), "score_layers names block 1"),
    ],
)
def test_a_signal_or_layer_that_does_not_fit_is_refused_before_the_run(
    make: Callable[[], TeaCache | HetCache], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        make().compose(UNKNOWN)


# Presets -----------------------------------------------------------------------------------------

PRESETS = ("quality", "balanced", "fast")


def even(steps: int) -> list[float]:
    return [0.1] * (steps - 1)


@pytest.mark.parametrize("shape", [even, shifted])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("kind", [TeaCache, HetCache])
def test_a_faster_preset_computes_no_more(
    kind: type[TeaCache | HetCache], steps: int, shape: Callable[[int], list[float]]
) -> None:
    flops = []
    for preset in PRESETS:
        recipe = kind(**kind.preset(preset, UNKNOWN))
        trace = run(recipe.composed(UNKNOWN), shape(steps))
        flops.append(sum(record.flops for record in trace.records))
    assert flops == sorted(flops, reverse=True)
    assert flops[-1] < flops[0] or steps == min(STEPS)


def test_a_preset_means_the_same_schedule_whatever_the_scale_of_the_signal() -> None:
    for preset in PRESETS:
        recipe = HetCache(**HetCache.preset(preset, UNKNOWN))
        small, large = (
            run(recipe.composed(UNKNOWN), [scale * x for x in shifted(50)]) for scale in (0.01, 5)
        )
        assert small.letters() == large.letters()


def test_presets_of_a_known_model_are_published_thresholds() -> None:
    thresholds = [TeaCache.preset(preset, WAN)["threshold"] for preset in PRESETS]
    assert thresholds == pytest.approx([0.05, 0.075, 0.10])


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        HetCache.preset("fats", UNKNOWN)
    assert caught.value.nearest == "fast"
    assert caught.value.allowed == (*PRESETS, "paper", "code")


def test_the_table_of_presets_in_the_docs_is_what_they_do() -> None:
    page = Path(__file__).parents[2] / "docs" / "policies.md"
    lines = page.read_text(encoding="utf-8").splitlines()
    for kind in (TeaCache, HetCache):
        for preset in PRESETS:
            policy = kind(**kind.preset(preset, UNKNOWN)).composed(UNKNOWN)
            cells = [f"`{kind.name}`", f"`{preset}`"]
            for steps in (20, 50):
                for shape in (even, shifted):
                    taken = run(policy, shape(steps)).letters()
                    cells.append(" / ".join(str(taken.count(letter)) for letter in "Fps"))
            assert f"| {' | '.join(cells)} |" in lines
