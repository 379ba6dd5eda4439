"""Any described transformer of diffusers, in whatever pipeline calls it."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Final, final

from attrs import define, field, frozen

from hetcache_backends.diffusers.common import (
    COND,
    UNCOND,
    DiffusersCalls,
    is_diffusers_pipeline,
    missing_library,
    refuse_options,
    unwrapped,
)
from hetcache_backends.diffusers.parallel import alone, even, split
from hetcache_backends.folders import TRANSFORMERS
from hetcache_core import (
    Backbone,
    BranchRows,
    EditRequest,
    Features,
    Geometry,
    Grid,
    LoadRequest,
    ModelInfo,
    RandomModels,
    StandIn,
    UnsupportedBackboneError,
    attached,
    discover,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from hetcache_backends.diffusers.counting import BlockCosts, SharedFlops
    from hetcache_backends.diffusers.description import ModelDescription, ModelSet
    from hetcache_backends.diffusers.noted import NotedCall
    from hetcache_core import Engine, RunTrunk

MERGED: Final = "cond_uncond"
"""What diffusers' pipelines call the context in which both branches are rows of one batch."""

STEPS_ONLY: Final = Features(
    rows=False,
    sub_layers=False,
    attention=False,
    mask=False,
    output=False,
    compiled=True,
    guidance=frozenset({"separate", "merged", "none"}),
)
"""What every described model carries: whole steps and whole blocks."""


def described_models() -> dict[str, ModelDescription]:
    """Descriptions of all installed model sets, by the name of the transformer's class."""
    registry = discover()
    found: dict[str, ModelDescription] = {}
    for name in registry.names("model set"):
        models: ModelSet = registry.load("model set", name)()
        found |= {model.transformer: model for model in models.models()}
    return found


