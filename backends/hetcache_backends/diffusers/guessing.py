"""A first description of a transformer's class, read off the source of its ``forward``."""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterator
from importlib import import_module
from typing import Any, Final, get_type_hints

from attrs import evolve

from hetcache_backends.diffusers.common import missing_library
from hetcache_backends.diffusers.description import BlockList, ModelDescription
from hetcache_core import ConfigError

LATENTS: Final = ("hidden_states", "x", "sample", "latents")
TIMESTEPS: Final = ("timestep", "timesteps", "t")


def guessed(kind: type) -> ModelDescription | None:
    """Describe a class by the loops over its blocks.

    A list is what a loop in one of its methods runs through; the state of a block is what its results are
    assigned to and is handed to the next one.

    Args:
        kind: a class of transformers.

    Returns:
        A description, or None where there is no such loop.
    """
    lists: dict[str, BlockList] = {}
    for method in _methods(kind):
        for loop in (node for node in ast.walk(method) if isinstance(node, ast.For)):
            found = _list_of(kind, loop)
            if found is not None:
                lists.setdefault(found.name, found)
    parameters = list(inspect.signature(kind.forward).parameters)[1:]  # type: ignore[attr-defined]
    ordered = _trunk(list(lists.values()))
    if not ordered:
        return None
    states = ordered[-1].state
    return ModelDescription(
        transformer=kind.__name__,
        name=kind.__name__.lower(),
        lists=ordered,
        video=next((name for name in LATENTS if name in states), states[0]),
        latents=next((name for name in LATENTS if name in parameters), parameters[0]),
        timestep=next((name for name in TIMESTEPS if name in parameters), "timestep"),
        guessed=True,
    )


def written(description: ModelDescription) -> str:
    """Write a description as the source that makes it."""
    lines = [
        "ModelDescription(",
        f'    transformer="{description.transformer}",',
        f'    name="{description.name}",',
        "    lists=(",
    ]
    for each in description.lists:
        names = ", ".join(f'"{name}"' for name in (each.name, *each.state))
        lines.append(f"        blocks({names}),")
    lines.append("    ),")
    plain = evolve(description, guessed=False)
    for name, default in (
        ("video", "hidden_states"),
        ("latents", "hidden_states"),
        ("timestep", "timestep"),
    ):
        value = getattr(plain, name)
        if value != default:
            lines.append(f'    {name}="{value}",')
    return "\n".join([*lines, ")"])


def drafted(subject: str) -> str:
    """Write a first description of a class.

    Args:
        subject: name of a transformer or of a pipeline in diffusers, or "package.module:Class".

    Raises:
        ConfigError: there is no such class, or no loop over blocks in it.
        UnsupportedBackboneError: diffusers is not installed.
    """
    kind = _class_of(subject)
    found = guessed(kind)
    if found is None:
        raise ConfigError(
            f"no method of {kind.__name__} runs through a list of blocks that was understood",
            where="hetcache describe",
            given=subject,
            remedy="Write the description by hand: docs/plugins.md, A model",
        )
    return written(found)


def _class_of(subject: str) -> type:
    module, _, name = subject.rpartition(":")
    try:
        if not module:
            import diffusers  # noqa: F401 - says by itself what is missing
        kind: Any = getattr(import_module(module or "diffusers"), name)
    except ImportError as error:
        if module:
            raise ConfigError(
                f"{module} cannot be imported: {error}", where="hetcache describe", given=subject
            ) from error
        raise missing_library(error) from error
    except AttributeError:
        raise ConfigError(
            f"{module or 'diffusers'} has no {name}",
            where="hetcache describe",
            given=subject,
            remedy="Name a class of diffusers, or package.module:Class",
        ) from None
    parts = get_type_hints(kind.__init__) if isinstance(kind, type) else {}  # type: ignore[misc]
    inner = parts.get("transformer")
    if isinstance(inner, type):
        return inner
    if not isinstance(kind, type) or not hasattr(kind, "forward"):
        raise ConfigError(
            f"{name} is neither a transformer nor a pipeline with one",
            where="hetcache describe",
            given=subject,
            remedy="Name the transformer's class",
        )
    return kind


def _methods(kind: type) -> Iterator[ast.FunctionDef]:
    """``forward``, then whatever other methods the class has of its own."""
    own = [name for name in vars(kind) if name != "forward" and not name.startswith("__")]
    for name in ("forward", *own):
        method = (
            inspect.unwrap(getattr(kind, name)) if callable(getattr(kind, name, None)) else None
        )
        if not inspect.isfunction(method):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
        except (OSError, SyntaxError):
            continue
        if isinstance(tree.body[0], ast.FunctionDef):
            yield tree.body[0]


def _list_of(kind: type, loop: ast.For) -> BlockList | None:
    """The list that a loop runs through, with the state of its blocks."""
    names = [
        node.attr
        for node in ast.walk(loop.iter)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    ]
    variables = {node.id for node in ast.walk(loop.target) if isinstance(node, ast.Name)}
    if not names:
        return None
    for node in ast.walk(loop):
        if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)):
            continue
        call = node.value
        if not (isinstance(call.func, ast.Name) and call.func.id in variables):
            continue
        given = _given(kind, names[0], call)
        targets = node.targets[0].elts if isinstance(node.targets[0], ast.Tuple) else node.targets
        state = [given.get(t.id, "") for t in targets if isinstance(t, ast.Name)]
        kept = tuple(name for name in state if name)
        if kept and kept == tuple(state[: len(kept)]):
            return BlockList(name=names[0], state=kept)
    return None


def _given(kind: type, name: str, call: ast.Call) -> dict[str, str]:
    """What a call hands on: name of the argument by the variable that it is given."""
    given = {k.value.id: k.arg for k in call.keywords if isinstance(k.value, ast.Name) and k.arg}
    positional = [a.id if isinstance(a, ast.Name) else "" for a in call.args]
    if positional:
        block = _block_class(kind, name)
        if block is not None:
            parameters = list(inspect.signature(block.forward).parameters)[1:]
            given |= {v: p for v, p in zip(positional, parameters, strict=False) if v}
    return given


def _block_class(kind: type, name: str) -> Any:
    """The class of the blocks of a list, by what ``__init__`` fills it with."""
    module = sys.modules[kind.__module__]
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(kind.__init__))))  # type: ignore[misc]
    except (OSError, SyntaxError):
        return None
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if not any(isinstance(t, ast.Attribute) and t.attr == name for t in targets):
            continue
        for inner in ast.walk(node.value):
            if isinstance(inner, ast.Call) and isinstance(inner.func, ast.Name):
                found = getattr(module, inner.func.id, None)
                if isinstance(found, type) and hasattr(found, "forward"):
                    return found
    return None


def _trunk(lists: list[BlockList]) -> tuple[BlockList, ...]:
    """Leave out what prepares the text or the latents: lists called refiners, embedders or encoders."""
    aside = (
        "refiner",
        "embed",
        "context",
        "text",
        "encoder",
        "decoder",
        "control",
        "patch",
        "norm",
    )
    return tuple(each for each in lists if not any(word in each.name for word in aside))
