"""What the backbones on diffusers share: recognising, refusing, and what comes back."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Final

from attrs import define

from hetcache_backends.diffusers.parallel import (
    GATHER,
    SPLIT,
    ranks_of,
    refuse_parallel,
    splitting,
)
from hetcache_core import ModelCalls, UnsupportedBackboneError

if TYPE_CHECKING:
    from torch import Tensor

    from hetcache_core import Engine, Ranks

COND: Final = "cond"
UNCOND: Final = "uncond"

CARRIED_HOOKS: Final = frozenset(
    {"group_offloading", "lazy_prefetch_group_offloading", "layer_execution_tracker",
     "layerwise_casting"}
)  # fmt: skip
"""Hooks of diffusers that hold where blocks are called as the library calls them."""


def is_diffusers_pipeline(pipeline: object) -> bool:
    """Whether this is a diffusers pipeline, without importing diffusers."""
    return _has_base(pipeline, "DiffusionPipeline")


def is_pipeline(pipeline: object, model_kind: str) -> bool:
    """Whether this is a diffusers pipeline around a kind of model, without importing diffusers."""
    if not is_diffusers_pipeline(pipeline):
        return False
    models = (getattr(pipeline, "transformer", None), getattr(pipeline, "transformer_2", None))
    return any(_has_base(unwrapped(model), model_kind) for model in models)


def unwrapped(model: Any) -> Any:
    """Return the model inside what ``torch.compile`` makes of it."""
    return getattr(model, "_orig_mod", model)


def _has_base(value: object, name: str) -> bool:
    return any(
        kind.__name__ == name and kind.__module__.startswith("diffusers.")
        for kind in type(value).__mro__
    )


def refuse_options(model: Any, blocks: Sequence[Any], *, parallel: bool = False) -> None:
    """Refuse a model with an option that a session cannot carry.

    Args:
        model: the transformer.
        blocks: all of its blocks.
        parallel: whether its backbone carries context parallelism.

    Raises:
        UnsupportedBackboneError: names the option and how to turn it off.
    """
    for option, what, active, remedy in (
        (
            "enable_cache",
            "diffusers' own cache",
            getattr(model, "is_cache_enabled", False),
            "Call disable_cache() on the model; a session does the caching.",
        ),
        (
            "enable_gradient_checkpointing",
            "gradient checkpointing",
            getattr(model, "gradient_checkpointing", False),
            "Call disable_gradient_checkpointing() on the model.",
        ),
    ):
        if active:
            raise UnsupportedBackboneError(
                f"A session cannot carry {what} ({option})", option=option, remedy=remedy
            )
    refuse_parallel(model, blocks, carried=parallel)
    for module in (model, *blocks):
        hooks = getattr(vars(module).get("_diffusers_hook"), "hooks", {}).keys() - CARRIED_HOOKS
        if hooks := [name for name in hooks if not name.startswith((SPLIT, GATHER))]:
            raise UnsupportedBackboneError(
                f"A session cannot carry diffusers' hook {', '.join(sorted(hooks))!r} on a "
                f"{type(module).__name__}",
                option=", ".join(sorted(hooks)),
                remedy="Load the pipeline without it.",
            )


def refuse_processors(blocks: Sequence[Any]) -> None:
    """Refuse self-attention that cannot be looked into, for policies that need to.

    Raises:
        UnsupportedBackboneError: names the processor.
    """
    from hetcache_backends.diffusers.blocks import processor_code

    for block in blocks:
        processor_code(block.attn1.processor)


def missing_library(error: ImportError) -> UnsupportedBackboneError:
    """Make the error for a library that is not installed."""
    return UnsupportedBackboneError(
        f"diffusers cannot be imported: {str(error).splitlines()[0].rstrip('.')}",
        pip="pip install 'hetcache[diffusers]'",
    )


@define(eq=False)
class DiffusersCalls(ModelCalls):
    """What the calls of one kind of diffusers' models mean. One object serves one session."""

    parallel: ClassVar[bool] = True
    """Whether it carries rows that several processes share."""

    @abstractmethod
    def blocks(self, model: Any) -> Sequence[Any]:
        """All blocks of a model, those of its control branch included."""

    def refuse(self, model: Any, engine: Engine) -> None:
        """Refuse options that a session cannot carry, and attention that cannot be looked into."""
        blocks = self.blocks(model)
        refuse_options(model, blocks, parallel=self.parallel)
        if "attention" in engine.policy.needs():
            refuse_processors(blocks)

    def ranks(self, model: Any) -> Ranks | None:
        """Name the processes of the library's context parallelism."""
        return ranks_of(model)

    @contextmanager
    def routed(self) -> Iterator[None]:
        """Split rows here, where blocks have stand-ins."""
        models = [m for m in self.pipeline.components.values() if ranks_of(m) is not None]
        with splitting(models, [block for model in models for block in self.blocks(model)]):
            yield

    def result(self, output: Tensor) -> Any:
        """Wrap the output in the library's own class."""
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=output)
