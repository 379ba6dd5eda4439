"""Checks of a policy: what it decides, what it keeps, and that its runs do not mix."""

from __future__ import annotations

import json
import math
import pickle
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, cast

import attrs
import torch
from attrs import evolve, fields, frozen
from torch import Tensor

from hetcache_core.backbone import Features
from hetcache_core.errors import ConfigError
from hetcache_core.policy import CachePolicy, PolicyRecipe
from hetcache_core.settings import build, describe
from hetcache_core.steps import Mode
from hetcache_core.store import StoreSettings
from hetcache_core.testing.case import BackboneCase
from hetcache_core.testing.comparing import (
    Snapshot,
    failing_block,
    raising,
    require,
    require_same,
)
from hetcache_core.testing.running import NotApplicableError
from hetcache_core.testing.scripted import FULL_STEPS, ScriptedError
from hetcache_core.testing.watch import BlockCounter, WatchedEngine, watched_run
from hetcache_core.tokens import Role, SelectionRequest, mask_to_tokens
from hetcache_core.trace import CallRecord, Trace

if TYPE_CHECKING:
    from attrs import AttrsInstance

_STEPS: Final = 8
_LENGTHS: Final = (1, 2, 8, 20)
_PRESETS: Final = ("quality", "balanced", "fast")


@frozen(eq=False, kw_only=True)
class PolicySubject:
    """A policy and the backbone that it is tested on.

    Attributes:
        name: what failures are reported under.
        make: makes the policy, the same one each time.
        case: the backbone.
    """

    name: str
    make: Callable[[], PolicyRecipe | CachePolicy]
    case: BackboneCase

    @property
    def recipe(self) -> PolicyRecipe:
        """The recipe.

        Raises:
            NotApplicableError: the policy was composed by hand.
        """
        made = self.make()
        if isinstance(made, CachePolicy):
            raise NotApplicableError("the policy was composed by hand and has no recipe")
        return made

    @property
    def layout(self) -> str:
        """The guidance layout with the most calls that the backbone carries."""
        return self.case.layouts[-1]

    def compose(self) -> CachePolicy:
        """Compose the policy for the case's model.

        Raises:
            NotApplicableError: the backbone lacks what the policy needs.
        """
        made = self.make()
        if not isinstance(made, CachePolicy):
            made = made.compose(self.case.backbone.describe(self.case.make_pipeline(0)))
        missing = self.case.features.missing(made.needs())
        if missing:
            raise NotApplicableError(f"{self.case.name} lacks {', '.join(missing)}")
        return made

    def run(self, steps: int = _STEPS, **options: Any) -> tuple[WatchedEngine, Tensor]:
        """Run the policy; options as ``watched_run`` takes them."""
        options = {"layout": self.layout, **options}
        return watched_run(self.case, self.compose(), steps=steps, **options)


def check_the_recipe_is_a_value(subject: PolicySubject) -> None:
    """A recipe is a frozen attrs value: equal to another one, hashable, pickled whole."""
    recipe, again = subject.recipe, subject.make()
    require(attrs.has(type(recipe)), f"{type(recipe).__name__} is no attrs class")
    require(recipe == again, "two recipes made alike are not equal")
    require(hash(recipe) == hash(again), "two equal recipes have different hashes")
    require(pickle.loads(pickle.dumps(recipe)) == recipe, "a pickled recipe comes back changed")  # noqa: S301 - our own bytes
    for text in ("name", "summary", "source"):
        value = getattr(type(recipe), text, None)
        require(isinstance(value, str) and bool(value.strip()), f"{text} is {value!r}, not a text")


def check_the_settings_are_described(subject: PolicySubject) -> None:
    """Every setting says what it does, and the recipe is built again from its own settings."""
    recipe = subject.recipe
    for info in describe(type(recipe)):
        require(bool(info.doc), f"setting {info.name!r} does not say what it does")
    values = attrs.asdict(cast("AttrsInstance", recipe), recurse=False)
    built = build(type(recipe), values, where=f"policy {subject.name}")
    require(built == recipe, f"built from its own settings, the recipe is {built}")


def check_the_presets_compose(subject: PolicySubject) -> None:
    """Each preset that the policy has names settings that it takes."""
    recipe = subject.recipe
    kind, own = type(recipe), attrs.asdict(cast("AttrsInstance", recipe), recurse=False)
    model = subject.case.backbone.describe(subject.case.make_pipeline(0))
    for preset in _PRESETS:
        try:
            values = kind.preset(preset, model)
        except ConfigError:
            continue  # a policy need not have presets
        build(kind, {**own, **values}, where=f"preset {preset}").compose(model)


