"""What a backbone hands to the contract kit: a small pipeline, and how to run it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from attrs import Factory, evolve, field, frozen

from hetcache_core.backbone.adapter import Backbone, Features

if TYPE_CHECKING:
    from torch import Tensor, nn


@frozen(eq=False, kw_only=True)
class BackboneCase:
    """A backbone and a pipeline of its library that is small enough to test with.

    The pipeline has random weights and runs on the CPU in fp32, at a few milliseconds a step: dozens
    of tokens, at least two blocks, at least one control block where the model has a control branch,
    and a mask that covers some tokens and leaves others.

    Attributes:
        name: what failures are reported under.
        backbone: the adapter.
        make_pipeline: makes a fresh pipeline whose weights depend on the seed alone.
        run: runs one masked edit as ``run(pipeline, steps, guidance, seed)``, where guidance is
            "separate", "merged" or "none", through the pipeline's own call; returns its result,
            best the final latents.
        main_blocks: one module for each main block, called exactly once whenever the block runs:
            its feed-forward, since an adapter that looks into a block calls its parts instead.
        control_blocks: likewise for each control block; empty without a control branch.
        features: what the checks may ask for; the backbone's own features unless this pipeline can
            carry less of them.
        counts_flops: whether torch computes everything, so that its FLOPs can be counted.
    """

    name: str
    backbone: Backbone
    make_pipeline: Callable[[int], Any]
    run: Callable[[Any, int, str, int], Tensor]
    main_blocks: Callable[[Any], Sequence[nn.Module]]
    control_blocks: Callable[[Any], Sequence[nn.Module]] = lambda _pipeline: ()
    features: Features = field(
        default=Factory(lambda case: case.backbone.features, takes_self=True)
    )
    counts_flops: bool = True

    def with_values(self, **changes: Any) -> BackboneCase:
        """Return a copy with some values changed."""
        return evolve(self, **changes)

    @property
    def layouts(self) -> tuple[str, ...]:
        """Guidance layouts that the backbone carries, sorted."""
        return tuple(sorted(self.features.guidance))