@final
@frozen
class DiffusersModels(Backbone):
    """Adapter for diffusers' pipelines around any transformer that a model set describes.

    Attributes:
        description: the model, None where no pipeline has been looked at.
    """

    name: ClassVar[str] = "diffusers"
    summary: ClassVar[str] = (
        "any described diffusion transformer, whole steps and blocks (diffusers)"
    )
    library: ClassVar[str] = "diffusers"
    features: ClassVar[Features] = STEPS_ONLY
    geometry: ClassVar[Geometry] = Geometry(size_multiple=16, frame_stride=1)
    general: ClassVar[bool] = True

    description: ModelDescription | None = None

    def features_of(self, pipeline: Any) -> Features:
        """Say what is carried of a pipeline, by the description and the channels of its model."""
        described, config = self._described(pipeline), self._models(pipeline)[0].config
        channels = config.get("in_channels")
        alike = channels == (config.get("out_channels") or channels)
        tokens = described.tokens
        return self.features.with_values(
            rows=tokens, attention=tokens, mask=tokens, output=described.output and alike
        )

    def accepts(self, pipeline: object) -> bool:
        """Whether this is a diffusers pipeline around a described transformer."""
        return is_diffusers_pipeline(pipeline) and self._find(pipeline) is not None

    def describe(self, pipeline: Any) -> ModelInfo:
        """Describe the pipeline's transformer, the first one of several."""
        from hetcache_backends.diffusers.noted import heads_of

        description, model = self._described(pipeline), self._models(pipeline)[0]
        layers = sum(len(getattr(model, each.name)) for each in description.lists)
        heads = heads_of(model)
        return ModelInfo(
            backbone=self.name,
            variant=description.name,
            layers=layers,
            width=_width(model, heads),
            heads=heads,
        )

    @contextmanager
    def attach(self, pipeline: Any, engine: Engine) -> Iterator[None]:
        """Route the transformers' calls; see ``hetcache_core.backbone.routing``."""
        from hetcache_backends.diffusers.counting import BlockCosts

        calls = DescribedCalls(pipeline, self._described(pipeline), engine, BlockCosts())
        with attached(self, engine, calls, self._models(pipeline)):
            yield

    def load(self, request: LoadRequest) -> Any:
        """Load a folder or hub id through ``DiffusionPipeline``."""
        try:
            from diffusers import DiffusionPipeline
        except ImportError as error:
            raise missing_library(error) from error
        from hetcache_core import load_pipeline

        loaded = load_pipeline(
            DiffusionPipeline,
            request,
            accepts=self.accepts,
            example="black-forest-labs/FLUX.1-dev",
        )
        return self._inpainting(loaded)

    def edit(self, pipeline: Any, request: EditRequest) -> NDArray[np.uint8]:
        """Call an inpainting pipeline with one picture and its mask, or run a random model.

        Raises:
            UnsupportedBackboneError: it is none that a description names, there are several frames, or it
                takes no negative prompt.
        """
        if hasattr(pipeline, "edited"):
            frames: NDArray[np.uint8] = pipeline.edited(request)
            return frames
        import numpy as np
        from PIL import Image

        from hetcache_core import run_edit

        name, takes = type(pipeline).__name__, inspect.signature(pipeline.__call__).parameters
        if name not in self._masked(pipeline):
            raise UnsupportedBackboneError(
                f"a {name} takes no picture with a mask, and is called with arguments of its own",
                backbone=self.name,
                remedy="Choose the checkpoint of a model with an inpainting pipeline (docs/backbones.md), "
                "or call it inside `with hetcache.accelerate(pipe, policy):`",
            )
        if len(request.video) > 1:
            raise UnsupportedBackboneError(
                f"a {name} edits one picture, and {len(request.video)} frames are given",
                backbone=self.name,
                remedy="Give a picture with --image, or choose another --backbone for a video",
            )
        if request.negative_prompt and "negative_prompt" not in takes:
            raise UnsupportedBackboneError(
                f"a {name} takes no negative prompt", backbone=self.name, remedy="Leave it out"
            )
        (picture,), (mask,) = request.video, request.mask
        arguments: dict[str, Any] = {
            "image": Image.fromarray(picture),
            "mask_image": Image.fromarray(mask.astype(np.uint8) * 255),
            "strength": 1.0,
        }
        distilled = self._models(pipeline)[0].config.get("guidance_embeds", False)
        if "true_cfg_scale" in takes and not distilled:
            arguments["true_cfg_scale"] = request.guidance_scale
        (made,) = run_edit(pipeline, arguments, request)
        size = picture.shape[1], picture.shape[0]
        # Some work at a size of their own.
        return np.asarray(Image.fromarray(made).resize(size, Image.Resampling.LANCZOS))[None]

    def notice(self, pipeline: Any) -> str | None:
        """Say so where nobody has described the model."""
        own = super().notice(pipeline)
        if own or not self._described(pipeline).guessed:
            return own
        return (
            f"Nobody has described {self._described(pipeline).transformer}: its blocks were found in its "
            "source, and held against the library's own output at the first call."
        )

    @property
    def models(self) -> tuple[str, ...]:
        """All described models."""
        return tuple(sorted(model.name for model in described_models().values()))

    @property
    def masked(self) -> tuple[str, ...]:
        """Pipelines with a mask: what is computed in every partial step, and how guidance runs."""
        found = (each for model in described_models().values() for each in model.masked)
        return tuple(
            sorted(f"{each.name} (always {each.pinned}; {each.guidance})" for each in found)
        )

    @property
    def random_models(self) -> RandomModels:
        """What makes a loop around a small model of each described class."""
        from hetcache_backends.diffusers.samples.models import SampleModels

        return SampleModels(self)

    def draft(self, subject: str) -> str:
        """Write a first description of a class of diffusers, or of the transformer of a pipeline."""
        from hetcache_backends.diffusers.guessing import drafted

        return drafted(subject)

    def _masked(self, pipeline: Any) -> set[str]:
        return {each.name for each in self._described(pipeline).masked}

    def _inpainting(self, pipeline: Any) -> Any:
        """Make the inpainting pipeline of a text-to-image one's parts, where there is one."""
        import diffusers

        own = type(pipeline).__name__
        name = own.replace("Pipeline", "InpaintPipeline")
        if own in self._masked(pipeline) or name not in self._masked(pipeline):
            return pipeline
        return getattr(diffusers, name)(**pipeline.components)

    def _find(self, pipeline: Any) -> ModelDescription | None:
        from hetcache_backends.diffusers.guessing import guessed

        known = described_models()
        for model in pipeline.components.values():
            for kind in type(unwrapped(model)).__mro__:
                if kind.__name__ in known:
                    return known[kind.__name__]
        kind = type(unwrapped(pipeline.components.get("transformer")))
        # What another backbone is made for is not guessed at.
        guess = hasattr(kind, "forward") and kind.__name__ not in TRANSFORMERS
        return guessed(kind) if guess else None

    def _described(self, pipeline: Any) -> ModelDescription:
        found = self.description or (
            self._find(pipeline) if is_diffusers_pipeline(pipeline) else None
        )
        if found is None:
            raise UnsupportedBackboneError(
                f"the transformer of a {type(pipeline).__name__} is not described, and its blocks were not "
                "found in its source",
                backbone=self.name,
                remedy="Register a model set (hetcache_register_model_sets) that describes it",
            )
        return found

    def _models(self, pipeline: Any) -> list[Any]:
        wanted = self._described(pipeline).transformer
        found = [
            model
            for model in pipeline.components.values()
            if any(kind.__name__ == wanted for kind in type(unwrapped(model)).__mro__)
        ]
        return list({id(model): model for model in found}.values())


