"""``hetcache vbench``: hands a folder of videos to an installed VBench."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hetcache_core import ConfigError

__all__ = ["vbench"]

PROGRAM: Final = "vbench"

SIGNALLED: Final = 128
"""Added to the number of the signal that ended a program, as shells do."""

UNSAFE: Final = frozenset('"$`\\\n')
"""What a shell would read in a name between double quotes, where VBench 0.1.5 puts it."""


def vbench(folder: Path, arguments: Sequence[str]) -> int:
    """Run ``vbench evaluate`` on a folder.

    ``--mode custom_input`` is added unless a mode is given: the other modes take only videos of
    VBench's own prompts. VBench calls whatever ``python`` comes first on the path, so the folder of
    its own Python is put there.

    Args:
        folder: Videos; their names are their prompts unless the arguments say otherwise.
        arguments: Further arguments of ``vbench evaluate``, which needs a ``--dimension``.

    Returns:
        VBench's exit status.

    Raises:
        ConfigError: The folder is none, or VBench is not installed.

    Source: the console script of vbench 0.1.5 on PyPI, ``vbench/cli/evaluate.py``.
    """
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise ConfigError(f"{folder} {what}", where=f"hetcache {PROGRAM}")
    place = str(folder.absolute())
    if UNSAFE & set(place):
        raise ConfigError(
            f"VBench puts the name {place!r} on a shell's command line, which would change it",
            where=f"hetcache {PROGRAM}",
            remedy='Rename it without any of " $ ` and backslash.',
        )
    program = shutil.which(PROGRAM)
    if program is None:
        raise ConfigError(
            "VBench is not installed",
            where=f"hetcache {PROGRAM}",
            remedy="It needs older libraries than hetcache, so give it an environment of its own: "
            "uv tool install --python 3.10 vbench (or pipx install vbench), which puts `vbench` "
            "on the path.",
        )
    given = any(word.split("=")[0] == "--mode" for word in arguments)
    mode = () if given else ("--mode", "custom_input")
    command = [program, "evaluate", "--videos_path", place, *mode, *arguments]
    own = str(Path(program).resolve().parent)
    path = os.pathsep.join((own, os.environ.get("PATH", os.defpath)))
    try:
        done = subprocess.run(command, env={**os.environ, "PATH": path}, check=False)  # noqa: S603 - what the user asked for
    except OSError as error:
        raise ConfigError(
            f"{program} cannot be run: {error.strerror}", where=f"hetcache {PROGRAM}"
        ) from error
    return done.returncode if done.returncode >= 0 else SIGNALLED - done.returncode
