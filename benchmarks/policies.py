"""How much of the saved FLOPs arrives on the clock, policy by policy, on a backbone's embedded clip.

Runs the uncached edit and every policy in alternation (A B C A B C …) and prints medians:

    OMP_NUM_THREADS=1 python benchmarks/policies.py --output benchmarks/results/policies.csv

Seconds are of processor time where the device is the CPU, so that other work on the machine disturbs them
less, and of the clock otherwise; encoding and decoding are part of them. `efficiency` is the speed-up in
seconds over the one in FLOPs.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import time
from pathlib import Path
from statistics import median

import torch
from attrs import evolve

from hetcache_app.metrics import compare
from hetcache_core import LoadRequest, accelerate, discover

POLICIES = "none,pab,teacache,hetcache,auto,auto@4"


def main() -> None:
    """Run everything and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="tiny-vace")
    parser.add_argument("--policies", default=POLICIES, help="NAME or NAME@SPEEDUP, by commas")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="CSV file, a row a policy")
    options = parser.parse_args()
    registry = discover()
    backbone = registry.backbone(options.backbone)()
    sample = backbone.sample()
    if sample is None:
        parser.error(f"{options.backbone} has no embedded clip")
    request = evolve(sample, steps=options.steps)
    pipeline = backbone.load(LoadRequest(device=options.device))
    clock = time.process_time if options.device == "cpu" else time.perf_counter
    names = options.policies.split(",")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    frames, traces = {}, {}
    for turn in range(options.repeat + 1):  # the first round warms up
        for name in names:
            policy, _, speedup = name.partition("@")
            target = float(speedup) if speedup else None
            with accelerate(
                pipeline, policy, backbone=backbone, registry=registry, target_speedup=target
            ) as run:
                begun = clock()
                frames[name] = backbone.edit(pipeline, request)
                spent = clock() - begun
            traces[name] = run.trace
            if turn:
                seconds[name].append(spent)
    print(f"{torch.__version__}, {torch.get_num_threads()} threads, {platform.processor()}, "
          f"{os.cpu_count()} cores, {options.steps} steps of {request.video.shape}\n")  # fmt: skip
    rows = []
    for name in names:
        totals = traces[name].totals()
        faster = median(seconds["none"]) / median(seconds[name])
        quality = compare(
            frames[name], frames["none"], request.mask, backbone.geometry.size_multiple
        )
        rows.append(
            {
                "policy": name,
                "full/partial/reused": f"{totals.steps_full}/{totals.steps_partial}/{totals.steps_reused}",
                "seconds": f"{median(seconds[name]):.2f}",
                "speed-up": f"{faster:.2f}x",
                "in FLOPs": f"{totals.flops_speedup:.2f}x",
                "efficiency": f"{faster / totals.flops_speedup:.2f}",
                "PSNR, whole": str(quality["whole"]),
                "PSNR, mask": str(quality["mask"]),
                "cache": f"{totals.peak_cache_bytes / 2**20:.1f} MiB",
            }
        )
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(row.values()) + " |")
    if options.output is not None:
        with options.output.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
