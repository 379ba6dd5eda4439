"""A Ray cluster to work on: one that is there, or one of this machine alone."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final, final

from attrs import define, field

from hetcache_core import ConfigError

__all__ = ["Cluster", "joined"]

STORE_BYTES: Final = 1 << 28
"""Memory of a cluster that is started here, for what travels: clips and finished runs."""

RAY: Final = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""Environment of Ray: it reports nothing to anybody, and does not announce its coming defaults."""

LOOPBACK: Final = "127.0.0.1"
"""Where the servers of a cluster that is started here listen: whoever reaches one may run code."""

ALONE: Final = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Environment of a cluster of one machine: without it, Ray takes another address for the loopback one."""

QUIET: Final = {"DIFFUSERS_VERBOSITY": "error", "TRANSFORMERS_VERBOSITY": "error"}
"""Environment of workers: what libraries advise at every run would bury everything else."""


@final
@define(eq=False)
class Cluster:
    """A cluster, and the actors that were started on it.

    Attributes:
        ray: The library.
        gpus: How many GPUs there are for workers; 0 where they run on CPUs.
        count: How many workers work side by side.
    """

    ray: Any
    gpus: int
    count: int
    _actors: list[Any] = field(factory=list, init=False)

    @property
    def threads(self) -> int:
        """How many threads each worker gets: Ray would give one, and cores of one machine are shared."""
        if "OMP_NUM_THREADS" in os.environ:
            return int(os.environ["OMP_NUM_THREADS"])
        return max(1, (os.cpu_count() or 1) // self.count)

    def actor(self, kind: type, *arguments: object) -> Any:
        """Start an actor of a class, with a GPU of its own where the cluster has some."""
        made = self.ray.remote(num_cpus=1, num_gpus=1 if self.gpus else 0)(kind)
        self._actors.append(made.remote(*arguments))
        return self._actors[-1]

    def died(self, error: BaseException) -> str:
        """Say in a line how an actor ended."""
        # Of what was raised in an actor, Ray says the whole traceback, and has the cause beside it.
        cause = getattr(error, "cause", None) or error
        lines = str(cause).strip().splitlines()
        return f"ended: {lines[0] if lines else type(cause).__name__}"


@contextmanager
def joined(address: str | None, workers: int | None, *, cuda: bool) -> Iterator[Cluster]:
    """Be on a cluster while the block lasts; its end ends the actors, and a cluster that was started here.

    Args:
        address: Of a cluster that is there; None starts one that listens on loopback and asks for a token.
        workers: How many work side by side; None takes one for each GPU, and otherwise one.
        cuda: Whether workers may take GPUs.

    Raises:
        ConfigError: Ray is not installed, or the cluster is not there or too small.
    """
    new = address is None
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
    local = {
        "num_cpus": max(workers or 1, os.cpu_count() or 1),
        "object_store_memory": STORE_BYTES,
        "include_dashboard": False,
        "_node_ip_address": LOOPBACK,
    }
    try:
        ray.init(
            address="local" if new else address,
            log_to_driver=False,
            logging_level="ERROR",
            **(local if new else {}),
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"there is no Ray cluster at {address}: {error}", where="--ray-address"
        ) from error
    cluster = None
    try:
        if new and ray.util.get_node_ip_address() != LOOPBACK:
            raise ConfigError(
                "Ray would listen on every interface of this machine, where others could run code",
                where="--workers",
                remedy="Let hetcache be the first to import Ray, or give a cluster by --ray-address.",
            )
        there = ray.cluster_resources()
        gpus = int(there.get("GPU", 0)) if cuda else 0
        room, count = gpus or int(there.get("CPU", 0)), workers or gpus or 1
        if count > room:
            raise ConfigError(
                f"the Ray cluster has room for {room} workers, not for {count}",
                where="--workers",
                given=count,
            )
        cluster = Cluster(ray, gpus, count)
        yield cluster
    finally:
        for actor in () if cluster is None else cluster._actors:  # noqa: SLF001 - made above
            ray.kill(actor)
        ray.shutdown()
