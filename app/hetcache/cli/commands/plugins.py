"""``hetcache plugins list`` and ``hetcache plugins check``."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, final

from attrs import frozen

from hetcache.cli.command import Command
from hetcache.running.console import answer, print_json
from hetcache.running.groups import JsonConfig
from hetcache.running.options import written
from hetcache_core import setting
from hetcache_core.settings.declare import group

if TYPE_CHECKING:
    from hetcache_core import Registry

__all__ = ["CheckCommand", "CheckConfig", "ListCommand", "ListConfig"]


@final
@frozen(kw_only=True)
class ListConfig:
    """Which plugins are listed, or what of them."""

    answer: JsonConfig = group(JsonConfig())
    hook: str | None = setting(
        None, doc="only the plugins that implement this hook", metadata=written(unset="all")
    )
    kind: str | None = setting(None, doc="what there is of one kind instead, such as selector")


@final
class ListCommand(Command):
    """List the installed plugins, what they provide, and what is wrong with them."""

    name: ClassVar[str] = "plugins-list"
    config: ClassVar[type[ListConfig]] = ListConfig
    shows_plugins: ClassVar[bool] = True

    def run(self, config: ListConfig, registry: Registry) -> int:
        """List them."""
        from rich.console import Console

        from hetcache.plugins.listing import (
            plugins_as_json,
            plugins_table,
            provided_as_json,
            provided_table,
        )
        from hetcache_core.plugins.kinds import kind_of

        as_json = config.answer.json
        if config.kind is not None:
            kind = kind_of(config.kind)
            made = (provided_as_json if as_json else provided_table)(registry, kind)
        else:
            made = (plugins_as_json if as_json else plugins_table)(registry, config.hook)
        if isinstance(made, list):
            print_json(made)
        else:
            Console().print(made)
        return 0


@final
@frozen(kw_only=True)
class CheckConfig:
    """What is checked."""

    distribution: str = setting(
        doc="an installed distribution with plugins",
        metadata=written(metavar="DIST", positional=True),
    )
    answer: JsonConfig = group(JsonConfig())


@final
class CheckCommand(Command):
    """Run the contract kit on the policies, backbones and clip sets of a distribution."""

    name: ClassVar[str] = "plugins-check"
    config: ClassVar[type[CheckConfig]] = CheckConfig
    shows_plugins: ClassVar[bool] = True

    def run(self, config: CheckConfig, registry: Registry) -> int:
        """Check, and show what came of it; the status is 1 where a check failed."""
        from rich.console import Console

        from hetcache.plugins.check import check_distribution, print_checked

        with Console(stderr=True).status("checking") as status:
            checked = check_distribution(
                config.distribution, registry, lambda what: status.update(f"checking {what}")
            )
        answer(checked, lambda: print_checked(checked), as_json=config.answer.json)
        return 1 if checked.failed else 0
