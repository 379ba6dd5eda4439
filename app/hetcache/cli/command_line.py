"""The command line: what plugins register as commands, with options made from their config classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
import typer.core
import typer.main
from attrs import define, field

from hetcache.cli.options import function_of
from hetcache.running.console import json_alone, note
from hetcache_core import ConfigError
from hetcache_core.settings.declare import values_of

if TYPE_CHECKING:
    from hetcache.cli.command import Command
    from hetcache_core import Registry

__all__ = ["command_line"]

GROUPS: Final = {"plugins": "Show the installed plugins."}
"""Commands that hold others, with their help: ``plugins-list`` is ``hetcache plugins list``."""

ABOUT: Final = (
    "Edit videos with diffusion transformers, faster: what changes too little is not computed."
)

SHARED: Final[dict[str, Any]] = {
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}


def command_line(registry: Registry, broken: tuple[str, ...] = ()) -> Any:
    """Make the command line.

    Args:
        registry: What was discovered; the commands are loaded when they are asked for.
        broken: A line for each plugin that cannot be used; shown once, by whatever is called.
    """

    def hetcache(
        context: typer.Context,
        *,
        show_version: Annotated[
            bool, typer.Option("--version", help="print the version and leave", is_eager=True)
        ] = False,
    ) -> None:
        if show_version:
            typer.echo(f"hetcache {version('hetcache')}")
            raise typer.Exit
        _help_without_command(context)

    summaries = registry.summaries("command")
    commands = _Commands(registry, broken)
    for group, about in GROUPS.items():
        inner = _Commands(registry, (), prefix=f"{group}-")
        inner.summaries = {
            name.removeprefix(inner.prefix): summaries.pop(name)
            for name in list(summaries)
            if name.startswith(inner.prefix)
        }
        commands.made[group] = _group(group, about, _help_without_command, inner)
    commands.summaries = {**summaries, **GROUPS}
    return _group("hetcache", ABOUT, hetcache, commands, add_completion=True)


def _help_without_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


class _Group(typer.core.TyperGroup):
    """Lists commands by what they were registered with, whole, and loads none of them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return what may be typed."""
        return sorted(self.commands)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a line for each command, and one on stderr for each plugin that cannot be used."""
        commands: Any = self.commands
        for line in commands.broken:
            note(line, kind="warning")
        if commands.summaries:
            with formatter.section("Commands"):
                formatter.write_dl(sorted(commands.summaries.items()))


def _group(
    name: str, about: str, callback: Any, commands: _Commands, *, add_completion: bool = False
) -> Any:
    made = typer.Typer(
        name=name,
        cls=_Group,
        help=about,
        add_completion=add_completion,
        invoke_without_command=True,
        **SHARED,
    )
    made.callback()(callback)
    group: Any = typer.main.get_command(made)
    group.commands = commands
    return group


@define(eq=False)
class _Commands(Mapping[str, Any]):
    """Commands by what is typed, each made when it is asked for."""

    registry: Registry
    broken: tuple[str, ...]
    prefix: str = ""
    summaries: dict[str, str] = field(factory=dict)
    made: dict[str, Any] = field(factory=dict)

    def __getitem__(self, name: str) -> Any:
        if name not in self.made:
            self.made[name] = self._make(name)
        return self.made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.summaries)

    def __len__(self) -> int:
        return len(self.summaries)

    def _make(self, name: str) -> Any:
        try:
            kind: type[Command] = self.registry.load("command", self.prefix + name)
        except ConfigError:
            raise KeyError(name) from None

        def run(config: Any) -> int:
            return alone([config], lambda: kind().run(config, self.registry))

        def run_jobs(configs: list[Any]) -> int:
            return alone(configs, lambda: kind().run_jobs(configs, self.registry))

        def alone(configs: list[Any], run: Callable[[], int]) -> int:
            for line in () if kind.shows_plugins else self.broken:
                note(line, kind="warning")
            # A policy that prints must not spoil the JSON of a run.
            wanted = any(values_of(config).get("json") for config in configs)
            with json_alone() if wanted else nullcontext():
                return run()

        where = f"hetcache {self.prefix.replace('-', ' ')}{name}"
        made = typer.Typer(add_completion=False, **SHARED)
        made.command(name=name, help=self.summaries[name])(
            function_of(
                kind.config,
                where=where,
                reads_file=kind.reads_file,
                run=run,
                run_jobs=run_jobs if kind.takes_jobs else None,
            )
        )
        return typer.main.get_command(made)
