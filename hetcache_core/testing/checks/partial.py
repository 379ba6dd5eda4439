"""Checks of a backbone: steps that run some rows, and what everything costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from hetcache_core.policy.partial import ControlMode, KVMode
from hetcache_core.steps import Mode
from hetcache_core.testing.case import BackboneCase
from hetcache_core.testing.comparing import need, require
from hetcache_core.testing.replaying import (
    names_of,
    partial_modes,
    replay,
    replays,
    require_counts,
    require_mode,
    require_repeats,
    rounding_of,
    subtraction_of,
)
from hetcache_core.testing.scripted import LastFirst, scripted

FLOP_TOLERANCE: Final = 0.01
"""How far a FLOP formula may be from what torch counts."""

_FULL, _PARTIAL, _REUSE = Mode.FULL, Mode.PARTIAL, Mode.REUSE


def check_a_partial_step_of_all_tokens_is_a_full_step(case: BackboneCase) -> None:
    """With every token active, PARTIAL computes what FULL does, in every mode."""
    for partial in partial_modes(case, context_ratio=1.0, max_active_share=1.0, pad_to=1):
        policy = scripted(_FULL, _PARTIAL, _FULL, partial=partial)
        for layout, (full, part, again) in replays(case, policy, 3):
            require_mode(part, _PARTIAL)
            what = f"guidance {layout!r}, {names_of(partial)}"
            require(
                part.record.active == part.record.tokens,
                f"{what}: {part.record.active} of {part.record.tokens} tokens were active",
            )
            require_repeats(part, full, rounding_of(full), f"{what}, part against full")
            require_repeats(again, full, None, f"{what}, full again")


def check_a_partial_step_with_cached_keys_is_a_full_step(case: BackboneCase) -> None:
    """With constant inputs and cached keys, the active tokens come out as in a full step."""
    need(case.features.attention, "attention cannot be seen")
    for partial in partial_modes(case):
        if partial.kv_mode is not KVMode.CACHED:
            continue
        for layout, (full, part) in replays(case, scripted(_FULL, _PARTIAL, partial=partial), 2):
            require_mode(part, _PARTIAL)
            require_repeats(
                part,
                full,
                rounding_of(full),
                f"guidance {layout!r}, {names_of(partial)}, {part.record.active} of "
                f"{part.record.tokens} tokens against all",
                "Do rotary table, per-token modulation and control follow the rows?",
            )


def check_a_partial_step_keeps_the_other_tokens(case: BackboneCase) -> None:
    """Inactive tokens take their stored residual; the active ones are computed anew."""
    for partial in partial_modes(case):
        policy = scripted(_FULL, _PARTIAL, _REUSE, partial=partial)
        for layout, (full, part, reused) in replays(case, policy, 3):
            require_mode(part, _PARTIAL)
            what = f"guidance {layout!r}, {names_of(partial)}"
            error = (part.trunk_output.double() - full.trunk_output.double()).abs()
            stored = (error <= subtraction_of(full)).all(-1).all(0)  # (N,)
            stored &= (part.trunk_output == reused.trunk_output).all(-1).all(0)
            inactive = part.record.tokens - part.record.active
            require(
                int(stored.sum()) >= inactive,
                f"{what}: {int(stored.sum())} tokens came out as stored, {inactive} are inactive",
            )
            require_repeats(
                reused,
                part,
                subtraction_of(part),
                f"{what}, reused right after a partial step",
                "The residual of the active tokens must be stored anew.",
            )


def check_a_partial_step_runs_control_as_asked(case: BackboneCase) -> None:
    """PARTIAL runs no control block where hints are reused, each once where they are recomputed."""
    need(case.features.control, "the model has no control branch")
    model = case.backbone.describe(case.make_pipeline(0))
    for partial in partial_modes(case):
        reuses = partial.control_mode is ControlMode.REUSE
        control = 0 if reuses else len(model.control_layers)
        for layout, (_, part) in replays(case, scripted(_FULL, _PARTIAL, partial=partial), 2):
            require_counts(part, model.layers, control, f"{names_of(partial)}, {layout}")


def check_flops_are_those_that_torch_counts(case: BackboneCase) -> None:
    """The FLOP formula is within 1 % of ``FlopCounterMode`` in full, partial and reused steps."""
    need(case.counts_flops, "another runtime than torch computes")
    scored = LastFirst(scored=True) if case.features.attention else LastFirst()
    runs = [(scripted(_FULL, _REUSE), 2, layout) for layout in case.layouts]
    runs += [
        (scripted(_FULL, _PARTIAL, partial=partial, selector=scored), 2, case.layouts[-1])
        for partial in partial_modes(case, required=False)
    ]
    for policy, repeats, layout in runs:
        replays = replay(case, policy, repeats=repeats, layout=layout, count_flops=True)
        for repeat in replays[0]:
            counted, said = repeat.seen.flops or 0, repeat.record.flops
            require(
                abs(said - counted) <= FLOP_TOLERANCE * counted,
                f"guidance {layout!r}, {repeat.record.mode} step: the formula says {said:,} FLOPs, "
                f"torch counts {counted:,}",
            )


PARTIAL_CHECKS: Final[tuple[Callable[[BackboneCase], None], ...]] = (
    check_a_partial_step_of_all_tokens_is_a_full_step,
    check_a_partial_step_with_cached_keys_is_a_full_step,
    check_a_partial_step_keeps_the_other_tokens,
    check_a_partial_step_runs_control_as_asked,
    check_flops_are_those_that_torch_counts,
)
