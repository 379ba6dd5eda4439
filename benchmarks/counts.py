"""What would a card feel of a step: operations, bytes and FLOPs, counted without computing them?

Models of published size run without data, in the libraries' own loops, and everything that is dispatched is
counted. A card's roofline makes seconds of it: each operation takes the longer of its FLOPs and its bytes,
and a step the longer of that and the host's time for all of its operations:

    python benchmarks/counts.py --output benchmarks/results/counts.csv

Shares are of a full step of the bare pipeline. Steps and active rows are given, so that what a policy does to
decide is left out, but where only blocks are decided. Nothing here was measured on a card.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Final

from attrs import evolve, frozen
from harness import (
    Benchmark,
    Better,
    Bound,
    Options,
    Report,
    Row,
    Stopwatch,
    Watched,
    at_most,
    main,
    option,
)
from harness.counting import CARDS, Card, Cost, Meter, weightless
from harness.loads import sizes, steps_policy
from harness.options import choices, names, shares
from harness.sizes import ClipSize
from harness.subjects import Subject, make_subject

from hetcache.running.specs import PolicySpec, parse_policies
from hetcache_core import (
    CachePolicy,
    CallRecord,
    ConfigError,
    Guards,
    KVMode,
    Mode,
    StepInfo,
    discover,
    resolve_policy,
)
from hetcache_core.testing.scripted import Script

SIZES: Final[Mapping[str, ClipSize]] = {
    "": ClipSize(33, 480, 832),
    "ltx-video": ClipSize(25, 512, 704),
}
"""14,040 tokens, and 1,408 of LTX-Video; "" holds for the others."""

TURN: Final = (Mode.FULL, Mode.FULL, Mode.PARTIAL, Mode.REUSE, Mode.FULL)
"""Two full steps make a line, and the one after a reused step pays back where a policy does."""

OPERATIONS_LIMIT: Final = 1.05
"""Operations of a partial step, of the bare full step's."""
BYTES_LIMIT: Final = 1.25
"""Bytes share of a partial step, of its share of rows."""
REUSE_LIMIT: Final = 80
"""Operations of a reused step. All three are issue 18's."""


@frozen(kw_only=True)
class CountsOptions(Options):
    """Options of this benchmark."""

    dtype: str = option("bfloat16", doc="dtype of weights and activations")
    backbones: tuple[str, ...] = option(
        ("wan-vace", "wan-vace-diffusers", "ltx-video"), doc="which models, by commas", parse=names
    )
    scale: str = option("published", doc="size of the models: tiny, small, published")
    sizes: tuple[ClipSize, ...] = option(
        (), doc="sizes of the clip, FxHxW by commas; none takes published ones", parse=sizes
    )
    shares: tuple[float, ...] = option(
        (0.1, 0.3), doc="shares of active tokens, by commas", parse=shares
    )
    keys: tuple[str, ...] = option(
        ("pruned", "cached"),
        doc="keys that active tokens see, by commas",
        parse=choices(*(mode.value for mode in KVMode)),
    )
    policies: tuple[PolicySpec, ...] = option(
        parse_policies("hetcache,auto,auto:partials=1,taylorseer,toca:score=random,pab"),
        doc="policies, NAME[:setting=value] by commas",
        parse=parse_policies,
    )
    card: str = option("h200", doc=f"whose roofline is taken: {', '.join(CARDS)}")


class _OverError(Exception):
    """Ends a run whose steps are counted: nothing can be decoded."""


class _Watch(Stopwatch):
    """Takes what was counted at the end of each step."""

    def __init__(self, meter: Meter, steps: int) -> None:
        super().__init__("cpu")
        self.meter, self.left, self.costs = meter, steps, list[Cost]()

    def mark(self) -> None:
        self.costs.append(self.meter.take())
        self.left -= 1
        if self.left < 0:
            raise _OverError


def run(options: CountsOptions) -> Report:
    """Count every model."""
    rows: list[Row] = []
    bounds: list[Bound] = []
    card = _card(options.card)
    for name in options.backbones:
        for size in options.sizes or (SIZES.get(name, SIZES[""]),):
            print(f"{name} {size}", file=sys.stderr, flush=True)
            with weightless():
                subject = make_subject(name, options.scale, size, "cpu", options.dtype)
            found = _counted(subject, options, card)
            rows += found
            bounds += trunk_bounds(found)
    return Report(rows=rows, bounds=bounds)


def _card(name: str) -> Card:
    if name not in CARDS:
        raise ConfigError(f"No card {name!r} is known", remedy=f"Use one of {', '.join(CARDS)}.")
    return CARDS[name]