def check_it_composes_for_other_models(subject: PolicySubject) -> None:
    """It composes without a control branch, with a few blocks and with many, always alike."""
    recipe = subject.recipe
    model = subject.case.backbone.describe(subject.case.make_pipeline(0))
    for layers, control in ((model.layers, ()), (2, (0,)), (30, tuple(range(0, 30, 2)))):
        other = evolve(model, layers=layers, control_layers=control)
        first, second = recipe.compose(other), recipe.compose(other)
        require(
            first == second,
            f"composed twice for {layers} blocks, two policies come out",
            "Pieces are frozen attrs values without tensors.",
        )
        unknown = first.needs() - {f.name for f in fields(Features)}
        require(not unknown, f"it needs the unknown features {sorted(unknown)}")


def check_it_runs_any_number_of_steps(subject: PolicySubject) -> None:
    """Runs of 1, 2, 8 and 20 steps end, with a finite result and a record for every call."""
    for steps in _LENGTHS:
        engine, result = subject.run(steps, layout=subject.case.layouts[0])
        trace = engine.trace
        require(trace.complete, f"the run of {steps} steps did not end")
        require(
            0 < trace.steps <= steps == trace.requested_steps,
            f"of {steps} steps, {trace.requested_steps} were asked for and {trace.steps} taken",
        )
        recorded = len(trace.modes())
        require(recorded == trace.steps, f"{recorded} of {trace.steps} steps are recorded")
        require(bool(result.isfinite().all()), f"the result of {steps} steps is not finite")
        missing = [record.step for record in trace.records if not record.reason]
        require(not missing, f"steps {missing} of {steps} have no reason")


def check_nothing_is_used_before_it_was_computed(subject: PolicySubject) -> None:
    """The first call of every branch runs in full, and so does the first one of every expert."""
    for layout in subject.case.layouts:
        engine, _ = subject.run(layout=layout)
        first: dict[tuple[str, str], CallRecord] = {}
        for record in engine.trace.records:
            first.setdefault((record.branch, record.expert), record)
        for (branch, _), record in first.items():
            require(
                record.mode is Mode.FULL and record.parts_reused == 0,
                f"guidance {layout!r}, branch {branch!r} begins with {record.mode}",
            )


def check_two_runs_decide_alike(subject: PolicySubject) -> None:
    """One composed policy decides a second run as it did the first, and so does a fresh one."""
    policy = subject.compose()
    runs = [
        watched_run(subject.case, policy, steps=_STEPS, layout=subject.layout),
        watched_run(subject.case, policy, steps=_STEPS, layout=subject.layout),
        subject.run(),
    ]
    (first, result), *others = runs
    for engine, other in others:
        _require_same_decisions(engine.trace, first.trace, "run again")
        require_same(other, result, "the result of the same run again")


def check_deciding_changes_nothing(subject: PolicySubject) -> None:
    """After a run the policy is what it was; what changes from step to step is in deciders."""
    policy = subject.compose()
    before = subject.compose()
    require(policy == before, "composed twice, two policies come out")
    watched_run(subject.case, policy, steps=_STEPS, layout=subject.layout)
    require(
        policy == before,
        "a run has changed the policy",
        "Keep what changes in the decider that begin() makes.",
    )


def check_the_trace_is_read_back(subject: PolicySubject) -> None:
    """A trace that was written as JSON comes back with every record."""
    engine, _ = subject.run()
    text = json.dumps(engine.trace.to_dict())
    back = Trace.from_dict(json.loads(text))
    require(back.records == engine.trace.records, "records read back differ from those written")
    require(json.dumps(back.to_dict()) == text, "a trace read back is written differently")


def check_the_totals_add_up(subject: PolicySubject) -> None:
    """Totals are sums over the records, and the trace counts the blocks that really run."""
    pipeline, counter = subject.case.make_pipeline(0), BlockCounter()
    with counter.counting(subject.case, pipeline):
        engine, _ = subject.run(pipeline=pipeline)
    trace, totals = engine.trace, engine.trace.totals()
    modes = Counter(trace.modes())
    counted = (totals.steps_full, totals.steps_partial, totals.steps_reused)
    expected = (modes[Mode.FULL], modes[Mode.PARTIAL], modes[Mode.REUSE])
    require(
        counted == expected, f"totals say {counted} full, partial, reused steps, not {expected}"
    )
    require(sum(counted) == trace.steps, f"{sum(counted)} of {trace.steps} steps are counted")
    require(totals.calls == len(engine.seen), f"{totals.calls} of {len(engine.seen)} calls counted")
    require(
        totals.flops == sum(r.flops for r in trace.records) > 0,
        f"totals say {totals.flops:,} FLOPs, which is not the sum over the calls",
    )
    main = sum(r.blocks_run for r in trace.records)
    control = sum(r.control_run for r in trace.records)
    whole = not any(r.parts_reused for r in trace.records)
    # The blocks are counted by one sub-layer, which may be reused in a block that runs in part.
    fits = (
        (main, control) == (counter.main, counter.control)
        if whole
        else main >= counter.main and control >= counter.control
    )
    require(
        fits,
        f"the trace says that {main} main and {control} control blocks ran; it was {counter.main} "
        f"and {counter.control}",
    )


