"""One benchmark from its command line to its exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import Factory, field, frozen

from harness.bounds import Bound
from harness.environment import environment
from harness.options import Options, parse_options
from harness.tables import Row, markdown, read_csv, write_csv
from harness.watching import Watched, regressions
from hetcache_core import HetCacheError

WORSE = 1
BAD_INPUT = 2


@frozen(kw_only=True)
class Report:
    """What a benchmark found.

    Attributes:
        rows: the table, all rows with the same columns.
        bounds: what is held to a limit.
    """

    rows: Sequence[Row]
    bounds: Sequence[Bound] = ()


@frozen(kw_only=True)
class Benchmark:
    """A question, how it is answered, and how two answers are compared.

    Attributes:
        name: of the script.
        question: for ``--help``.
        options: class of its options.
        run: measures.
        keys: columns that name a row.
        watched: ratios that a later measurement is held to.
    """

    name: str
    question: str
    options: type[Options]
    run: Callable[[Any], Report]
    keys: tuple[str, ...]
    watched: Mapping[str, Watched] = field(default=Factory(dict))


def main(benchmark: Benchmark, arguments: Sequence[str] | None = None) -> int:
    """Run a benchmark from its command line.

    Returns:
        0; 1 where a regression or a broken bound was asked for and found; 2 for bad input.
    """
    options = parse_options(benchmark.options, benchmark.question, arguments)
    try:
        options.prepare()
        # Read first: a bad file is said before minutes of measuring.
        old = None if options.compare is None else read_csv(options.compare)
        report = benchmark.run(options)
        print(markdown(report.rows))
        if options.output is not None:
            write_csv(options.output, report.rows, environment(options.device))
        worse = None
        if old is not None:
            worse = regressions(
                old,
                report.rows,
                keys=benchmark.keys,
                watched=benchmark.watched,
                margin=options.margin,
            )
    except HetCacheError as error:
        print(f"{benchmark.name}: {error}", file=sys.stderr)
        return BAD_INPUT
    if report.bounds:
        print("\n" + markdown([bound.row() for bound in report.bounds]))
    if worse is not None:
        print(f"\nWorse than {options.compare} by more than {options.margin:.0%}: {len(worse)}")
        if worse:
            print(markdown(worse))
    broken = options.check and not all(bound.holds for bound in report.bounds)
    return WORSE if broken or (worse and options.fail_if_regression) else 0
