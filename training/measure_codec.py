"""Measure the codec: which coefficients matter, and what survives encoding and decoding.

    python training/measure_codec.py --clips 300

Prints the coefficients of largest variance, from which `codec.CHANNELS` was written down, and the
PSNR of decoded clips with and without the trained detail.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

import torch
from data import to_tensor
from torch import Tensor

from hetcache_backends.tiny_vace.clips import make_clip
from hetcache_backends.tiny_vace.codec import TinyCodec
from hetcache_backends.tiny_vace.pipeline import build_pipeline

FIRST_SEED: Final = 1 << 21
SIZE: Final = (9, 128, 128)
PLANES: Final = ("luma", "red-blue", "green")


def variances(codec: TinyCodec, clips: int) -> Tensor:
    """Return the mean square of every coefficient, `(3, 4, 8, 8)`, symmetric in the two axes."""
    total = torch.zeros(12, 8, 8)
    for seed in range(FIRST_SEED, FIRST_SEED + clips):
        video = to_tensor([make_clip(seed, *SIZE).target])
        total += codec.transform(video[:, :, 1:]).square().mean((0, 4, 5, 6)) / clips
    return ((total + total.transpose(1, 2)) / 2).unflatten(0, (3, 4))


def reconstruction(codec: TinyCodec, clips: int) -> float:
    """Return the mean PSNR of decoded clips in dB."""
    values = []
    for seed in range(FIRST_SEED, FIRST_SEED + clips):
        video = to_tensor([make_clip(seed, *SIZE).target])
        error = (codec.decode(codec.encode(video)) - video).square().mean()
        values.append(10 * torch.log10(4.0 / error.clamp(min=1e-9)))
    return float(torch.stack(values).mean())


def main() -> None:
    """Print the two tables."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--clips", type=int, default=300)
    parser.add_argument("--weights", type=Path, default=None, help="default: those of the package")
    args = parser.parse_args()
    torch.set_num_threads(1)
    plain = TinyCodec()
    spread = variances(plain, args.clips)
    largest = spread.flatten().argsort(descending=True)[:40]
    for index in largest.tolist():
        plane, time, row, column = (
            int(i) for i in torch.unravel_index(torch.tensor(index), spread.shape)
        )
        print(
            f"{PLANES[plane]:9} {time} {row} {column}  {spread[plane, time, row, column] ** 0.5:.3f}"
        )
    trained = build_pipeline(weights=args.weights).vae
    print(f"fixed transform {reconstruction(plain, args.clips // 4):.2f} dB")
    print(f"with detail     {reconstruction(trained, args.clips // 4):.2f} dB")


if __name__ == "__main__":
    main()
