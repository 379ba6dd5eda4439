"""What does caching itself cost?

Runs the engine around a trunk that computes nothing, at the size of a model and a clip, and each piece of it
alone, and holds the seconds against one full step of the bare pipeline:

    python benchmarks/overhead.py --output benchmarks/results/overhead.csv

A policy's `engine, per step` is the mean over a run of all steps, with the partition of the mask, the
choice of context and whatever partial and reused steps add and keep. The pieces tell how often a run does
them: a share of 0.01 that is done once in 50 steps costs 0.0002 of the run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any, Final

import torch
from attrs import frozen
from harness import (
    Benchmark,
    Better,
    Bound,
    Report,
    Row,
    Watched,
    alternate,
    at_most,
    main,
    measure,
    option,
)
from harness.idle import IdleRun, seconds_by_mode
from harness.loads import ModelOptions, sizes
from harness.options import count, names
from harness.sizes import ClipSize
from harness.subjects import Subject

from hetcache.running.specs import PolicySpec, parse_policies
from hetcache_core import (
    CacheStore,
    Mode,
    Role,
    RunInfo,
    SelectionRequest,
    TrunkCall,
    discover,
    relative_l1,
    resolve_policy,
    spread,
)
from hetcache_core.engine.active_rows import attention_scores
from hetcache_core.steps import WHOLE_TRUNK
from hetcache_core.store import Kind, Slot
from hetcache_policies.shared.partition import MaskPartitioner
from hetcache_policies.shared.selectors import GuidedClusterSelector

LARGE_TOKENS: Final = 14_040
LARGE_LIMIT: Final = 0.01
"""Of a full step, from 14,040 tokens on."""
SMALL_LIMIT: Final = 0.03
"""Of a full step, on the embedded backbone. Both are issue 5's."""
SCORED_QUERIES: Final = 512
CONTEXT_SHARE: Final = 0.3
"""HetCache's defaults with pruned keys."""
LEAST_CONTEXT: Final = 2
"""Where there are fewer context tokens, nothing can be chosen among them."""


@frozen(kw_only=True)
class OverheadOptions(ModelOptions):
    """Options of this benchmark."""

    backbones: tuple[str, ...] = option(("tiny-vace",), doc="which models", parse=names)
    sizes: tuple[ClipSize, ...] = option(
        (ClipSize(17, 384, 384), ClipSize(33, 480, 832)),
        doc="sizes of the clip, FxHxW by commas",
        parse=sizes,
    )
    policies: tuple[PolicySpec, ...] = option(
        parse_policies("every-nth,teacache,hetcache,auto,pab"),
        doc="policies whose engine is measured, NAME[@3x][:setting=value] by commas",
        parse=parse_policies,
    )
    steps: int = option(20, doc="steps of a run", parse=count)


def run(options: OverheadOptions) -> Report:
    """Measure every model."""
    rows: list[Row] = []
    bounds: list[Bound] = []
    for subject in options.subjects():
        found = _measured(subject, options)
        rows += found
        bounds.append(_bound(subject, found))
    return Report(rows=rows, bounds=bounds)


def _measured(subject: Subject, options: OverheadOptions) -> list[Row]:
    full_s = median(subject.denoise(1 + options.repeats).laps_s[1:])
    info, trunk, _ = subject.caught()
    rows = _engine(info, trunk, options)
    rows += _pieces(info, trunk, options)
    place: Row = {
        "backbone": subject.name,
        "scale": subject.scale,
        "size": str(subject.size),
        "tokens": info.grid.tokens,
    }
    whole: Row = {"piece": "full step, bare pipeline", "times": "every step", "seconds": full_s}
    return [
        {**place, **row, "share": float(row["seconds"] or 0) / full_s} for row in (whole, *rows)
    ]


def _engine(info: RunInfo, trunk: TrunkCall, options: OverheadOptions) -> list[Row]:
    """Run each policy around the trunk that computes nothing."""
    assert info.mask is not None  # noqa: S101 - for mypy: the edit has a mask
    idle = IdleRun(
        model=info.model,
        grid=info.grid,
        mask=info.mask,
        dtype=trunk.x.dtype,
        device=options.device,
    )
    nothing, registry, calls = idle.trunk(options.steps), discover(), {}
    for spec in options.policies:
        policy, _ = resolve_policy(spec.name, spec.settings, spec.preset, info.model, registry)
        speedup = spec.target_speedup
        calls[str(spec)] = partial(idle.run, nothing, policy, options.steps, speedup)
    rows: list[Row] = []
    for name, runs in alternate(calls, options.repeats).items():
        mean = median(sum(laps) / len(laps) for laps, _ in runs)
        rows.append({"piece": f"engine, per step: {name}", "times": "every step", "seconds": mean})
        seen: dict[Mode, list[float]] = {}
        for laps, trace in runs:
            for mode, found in seconds_by_mode(laps, trace).items():
                seen.setdefault(mode, []).extend(found)
        rows += [
            {"piece": f"engine, {mode.value} step: {name}", "times": "", "seconds": median(found)}
            for mode, found in seen.items()
        ]
    return rows


