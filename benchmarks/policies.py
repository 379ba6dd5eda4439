"""How much of the saved FLOPs arrives on the clock, policy by policy?

Runs the pipeline uncached and with every policy in alternation (A B C A B C …) and takes medians of the
denoising loop:

    python benchmarks/policies.py --output benchmarks/results/policies.csv

On the embedded model policies decide for themselves, and PSNR is against the uncached output. Models with
random weights replay the steps that were recorded on it (`--schedules`), so that what they would decide does
not matter. `efficiency` is the speed-up in seconds over the one in FLOPs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

from attrs import frozen
from harness import (
    Benchmark,
    Better,
    Bound,
    Report,
    Row,
    Watched,
    alternate,
    at_least,
    main,
    option,
)
from harness.loads import ModelOptions
from harness.models import EMBEDDED
from harness.options import count, names
from harness.schedules import Schedules, letters
from harness.subjects import Denoised, Subject
from harness.timing import MIB

from hetcache.quality.regions import compare
from hetcache.running.specs import PolicySpec, parse_policies
from hetcache_core import CachePolicy, ConfigError, UnsupportedBackboneError, discover
from hetcache_core.session import resolve_policy

NONE: Final = "none"
SCHEDULES: Final = Path(__file__).parent / "schedules" / "tiny-vace-20.json"
EFFICIENCY_LIMIT: Final = 0.9
"""Issue 5."""


@frozen(kw_only=True)
class PoliciesOptions(ModelOptions):
    """Options of this benchmark."""

    backbones: tuple[str, ...] = option((EMBEDDED,), doc="which models, by commas", parse=names)
    policies: tuple[PolicySpec, ...] = option(
        parse_policies("pab,teacache,hetcache,auto,auto@4x"),
        doc="policies, NAME[@3x][:setting=value] by commas",
        parse=parse_policies,
    )
    steps: int = option(
        20, doc="sampler steps; those of the schedules where they are replayed", parse=count
    )
    schedules: Path = option(SCHEDULES, doc="recorded schedules", parse=Path)  # noqa: RUF009 - declares a field
    record: Path | None = option(  # noqa: RUF009 - declares a field
        None, doc="write what the policies did on the embedded model", parse=Path
    )
    replay: bool = option(False, doc="replay schedules on the embedded model as well")


def run(options: PoliciesOptions) -> Report:
    """Measure every model."""
    rows: list[Row] = []
    bounds: list[Bound] = []
    replayed = None
    if options.record is not None and (options.replay or set(options.backbones) != {EMBEDDED}):
        raise ConfigError(
            f"Schedules are recorded on {EMBEDDED}, whose weights are trained",
            remedy=f"Record with --backbones {EMBEDDED} and without --replay.",
        )
    if options.replay or set(options.backbones) != {EMBEDDED}:
        replayed = _schedules(options)
    for subject in options.subjects():
        own = subject.name == EMBEDDED and not options.replay
        done = _runs(subject, options, None if own else replayed)
        found = _rows(subject, done, own=own)
        rows += found
        if len(found) > 1:
            bounds.append(_bound(subject, found[1:]))
        if options.record is not None:
            _record(options.record, subject, done, options.steps)
    return Report(rows=rows, bounds=bounds)


def _schedules(options: PoliciesOptions) -> Schedules:
    found = Schedules.load(options.schedules)
    if found.steps != options.steps:
        raise ConfigError(
            f"{options.schedules} has schedules of {found.steps} steps, not of {options.steps}",
            remedy=f"Measure with --steps {found.steps}, or record others with --record.",
        )
    return found


def _runs(
    subject: Subject, options: PoliciesOptions, schedules: Schedules | None
) -> dict[str, list[Denoised]]:
    registry, calls = discover(), {NONE: partial(subject.denoise, options.steps, guided=True)}
    model = subject.backbone.describe(subject.pipeline)
    for spec in options.policies:
        if str(spec) == NONE:
            continue
        policy: PolicySpec | CachePolicy = spec
        if schedules is not None:
            made, _ = resolve_policy(spec.name, spec.settings, spec.preset, model, registry)
            policy = schedules.replayed(str(spec), made)
        calls[str(spec)] = partial(subject.denoise, options.steps, policy, guided=True)
    subject.denoise(2, guided=True)
    refused: set[str] = set()

    def tried(name: str, call: Callable[[], Denoised]) -> Denoised | None:
        if name in refused:
            return None
        try:
            return call()
        except UnsupportedBackboneError as error:
            refused.add(name)
            print(f"{name} on {subject.name}: {error}", file=sys.stderr)
            return None

    runs = alternate(
        {name: partial(tried, name, call) for name, call in calls.items()},
        options.repeats,
        warm_up=False,
    )
    return {name: [r for r in own if r] for name, own in runs.items() if name not in refused}


def _rows(subject: Subject, runs: dict[str, list[Denoised]], *, own: bool) -> list[Row]:
    uncached = median(run.seconds for run in runs[NONE])
    rows = []
    for name, done in runs.items():
        seconds, trace = median(run.seconds for run in done), done[0].trace
        totals = None if trace is None else trace.totals()
        in_flops = 1.0 if totals is None else totals.flops_speedup
        quality = {"whole": "", "mask": ""}
        if own and name != NONE:
            measured = compare(
                done[0].frames,
                runs[NONE][0].frames,
                subject.request.mask,
                subject.backbone.geometry.size_multiple,
            )
            quality = {region: str(measured[region]) for region in quality}
        steps = (
            f"{len(done[0].laps_s)}/0/0"
            if totals is None
            else f"{totals.steps_full}/{totals.steps_partial}/{totals.steps_reused}"
        )
        row: Row = {
            "backbone": subject.name,
            "scale": subject.scale,
            "size": str(subject.size),
            "policy": name,
            "full/partial/reused": steps,
            "seconds": seconds,
            "speed-up": uncached / seconds,
            "in FLOPs": in_flops,
            "efficiency": uncached / seconds / in_flops,
            "PSNR, whole": quality["whole"],
            "PSNR, mask": quality["mask"],
            "cache MiB": 0.0 if totals is None else totals.peak_cache_bytes / MIB,
            "peak MiB": max(run.peak_mib for run in done),
        }
        rows.append(row)
    return rows


def _bound(subject: Subject, rows: list[Row]) -> Bound:
    efficiency, policy = min((float(row["efficiency"] or 0), str(row["policy"])) for row in rows)
    return at_least(
        f"efficiency, the least ({policy}), {subject.name} {subject.size}",
        efficiency,
        EFFICIENCY_LIMIT,
    )


def _record(path: Path, subject: Subject, runs: dict[str, list[Denoised]], steps: int) -> None:
    Schedules(
        backbone=subject.name,
        size=str(subject.size),
        steps=steps,
        policies={
            name: letters(done[0].trace.modes())
            for name, done in runs.items()
            if done[0].trace is not None and done[0].trace.steps == steps
        },
    ).save(path)


BENCHMARK: Final = Benchmark(
    name="policies",
    question="How much of the saved FLOPs arrives on the clock, policy by policy?",
    options=PoliciesOptions,
    run=run,
    keys=("backbone", "scale", "size", "policy"),
    watched={
        "speed-up": Watched(better=Better.HIGHER),
        "in FLOPs": Watched(better=Better.HIGHER, floor=0.01),
        "efficiency": Watched(better=Better.HIGHER),
    },
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
