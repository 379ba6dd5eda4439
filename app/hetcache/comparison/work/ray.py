"""Workers that are actors of a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, final

from attrs import define, evolve, field

from hetcache.comparison.work.workers import Answer, Crew, Died, Worker, answer_to
from hetcache.running.cluster import QUIET, Cluster, joined

if TYPE_CHECKING:
    from typing_extensions import Self

    from hetcache.comparison.work.bench import BenchSettings
    from hetcache.comparison.work.tasks import Task

__all__ = ["RayCrew"]


@final
@define(eq=False)
class _Actor(Worker):
    cluster: Cluster
    actor: Any
    answer: Any = field(default=None, init=False)

    def send(self, task: Task) -> None:
        """Give it a task; that it is dead is found when its answer is waited for."""
        self.answer = self.actor.perform.remote(task)

    def stop(self) -> None:
        """Kill it."""
        self.cluster.ray.kill(self.actor)

    def receive(self) -> Answer | Died:
        """Take the answer."""
        try:
            answer: Answer = self.cluster.ray.get(self.answer)
        except self.cluster.ray.exceptions.RayActorError as error:
            return Died(how=self.cluster.died(error))
        return answer


@final
@define(eq=False)
class RayCrew(Crew):
    """Workers on a Ray cluster; without an address, one is started on this machine.

    Attributes:
        settings: What all runs have in common.
        workers: How many work side by side; None takes one for each GPU, and otherwise one.
        address: Of a cluster that is there, or None.
    """

    settings: BenchSettings
    workers: int | None = None
    address: str | None = None
    _open: ExitStack = field(factory=ExitStack, init=False)
    _cluster: Cluster | None = field(default=None, init=False)

    @property
    def count(self) -> int:  # type: ignore[override]
        """How many work side by side."""
        return self.workers or 1 if self._cluster is None else self._cluster.count

    def __enter__(self) -> Self:
        """Connect to the cluster, or start one.

        Raises:
            ConfigError: Ray is not installed, or the cluster is not there or too small.
        """
        cuda = self.settings.device in {"auto", "cuda"}
        self._cluster = self._open.enter_context(joined(self.address, self.workers, cuda=cuda))
        return self

    def hire(self, place: int) -> Worker:
        """Start an actor, with a GPU of its own where the cluster has some."""
        cluster = self._there
        settings = evolve(self.settings, threads=cluster.threads)
        return _Actor(cluster, cluster.actor(_Performer, settings))

    def wait(self, workers: Sequence[Worker]) -> list[tuple[Worker, Answer | Died]]:
        """Wait for one answer."""
        busy = [worker for worker in workers if isinstance(worker, _Actor)]
        ready, _ = self._there.ray.wait([worker.answer for worker in busy], num_returns=1)
        return [(worker, worker.receive()) for worker in busy if worker.answer in ready]

    def __exit__(self, *_: object) -> None:
        """End the actors, and the cluster where it was started here."""
        self._open.close()

    @property
    def _there(self) -> Cluster:
        if self._cluster is None:
            raise RuntimeError("the crew is not at work")
        return self._cluster


class _Performer:
    """What runs on the cluster."""

    def __init__(self, settings: BenchSettings) -> None:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        import torch

        from hetcache.comparison.work.bench import Bench
        from hetcache_core import discover

        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        self._bench = Bench(settings, discover())

    def perform(self, task: Task) -> Answer:
        return answer_to(task, self._bench)
