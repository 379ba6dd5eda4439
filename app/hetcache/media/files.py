"""Output files, checked before anything is computed."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from hetcache_core import ConfigError
from hetcache_core.files import resolved

__all__ = ["check_folder", "check_writable", "memory_bytes"]


def memory_bytes() -> int:
    """How much memory the machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_writable(path: Path, *, option: str) -> None:
    """Make sure that a file can be written, before hours are spent on what goes into it.

    Args:
        path: The file.
        option: The command-line option that named it.

    Raises:
        ConfigError: Its folder does not exist or cannot be written to, or it is something other than a
            file that may be replaced, or the null device.
    """
    if str(path) == os.devnull:
        return
    if str(path) == "-":
        raise ConfigError("- is no file, and nothing is written to stdout", where=option)
    try:
        final = resolved(path)
        mode = final.stat().st_mode
    except FileNotFoundError:
        mode = None
    except (OSError, ValueError) as error:  # a name that is too long, a circle of links
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{path} cannot be written: {reason}", where=option) from error
    if mode is not None and stat.S_ISDIR(mode):
        raise ConfigError(f"{path} is a folder; name a file in it", where=option)
    if mode is not None and _is_printed_to(final):
        raise ConfigError(
            f"{path} is where this command prints", where=option, remedy="Name another file."
        )
    if mode is not None and not stat.S_ISREG(mode):
        raise ConfigError(
            f"{path} is a device, a pipe or a socket", where=option, remedy="Name a regular file."
        )
    if mode is not None and not os.access(final, os.W_OK):
        raise ConfigError(f"{path} is write-protected", where=option, remedy="Name another file.")
    if not final.parent.is_dir():
        raise ConfigError(
            f"the folder {final.parent} does not exist", where=option, remedy="Make it first."
        )
    _probe(final.parent, option)


def check_folder(folder: Path, *, option: str) -> None:
    """Make sure that a folder can be written to or made; nothing is made yet.

    Args:
        folder: The folder.
        option: The command-line option that named it.

    Raises:
        ConfigError: It cannot.
    """
    try:
        folder.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{folder} cannot be made: {reason}", where=option) from error
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not existing.exists():
        raise ConfigError(f"{existing} is a link that leads to nothing", where=option)
    if not existing.is_dir():
        raise ConfigError(f"{existing} is a file, not a folder", where=option)
    _probe(existing, option)


def _is_printed_to(path: Path) -> bool:
    """Tell whether a file is stdout or stderr, sent there: a new file in its place would get none of it."""
    found = path.stat()
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            if os.path.samestat(found, os.fstat(descriptor)):
                return True
    return False


def _probe(folder: Path, option: str) -> None:
    part = folder / f".{secrets.token_hex(8)}.part"
    try:
        part.touch()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"cannot write into {folder}: {reason}", where=option) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