def check_branches_do_not_mix(subject: PolicySubject) -> None:
    """Whichever branch comes first in a step does what it does when the other never comes.

    The first branch decides for both, by what it sees, so the check is made in both orders.
    """
    if "separate" not in subject.case.features.guidance:
        raise NotApplicableError("the branches share their calls")
    both, _ = subject.run(layout="separate")
    pinned = both.outputs
    first, second = dict.fromkeys(key for _, key in pinned)
    swapped, _ = subject.run(layout="separate", pinned=pinned, reverse=True)
    for engine, branch, order in (
        (both, first, f"{first} before {second}"),
        (swapped, second, f"{second} before {first}"),
    ):
        alone, _ = subject.run(layout="separate", only=frozenset({branch}), pinned=pinned)
        for key, output in alone.outputs.items():
            require_same(
                engine.outputs[key],
                output,
                f"step {key[0]}, branch {branch!r}, {order}, against the branch alone",
                "Key all state by the branch.",
            )


def check_guidance_layouts_decide_alike(subject: PolicySubject) -> None:
    """Steps do the same whether the branches share their calls or not."""
    if not {"merged", "separate"} <= subject.case.features.guidance:
        raise NotApplicableError("there is one layout with guidance")
    separate, _ = subject.run(layout="separate")
    merged, _ = subject.run(layout="merged")
    modes = [[str(mode) for mode in e.trace.modes()] for e in (merged, separate)]
    require(modes[0] == modes[1], f"merged: {modes[0]}; separate: {modes[1]}")


def check_the_bytes_are_those_held(subject: PolicySubject) -> None:
    """Bytes in the trace are those of the tensors held; a finished run holds nothing."""
    engine, _ = subject.run()
    for record, seen in zip(engine.trace.records, engine.seen, strict=True):
        require(
            record.cache_bytes == seen.held_bytes,
            f"step {record.step}, branch {record.branch!r}: the trace says {record.cache_bytes:,} "
            f"bytes, the tensors take {seen.held_bytes:,}",
        )
    most, peak = max(s.held_bytes for s in engine.seen), engine.trace.peak_cache_bytes
    require(peak >= most, f"the peak is {peak:,} bytes, {most:,} were held")
    require(not engine.running, "the run is still going on after its last step")


def check_it_runs_with_a_smaller_cache(subject: PolicySubject) -> None:
    """With a bfloat16 cache it runs to a finite end and holds fewer bytes."""
    full, _ = subject.run()
    small, result = subject.run(store_settings=StoreSettings(dtype="bfloat16"))
    require(bool(result.isfinite().all()), "the result with a bfloat16 cache is not finite")
    if _modes(full.trace) == _modes(small.trace):
        kept, before = small.trace.peak_cache_bytes, full.trace.peak_cache_bytes
        require(kept < before or before == 0, f"{kept:,} bytes in bfloat16, {before:,} in float32")


def check_the_host_waits_once_a_step(subject: PolicySubject) -> None:
    """A decision brings at most one number, or one batch of numbers, to the host a step."""
    engine, _ = subject.run()
    reads: Counter[int] = Counter()
    for record in engine.trace.records:
        reads[record.step] += record.host_reads
    step, most = max(reads.items(), key=lambda item: item[1])
    require(most <= 1, f"step {step} read {most} numbers one by one", "Use signals.read_many.")


def check_the_pipeline_is_left_as_it_was(subject: PolicySubject) -> None:
    """After a run, and after one that broke off, the pipeline is what it was."""
    case, pipeline = subject.case, subject.case.make_pipeline(0)
    bare = case.run(pipeline, _STEPS, subject.layout, 0)
    before = Snapshot.of(pipeline)
    subject.run(pipeline=pipeline)
    before.require_unchanged(pipeline, "after a run")
    error = ScriptedError("raised on purpose")
    block = case.main_blocks(pipeline)[0]
    with raising(ScriptedError, "an error in a block"), failing_block(block, 1, error):
        subject.run(pipeline=pipeline)
    before.require_unchanged(pipeline, "after a run that broke off")
    require_same(
        case.run(pipeline, _STEPS, subject.layout, 0), bare, "the bare pipeline afterwards"
    )


