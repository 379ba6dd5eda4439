"""Checks of a backbone: what its trunk computes in full, and what stands in for it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Final

import torch

from hetcache_core.policy.recipe import CachePolicy, ReusePoint
from hetcache_core.steps import ALL_SUB_LAYERS, Mode, Span, SubLayer
from hetcache_core.testing.case import BackboneCase
from hetcache_core.testing.comparing import (
    NotApplicableError,
    need,
    require,
    require_close,
    require_same,
    rounding_bound,
    subtraction_bound,
)
from hetcache_core.testing.replaying import (
    partial_settings,
    replays,
    require_counts,
    require_mode,
    require_repeats,
    rounding_of,
    subtraction_of,
)
from hetcache_core.testing.scripted import FULL_STEPS, BlockScript, LastFirst, scripted
from hetcache_core.testing.watch import watched_run

_FULL, _REUSE = Mode.FULL, Mode.REUSE


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
        policies.append(
            scripted(_FULL, partial=partial_settings(), selector=LastFirst(scored=True))
        )
    need(bool(policies), "neither sub-layers nor attention can be seen")
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
    for layout, repeats in replays(case, FULL_STEPS, 2):
        model = case.backbone.describe(case.make_pipeline(0))
        for repeat in repeats:
            require_counts(repeat, model.layers, len(model.control_layers), f"full, {layout}")


def check_reused_steps_run_no_block(case: BackboneCase) -> None:
    """A REUSE step calls neither a main block nor a control block."""
    for layout, (_, reused) in replays(case, scripted(_FULL, _REUSE), 2):
        require_mode(reused, _REUSE)
        require_counts(reused, 0, 0, f"reused, {layout}")


def check_reuse_repeats_the_full_step_on_the_same_inputs(case: BackboneCase) -> None:
    """REUSE right after FULL gives the same output again: nothing is counted twice or left out."""
    for layout, (full, reused) in replays(case, scripted(_FULL, _REUSE), 2):
        require_mode(reused, _REUSE)
        require_repeats(
            reused,
            full,
            subtraction_of(full),
            f"guidance {layout!r}, branch {full.record.branch!r}, reused against full",
            "Are control hints, which the stored residual holds already, added once more?",
        )


def check_reuse_between_front_and_back_blocks(case: BackboneCase) -> None:
    """With front and back blocks run, REUSE of the middle repeats the full step."""
    layers = case.backbone.describe(case.make_pipeline(0)).layers
    need(layers > 1, "the trunk has one block")
    for span in (Span(front=1), Span(back=1), Span(front=1, back=1)):
        for layout, (full, reused) in replays(case, scripted(_FULL, _REUSE, span=span), 2):
            require_mode(reused, _REUSE)
            require_repeats(
                reused,
                full,
                rounding_of(full),
                f"guidance {layout!r}, reused between {span.front} front and {span.back} back blocks",
            )
            require(
                reused.main == span.front + span.back,
                f"{reused.main} main blocks ran, {span.front + span.back} were asked for",
            )


def check_reused_outputs_repeat_the_full_call(case: BackboneCase) -> None:
    """With the whole model call reused, nothing of it runs and its output comes again."""
    need(case.features.output, "the whole model call cannot be left out")
    policy = scripted(_FULL, _REUSE, reuse_point=ReusePoint.OUTPUT)
    for layout, (full, reused) in replays(case, policy, 2):
        require_mode(reused, _REUSE)
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
    plain = dict(enumerate(replays(case, FULL_STEPS, 1)))
    for number, (layout, (probed,)) in enumerate(replays(case, scripted(_FULL, probe=1), 1)):
        require_counts(probed, model.layers, len(model.control_layers), f"probed, {layout}")
        _, (expected,) = plain[number]
        require_repeats(probed, expected, None, "a probed step against a plain one")


def check_reused_sub_layers_repeat_the_full_step(case: BackboneCase) -> None:
    """With constant inputs, stored sub-layer outputs stand in for computed ones."""
    need(case.features.sub_layers, "sub-layers cannot be seen")
    for part in (*((p,) for p in sorted(ALL_SUB_LAYERS)), tuple(ALL_SUB_LAYERS)):
        policy = CachePolicy(name="parts", blocks=BlockScript(parts=frozenset(part)))
        for layout, (full, reused) in replays(case, policy, 2):
            what = f"guidance {layout!r}, reused {', '.join(p.value for p in part)}"
            require_repeats(
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
    need(case.features.sub_layers and case.features.rows, "sub-layers do not run on some rows")
    # Self-attention is left out: a backbone may refuse it, since its keys need all rows anyway.
    for part in (SubLayer.CROSS_ATTENTION, SubLayer.FEED_FORWARD):
        blocks = BlockScript(parts=frozenset({part}), rows=torch.tensor([0, 2, 3]))
        policy = CachePolicy(name="rows", blocks=blocks)
        for layout, (full, reused) in replays(case, policy, 2):
            require_repeats(
                reused,
                full,
                rounding_of(full),
                f"guidance {layout!r}, {part.value} on three rows, the others reused",
            )


def check_reused_blocks_repeat_the_full_step(case: BackboneCase) -> None:
    """A reused block adds its stored residual, hint included, and runs no control block."""
    policy = CachePolicy(name="blocks", blocks=BlockScript(whole=True))
    for layout, (full, reused) in replays(case, policy, 2):
        require_counts(reused, 0, 0, f"reused block by block, {layout}")
        require_repeats(
            reused,
            full,
            rounding_of(full),
            f"guidance {layout!r}, reused block by block",
        )


def check_merged_and_separate_guidance_agree(case: BackboneCase) -> None:
    """A branch comes out the same, to rounding, whether it shares its call or not."""
    need({"merged", "separate"} <= case.features.guidance, "there is one layout with guidance")
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


TRUNK_CHECKS: Final[tuple[Callable[[BackboneCase], None], ...]] = (
    check_full_steps_are_the_bare_model,
    check_full_steps_that_store_are_the_bare_model,
    check_full_steps_run_every_block_once,
    check_reused_steps_run_no_block,
    check_reuse_repeats_the_full_step_on_the_same_inputs,
    check_reuse_between_front_and_back_blocks,
    check_reused_outputs_repeat_the_full_call,
    check_a_probed_block_is_not_run_again,
    check_reused_sub_layers_repeat_the_full_step,
    check_sub_layers_run_on_some_rows,
    check_reused_blocks_repeat_the_full_step,
    check_merged_and_separate_guidance_agree,
)
