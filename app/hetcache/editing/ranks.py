"""One edit by several processes that share the rows of its model: started here, or by ``torchrun``.

Every process runs the whole edit and takes the same decisions; the first one alone writes. They end together:
what goes wrong in one is told to whoever has started them, and the others are ended within seconds. One that
hangs is found by the others, whose exchange with it runs into a timeout.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

from attrs import define, evolve

from hetcache.editing.config import EditConfig
from hetcache.editing.edit import edit
from hetcache.editing.report import Report
from hetcache.running.device import choose_device
from hetcache_core import ConfigError, HetCacheError, Ranks

if TYPE_CHECKING:
    from hetcache_core import Registry

__all__ = ["edit_shared"]

TIMEOUT: Final = timedelta(minutes=2)
"""How long a process waits for another one: longer than any step, and than one of them loads later."""

GRACE: Final = 1.0
"""Seconds in which a reason may still come after one process has been seen to fail: others fail with it."""


def edit_shared(config: EditConfig, registry: Registry) -> Report | None:
    """Edit a video on several GPUs.

    Args:
        config: What is asked for.
        registry: Where the backbone and the policy are looked up.

    Returns:
        The report, or None where this process is one of ``torchrun``'s and not the first.

    Raises:
        HetCacheError: Something is wrong with what was asked for, or one of the processes ended.
    """
    if "WORLD_SIZE" in os.environ:
        return _as_rank(config, registry, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    size, device = config.gpus or 1, choose_device(config.place.device)
    if device != "cpu":
        choose_device(f"cuda:{size - 1}", option="--gpus")
        if ":" in device:
            raise ConfigError(
                f"--gpus {size} takes the first {size} GPUs, and --device names one",
                where="--device",
                remedy="Leave it out, or choose GPUs with CUDA_VISIBLE_DEVICES.",
            )
    # A process that has looked for CUDA cannot hand it on, and one on a CPU saves all imports.
    start: Any = multiprocessing.get_context("fork" if device == "cpu" and _FORKS else "spawn")
    with tempfile.TemporaryDirectory(prefix="hetcache-") as folder:
        started = []
        try:
            for rank in range(size):
                mine, theirs = start.Pipe(duplex=False)
                process = start.Process(
                    target=_started, args=(config, rank, size, folder, theirs), daemon=True
                )
                process.start()
                theirs.close()
                started.append(_Rank(rank, process, mine))
            return _reports(started)
        finally:
            for each in started:
                each.end()


_FORKS: Final = "fork" in multiprocessing.get_all_start_methods()


@final
@define(eq=False)
class _Rank:
    """A process, as whoever has started it sees it.

    Attributes:
        rank: Which one.
        process: The process.
        connection: Where it says how it ended.
        told: Its report, its error, or None.
        done: Whether it has done its part.
        over: Whether it will say nothing more.
    """

    rank: int
    process: BaseProcess
    connection: Connection
    told: Report | Exception | None = None
    done: bool = False
    over: bool = False

    def listen(self) -> None:
        """Take what it says; it has ended where it says nothing."""
        self.over = True
        with contextlib.suppress(EOFError, OSError):
            self.done, self.told = self.connection.recv()

    @property
    def failed(self) -> bool:
        """Whether it ended before that."""
        return self.over and not self.done

    def end(self) -> None:
        """End it, whatever it does."""
        if not self.over:
            self.process.kill()
        self.process.join(GRACE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()


def _reports(ranks: Sequence[_Rank]) -> Report:
    """Wait for all processes, and return the first one's report."""
    until: float | None = None
    while any(not each.over for each in ranks):
        left = None if until is None else until - time.monotonic()
        if left is not None and left <= 0:
            break
        ready = wait([each.connection for each in ranks if not each.over], left)
        for each in ranks:
            if each.connection in ready:
                each.listen()
        if until is None and any(each.failed for each in ranks):
            until = time.monotonic() + GRACE
    failed = [each for each in ranks if each.failed]
    if failed:
        raise _reason(failed, len(ranks))
    report = ranks[0].told
    if not isinstance(report, Report):
        raise HetCacheError("the first process made no report")
    return report


def _reason(failed: Sequence[_Rank], size: int) -> HetCacheError:
    """Choose what went wrong first: a named error, then a death, then what the others made of it."""
    for each in failed:
        if isinstance(each.told, HetCacheError):
            return each.told
    for each in failed:
        if each.told is None:
            each.process.join(GRACE)
            code = each.process.exitcode
            how = f"was killed by signal {-code}" if code is not None and code < 0 else "ended"
            return HetCacheError(
                f"process {each.rank + 1} of {size} {how}",
                where="--gpus",
                remedy="The others were ended, and nothing was written.",
            )
    return HetCacheError(
        f"process {failed[0].rank + 1} of {size}: {failed[0].told}",
        where="--gpus",
        remedy="Where it waited for another one, that one hangs. All were ended, and nothing was written.",
    )


def _started(config: EditConfig, rank: int, size: int, folder: str, answer: Connection) -> None:
    """Be one of the processes that ``edit_shared`` starts."""
    from hetcache_core import discover

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    try:
        report = _as_rank(config, discover(), rank, size, Path(folder) / "store")
        answer.send((True, report))
    except HetCacheError as error:
        answer.send((False, error))
    except KeyboardInterrupt:
        pass  # whoever has started this process was interrupted, too
    except Exception as error:  # noqa: BLE001 - told to whoever has started this process
        answer.send((False, RuntimeError(f"{type(error).__name__}: {error}")))


def _as_rank(
    config: EditConfig, registry: Registry, rank: int, size: int, store: Path | None = None
) -> Report | None:
    """Edit as one of several processes; the first alone writes and says anything."""
    import torch
    import torch.distributed as dist

    device = choose_device(config.place.device)
    if device != "cpu":
        local = int(os.environ.get("LOCAL_RANK", rank))
        torch.cuda.set_device(local)
        config = evolve(config, place=evolve(config.place, device=f"cuda:{local}"))
    dist.init_process_group(
        "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl",
        init_method="env://" if store is None else f"file://{store}",
        rank=rank,
        world_size=size,
        timeout=TIMEOUT,
    )
    try:
        with contextlib.nullcontext() if rank == 0 else _silent():
            report = edit(config, registry, ranks=Ranks(dist.group.WORLD)).report
        return report if rank == 0 else None
    finally:
        if (
            sys.exc_info()[0] is None
        ):  # otherwise others may wait for this one, and so would it for them
            dist.destroy_process_group()


@contextmanager
def _silent() -> Iterator[None]:
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield
