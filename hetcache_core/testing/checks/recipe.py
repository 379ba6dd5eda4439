"""Checks of a policy: its settings, and the pieces that it is composed of."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast, final

import attrs
import torch
from attrs import evolve, fields, frozen

from hetcache_core.backbone.adapter import Features
from hetcache_core.errors import ConfigError
from hetcache_core.settings.declare import build, declared, describe, plain_values
from hetcache_core.testing.comparing import NotApplicableError, require
from hetcache_core.testing.scripted import FULL_STEPS
from hetcache_core.testing.subject import PolicySubject
from hetcache_core.testing.watch import watched_run
from hetcache_core.tokens import Role, SelectionRequest, mask_to_tokens

if TYPE_CHECKING:
    from attrs import AttrsInstance

    from hetcache_core.policy.recipe import PolicyRecipe

_PRESETS: Final = ("quality", "balanced", "fast")


@final
@frozen
class _OwnPieces:
    """Finds the pieces that a recipe holds, which need not be registered."""

    _recipe: PolicyRecipe

    def names(self, kind: str) -> tuple[str, ...]:
        """Names of its pieces of one kind."""
        return tuple(self._of(kind))

    def load(self, kind: str, name: str) -> type[object]:
        """The class of one of its pieces."""
        return self._of(kind)[name]

    def _of(self, kind: str) -> dict[str, type[object]]:
        plain = plain_values(self._recipe)
        return {
            plain[name]: type(getattr(self._recipe, name))
            for name, setting in declared(type(self._recipe)).items()
            if setting.kind == kind
        }


def check_the_recipe_is_a_value(subject: PolicySubject) -> None:
    """A recipe is a frozen attrs value: equal to another one, hashable, pickled whole."""
    recipe, again = subject.recipe, subject.make()
    require(attrs.has(type(recipe)), f"{type(recipe).__name__} is no attrs class")
    require(recipe == again, "two recipes made alike are not equal")
    require(hash(recipe) == hash(again), "two equal recipes have different hashes")
    require(pickle.loads(pickle.dumps(recipe)) == recipe, "a pickled recipe comes back changed")  # noqa: S301 - our own bytes
    for text in ("name", "summary", "source"):
        value = getattr(type(recipe), text, None)
        require(isinstance(value, str) and bool(value.strip()), f"{text} is {value!r}, not a text")


def check_the_settings_are_described(subject: PolicySubject) -> None:
    """Every setting says what it does, and the recipe is built again from its own settings."""
    recipe = subject.recipe
    for info in describe(type(recipe)):
        require(bool(info.doc), f"setting {info.name!r} does not say what it does")
    built = build(
        type(recipe),
        plain_values(recipe),
        where=f"policy {subject.name}",
        pieces=_OwnPieces(recipe),
    )
    require(built == recipe, f"built from its own settings, the recipe is {built}")


def check_the_presets_compose(subject: PolicySubject) -> None:
    """Each preset that the policy has names settings that it takes."""
    recipe = subject.recipe
    kind, own = type(recipe), attrs.asdict(cast("AttrsInstance", recipe), recurse=False)
    model = subject.case.backbone.describe(subject.case.make_pipeline(0))
    for preset in _PRESETS:
        try:
            values = kind.preset(preset, model)
        except ConfigError:
            continue  # a policy need not have presets
        build(kind, {**own, **values}, where=f"preset {preset}").compose(model)


def check_it_composes_for_other_models(subject: PolicySubject) -> None:
    """It composes without a control branch, with a few blocks and with many, always alike."""
    recipe = subject.recipe
    model = subject.case.backbone.describe(subject.case.make_pipeline(0))
    for layers, control in ((model.layers, ()), (2, (0,)), (30, tuple(range(0, 30, 2)))):
        other = evolve(model, layers=layers, control_layers=control)
        first, second = recipe.compose(other), recipe.compose(other)
        require(
            first == second,
            f"composed twice for {layers} blocks, two policies come out",
            "Pieces are frozen attrs values without tensors.",
        )
        unknown = first.needs() - {f.name for f in fields(Features)}
        require(not unknown, f"it needs the unknown features {sorted(unknown)}")


def check_the_roles_cover_the_mask(subject: PolicySubject) -> None:
    """Every token has a role: masked ones are generative, those before the video pinned."""
    policy = subject.compose()
    if policy.partitioner is None:
        raise NotApplicableError("the policy gives tokens no roles")
    engine, _ = watched_run(subject.case, FULL_STEPS, steps=1, layout=subject.layout)
    info = engine.infos[0]
    if info.mask is None:
        raise NotApplicableError("the run has no mask")
    for mask in (info.mask, torch.zeros_like(info.mask), torch.ones_like(info.mask)):
        for grid in (info.grid, evolve(info.grid, prefix=3)):
            partition = policy.partitioner.partition(mask, grid)
            counts = {role.name: partition.count(role) for role in Role}
            require(
                partition.tokens == grid.tokens == sum(counts.values()),
                f"{grid.tokens} tokens have the roles {counts}",
            )
            pinned = partition.of(Role.PINNED)
            require(
                torch.equal(pinned, torch.arange(grid.prefix)),
                f"of {grid.prefix} tokens before the video, {pinned.tolist()} are pinned",
            )
            masked = mask_to_tokens(mask, grid).flatten().nonzero().flatten() + grid.prefix
            require(
                torch.equal(partition.of(Role.GENERATIVE), masked),
                f"{len(masked)} tokens are masked, {counts['GENERATIVE']} are generative",
            )


def check_the_selector_orders_all_context(subject: PolicySubject) -> None:
    """The selector orders all context tokens, the same way each time, whatever the count."""
    policy = subject.compose()
    if policy.selector is None or policy.partitioner is None:
        raise NotApplicableError("the policy selects no context")
    engine, _ = watched_run(subject.case, FULL_STEPS, steps=1, layout=subject.layout)
    info, width = engine.infos[0], engine.infos[0].model.width
    if info.mask is None:
        raise NotApplicableError("the run has no mask")
    partition = policy.partitioner.partition(info.mask, info.grid)
    context = partition.count(Role.CONTEXT)
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(context, generator=generator)
    features = torch.randn(context, width, generator=generator)
    for count in {1, math.ceil(context / 3), context - 1} - {0}:
        request = SelectionRequest(
            partition=partition,
            count=count,
            scores=scores.clone,
            features=features.clone,
            seed=0,
        )
        order = policy.selector.select(request).order
        require(
            sorted(order.tolist()) == list(range(context)),
            f"the order of {count} out of {context} context tokens is no permutation of all",
        )
        again = policy.selector.select(request).order
        require(torch.equal(order, again), "the same request gives another order the second time")


RECIPE_CHECKS: Final[tuple[Callable[[PolicySubject], None], ...]] = (
    check_the_recipe_is_a_value,
    check_the_settings_are_described,
    check_the_presets_compose,
    check_it_composes_for_other_models,
    check_the_roles_cover_the_mask,
    check_the_selector_orders_all_context,
)
