"""Tables of a comparison on the built-in clips, by the size of the mask.

Reads the folder of a `hetcache compare --clips builtin …` and prints, for each kind of clip, the fidelity to
the uncached output of the same seed inside the mask, by policy and asked speed-up:

    python benchmarks/by_clip.py results/front
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np

from hetcache_app.comparison.results import UNCACHED, Results, Row

METRIC = "psnr_uncached_mask"
GROUPS = ("all", "small", "medium", "large", "outpainting", "object", "background")


def groups(clip: str) -> set[str]:
    """Return the kinds that a clip's name says it is of."""
    return {"all", *(group for group in GROUPS if group in clip.split("-"))}


def main() -> None:
    """Print a Markdown table a kind of clip."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--groups", default=",".join(GROUPS))
    parser.add_argument("--metric", default=METRIC, help="a column of metrics in rows.csv")
    options = parser.parse_args()
    rows = [row for row in Results(folder=options.folder).rows() if row.status == "ok"]
    uncached = {row.key.case_id: row for row in rows if row.key.policy == UNCACHED}
    for group in options.groups.split(","):
        found: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            if row.key.repeat == 0 and row.key.policy != UNCACHED and group in groups(row.key.clip):
                found[row.key.label].append(row)
        runs = max((len(own) for own in found.values()), default=0)
        print(f"\n### {group}: {runs} runs each\n")
        print("| policy | share of FLOPs | in the mask, dB | worst | seconds, share |")
        print("|---|---|---|---|---|")
        for label, own in found.items():
            share = np.mean([row.flops / row.flops_full for row in own])
            values = [v for row in own if (v := row.metrics.get(options.metric)) is not None]
            clock = [
                row.denoise_seconds / uncached[row.key.uncached().case_id].denoise_seconds
                for row in own
            ]
            said = (
                f"{np.mean(values):.1f} ± {np.std(values):.1f} | {min(values):.1f}"
                if values
                else "|"
            )
            print(f"| {label} | {share:.3f} | {said} | {np.median(clock):.3f} |")


if __name__ == "__main__":
    main()
