"""Hands the runs of a comparison to workers, and writes down what comes back."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from hetcache.comparison.plan.footage import Footage, frames_from_bytes
from hetcache.comparison.plan.grid import Unit
from hetcache.comparison.results.folder import Row
from hetcache.comparison.work.desk import Desk, write_bytes, write_features
from hetcache.comparison.work.tasks import Done, Examine, Found, Open, Reference, Run, Task
from hetcache.comparison.work.workers import Answer, Crew, Died, Worker
from hetcache.running.console import note
from hetcache.running.specs import REFERENCE, BackboneSpec
from hetcache_core import ConfigError
from hetcache_core.files import read_bytes

__all__ = ["examine", "run_units"]

RETRIES: Final = 2
"""How often the runs of a worker that died are begun again."""

Conversation = Generator[Task, Any, None]


def run_units(units: Iterable[Unit], crew: Crew, desk: Desk, first: Worker) -> None:
    """Make all runs that have no row yet.

    Args:
        units: The runs; those of one unit go to one worker.
        crew: The workers. One that dies is replaced, and its unit begun again where it ended; a run on
            which workers die again and again has failed.
        desk: Where finished runs go.
        first: The worker in the first place, which is there already.

    Raises:
        HetCacheError: A mistake was found. Finished runs are kept.
    """
    waiting = deque((unit, 0) for unit in units if desk.pending(unit))
    free: list[int] = list(range(crew.count))[::-1]
    idle = {0: first}
    busy: dict[Worker, tuple[int, Unit, int, Conversation]] = {}
    while waiting or busy:
        while waiting and free:
            unit, deaths = waiting.popleft()
            place = free.pop()
            worker = idle.pop(place, None) or crew.hire(place)
            talk = _talk(unit, desk)
            worker.send(next(talk))
            busy[worker] = (place, unit, deaths, talk)
        for worker, answer in crew.wait(list(busy)):
            place, unit, deaths, talk = busy[worker]
            if isinstance(answer, Died):
                del busy[worker]
                worker.stop()
                free.append(place)
                if deaths == RETRIES:
                    # The next run of the unit has one more try: it may not be the one that kills.
                    desk.fail(desk.pending(unit)[0][0], _killing(answer))
                    deaths -= 1
                if desk.pending(unit):
                    waiting.appendleft((unit, deaths + 1))
                continue
            if answer.error is not None:
                raise answer.error
            try:
                worker.send(talk.send(answer))
            except StopIteration:
                del busy[worker]
                free.append(place)
                idle[place] = worker


def examine(
    backbones: Sequence[BackboneSpec], crew: Crew
) -> tuple[dict[BackboneSpec, Found], Worker]:
    """Load every model once, the first one last, so that it is there when the runs begin.

    Args:
        backbones: The models.
        crew: Whose first worker loads them.

    Returns:
        What was found, and the worker.

    Raises:
        HetCacheError: One cannot be loaded.
    """
    found = {}
    worker = crew.hire(0)
    for spec in reversed(backbones):
        worker.send(Examine(backbone=spec))
        _, answer = crew.wait([worker])[0]
        if isinstance(answer, Died):
            raise ConfigError(
                f"the process that loaded {spec} {answer.how}",
                where="--backbones",
                remedy="The memory may be too small for it.",
            )
        if answer.error is not None:
            raise answer.error
        if answer.fault:
            raise RuntimeError(answer.fault)
        found[spec] = answer.value
    return {spec: found[spec] for spec in backbones}, worker


def _talk(unit: Unit, desk: Desk) -> Conversation:
    """Give the tasks of a unit one after the other, and take the answers."""
    footage = unit.clip.read()
    first = unit.runs[0][0]
    path = desk.results.reference_path(first)
    reference = _whole_reference(path, footage)
    opened: Answer = yield Open(
        backbone=unit.backbone,
        footage=footage,
        seed=unit.seed,
        steps=unit.steps,
        reference=reference,
    )
    if opened.value:
        write_features(desk.results.clip_folder(footage.clip.name), opened.value)
    fault = opened.fault
    if not fault and reference is None and desk.pending(unit)[0][0].policy != REFERENCE:
        again: Answer = yield Reference()  # its row is there, but its frames are lost
        fault = again.fault
        if not fault:
            write_bytes(path, again.value)
    refusal = ""
    for key, policy in desk.pending(unit):
        if fault:
            desk.fail(key, fault)
            continue
        if refusal:
            desk.take(Done(row=Row(key=key, status="refused", note=refusal)))
            continue
        answer: Answer = yield Run(key=key, policy=policy)
        if answer.fault:
            desk.fail(key, answer.fault)
        else:
            desk.take(answer.value)
        if policy.name == REFERENCE and not path.exists():
            # Nothing can be held against an uncached run that there is none of.
            fault, refusal = answer.fault, "" if answer.fault else answer.value.row.note


def _whole_reference(path: Path, footage: Footage) -> bytes | None:
    """Read the frames of an uncached run; those that are damaged are deleted, and made again."""
    if not path.exists():
        return None
    data = read_bytes(path)
    try:
        frames_from_bytes(data, footage.clip.video.shape)
    except ValueError as error:
        note(f"{path} is damaged and is made again: {error}")
        path.unlink()
        return None
    return data


def _killing(death: Died) -> str:
    return (
        f"{RETRIES + 1} workers died on it; the last one {death.how}. The memory may be too small: take a "
        "smaller size or fewer --workers."
    )
