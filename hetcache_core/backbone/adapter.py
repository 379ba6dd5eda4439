"""What a backbone adapter provides, and what it tells the engine about a run and a call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import Factory, evolve, field, fields, frozen

from hetcache_core.errors import ConfigError, UnsupportedBackboneError
from hetcache_core.steps import BranchRows, ModelInfo, Stack, SubLayer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from hetcache_core.backbone.ranks import Ranks
    from hetcache_core.engine.loop import Engine
    from hetcache_core.testing import BackboneCase
    from hetcache_core.tokens import Grid


@frozen(kw_only=True)
class Features:
    """What a backbone can carry; a policy names what it needs (``CachePolicy.needs``).

    Attributes:
        rows: blocks run on a subset of tokens.
        sub_layers: single sub-layers can be seen and replaced.
        attention: q, k and v of self-attention can be seen and replaced.
        mask: the edit mask reaches the engine from the pipeline's own call.
        control: the model has a control branch.
        output: the whole model call can be left out.
        sampler: the number of sampler steps can be changed (``Engine.sampler_steps``).
        compiled: blocks can be run with ``torch.compile`` (``Engine.compiler``).
        guidance: layouts carried, of "separate", "merged", "none".
    """

    rows: bool = True
    sub_layers: bool = True
    attention: bool = True
    mask: bool = True
    control: bool = False
    output: bool = True
    sampler: bool = True
    compiled: bool = False
    guidance: frozenset[str] = frozenset({"separate", "none"})

    def with_values(self, **changes: Any) -> Features:
        """Return a copy with some values changed."""
        return evolve(self, **changes)

    def missing(self, needed: frozenset[str]) -> tuple[str, ...]:
        """Names in ``needed`` that this backbone lacks, sorted."""
        known = {f.name for f in fields(Features)}
        return tuple(sorted(n for n in needed if n not in known or not getattr(self, n)))


@frozen(eq=False, kw_only=True)
class RunInfo:
    """One run of the sampler, known when its first model call arrives.

    Attributes:
        model: the model.
        timesteps: unrounded timesteps of all steps.
        sigmas: noise levels of all steps.
        grid: the token grid.
        mask: (F, H, W) bool pixel mask on the trunk's device, or None for an unmasked run.
        branches: guidance branches in the order of their first call.
        device: device of the trunk.
        evaluations: how often the sampler evaluates the model for a step that was asked for (Heun's
            method: twice); each evaluation is a step of the run.
        sampler: "euler" where a step takes latents ``z`` to ``z + (sigma' - sigma) v`` with the guided
            output ``v``; otherwise the sampler's name, or "".
        ranks: processes that share the trunk's rows, or None where this one has all of them.
    """

    model: ModelInfo
    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]
    grid: Grid
    mask: Tensor | None
    branches: tuple[str, ...]
    device: str
    evaluations: int = 1
    sampler: str = ""
    ranks: Ranks | None = None

    @property
    def steps(self) -> int:
        """Number of steps ``S``."""
        return len(self.timesteps)


@frozen(eq=False, kw_only=True)
class ModelCall:
    """One call of the DiT by the pipeline.

    Attributes:
        step: index of the step, from the scheduler.
        branches: guidance branches in this call with their batch rows.
        latents: noisy latents the model is called with, in the library's layout.
        expert: which of several expert models is called.
    """

    step: int
    branches: tuple[BranchRows, ...]
    latents: Tensor
    expert: str = ""

    @property
    def key(self) -> str:
        """Name under which state of this call is kept: its branches joined by "+"."""
        return "+".join(b.name for b in self.branches)


class FlopModel(ABC):
    """FLOPs (2 x multiply-accumulate, matrix products and convolutions) of one call's pieces."""

    @abstractmethod
    def outside(self) -> int:
        """Everything around the trunk: embeddings and head."""

    @abstractmethod
    def sub_layer(self, stack: Stack, part: SubLayer, *, rows: int, keys: int) -> int:
        """One sub-layer on ``rows`` tokens; self-attention sees ``keys`` tokens."""

    def block(self, stack: Stack, index: int, *, rows: int, keys: int) -> int:
        """One whole block; by default the sum of its sub-layers, where all blocks are alike.

        Args:
            stack: which blocks are meant.
            index: the block.
            rows: tokens that it runs on.
            keys: tokens that self-attention sees.
        """
        return sum(self.sub_layer(stack, part, rows=rows, keys=keys) for part in SubLayer)

    @abstractmethod
    def control_extra(self, index: int, *, rows: int) -> int:
        """What control block ``index`` costs beside its sub-layers (projections, embedding)."""


@frozen(kw_only=True)
class Geometry:
    """Sizes that a backbone takes.

    Attributes:
        size_multiple: height and width must be multiples of this many pixels.
        token_size: pixels that a token covers vertically, and horizontally; by default
            ``size_multiple``.
        frame_stride: frame counts must be ``frame_stride * k + frame_offset``; a token covers so
            many frames, but for the first one where the offset is 1.
        frame_offset: see above.
        default_size: (height, width) to use for a video of unknown needs.
        default_frames: frame count to use when none is asked for.
    """

    size_multiple: int
    token_size: int = field(
        default=Factory(lambda geometry: geometry.size_multiple, takes_self=True)
    )
    frame_stride: int
    frame_offset: int = 1
    default_size: tuple[int, int] = (480, 832)
    default_frames: int = 81

    def grid(self, frames: int, height: int, width: int) -> Grid:
        """Lay out the tokens of a clip, given in pixels."""
        from hetcache_core.tokens import Grid

        side, alone = self.token_size, self.frame_offset == 1
        return Grid(
            frames=(frames - self.frame_offset) // self.frame_stride + int(alone),
            height=height // side,
            width=width // side,
            pixel_height=side,
            pixel_width=side,
            frame_stride=self.frame_stride,
            first_frame_alone=alone,
        )


@frozen(kw_only=True)
class LoadRequest:
    """How to load a backbone's pipeline.

    Attributes:
        model: path or hub id of a checkpoint, or None for the backbone's own default; a single file
            (.safetensors or .gguf) holds the transformer alone.
        around: with a single file, folder or hub id that the rest is loaded from; None takes the
            backbone's published checkpoint.
        variant: which of several sets of weights in the checkpoint, such as "fp16".
        device: torch device ("cpu", "cuda").
        dtype: torch dtype name ("float32", "bfloat16").
    """

    model: str | None = None
    around: str | None = None
    variant: str | None = None
    device: str = "cpu"
    dtype: str = "float32"

    def refuse(self, *names: str, why: str) -> None:
        """Refuse what a backbone would leave unread.

        Args:
            names: attributes; those that are None are not asked for.
            why: a sentence on what there is instead.

        Raises:
            ConfigError: one of them is asked for.
        """
        for name in names:
            if (given := getattr(self, name)) is not None:
                raise ConfigError(
                    f"{given} would not be read: {why}",
                    where=f"--{name}",
                    setting=name,
                    given=given,
                    remedy="Leave it out.",
                )


@frozen(eq=False, kw_only=True)
class EditRequest:
    """One masked edit, in the backbone's own size and length.

    Attributes:
        video: (F, H, W, 3) uint8 source frames.
        mask: (F, H, W) bool; ``True`` means "edit".
        prompt: what to put into the mask.
        negative_prompt: what to keep out of it.
        steps: sampler steps.
        seed: seed of the initial noise.
        guidance_scale: 1 runs without guidance.
        merge_guidance: run both branches in one call where the backbone can.
        options: further arguments of the library's pipeline call, by its own names.
    """

    video: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    prompt: str = ""
    negative_prompt: str = ""
    steps: int = 50
    seed: int = 0
    guidance_scale: float = 5.0
    merge_guidance: bool = False
    options: dict[str, Any] = field(factory=dict)


class Exporter(ABC):
    """Writes a backbone's model as ONNX graphs of the parts that caching runs or leaves out."""

    @abstractmethod
    def export(
        self, pipeline: Any, folder: Path, *, model: str | None = None
    ) -> Mapping[str, object]:
        """Write the graphs.

        Args:
            pipeline: a loaded pipeline in float32 on the CPU; it is not changed.
            folder: what to write: a folder that does not exist yet. It comes whole or not at all.
            model: what the pipeline was loaded from, for parts that the graphs do not replace.

        Returns:
            The manifest that was written into the folder; its "runs_with" names the backbone that
            runs the folder.

        Raises:
            UnsupportedBackboneError: this model cannot be exported, or a library is missing.
            ConfigError: the folder cannot be written.
        """


class RandomModels(ABC):
    """Makes small pipelines of a backbone's library, with random weights.

    With them everything but the picture can be tried without a checkpoint.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """Short names of the models, sorted, for ``NAME=random:MODEL``; empty where there is only one.

        Raises:
            UnsupportedBackboneError: the library is not installed.
        """
        return ()

    @abstractmethod
    def pipeline(self, request: LoadRequest) -> Any:
        """Make a pipeline that takes any edit that a loaded one takes, prompts included.

        It is the same every time, and ``Backbone.notice`` must say that it is random.

        Args:
            request: device and dtype; ``model`` is one of ``names``, or None for the usual one.

        Raises:
            UnsupportedBackboneError: the library is not installed.
        """

    @abstractmethod
    def case(self) -> BackboneCase:
        """Return a pipeline with seeded weights, and one edit, for ``hetcache_core.testing``.

        The checks of the contract kit run on it, and every policy. Import what it takes in here.

        Raises:
            UnsupportedBackboneError: the library is not installed; the checks are skipped then.
        """


class Backbone(ABC):
    """Maps one library's pipeline onto the engine. Subclasses are final and hold no state."""

    name: ClassVar[str]
    summary: ClassVar[str]
    library: ClassVar[str]
    features: ClassVar[Features]
    geometry: ClassVar[Geometry]
    general: ClassVar[bool] = False
    """Whether it takes pipelines of any model, so that it is asked after those that know theirs."""
    guidance_scale: ClassVar[float] = 5.0
    """What an edit runs with when nobody asks for a strength of guidance."""

    def for_model(self, model: str | None) -> Backbone:
        """Return the adapter for a checkpoint, before it is loaded; by default this one.

        A backbone that runs models of several kinds gives each a class of its own in here, of the
        same name, with the sizes and features of that kind.

        Args:
            model: what ``LoadRequest.model`` will be.
        """
        return self

    def features_of(self, pipeline: Any) -> Features:
        """Say what can be carried of a pipeline that ``accepts`` takes; by default ``features``."""
        return self.features

    @abstractmethod
    def accepts(self, pipeline: object) -> bool:
        """Whether this adapter is the one for a pipeline object. Imports nothing new."""

    @abstractmethod
    def describe(self, pipeline: Any) -> ModelInfo:
        """Describe the pipeline's model."""

    @abstractmethod
    def attach(self, pipeline: Any, engine: Engine) -> AbstractContextManager[None]:
        """Route the pipeline's DiT calls through an engine while the context lasts.

        Raises:
            UnsupportedBackboneError: on entering, or at the first call, for an option that a
                session cannot carry; nothing has been run then.
        """

    @abstractmethod
    def load(self, request: LoadRequest) -> Any:
        """Load a pipeline through the library's own loader.

        Raises:
            UnsupportedBackboneError: library or files are missing; says what to get.
        """

    @abstractmethod
    def edit(self, pipeline: Any, request: EditRequest) -> NDArray[np.uint8]:
        """Run one masked edit through the pipeline's own call.

        Returns:
            (F, H, W, 3) uint8 frames as the model made them, before any compositing.
        """

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse ``EditRequest.options`` that the library's own call does not take; loads nothing.

        By default all are let through. ``hetcache_core.check_options`` does it by the call's signature.

        Raises:
            ConfigError: there is no such argument, or ``edit`` passes it itself.
            UnsupportedBackboneError: the library is not installed.
        """

    @property
    def models(self) -> tuple[str, ...]:
        """Short names of the models that it carries by descriptions, sorted."""
        return ()

    @property
    def masked(self) -> tuple[str, ...]:
        """Pipelines whose own mask gives tokens their roles, where it does not for all: a line each."""
        return ()

    def draft(self, subject: str) -> str:
        """Write a first description of a model that this backbone could carry, as source.

        Args:
            subject: name of a class of the library, or "package.module:Class".

        Raises:
            ConfigError: there is no such class, or it is not understood.
            UnsupportedBackboneError: this backbone goes by no descriptions.
        """
        raise UnsupportedBackboneError("it goes by no descriptions", backbone=self.name)

    def notice(self, pipeline: Any) -> str | None:
        """Return a sentence that must go with every output (random weights), or None.

        By default what the pipeline's attribute ``hetcache_notice`` says.
        """
        notice = getattr(pipeline, "hetcache_notice", None)
        return str(notice) if notice else None

    def share_rows(self, pipeline: Any) -> None:
        """Share the rows of a pipeline's model among all processes of torch.distributed.

        Args:
            pipeline: the same one in each process.

        Raises:
            UnsupportedBackboneError: this backbone has no model that shares them.
        """
        raise UnsupportedBackboneError(
            "Several GPUs cannot share the rows of this model",
            backbone=self.name,
            option="--gpus",
            remedy="Leave out --gpus, or take wan-vace-diffusers.",
        )

    def sample(self) -> EditRequest | None:
        """Return an embedded clip to show this backbone with, or None where it has none."""
        return None

    @property
    def exporter(self) -> Exporter | None:
        """What writes models of this backbone as ONNX graphs, or None. Make it in here."""
        return None

    @property
    def random_models(self) -> RandomModels | None:
        """What makes small models with random weights, or None. Make it in here."""
        return None
