"""Many edits, one after the other on this machine, or side by side on a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from attrs import frozen

from hetcache.editing.edit import edit
from hetcache.running.cluster import QUIET, Cluster, joined
from hetcache.running.console import note
from hetcache_core import ConfigError, HetCacheError, discover

if TYPE_CHECKING:
    from hetcache.editing.config import EditConfig
    from hetcache.editing.report import Report
    from hetcache.running.groups import WorkersConfig
    from hetcache_core import Registry

__all__ = ["Ended", "run_jobs"]


@final
@frozen
class Ended:
    """A job that has come to its end.

    Attributes:
        job: Its number, from 1.
        output: What it was to write.
        report: What it did, or None where it failed.
        error: Why it failed.
    """

    job: int
    output: str
    report: Report | None
    error: str = ""


def run_jobs(configs: Sequence[EditConfig], registry: Registry) -> Iterator[Ended]:
    """Run edits; one that fails costs itself alone, and each worker loads a model once for all that use it.

    Args:
        configs: The edits, which agree on who works.
        registry: Where backbones and policies are looked up, on this machine.

    Yields:
        What has ended, as it does.

    Raises:
        ConfigError: The workers cannot be had.
    """
    work = configs[0].work
    if any(config.work != work for config in configs):
        raise ConfigError("all jobs have the same workers", where="--workers")
    if work.workers is None:
        return _here(configs, registry)
    if not work.on_ray:
        raise ConfigError(
            "jobs run one after the other on one machine",
            where="--workers",
            remedy="Take ray or ray:N, or leave it out.",
        )
    return _on_ray(configs, work)


def _here(configs: Sequence[EditConfig], registry: Registry) -> Iterator[Ended]:
    loaded: dict[Any, Any] = {}
    for number, config in enumerate(configs, 1):
        note(f"job {number} of {len(configs)}: {config.output}")
        try:
            yield Ended(number, config.output, edit(config, registry, loaded=loaded).report)
        except HetCacheError as error:
            yield Ended(number, config.output, None, str(error))


def _on_ray(configs: Sequence[EditConfig], work: WorkersConfig) -> Iterator[Ended]:
    cuda = any(config.place.device in {"auto", "cuda"} for config in configs)
    waiting = list(enumerate(configs, 1))
    with joined(work.ray_address, work.count, cuda=cuda) as cluster:
        count = min(cluster.count, len(configs))
        idle = [_editor(cluster) for _ in range(count)]
        busy: dict[Any, tuple[Any, int, EditConfig]] = {}
        while waiting or busy:
            while idle and (ready := _ready(waiting, [config for _, _, config in busy.values()])):
                waiting.remove(ready)
                number, config = ready
                note(f"job {number} of {len(configs)}: {config.output}")
                actor = idle.pop()
                busy[actor.edit.remote(config)] = (actor, number, config)
            (answer,), _ = cluster.ray.wait(list(busy), num_returns=1)
            actor, number, config = busy.pop(answer)
            try:
                report, error = cluster.ray.get(answer)
            except cluster.ray.exceptions.RayError as ended:
                report, error = None, f"the worker {cluster.died(ended)}"
                cluster.ray.kill(actor)  # one that lives would hold the place of the next
                actor = _editor(cluster)
            idle.append(actor)
            yield Ended(number, config.output, report, error)


def _ready(
    waiting: Sequence[tuple[int, EditConfig]], running: Sequence[EditConfig]
) -> tuple[int, EditConfig] | None:
    """Find the first job that reads nothing which one before it has still to make."""
    made = {Path(config.output).resolve() for config in running}
    for number, config in waiting:
        read = {Path(each).resolve() for each in (config.video, config.image, config.mask) if each}
        if not read & made:
            return number, config
        made.add(Path(config.output).resolve())
    return None


def _editor(cluster: Cluster) -> Any:
    return cluster.actor(_Editor, Path.cwd(), cluster.threads)


class _Editor:
    """What edits on the cluster, in the folder where the command was given."""

    def __init__(self, folder: Path, threads: int) -> None:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        import torch

        torch.set_num_threads(threads)
        self._folder = folder
        self._loaded: dict[Any, Any] = {}

    def edit(self, config: EditConfig) -> tuple[Report | None, str]:
        try:
            os.chdir(self._folder)
            return edit(config, discover(), loaded=self._loaded).report, ""
        except (HetCacheError, OSError) as error:
            return None, str(error)
