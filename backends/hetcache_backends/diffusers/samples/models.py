"""The described models as random models: ``diffusers=random:NAME``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, final

from attrs import frozen

from hetcache_backends.diffusers.adapter import DiffusersModels, described_models
from hetcache_backends.diffusers.common import missing_library
from hetcache_backends.diffusers.samples.sample import samples
from hetcache_backends.wan.case import RANDOM_NOTICE, RANDOM_SEED
from hetcache_core import LoadRequest, RandomModels, UnsupportedBackboneError

if TYPE_CHECKING:
    from hetcache_core.testing import BackboneCase

USUAL: Final = "flux"
"""What ``diffusers=random`` runs: whole steps, blocks and tokens."""


@final
@frozen
class SampleModels(RandomModels):
    """Small models of the described classes that the installed diffusers has.

    Attributes:
        backbone: the adapter.
    """

    backbone: DiffusersModels

    @property
    def names(self) -> tuple[str, ...]:
        """Short names of the descriptions."""
        return tuple(sorted(self._classes()))

    def pipeline(self, request: LoadRequest) -> Any:
        """Make a loop around a model; no text is read, and the picture shows latents."""
        import torch

        classes, name = self._classes(), request.model or USUAL
        if name not in classes:
            raise UnsupportedBackboneError(
                f"the installed diffusers has no described model {name!r}",
                backbone=self.backbone.name,
                remedy=f"There are {', '.join(sorted(classes))}",
            )
        from hetcache_backends.diffusers.samples.loop import SampleLoop

        kind = classes[name]
        model = described_models()[kind]
        pipeline = SampleLoop.of(
            samples()[kind], RANDOM_SEED, patch=model.patch if model.tokens else 0
        )
        torch.nn.Module.to(pipeline.transformer, request.device, getattr(torch, request.dtype))
        pipeline.hetcache_notice = RANDOM_NOTICE.format(name=self.backbone.name)
        return pipeline

    def case(self) -> BackboneCase:
        """Refuse: each described class has a test of its own.

        Raises:
            UnsupportedBackboneError: always.
        """
        raise UnsupportedBackboneError(
            "one model does not stand for all described ones",
            backbone=self.backbone.name,
            remedy="Each goes through tests/backends/test_described_models.py",
        )

    def _classes(self) -> dict[str, str]:
        """Names of the classes by the short names of their descriptions."""
        try:
            import diffusers
        except ImportError as error:
            raise missing_library(error) from error
        made = samples().keys()
        return {
            model.name: kind
            for kind, model in described_models().items()
            if kind in made and hasattr(diffusers, kind)
        }
