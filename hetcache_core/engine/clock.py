"""Durations without waiting for the device inside a run."""

from __future__ import annotations

import time

import torch
from attrs import define, field


@define(eq=False)
class Clock:
    """Measures calls and the loop around them.

    On CUDA, calls are bracketed by events that are read once, when the run is over; elsewhere the
    monotonic clock is read.
    """

    device: str
    _begun: float | None = field(default=None, init=False)
    _marks: list[tuple[float, float]] = field(factory=list, init=False)
    _events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = field(factory=list, init=False)
    _open: float = field(default=0.0, init=False)
    _opened: torch.cuda.Event | None = field(default=None, init=False)

    @property
    def _cuda(self) -> bool:
        return self.device.startswith("cuda")

    def start(self) -> None:
        """Mark the beginning of a call."""
        if self._begun is None:
            if self._cuda:
                torch.cuda.synchronize(self.device)
            self._begun = time.perf_counter()
        if self._cuda:
            self._opened = torch.cuda.Event(enable_timing=True)
            self._opened.record(torch.cuda.current_stream(self.device))
        else:
            self._open = time.perf_counter()

    def stop(self) -> None:
        """Mark the end of the call."""
        if self._opened is not None:
            end = torch.cuda.Event(enable_timing=True)
            end.record(torch.cuda.current_stream(self.device))
            # Kept whole or not at all: a call that raised has no duration.
            self._events.append((self._opened, end))
        else:
            self._marks.append((self._open, time.perf_counter()))

    def finish(self) -> tuple[float, list[float]]:
        """Return seconds since the first call began, and the seconds of each call."""
        if self._begun is None:
            return 0.0, []
        if self._cuda:
            torch.cuda.synchronize(self.device)
        total = time.perf_counter() - self._begun
        if self._cuda:
            return total, [begin.elapsed_time(end) / 1000 for begin, end in self._events]
        return total, [end - begin for begin, end in self._marks]
