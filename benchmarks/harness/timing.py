"""Clocks, and repeats in alternation.

On CUDA a mark is an event in the current stream, read when everything is over, so that measuring does
not wait for the device. On one CPU thread the processor time of the process is read: work of others on
the machine then hardly counts. With several threads it would add them up, so the monotonic clock is
read instead.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, Final, TypeVar

import torch
from attrs import define, field, frozen

T = TypeVar("T")

SHORTEST_S: Final = 0.02
"""A sample lasts at least this long: a call that takes less is repeated within it."""

MIB: Final = 2**20


def is_cuda(device: str) -> bool:
    """Whether a device is a CUDA one."""
    return device.startswith("cuda")


def now_s(device: str) -> float:
    """Read the clock in seconds, after everything that is queued on the device."""
    if is_cuda(device):
        torch.cuda.synchronize(device)
    alone = not is_cuda(device) and torch.get_num_threads() == 1
    return time.process_time() if alone else time.perf_counter()


@define(eq=False)
class Stopwatch:
    """Marks in time, and the seconds between them.

    Attributes:
        device: whose time is measured.
    """

    device: str
    _marks: list[Any] = field(factory=list, init=False)

    def mark(self) -> None:
        """Mark this moment; does not wait for the device."""
        if is_cuda(self.device):
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
            self._marks.append(event)
        else:
            self._marks.append(now_s(self.device))

    def laps_s(self) -> list[float]:
        """Return the seconds between neighbouring marks; waits for the device."""
        if is_cuda(self.device):
            torch.cuda.synchronize(self.device)
            pairs = zip(self._marks, self._marks[1:], strict=False)
            return [begin.elapsed_time(end) / 1000 for begin, end in pairs]
        return [end - begin for begin, end in zip(self._marks, self._marks[1:], strict=False)]


@frozen(kw_only=True)
class Measured:
    """Samples of one variant.

    Attributes:
        samples_s: seconds of one call, a sample a round.
        peak_mib: most memory in use: on CUDA what torch had allocated, on the CPU the most that the
            process has held so far.
    """

    samples_s: tuple[float, ...]
    peak_mib: float

    @property
    def seconds(self) -> float:
        """Median of the samples."""
        return median(self.samples_s)


def reset_peak(device: str) -> None:
    """Forget the most memory in use, where that can be done."""
    if is_cuda(device):
        torch.cuda.reset_peak_memory_stats(device)


def peak_mib(device: str) -> float:
    """Return the most memory in use, see ``Measured``."""
    if is_cuda(device):
        return torch.cuda.max_memory_allocated(device) / MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


def alternate(
    variants: Mapping[str, Callable[[], T]], rounds: int, *, warm_up: bool = True
) -> dict[str, list[T]]:
    """Call variants in alternation (A B C A B C …), so that slow drifts meet all of them.

    Args:
        variants: what is called, by name.
        rounds: how often.
        warm_up: begin with a round whose results are dropped.

    Returns:
        Their results, one a round.
    """
    results: dict[str, list[T]] = {name: [] for name in variants}
    for turn in range(rounds + warm_up):
        for name, call in variants.items():
            result = call()
            if turn >= warm_up:
                results[name].append(result)
    return results


def measure(
    variants: Mapping[str, Callable[[], object]], repeats: int, device: str
) -> dict[str, Measured]:
    """Time calls in alternation, after a warm-up.

    Args:
        variants: what is timed, by name.
        repeats: samples of each.
        device: whose time is measured.
    """
    counts = {name: _calls_in(call, device) for name, call in variants.items()}
    peaks = dict.fromkeys(variants, 0.0)

    def sample(name: str, call: Callable[[], object]) -> Callable[[], float]:
        def timed() -> float:
            reset_peak(device)
            begun = now_s(device)
            for _ in range(counts[name]):
                call()
            spent = (now_s(device) - begun) / counts[name]
            peaks[name] = max(peaks[name], peak_mib(device))
            return spent

        return timed

    samples = alternate(
        {name: sample(name, call) for name, call in variants.items()}, repeats, warm_up=False
    )
    return {
        name: Measured(samples_s=tuple(seconds), peak_mib=peaks[name])
        for name, seconds in samples.items()
    }


def _calls_in(call: Callable[[], object], device: str) -> int:
    """Warm up, and say how many calls make a sample."""
    call()
    begun = now_s(device)
    call()
    spent = now_s(device) - begun
    return max(1, math.ceil(SHORTEST_S / max(spent, 1e-7)))
