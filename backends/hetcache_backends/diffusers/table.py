"""The described models as a table, for the documentation."""

from __future__ import annotations

from collections.abc import Iterable

from hetcache_backends.diffusers.description import ModelDescription

HEAD = (
    "| model | transformer in diffusers | lists of blocks | state, in the order of the trunk | tokens |\n"
    "|---|---|---|---|---|\n"
)
LATENT = 8
"""Pixels that a latent of the published autoencoders is wide and high."""
MASK_HEAD = (
    "| pipeline in diffusers | model | side of a token | always computed | guidance | the rest of the "
    "picture |\n"
    "|---|---|---|---|---|---|\n"
)


def model_table(models: Iterable[ModelDescription]) -> str:
    """Write one row a model, in Markdown, by name."""
    return HEAD + "".join(_row(model) for model in sorted(models, key=lambda m: m.name))


def mask_table(models: Iterable[ModelDescription]) -> str:
    """Write one row a pipeline whose masks are carried, in Markdown, by name."""
    rows = {each.name: (model, each) for model in models for each in model.masked}
    return MASK_HEAD + "".join(
        f"| `{name}` | {model.name} | {model.patch * LATENT} pixels | {each.pinned} "
        f"| {each.guidance} | {each.kept} |\n"
        for name, (model, each) in sorted(rows.items())
    )


def _row(model: ModelDescription) -> str:
    lists = ", ".join(f"`{each.name}`" for each in model.lists)
    states = sorted(model.lists[0].state, key=lambda name: name == model.video)
    state = ", ".join(f"`{name}`" for name in states)
    tokens = "partial steps too" if model.tokens else "whole steps and blocks"
    return f"| {model.name} | `{model.transformer}` | {lists} | {state} | {tokens} |\n"
