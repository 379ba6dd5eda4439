"""``hetcache policies``."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, final

from attrs import frozen

from hetcache.cli.command import Command
from hetcache.running.console import print_json
from hetcache.running.groups import JsonConfig
from hetcache.running.options import written
from hetcache_core import setting
from hetcache_core.plugins.kinds import KINDS
from hetcache_core.settings.declare import group

if TYPE_CHECKING:
    from hetcache_core import Registry

__all__ = ["PoliciesCommand", "PoliciesConfig"]


@final
@frozen(kw_only=True)
class PoliciesConfig:
    """How policies are listed."""

    policy: str | None = setting(
        None,
        doc="one of them, with its source, settings and presets",
        metadata=written(metavar="NAME", positional=True, unset="all, a line each"),
    )
    answer: JsonConfig = group(JsonConfig())
    markdown: bool = setting(default=False, doc="print the tables of the documentation")


@final
class PoliciesCommand(Command):
    """List the caching policies, or show one with its settings and presets."""

    name: ClassVar[str] = "policies"
    config: ClassVar[type[PoliciesConfig]] = PoliciesConfig

    def run(self, config: PoliciesConfig, registry: Registry) -> int:
        """List them."""
        from hetcache.plugins.listing import policies_as_json, print_policy, provided_table

        if config.markdown:
            from hetcache.plugins.table import policies_as_markdown

            print(policies_as_markdown(registry))  # noqa: T201 - the answer
        elif config.answer.json:
            print_json(policies_as_json(registry, config.policy))
        elif config.policy is not None:
            print_policy(registry, config.policy)
        else:
            from rich.console import Console

            Console().print(provided_table(registry, KINDS["policy"]))
        return 0
