"""Train the tiny Wan-VACE model from scratch on clips made on the fly.

One command reproduces the shipped weights (see `README.md` beside this file):

    python training/train_tiny_vace.py --out training/checkpoints

Flow matching in Wan's convention: `x = (1 - sigma) * x0 + sigma * noise`, the model is asked for
`noise - x0` at `timestep = 1000 * sigma`, and sigmas are spread as the pipeline's scheduler spreads
them (shift 5). A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from data import Batch, Batches
from export import export_weights, plot_loss
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hetcache_backends.tiny_vace.config import SPATIAL_FACTOR
from hetcache_backends.tiny_vace.pipeline import random_models

log = logging.getLogger("training")

TIMESTEPS: Final = 1000.0
KNOWN_WEIGHT: Final = 0.3
"""Weight of a latent outside the mask, where the answer is given and only has to be passed on."""
EMA_DECAY: Final = 0.999
WARMUP_STEPS: Final = 100
PLATEAU: Final = 0.6
"""Share of the run before the learning rate goes down."""
MAX_GRADIENT_NORM: Final = 1.0
RECOMPILE_LIMIT: Final = 64
"""Two classes of blocks times a dozen clip sizes."""
MUON_FACTOR: Final = 2.0
"""Learning rate of Muon's matrices over that of the rest."""
FIELDS: Final = ("step", "seconds", "tokens", "learning_rate", "loss", "loss_masked", "loss_known")


def velocity(
    models: nn.ModuleDict, batch: Batch, device: torch.device, *, half: bool
) -> tuple[Tensor, Tensor]:
    """Run the model on a noised batch; return its answer and the right one, `(B, C, T, h, w)`."""
    from diffsynth.pipelines.wan_video import model_fn_wan_video

    x0, noise = batch.latents.to(device), batch.noise.to(device)
    sigma = batch.sigma.to(device)
    level = sigma.view(-1, 1, 1, 1, 1)
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        answer = model_fn_wan_video(
            dit=models["dit"],
            vace=models["vace"],
            latents=(1 - level) * x0 + level * noise,
            timestep=sigma * TIMESTEPS,
            context=batch.context.to(device),
            vace_context=batch.control.to(device),
        )
    return answer.float(), noise - x0


def losses(answer: Tensor, truth: Tensor, masked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weighted loss and the mean squared errors inside and outside the mask."""
    error = (answer - truth).square().mean(1, keepdim=True)  # (B, 1, T, h, w)
    weight = masked + KNOWN_WEIGHT * (1 - masked)
    inside = (error * masked).sum() / masked.sum().clamp(min=1)
    outside = (error * (1 - masked)).sum() / (1 - masked).sum().clamp(min=1)
    return (error * weight).sum() / weight.sum(), inside, outside


def optimizers(models: nn.Module, rate: float, kind: str) -> list[torch.optim.Optimizer]:
    """Build AdamW for everything, or Muon for the matrices of the blocks and AdamW for the rest."""
    matrices, rest = [], []
    for name, parameter in models.named_parameters():
        inner = "blocks." in name and parameter.ndim == 2
        (matrices if inner and kind == "muon" else rest).append(parameter)
    out: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    ]
    if matrices:
        muon = {"lr": MUON_FACTOR * rate, "adjust_lr_fn": "match_rms_adamw", "ns_steps": 4}
        out.append(torch.optim.Muon(matrices, weight_decay=0.0, **muon))
    for optimizer in out:
        for group in optimizer.param_groups:
            group["base"] = group["lr"]
    return out


def learning_rate(step: int, done: float) -> float:
    """Return the factor on the learning rate: warm-up, a plateau, and a cosine down to 1 %.

    A plateau, because a run can then be made longer or shorter while it is under way.

    Args:
        step: Steps so far, for the warm-up.
        done: Share of the run that is over, of its steps or of its time, whichever is more.
    """
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    descent = max(0.0, (done - PLATEAU) / (1 - PLATEAU))
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, descent)))


def batches(args: argparse.Namespace, start: int) -> Iterator[Batch]:
    """Yield the batches from `start` on, made by worker processes ahead of time."""
    data = Batches(seed=args.seed, steps=args.steps, tokens=args.tokens, echo=args.echo)
    loader: DataLoader[Batch] = DataLoader(
        data,
        batch_size=None,
        sampler=range(start, args.steps),
        num_workers=args.workers,
        prefetch_factor=4 if args.workers else None,
    )
    yield from loader


def load(
    path: Path, models: nn.ModuleDict, ema: nn.ModuleDict, parts: list[Any]
) -> tuple[int, float]:
    """Restore a checkpoint; return its step and the seconds trained so far."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    models.load_state_dict(state["models"])
    ema.load_state_dict(state["ema"])
    for part, saved in zip(parts, state["optimizers"], strict=True):
        part.load_state_dict(saved)
    return int(state["step"]), float(state["seconds"])


def save(
    path: Path,
    models: nn.ModuleDict,
    ema: nn.ModuleDict,
    parts: list[Any],
    step: int,
    seconds: float,
) -> None:
    """Write a checkpoint, whole or not at all."""
    state = {
        "models": models.state_dict(),
        "ema": ema.state_dict(),
        "optimizers": [part.state_dict() for part in parts],
        "step": step,
        "seconds": seconds,
    }
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def rotate(x: Tensor, freqs: Tensor, num_heads: int) -> Tensor:
    """Apply the rotary embedding in real single precision.

    DiffSynth's `rope_apply` goes through complex128, which costs a tenth of a training step and
    differs by 1e-6.

    Args:
        x: `(B, N, D)`, queries or keys.
        freqs: `(N, 1, D / heads / 2)` complex, unit length.
        num_heads: Attention heads.

    Returns:
        `(B, N, D)`.
    """
    even, odd = x.unflatten(2, (num_heads, -1, 2)).unbind(-1)  # (B, N, heads, D / heads / 2)
    cosine, sine = freqs.real.float(), freqs.imag.float()
    turned = torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], -1)
    return turned.flatten(2)