def check_one_policy_serves_two_threads(subject: PolicySubject) -> None:
    """One composed policy in two runs at once does in each what it does alone."""
    case, policy = subject.case, subject.compose()
    pipelines = [case.make_pipeline(seed) for seed in range(2)]

    def run(pipeline: Any) -> Tensor:
        _, result = watched_run(
            case, policy, steps=_STEPS, layout=subject.layout, pipeline=pipeline
        )
        return result

    alone = [run(pipeline) for pipeline in pipelines]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(run, pipelines))
    for expected, result in zip(alone, together, strict=True):
        require_same(result, expected, "a run beside another one with the same policy")


def check_the_roles_cover_the_mask(subject: PolicySubject) -> None:
    """Every token has a role: masked ones are generative, those before the video pinned."""
    policy = subject.compose()
    if policy.partitioner is None:
        raise NotApplicableError("the policy gives tokens no roles")
    engine, _ = watched_run(subject.case, FULL_STEPS, steps=1, layout=subject.layout)
    info = engine.infos[0]
    if info.mask is None:
        raise NotApplicableError("the run has no mask")
    for mask in (info.mask, torch.zeros_like(info.mask), torch.ones_like(info.mask)):
        for grid in (info.grid, evolve(info.grid, prefix=3)):
            partition = policy.partitioner.partition(mask, grid)
            counts = {role.name: partition.count(role) for role in Role}
            require(
                partition.tokens == grid.tokens == sum(counts.values()),
                f"{grid.tokens} tokens have the roles {counts}",
            )
            pinned = partition.of(Role.PINNED)
            require(
                torch.equal(pinned, torch.arange(grid.prefix)),
                f"of {grid.prefix} tokens before the video, {pinned.tolist()} are pinned",
            )
            masked = mask_to_tokens(mask, grid).flatten().nonzero().flatten() + grid.prefix
            require(
                torch.equal(partition.of(Role.GENERATIVE), masked),
                f"{len(masked)} tokens are masked, {counts['GENERATIVE']} are generative",
            )


def check_the_selector_orders_all_context(subject: PolicySubject) -> None:
    """The selector orders all context tokens, the same way each time, whatever the count."""
    policy = subject.compose()
    if policy.selector is None or policy.partitioner is None:
        raise NotApplicableError("the policy selects no context")
    engine, _ = watched_run(subject.case, FULL_STEPS, steps=1, layout=subject.layout)
    info, width = engine.infos[0], engine.infos[0].model.width
    if info.mask is None:
        raise NotApplicableError("the run has no mask")
    partition = policy.partitioner.partition(info.mask, info.grid)
    context = partition.count(Role.CONTEXT)
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(context, generator=generator)
    features = torch.randn(context, width, generator=generator)
    for count in {1, math.ceil(context / 3), context - 1} - {0}:
        request = SelectionRequest(
            partition=partition,
            count=count,
            scores=scores.clone,
            features=features.clone,
            seed=0,
        )
        order = policy.selector.select(request).order
        require(
            sorted(order.tolist()) == list(range(context)),
            f"the order of {count} out of {context} context tokens is no permutation of all",
        )
        again = policy.selector.select(request).order
        require(torch.equal(order, again), "the same request gives another order the second time")


def _modes(trace: Trace) -> list[Mode]:
    return [record.mode for record in trace.records]


def _require_same_decisions(actual: Trace, expected: Trace, what: str) -> None:
    for mine, theirs in zip(actual.records, expected.records, strict=True):
        require(
            evolve(mine, seconds=theirs.seconds) == theirs,
            f"{what}, step {mine.step} of branch {mine.branch!r} is {mine.mode} ({mine.reason}), "
            f"not {theirs.mode} ({theirs.reason}), or differs in its counts",
        )


RECIPE_CHECKS: Final[tuple[Callable[[PolicySubject], None], ...]] = (
    check_the_recipe_is_a_value,
    check_the_settings_are_described,
    check_the_presets_compose,
    check_it_composes_for_other_models,
    check_deciding_changes_nothing,
    check_the_roles_cover_the_mask,
    check_the_selector_orders_all_context,
    check_it_runs_any_number_of_steps,
    check_two_runs_decide_alike,
    check_the_trace_is_read_back,
    check_it_runs_with_a_smaller_cache,
    check_the_host_waits_once_a_step,
    check_one_policy_serves_two_threads,
)
"""What can only be a policy's own fault."""

PAIR_CHECKS: Final[tuple[Callable[[PolicySubject], None], ...]] = (
    check_nothing_is_used_before_it_was_computed,
    check_the_totals_add_up,
    check_branches_do_not_mix,
    check_guidance_layouts_decide_alike,
    check_the_bytes_are_those_held,
    check_the_pipeline_is_left_as_it_was,
)
"""What a policy and a backbone can break together."""

POLICY_CHECKS: Final = (*RECIPE_CHECKS, *PAIR_CHECKS)
"""All checks of a policy, in the order in which they run."""
