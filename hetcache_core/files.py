"""Files: read within a limit, and written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from hetcache_core.errors import ConfigError

__all__ = [
    "LARGEST_TEXT",
    "PARTS",
    "read_bytes",
    "read_json",
    "read_text",
    "replacing",
    "resolved",
    "write_bytes",
    "write_text",
]

LARGEST_TEXT: Final = 1 << 30
"""Most bytes that are read of a text file: far more than a trace has, and less than memory."""

LONGEST_SUFFIX: Final = 16

PARTS: Final = ".*.part*"
"""Temporary names, as a pattern; only a process that was killed leaves one behind."""


def read_bytes(path: Path, *, where: str = "", remedy: str = "", most: int = LARGEST_TEXT) -> bytes:
    """Read a whole file, or refuse it where it is larger than anything of its kind.

    Args:
        path: The file.
        where: What it is for, for messages.
        remedy: What to do where it cannot be read.
        most: Most bytes that it may have; a device without an end is refused like that as well.

    Raises:
        ConfigError: It cannot be read, or is too large.
    """
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{path} cannot be read: {reason}", where=where, remedy=remedy) from error
    if len(data) > most:
        raise ConfigError(
            f"{path} cannot be read: it has more than {most:,} bytes", where=where, remedy=remedy
        )
    return data


def read_text(path: Path, *, where: str = "", remedy: str = "", most: int = LARGEST_TEXT) -> str:
    """Read a text file in UTF-8; arguments and errors as of ``read_bytes``."""
    try:
        return read_bytes(path, where=where, remedy=remedy, most=most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} cannot be read: it is no text in UTF-8", where=where, remedy=remedy
        ) from error


def read_json(path: Path, *, where: str = "", remedy: str = "", most: int = LARGEST_TEXT) -> Any:
    """Read a JSON file; one that is nested too deeply or names a key twice is damaged.

    Arguments and errors are those of ``read_bytes``.
    """
    text = read_text(path, where=where, remedy=remedy, most=most)
    try:
        return json.loads(text, object_pairs_hook=_each_once)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConfigError(
            f"{path} cannot be read as JSON: {reason}", where=where, remedy=remedy
        ) from error


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it names {twice!r} twice")
    return values


def resolved(path: Path) -> Path:
    """Return the file that a name stands for: links are followed, and written through.

    Raises:
        OSError: Links lead in a circle.
    """
    try:
        return Path(os.path.realpath(path)) if path.is_symlink() else path
    except RuntimeError as error:
        raise OSError(str(error)) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside a file; when the block ends, it is synced to disk and renamed.

    Whoever looks sees the old file or the new one, also after a power cut. A link stays a link, and the
    file that it leads to is replaced. Permissions of an old file are kept.

    Args:
        path: The file to be written; the null device takes everything.

    Yields:
        The temporary name, with the same suffix.

    Raises:
        ConfigError: The file system refuses; nothing is left behind then.
    """
    if str(path) == os.devnull:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder, "nothing")
        return
    part = None
    try:
        final = resolved(path)
        suffix = final.suffix if len(final.suffix) <= LONGEST_SUFFIX else ""
        # Not after the file, since its name may be as long as a name can be.
        part = final.with_name(f".{secrets.token_hex(8)}.part{suffix}")
        yield part
        with contextlib.suppress(FileNotFoundError):
            part.chmod(stat.S_IMODE(final.stat().st_mode))
        _sync(part)
        part.replace(final)
        _sync(final.parent)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror or error}",
            remedy="Nothing of it was left behind.",
        ) from error
    finally:
        if part is not None:
            with contextlib.suppress(OSError):
                part.unlink()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all.

    Args:
        path: The file.
        data: What goes into it.

    Raises:
        ConfigError: The file system refuses.
    """
    with replacing(path) as part:
        part.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all; errors as of ``write_bytes``."""
    write_bytes(path, text.encode("utf-8"))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
