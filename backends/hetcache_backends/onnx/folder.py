"""A folder of exported graphs: its manifest, and the libraries that read and write it."""

from __future__ import annotations

import json
import shlex
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Generic, Literal, TypeVar, final

from attrs import asdict, frozen

from hetcache_core import (
    ConfigError,
    LoadRequest,
    UnsupportedBackboneError,
    read_json,
    structure,
    write_text,
)

FORMAT: Final = 2
"""Version of the manifest."""

OPSET: Final = 18
"""The newest that every onnxruntime since 1.14 carries. Source: onnxruntime's compatibility table."""

RUNS_WITH: Final = "onnx-runtime"
"""The backbone that runs such a folder."""

MANIFEST: Final = "manifest.json"
LARGEST_MANIFEST: Final = 1 << 24
"""Bytes: twenty times what the largest model's takes."""

MOST: Final = 1 << 20
"""More than any size of a model."""
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

    def __attrs_post_init__(self) -> None:
        """Refuse numbers of no model."""
        _check_sizes(self, may_be_0=("control_channels", "control_layers"))
        if any(layer >= self.layers for layer in self.control_layers):
            raise ValueError(f"control_layers must be among the {self.layers} layers")


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

    def __attrs_post_init__(self) -> None:
        """Refuse numbers of no model."""
        _check_sizes(self)


def _check_sizes(sizes: WanSizes | LtxSizes, may_be_0: tuple[str, ...] = ()) -> None:
    """Hold numbers to what models have, before memory is given to them.

    Raises:
        ValueError: one is none of a model.
    """
    for name, value in asdict(sizes).items():
        least = 0 if name in may_be_0 else 1
        for number in value if isinstance(value, list | tuple) else [value]:
            if name != "eps" and not least <= number <= MOST:
                raise ValueError(f"sizes.{name} must be from {least} to {MOST:,}, got {number}")
    if not 0 < sizes.eps < 1:
        raise ValueError(f"sizes.eps must be between 0 and 1, got {sizes.eps}")
    if sizes.width % sizes.heads:
        raise ValueError(
            f"sizes.width must be a multiple of heads, got {sizes.width}, {sizes.heads}"
        )


SIZES_OF: Final[dict[str, type[WanSizes | LtxSizes]]] = {
    "WanModel": WanSizes,
    "LTXVideoTransformer3DModel": LtxSizes,
}
"""What is written of a model, by the name of its class in its library."""


Sizes = TypeVar("Sizes", bound=WanSizes | LtxSizes)


@frozen
class _Graph:
    file: str


@frozen(kw_only=True)
class _Written:
    """What is read of a manifest."""

    format: int
    backbone: str
    model: Literal["WanModel", "LTXVideoTransformer3DModel"]
    sizes: dict[str, Any]
    graphs: dict[str, _Graph]
    words: int | None
    checkpoint: str | None
    notice: str | None


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
        asked: whether whoever loads the folder named that checkpoint.
        notice: sentence that goes with every output, or None.
    """

    backbone: str
    sizes: Sizes
    graphs: dict[str, str]
    words: int | None
    checkpoint: str | None
    asked: bool = True
    notice: str | None

    def outside(self) -> str | None:
        """Return the checkpoint, which may be anybody's, where it was asked for.

        Raises:
            UnsupportedBackboneError: the folder needs one, and nobody asked for it.
        """
        if self.checkpoint is not None and not self.asked:
            raise UnsupportedBackboneError(
                f"the graphs hold neither VAE nor text encoder, and name {self.checkpoint!r} for them",
                remedy=f"If you trust it, pass --around {shlex.quote(self.checkpoint)}.",
            )
        return self.checkpoint


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
    write_text(folder / MANIFEST, json.dumps(content, indent=1) + "\n")
    return content


def read_manifest(folder: Path, *, around: str | None = None) -> Manifest[Any]:
    """Read the manifest of a folder, which may come from anybody.

    Args:
        folder: the folder.
        around: folder or hub id that VAE and text encoder are to be loaded from, in place of the one that
            the manifest names, which is loaded from only where somebody asks for it.

    Raises:
        UnsupportedBackboneError: there is none, this version cannot read it, a number is none of a
            model, or a file is not in the folder.
    """
    remedy = "Write such a folder with `hetcache export`."
    path = folder / MANIFEST
    try:
        content = read_json(path, most=LARGEST_MANIFEST)
        if isinstance(content, dict) and content.get("format") not in (None, FORMAT):
            raise UnsupportedBackboneError(
                f"{path} has format {content['format']}, this version reads {FORMAT}",
                remedy="Export the model again.",
            )
        written: _Written = structure(content, _Written)
        sizes = structure(written.sizes, SIZES_OF[written.model])
        graphs = {name: graph.file for name, graph in written.graphs.items()}
        for name in (*graphs.values(), *([CODEC] if written.words is not None else [])):
            _check_inside(folder, name)
    except ConfigError as error:
        raise UnsupportedBackboneError(error.what, remedy=remedy) from error
    except ValueError as error:
        raise UnsupportedBackboneError(
            f"{path} is no manifest of exported graphs: {error}", remedy=remedy
        ) from error
    return Manifest(
        backbone=written.backbone,
        sizes=sizes,
        graphs=graphs,
        words=written.words,
        checkpoint=around or written.checkpoint,
        asked=around is not None,
        notice=written.notice,
    )


def _check_inside(folder: Path, name: str) -> None:
    """Refuse names that lead out of a folder.

    Raises:
        ValueError: one does, or there is no such file.
    """
    path = folder / name
    if Path(name).name != name or path.resolve().parent != folder.resolve():
        raise ValueError(f"{name!r} is not in the folder")
    if not path.is_file():
        raise ValueError(f"there is no file {name!r}")


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
    """Refuse any other precision, and other weights.

    Raises:
        UnsupportedBackboneError: another precision is asked for.
        ConfigError: other weights are.
    """
    request.refuse("variant", why="a folder of graphs has one set of weights")
    if request.dtype != "float32":
        raise UnsupportedBackboneError(
            f"Exported graphs compute in float32, {request.dtype} was asked for",
            remedy="Pass --dtype float32.",
        )
