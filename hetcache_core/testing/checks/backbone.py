"""Checks of a backbone: what it tells of itself and of a run, and that it leaves no trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, Final

import torch
from attrs import evolve
from torch import Tensor

from hetcache_core.engine.loop import Engine
from hetcache_core.errors import HetCacheError, UnsupportedBackboneError
from hetcache_core.plugins.registry import Registry
from hetcache_core.policy.recipe import CachePolicy
from hetcache_core.records.trace import CallRecord, Trace
from hetcache_core.session import accelerate
from hetcache_core.steps import Mode, StepInfo
from hetcache_core.testing.case import BackboneCase
from hetcache_core.testing.comparing import (
    NotApplicableError,
    Snapshot,
    failing_block,
    raising,
    require,
    require_same,
)
from hetcache_core.testing.scripted import FULL_STEPS, ScriptedError, scripted
from hetcache_core.testing.watch import left_by_the_library, watched_run
from hetcache_core.tokens import mask_to_tokens

_REUSING: Final = scripted(Mode.FULL, Mode.REUSE)
_STEPS: Final = 3


def check_it_describes_the_model(case: BackboneCase) -> None:
    """``describe`` fits the modules of the pipeline, and ``accepts`` takes this pipeline only."""
    pipeline = case.make_pipeline(0)
    model = case.backbone.describe(pipeline)
    require(case.backbone.accepts(pipeline), "accepts refuses the pipeline of its own case")
    require(not case.backbone.accepts(object()), "accepts takes an object that is no pipeline")
    require(
        model.backbone == case.backbone.name,
        f"describe names the backbone {model.backbone!r}, it is {case.backbone.name!r}",
    )
    main, control = len(case.main_blocks(pipeline)), len(case.control_blocks(pipeline))
    require(model.layers == main, f"describe says {model.layers} layers, the case has {main}")
    require(
        len(model.control_layers) == control,
        f"describe says {len(model.control_layers)} control blocks, the case has {control}",
    )
    require(
        sorted(set(model.control_layers)) == list(model.control_layers)
        and all(0 <= layer < model.layers for layer in model.control_layers),
        f"control_layers {model.control_layers} must ascend within the {model.layers} blocks",
    )
    require(case.features.control == bool(control), "features.control does not fit the pipeline")
    require(model.width % model.heads == 0, f"width {model.width} in {model.heads} heads")


def check_it_announces_the_run(case: BackboneCase) -> None:
    """Steps, noise levels, branches, grid and mask reach the engine as the pipeline has them."""
    for layout in case.layouts:
        engine, _ = watched_run(case, FULL_STEPS, steps=_STEPS, layout=layout)
        require(len(engine.infos) == 1, f"one pipeline call began {len(engine.infos)} runs")
        info, what = engine.infos[0], f"guidance {layout!r}"
        require(info.steps == _STEPS, f"{what}: {info.steps} timesteps for {_STEPS} steps")
        require(len(info.sigmas) == _STEPS, f"{what}: {len(info.sigmas)} sigmas for {_STEPS} steps")
        geometry, grid = case.backbone.geometry, info.grid
        require(
            (grid.pixel_height, grid.pixel_width, grid.frame_stride)
            == (geometry.token_size, geometry.token_size, geometry.frame_stride),
            f"{what}: a token covers {grid.pixel_height}x{grid.pixel_width} pixels and "
            f"{grid.frame_stride} frames, the geometry says {geometry.token_size} and "
            f"{geometry.frame_stride}",
        )
        require(
            all(a > b for a, b in pairwise(info.timesteps))
            and 0 < info.timesteps[-1] <= info.timesteps[0] <= 1000,  # noqa: PLR2004 - the range of StepInfo
            f"{what}: timesteps {info.timesteps} must fall within (0, 1000]",
        )
        require(
            all(0 < sigma <= 1 for sigma in info.sigmas),
            f"{what}: sigmas {info.sigmas} must lie within (0, 1]",
        )
        require(engine.steps_ended == _STEPS, f"{what}: {engine.steps_ended} steps were ended")
        require(bool(engine.traces) and engine.trace.complete, f"{what}: the run did not end")
        calls = [(seen.call.step, seen.call.key) for seen in engine.seen]
        key = list(dict.fromkeys(key for _, key in calls))
        expected = [(step, k) for step in range(_STEPS) for k in key]
        require(calls == expected, f"{what}: the calls were {calls}")
        named = tuple(b.name for seen in engine.seen[: len(key)] for b in seen.call.branches)
        require(info.branches == named, f"{what}: branches {info.branches}, the calls hold {named}")
        branches = {"none": (1, 1), "separate": (2, 2), "merged": (1, 2)}[layout]
        require(
            (len(key), len(set(named))) == branches,
            f"{what}: calls {key} of branches {named}; {branches[0]} calls of {branches[1]} "
            "branches were expected",
        )


def check_the_mask_reaches_the_engine(case: BackboneCase) -> None:
    """The pipeline's own mask arrives in pixels and covers some tokens but not all."""
    if not case.features.mask:
        raise NotApplicableError("the mask does not reach the engine")
    engine, _ = watched_run(case, FULL_STEPS, steps=1, layout=case.layouts[0])
    info = engine.infos[0]
    mask = info.mask
    if mask is None:
        require(False, "features.mask is true but the run has none")
        return
    require(mask.dtype is torch.bool, f"the mask is {mask.dtype}, not bool")
    tokens = mask_to_tokens(mask, info.grid)  # raises where the sizes do not fit
    share = float(tokens.float().mean())
    require(0 < share < 1, f"the case's mask covers {share:.0%} of the tokens; some are needed")


