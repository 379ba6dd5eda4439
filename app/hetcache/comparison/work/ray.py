"""Workers that are actors of a Ray cluster."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, final

from attrs import define, evolve, field

from hetcache.comparison.work.processes import QUIET
from hetcache.comparison.work.workers import Answer, Crew, Died, Worker, answer_to
from hetcache_core import ConfigError

if TYPE_CHECKING:
    from typing_extensions import Self

    from hetcache.comparison.work.bench import BenchSettings
    from hetcache.comparison.work.tasks import Task

__all__ = ["RayCrew"]

STORE_BYTES: Final = 1 << 28
"""Memory of a cluster that is started here, for what travels: clips and finished runs."""

RAY: Final = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""Environment of Ray: it reports nothing to anybody, and does not announce its coming defaults."""


LOOPBACK: Final = "127.0.0.1"
"""Where the servers of a cluster that is started here listen: whoever reaches one may run code."""

ALONE: Final = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Environment of a cluster of one machine: without it, Ray takes another address for the loopback one."""


@final
@define(eq=False)
class _Actor(Worker):
    ray: Any
    actor: Any
    answer: Any = field(default=None, init=False)

    def send(self, task: Task) -> None:
        """Give it a task; that it is dead is found when its answer is waited for."""
        self.answer = self.actor.perform.remote(task)

    def stop(self) -> None:
        """Kill it."""
        self.ray.kill(self.actor)

    def receive(self) -> Answer | Died:
        """Take the answer."""
        try:
            answer: Answer = self.ray.get(self.answer)
        except self.ray.exceptions.RayActorError as error:
            lines = str(error).strip().splitlines()
            return Died(how=f"ended: {lines[0] if lines else type(error).__name__}")
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
    _ray: Any = field(default=None, init=False)
    _gpus: int = field(default=0, init=False)
    _hired: list[_Actor] = field(factory=list, init=False)

    @property
    def count(self) -> int:  # type: ignore[override]
        """How many work side by side."""
        return self.workers or self._gpus or 1

    def __enter__(self) -> Self:
        """Connect to the cluster, or start one.

        Raises:
            ConfigError: Ray is not installed, or the cluster is not there or too small.
        """
        new = self.address is None
        for name, value in RAY.items():
            os.environ.setdefault(name, value)
        os.environ.update(ALONE if new else {})  # read when Ray is imported, and by its servers
        if new and os.environ.setdefault("RAY_AUTH_MODE", "token") == "token":
            # For later clusters of this process too, since Ray reads it once. Old releases read nothing.
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex())
        try:
            ray: Any = import_module("ray")
        except ImportError as error:
            raise ConfigError(
                "Ray is not installed", where="--workers", remedy="Run: pip install 'hetcache[ray]'"
            ) from error
        self._ray = ray
        cores = max(self.workers or 1, os.cpu_count() or 1)
        local = {
            "num_cpus": cores,
            "object_store_memory": STORE_BYTES,
            "include_dashboard": False,
            "_node_ip_address": LOOPBACK,
        }
        try:
            ray.init(
                address="local" if new else self.address,
                log_to_driver=False,
                logging_level="ERROR",
                **(local if new else {}),
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"there is no Ray cluster at {self.address}: {error}", where="--ray-address"
            ) from error
        if new and ray.util.get_node_ip_address() != LOOPBACK:
            ray.shutdown()
            raise ConfigError(
                "Ray would listen on every interface of this machine, where others could run code",
                where="--workers",
                remedy="Let hetcache be the first to import Ray, or give a cluster by --ray-address.",
            )
        there = ray.cluster_resources()
        cuda = self.settings.device in {"auto", "cuda"}
        self._gpus = int(there.get("GPU", 0)) if cuda else 0
        room = self._gpus or int(there.get("CPU", 0))
        if self.count > room:
            ray.shutdown()
            raise ConfigError(
                f"the Ray cluster has room for {room} workers, not for {self.count}",
                where="--workers",
                given=self.count,
            )
        return self

    def hire(self, place: int) -> Worker:
        """Start an actor, with a GPU of its own where the cluster has some."""
        made = self._ray.remote(num_cpus=1, num_gpus=1 if self._gpus else 0)(_Performer)
        actor = _Actor(self._ray, made.remote(evolve(self.settings, threads=_threads(self.count))))
        self._hired.append(actor)
        return actor

    def wait(self, workers: Sequence[Worker]) -> list[tuple[Worker, Answer | Died]]:
        """Wait for one answer."""
        busy = [worker for worker in workers if isinstance(worker, _Actor)]
        ready, _ = self._ray.wait([worker.answer for worker in busy], num_returns=1)
        return [(worker, worker.receive()) for worker in busy if worker.answer in ready]

    def __exit__(self, *_: object) -> None:
        """End the actors, and the cluster where it was started here."""
        for actor in self._hired:
            actor.stop()
        self._ray.shutdown()


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


def _threads(workers: int) -> int | None:
    """Share the cores of one machine, since Ray would give every actor one thread."""
    if "OMP_NUM_THREADS" in os.environ:
        return int(os.environ["OMP_NUM_THREADS"])
    return max(1, (os.cpu_count() or 1) // workers)
