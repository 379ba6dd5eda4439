"""Checks of a backbone: what its trunk computes, in full, in part and not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Final

import torch
from torch import Tensor

from hetcache_core.policy import CachePolicy, ControlMode, KVMode, PartialSettings, ReusePoint
from hetcache_core.steps import ALL_SUB_LAYERS, Mode, Span, SubLayer
from hetcache_core.testing.case import BackboneCase
from hetcache_core.testing.comparing import (
    require,
    require_close,
    require_same,
    rounding_bound,
    subtraction_bound,
)
from hetcache_core.testing.running import NotApplicableError
from hetcache_core.testing.scripted import (
    FULL_STEPS,
    BlockScript,
    LastFirst,
    scripted,
)
from hetcache_core.testing.watch import Repeat, replay, watched_run
from hetcache_core.trunk import TrunkCall

FLOP_TOLERANCE: Final = 0.01
"""How far a FLOP formula may be from what torch counts."""

_FULL, _PARTIAL, _REUSE = Mode.FULL, Mode.PARTIAL, Mode.REUSE


def check_full_steps_are_the_bare_model(case: BackboneCase) -> None:
    """A session that computes everything returns what the bare pipeline returns, bit for bit."""
    for layout in case.layouts:
        bare = case.run(case.make_pipeline(0), 3, layout, 0)
        _, result = watched_run(case, FULL_STEPS, steps=3, layout=layout)
        require_same(
            result, bare, f"guidance {layout!r}, three full steps against the bare pipeline"
        )


def check_full_steps_that_store_are_the_bare_model(case: BackboneCase) -> None:
    """Looking at sub-layers and keeping keys changes no bit of a full step."""
    policies = []
    if case.features.sub_layers:
        policies.append(CachePolicy(name="looking", blocks=BlockScript(reuses=False)))
    if case.features.attention and case.features.mask:
        policies.append(scripted(_FULL, partial=_partial(), selector=LastFirst(scored=True)))
    _needs(bool(policies), "neither sub-layers nor attention can be seen")
    for policy, layout in product(policies, case.layouts):
        bare = case.run(case.make_pipeline(0), 3, layout, 0)
        _, result = watched_run(case, policy, steps=3, layout=layout)
        require_same(
            result,
            bare,
            f"guidance {layout!r}, {policy.name} steps with hooks against the bare pipeline",
            "A block that runs by its parts must do what its own forward does, in its order.",
        )


def check_full_steps_run_every_block_once(case: BackboneCase) -> None:
    """A full call runs each main and each control block once, and the trace says so."""
    for layout, repeats in _replays(case, FULL_STEPS, 2):
        model = case.backbone.describe(case.make_pipeline(0))
        for repeat in repeats:
            _require_counts(repeat, model.layers, len(model.control_layers), f"full, {layout}")


def check_reused_steps_run_no_block(case: BackboneCase) -> None:
    """A REUSE step calls neither a main block nor a control block."""
    for layout, (_, reused) in _replays(case, scripted(_FULL, _REUSE), 2):
        _require_mode(reused, _REUSE)
        _require_counts(reused, 0, 0, f"reused, {layout}")


def check_reuse_repeats_the_full_step_on_the_same_inputs(case: BackboneCase) -> None:
    """REUSE right after FULL gives the same output again: nothing is counted twice or left out."""
    for layout, (full, reused) in _replays(case, scripted(_FULL, _REUSE), 2):
        _require_mode(reused, _REUSE)
        _require_repeats(
            reused,
            full,
            _subtraction(full),
            f"guidance {layout!r}, branch {full.record.branch!r}, reused against full",
            "Are control hints, which the stored residual holds already, added once more?",
        )


def check_reuse_between_front_and_back_blocks(case: BackboneCase) -> None:
    """With front and back blocks run, REUSE of the middle repeats the full step."""
    layers = case.backbone.describe(case.make_pipeline(0)).layers
    _needs(layers > 1, "the trunk has one block")
    for span in (Span(front=1), Span(back=1), Span(front=1, back=1)):
        for layout, (full, reused) in _replays(case, scripted(_FULL, _REUSE, span=span), 2):
            _require_mode(reused, _REUSE)
            _require_repeats(
                reused,
                full,
                _rounding(full),
                f"guidance {layout!r}, reused between {span.front} front and {span.back} back blocks",
            )
            require(
                reused.main == span.front + span.back,
                f"{reused.main} main blocks ran, {span.front + span.back} were asked for",
            )


def check_reused_outputs_repeat_the_full_call(case: BackboneCase) -> None:
    """With the whole model call reused, nothing of it runs and its output comes again."""
    _needs(case.features.output, "the whole model call cannot be left out")
    policy = scripted(_FULL, _REUSE, reuse_point=ReusePoint.OUTPUT)
    for layout, (full, reused) in _replays(case, policy, 2):
        _require_mode(reused, _REUSE)
        require(reused.seen.trunk is None, "the trunk was entered though the whole call is reused")
        latents = full.seen.call.latents.expand_as(full.seen.output)
        require_close(
            reused.seen.output,
            full.seen.output,
            subtraction_bound(latents, full.seen.output),
            f"guidance {layout!r}, reused output against computed output",
        )


def check_a_probed_block_is_not_run_again(case: BackboneCase) -> None:
    """A full step after a probe runs every block once and is the bare step."""
    model = case.backbone.describe(case.make_pipeline(0))
    plain = dict(_numbered(_replays(case, FULL_STEPS, 1)))
    for number, (layout, (probed,)) in _numbered(_replays(case, scripted(_FULL, probe=1), 1)):
        _require_counts(probed, model.layers, len(model.control_layers), f"probed, {layout}")
        _, (expected,) = plain[number]
        _require_repeats(probed, expected, 0.0, "a probed step against a plain one")


def check_a_partial_step_of_all_tokens_is_a_full_step(case: BackboneCase) -> None:
    """With every token active, PARTIAL computes what FULL does, in every mode."""
    for partial in _partial_modes(case, context_ratio=1.0, max_active_share=1.0, pad_to=1):
        policy = scripted(_FULL, _PARTIAL, _FULL, partial=partial)
        for layout, (full, part, again) in _replays(case, policy, 3):
            _require_mode(part, _PARTIAL)
            what = f"guidance {layout!r}, {_names(partial)}"
            require(
                part.record.active == part.record.tokens,
                f"{what}: {part.record.active} of {part.record.tokens} tokens were active",
            )
            _require_repeats(part, full, _rounding(full), f"{what}, part against full")
            _require_repeats(again, full, 0.0, f"{what}, full again")


def check_a_partial_step_with_cached_keys_is_a_full_step(case: BackboneCase) -> None:
    """With constant inputs and cached keys, the active tokens come out as in a full step."""
    _needs(case.features.attention, "attention cannot be seen")
    for partial in _partial_modes(case):
        if partial.kv_mode is not KVMode.CACHED:
            continue
        for layout, (full, part) in _replays(case, scripted(_FULL, _PARTIAL, partial=partial), 2):
            _require_mode(part, _PARTIAL)
            _require_repeats(
                part,
                full,
                _rounding(full),
                f"guidance {layout!r}, {_names(partial)}, {part.record.active} of "
                f"{part.record.tokens} tokens against all",
                "Do rotary table, per-token modulation and control follow the rows?",
            )


def check_a_partial_step_keeps_the_other_tokens(case: BackboneCase) -> None:
    """Inactive tokens take their stored residual; the active ones are computed anew."""
    for partial in _partial_modes(case):
        policy = scripted(_FULL, _PARTIAL, _REUSE, partial=partial)
        for layout, (full, part, reused) in _replays(case, policy, 3):
            _require_mode(part, _PARTIAL)
            what = f"guidance {layout!r}, {_names(partial)}"
            error = (part.trunk_output.double() - full.trunk_output.double()).abs()
            stored = (error <= _subtraction(full)).all(-1).all(0)  # (N,)
            stored &= (part.trunk_output == reused.trunk_output).all(-1).all(0)
            inactive = part.record.tokens - part.record.active
            require(
                int(stored.sum()) >= inactive,
                f"{what}: {int(stored.sum())} tokens came out as stored, {inactive} are inactive",
            )
            _require_repeats(
                reused,
                part,
                _subtraction(part),
                f"{what}, reused right after a partial step",
                "The residual of the active tokens must be stored anew.",
            )


def check_a_partial_step_runs_control_as_asked(case: BackboneCase) -> None:
    """PARTIAL runs no control block where hints are reused, each once where they are recomputed."""
    _needs(case.features.control, "the model has no control branch")
    model = case.backbone.describe(case.make_pipeline(0))
    for partial in _partial_modes(case):
        reuses = partial.control_mode is ControlMode.REUSE
        control = 0 if reuses else len(model.control_layers)
        for layout, (_, part) in _replays(case, scripted(_FULL, _PARTIAL, partial=partial), 2):
            _require_counts(part, model.layers, control, f"{_names(partial)}, {layout}")


def check_reused_sub_layers_repeat_the_full_step(case: BackboneCase) -> None:
    """With constant inputs, stored sub-layer outputs stand in for computed ones."""
    _needs(case.features.sub_layers, "sub-layers cannot be seen")
    for part in (*((p,) for p in sorted(ALL_SUB_LAYERS)), tuple(ALL_SUB_LAYERS)):
        policy = CachePolicy(name="parts", blocks=BlockScript(parts=frozenset(part)))
        for layout, (full, reused) in _replays(case, policy, 2):
            what = f"guidance {layout!r}, reused {', '.join(p.value for p in part)}"
            _require_repeats(
                reused,
                full,
                0.0,
                what,
                "sub_layer must return what is used: the output before its gate.",
            )
            blocks = full.record.blocks_run + full.record.control_run
            require(
                reused.record.parts_reused == blocks * len(part),
                f"{what}: {reused.record.parts_reused} sub-layers were reused of {blocks} blocks",
            )


def check_sub_layers_run_on_some_rows(case: BackboneCase) -> None:
    """A sub-layer that is computed on some rows gives what it gives there on all rows."""
    _needs(case.features.sub_layers and case.features.rows, "sub-layers do not run on some rows")
    # Self-attention is left out: a backbone may refuse it, since its keys need all rows anyway.
    for part in (SubLayer.CROSS_ATTENTION, SubLayer.FEED_FORWARD):
        blocks = BlockScript(parts=frozenset({part}), rows=torch.tensor([0, 2, 3]))
        policy = CachePolicy(name="rows", blocks=blocks)
        for layout, (full, reused) in _replays(case, policy, 2):
            _require_repeats(
                reused,
                full,
                _rounding(full),
                f"guidance {layout!r}, {part.value} on three rows, the others reused",
            )


def check_reused_blocks_repeat_the_full_step(case: BackboneCase) -> None:
    """A reused block adds its stored residual, hint included, and runs no control block."""
    policy = CachePolicy(name="blocks", blocks=BlockScript(whole=True))
    for layout, (full, reused) in _replays(case, policy, 2):
        _require_counts(reused, 0, 0, f"reused block by block, {layout}")
        _require_repeats(
            reused,
            full,
            _rounding(full),
            f"guidance {layout!r}, reused block by block",
        )


def check_merged_and_separate_guidance_agree(case: BackboneCase) -> None:
    """A branch comes out the same, to rounding, whether it shares its call or not."""
    _needs({"merged", "separate"} <= case.features.guidance, "there is one layout with guidance")
    merged, _ = watched_run(case, FULL_STEPS, steps=1, layout="merged")
    separate, _ = watched_run(case, FULL_STEPS, steps=1, layout="separate")
    both = merged.seen[0].trunk_output
    apart = {seen.call.key: seen for seen in separate.seen}
    for branch in merged.seen[0].call.branches:
        trunk, alone = apart[branch.name].trunk, apart[branch.name].trunk_output
        if both is None or trunk is None or alone is None:
            raise NotApplicableError("the trunk was not entered")
        bound = rounding_bound(alone, trunk.layers, alone.shape[-1])
        require_close(both[branch.rows], alone, bound, f"branch {branch.name!r}, merged, separate")


def check_flops_are_those_that_torch_counts(case: BackboneCase) -> None:
    """The FLOP formula is within 1 % of ``FlopCounterMode`` in full, partial and reused steps."""
    scored = LastFirst(scored=True) if case.features.attention else LastFirst()
    runs = [(scripted(_FULL, _REUSE), 2, layout) for layout in case.layouts]
    runs += [
        (scripted(_FULL, _PARTIAL, partial=partial, selector=scored), 2, case.layouts[-1])
        for partial in _partial_modes(case, required=False)
    ]
    for policy, repeats, layout in runs:
        replays = replay(case, policy, repeats=repeats, layout=layout, steps=1, count_flops=True)
        for repeat in replays[0]:
            counted, said = repeat.seen.flops or 0, repeat.record.flops
            require(
                abs(said - counted) <= FLOP_TOLERANCE * counted,
                f"guidance {layout!r}, {repeat.record.mode} step: the formula says {said:,} FLOPs, "
                f"torch counts {counted:,}",
            )


def _partial(**changes: object) -> PartialSettings:
    return PartialSettings(**{"context_ratio": 0.3, "pad_to": 1, **changes})  # type: ignore[arg-type]  # fields by name


def _partial_modes(
    case: BackboneCase, *, required: bool = True, **changes: object
) -> Iterator[PartialSettings]:
    if not (case.features.rows and case.features.mask):
        _needs(not required, "blocks do not run on some rows, or there is no mask")
        return
    keys = [KVMode.CACHED, KVMode.PRUNED] if case.features.attention else [KVMode.PRUNED]
    controls = list(ControlMode) if case.features.control else [ControlMode.RECOMPUTE]
    for kv_mode, control_mode in product(keys, controls):
        yield _partial(kv_mode=kv_mode, control_mode=control_mode, **changes)


def _replays(
    case: BackboneCase, policy: CachePolicy, repeats: int
) -> Iterator[tuple[str, list[Repeat]]]:
    for layout in case.layouts:
        for answers in replay(case, policy, repeats=repeats, layout=layout, steps=1):
            yield layout, answers


def _numbered(
    replays: Iterator[tuple[str, list[Repeat]]],
) -> Iterator[tuple[int, tuple[str, list[Repeat]]]]:
    return enumerate(replays)


def _names(partial: PartialSettings) -> str:
    return f"{partial.kv_mode.value} keys, control {partial.control_mode.value}"


def _needs(holds: bool, reason: str) -> None:  # noqa: FBT001 - reads as a sentence
    if not holds:
        raise NotApplicableError(reason)


def _trunk(repeat: Repeat) -> TrunkCall:
    if repeat.seen.trunk is None:
        raise NotApplicableError("the trunk was not entered")
    return repeat.seen.trunk


def _subtraction(repeat: Repeat) -> Tensor:
    return subtraction_bound(_trunk(repeat).x, repeat.trunk_output)


def _rounding(repeat: Repeat) -> float:
    trunk = _trunk(repeat)
    return rounding_bound(repeat.trunk_output, trunk.layers, trunk.x.shape[-1])


def _require_repeats(
    actual: Repeat, expected: Repeat, bound: Tensor | float, what: str, remedy: str = ""
) -> None:
    """Compare what the engine answered the trunk, then what became of it in the library's hands."""
    require_close(actual.trunk_output, expected.trunk_output, bound, what, remedy)
    output, reference = actual.seen.output, expected.seen.output
    if isinstance(bound, float) and not bound:
        require_same(output, reference, f"model output, {what}", remedy)
        return
    # The head is one more layer.
    limit = rounding_bound(reference, _trunk(expected).layers + 1, _trunk(expected).x.shape[-1])
    require_close(output, reference, limit, f"model output, {what}", remedy)


