"""What the backbones on diffusers share: recognising, refusing, loading, prompts, frames."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, final

from hetcache_core.backbone import EditRequest, LoadRequest
from hetcache_core.errors import UnsupportedBackboneError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

COND: Final = "cond"
UNCOND: Final = "uncond"

TEXT_PARTS: Final = ("text_encoder", "tokenizer")
"""Parts that a saved pipeline may lack; prompts then come as embeddings."""


@final
class StandIn:
    """An object with some of its attributes replaced; everything else is the object's own."""

    def __init__(self, target: Any, **replaced: Any) -> None:
        self.__dict__.update(replaced)
        self.__dict__["_target"] = target

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)


def is_pipeline(pipeline: object, model_kind: str) -> bool:
    """Whether this is a diffusers pipeline around a kind of model, without importing diffusers."""
    if not _has_base(pipeline, "DiffusionPipeline"):
        return False
    models = (getattr(pipeline, "transformer", None), getattr(pipeline, "transformer_2", None))
    return any(_has_base(_unwrapped(model), model_kind) for model in models)


def _unwrapped(model: Any) -> Any:
    """Return the model inside what ``torch.compile`` makes of it."""
    return getattr(model, "_orig_mod", model)


def _has_base(value: object, name: str) -> bool:
    return any(
        kind.__name__ == name and kind.__module__.startswith("diffusers.")
        for kind in type(value).__mro__
    )


def refuse_options(model: Any, blocks: Sequence[Any]) -> None:
    """Refuse a model with an option that a session cannot carry.

    Raises:
        UnsupportedBackboneError: names the option and how to turn it off.
    """
    for option, what, active, remedy in (
        (
            "enable_cache",
            "diffusers' own cache",
            model.is_cache_enabled,
            "Call disable_cache() on the model; a session does the caching.",
        ),
        (
            "enable_gradient_checkpointing",
            "gradient checkpointing",
            model.gradient_checkpointing,
            "Call disable_gradient_checkpointing() on the model.",
        ),
        (
            "enable_parallelism",
            "context or tensor parallelism",
            getattr(model, "_parallel_config", None) is not None,
            "Load the model without it.",
        ),
        (
            "torch.compile",
            "a model that is compiled as a whole",
            model._compiled_call_impl is not None or _unwrapped(model) is not model,  # noqa: SLF001 - torch offers no other sign
            "Call compile_repeated_blocks() on the model instead: blocks may be compiled.",
        ),
        (
            "enable_sequential_cpu_offload, device_map",
            "offloading or placing single blocks",
            any("_hf_hook" in vars(block) for block in blocks),
            "Use enable_model_cpu_offload() on the pipeline, which moves whole models.",
        ),
    ):
        if active:
            raise UnsupportedBackboneError(
                f"A session cannot carry {what} ({option})", option=option, remedy=remedy
            )
    for module in (model, *blocks):
        hooks = getattr(vars(module).get("_diffusers_hook"), "hooks", {})
        if hooks:
            raise UnsupportedBackboneError(
                f"A session cannot carry diffusers' hook {', '.join(hooks)!r} on a "
                f"{type(module).__name__}",
                option=", ".join(hooks),
                remedy="Load the pipeline without it (group offloading: use "
                "enable_model_cpu_offload() instead).",
            )


def refuse_processors(blocks: Sequence[Any]) -> None:
    """Refuse self-attention that cannot be looked into, for policies that need to.

    Raises:
        UnsupportedBackboneError: names the processor.
    """
    from hetcache_backends.diffusers_blocks import processor_code

    for block in blocks:
        processor_code(block.attn1.processor)


def missing_library(error: ImportError) -> UnsupportedBackboneError:
    """Make the error for a library that is not installed."""
    return UnsupportedBackboneError(
        f"diffusers cannot be imported: {first_line(error)}",
        pip="pip install 'hetcache[diffusers]'",
    )


def load_pipeline(
    kind: Any, request: LoadRequest, *, model_kind: str, example: str, dtype: Any
) -> Any:
    """Load a folder or hub id through a pipeline class's own ``from_pretrained``.

    Args:
        kind: the pipeline class.
        request: what to load.
        model_kind: class of the transformer that it must hold.
        example: hub id of a published checkpoint, for the messages.
        dtype: ``torch_dtype`` of ``from_pretrained``.

    Raises:
        UnsupportedBackboneError: nothing was named, files are missing, or the hub is out of reach.
    """
    if request.model is None:
        raise UnsupportedBackboneError(
            "This backbone needs a checkpoint",
            remedy="Pass --model with a folder that save_pretrained() wrote, or a hub id such as "
            f"{example}.",
        )
    try:
        index = kind.load_config(request.model)
        absent = {name: None for name in TEXT_PARTS if not any(index.get(name) or ())}
        with warnings.catch_warnings():
            # diffusers 0.42 would call it dtype; older ones would ignore that name.
            warnings.simplefilter("ignore", FutureWarning)
            loaded = kind.from_pretrained(request.model, torch_dtype=dtype, **absent)
        if not is_pipeline(loaded, model_kind):
            raise TypeError(f"its transformer is a {type(loaded.transformer).__name__}")  # noqa: TRY301 - reported like all that can be wrong with a folder
        return loaded.to(request.device)
    except Exception as error:  # the hub client and the loaders raise dozens of unrelated types
        raise UnsupportedBackboneError(
            f"{kind.__name__} could not be loaded from {request.model!r}: {first_line(error)}",
            remedy=f"Pass --model with a complete folder of such a pipeline ({example}), or a hub "
            "id while the hub can be reached.",
        ) from error


def text_arguments(pipeline: Any, request: EditRequest) -> dict[str, Any]:
    """Arguments that carry the prompts; embeddings in ``options`` take their place.

    Raises:
        UnsupportedBackboneError: the pipeline has no text encoder and no embeddings were given.
    """
    if request.options.get("prompt_embeds") is not None:
        return {}
    if pipeline.text_encoder is None or pipeline.tokenizer is None:
        raise UnsupportedBackboneError(
            "This pipeline has no text encoder, so it cannot read a prompt",
            remedy="Load a checkpoint that has one, or pass prompt_embeds and "
            "negative_prompt_embeds in the request's options.",
        )
    return {"prompt": request.prompt, "negative_prompt": request.negative_prompt}


def run_edit(
    pipeline: Any, arguments: Mapping[str, Any], request: EditRequest
) -> NDArray[np.uint8]:
    """Call the pipeline and return (F, H, W, 3) uint8 frames."""
    import numpy as np
    import torch

    frames, height, width, _ = request.video.shape
    given = {
        "height": height,
        "width": width,
        "num_frames": frames,
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance_scale,
        "generator": torch.Generator().manual_seed(request.seed),
        **text_arguments(pipeline, request),
        **arguments,
        **request.options,
        "output_type": "np",
    }
    with _quiet(pipeline):
        result = pipeline(**given).frames[0]  # (F, H, W, 3) in 0..1
    made: NDArray[np.uint8] = np.rint(np.asarray(result) * 255).clip(0, 255).astype(np.uint8)
    return made


@contextmanager
def _quiet(pipeline: Any) -> Iterator[None]:
    """Keep the library's progress bar off the terminal, unless the user has set it up."""
    if "_progress_bar_config" in vars(pipeline):
        yield
        return
    pipeline.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        del pipeline._progress_bar_config  # noqa: SLF001 - as it was


def first_line(error: BaseException) -> str:
    """First line of an error's message, without its full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