def check_signals_are_fp32_and_know_the_timestep(case: BackboneCase) -> None:
    """Signals have the documented shapes, are fp32, finite, and differ between timesteps."""
    engine, _ = watched_run(case, FULL_STEPS, steps=1, layout=case.layouts[0])
    trunk = engine.seen[0].trunk
    if trunk is None:
        raise NotApplicableError("the trunk was not entered")
    tokens = engine.infos[0].grid.tokens
    width = trunk.x.shape[2]
    embedding = trunk.timestep_embeddings((900.0, 899.5, 100.0))
    modulation = trunk.timestep_modulations((900.0, 899.5, 100.0))
    modulated = trunk.modulated_input(modulation[0])
    for name, signal, shape in (
        ("trunk input", trunk.x.float(), (trunk.x.shape[0], tokens, width)),
        ("timestep_embeddings", embedding, (3, embedding.shape[-1])),
        ("timestep_modulations", modulation, (3, 6 * width)),
        ("modulated_input", modulated, tuple(trunk.x.shape)),
    ):
        require(tuple(signal.shape) == shape, f"{name} is {tuple(signal.shape)}, not {shape}")
        require(signal.dtype is torch.float32, f"{name} is {signal.dtype}, not float32")
        require(bool(signal.isfinite().all()), f"{name} is not finite")
    for name, rows in (("embedding", embedding), ("modulation", modulation)):
        require(
            len({tuple(row.tolist()) for row in rows}) == len(rows),
            f"the {name}s of timesteps 900, 899.5 and 100 are equal: is the timestep rounded?",
        )
    first, other = modulated, trunk.modulated_input(modulation[2])
    require(not torch.equal(first, other), "modulated_input does not depend on the modulation")


def check_rows_are_gathered(case: BackboneCase) -> None:
    """A view over some rows holds those rows of the trunk's input."""
    if not case.features.rows:
        raise NotApplicableError("blocks do not run on some rows")
    engine, _ = watched_run(case, FULL_STEPS, steps=1, layout=case.layouts[0])
    trunk = engine.seen[0].trunk
    if trunk is None:
        raise NotApplicableError("the trunk was not entered")
    require_same(trunk.view(None).x, trunk.x, "a view of all rows")
    rows = torch.arange(0, trunk.x.shape[1], 3)
    require_same(trunk.view(rows).x, trunk.x[:, rows], "a view of every third row")


