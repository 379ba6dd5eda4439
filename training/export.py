"""Write trained weights in the package's format, and draw the loss curve."""

from __future__ import annotations

import argparse
import csv
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from hetcache_backends.tiny_vace.codec import TinyCodec

RECIPE: Final = "1"
SMOOTHING: Final = 0.25
"""Weight of the newest point in the drawn average."""


def export_weights(
    state: dict[str, Tensor], path: Path, *, codec: Path | None, steps: int, seed: int
) -> None:
    """Write the weights in half precision.

    Args:
        state: Weights of `dit` and `vace`, with these prefixes.
        path: Of the safetensors file.
        codec: What `train_codec.py` saved; None for a codec without trained detail.
        steps: Optimisation steps behind the weights.
        seed: Of the run.
    """
    network = TinyCodec()
    if codec is not None:
        network.detail.load_state_dict(torch.load(codec, map_location="cpu", weights_only=True))
    whole = state | {f"codec.{name}": value for name, value in network.state_dict().items()}
    half = {name: value.to("cpu", torch.float16).contiguous() for name, value in whole.items()}
    metadata = {
        "trained": "true",
        "steps": str(steps),
        "seed": str(seed),
        "recipe": RECIPE,
        "date": datetime.now(tz=timezone.utc).date().isoformat(),
        "licence": "Apache-2.0",
    }
    save_file(half, str(path), metadata=metadata)


def plot_loss(curve: Path, picture: Path) -> None:
    """Draw the three losses of a CSV file over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with curve.open() as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for name in ("loss_masked", "loss", "loss_known"):
        values = [float(row[name]) for row in rows]
        smooth = values[:1]
        for value in values[1:]:
            smooth.append(smooth[-1] + SMOOTHING * (value - smooth[-1]))
        (line,) = axes.plot(steps, smooth, label=name)
        axes.plot(steps, values, color=line.get_color(), alpha=0.25, linewidth=0.5)
    axes.set(xlabel="step", ylabel="mean squared error of the velocity", yscale="log")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)


def main() -> None:
    """Export the averaged weights of a checkpoint."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--codec", type=Path, default=None, help="what train_codec.py saved")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    state = torch.load(args.checkpoint, map_location="cpu", weights_only=True)
    export_weights(
        state["ema"], args.weights, codec=args.codec, steps=int(state["step"]), seed=args.seed
    )


if __name__ == "__main__":
    main()
