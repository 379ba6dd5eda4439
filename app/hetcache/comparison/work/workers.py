"""What runs a comparison's tasks: workers that come, answer, and may die."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from attrs import frozen

from hetcache.comparison.work.bench import Bench
from hetcache.comparison.work.tasks import Task
from hetcache_core import CacheStateError, ContractError, HetCacheError

__all__ = ["Answer", "Crew", "Died", "Worker", "answer_to"]


@frozen(eq=False, kw_only=True)
class Answer:
    """What a worker answers to a task.

    Attributes:
        value: What the task returned.
        error: The mistake that it found, or None.
        fault: The traceback of anything else that it raised, "" where it raised nothing.
    """

    value: Any = None
    error: HetCacheError | None = None
    fault: str = ""


@frozen(kw_only=True)
class Died:
    """Stands for the answer of a worker that is no more.

    Attributes:
        how: What is known of it: "was killed by signal 9".
    """

    how: str


class Worker(ABC):
    """Performs one task after the other, each when the one before was answered."""

    @abstractmethod
    def send(self, task: Task) -> None:
        """Give it a task."""

    @abstractmethod
    def stop(self) -> None:
        """End it, whatever it is doing; a dead one too."""


class Crew(AbstractContextManager["Crew"]):
    """Makes workers, and ends those that are left when its block ends.

    Attributes:
        count: How many work side by side.
    """

    count: int

    @abstractmethod
    def hire(self, place: int) -> Worker:
        """Start a worker.

        Args:
            place: Which of the ``count`` places it takes, from 0: says which device is its own.
        """

    @abstractmethod
    def wait(self, workers: Sequence[Worker]) -> list[tuple[Worker, Answer | Died]]:
        """Wait until at least one of some busy workers has answered or died."""


def answer_to(task: Task, bench: Bench) -> Answer:
    """Perform a task, inside of a worker."""
    import traceback

    try:
        return Answer(value=task.perform(bench))
    except KeyboardInterrupt:  # the worker is to end
        raise
    except (
        ContractError,
        CacheStateError,
    ):  # no mistake of the user's, but of a policy or a backbone
        return Answer(fault=traceback.format_exc())
    except HetCacheError as error:
        return Answer(error=error)
    except BaseException:  # noqa: BLE001 - a fault of one run must not end the others
        return Answer(fault=traceback.format_exc())
