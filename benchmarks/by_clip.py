"""Tables of comparisons on the built-in clips, as docs/findings.md has them.

Reads the folders of `hetcache compare --clips builtin …` and prints, for every policy, mean ± standard
deviation over clips and seeds, and the share of FLOPs that was reached; in columns by what is asked:

    python benchmarks/by_clip.py front                                 # by the size of the mask
    python benchmarks/by_clip.py front --columns speedups              # by the speed-up asked for
    python benchmarks/by_clip.py front --columns measures --speedup 4  # mask, margin, background, truth
    python benchmarks/by_clip.py front --columns speedups --against auto   # in how many runs it is closer
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from attrs import evolve

from hetcache.comparison.results.folder import Results, Row, RowKey
from hetcache.running.specs import REFERENCE

METRIC = "psnr_reference_mask"
GROUPS = ("all", "small", "medium", "large", "outpainting", "object", "background")
MEASURES = {
    "mask": METRIC,
    "margin": "psnr_reference_margin",
    "background": "psnr_reference_background",
    "mask, to the right answer": "psnr_truth_mask",
}


def groups(clip: str) -> set[str]:
    """Return the kinds that a clip's name says it is of."""
    return {"all", *(group for group in GROUPS if group in clip.split("-"))}


def label(row: Row) -> str:
    """Return policy and settings without the speed-up."""
    asked = f"{row.target_speedup or 0:g}x"
    return " ".join(word for word in row.key.label.split() if word != asked)


def cell(rows: Sequence[Row], metric: str) -> str:
    """Return mean ± deviation, the share of FLOPs, and how many runs are left out as identical."""
    if not rows:
        return ""
    values = [v for row in rows if (v := row.metrics.get(metric)) is not None]
    same = sum(row.metric_notes.get(metric) == "identical" for row in rows)
    shares = [row.flops / row.flops_full for row in rows]
    said = f"{np.mean(values):.1f} ± {np.std(values):.1f} at " if values else "identical at "
    note = f" ({same} identical)" if same and values else ""
    return f"{said}{np.mean(shares):.2f}{note}"


def pairs(rows: Sequence[Row], other: Mapping[RowKey, Row], metric: str) -> str:
    """Return in how many runs the other policy is the closer one, and the most that it is behind by."""
    behind = []
    for row in rows:
        beside = other.get(_without_policy(row.key))
        mine = row.metrics.get(metric)
        theirs = None if beside is None else beside.metrics.get(metric)
        if mine is not None and theirs is not None:
            behind.append(mine - theirs)
    if not behind:
        return ""
    worst = max(behind)
    note = f", behind by at most {worst:.1f}" if worst > 0 else ""
    return f"{sum(each < 0 for each in behind)} of {len(behind)}{note}"


def _without_policy(key: RowKey) -> RowKey:
    return evolve(key, policy="", variant="")


def table(
    rows: Sequence[Row], columns: Mapping[str, Callable[[Row], bool]], write: Callable[..., str]
) -> str:
    """Return a Markdown table, a policy a line in the order of the rows.

    Args:
        rows: of all policies.
        columns: which rows belong into a column, by its title.
        write: makes a cell of the title and the column's rows.
    """
    by_label: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_label[label(row)].append(row)
    lines = ["| " + " | ".join(["policy", *columns]) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, own in by_label.items():
        cells = [
            write(title, [row for row in own if takes(row)]) for title, takes in columns.items()
        ]
        lines.append("| " + " | ".join([f"`{name}`", *cells]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--columns", choices=["groups", "speedups", "measures"], default="groups")
    parser.add_argument("--group", choices=GROUPS, default="all", help="only clips of this kind")
    parser.add_argument("--speedup", type=float, help="only runs that were asked for this one")
    parser.add_argument("--seeds", help="only these, by commas")
    parser.add_argument("--metric", default=METRIC, help="a column of metrics in rows.csv")
    parser.add_argument("--against", help="count the runs in which this policy is closer")
    options = parser.parse_args()
    seeds = None if options.seeds is None else {int(seed) for seed in options.seeds.split(",")}
    rows = [
        row
        for folder in options.folders
        for row in Results(folder=folder).rows()
        if row.status == "ok"
        and row.key.policy != REFERENCE
        and row.key.repeat == 0
        and (seeds is None or row.key.seed in seeds)
        and options.group in groups(row.key.clip)
        and options.speedup in (None, row.target_speedup)
    ]
    if not rows:
        parser.error("no such run is in these folders")
    speedups = sorted({row.target_speedup for row in rows if row.target_speedup is not None})
    columns: dict[str, Callable[[Row], bool]] = {
        "groups": {group: lambda row, g=group: g in groups(row.key.clip) for group in GROUPS},
        "speedups": {f"{x:g}x": lambda row, x=x: row.target_speedup == x for x in speedups},
        "measures": dict.fromkeys(MEASURES, lambda _: True),
    }[options.columns]

    def write(title: str, own: Sequence[Row]) -> str:
        metric = MEASURES[title] if options.columns == "measures" else options.metric
        if options.against is None:
            return cell(own, metric)
        wanted = {row.target_speedup for row in own}
        other = {
            _without_policy(row.key): row
            for row in rows
            if label(row) == options.against and row.target_speedup in wanted
        }
        return pairs(own, other, metric)

    count = len({(row.key.clip, row.key.seed) for row in rows})
    print(f"{count} pairs of clip and seed\n\n{table(rows, columns, write)}")


if __name__ == "__main__":
    main()
