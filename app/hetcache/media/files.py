"""Output files: checked before anything is computed, and written whole or not at all."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hetcache_core import ConfigError

__all__ = ["check_folder", "check_writable", "replacing", "write_text"]


def check_writable(path: Path, *, option: str) -> None:
    """Make sure that a file can be written, before hours are spent on what goes into it.

    Args:
        path: The file.
        option: The command-line option that named it.

    Raises:
        ConfigError: Its folder does not exist or cannot be written to, or it is a folder.
    """
    try:
        is_folder = path.is_dir()
    except OSError as error:  # a name that is too long
        reason = error.strerror or str(error)
        raise ConfigError(f"{path} cannot be written: {reason}", where=option) from error
    if is_folder:
        raise ConfigError(f"{path} is a folder; name a file in it", where=option)
    if not path.parent.is_dir():
        raise ConfigError(
            f"the folder {path.parent} does not exist", where=option, remedy="Make it first."
        )
    _probe(path.parent, option)


def check_folder(folder: Path, *, option: str) -> None:
    """Make sure that a folder can be written to or made; nothing is made yet.

    Args:
        folder: The folder.
        option: The command-line option that named it.

    Raises:
        ConfigError: It cannot.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ConfigError(f"{existing} is a file, not a folder", where=option)
    _probe(existing, option)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name in the folder of a file, and rename it when the block has ended.

    Args:
        path: The file to be written.

    Yields:
        The temporary name, with the same suffix.

    Raises:
        ConfigError: The file system refuses; nothing is left behind then.
    """
    part = _part(path)
    try:
        yield part
        part.replace(path)
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Args:
        path: The file.
        text: What goes into it.

    Raises:
        ConfigError: The file system refuses.
    """
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def _probe(folder: Path, option: str) -> None:
    part = _part(folder / "probe")
    try:
        part.touch()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"cannot write into {folder}: {reason}", where=option) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _part(path: Path) -> Path:
    """Name a file beside another; not after it, since that name may be as long as a name can be."""
    return path.with_name(f".{secrets.token_hex(8)}.part{path.suffix}")


def _refused(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{path} cannot be written: {error.strerror or error}",
        remedy="Nothing of it was left behind.",
    )
