"""How does the cost grow with tokens and with steps?

Runs a small model at more and more tokens, and the engine around a trunk that computes nothing at more and
more tokens and steps, and fits exponents: a cost that grows as the k-th power of the tokens has exponent k.

    python benchmarks/growth.py --output benchmarks/results/growth.csv

Exponents are of the upper half of the range, where fixed costs no longer count.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Final

import numpy as np
import torch
from attrs import frozen
from harness import (
    Benchmark,
    Better,
    Options,
    Report,
    Row,
    Watched,
    alternate,
    at_most,
    main,
    option,
)
from harness.idle import IdleRun, seconds_by_mode
from harness.loads import steps_policy
from harness.options import numbers, shares
from harness.sizes import ClipSize
from harness.subjects import make_subject

from hetcache_core import Grid, Mode, ModelInfo, discover
from hetcache_core.session import resolve_policy

TURN: Final = (Mode.FULL, Mode.PARTIAL, Mode.REUSE)
FULL: Final = "full step"
BYTES: Final = "bytes of the cache"
ATTENTION: Final = 2.0
SLACK: Final = 0.15
"""What noise may add to an exponent."""


@frozen(kw_only=True)
class GrowthOptions(Options):
    """Options of this benchmark."""

    scale: str = option("tiny", doc="size of the model: tiny, small or published")
    tokens: tuple[int, ...] = option(
        (1_000, 2_000, 4_000, 8_000, 16_000, 32_000), doc="tokens, by commas", parse=numbers
    )
    steps: tuple[int, ...] = option(
        (25, 50, 100, 200, 400), doc="steps of the engine's runs, by commas", parse=numbers
    )
    shares: tuple[float, ...] = option((0.2,), doc="shares of active tokens", parse=shares)


Point = tuple[str, str, float, float]
"""What was measured, of what it is a function, where, and the cost there."""


def run(options: GrowthOptions) -> Report:
    """Measure points and fit exponents."""
    points = [*_of_tokens(options), *_engine_of_tokens(options), *_engine_of_steps(options)]
    rows: list[Row] = []
    exponents: dict[str, tuple[float, str]] = {}
    for cost, of in dict.fromkeys((cost, of) for cost, of, _, _ in points):
        own = [(at, seconds) for name, axis, at, seconds in points if (name, axis) == (cost, of)]
        exponent = fitted(own)
        rows += [
            {"cost": cost, "of": of, "at": at, "value": value, "exponent": exponent}
            for at, value in own
        ]
        exponents[cost] = exponent, f"exponent of {cost} in {of}, up to {own[-1][0]:,.0f}"
    bounds = [
        at_most(what, exponent, _limit(cost, exponents[FULL][0]) + SLACK)
        for cost, (exponent, what) in exponents.items()
    ]
    return Report(rows=rows, bounds=bounds)


def fitted(points: Sequence[tuple[float, float]]) -> float:
    """Fit an exponent to the upper half of the points, by least squares of the logarithms."""
    upper = points[-max(2, math.ceil(len(points) / 2)) :]
    if len(points) < 2:  # noqa: PLR2004 - a line takes two points
        return math.nan
    at, cost = np.log(np.array(upper)).T
    return float(np.polyfit(at, cost, 1)[0])


def _limit(cost: str, full: float) -> float:
    """Return the exponent that a cost may have.

    Seconds that follow the tokens are held to those of a full step: their share of it must not grow. On
    their own they would jump where tensors outgrow the processor's caches, and where the allocator begins
    to map them afresh each time.
    """
    if cost == FULL:
        return ATTENTION
    return 1.0 if cost == BYTES or "a run of" in cost else full


def clip_of(tokens: int) -> ClipSize:
    """Find a clip of about so many tokens of Wan: 16 x 16 pixels, and 9 latent frames."""
    frames = 9
    side = max(2, round(math.sqrt(tokens / frames)))
    wide = max(2, round(tokens / frames / side))
    return ClipSize(1 + 4 * (frames - 1), 16 * side, 16 * wide)


def _of_tokens(options: GrowthOptions) -> list[Point]:
    """Steps of a model, and what the store holds."""
    found: list[Point] = []
    for wanted in options.tokens:
        subject = make_subject(
            "wan-vace", options.scale, clip_of(wanted), options.device, options.dtype
        )
        calls = {
            f"{share:.0%}": partial(subject.denoise, 5, steps_policy(*TURN, share=share))
            for share in options.shares
        }
        seen: dict[str, list[float]] = {}
        held = 0
        for label, runs in alternate(calls, options.repeats, warm_up=False).items():
            for done in runs:
                assert done.trace is not None  # noqa: S101 - for mypy: a session ran
                tokens, held = done.trace.tokens, max(held, done.trace.peak_cache_bytes)
                for mode, laps in seconds_by_mode(done.laps_s, done.trace).items():
                    name = f"{mode.value} step"
                    name += f" of {label}" if mode is Mode.PARTIAL else ""
                    seen.setdefault(name, []).extend(laps)
        found += [(name, "tokens", tokens, median(laps)) for name, laps in seen.items()]
        found.append((BYTES, "tokens", tokens, held))
    return found


def _engine_of_tokens(options: GrowthOptions) -> list[Point]:
    return [
        (f"engine, a step of {name}", "tokens", idle.grid.tokens, seconds)
        for wanted in options.tokens
        for idle in [_idle(wanted, options)]
        for name, seconds in _engine(idle, 10, options).items()
    ]


def _engine_of_steps(options: GrowthOptions) -> list[Point]:
    idle = _idle(min(options.tokens), options)
    return [
        (f"engine, a run of {name}", "steps", steps, seconds * steps)
        for steps in options.steps
        for name, seconds in _engine(idle, steps, options).items()
    ]


def _engine(idle: IdleRun, steps: int, options: GrowthOptions) -> dict[str, float]:
    """Mean seconds of a step, a policy each."""
    trunk, calls = idle.trunk(steps), {}
    for name in ("every-nth", "hetcache"):
        policy, _ = resolve_policy(name, {}, None, idle.model, discover())
        calls[name] = partial(_seconds, partial(idle.run, trunk, policy, steps))
    return {name: median(runs) / steps for name, runs in alternate(calls, options.repeats).items()}


def _seconds(call: Callable[[], tuple[list[float], object]]) -> float:
    return sum(call()[0])


def _idle(tokens: int, options: GrowthOptions) -> IdleRun:
    size = clip_of(tokens)
    mask = torch.zeros(size.frames, size.height, size.width, dtype=torch.bool)
    mask[:, : size.height // 2, : size.width // 4] = True
    return IdleRun(
        model=ModelInfo(
            backbone="idle", variant="", layers=8, width=128, heads=4, control_layers=(0, 3, 6)
        ),
        grid=Grid(
            frames=(size.frames - 1) // 4 + 1,
            height=size.height // 16,
            width=size.width // 16,
            pixel_height=16,
            pixel_width=16,
            frame_stride=4,
        ),
        mask=mask.to(options.device),
        dtype=getattr(torch, options.dtype),
        device=options.device,
    )


BENCHMARK: Final = Benchmark(
    name="growth",
    question="How does the cost grow with tokens and with steps?",
    options=GrowthOptions,
    run=run,
    keys=("cost", "of", "at"),
    watched={"exponent": Watched(better=Better.LOWER, floor=SLACK)},
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
