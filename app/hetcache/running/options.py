"""What is asked for: options, keys of a file and Python arguments become one config object.

A config is an attrs class whose fields are declared with ``hetcache_core.setting``. Their names, types,
defaults, ranges and texts are the options' own; what a field cannot say of itself is ``written`` beside it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, get_args, get_origin

from attrs import frozen

from hetcache_core import ConfigError
from hetcache_core.errors import NOT_GIVEN
from hetcache_core.files import read_text
from hetcache_core.settings.declare import Declared, build, declared, parse_assignments
from hetcache_core.settings.fitting import NUMBER

__all__ = [
    "Written",
    "from_text",
    "is_mapping",
    "make",
    "option_of",
    "takes_text",
    "written",
    "written_of",
]

T = TypeVar("T")

_KEY: Final = "hetcache option"

LARGEST_FILE: Final = 1 << 20
"""Bytes of a configuration file."""

LONGEST_NUMBER: Final = 20


@frozen(kw_only=True)
class Written:
    """How an option is written, where its name and type do not say it.

    Attributes:
        flags: What is typed in place of ``--name``.
        metavar: What stands for its value.
        unset: What holds without it, in words, where its default says nothing.
        read: Reads its text; called with the text and the option. By default the text is the value.
        positional: It is no option, but follows the command.
        writes: "file" or "folder" where it names what the command writes; it is checked before anything
            is computed.
        suffixes: How the name of that file may end; empty for no such limit.
    """

    flags: tuple[str, ...] = ()
    metavar: str = ""
    unset: str = ""
    read: Callable[[str, str], object] | None = None
    positional: bool = False
    writes: Literal["", "file", "folder"] = ""
    suffixes: tuple[str, ...] = ()


def written(
    *flags: str,
    metavar: str = "",
    unset: str = "",
    read: Callable[[str, str], object] | None = None,
    positional: bool = False,
    writes: Literal["", "file", "folder"] = "",
    suffixes: tuple[str, ...] = (),
) -> dict[str, object]:
    """Say how an option is written, as ``metadata`` of its ``setting``; see ``Written``."""
    return {
        _KEY: Written(
            flags=flags,
            metavar=metavar,
            unset=unset,
            read=read,
            positional=positional,
            writes=writes,
            suffixes=suffixes,
        )
    }


def written_of(info: Declared) -> Written:
    """Return how an option is written."""
    said = info.metadata.get(_KEY, Written())
    if not isinstance(said, Written):
        raise TypeError(f"{info.name} is not written by written()")
    return said


def option_of(info: Declared) -> str:
    """Return what is typed for an option, for messages."""
    flags = written_of(info).flags
    return next((f for f in flags if f.startswith("--")), "--" + info.name.replace("_", "-"))


def make(
    config: type[T],
    given: Mapping[str, Any],
    *,
    where: str,
    file: str | os.PathLike[str] | None = None,
    inputs: Mapping[str, str] | None = None,
) -> T:
    """Put what was given and a configuration file together, check it, and make a config of it.

    Args:
        config: The class.
        given: What was given, by the names of the fields. Texts are read as those of options are.
        where: What it is for, for messages: ``"hetcache edit"``.
        file: A YAML file with any of the same keys; what was given wins, in mappings name by name.
        inputs: Files that must not be overwritten and that the config does not know of, by what they are.

    Raises:
        ConfigError: A key is unknown, missing, of the wrong type or out of range, or what is to be
            written cannot be, or is read as well.
    """
    settings = declared(config)
    from_file = {} if file is None else _read_yaml(Path(file))
    values = {**from_file, **given}
    for name, value in given.items():
        base = from_file.get(name)
        if isinstance(base, Mapping) and isinstance(value, Mapping):
            values[name] = {**base, **value}
    missing = [
        option_of(info)
        for name, info in settings.items()
        if info.default is NOT_GIVEN and name not in values
    ]
    if missing and values.keys() <= settings.keys():
        raise ConfigError(
            f"missing {', '.join(missing)}",
            where=where,
            setting=missing[0].removeprefix("--"),
            remedy="" if file is None else f"Give each as an option, or as a key of {file}.",
        )
    try:
        read = {n: _read(v, settings[n]) if n in settings else v for n, v in values.items()}
        made = build(config, read, where=where)
    except ConfigError as error:
        if error.setting in from_file and error.setting not in given:
            error.where = str(file)
        raise
    from hetcache.running.outputs import check_outputs

    known = {} if file is None else {"configuration": os.fspath(file)}
    check_outputs(made, inputs={**known, **(inputs or {})})
    return made


def make_jobs(
    config: type[T],
    given: Mapping[str, Any],
    *,
    where: str,
    jobs: str | os.PathLike[str],
    file: str | os.PathLike[str] | None = None,
) -> list[T]:
    """Make a config of each job of a file, so that all are checked before any is begun.

    Args:
        config: The class.
        given: What was given for all of them.
        where: What they are for, for messages.
        jobs: A YAML file: a list of mappings with any of the same keys; what a job says holds for it.
        file: A YAML file for all of them, as in ``make``.

    Raises:
        ConfigError: The file is no such list, two jobs write one file, or as in ``make``; names the job.
    """
    content = _yaml(Path(jobs), "--jobs")
    if not isinstance(content, list) or not all(isinstance(each, dict) for each in content):
        raise ConfigError(
            f"{jobs} is no list of jobs",
            where="--jobs",
            remedy="Write - video: a.mp4, and below it mask: and output:, for each.",
        )
    from hetcache.running.outputs import check_jobs

    made: list[T] = []
    inputs = {"list of jobs": os.fspath(jobs)}
    for number, each in enumerate(content, 1):
        own = _keys(each, Path(jobs), "--jobs")
        try:
            made.append(make(config, {**given, **own}, where=where, file=file, inputs=inputs))
        except ConfigError as error:
            error.where = f"{jobs}, job {number}" + (f": {error.where}" if error.where else "")
            raise
    check_jobs(made, jobs=os.fspath(jobs))
    return made


def _read(value: object, info: Declared) -> object:
    """Turn a text or a path into the value that is meant."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        return value
    read = written_of(info).read
    if read is not None:
        return read(value, option_of(info))
    return value


