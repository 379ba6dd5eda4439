"""Checks of a model set, for ``hetcache plugins check``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from hetcache_backends.diffusers.description import ModelDescription, ModelSet
from hetcache_core import ContractError
from hetcache_core.testing.subject import PieceSubject


def check_it_describes_each_class_once(subject: PieceSubject) -> None:
    """No transformer and no short name occurs twice."""
    models = _models(subject)
    for what, names in (
        ("transformer", [model.transformer for model in models]),
        ("name", [model.name for model in models]),
    ):
        twice = [name for name, times in Counter(names).items() if times > 1]
        if twice:
            raise ContractError(f"the {what} {twice[0]!r} is described twice")
    if not models:
        raise ContractError("it describes no model")


def check_it_describes_alike_every_time(subject: PieceSubject) -> None:
    """Descriptions are values: two of one set are equal."""
    if _models(subject) != _models(subject):
        raise ContractError("two calls of models() differ")


def _models(subject: PieceSubject) -> list[ModelDescription]:
    models: ModelSet = subject.make()
    return list(models.models())


MODEL_SET_CHECKS: Final[tuple[Callable[[PieceSubject], None], ...]] = (
    check_it_describes_each_class_once,
    check_it_describes_alike_every_time,
)
