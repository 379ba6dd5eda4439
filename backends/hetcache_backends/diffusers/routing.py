"""What the calls of diffusers' models share: options that are refused, and what comes back."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attrs import define

from hetcache_backends.diffusers.common import refuse_options, refuse_processors
from hetcache_core import ModelCalls

if TYPE_CHECKING:
    from torch import Tensor

    from hetcache_core import Engine
    from hetcache_core.backbone.compiling import BlockCompiler


@define(eq=False)
class DiffusersCalls(ModelCalls):
    """What the calls of one kind of diffusers' models mean. One object serves one session.

    Attributes:
        compiler: what blocks are run with, or None to run them as they are.
    """

    compiler: BlockCompiler | None = None

    @abstractmethod
    def blocks(self, model: Any) -> Sequence[Any]:
        """All blocks of a model, those of its control branch included."""

    def refuse(self, model: Any, engine: Engine) -> None:
        """Refuse options that a session cannot carry, and attention that cannot be looked into."""
        blocks = self.blocks(model)
        refuse_options(model, blocks)
        if "attention" in engine.policy.needs():
            refuse_processors(blocks)

    def result(self, output: Tensor) -> Any:
        """Wrap the output in the library's own class."""
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=output)
