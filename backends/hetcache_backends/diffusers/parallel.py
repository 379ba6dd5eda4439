"""Context parallelism of diffusers (``enable_parallelism``): which rows are this process's own.

The library hangs hooks on the model and its first blocks that split what they are called with, and one
behind the last block that gathers. A stand-in takes the place of blocks, so those in front are left to
us for the length of a session; the others stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from hetcache_core import Ranks, UnsupportedBackboneError

SPLIT: Final = "cp_input---"
GATHER: Final = "cp_output---"

WRONG: Final = {
    "LTXVideoTransformer3DModel": "its attention takes a mask of the text that ring attention reads past, "
    "silently, and Ulysses fails on",
    "LTX2VideoTransformer3DModel": "its attention takes a mask of the text as LTX-Video's does, where the "
    "output is another one",
}
"""Models whose context parallelism is wrong in the library itself. Source: diffusers 0.42.1, run with two
processes."""


def refuse_parallel(model: Any, blocks: Sequence[Any], *, carried: bool) -> None:
    """Refuse what a session cannot carry of ``enable_parallelism``.

    Args:
        model: the transformer.
        blocks: all of its blocks.
        carried: whether its backbone carries context parallelism at all.

    Raises:
        UnsupportedBackboneError: tensor parallelism, another backbone, or a model that splits rows inside
            its blocks or wrongly.
    """
    config = getattr(model, "_parallel_config", None)
    if config is None:
        return
    option, name = "enable_parallelism", type(model).__name__
    context = getattr(config, "context_parallel_config", None)
    inside = [m for block in blocks for m in block.modules() if m is not block and _hooks(m, SPLIT)]
    if context is None:
        problem, remedy = "tensor parallelism", "Use context parallelism, or load it without."
    elif name in WRONG:
        problem = f"context parallelism of a {name}: {WRONG[name]}"
        remedy = "Run it in one process."
    elif not carried or inside:
        problem = f"context parallelism of a {name}, which splits its rows in a way of its own"
        remedy = "Run it in one process."
    else:
        return
    raise UnsupportedBackboneError(
        f"A session cannot carry {problem} ({option})", option=option, remedy=remedy
    )


def ranks_of(model: Any) -> Ranks | None:
    """Name the processes that share a transformer's rows, or None."""
    config = getattr(model, "_parallel_config", None)
    if config is None:
        return None
    mesh = config.context_parallel_config._flattened_mesh  # noqa: SLF001 - which its hooks split over
    return Ranks(mesh.get_group())


def even(rows: int, ranks: Ranks | None, what: str) -> None:
    """Refuse rows that the processes cannot share evenly.

    Raises:
        UnsupportedBackboneError: names both numbers.
    """
    if ranks is not None and rows % ranks.size:
        raise UnsupportedBackboneError(
            f"{rows} rows of {what} do not divide by {ranks.size} processes (enable_parallelism)",
            option="enable_parallelism",
            remedy="Choose another size, number of frames or length of the text, or fewer processes.",
        )


def split(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Take this process's rows out of what a model or a block is called with, as its own hooks would."""
    for hook in _hooks(module, SPLIT):
        args, kwargs = hook.pre_forward(module, *args, **kwargs)
    return args, kwargs


def share_wan_vace(model: Any) -> None:
    """Share a Wan-VACE transformer's rows among all processes, by Ulysses attention.

    The library has no plan for this class: it is Wan's, and the same for the first control block.

    Raises:
        UnsupportedBackboneError: the processes do not share its heads evenly.
    """
    import torch
    from diffusers import ContextParallelConfig
    from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput

    size, heads = torch.distributed.get_world_size(), int(model.config.num_attention_heads)
    if heads % size:
        raise UnsupportedBackboneError(
            f"{size} processes cannot share {heads} attention heads evenly",
            option="--gpus",
            remedy="Take a number that divides them.",
        )
    rows = ContextParallelInput(split_dim=1, expected_dims=3)
    table = ContextParallelInput(split_dim=1, expected_dims=4, split_output=True)
    plan = {
        "rope": {0: table, 1: table},
        "blocks.0": {"hidden_states": rows},
        "vace_blocks.0": {"hidden_states": rows, "control_hidden_states": rows},
        "proj_out": ContextParallelOutput(gather_dim=1, expected_dims=3),
    }
    made: Any = ContextParallelConfig
    count = torch.accelerator.device_count
    with _replaced(torch.accelerator, "device_count", lambda: max(1, count())):  # 0 on a CPU
        model.enable_parallelism(config=made(ulysses_degree=size), cp_plan=plan)


@contextmanager
def splitting(models: Sequence[Any], blocks: Sequence[Any]) -> Iterator[None]:
    """Leave to us what the hooks of models and their blocks split, while the context lasts."""
    with ExitStack() as stack:
        for module in (*models, *blocks):
            for hook in _hooks(module, SPLIT):
                stack.enter_context(_replaced(hook.fn_ref, "pre_forward", _as_called))
        yield


@contextmanager
def alone(model: Any) -> Iterator[None]:
    """Run a transformer on all rows in this process, for counting, while the context lasts."""
    if getattr(model, "_parallel_config", None) is None:
        yield
        return
    with ExitStack() as stack:
        for module in model.modules():
            for hook in (*_hooks(module, SPLIT), *_hooks(module, GATHER)):
                stack.enter_context(_replaced(hook.fn_ref, "pre_forward", _as_called))
                stack.enter_context(_replaced(hook.fn_ref, "post_forward", _as_returned))
            processor = getattr(module, "processor", None)
            if getattr(processor, "_parallel_config", None) is not None:
                stack.enter_context(_replaced(processor, "_parallel_config", None))
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _hooks(module: Any, prefix: str) -> list[Any]:
    registry = vars(module).get("_diffusers_hook")
    hooks: Mapping[str, Any] = getattr(registry, "hooks", {})
    return [hook for name, hook in hooks.items() if name.startswith(prefix)]


def _as_called(_: Any, *args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def _as_returned(_: Any, output: Any) -> Any:
    return output
