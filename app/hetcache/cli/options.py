"""Options of a command, made from its config class."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Union, get_args, get_origin

import typer

from hetcache.running.options import (
    from_text,
    is_mapping,
    make,
    make_jobs,
    option_of,
    takes_text,
    written_of,
)
from hetcache_core.errors import NOT_GIVEN
from hetcache_core.settings.declare import Declared, declared

__all__ = ["function_of"]

METAVARS: Final[Mapping[Any, str]] = {int: "INT", float: "FLOAT", str: "TEXT"}

FILE: Final = "config"
"""The option that names a file with values of the others."""

JOBS: Final = "jobs"
"""The option that names a file with many such sets of values."""


def function_of(
    config: type[Any],
    *,
    where: str,
    reads_file: bool,
    run: Callable[[Any], int | None],
    run_jobs: Callable[[list[Any]], int | None] | None = None,
) -> Callable[..., int | None]:
    """Make the function that typer turns into a command.

    Args:
        config: The config class; its fields become the function's parameters.
        where: The command, for messages.
        reads_file: Whether values may come from a file, named by ``--config``.
        run: What is called with the config; returns the exit status.
        run_jobs: Likewise with many of them, where a file named by ``--jobs`` may hold such.
    """
    settings = declared(config)

    def call(**given: Any) -> int | None:
        file = given.pop(FILE, None) if reads_file else None
        jobs = given.pop(JOBS, None) if run_jobs else None
        values = {
            name: from_text(value, settings[name]) if isinstance(value, str | list) else value
            for name, value in given.items()
            if value is not None and value != []
        }
        if jobs is not None and run_jobs is not None:
            return run_jobs(make_jobs(config, values, where=where, jobs=jobs, file=file))
        return run(make(config, values, where=where, file=file))

    parameters = [_parameter(info) for info in settings.values()]
    if reads_file:
        option = typer.Option(
            f"--{FILE}",
            metavar="FILE",
            help="a YAML file with any of these options; options win [default: none]",
        )
        parameters.append(_keyword(FILE, Annotated[str | None, option], None))
    if run_jobs:
        option = typer.Option(
            f"--{JOBS}",
            metavar="FILE",
            help="a YAML list of many of these, each with its own options; those given here are for all "
            "[default: none]",
        )
        parameters.append(_keyword(JOBS, Annotated[str | None, option], None))
    # What typer reads of a function; with "from __future__ import annotations", it is evaluated already.
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {each.name: each.annotation for each in parameters}
    return call


def _parameter(info: Declared) -> inspect.Parameter:
    said, kind = written_of(info), _kind(info)
    metavar = said.metavar or _metavar(info.hint)
    choices = _choices(info)
    shared: dict[str, Any] = {"help": _help(info), "metavar": metavar, "show_default": False}
    if choices:
        shared["autocompletion"] = lambda incomplete: [
            c for c in choices if c.startswith(incomplete)
        ]
    if said.positional:
        required = info.default is NOT_GIVEN
        annotation: Any = Annotated[kind if required else kind | None, typer.Argument(**shared)]
        return _keyword(info.name, annotation, inspect.Parameter.empty if required else None)
    flags = said.flags or (option_of(info),)
    if kind is bool:
        flags = (f"{flags[0]}/{flags[0].replace('--', '--no-', 1)}",)
    return _keyword(info.name, Annotated[kind | None, typer.Option(*flags, **shared)], None)


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default
    )


def _kind(info: Declared) -> Any:
    """Return the type that the command line reads; what it cannot read, it hands on as text."""
    if written_of(info).read is not None:
        return str
    hint = _present(info.hint)
    if hint in {bool, int, float}:
        return hint
    if is_mapping(info) or (get_origin(hint) is tuple and takes_text(hint)):
        return list[str]
    return str


def _present(hint: Any) -> Any:
    """Return what a value is where there is one."""
    arms = get_args(hint) if get_origin(hint) in {Union, types.UnionType} else (hint,)
    arms = tuple(arm for arm in arms if arm is not types.NoneType)
    return arms[0] if len(arms) == 1 else hint


def _metavar(hint: Any) -> str:
    hint = _present(hint)
    if hint is bool:
        return ""
    if get_origin(hint) is Mapping:
        return "NAME=VALUE"
    if get_origin(hint) is tuple:
        inner = _metavar(get_args(hint)[0])
        return inner if takes_text(hint) else f"{inner},..."
    if hint in METAVARS:
        return METAVARS[hint]
    if get_origin(hint) in {Union, types.UnionType}:
        arms = (arm for arm in get_args(hint) if arm is not types.NoneType)
        return "|".join(dict.fromkeys(_metavar(arm) for arm in arms))
    return "CHOICE"


def _choices(info: Declared) -> tuple[str, ...]:
    if _metavar(info.hint) != "CHOICE":
        return ()
    return tuple(choice for choice in info.info.allowed if choice != "null")


def _help(info: Declared) -> str:
    """Write what an option means, what it may be, and what holds without it."""
    said, allowed = written_of(info), info.info.allowed
    facts = ["|".join(_choices(info)) or ("" if said.metavar else " and ".join(allowed))]
    facts += ["repeatable"] if _kind(info) == list[str] and not said.positional else []
    if not said.positional:  # of which typer itself says whether they are required
        facts += ["required" if info.default is NOT_GIVEN else f"default: {_default(info)}"]
    shown = "; ".join(fact for fact in facts if fact)
    return f"{info.info.doc} [{shown}]" if shown else info.info.doc


def _default(info: Declared) -> str:
    default = info.default
    if isinstance(default, bool):
        return ("" if default else "no-") + option_of(info).removeprefix("--")
    if isinstance(default, float):
        return f"{default:g}"
    nothing = default is None or default in ("", (), {})
    return written_of(info).unset or "none" if nothing else str(getattr(default, "value", default))
