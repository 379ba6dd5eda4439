"""All tables of a GPU in one command, at published sizes and in minutes.

Runs the other benchmarks one after the other and writes all tables to one archive after each, so that a run
that is cut off loses nothing. A part that fails is a row with the reason, one that would not fit into what
is left of the time is left out and said so, and one that takes longer than that is stopped:

    python benchmarks/gpu.py --output benchmarks/results/h200

`--preset tiny --device cpu --dtype float32` runs the same parts on small models in a minute or two.
"""

from __future__ import annotations

import gc
import signal
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, Final

import memory
import overhead
import step_cost
import torch
from attrs import define, evolve, field, frozen
from harness import Bound, Options, Report, Row, markdown, measure, option
from harness.environment import environment
from harness.options import count, parse_options
from harness.report import BAD_INPUT, Benchmark
from harness.sizes import ClipSize
from harness.tables import csv_text
from harness.timing import is_cuda

import policies  # noqa: TID251 - the script beside this one
from hetcache.running.specs import parse_policies
from hetcache_core import ConfigError, HetCacheError

BEGAN: Final = time.monotonic()
"""Loading the libraries counts."""
LIMIT_S: Final = 420
"""A run is over within 7 minutes."""
ARCHIVE: Final = "tables.zip"
MANY: Final = "pab,teacache,hetcache,auto,auto@4x"
"""Policies at the first size of a model."""
FEW: Final = "hetcache,auto@4x"
OVERHEAD_REPEATS: Final = 3
"""Of parts that are over in no time."""
MATRIX: Final = {"published": 8192, "tiny": 256}
"""Side of the square matrices whose product gives the matrix rate."""


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


@frozen(kw_only=True)
class GpuOptions(Options):
    """Options of this command."""

    device: str = option("cuda", doc="where to measure: cpu or cuda")
    dtype: str = option("bfloat16", doc="dtype of weights and activations")
    repeats: int = option(1, doc="samples of everything, in alternation", parse=count)
    preset: str = option("published", doc="sizes: published or tiny")
    output: Path | None = option(  # noqa: RUF009 - declares a field
        Path("benchmarks/results/gpu"), doc=f"folder for {ARCHIVE}", parse=Path
    )
    limit: int = option(LIMIT_S, doc="seconds after which it is over", parse=count)
    parts: tuple[str, ...] = option(
        (), doc="parts to run, by name or its beginning; none: all", parse=_names
    )


@frozen(kw_only=True)
class Part:
    """One benchmark with its options.

    Attributes:
        name: of its files.
        benchmark: what is run.
        options: beyond device, dtype and repeats.
        expected_s: seconds that it takes on an H200, about.
    """

    name: str
    benchmark: Benchmark
    options: Mapping[str, Any]
    expected_s: int


def parts(preset: str) -> tuple[Part, ...]:
    """List the parts, the most wanted ones first.

    Raises:
        ConfigError: there is no such preset.
    """
    if preset == "published":
        return _parts(
            "published",
            {
                "wan-vace": ("33x480x832", "25x720x1280", "57x480x832"),
                "ltx-video": ("161x512x704",),
            },
        )
    if preset == "tiny":
        return _parts("tiny", {"wan-vace": ("9x128x128", "5x128x128"), "ltx-video": ("9x192x192",)})
    raise ConfigError(f"There is no preset {preset!r}", remedy="Use published or tiny.")


def _parts(scale: str, sizes: Mapping[str, Sequence[str]]) -> tuple[Part, ...]:
    found: list[Part] = []
    longest = max(map(len, sizes.values()))
    for turn, (backbone, clips) in product(range(longest), sizes.items()):
        if turn >= len(clips):
            continue
        thorough = turn == 0 and not found
        where = {"backbones": (backbone,), "scale": scale, "sizes": (ClipSize.parse(clips[turn]),)}
        label = f"{backbone}-{clips[turn]}"
        shares = (0.1, 0.2, 0.3, 0.5, 0.75, 1.0) if thorough else (0.1, 0.3, 1.0)
        chosen = MANY if turn == 0 else FEW
        found += [
            Part(
                name=f"step-cost-{label}",
                benchmark=step_cost.BENCHMARK,
                options={
                    **where,
                    "shares": shares,
                    "keys": ("pruned", "cached") if turn == 0 else ("pruned",),
                },
                expected_s=45 if turn == 0 else 30,
            ),
            Part(
                name=f"policies-{label}",
                benchmark=policies.BENCHMARK,
                options={**where, "policies": parse_policies(chosen)},
                expected_s=60 if turn == 0 else 30,
            ),
        ]
        if thorough:
            found += [
                Part(
                    name=f"overhead-{label}",
                    benchmark=overhead.BENCHMARK,
                    options={**where, "repeats": OVERHEAD_REPEATS},
                    expected_s=25,
                ),
                Part(
                    name=f"memory-{label}",
                    benchmark=memory.BENCHMARK,
                    options=where,
                    expected_s=30,
                ),
            ]
    return tuple(found)


def chosen(todo: Sequence[Part], names: Sequence[str]) -> tuple[Part, ...]:
    """Take the parts whose names begin with one of these, or all where there are none.

    Raises:
        ConfigError: a name is that of no part.
    """
    for name in names:
        if not any(part.name.startswith(name) for part in todo):
            known = ", ".join(part.name for part in todo)
            raise ConfigError(f"There is no part {name!r}", remedy=f"Known: {known}.")
    return tuple(p for p in todo if not names or p.name.startswith(tuple(names)))


