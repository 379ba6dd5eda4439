"""The kinds of things that plugins provide, in one table.

Everything that goes by kinds reads it: the hooks that are asked, what the registry loads and checks, the
listing of plugins and the checks of the contract kit. A new kind is a row here, its hook in
``hookspecs`` and its base class.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any, Final

from attrs import frozen

from hetcache_core.errors import ConfigError, nearest_name

__all__ = ["KINDS", "Kind", "kind_of", "load_object"]


def load_object(target: str) -> Any:
    """Import what ``"package.module:Class"`` names."""
    module, _, path = target.partition(":")
    loaded: Any = import_module(module)
    for attribute in path.split("."):
        loaded = getattr(loaded, attribute)
    return loaded


@frozen(kw_only=True)
class Kind:
    """One kind of things that plugins provide.

    Attributes:
        name: What one of them is called.
        plural: What several are called.
        base: Where the base class of its classes is, ``"package.module:Class"``: as text, since
            listing needs none of them, and some belong to packages that core does not know.
        checks: Where the checks of the contract kit are that each of them has to pass, likewise; they
            take a ``PieceSubject``. "" where more is needed, as for a policy and a backbone.
    """

    name: str
    plural: str
    base: str
    checks: str = ""

    @property
    def key(self) -> str:
        """Its plural as an identifier, for JSON and for the name of the hook."""
        return self.plural.replace(" ", "_")

    @property
    def hook(self) -> str:
        """The hook that plugins provide it by."""
        return f"hetcache_register_{self.key}"

    def base_class(self) -> type[Any]:
        """Import the base class.

        Raises:
            ImportError: Its package is not installed.
        """
        base: type[Any] = load_object(self.base)
        return base


KINDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        name: Kind(name=name, plural=plural, base=base, checks=checks)
        for name, plural, base, checks in (
            ("policy", "policies", "hetcache_core.policy.recipe:PolicyRecipe", ""),
            ("backbone", "backbones", "hetcache_core.backbone.adapter:Backbone", ""),
            (
                "clip set",
                "clip sets",
                "hetcache_core.plugins.clips:ClipSet",
                "hetcache_core.testing.checks.clips:CLIP_SET_CHECKS",
            ),
            (
                "selector",
                "selectors",
                "hetcache_core.tokens:ContextSelector",
                "hetcache_core.testing.checks.pieces:SELECTOR_CHECKS",
            ),
            (
                "partitioner",
                "partitioners",
                "hetcache_core.tokens:TokenPartitioner",
                "hetcache_core.testing.checks.pieces:PARTITIONER_CHECKS",
            ),
            (
                "predictor",
                "predictors",
                "hetcache_core.policy.pieces:Predictor",
                "hetcache_core.testing.checks.pieces:PREDICTOR_CHECKS",
            ),
            (
                "corrector",
                "correctors",
                "hetcache_core.policy.pieces:Corrector",
                "hetcache_core.testing.checks.pieces:CORRECTOR_CHECKS",
            ),
            (
                "signal",
                "signals",
                "hetcache_core.policy.signals:Signal",
                "hetcache_core.testing.checks.pieces:SIGNAL_CHECKS",
            ),
            (
                "model set",
                "model sets",
                "hetcache_backends.diffusers.description:ModelSet",
                "hetcache_backends.diffusers.checks:MODEL_SET_CHECKS",
            ),
            (
                "metric",
                "metrics",
                "hetcache.quality.metric:Metric",
                "hetcache.plugins.contracts:METRIC_CHECKS",
            ),
            (
                "command",
                "commands",
                "hetcache.cli.command:Command",
                "hetcache.plugins.contracts:COMMAND_CHECKS",
            ),
            (
                "report section",
                "report sections",
                "hetcache.comparison.page.section:ReportSection",
                "hetcache.plugins.contracts:REPORT_SECTION_CHECKS",
            ),
        )
    }
)
"""The kinds by name, in the order of listings."""


def kind_of(text: str) -> Kind:
    """Find a kind by its name, as people write it ("report section", "report-section").

    Raises:
        ConfigError: There is no such kind.
    """
    name = text.strip().lower().replace("-", " ").replace("_", " ")
    kind = KINDS.get(name)
    if kind is None:
        nearest = nearest_name(name, KINDS)
        raise ConfigError(
            f"plugins provide no kind {text!r}"
            + (f", did you mean {nearest!r}?" if nearest else ""),
            where="--kind",
            setting="kind",
            given=text,
            allowed=KINDS,
            nearest=nearest,
            remedy=f"Known: {', '.join(KINDS)}.",
        )
    return kind
