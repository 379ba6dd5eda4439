"""Loading Wan2.1-VACE through DiffSynth's own loader, with one clear error for whatever is missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from hetcache_backends.folders import backbone_of
from hetcache_core import LoadRequest, UnsupportedBackboneError

CHECKPOINT_FILES: Final = (
    "diffusion_pytorch_model*.safetensors",
    "models_t5_umt5-xxl-enc-bf16.pth",
    "Wan2.1_VAE.pth",
)
"""Files of Wan-AI/Wan2.1-VACE-1.3B that DiffSynth loads."""

FILES_AROUND: Final = CHECKPOINT_FILES[1:]
"""Those of the text encoder and the VAE."""

TOKENIZER_PATTERN: Final = "google/umt5-xxl/"

PUBLISHED: Final = "Wan-AI/Wan2.1-VACE-1.3B"
"""Whose text encoder and VAE all Wan-VACEs have."""


def load_checkpoint(request: LoadRequest, files: Sequence[str] = CHECKPOINT_FILES) -> Any:
    """Load Wan2.1-VACE through DiffSynth's ``ModelConfig`` and ``from_pretrained``.

    Args:
        request: ``model`` is a folder with the files of a Wan-VACE repository, or the id of one on
            ModelScope or Hugging Face ("Wan-AI/Wan2.1-VACE-1.3B"); or a .safetensors file with the
            transformer alone, with the rest in ``around``.
        files: which of its files to load.

    Raises:
        UnsupportedBackboneError: nothing was named, files are missing, or the hub is out of reach.
        ConfigError: something is asked for that DiffSynth's checkpoints have not.
    """
    import torch

    pipeline_type, config_type = import_diffsynth()
    if request.model is None:
        raise UnsupportedBackboneError(
            "wan-vace needs a checkpoint: pass --model with a folder or a hub id, for example "
            "--model Wan-AI/Wan2.1-VACE-1.3B. The backbone tiny-vace runs without one."
        )
    request.refuse("variant", why="a checkpoint of DiffSynth has one set of weights")
    alone, whole = Path(request.model).expanduser(), request.model
    if alone.suffix == ".gguf":
        raise UnsupportedBackboneError(
            f"DiffSynth does not read GGUF, as {alone} is",
            remedy="Pass a .safetensors file, or load it with a backbone on diffusers.",
        )
    if alone.suffix == ".safetensors":
        if not alone.is_file():
            raise UnsupportedBackboneError(f"There is no file {alone}")
        whole, files = request.around or PUBLISHED, FILES_AROUND
        _need_vace(alone)
    else:
        request.refuse("around", why=f"{whole} is no single file, and holds the rest itself")
    folder = Path(whole).expanduser()
    other = backbone_of(whole)
    if other not in {None, "wan-vace"}:
        raise UnsupportedBackboneError(
            f"{folder} is in another layout than DiffSynth's", remedy=f"Pass --backbone {other}."
        )
    if folder.exists():
        configs, tokenizer = _folder_configs(folder, config_type, files)
    else:
        configs = [config_type(model_id=whole, origin_file_pattern=p) for p in files]
        tokenizer = config_type(model_id=whole, origin_file_pattern=TOKENIZER_PATTERN)
    if whole != request.model:
        configs.insert(0, config_type(path=str(alone)))
    try:
        return pipeline_type.from_pretrained(
            torch_dtype=getattr(torch, request.dtype),
            device=request.device,
            model_configs=configs,
            tokenizer_config=tokenizer,
        )
    except Exception as error:  # the hub clients raise dozens of unrelated types
        raise UnsupportedBackboneError(
            f"Wan-VACE could not be loaded from {request.model!r}: {_first_line(error)}. Download "
            f"{', '.join(CHECKPOINT_FILES)} and {TOKENIZER_PATTERN} of Wan-AI/Wan2.1-VACE-1.3B into a "
            "folder and pass --model FOLDER."
        ) from error


def _folder_configs(folder: Path, config_type: Any, files: Sequence[str]) -> tuple[list[Any], Any]:
    configs = []
    for pattern in files:
        stem = pattern.rsplit(".", 1)[0]
        found = sorted(p for p in folder.glob(f"{stem}.*") if p.suffix in {".safetensors", ".pth"})
        if not found:
            raise UnsupportedBackboneError(
                f"{folder} holds no {pattern}. Download {', '.join(CHECKPOINT_FILES)} and "
                f"{TOKENIZER_PATTERN} of Wan-AI/Wan2.1-VACE-1.3B into it."
            )
        if pattern == CHECKPOINT_FILES[0]:
            _need_vace(*found)
        paths = [str(p) for p in found]
        configs.append(config_type(path=paths if len(paths) > 1 else paths[0]))
    tokenizer = folder / TOKENIZER_PATTERN
    if not tokenizer.is_dir():
        raise UnsupportedBackboneError(
            f"{folder} holds no {TOKENIZER_PATTERN} (the tokenizer of Wan-AI/Wan2.1-VACE-1.3B)."
        )
    return configs, config_type(path=str(tokenizer))


def _need_vace(*files: Path) -> None:
    """Refuse another transformer by the names of its tensors, before any of them is read.

    Raises:
        UnsupportedBackboneError: the files have no control branch, or are none of tensors.
    """
    from safetensors import SafetensorError, safe_open

    try:
        names = []
        for file in files:
            with safe_open(file, framework="pt") as opened:
                names += list(opened.keys())
    except (OSError, SafetensorError) as error:
        raise UnsupportedBackboneError(f"{file} cannot be read: {_first_line(error)}") from error
    if not any(name.startswith("vace_") for name in names):
        raise UnsupportedBackboneError(
            f"{files[0]} holds another model: no tensor of VACE's control branch is in it",
            remedy=f"Pass the transformer of a Wan-VACE, such as {PUBLISHED}.",
        )


def import_diffsynth() -> tuple[Any, Any]:
    """Import DiffSynth's pipeline and model configuration.

    Raises:
        UnsupportedBackboneError: DiffSynth or something it needs is not installed.
    """
    try:
        from diffsynth.core import ModelConfig
        from diffsynth.pipelines.wan_video import WanVideoPipeline
    except ImportError as error:
        raise UnsupportedBackboneError(
            f"This backbone needs DiffSynth ({_first_line(error)}): pip install 'hetcache[diffsynth]'."
        ) from error
    return WanVideoPipeline, ModelConfig


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