def from_text(text: str | list[str], info: Declared) -> object:
    """Turn what a command line has for an option into a value; what it must be is checked later.

    Args:
        text: The text; all of them where the option is repeated.
        info: The option.

    Raises:
        ConfigError: The text cannot be read.
    """
    if isinstance(text, list):
        return _assignments(text, option_of(info)) if is_mapping(info) else text
    if written_of(info).read is not None or takes_text(info.hint):
        return text
    parts = text.split(",") if get_origin(info.hint) is tuple else [text]
    if not all(NUMBER.fullmatch(part.strip()) for part in parts):
        one, many = (
            "Write a count, such as 3, or a share of the run with a point, such as 0.1.",
            "Write numbers joined by commas, such as 3,7.",
        )
        raise ConfigError(
            f"cannot read {text!r} as {info.name.replace('_', ' ')}",
            where=option_of(info),
            setting=info.name,
            given=text,
            remedy=many if get_origin(info.hint) is tuple else one,
        )
    # A number too long for int() is out of every range, which the check of the range says.
    numbers = [
        int(part) if part.strip().isdigit() and len(part) < LONGEST_NUMBER else float(part)
        for part in parts
    ]
    return numbers if get_origin(info.hint) is tuple else numbers[0]


def takes_text(hint: Any) -> bool:
    """Tell whether a text may be a value of this type as it stands."""
    if (
        hint is str
        or get_origin(hint) is Literal
        or (isinstance(hint, type) and issubclass(hint, Enum))
    ):
        return True
    return any(takes_text(argument) for argument in get_args(hint))


def is_mapping(info: Declared) -> bool:
    """Tell whether an option holds several values by name."""
    return get_origin(info.hint) is Mapping


def _assignments(texts: list[str], option: str) -> dict[str, object]:
    try:
        return parse_assignments(texts)
    except ConfigError as error:
        error.where = option
        raise


def _read_yaml(path: Path) -> dict[str, object]:
    """Read a configuration file: its values by key, with ``-`` in keys written ``_``.

    Raises:
        ConfigError: It cannot be read, or holds something else.
    """
    content = _yaml(path, "--config")
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path} holds no keys", where="--config", remedy="Write lines such as steps: 20."
        )
    return _keys(content, path, "--config")


def _yaml(path: Path, where: str) -> object:
    import yaml

    from hetcache.running.yaml import UniqueLoader

    text = read_text(path, where=where, most=LARGEST_FILE)
    try:
        content: object = yaml.load(text, UniqueLoader)  # noqa: S506 - a safe loader
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path} is no YAML: {error}", where=where) from error
    return content


def _keys(content: dict[Any, object], path: Path, where: str) -> dict[str, object]:
    keys = {str(key).replace("-", "_"): value for key, value in content.items()}
    if len(keys) < len(content):
        raise ConfigError(f"{path} names a key twice, with - and with _", where=where)
    return keys
