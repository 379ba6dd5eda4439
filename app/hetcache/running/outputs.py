"""What a command writes is held against what it reads, from the fields of its config class."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from hetcache.media.files import check_folder, check_writable
from hetcache.running.options import option_of, written_of
from hetcache_core import ConfigError
from hetcache_core.settings.declare import declared, values_of

__all__ = ["check_outputs"]

PARTS: Final = re.compile(r"[=;,]")
"""What stands between names in a text such as ``replay:schedule=run.json;first_steps=2``."""


def check_outputs(config: object, *, inputs: Mapping[str, str] | None = None) -> None:
    """Make sure that everything can be written, and that nothing given is overwritten.

    Whatever text of the config names a file or a folder is taken for an input, unless its option is
    written with ``writes``; so a command of a plugin is checked like the others. A config whose method
    ``beside`` names further files, by role, is held to those as well.

    Args:
        config: What a command is asked for.
        inputs: Files that it does not know of, by what they are called.

    Raises:
        ConfigError: An output cannot be written, is an input or another output, is not called as the
            command needs it, or would replace a file in a folder that is read.
    """
    settings, values = declared(type(config)), values_of(config)
    outputs: dict[str, tuple[Path, str, tuple[str, ...]]] = {}
    given = dict(inputs or {})
    for name, info in settings.items():
        said, value = written_of(info), values[name]
        if not said.writes:
            found = [text for text in _texts(value) if os.path.lexists(text)]
            words = name.replace("_", " ")
            given |= {f"{words} {text}" if len(found) > 1 else words: text for text in found}
        elif value is not None:
            outputs[option_of(info)] = (Path(value).expanduser(), said.writes, said.suffixes)
    for role, path in getattr(config, "beside", dict)().items():
        outputs[f"--output, {role}"] = (path.expanduser(), "file", ())
    for option, (path, kind, suffixes) in outputs.items():
        if kind == "folder":
            check_folder(path, option=option)
        else:
            _check_suffix(path, suffixes, option)
            check_writable(path, option=option)
        for word, text in given.items():
            _hold_against(path, suffixes, word, text, option=option, folder=kind == "folder")
    names: dict[str, str] = {}
    for option, (path, _, _) in outputs.items():
        real = os.path.realpath(path)
        if real in names and real != os.devnull:
            raise ConfigError(f"{names[real]} names the same file", where=option, given=str(path))
        names[real] = option


def _texts(value: object) -> Iterator[str]:
    """Give every text that may name a file."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        yield from dict.fromkeys(part for part in (value, *PARTS.split(value)) if part)
    elif isinstance(value, Mapping):
        yield from _texts(list(value.values()))
    elif isinstance(value, Iterable) and not isinstance(value, bytes):
        for inner in value:
            yield from _texts(inner)


def _check_suffix(path: Path, suffixes: tuple[str, ...], option: str) -> None:
    if suffixes and path.suffix.lower() not in suffixes:
        raise ConfigError(
            f"cannot write to {path.name!r}",
            where=option,
            remedy=f"Let its name end in {' or '.join(suffixes)}.",
            allowed=suffixes,
        )


def _hold_against(
    output: Path, suffixes: tuple[str, ...], word: str, text: str, *, option: str, folder: bool
) -> None:
    there, source = output.exists(), Path(text)
    same = there and source.exists() and output.samefile(source)
    if same or os.path.realpath(output) == os.path.realpath(source):
        raise ConfigError(f"{output} would overwrite the {word}", where=option)
    if folder:
        # A word such as "auto" may be called like something in the folder without meaning it.
        named = os.sep in text or bool(source.suffix)
        if there and named and _within(source, output):
            raise ConfigError(
                f"the {word} {text} is in {output}, which is written to",
                where=option,
                remedy="Name a folder of its own.",
            )
    elif there and source.is_dir() and _within(output, source) and not suffixes:
        raise ConfigError(f"{output} would replace a file of the {word} {text}", where=option)


def _within(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
