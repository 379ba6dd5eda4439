"""Arrays in files, read without trusting what a file says of its own size."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.lib import format as npy

from hetcache_core import ConfigError
from hetcache_core.files import read_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["array_of", "member_of", "read_array"]

LONGEST_HEADER: Final = 10_000
"""Bytes that an array's header may take. Source: numpy's own limit."""


def read_array(path: Path, *, where: str = "", remedy: str = "") -> NDArray[Any]:
    """Read an NPY file.

    Args:
        path: The file.
        where: What it is for, for messages.
        remedy: What to do where it cannot be read.

    Raises:
        ConfigError: It cannot be read, or is damaged.
    """
    try:
        return array_of(read_bytes(path, where=where, remedy=remedy))
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: {error}", where=where, remedy=remedy) from error


def array_of(data: bytes) -> NDArray[Any]:
    """Return the array that the bytes of an NPY file hold.

    Raises:
        ValueError: They hold none, or one of another size than they have themselves.
    """
    try:
        file = io.BytesIO(data)
        major, _ = npy.read_magic(file)
        read_header = npy.read_array_header_1_0 if major == 1 else npy.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
    except Exception as error:  # numpy evaluates a header, which may raise anything
        raise ValueError(f"it is no array: {error}") from error
    body = data[file.tell() :]
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(body):
        raise ValueError(f"it does not hold the {shape} {dtype} that it names")
    made: NDArray[Any] = np.frombuffer(body, dtype).reshape(shape, order="F" if fortran else "C")
    return made


def member_of(data: bytes, name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> Any:
    """Return an array of a known shape and dtype from the bytes of an NPZ file.

    Raises:
        ValueError: They hold no such array.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive, archive.open(f"{name}.npy") as file:
            # No more than there should be is unpacked: a few bytes may stand for all of memory.
            made = array_of(file.read(size + LONGEST_HEADER))
    except ValueError:
        raise
    except Exception as error:  # damaged archives raise what comes
        raise ValueError(f"it is no whole archive: {error}") from error
    if made.shape != shape or made.dtype != dtype:
        raise ValueError(f"it holds {made.shape} {made.dtype}, not {shape} {np.dtype(dtype)}")
    return made