class OutOfTimeError(Exception):
    """A part has run until the end of the time."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise ``OutOfTimeError`` where the block takes longer."""

    def stop(*_: object) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@define(eq=False, kw_only=True)
class Runner:
    """Runs parts, and writes what there is after each.

    Attributes:
        options: of the command.
        folder: where the archive goes.
        rate: FLOPs a second of a matrix product.
        clock: seconds since the command began.
    """

    options: GpuOptions
    folder: Path
    rate: float
    clock: Callable[[], float] = lambda: time.monotonic() - BEGAN
    summary: list[Row] = field(factory=list, init=False)
    utilisation: list[Row] = field(factory=list, init=False)
    bounds: list[Bound] = field(factory=list, init=False)
    _tables: dict[str, Sequence[Row]] = field(factory=dict, init=False)

    def run(self, todo: Sequence[Part]) -> None:
        """Run parts until the time is up."""
        for part in todo:
            started = self.clock()
            left = self.options.limit - started
            if part.expected_s > left:
                self._note(part, f"left out: {started:.0f} s spent", 0.0)
                continue
            try:
                with at_most(left):
                    report = self._measured(part)
                self._keep(part, report)
                said = "done"
            except OutOfTimeError:
                said = f"stopped: it was not over after {left:.0f} s"
            except Exception as error:  # noqa: BLE001 - whatever it is, the other parts can still be run
                said = _reason(error)
            self._note(part, said, self.clock() - started)
            gc.collect()  # the next model needs the room of this one
            if is_cuda(self.options.device):
                torch.cuda.empty_cache()

    def _measured(self, part: Part) -> Report:
        shared = {name: getattr(self.options, name) for name in ("device", "dtype", "repeats")}
        options = evolve(part.benchmark.options(), **{**shared, **part.options})
        return part.benchmark.run(options)

    def _keep(self, part: Part, report: Report) -> None:
        self._tables[part.name] = report.rows
        self.bounds += report.bounds
        self._tables["bounds"] = [bound.row() for bound in self.bounds]
        self.utilisation += [
            {
                "backbone": row["backbone"],
                "size": row["size"],
                "tokens": row["tokens"],
                "seconds": row["seconds"],
                "TFLOP/s": float(row["TFLOP"] or 0) / float(row["seconds"] or 1),
                "of the matrix rate": float(row["TFLOP"] or 0)
                * 1e12
                / float(row["seconds"] or 1)
                / self.rate,
            }
            for row in report.rows
            if row.get("step") == "bare"
        ]
        self._tables["utilisation"] = self.utilisation
        print(f"\n## {part.name}\n\n{markdown(report.rows)}", flush=True)

    def _note(self, part: Part, said: str, seconds: float) -> None:
        self.summary.append({"part": part.name, "result": said, "wall seconds": seconds})
        self._tables["parts"] = self.summary
        self._save()

    def _save(self) -> None:
        """Write all tables so far; the archive is whole at any moment."""
        self.folder.mkdir(parents=True, exist_ok=True)
        known, fresh = environment(self.options.device), self.folder / f".{ARCHIVE}"
        with zipfile.ZipFile(fresh, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, rows in self._tables.items():
                archive.writestr(f"{name}.csv", csv_text(rows, known))
        fresh.replace(self.folder / ARCHIVE)


def _reason(error: Exception) -> str:
    """First line of what went wrong, with its kind unless this project says it in its own words."""
    said = (str(error).strip().splitlines() or [""])[0]
    return said if isinstance(error, HetCacheError) else f"{type(error).__name__}: {said}"


def matrix_rate(side: int, device: str, dtype: str) -> float:
    """Measure the FLOPs a second of a product of two square matrices of random numbers."""
    one = torch.randn(side, side, device=device).to(getattr(torch, dtype))
    other = torch.randn(side, side, device=device).to(getattr(torch, dtype))
    measured = measure({"product": lambda: one @ other}, 5, device)["product"]
    return 2 * side**3 / measured.seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything; 0, 1 where a bound is broken and ``--check`` is given, 2 for bad input."""
    options = parse_options(GpuOptions, "All tables of a GPU in one command.", arguments)
    try:
        options.prepare()
        if options.compare is not None or options.output is None:
            raise ConfigError(
                "This command compares nothing", remedy="Compare with the benchmark of the part."
            )
        todo = chosen(parts(options.preset), options.parts)
        rate = matrix_rate(MATRIX[options.preset], options.device, options.dtype)
        runner = Runner(options=options, folder=options.output, rate=rate)
        print(f"matrix rate: {rate / 1e12:.3g} TFLOP/s in {options.dtype}", flush=True)
        runner.run(todo)
    except HetCacheError as error:
        print(f"gpu: {error}", file=sys.stderr)
        return BAD_INPUT
    for rows in ([bound.row() for bound in runner.bounds], runner.utilisation, runner.summary):
        print("\n" + markdown(rows))
    return int(options.check and not all(bound.holds for bound in runner.bounds))


if __name__ == "__main__":
    sys.exit(main())
