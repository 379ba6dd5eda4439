"""Loading and calling pipelines that are made as diffusers makes them, for adapters.

No library is imported here: the pipeline's class and the pipeline are handed in.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hetcache_core.backbone.adapter import EditRequest, LoadRequest
from hetcache_core.errors import ConfigError, UnsupportedBackboneError, nearest_name

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SINGLE_FILES: Final = (".safetensors", ".gguf")
"""Suffixes of files that hold a transformer alone."""

TEXT_PARTS: Final = ("text_encoder", "tokenizer")
"""Parts that a saved pipeline may lack; prompts then come as embeddings."""

FURTHER_TEXT_PARTS: Final = ("text_encoder_", "tokenizer_")
"""How the names of others begin, which some pipelines have."""


PASSED: Final = frozenset(
    {"prompt", "negative_prompt", "height", "width", "num_inference_steps", "guidance_scale",
     "generator", "output_type", "return_dict"}
)  # fmt: skip
"""Arguments that ``run_edit`` passes, or whose default it goes by."""


def load_pipeline(
    kind: Any,
    request: LoadRequest,
    *,
    accepts: Callable[[Any], bool],
    example: str,
    dtype: Any = None,
    without: Sequence[str] = (),
    carries: Any = None,
    right: Callable[[str], str | None] = lambda _: None,
) -> Any:
    """Load a folder, hub id or single file through the library's own loaders.

    A folder that lacks a text encoder is loaded without; prompts then come as embeddings.

    Args:
        kind: the pipeline class.
        request: what to load.
        accepts: whether what was loaded is what the backbone carries.
        example: hub id of a published checkpoint, for the messages.
        dtype: ``torch_dtype`` of ``from_pretrained``; by default the one that is asked for.
        without: parts that are not to be loaded; the pipeline has None in their place.
        carries: the transformer's class: anything else is refused by its index, before it is loaded,
            and single files are loaded by it.
        right: names the backbone that a folder is for, or None.

    Raises:
        UnsupportedBackboneError: nothing was named, files are missing, or the hub is out of reach; or
            it holds another kind of model.
    """
    if request.model is None:
        raise UnsupportedBackboneError(
            "This backbone needs a checkpoint",
            remedy="Pass --model with a folder that save_pretrained() wrote, or a hub id such as "
            f"{example}.",
        )
    single = Path(request.model).suffix in SINGLE_FILES
    if not single:
        request.refuse(
            "around", why=f"{request.model} is no single file, and holds the rest itself"
        )
    whole = (request.around or example) if single else request.model
    try:
        index = _index_of(kind, whole, carries, right)
        there = Path(whole).expanduser()
        absent = {
            name: None
            for name in {*TEXT_PARTS, *(n for n in index if n.startswith(FURTHER_TEXT_PARTS))}
            if not any(index.get(name) or ()) or (there.is_dir() and not (there / name).is_dir())
        }
        absent |= dict.fromkeys(without)
        if dtype is None:
            import torch

            dtype = getattr(torch, request.dtype)
        with warnings.catch_warnings():
            # diffusers 0.42 would call it dtype; older ones would ignore that name.
            warnings.simplefilter("ignore", FutureWarning)
            if single:
                absent["transformer"] = _from_file(carries, request, whole)
            loaded = kind.from_pretrained(
                whole, torch_dtype=dtype, variant=request.variant, **absent
            )
        if not accepts(loaded):
            raise TypeError(f"its transformer is a {type(loaded.transformer).__name__}")  # noqa: TRY301 - reported like all that can be wrong with a folder
        return loaded.to(request.device)
    except UnsupportedBackboneError:
        raise
    except Exception as error:  # the hub client and the loaders raise dozens of unrelated types
        raise UnsupportedBackboneError(
            f"{kind.__name__} could not be loaded from {request.model!r}: {_first_line(error)}",
            remedy=f"Pass --model with a complete folder of such a pipeline ({example}), or a hub "
            "id while the hub can be reached; --variant names weights such as fp16, and --around the "
            "rest of a single file.",
        ) from error


def _index_of(
    kind: Any, whole: str, carries: Any, right: Callable[[str], str | None]
) -> Mapping[str, Any]:
    """Read a pipeline's index, and refuse one of another kind of model."""
    other = right(whole)
    remedy = f"Pass --backbone {other}." if other else ""
    try:
        index: Mapping[str, Any] = kind.load_config(whole)
    except Exception as error:
        if not other:
            raise
        raise UnsupportedBackboneError(
            f"{whole} is in another layout than {kind.__name__}'s", remedy=remedy
        ) from error
    found = (index.get("transformer") or (None, None))[1]
    if carries is not None and found not in {None, carries.__name__}:
        raise UnsupportedBackboneError(
            f"{whole} holds a {found}, and this backbone carries {carries.__name__}", remedy=remedy
        )
    return index