def _require_mode(repeat: Repeat, mode: Mode) -> None:
    require(
        repeat.record.mode is mode,
        f"a {mode} step ran as {repeat.record.mode}: {repeat.record.reason}",
    )


def _require_counts(repeat: Repeat, main: int, control: int, what: str) -> None:
    counted = (repeat.main, repeat.control)
    require(
        counted == (main, control),
        f"{what}: {counted[0]} main and {counted[1]} control blocks ran, not {main} and {control}",
    )
    said = (repeat.record.blocks_run, repeat.record.control_run)
    require(said == counted, f"{what}: the trace says that {said} blocks ran, not {counted}")


TRUNK_CHECKS: Final[tuple[Callable[[BackboneCase], None], ...]] = (
    check_full_steps_are_the_bare_model,
    check_full_steps_that_store_are_the_bare_model,
    check_full_steps_run_every_block_once,
    check_reused_steps_run_no_block,
    check_reuse_repeats_the_full_step_on_the_same_inputs,
    check_reuse_between_front_and_back_blocks,
    check_reused_outputs_repeat_the_full_call,
    check_a_probed_block_is_not_run_again,
    check_a_partial_step_of_all_tokens_is_a_full_step,
    check_a_partial_step_with_cached_keys_is_a_full_step,
    check_a_partial_step_keeps_the_other_tokens,
    check_a_partial_step_runs_control_as_asked,
    check_reused_sub_layers_repeat_the_full_step,
    check_sub_layers_run_on_some_rows,
    check_reused_blocks_repeat_the_full_step,
    check_merged_and_separate_guidance_agree,
    check_flops_are_those_that_torch_counts,
)