def check_a_session_leaves_the_pipeline_as_it_was(case: BackboneCase) -> None:
    """After a session the pipeline has its own attributes, weights, hooks and classes again."""
    pipeline = case.make_pipeline(0)
    bare = case.run(pipeline, _STEPS, case.layouts[-1], 0)
    before = Snapshot.of(pipeline)
    for policy in (FULL_STEPS, _REUSING):
        watched_run(case, policy, steps=_STEPS, layout=case.layouts[-1], pipeline=pipeline)
        before.require_unchanged(pipeline, f"after a session with {policy.name}")
    again = case.run(pipeline, _STEPS, case.layouts[-1], 0)
    require_same(again, bare, "the bare pipeline after a session")


def check_an_error_leaves_the_pipeline_as_it_was(case: BackboneCase) -> None:
    """So it does after an error in the policy, in a block or in the caller's own function."""
    pipeline, layout = case.make_pipeline(0), case.layouts[-1]
    bare = case.run(pipeline, _STEPS, layout, 0)
    before = Snapshot.of(pipeline)
    error = ScriptedError("raised on purpose")
    left = left_by_the_library(case, layout)

    def fail(step: StepInfo, _records: Sequence[CallRecord]) -> None:
        if step.index == 1:
            raise error

    def run(policy: CachePolicy, **options: Any) -> None:
        with accelerate(pipeline, policy, backbone=case.backbone, registry=Registry(), **options):
            case.run(pipeline, _STEPS, layout, 0)

    block = case.main_blocks(pipeline)[-1]
    with raising(ScriptedError, "an error in the policy"):
        run(scripted(Mode.FULL, raises_at=1))
    _require_restored(case, pipeline, before, bare, left, "after an error in the policy")
    with raising(ScriptedError, "an error in on_step"):
        run(FULL_STEPS, on_step=fail)
    _require_restored(case, pipeline, before, bare, left, "after an error in on_step")
    with raising(ScriptedError, "an error in a block"), failing_block(block, 1, error):
        run(FULL_STEPS)
    _require_restored(case, pipeline, before, bare, left, "after an error in a block")


def _require_restored(
    case: BackboneCase,
    pipeline: Any,
    before: Snapshot,
    bare: Tensor,
    left: frozenset[str],
    when: str,
) -> None:
    before.require_unchanged(pipeline, when, but=left)
    again = case.run(pipeline, _STEPS, case.layouts[-1], 0)
    require_same(again, bare, f"the bare pipeline {when}")


def check_a_session_goes_on_after_an_error(case: BackboneCase) -> None:
    """A run that broke off leaves nothing to the next one of the same session."""
    layout = case.layouts[-1]
    _, expected = watched_run(case, _REUSING, steps=_STEPS, layout=layout)
    pipeline = case.make_pipeline(0)
    block = case.main_blocks(pipeline)[-1]
    error = ScriptedError("raised on purpose")
    with accelerate(pipeline, _REUSING, backbone=case.backbone, registry=Registry()):
        with raising(ScriptedError, "an error in a block"), failing_block(block, 1, error):
            case.run(pipeline, _STEPS, layout, 0)
        result = case.run(pipeline, _STEPS, layout, 0)
    require_same(result, expected, "the run after one that broke off")


def check_two_runs_in_a_row_are_identical(case: BackboneCase) -> None:
    """Within a session a second run repeats the first; nothing of a run outlives it."""
    for layout in case.layouts:
        pipeline, results, ended = case.make_pipeline(0), [], list[Trace]()
        with accelerate(
            pipeline, _REUSING, backbone=case.backbone, registry=Registry(), on_run=ended.append
        ):
            results.append(case.run(pipeline, _STEPS, layout, 0))
            case.run(pipeline, _STEPS + 1, layout, 1)
            results.append(case.run(pipeline, _STEPS, layout, 0))
        require_same(results[1], results[0], f"guidance {layout!r}, the run repeated")
        count = len(ended)
        require(count == len(results) + 1, f"three runs left {count} traces")


