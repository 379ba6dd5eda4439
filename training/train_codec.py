"""Train the codec's detail network: guess the 744 dropped coefficients from the 24 kept ones.

    python training/train_codec.py --out training/checkpoints/codec.pt

Minutes on one CPU core. The transform is orthonormal, so the squared error of the coefficients is
that of the pixels.
"""

from __future__ import annotations

import argparse
import logging
import math
from pathlib import Path
from typing import Final

import numpy as np
import torch
from data import to_tensor
from torch import Tensor

from hetcache_backends.tiny_vace.clips import RESERVED_SEEDS, random_spec
from hetcache_backends.tiny_vace.codec import TinyCodec

log = logging.getLogger("training")

SIZES: Final = ((5, 96, 96), (9, 64, 96), (1, 192, 160), (5, 80, 128))
CLIPS: Final = 6
LATENT_NOISE: Final = 0.05
"""Deviation of the noise on the latents of every other batch: a diffusion model's are not exact."""


def example(codec: TinyCodec, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Make one batch: latents `(B, C, T, h, w)` and the dropped coefficients `(B, 744, T, h, w)`."""
    frames, height, width = SIZES[int(rng.integers(len(SIZES)))]
    seeds = rng.integers(RESERVED_SEEDS, 1 << 62, CLIPS)
    clips = [random_spec(int(seed), frames, height, width).render() for seed in seeds]
    video = to_tensor([clip.target for clip in clips])
    whole = torch.cat([video[:, :, :1].expand(-1, -1, 3, -1, -1), video], 2)
    dropped = codec.transform(whole).flatten(1, 3).index_select(1, codec.dropped)
    return codec.encode(video), dropped


def train(args: argparse.Namespace) -> None:
    """Train and save the network."""
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng([args.seed, 2])
    codec = TinyCodec()
    network = codec.detail.requires_grad_(requires_grad=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.rate, weight_decay=0.0)
    before = after = 0.0
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = args.rate * 0.5 * (1 + math.cos(math.pi * step / args.steps))
        latents, dropped = example(codec, rng)
        if step % 2:
            latents = latents + LATENT_NOISE * torch.randn_like(latents)
        loss = (network(latents) - dropped).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
        before, after = before + float(dropped.square().mean()), after + loss.item()
        if (step + 1) % args.log_every == 0:
            gain = 10 * math.log10(before / after)
            log.info("step %d, %.2f dB over the fixed transform", step + 1, gain)
            before = after = 0.0
            torch.save(network.state_dict(), args.out)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=train.__doc__)
    parser.add_argument("--out", type=Path, default=Path("training/checkpoints/codec.pt"))
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=100)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    train(args)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
