"""Measure the tiny model against the known answers and against fills without a model.

    python training/evaluate_tiny_vace.py --frames 17 --size 192 --steps 20 --guidance 3

Prints PSNR in the mask (its mean over clips, and pooled: that of the mean squared error), the shares of
right colours and shapes, and how much texture there is in the mask, as a share of the right answer's;
writes strips of frames (video, target, model's output) to `--strips`. PSNR alone favours what is smooth:
where the region cannot be known, the mean of all answers is up to 3 dB closer to the right one than any
single answer.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import evolve
from baselines import BASELINES, Mask, Video
from data import clip_inputs
from PIL import Image

from hetcache_backends.tiny_vace.clips import ClipSpec, builtin_clips
from hetcache_backends.tiny_vace.pipeline import build_pipeline
from hetcache_backends.tiny_vace.shapes import COLOURS, SHAPES


def psnr(video: Video, target: Video, where: Mask) -> float:
    """Return the peak signal-to-noise ratio over some pixels, in dB."""
    error = (video[where].astype(np.float64) - target[where]) ** 2
    return float(10 * np.log10(255.0**2 / max(error.mean(), 1e-9)))


def pooled(decibels: list[float]) -> float:
    """Return the PSNR of the squared error's mean over clips, in dB; each clip counts the same."""
    return float(-10 * np.log10(np.mean(10 ** (-np.array(decibels) / 10))))


def roughness(video: Video, where: Mask) -> float:
    """Return the summed differences of neighbouring pixels, both of them in the mask."""
    inside, values = where[..., None], video.astype(np.float64)
    across = np.abs(np.diff(values, axis=2)) * (inside[:, :, 1:] & inside[:, :, :-1])
    down = np.abs(np.diff(values, axis=1)) * (inside[:, 1:] & inside[:, :-1])
    return float(across.sum() + down.sum())


def through_codec(pipe: Any, video: Video) -> Video:
    """Encode and decode a video: the best that a perfect model could show."""
    x = torch.from_numpy(video).permute(3, 0, 1, 2)[None].float() / 127.5 - 1.0
    y = pipe.vae.decode(pipe.vae.encode(x))[0].permute(1, 2, 3, 0)
    return ((y + 1) * 127.5).round().clamp(0, 255).byte().numpy()


def best_match(spec: ClipSpec, output: Video, where: Mask, field: str, words: list[str]) -> str:
    """Return the word for which the rendered answer is closest to the output."""
    errors = {
        word: psnr(evolve(spec, **{field: word}).render().target, output, where) for word in words
    }
    return max(errors, key=lambda word: errors[word])


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Run every clip and return the measurements by kind of clip."""
    torch.set_num_threads(args.threads)
    pipe = build_pipeline(weights=args.weights)
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    rough: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    specs = builtin_clips(frames=args.frames, height=args.size, width=args.size)
    for spec in specs[:: args.every]:
        clip = spec.render()
        where = clip.mask > 0
        kind = "outpainting" if spec.region == "border" else "object" if spec.has_object else "hole"
        for seed in range(args.seeds):
            frames = pipe(
                **clip_inputs(clip),
                num_inference_steps=args.steps,
                cfg_scale=args.guidance,
                sigma_shift=5.0,
                tiled=False,
                seed=seed,
                progress_bar_cmd=list,
            )
            output = np.stack([np.asarray(frame) for frame in frames])
            scores[kind]["model"].append(psnr(output, clip.target, where))
            rough[kind]["model"] += roughness(output, where) / args.seeds
            scores[kind]["background"].append(psnr(output, clip.target, ~where))
            if spec.has_object:
                colour = best_match(spec, output, where, "colour", list(COLOURS))
                shape = best_match(spec, output, where, "shape", list(SHAPES))
                scores[kind]["colour right"].append(colour == spec.colour)
                scores[kind]["shape right"].append(shape == spec.shape)
        scores[kind]["codec"].append(psnr(through_codec(pipe, clip.target), clip.target, where))
        rough[kind]["target"] += roughness(clip.target, where)
        for name, fill in BASELINES.items():
            filled = fill(clip.video, where)
            scores[kind][name].append(psnr(filled, clip.target, where))
            rough[kind][name] += roughness(filled, where)
        if args.strips:
            args.strips.mkdir(parents=True, exist_ok=True)
            picks = np.linspace(0, spec.frames - 1, 4).round().astype(int)
            rows = [np.concatenate(list(v[picks]), 1) for v in (clip.video, clip.target, output)]
            Image.fromarray(np.concatenate(rows, 0)).save(args.strips / f"{spec.name}.png")
    table = {
        kind: {name: float(np.mean(values)) for name, values in by_name.items()}
        for kind, by_name in scores.items()
    }
    for kind, by_name in scores.items():
        table[f"{kind}, pooled"] = {
            name: pooled(values) for name, values in by_name.items() if not name.endswith("right")
        }
    for kind, sums in rough.items():
        table[f"{kind}, texture"] = {name: value / sums["target"] for name, value in sums.items()}
    return table


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, default=None, help="default: those of the package")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--size", type=int, default=192, help="height and width in pixels")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--every", type=int, default=1, help="take every n-th clip")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--strips", type=Path, default=None, help="folder for strips of frames")
    parser.add_argument("--json", type=Path, default=None, help="also write the table here")
    args = parser.parse_args()
    table = evaluate(args)
    names = sorted({name for row in table.values() for name in row})
    print("clips".ljust(22) + "".join(name.rjust(15) for name in names))
    for kind, row in table.items():
        cells = (f"{row[name]:.2f}" if name in row else "-" for name in names)
        print(kind.ljust(22) + "".join(cell.rjust(15) for cell in cells))
    if args.json:
        args.json.write_text(json.dumps({"arguments": vars(args), "table": table}, default=str))


if __name__ == "__main__":
    main()
