"""The entry point ``hetcache``: runs a command and turns what goes wrong into one line."""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NoReturn, TextIO

from hetcache.extra import needs_app
from hetcache_core import HetCacheError

__all__ = ["main", "program"]

DEBUG: Final = "HETCACHE_DEBUG"
"""Environment variable that adds the traceback to an error."""

USAGE: Final = 2
"""Exit status of every mistake that the user can repair."""

UNREAD: Final = 1
"""Exit status where the reader of a pipe left before all was written, as typer has it too."""

SIGNALLED: Final = 128
"""Exit status after a signal: this plus its number, as shells count; 130 after Ctrl-C."""

NO_ROOM: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
"""What a file system says that takes no more."""

ENDING: Final = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Signals that end a process; Windows has no SIGHUP."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: What follows ``hetcache`` on the command line; that of the process by default.

    Returns:
        The exit status: 0, 2 for a mistake that is named on one line of stderr, 128 plus its number after
        a signal (130 after Ctrl-C), 1 where a run failed or whoever reads the output has left.
    """
    _open_streams()
    if not sys.stderr.isatty():
        # Read by tqdm when it is imported: bars of libraries would fill a log with fragments.
        os.environ.setdefault("TQDM_DISABLE", "1")
    # Read by OpenMP when torch is imported. Threads that spin while they wait for one another lose to
    # whatever else runs: two of them on two busy cores took 70 times as long as these do. On idle cores
    # these take 1.08 times as long (17x384x384, tiny-vace).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    ended = [int(signal.SIGINT)]
    try:
        with needs_app(), _ended_by_signals(ended):
            status = _flushed(_run(arguments))
            # typer makes the status of Ctrl-C of every interruption.
            return SIGNALLED + ended[-1] if len(ended) > 1 else status
    except HetCacheError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _interrupted(ended[-1])
    except BrokenPipeError:
        _forget(sys.stdout)
        return UNREAD
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        _forget(sys.stdout)
        return _fail(f"{error.filename or 'stdout'} cannot be written: {error.strerror}")


def program() -> NoReturn:
    """Be the program ``hetcache``.

    It leaves at once: taking the interpreter apart, some half a million objects, takes as long as a small
    edit. What asked to be called at the end is called, and threads that go on are waited for as always.
    """
    status = main()
    main_thread = threading.main_thread()
    if any(not (t.daemon or t is main_thread) for t in threading.enumerate()):
        sys.exit(status)
    atexit._run_exitfuncs()  # noqa: SLF001 - as the interpreter does
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


def _open_streams() -> None:
    """Open what of stdin, stdout and stderr is closed: the next file would else get what is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _forget(stream: TextIO) -> None:
    """Let go what a buffer still holds: it would fail once more when the interpreter leaves."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def _ended_by_signals(ended: list[int]) -> Iterator[None]:
    """End as by Ctrl-C where the process is terminated or its terminal goes: half-written files go too.

    Args:
        ended: the numbers of the signals that came are appended.
    """

    def end(number: int, _frame: object) -> None:
        ended.append(number)
        raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in ENDING:
            if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores one, and means it
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _flushed(status: int) -> int:
    """Pass a status on once all that was printed has been taken."""
    sys.stdout.flush()
    return status


def _run(arguments: Sequence[str] | None) -> int:
    import typer

    from hetcache.cli.command_line import command_line
    from hetcache.running.console import find_plugins

    # typer brings its own copy of click, or uses the installed one, by its version.
    usage_error: Any = typer.BadParameter.__base__
    try:
        status = command_line(*find_plugins())(
            arguments, prog_name="hetcache", standalone_mode=False
        )
    except usage_error as error:
        where = f"{error.ctx.command_path}: " if error.ctx else ""
        return _fail(f"{where}{error.format_message()}")
    except typer.Abort as error:  # what typer makes of an interruption
        raise KeyboardInterrupt from error
    return status if isinstance(status, int) else 0


def _fail(message: str) -> int:
    try:
        if os.environ.get(DEBUG) == "1":
            traceback.print_exc()
        sys.stderr.write(f"error: {' '.join(message.split())}\n")
    except OSError:  # the disk that holds the log may be full
        _forget(sys.stderr)
    return USAGE


def _interrupted(number: int) -> int:
    with contextlib.suppress(OSError):  # the terminal may be gone
        sys.stderr.write("interrupted\n")
    return SIGNALLED + number
