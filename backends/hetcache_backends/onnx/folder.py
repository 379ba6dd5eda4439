"""A folder of exported graphs: its manifest, and the libraries that read and write it."""

from __future__ import annotations

import json
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Generic, TypeVar, final

from attrs import asdict, frozen

from hetcache_core import LoadRequest, UnsupportedBackboneError

FORMAT: Final = 2
"""Version of the manifest."""

OPSET: Final = 18
"""The newest that every onnxruntime since 1.14 carries. Source: onnxruntime's compatibility table."""

RUNS_WITH: Final = "onnx-runtime"
"""The backbone that runs such a folder."""

MANIFEST: Final = "manifest.json"
WEIGHTS: Final = "weights.bin"
CODEC: Final = "codec.safetensors"
AROUND: Final = "around"
"""Folder of a pipeline without its transformer, as ``save_pretrained`` writes it."""
INSTALL: Final = "pip install 'hetcache[onnx]'"


@final
@frozen(kw_only=True)
class WanSizes:
    """What the pipeline has to know of a Wan model whose weights are in graphs.

    Attributes:
        width: trunk width ``D``.
        layers: main blocks ``L``.
        heads: attention heads.
        ffn: hidden width of the feed-forward.
        control_layers: main block of each control hint.
        patch_size: latents joined in one token: time, height, width.
        in_channels: latent channels of the input.
        control_channels: channels of the control latents.
        head_channels: numbers that the head predicts for a token.
        text_width: width of an encoded word.
        freq_dim: width of the waves of a timestep.
        eps: of the first norm of a block.
    """

    width: int
    layers: int
    heads: int
    ffn: int
    control_layers: tuple[int, ...]
    patch_size: tuple[int, int, int]
    in_channels: int
    control_channels: int
    head_channels: int
    text_width: int
    freq_dim: int
    eps: float


@final
@frozen(kw_only=True)
class LtxSizes:
    """What the pipeline has to know of an LTX-Video model whose weights are in graphs.

    Attributes:
        width: trunk width ``D``.
        layers: blocks ``L``.
        heads: attention heads.
        ffn: hidden width of the feed-forward.
        patch_size: latents joined in one token, vertically and horizontally.
        patch_size_t: latent frames joined in one token.
        in_channels: numbers of a token before it is embedded.
        head_channels: numbers that the head predicts for a token.
        text_width: width of an encoded word.
        freq_dim: width of the waves of a timestep.
        eps: of the first norm of a block.
    """

    width: int
    layers: int
    heads: int
    ffn: int
    patch_size: int
    patch_size_t: int
    in_channels: int
    head_channels: int
    text_width: int
    freq_dim: int
    eps: float


SIZES_OF: Final[dict[str, type[WanSizes | LtxSizes]]] = {
    "WanModel": WanSizes,
    "LTXVideoTransformer3DModel": LtxSizes,
}
"""What is written of a model, by the name of its class in its library."""


Sizes = TypeVar("Sizes", bound=WanSizes | LtxSizes)


@final
@frozen(kw_only=True)
class Manifest(Generic[Sizes]):
    """What the manifest says beside the graphs' inputs and outputs.

    Attributes:
        backbone: the backbone that was exported.
        sizes: of the model; their class says which kind of model it is.
        graphs: file of each graph, by its name.
        words: of a prompt, where codec and words are those of ``tiny-vace``, else None.
        checkpoint: folder or hub id that VAE and text encoder are loaded from, or None where they
            lie in the folder.
        notice: sentence that goes with every output, or None.
    """

    backbone: str
    sizes: Sizes
    graphs: dict[str, str]
    words: int | None
    checkpoint: str | None
    notice: str | None


def write_manifest(
    folder: Path, manifest: Manifest[Any], written: dict[str, Any]
) -> dict[str, Any]:
    """Write the manifest of a folder.

    Args:
        folder: the folder.
        manifest: what is known of the model.
        written: what ``write_graphs`` returned.

    Returns:
        What was written.
    """
    content = {
        "format": FORMAT,
        "hetcache": version("hetcache"),
        "backbone": manifest.backbone,
        "model": next(name for name, kind in SIZES_OF.items() if type(manifest.sizes) is kind),
        "runs_with": RUNS_WITH,
        "opset": OPSET,
        "dtype": "float32",
        "sizes": asdict(manifest.sizes),
        "words": manifest.words,
        "checkpoint": manifest.checkpoint,
        "notice": manifest.notice,
        **written,
    }
    (folder / MANIFEST).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return content


def read_manifest(folder: Path) -> Manifest[Any]:
    """Read the manifest of a folder.

    Raises:
        UnsupportedBackboneError: there is none, or this version cannot read it.
    """
    remedy = "Write such a folder with `hetcache export`."
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise UnsupportedBackboneError(
                f"{path} has format {content['format']}, this version reads {FORMAT}",
                remedy="Export the model again.",
            )
        sizes: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in content["sizes"].items()
        }
        return Manifest(
            backbone=content["backbone"],
            sizes=SIZES_OF[content["model"]](**sizes),
            graphs={name: graph["file"] for name, graph in content["graphs"].items()},
            words=content["words"],
            checkpoint=content["checkpoint"],
            notice=content["notice"],
        )
    except OSError as error:
        raise UnsupportedBackboneError(
            f"{path} cannot be read: {error.strerror or error}", remedy=remedy
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnsupportedBackboneError(
            f"{path} is no manifest of exported graphs", remedy=remedy
        ) from error


def need_onnx(*, exports: bool = False) -> Any:
    """Import onnx, and what torch exports with.

    Args:
        exports: whether something is going to be exported.

    Raises:
        UnsupportedBackboneError: it is not installed.
    """
    if exports:
        _needed("onnxscript", "Exporting")
    onnx = _needed("onnx", "Exporting")
    import_module("onnx.checker")
    import_module("onnx.shape_inference")
    return onnx


def need_runtime() -> Any:
    """Import onnxruntime.

    Raises:
        UnsupportedBackboneError: it is not installed.
    """
    return _needed("onnxruntime", "Running exported graphs")


def first_line(error: BaseException) -> str:
    """First line of an error's message, without its full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _needed(name: str, use: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise UnsupportedBackboneError(
            f"{use} needs {name}: {first_line(error)}", remedy=f"Run: {INSTALL}"
        ) from error


def whole_path(model: str | None) -> str | None:
    """Make the path of a folder absolute; a hub id stays as it is."""
    if model is None:
        return None
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else model


def need_float32(request: LoadRequest) -> None:
    """Refuse any other precision.

    Raises:
        UnsupportedBackboneError: another one is asked for.
    """
    if request.dtype != "float32":
        raise UnsupportedBackboneError(
            f"Exported graphs compute in float32, {request.dtype} was asked for",
            remedy="Pass --dtype float32.",
        )
