"""What a command writes is held against what it reads, from the fields of its config class."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from attrs import frozen

from hetcache.media.files import check_folder, check_writable
from hetcache.media.options import PICTURES
from hetcache.running.options import option_of, written_of
from hetcache_core import ConfigError
from hetcache_core.settings.declare import declared, values_of

__all__ = ["check_jobs", "check_outputs"]

PARTS: Final = re.compile(r"[=;,]")
"""What stands between names in a text such as ``replay:schedule=run.json;first_steps=2``."""

UNREAD: Final = frozenset({".csv", ".html", ".htm"})
"""What is written into a folder that is read, and again: no command reads it from there."""

PATHS: Final = frozenset({"FILE", "FOLDER", "PATH", "TRACE"})
"""What stands in help for options whose value is the name of a file or a folder, and nothing else."""


@frozen(kw_only=True)
class Source:
    """What may be read.

    Attributes:
        text: Its name, as it was given.
        surely: Whether it is meant; the word "auto" may be called like a folder that is there by chance.
    """

    text: str
    surely: bool


def check_outputs(
    config: object,
    *,
    inputs: Mapping[str, str] | None = None,
    beside: Mapping[str, Path] | None = None,
) -> None:
    """Make sure that everything can be written, and that nothing given is overwritten.

    Whatever text of the config names a file or a folder is taken for an input, unless its option is
    written with ``writes``; so a command of a plugin is checked like the others. A config whose method
    ``beside`` names further files, by role, is held to those as well.

    Args:
        config: What a command is asked for.
        inputs: Files that it does not know of, by what they are called.
        beside: Files that are written as well, by role, where that shows later than in the config.

    Raises:
        ConfigError: An output cannot be written, is an input or another output, is not called as the
            command needs it, or would change a folder that is read.
    """
    known = {word: Source(text=text, surely=True) for word, text in (inputs or {}).items()}
    given = known | _read(config)
    outputs = _written(config) | {
        f"--{role}": (path, "file", ()) for role, path in (beside or {}).items()
    }
    for option, (path, kind, suffixes) in outputs.items():
        if kind == "folder":
            check_folder(path, option=option)
        else:
            _check_suffix(path, suffixes, option)
            check_writable(path, option=option)
        for word, source in given.items():
            _hold_against(path, word, source, option=option, folder=kind == "folder")
    names: dict[object, str] = {}
    for option, (path, _, _) in outputs.items():
        real = _identity(path)
        if real in names and str(path) != os.devnull:
            raise ConfigError(f"{names[real]} names the same file", where=option, given=str(path))
        names[real] = option


def check_jobs(configs: Iterable[object], *, jobs: str) -> None:
    """Make sure that no job writes what another one reads or writes.

    Args:
        configs: What each is asked for, from the first job on; each of them was checked for itself.
        jobs: What lists them, for messages.

    Raises:
        ConfigError: Two do not go together.
    """
    writers: dict[object, tuple[int, str]] = {}
    listed = list(enumerate(configs, 1))
    for number, config in listed:
        for option, (path, _, _) in _written(config).items():
            other, known_as = writers.setdefault(_identity(path), (number, option))
            if other != number and str(path) != os.devnull:
                raise ConfigError(
                    f"{path} would overwrite the {known_as.lstrip('-')} of job {other}",
                    where=f"{jobs}, job {number}: {option}",
                )
    for number, config in listed:
        for word, source in _read(config).items():
            other, option = writers.get(_identity(Path(source.text)), (number, ""))
            if other != number:
                raise ConfigError(
                    f"{source.text} would overwrite the {word} of job {number}",
                    where=f"{jobs}, job {other}: {option}",
                )


def _read(config: object) -> dict[str, Source]:
    """Find what a command reads: what is there of all that its config names, by what it is called."""
    given: dict[str, Source] = {}
    values = values_of(config)
    for name, info in declared(type(config)).items():
        said = written_of(info)
        if not said.writes:
            found = [text for text in _texts(values[name]) if os.path.lexists(text)]
            words, surely = name.replace("_", " "), not PATHS.isdisjoint(said.metavar.split("|"))
            given |= {
                f"{words} {text}" if len(found) > 1 else words: Source(
                    text=text, surely=surely or os.sep in text or bool(Path(text).suffix)
                )
                for text in found
            }
    return given


def _written(config: object) -> dict[str, tuple[Path, str, tuple[str, ...]]]:
    """Find what a command writes: path, "file" or "folder", and suffixes, by option."""
    outputs: dict[str, tuple[Path, str, tuple[str, ...]]] = {}
    values = values_of(config)
    for name, info in declared(type(config)).items():
        said = written_of(info)
        if said.writes and values[name] is not None:
            outputs[option_of(info)] = (Path(values[name]).expanduser(), said.writes, said.suffixes)
    for role, path in getattr(config, "beside", dict)().items():
        outputs[f"--output, {role}"] = (path.expanduser(), "file", ())
    return outputs


def _identity(path: Path) -> object:
    """Return what two names of one file have in common: links of both kinds are seen through."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return os.path.realpath(path)
    return found.st_dev, found.st_ino


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


def _hold_against(output: Path, word: str, given: Source, *, option: str, folder: bool) -> None:
    there, source, suffix = output.exists(), Path(given.text), output.suffix.lower()
    same = there and source.exists() and output.samefile(source)
    if same or os.path.realpath(output) == os.path.realpath(source):
        raise ConfigError(f"{output} would overwrite the {word}", where=option)
    if not given.surely:
        return
    inside, said = source.is_dir() and _within(output, source), ""
    if folder and inside:
        said = f"{output} is in the {word} {source}, which is read"
    elif folder and there and _within(source, output):
        said = f"the {word} {source} is in {output}, which is written to"
    elif not folder and inside and there and suffix not in UNREAD:
        said = f"{output} would replace a file of the {word} {source}"
    elif not folder and inside and suffix in PICTURES:
        said = f"{output} would be one more picture of the {word} {source}"
    if said:
        raise ConfigError(said, where=option, remedy="Name a folder of its own.")


def _within(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