@torch.no_grad()
def embed_halves_alike(vace: nn.Module) -> None:
    """Start with one embedding for both halves of the control video.

    What is known and the fill of what is masked are halves of one picture, so that their sum is embedded
    as the whole one. In a run that began without this and was given it at half time, the fill was made use
    of at once.
    """
    weight: Tensor = vace.vace_patch_embedding.weight  # (D, 2C + 64, 1, 2, 2)
    channels = (weight.shape[1] - SPATIAL_FACTOR**2) // 2
    weight[:, channels : 2 * channels] = weight[:, :channels]


def quicken(models: nn.ModuleDict, *, compiled: bool) -> None:
    """Replace what is slow to train in DiffSynth's modules by equal, faster operations."""
    from diffsynth.models import wan_video_dit

    wan_video_dit.rope_apply = rotate
    wan_video_dit.set_to_torch_norm(list(models.values()))
    if compiled:
        torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT  # noqa: SLF001  # its only name
        # The control blocks come here through `super().forward`.
        block = wan_video_dit.DiTBlock
        block.forward = torch.compile(block.forward, dynamic=True)


def start_curve(path: Path, step: int) -> None:
    """Start the loss curve, or cut off what an interrupted run wrote after its last checkpoint."""
    lines = path.read_text().splitlines()[1:] if path.exists() else []
    kept = [line for line in lines if int(line.split(",")[0]) <= step]
    path.write_text("\n".join([",".join(FIELDS), *kept]) + "\n")


def train(args: argparse.Namespace) -> None:
    """Train until the last step, a time limit or an interruption."""
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    dit, vace = random_models(seed=args.seed)
    nn.init.zeros_(dit.head.head.weight)
    embed_halves_alike(vace)
    models = nn.ModuleDict({"dit": dit, "vace": vace}).to(device)
    ema = nn.ModuleDict(dict(zip(("dit", "vace"), random_models(seed=args.seed), strict=True)))
    ema.to(device).requires_grad_(False)
    quicken(models, compiled=args.compile)
    parts = optimizers(models, args.rate, args.optimizer)
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint, curve = args.out / "checkpoint.pt", args.out / "loss.csv"
    step, seconds = load(checkpoint, models, ema, parts) if checkpoint.exists() else (0, 0.0)
    log.info("%d parameters, from step %d", sum(p.numel() for p in models.parameters()), step)
    start_curve(curve, step)
    began, rows = time.monotonic() - seconds, []
    for batch in batches(args, step):
        spent = time.monotonic() - began
        in_time = spent / args.seconds if args.seconds else 0.0
        factor = learning_rate(step, max(step / args.steps, in_time))
        for part in parts:
            for group in part.param_groups:
                group["lr"] = group["base"] * factor
        answer, truth = velocity(models, batch, device, half=args.bf16)
        loss, inside, outside = losses(answer, truth, batch.masked.to(device))
        loss.backward()
        nn.utils.clip_grad_norm_(models.parameters(), MAX_GRADIENT_NORM)
        for part in parts:
            part.step()
            part.zero_grad()
        step += 1
        decay = min(EMA_DECAY, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(models.parameters()), 1 - decay)
        tokens = batch.latents[:, 0].numel() // 4
        rows.append((loss.item(), inside.item(), outside.item(), tokens))
        if step % args.log_every == 0:
            seconds = time.monotonic() - began
            mean = [
                sum(row[i] * row[3] for row in rows) / sum(row[3] for row in rows) for i in range(3)
            ]
            values = (
                step,
                f"{seconds:.0f}",
                sum(row[3] for row in rows),
                f"{args.rate * factor:.2e}",
            )
            with curve.open("a") as file:
                csv.writer(file).writerow([*values, *(f"{value:.5f}" for value in mean)])
            log.info("step %d, %.0f s, loss %.4f, masked %.4f, known %.4f", step, seconds, *mean)
            rows.clear()
        spent = time.monotonic() - began
        stop = step >= args.steps or (args.seconds and spent > args.seconds)
        if step % args.save_every == 0 or stop:
            save(checkpoint, models, ema, parts, step, spent)
        if stop:
            break
    export_weights(
        ema.state_dict(),
        args.out / "weights.safetensors",
        codec=args.codec,
        steps=step,
        seed=args.seed,
    )
    plot_loss(curve, args.out / "loss.png")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("training/checkpoints"))
    parser.add_argument("--codec", type=Path, default=None, help="what train_codec.py saved")
    parser.add_argument("--steps", type=int, default=10_000, help="length of the schedule")
    parser.add_argument("--seconds", type=float, default=0, help="stop after this long (0: never)")
    parser.add_argument("--tokens", type=int, default=1728, help="tokens a batch")
    parser.add_argument("--rate", type=float, default=1.2e-3, help="peak learning rate")
    parser.add_argument("--optimizer", choices=["adamw", "muon"], default="muon")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="compile the blocks: about 1.1x")
    parser.add_argument("--bf16", action="store_true", help="matrix products in bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--echo", type=int, default=1, help="steps that share a batch's clips")
    parser.add_argument("--workers", type=int, default=1, help="processes that make batches")
    parser.add_argument("--log-every", type=int, default=20)
    parser.add_argument("--save-every", type=int, default=250)
    return parser.parse_args(argv)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train(parse())