def _counted(subject: Subject, options: CountsOptions, card: Card) -> list[Row]:
    calls: dict[str, CachePolicy | None] = {"bare": None}
    for keys in options.keys:
        for share in options.shares:
            policy = steps_policy(*TURN, share=share, keys=KVMode(keys))
            calls[f"{share:.0%} of the rows, keys {keys}"] = policy
    model, registry = subject.backbone.describe(subject.pipeline), discover()
    for spec in options.policies:
        made, _ = resolve_policy(spec.name, spec.settings, spec.preset, model, registry)
        calls[str(spec)] = _given_steps(made)
    whole: Cost | None = None
    rows = []
    for name, given in calls.items():
        for step, (cost, active) in _kinds(subject, given, card).items():
            whole = whole or cost
            rows.append(
                {
                    "backbone": subject.name,
                    "scale": subject.scale,
                    "size": str(subject.size),
                    "policy": name,
                    "step": step,
                    "rows share": active,
                    "operations": cost.operations,
                    "GB": cost.bytes / 1e9,
                    "TFLOP": cost.flops / 1e12,
                    "operations share": cost.operations / whole.operations,
                    "bytes share": cost.bytes / whole.bytes,
                    "FLOPs share": cost.flops / whole.flops,
                    f"{card.name} ms, predicted": 1e3 * cost.seconds(card),
                    "clock share, predicted": cost.seconds(card) / whole.seconds(card),
                }
            )
    return rows


def _given_steps(policy: CachePolicy) -> CachePolicy:
    if policy.step is None:
        return evolve(policy, guards=Guards())
    able = policy.partial is not None
    turn = tuple(mode for mode in TURN if able or mode is not Mode.PARTIAL)
    script = Script(turn, span=policy.spans[0])
    return evolve(policy, step=script, guards=Guards(), selector=None)


def _kinds(
    subject: Subject, policy: CachePolicy | None, card: Card
) -> dict[str, tuple[Cost, float | None]]:
    """Return the cost of each kind of step, and the share of rows that it ran.

    Of those that leave out blocks or sub-layers it is the cheapest, else the last one. The last step of a run
    is no example: it keeps nothing.
    """
    steps = 2 if policy is None else len(TURN) + 1
    seen = list[Sequence[CallRecord]]()

    def ended(_step: StepInfo, records: Sequence[CallRecord]) -> None:
        seen.append(records)

    meter = Meter(card)
    watch = _Watch(meter, steps)
    try:
        with meter:
            subject.denoise(steps, policy, watch=watch, on_step=ended)
    except _OverError:
        pass
    kinds: dict[str, tuple[Cost, float | None]] = {}
    if policy is None:
        return {"full": (watch.costs[-1], None)}
    for cost, (record, *_) in zip(watch.costs[1:-1], seen, strict=False):
        parts = bool(record.parts_reused)
        kind = "blocks" if parts else record.mode.value
        active = record.active / record.tokens if record.mode is Mode.PARTIAL else None
        if not parts or kind not in kinds or cost.flops < kinds[kind][0].flops:
            kinds[kind] = (cost, active)
    return kinds


def trunk_bounds(rows: Sequence[Row]) -> list[Bound]:
    """Hold a model's steps to the bounds; bytes are those of the trunk, beyond a reused step's."""
    found = []
    around = {
        row["policy"]: float(row["bytes share"] or 0) for row in rows if row["step"] == "reuse"
    }
    for row in rows:
        where = f"{row['policy']}, {row['backbone']} {row['size']}"
        share, outside = float(row["bytes share"] or 0), around.get(row["policy"], 0.0)
        if row["step"] == "reuse":
            what, number, limit = "operations of a reused step", row["operations"], REUSE_LIMIT
            found.append(at_most(f"{what}, {where}", float(number or 0), limit))
        elif row["step"] == "partial":
            what, number = "operations of a partial step / full", row["operations share"]
            found.append(at_most(f"{what}, {where}", float(number or 0), OPERATIONS_LIMIT))
            spread = (share - outside) / (1 - outside) / float(row["rows share"] or 1)
            what = "bytes share / rows share of a partial step's trunk"
            found.append(at_most(f"{what}, {where}", spread, BYTES_LIMIT))
    return found


BENCHMARK: Final = Benchmark(
    name="counts",
    question="What would a card feel of a step: operations, bytes and FLOPs, counted?",
    options=CountsOptions,
    run=run,
    keys=("backbone", "scale", "size", "policy", "step"),
    watched={
        "operations share": Watched(better=Better.LOWER, floor=0.002),
        "bytes share": Watched(better=Better.LOWER, floor=0.002),
        "FLOPs share": Watched(better=Better.SAME, floor=0.001),
    },
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
