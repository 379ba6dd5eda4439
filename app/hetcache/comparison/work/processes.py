"""Workers that are processes of this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Final, final

from attrs import define, evolve, field

from hetcache.comparison.work.bench import Bench, BenchSettings
from hetcache.comparison.work.tasks import Task
from hetcache.comparison.work.workers import Answer, Crew, Died, Worker, answer_to
from hetcache.running.cluster import QUIET

__all__ = ["Processes", "devices_for", "threads_for"]

LAST: Final = -1000
"""Priority below which nothing else is tidied up."""

PATIENCE: Final = 3.0
"""Seconds that a worker has to end by itself."""


def devices_for(device: str, workers: int | None) -> list[str]:
    """Say on which device each worker runs.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".
        workers: How many there are; None takes one for each CUDA device, and otherwise one.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device not in {"auto", "cuda"} or not count:
        return [device] * (workers or 1)
    return [f"cuda:{place % count}" for place in range(workers or count)]


def threads_for(devices: Sequence[str]) -> int | None:
    """Share the cores of this machine among workers; None for one worker, who may take all.

    What ``OMP_NUM_THREADS`` says is left as it is.
    """
    if len(devices) == 1 or "OMP_NUM_THREADS" in os.environ:
        return None
    return max(1, (os.cpu_count() or 1) // len(devices))


@final
@define(eq=False)
class _Process(Worker):
    process: BaseProcess
    connection: Connection

    def send(self, task: Task) -> None:
        """Give it a task; that it is dead is found when its answer is waited for."""
        with contextlib.suppress(OSError):
            self.connection.send(task)

    def stop(self) -> None:
        """End it, with time to tidy up."""
        self.process.terminate()
        self.process.join(PATIENCE)
        self.process.kill()
        self.process.join()
        self.connection.close()

    def receive(self) -> Answer | Died:
        """Take what has arrived."""
        try:
            answer: Answer = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            return Died(how=_how(self.process.exitcode))
        return answer


@final
@define(eq=False)
class Processes(Crew):
    """Workers in processes of their own, which end with this one.

    Attributes:
        settings: What all runs have in common.
        devices: The device of each worker.
    """

    settings: BenchSettings
    devices: Sequence[str]
    _hired: list[_Process] = field(factory=list, init=False)

    @property
    def count(self) -> int:  # type: ignore[override]
        """How many work side by side."""
        return len(self.devices)

    def hire(self, place: int) -> Worker:
        """Start a process; it imports what it needs itself."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        settings = evolve(
            self.settings, device=self.devices[place], threads=threads_for(self.devices)
        )
        process = context.Process(
            target=_serve, args=(theirs, settings), name=f"hetcache-{place}", daemon=True
        )
        process.start()
        theirs.close()  # so that the pipe ends with the worker
        worker = _Process(process, ours)
        self._hired.append(worker)
        return worker

    def wait(self, workers: Sequence[Worker]) -> list[tuple[Worker, Answer | Died]]:
        """Wait for pipes in which something has arrived, or that have ended."""
        busy = {w.connection: w for w in workers if isinstance(w, _Process)}
        ready = wait(list(busy))
        found = [busy[connection] for connection in ready if isinstance(connection, Connection)]
        return [(worker, worker.receive()) for worker in found]

    def __exit__(self, *_: object) -> None:
        """End all processes."""
        for worker in self._hired:
            worker.stop()


def _serve(connection: Connection, settings: BenchSettings) -> None:
    """Perform tasks until the process that sends them ends; the body of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; the parent decides
    signal.signal(signal.SIGTERM, _end)
    # The last thing to happen: taking all modules apart would take seconds, and frees nothing.
    Finalize(None, os._exit, args=(1,), exitpriority=LAST)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    sys.stdout = sys.stderr
    import torch

    from hetcache_core import discover

    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    tasks: list[Task] = []
    arrived = threading.Semaphore(0)

    def listen() -> None:
        # In a thread of its own, so that the end of the parent ends a run that is under way.
        try:
            while True:
                tasks.append(connection.recv())
                arrived.release()
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
    try:
        bench = Bench(settings, discover())
        while True:
            arrived.acquire()
            connection.send(answer_to(tasks.pop(), bench))
    except KeyboardInterrupt:
        sys.exit(1)


def _end(*_: object) -> None:
    raise KeyboardInterrupt  # nothing on the way takes it for a fault


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by signal {-code}"
    return f"ended with status {code}"