@frozen
class Layout:
    """What a call looks like before its blocks run.

    Attributes:
        tokens: tokens of the trunk.
        leading: those before the tokens of what is made.
        trailing: those among them that the library has after the tokens of what is made.
        side: pixels that a token is high and wide, 1 where there is no mask that the tokens fill.
        around: FLOPs of embeddings and head.
        flops: of all processes together, where they share the tokens.
    """

    tokens: int
    leading: int
    trailing: int
    side: int
    around: int
    flops: SharedFlops | None = None


@final
@define(eq=False)
class DescribedCalls(DiffusersCalls):
    """What the calls of a described transformer mean.

    Attributes:
        description: its description.
        engine: what answers the calls.
        costs: counts its blocks.
    """

    description: ModelDescription
    engine: Engine
    costs: BlockCosts
    _layouts: dict[Any, Layout] = field(factory=dict, init=False)
    _checked: set[int] = field(factory=set, init=False)
    _prepared: Tensor | None = field(default=None, init=False)
    _mask: Tensor | None = field(default=None, init=False)

    def blocks(self, model: Any) -> Sequence[Any]:
        """All blocks."""
        return [block for each in self.description.lists for block in getattr(model, each.name)]

    def refuse(self, model: Any, engine: Engine) -> None:
        """Refuse options that a session cannot carry; attention is looked into by torch's own function."""
        refuse_options(model, self.blocks(model), parallel=self.parallel)

    def reset(self) -> None:
        """Look at the calls of the next run anew: tokens may depend on a mask."""
        self._layouts.clear()

    def latents_of(self, arguments: Mapping[str, Any]) -> Tensor:
        """The latents, of all batch rows."""
        return _stacked(arguments[self.description.latents])

    def timestep_of(self, arguments: Mapping[str, Any]) -> Tensor:
        """The timestep, by the name that the class has for it."""
        timestep: Tensor = arguments[self.description.timestep]
        return timestep

    def is_at(self, given: Tensor, timestep: float) -> bool:
        """Whether it is the scheduler's timestep, its share of 1000, or what is left of that."""
        import torch

        if self.description.other_times:
            return True
        error = 4 * torch.finfo(given.dtype).eps if given.is_floating_point() else 0.0
        share = timestep / 1000
        top, low = float(given.max()), float(given.min())
        known = (timestep, share, 1 - share)
        if any(abs(a - b) <= error * max(abs(b), 1.0) for a in (top, low) for b in known):
            return True
        return given.dim() > 1 and top < timestep  # conditioned tokens have lower ones

    def sample(self, result: Any) -> Tensor:
        """Take the predicted latents out of whatever the transformer returns."""
        first = result if hasattr(result, "dim") else result[0]
        return _stacked(first)

    def grid(self, model: Any, arguments: Mapping[str, Any]) -> Grid:
        """Count the tokens, and lay them out where they fill the picture that there is a mask of."""
        layout = self._layout(model, arguments)
        tokens, mask = layout.tokens - layout.leading, self._mask
        height = 1 if layout.side == 1 or mask is None else mask.shape[1] // layout.side
        return Grid(
            frames=1,
            height=height,
            width=tokens // height,
            prefix=layout.leading,
            pixel_height=layout.side,
            pixel_width=layout.side,
            frame_stride=1,
        )

    def mask(self, model: Any, arguments: Mapping[str, Any]) -> Tensor | None:
        """The mask (1, H, W) that the pipeline has prepared, of a picture that the tokens fill."""
        # A run that prepares none must not have that of the run before.
        self._mask, self._prepared = self._prepared, None
        return self._mask if self._layout(model, arguments).side > 1 else None

    @contextmanager
    def routed(self) -> Iterator[None]:
        """See the mask as an inpainting pipeline prepares it, in its own size."""
        own = getattr(self.pipeline, "mask_processor", None)
        if own is None:
            with DiffusersCalls.routed(self):
                yield
            return

        def preprocess(*args: Any, **kwargs: Any) -> Any:
            made = own.preprocess(*args, **kwargs)  # (B, 1, H, W)
            # One grid for all pictures of a batch; the pipeline binarizes as here.
            self._prepared = (made[:, 0] > 0.5).any(0)[None].to(made.device)  # noqa: PLR2004
            return made

        self.pipeline.mask_processor = StandIn(own, preprocess=preprocess)
        try:
            with DiffusersCalls.routed(self):
                yield
        finally:
            self.pipeline.mask_processor = own

    def run_branches(self, arguments: Mapping[str, Any], context: str | None) -> tuple[str, ...]:
        """All branches: rows of one batch, or as many calls as guidance needs."""
        first = super().run_branches(arguments, context)
        if len(first) > 1 or not self._guided:
            return first
        other = {COND: UNCOND, UNCOND: COND, "pred_cond": "pred_uncond", "pred_uncond": "pred_cond"}
        return (*first, other.get(first[0], UNCOND))

    def branches(
        self, arguments: Mapping[str, Any], context: str | None, call: int
    ) -> tuple[BranchRows, ...]:
        """Name the branches by the pipeline's ``cache_context``, else by the order of calls."""
        batch = self.latents_of(arguments).shape[0]
        merged = context == MERGED or (
            context is None and _repeats_latents(self.pipeline.__class__)
        )
        if merged and self._guided and batch % 2 == 0:
            if self.engine.policy.guidance is not None:
                raise UnsupportedBackboneError(
                    f"policy {self.engine.policy.name!r} predicts one guidance branch from the other, "
                    f"and a {type(self.pipeline).__name__} runs both in one call",
                    remedy="Use another policy",
                )
            names = (COND, UNCOND) if self.description.cond_first else (UNCOND, COND)
            return BranchRows.split(batch, *names)
        names = (COND, UNCOND)
        name = None if context == MERGED else context
        name = name or (names[call] if call < len(names) else f"branch {call + 1}")
        return (BranchRows(name, 0, batch),)

    def expert(self, model: Any) -> str:
        """Name one of several transformers by the pipeline's attribute."""
        names = [n for n, each in self.pipeline.components.items() if each is model]
        alike = [m for m in self.pipeline.components.values() if type(m) is type(model)]
        return names[0] if names and len(alike) > 1 else ""

    def stand_in(
        self, model: Any, arguments: Mapping[str, Any], run: RunTrunk
    ) -> tuple[Any, dict[str, Any]]:
        """Give the library's forward blocks of which the last runs them all."""
        from hetcache_backends.diffusers.noted import Form, NotedTrunk, made_stand_in

        layout, shared = self._layout(model, arguments), self.ranks(model) is not None

        def answered(calls: list[NotedCall]) -> dict[str, Tensor]:
            state = calls[0].state()
            form = Form.of(self.description, state, layout.trailing)
            trunk = NotedTrunk(
                model=model,
                form=form,
                calls=calls,
                x=form.joined(state),
                around=layout.around,
                costs=self.costs,
                compiler=self.engine.compiler,
                counted=layout.flops,
            )
            output = run(trunk)
            return trunk.state(output, calls[-1].described.state)

        stand_in = made_stand_in(model, self.description, answered, split if shared else None)[0]
        return stand_in, split(model, (), arguments)[1] if shared else {}

    @property
    def _guided(self) -> bool:
        guided = getattr(self.pipeline, "do_classifier_free_guidance", False)
        return bool(guided)

    def _layout(self, model: Any, arguments: Mapping[str, Any]) -> Layout:
        """Run embeddings and head without blocks, once for each size in a run."""
        from hetcache_backends.diffusers.counting import SharedFlops, count_around, shapes_of
        from hetcache_backends.diffusers.noted import Form, NotedTrunk, made_stand_in

        key, ranks = (id(model), shapes_of(list(arguments.values()))), self.ranks(model)
        if self.description.guessed and id(model) not in self._checked:
            with alone(model):
                self._check(model, arguments)
        if key not in self._layouts:
            found: list[tuple[int, int]] = []
            counted: list[tuple[int, int]] = []

            def skipped(calls: list[NotedCall]) -> dict[str, Tensor]:
                state = calls[0].state()
                form = Form.of(self.description, state)
                x = form.joined(state)
                found.append((x.shape[1], form.others))
                if ranks is not None:  # one of them alone sees only some of the rows
                    even(form.others, ranks, "the text")
                    even(x.shape[1] - form.others, ranks, "the video")
                    trunk = NotedTrunk(
                        model=model, form=form, calls=calls, x=x, around=0, costs=self.costs
                    )
                    counted.extend(trunk.count(i, x.shape[1]) for i in range(trunk.layers))
                return calls[-1].state()

            stand_in, _ = made_stand_in(model, self.description, skipped)
            with alone(model):
                _, around = count_around(lambda: type(model).forward(stand_in, **arguments))
            if not found:
                raise UnsupportedBackboneError(
                    f"a {type(model).__name__} does not run its last block",
                    remedy="Its description names other lists than it runs through, or the pipeline "
                    "leaves blocks out",
                )
            tokens, others = found[0]
            # Processes split the video's state as it is, with what comes after the tokens that are made.
            side, made = self._made(tokens - others) if ranks is None else (1, tokens - others)
            self._layouts[key] = Layout(
                tokens=tokens,
                leading=tokens - made,
                trailing=tokens - others - made,
                side=side,
                around=around,
                flops=SharedFlops(around, tokens, tuple(counted)) if ranks is not None else None,
            )
        return self._layouts[key]

    def _made(self, tokens: int) -> tuple[int, int]:
        """Find the tokens of what is made among those of the video's state.

        Returns:
            Pixels that one is high and wide, and how many they are: 1 and all where there is no mask of a
            picture that the first of them fill.
        """
        side = self.description.patch * getattr(self.pipeline, "vae_scale_factor", 0)
        if self._mask is None or not self.description.tokens or not side:
            return 1, tokens
        _, height, width = self._mask.shape
        made = (height // side) * (width // side)
        fits = height % side == 0 and width % side == 0 and made <= tokens
        return (side, made) if fits else (1, tokens)

    def _check(self, model: Any, arguments: Mapping[str, Any]) -> None:
        """Hold a guessed description against the library, once a session.

        Raises:
            UnsupportedBackboneError: with every block run by us the output is another one, or blocks run
                beside ours; shows the description to correct.
        """
        import torch

        from hetcache_backends.diffusers.guessing import written
        from hetcache_backends.diffusers.noted import made_stand_in

        def computed(calls: list[NotedCall]) -> dict[str, Tensor]:
            state = calls[0].state()
            for call in calls:
                state = call.with_values(**state).run()
            return state

        ran: list[int] = []
        hooks = [b.register_forward_pre_hook(lambda *_: ran.append(1)) for b in self.blocks(model)]
        try:
            own = self.sample(type(model).forward(model, **arguments))
            expected = len(ran)
            stand_in, _ = made_stand_in(model, self.description, computed)
            made = self.sample(type(model).forward(stand_in, **arguments))
            holds = len(ran) == 2 * expected == 2 * len(hooks) and torch.equal(made, own)
        except Exception as error:
            raise self._misfit(model, written(self.description)) from error
        finally:
            for hook in hooks:
                hook.remove()
        if not holds:
            raise self._misfit(model, written(self.description))
        self._checked.add(id(model))

    def _misfit(self, model: Any, text: str) -> UnsupportedBackboneError:
        return UnsupportedBackboneError(
            f"nobody has described {type(model).__name__}, and with the blocks that were found in its source "
            "its output is not the library's",
            backbone="diffusers",
            remedy=f"Correct this description and register it in a model set:\n{text}",
        )


@functools.cache
def _repeats_latents(kind: Any) -> bool:
    """Whether a pipeline runs both branches as rows of one call, in which case it repeats its latents.

    Such pipelines that give their calls no name (``cache_context``) say it nowhere else.
    """
    try:
        source = inspect.getsource(kind.__call__)
    except (AttributeError, OSError, TypeError):
        return False
    return re.search(r"\] \* 2\)|\.repeat\(2,", source) is not None


def _stacked(value: Any) -> Tensor:
    """Stack a list of one tensor a batch row, of equal or different sizes."""
    import torch

    if not isinstance(value, list | tuple):
        tensor: Tensor = value
        return tensor
    if len({each.shape for each in value}) == 1:
        return torch.stack(list(value))
    return torch.cat([each.flatten() for each in value])[None]


def _width(model: Any, heads: int) -> int:
    """Width of a transformer's trunk, as its configuration or the first of its norms says."""
    config = model.config
    head = config.get("attention_head_dim") or config.get("head_dim")
    if isinstance(head, int) and heads > 1:
        return heads * head
    names = ("hidden_size", "inner_dim", "dim", "hidden_dim", "model_dim", "d_model")
    found = next((int(v) for n in names if isinstance(v := config.get(n), int)), 0)
    return found or int(getattr(model, "inner_dim", heads)) // heads * heads
