"""What a run is reported as: a table for people, or one JSON object."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from attrs import asdict, frozen
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hetcache.quality.regions import RegionQuality
from hetcache_core.session import QUALITY

if TYPE_CHECKING:
    from hetcache.running.run import RunResult

__all__ = ["Comparison", "Measures", "Report", "Speedup", "measure", "print_report", "speedup"]


@frozen(kw_only=True)
class Measures:
    """What one run cost; the keys of "run" and "reference" in the JSON output.

    Attributes:
        policy: Name of the policy.
        settings: Its settings.
        denoise_seconds: From the first call of the model to the end of the last step.
        total_seconds: The whole call, encoding and decoding included.
        flops: FLOPs of the model's calls.
        steps: Steps of the sampler.
        steps_full: Those that ran in full.
        steps_partial: Those that ran some of the tokens.
        steps_reused: Those that reused what was stored.
        peak_cache_bytes: Most bytes stored at once.
        target_speedup: How many times fewer FLOPs were asked for, or None.
        target_quality: The quality that was asked for, in decibels inside the mask, or None.
        reached_speedup: How many times fewer it computed, by its own count.
    """

    policy: str
    settings: Mapping[str, Any]
    denoise_seconds: float
    total_seconds: float
    flops: int
    steps: int
    steps_full: int
    steps_partial: int
    steps_reused: int
    peak_cache_bytes: int
    target_speedup: float | None
    target_quality: float | None
    reached_speedup: float


@frozen(kw_only=True)
class Speedup:
    """How many times less the run cost than the reference.

    Attributes:
        clock: In denoise seconds.
        total: In total seconds.
        flops: In FLOPs.
        clock_per_flops: ``clock / flops``: how much of what was saved arrives on the clock.
    """

    clock: float
    total: float
    flops: float
    clock_per_flops: float


@frozen(kw_only=True)
class Comparison:
    """A run held against the reference with the same seed.

    Attributes:
        reference: What the reference cost.
        speedup: How much less the run cost.
        psnr: How close its output is, by region, before compositing.
        met: Whether the quality that was asked for was met, or None where none was.
    """

    reference: Measures
    speedup: Speedup
    psnr: Mapping[str, RegionQuality]
    met: bool | None = None


@frozen(kw_only=True)
class Report:
    """Everything that a command has to say in the end.

    Attributes:
        backbone: Name of the backbone.
        model: The checkpoint, or None for the backbone's own.
        device: Where it ran.
        dtype: In which precision.
        seed: Seed of the noise.
        frames: Frames that were written.
        windows: Runs of the model that they took; windows with nothing to edit took none.
        height: Height that the model worked at.
        width: Width that the model worked at.
        fps: Frames a second of what was written.
        load_seconds: How long loading the model took.
        run: What the run cost.
        comparison: How it compares with the reference, or None.
        files: What was written, by role.
        notes: What a person should know.
        notice: The backbone's own warning that goes with every output, or None.
    """

    backbone: str
    model: str | None
    device: str
    dtype: str
    seed: int
    frames: int
    windows: int
    height: int
    width: int
    fps: Fraction
    load_seconds: float
    run: Measures
    comparison: Comparison | None
    files: Mapping[str, str]
    notes: tuple[str, ...]
    notice: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return the values of the JSON output."""
        plain = asdict(self)
        compared = plain.pop("comparison") or {
            "reference": None,
            "speedup": None,
            "psnr": None,
            "met": None,
        }
        return {**plain, "fps": str(self.fps), "notes": list(self.notes), **compared}


def measure(results: Sequence[RunResult]) -> Measures:
    """Take from runs of one policy what they cost together."""
    totals = [result.trace.totals() for result in results]
    flops = sum(each.flops for each in totals)
    first = results[0].trace
    return Measures(
        policy=first.policy,
        settings={name: _finite(value) for name, value in first.settings.items()},
        denoise_seconds=sum(each.denoise_seconds for each in totals),
        total_seconds=sum(result.total_seconds for result in results),
        flops=flops,
        steps=sum(each.steps for each in totals),
        steps_full=sum(each.steps_full for each in totals),
        steps_partial=sum(each.steps_partial for each in totals),
        steps_reused=sum(each.steps_reused for each in totals),
        peak_cache_bytes=max(each.peak_cache_bytes for each in totals),
        target_speedup=first.target_speedup,
        target_quality=next(
            (v for k, v in first.settings.items() if k.rpartition(".")[2] == QUALITY), None
        ),
        reached_speedup=sum(each.flops_full for each in totals) / flops if flops else 1.0,
    )


def _finite(value: object) -> object:
    """JSON has no infinity; as text it is at least readable."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def speedup(run: Measures, reference: Measures) -> Speedup:
    """Divide what two runs cost."""
    clock = reference.denoise_seconds / run.denoise_seconds
    flops = reference.flops / run.flops
    return Speedup(
        clock=clock,
        total=reference.total_seconds / run.total_seconds,
        flops=flops,
        clock_per_flops=clock / flops,
    )


def print_report(report: Report) -> None:
    """Print a report for people on stdout."""
    console = Console()
    windows = f" in {report.windows} windows" if report.windows > 1 else ""
    title = (
        f"{report.backbone}, {report.frames} frames of {report.height}x{report.width}{windows}, "
        f"{report.run.steps} steps, {report.device} {report.dtype}"
    )
    console.print(Text(title, style="bold"), soft_wrap=True)
    console.print(_table(report))
    for role, path in report.files.items():
        console.print(Text(f"{role}: {path}"), soft_wrap=True)


def _table(report: Report) -> Table:
    compared = report.comparison
    runs = [report.run] if compared is None else [compared.reference, report.run]
    table = Table()
    table.add_column("")
    for run in runs:
        table.add_column("reference" if run is not report.run else run.policy, justify="right")
    if compared is not None:
        table.add_column("speed-up", justify="right")
    gains = ("", "", "", "")
    if compared is not None:
        gain = compared.speedup
        gains = (f"{gain.clock:.2f}x", f"{gain.total:.2f}x", f"{gain.flops:.2f}x", "")
    rows = (
        ("denoise seconds", [f"{run.denoise_seconds:.2f}" for run in runs]),
        ("total seconds", [f"{run.total_seconds:.2f}" for run in runs]),
        ("TFLOPs", [f"{run.flops / 1e12:.4g}" for run in runs]),
        (
            "steps full / partial / reused",
            [f"{run.steps_full} / {run.steps_partial} / {run.steps_reused}" for run in runs],
        ),
        ("peak cache MiB", [f"{run.peak_cache_bytes / 2**20:.1f}" for run in runs]),
    )
    for (title, cells), gain_text in zip(rows, (*gains, ""), strict=True):
        table.add_row(title, *cells, *([gain_text] if compared is not None else []))
    if report.run.target_speedup is not None:
        shown = f"{report.run.target_speedup:g}x / {report.run.reached_speedup:.2f}x"
        cells = ["", shown, ""] if compared is not None else [shown]
        table.add_row("fewer FLOPs asked / reached", *cells)
    if report.run.target_quality is not None and compared is not None:
        found = str(compared.psnr["mask"])
        said = "met" if compared.met else "missed"
        table.add_row(
            "quality asked / reached", "", f"{report.run.target_quality:g} dB / {found}", said
        )
    if compared is not None:
        table.add_row(
            "clock speed-up / FLOP speed-up", "", "", f"{compared.speedup.clock_per_flops:.2f}"
        )
        table.add_section()
        for region, quality in compared.psnr.items():
            table.add_row(f"PSNR to the reference, {region}", "", str(quality), "")
    return table
