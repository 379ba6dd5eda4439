"""ComfyUI's models as backbones: Wan, LTX-Video, and any other by whole calls."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, final

from attrs import frozen

from hetcache_comfyui.ltx import LtxCalls
from hetcache_comfyui.sampling import attached, is_guider, model_of
from hetcache_comfyui.wan import FRAME_STRIDE, LATENT_PIXELS, WanCalls, control_layers
from hetcache_comfyui.whole import WholeCalls
from hetcache_core import (
    Backbone,
    EditRequest,
    Features,
    Geometry,
    LoadRequest,
    ModelInfo,
    UnsupportedBackboneError,
)

if TYPE_CHECKING:
    from hetcache_core import Engine

GUIDANCE = frozenset({"merged", "none"})
"""ComfyUI runs both branches in one call, but where memory is short."""

VARIANTS = {(1536, 30): "wan2.1-1.3b", (5120, 40): "wan2.1-14b"}
"""Published models by (width, blocks)."""


def _is_of(pipeline: object, module: str, *names: str) -> bool:
    """Whether a guider's model is of one of ComfyUI's classes, and not of one made of them."""
    if not is_guider(pipeline):
        return False
    kind = type(model_of(pipeline))
    return kind.__module__ == module and kind.__name__ in names


def _only_in_comfyui(backbone: str) -> NoReturn:
    raise UnsupportedBackboneError(
        "ComfyUI loads and samples its models itself",
        backbone=backbone,
        remedy="Put the node HetCache between the model and the sampler of a workflow",
    )


@final
@frozen
class ComfyWan(Backbone):
    """Adapter for ComfyUI's guiders around ``WanModel`` and ``VaceWanModel``."""

    name: ClassVar[str] = "comfy-wan"
    summary: ClassVar[str] = "Wan2.1 and 2.2, VACE among them, sampled by ComfyUI"
    library: ClassVar[str] = "comfyui"
    features: ClassVar[Features] = Features(control=True, sampler=False, guidance=GUIDANCE)
    geometry: ClassVar[Geometry] = Geometry(
        size_multiple=2 * LATENT_PIXELS, frame_stride=FRAME_STRIDE
    )

    def features_of(self, pipeline: Any) -> Features:
        """Without VACE there is no control branch."""
        return self.features.with_values(control=bool(control_layers(model_of(pipeline))))

    def accepts(self, pipeline: object) -> bool:
        """Whether it samples a Wan."""
        return _is_of(pipeline, "comfy.ldm.wan.model", "WanModel", "VaceWanModel")

    def describe(self, pipeline: Any) -> ModelInfo:
        """Describe the model."""
        model = model_of(pipeline)
        width, layers = int(model.dim), len(model.blocks)
        return ModelInfo(
            backbone=self.name,
            variant=VARIANTS.get((width, layers), ""),
            layers=layers,
            width=width,
            heads=int(model.num_heads),
            control_layers=control_layers(model),
        )

    def attach(self, pipeline: Any, engine: Engine) -> AbstractContextManager[None]:
        """Route the model's calls."""
        return attached(self, pipeline, engine, WanCalls())

    def load(self, request: LoadRequest) -> Any:
        """Refuse: ComfyUI does it."""
        _only_in_comfyui(self.name)

    def edit(self, pipeline: Any, request: EditRequest) -> Any:
        """Refuse: ComfyUI does it."""
        _only_in_comfyui(self.name)


@final
@frozen
class ComfyLtx(Backbone):
    """Adapter for ComfyUI's guiders around ``LTXVModel``."""

    name: ClassVar[str] = "comfy-ltx"
    summary: ClassVar[str] = "LTX-Video, sampled by ComfyUI"
    library: ClassVar[str] = "comfyui"
    features: ClassVar[Features] = Features(sampler=False, guidance=GUIDANCE)
    geometry: ClassVar[Geometry] = Geometry(
        size_multiple=32, frame_stride=8, default_size=(512, 768), default_frames=97
    )

    def accepts(self, pipeline: object) -> bool:
        """Whether it samples an LTX-Video."""
        return _is_of(pipeline, "comfy.ldm.lightricks.model", "LTXVModel")

    def describe(self, pipeline: Any) -> ModelInfo:
        """Describe the model."""
        model = model_of(pipeline)
        return ModelInfo(
            backbone=self.name,
            variant="",
            layers=len(model.transformer_blocks),
            width=int(model.inner_dim),
            heads=int(model.transformer_blocks[0].attn1.heads),
        )

    def attach(self, pipeline: Any, engine: Engine) -> AbstractContextManager[None]:
        """Route the model's calls."""
        return attached(self, pipeline, engine, LtxCalls())

    def load(self, request: LoadRequest) -> Any:
        """Refuse: ComfyUI does it."""
        _only_in_comfyui(self.name)

    def edit(self, pipeline: Any, request: EditRequest) -> Any:
        """Refuse: ComfyUI does it."""
        _only_in_comfyui(self.name)


@final
@frozen
class ComfyAny(Backbone):
    """Adapter for ComfyUI's guiders around any model that asks its wrappers, by whole calls."""

    name: ClassVar[str] = "comfy-any"
    summary: ClassVar[str] = "any diffusion model of ComfyUI, whole calls at a time"
    library: ClassVar[str] = "comfyui"
    features: ClassVar[Features] = Features(
        rows=False, sub_layers=False, attention=False, mask=False, sampler=False, guidance=GUIDANCE
    )
    geometry: ClassVar[Geometry] = Geometry(size_multiple=1, frame_stride=1)
    general: ClassVar[bool] = True

    def accepts(self, pipeline: object) -> bool:
        """Whether it is a guider."""
        return is_guider(pipeline)

    def describe(self, pipeline: Any) -> ModelInfo:
        """Describe the model as far as it is known: its latents."""
        form = getattr(pipeline.model_patcher.model, "latent_format", None)
        width = int(getattr(form, "latent_channels", 1))
        return ModelInfo(backbone=self.name, variant="", layers=1, width=width, heads=1)

    def attach(self, pipeline: Any, engine: Engine) -> AbstractContextManager[None]:
        """Route the model's calls."""
        return attached(self, pipeline, engine, WholeCalls())

    def load(self, request: LoadRequest) -> Any:
        """Refuse: ComfyUI does it."""
        _only_in_comfyui(self.name)

    def edit(self, pipeline: Any, request: EditRequest) -> Any:
        """Refuse: ComfyUI does it."""
        _only_in_comfyui(self.name)


def is_described(pipeline: object) -> bool:
    """Whether an adapter knows the blocks of a guider's model."""
    return ComfyWan().accepts(pipeline) or ComfyLtx().accepts(pipeline)