def _pieces(info: RunInfo, trunk: TrunkCall, options: OverheadOptions) -> list[Row]:
    """Time each piece alone."""
    calls = {**_choosing(info, trunk), **_looking(info, trunk), **_keeping(trunk)}
    with torch.inference_mode():
        measured = measure(
            {name: call for name, (_, call) in calls.items()}, options.repeats, options.device
        )
    return [
        {"piece": name, "times": calls[name][0], "seconds": found.seconds}
        for name, found in measured.items()
    ]


Calls = Mapping[str, tuple[str, Callable[[], Any]]]


def _choosing(info: RunInfo, trunk: TrunkCall) -> Calls:
    assert info.mask is not None  # noqa: S101 - for mypy: the edit has a mask
    mask, x = info.mask, trunk.x
    partition = MaskPartitioner(margin=1).partition(mask, info.grid)
    partitioner: Calls = {
        "partitioner": ("once", lambda: MaskPartitioner(margin=1).partition(mask, info.grid))
    }
    context = partition.of(Role.CONTEXT)
    if context.numel() < LEAST_CONTEXT:
        return partitioner
    queries = x[:1].index_select(1, spread(partition.of(Role.GENERATIVE), SCORED_QUERIES))
    scores = attention_scores(queries, x[:1], trunk.heads)
    request = SelectionRequest(
        partition=partition,
        count=max(1, round(CONTEXT_SHARE * context.numel())),
        scores=lambda: scores[context],
        features=lambda: x[0][context],
        seed=0,
        previous=None,
    )
    choices = "each choice of context"
    return {
        **partitioner,
        "selector, k-means and attention": (
            choices,
            lambda: GuidedClusterSelector().select(request),
        ),
        "attention scores": (choices, lambda: attention_scores(queries, x[:1], trunk.heads)),
    }


def _looking(info: RunInfo, trunk: TrunkCall) -> Calls:
    modulation = trunk.timestep_modulations(info.timesteps[:1])[0]
    before = trunk.modulated_input(modulation)

    def change() -> float:
        return float(relative_l1(trunk.modulated_input(modulation), before).item())

    steps = info.timesteps * 20  # a table is made for all steps of the run
    return {
        "signal, timestep modulation of 20 steps": (
            "once",
            lambda: trunk.timestep_modulations(steps[:20]),
        ),
        "signal, change of the modulated input": ("policies that look at it", change),
    }


def _keeping(trunk: TrunkCall) -> Calls:
    store, branch, x = CacheStore(), "cond", trunk.x
    slot, keys = Slot(Kind.RESIDUAL, WHOLE_TRUNK), Slot(Kind.SIGNAL, "keys")
    rows = torch.arange(0, x.shape[1], 5, device=x.device)
    some, after = x.index_select(1, rows), x + 1
    store.put_difference(branch, slot, after, x, step=0)
    return {
        "store, keep a residual": (
            "full steps",
            lambda: store.put_difference(branch, slot, after, x, step=0),
        ),
        "store, take a residual and add it": (
            "reused steps",
            lambda: x + store.get(branch, slot, like=x)[-1].value,
        ),
        "store, write a fifth of the rows": (
            "partial steps, and blocks with cached keys",
            lambda: store.write_rows(branch, slot, rows, some, step=0),
        ),
        "store, keep keys": (
            "blocks in full steps before partial ones",
            lambda: store.put(branch, keys, x, step=0),
        ),
        "gather a fifth of the rows": ("partial steps", lambda: x.index_select(1, rows)),
    }


def _bound(subject: Subject, rows: list[Row]) -> Bound:
    tokens = int(rows[0]["tokens"] or 0)
    limit = LARGE_LIMIT if tokens >= LARGE_TOKENS else SMALL_LIMIT
    shares = [
        (float(row["share"] or 0), str(row["piece"]))
        for row in rows
        if str(row["piece"]).startswith("engine, per step")
    ]
    share, piece = max(shares)
    return at_most(f"{piece} (the most) / full step, {subject.name} {subject.size}", share, limit)


BENCHMARK: Final = Benchmark(
    name="overhead",
    question="What does caching itself cost?",
    options=OverheadOptions,
    run=run,
    keys=("backbone", "scale", "size", "piece"),
    watched={"share": Watched(better=Better.LOWER, floor=0.003)},
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
