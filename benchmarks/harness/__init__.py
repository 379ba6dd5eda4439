"""What the benchmarks share: options, clocks, the environment, tables, bounds and comparisons."""

from __future__ import annotations

from harness.bounds import Bound, at_least, at_most
from harness.options import Options, option
from harness.report import Benchmark, Report, main
from harness.tables import Row, markdown, read_csv, write_csv
from harness.timing import Measured, Stopwatch, alternate, measure
from harness.watching import Better, Watched, regressions

__all__ = [
    "Benchmark",
    "Better",
    "Bound",
    "Measured",
    "Options",
    "Report",
    "Row",
    "Stopwatch",
    "Watched",
    "alternate",
    "at_least",
    "at_most",
    "main",
    "markdown",
    "measure",
    "option",
    "read_csv",
    "regressions",
    "write_csv",
]