def check_sessions_one_after_the_other_do_not_see_each_other(case: BackboneCase) -> None:
    """A session does what it does on a fresh pipeline, whatever session was there before."""
    layout, pipeline = case.layouts[-1], case.make_pipeline(0)
    for policy in (_REUSING, FULL_STEPS, _REUSING):
        _, expected = watched_run(case, policy, steps=_STEPS, layout=layout)
        _, result = watched_run(case, policy, steps=_STEPS, layout=layout, pipeline=pipeline)
        require_same(result, expected, f"{policy.name} after other sessions")


def check_pipelines_in_two_threads_do_not_see_each_other(case: BackboneCase) -> None:
    """Two pipelines with two policies at once come out as they do alone."""
    layout = case.layouts[-1]
    jobs = [(_REUSING, 0), (FULL_STEPS, 1), (_REUSING, 1), (FULL_STEPS, 0)]

    # Made beforehand: random weights usually come from torch's one global generator.
    pipelines = [case.make_pipeline(seed) for _, seed in jobs]

    def run(job: tuple[CachePolicy, int], pipeline: Any) -> Tensor:
        return watched_run(case, job[0], steps=_STEPS, layout=layout, pipeline=pipeline)[1]

    alone = [run(*each) for each in zip(jobs, pipelines, strict=True)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(run, jobs, pipelines))
    for (policy, seed), expected, result in zip(jobs, alone, together, strict=True):
        require_same(result, expected, f"{policy.name} on pipeline {seed}, beside another thread")


def check_a_second_session_on_a_pipeline_is_refused(case: BackboneCase) -> None:
    """While a session is active, another one on its pipeline is refused and does no harm."""
    layout, pipeline = case.layouts[-1], case.make_pipeline(0)
    _, expected = watched_run(case, _REUSING, steps=_STEPS, layout=layout)
    engine = Engine(policy=_REUSING)
    with case.backbone.attach(pipeline, engine):
        with (
            raising(HetCacheError, "a second session on the pipeline"),
            case.backbone.attach(pipeline, Engine(policy=FULL_STEPS)),
        ):
            pass
        result = case.run(pipeline, _STEPS, layout, 0)
    require_same(result, expected, "the first session after a second one was refused")


def check_the_policy_may_take_fewer_steps(case: BackboneCase) -> None:
    """The engine is asked how many steps the sampler takes, and the sampler takes those."""
    if not case.features.sampler:
        raise NotApplicableError("the number of sampler steps cannot be changed")
    halved = evolve(FULL_STEPS, name="every other step", sampler_share=0.5)
    engine, result = watched_run(case, halved, steps=4, layout=case.layouts[-1])
    asked, taken = engine.trace.requested_steps, engine.trace.steps
    require((asked, taken) == (4, 2), f"of 4 steps, {asked} were asked for and {taken} taken")
    pipeline = case.make_pipeline(0)
    bare = case.run(pipeline, 2, case.layouts[-1], 0)
    require_same(result, bare, "4 steps halved against the bare pipeline with 2")


def check_a_missing_feature_is_refused(case: BackboneCase) -> None:
    """A policy that needs what the backbone lacks is refused before anything runs."""
    pipeline = case.make_pipeline(0)
    policy = evolve(FULL_STEPS, name="asks", features=frozenset({"second_sight"}))
    with raising(UnsupportedBackboneError, "a policy that needs an unknown feature"):
        accelerate(pipeline, policy, backbone=case.backbone, registry=Registry())


ATTACH_CHECKS: Final[tuple[Callable[[BackboneCase], None], ...]] = (
    check_it_describes_the_model,
    check_it_announces_the_run,
    check_the_mask_reaches_the_engine,
    check_signals_are_fp32_and_know_the_timestep,
    check_rows_are_gathered,
    check_a_session_leaves_the_pipeline_as_it_was,
    check_an_error_leaves_the_pipeline_as_it_was,
    check_a_session_goes_on_after_an_error,
    check_two_runs_in_a_row_are_identical,
    check_sessions_one_after_the_other_do_not_see_each_other,
    check_pipelines_in_two_threads_do_not_see_each_other,
    check_a_second_session_on_a_pipeline_is_refused,
    check_the_policy_may_take_fewer_steps,
    check_a_missing_feature_is_refused,
)
