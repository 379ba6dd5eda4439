"""The described models as a table, for the documentation."""

from __future__ import annotations

from collections.abc import Iterable

from hetcache_backends.diffusers.description import ModelDescription

HEAD = (
    "| model | transformer in diffusers | lists of blocks | state, in the order of the trunk | tokens |\n"
    "|---|---|---|---|---|\n"
)


def model_table(models: Iterable[ModelDescription]) -> str:
    """Write one row a model, in Markdown, by name."""
    return HEAD + "".join(_row(model) for model in sorted(models, key=lambda m: m.name))


def _row(model: ModelDescription) -> str:
    lists = ", ".join(f"`{each.name}`" for each in model.lists)
    states = sorted(model.lists[0].state, key=lambda name: name == model.video)
    state = ", ".join(f"`{name}`" for name in states)
    tokens = "partial steps too" if model.tokens else "whole steps and blocks"
    return f"| {model.name} | `{model.transformer}` | {lists} | {state} | {tokens} |\n"