def _from_file(carries: Any, request: LoadRequest, whole: str) -> Any:
    """Load a transformer from one file, with the configuration of the rest."""
    import torch

    path, dtype = str(Path(str(request.model)).expanduser()), getattr(torch, request.dtype)
    given = {"config": whole, "subfolder": "transformer", "torch_dtype": dtype}
    if path.endswith(".gguf"):
        library: Any = import_module(carries.__module__.partition(".")[0])
        given["quantization_config"] = library.GGUFQuantizationConfig(compute_dtype=dtype)
    return carries.from_single_file(path, **given)


def _text_arguments(pipeline: Any, request: EditRequest) -> dict[str, Any]:
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


def check_options(
    options: Mapping[str, Any], *calls: Callable[..., Any], passed: Iterable[str] = ()
) -> None:
    """Refuse options that a pipeline's call does not take, by its signature.

    Args:
        options: arguments by name.
        calls: the pipeline class's ``__call__``; several where one hands its arguments on.
        passed: names that the adapter passes itself, beside those that ``run_edit`` does.

    Raises:
        ConfigError: there is no such argument, or it is passed already.
    """
    taken = {*PASSED, *passed}
    known = [
        name
        for call in calls
        for name, parameter in inspect.signature(call).parameters.items()
        if parameter.kind not in {parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL}
    ]
    allowed = sorted(set(known) - taken - {"self"})
    for name in options:
        if name in allowed:
            continue
        nearest = nearest_name(name, allowed)
        meant = f"Did you mean {nearest}?" if nearest else f"There are: {', '.join(allowed)}."
        raise ConfigError(
            f"{name} is passed by hetcache itself" if name in taken else f"there is no {name}",
            where=f"arguments of {calls[0].__qualname__}",
            remedy="Leave it out; the edit has a setting of its own for it."
            if name in taken
            else meant,
            setting="options",
            given=name,
            allowed=allowed,
            nearest=nearest,
        )


def run_edit(
    pipeline: Any, arguments: Mapping[str, Any], request: EditRequest
) -> NDArray[np.uint8]:
    """Call a pipeline for one edit, by the names that such pipelines give their arguments.

    Size, steps, guidance, seed and prompts come from the request; its options go on top.

    Args:
        pipeline: the pipeline.
        arguments: what else it is called with, such as video, mask and number of frames.
        request: the edit.

    Returns:
        (F, H, W, 3) uint8 frames, or (B, H, W, 3) pictures.

    Raises:
        UnsupportedBackboneError: the pipeline cannot read the prompt.
    """
    import numpy as np
    import torch

    _, height, width, _ = request.video.shape
    own = {
        "height": height,
        "width": width,
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance_scale,
        "generator": torch.Generator().manual_seed(request.seed),
        **_text_arguments(pipeline, request),
    }
    takes = inspect.signature(pipeline.__call__).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values()):
        # Some find the size themselves, or have no second text.
        own = {name: value for name, value in own.items() if name in takes}
    given = {**own, **arguments, **request.options, "output_type": "np"}
    with _quiet(pipeline):
        made = pipeline(**given)
    result = made.frames[0] if hasattr(made, "frames") else made.images  # (F, H, W, 3) in 0..1
    frames: NDArray[np.uint8] = np.rint(np.asarray(result) * 255).clip(0, 255).astype(np.uint8)
    return frames


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


def _first_line(error: BaseException) -> str:
    """First line of an error's message, without its full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
