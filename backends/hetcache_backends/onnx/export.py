"""Writing a model's parts as ONNX graphs, and their weights as one file that they share.

Graphs of one kind differ in their weights alone, so torch exports the first one of each kind, and
the others are copies that point to other places of the weights file. A folder comes into being
whole or not at all.
"""

from __future__ import annotations

import os
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, final

import torch
from attrs import define, field
from torch import Tensor, nn

from hetcache_backends.onnx.folder import (
    OPSET,
    WEIGHTS,
    Manifest,
    first_line,
    need_onnx,
    write_manifest,
)
from hetcache_backends.onnx.parts import Part, Port
from hetcache_core import ConfigError, UnsupportedBackboneError

if TYPE_CHECKING:
    from onnx import ModelProto

IR_VERSION: Final = 10
"""The file format that goes with opset 18 and later. Source: onnx's ``docs/Versioning.md``."""

ALIGNMENT: Final = 64
"""Bytes that a weight's place is a multiple of, so that a mapped file can be used where it is."""

SIZES: Final = {
    "batch": 2,
    "rows": 6,
    "keys": 10,
    "words": 5,
    "times": 3,
    "grid_frames": 3,
    "grid_height": 4,
    "grid_width": 5,
}
"""Sizes that open dimensions are traced with: above 1, which torch would fix, and all different within
a graph."""


def write_folder(
    folder: Path, parts: Sequence[Part], manifest: Manifest[Any], beside: Callable[[Path], object]
) -> dict[str, Any]:
    """Write a whole folder: graphs, weights, what lies beside them, and the manifest.

    Args:
        folder: what is to be written.
        parts: the graphs.
        manifest: what is known of the model.
        beside: writes what else belongs into the folder.

    Returns:
        The manifest as it was written.

    Raises:
        UnsupportedBackboneError: a part cannot be exported.
        ConfigError: the folder cannot be written.
    """
    with new_folder(folder) as part:
        written = write_graphs(parts, part)
        beside(part)
        return write_manifest(part, manifest, written)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside one that is to be; when the block ends, it is synced and renamed.

    Whoever looks sees a whole folder or none, also after a power cut.

    Args:
        folder: what is to be written; it may exist if it is empty, and be a link to such a folder.

    Raises:
        ConfigError: it exists and is not empty, or cannot be written; nothing is left behind.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        what = "is a file" if folder.is_file() else "is not empty"
        raise ConfigError(
            f"{folder} {what}", where="export", remedy="Name a folder that does not exist yet."
        )
    part = None
    try:
        final = Path(os.path.realpath(folder))
        final.parent.mkdir(parents=True, exist_ok=True)
        # Not after the folder, since its name may be as long as a name can be.
        part = final.with_name(f".{secrets.token_hex(8)}.part")
        part.mkdir()
        yield part
        for path in (*part.rglob("*"), part):
            _sync(path)
        part.replace(final)
        _sync(final.parent)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written: {error.strerror or error}",
            where="export",
            remedy="Nothing of it was left behind.",
        ) from error
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_graphs(parts: Sequence[Part], folder: Path) -> dict[str, Any]:
    """Write a graph file for every module of every part, and the weights.

    Args:
        parts: what to write.
        folder: where; it exists.

    Returns:
        The manifest's ``kinds`` (inputs and outputs with their meaning), ``graphs`` (file and kind
        of each) and ``weights``.

    Raises:
        UnsupportedBackboneError: torch cannot export a part, or onnx finds fault with a graph.
    """
    kinds, graphs = {}, {}
    templates: dict[str, ModelProto] = {}
    with (folder / WEIGHTS).open("wb") as file:
        weights = _Weights(file)
        for part in parts:
            if part.like not in templates:
                templates[part.like] = _export(part)
            for name, module in part.modules.items():
                path = folder / f"{name}.onnx"
                path.write_bytes(
                    _with_weights(templates[part.like], module, weights).SerializeToString()
                )
                graphs[name] = {"file": path.name, "kind": part.kind}
            kinds[part.kind] = {
                "meaning": part.meaning,
                "inputs": [_described(port) for port in part.inputs],
                "outputs": [_described(port) for port in part.outputs],
            }
        shared = {"file": WEIGHTS, "bytes": file.tell(), "tensors": len(weights.places)}
    for part in parts:
        for name in part.modules:
            check_graph(folder / f"{name}.onnx")
    return {"kinds": kinds, "graphs": graphs, "weights": shared}


def check_graph(path: Path) -> None:
    """Let onnx check a graph, and infer the rank of everything in it anew.

    Args:
        path: its file, beside its weights.

    Raises:
        UnsupportedBackboneError: onnx finds fault with it, or a rank stays unknown.
    """
    onnx = need_onnx()
    try:
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(str(path), load_external_data=False)
        del model.graph.value_info[:]  # what the exporter says is not taken for granted
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    except Exception as error:  # onnx raises errors of several unrelated classes
        raise UnsupportedBackboneError(
            f"onnx finds fault with {path.name}: {first_line(error)}"
        ) from error
    known = {
        value.name
        for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
        if value.type.tensor_type.HasField("shape")
    }
    made = {name for node in inferred.graph.node for name in node.output if name}
    if not made <= known:
        raise UnsupportedBackboneError(
            f"onnx cannot infer the rank of {', '.join(sorted(made - known))} in {path.name}"
        )


def _export(part: Part) -> ModelProto:
    """Export the first graph of a kind; parameters are described in it, without their values."""
    onnx = need_onnx(exports=True)
    module = next(iter(part.modules.values()))
    symbols = {name: torch.export.Dim(name) for name in SIZES}
    open_dims = tuple(
        {axis: _resolved(dim, symbols) for axis, dim in enumerate(p.shape) if isinstance(dim, str)}
        for p in part.inputs
    )
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of names for axes that go by another name already
            program = torch.onnx.export(
                module,
                tuple(_example(port) for port in part.inputs),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=open_dims,
                input_names=[port.name for port in part.inputs],
                output_names=[port.name for port in part.outputs],
                optimize=False,
                verbose=False,
            )
        model = _folded(program.model_proto, dict(module.named_parameters()))  # type: ignore[union-attr]  # None without dynamo
    except Exception as error:  # the exporter's errors have no common class
        raise UnsupportedBackboneError(
            f"torch {torch.__version__} cannot export {part.kind}: {first_line(error)}"
        ) from error
    model.ir_version = IR_VERSION
    for node in model.graph.node:
        del node.metadata_props[:]  # where in torch's and the user's files it comes from
    del model.graph.value_info[:]  # they name the open dimensions in other ways
    for values, ports in ((model.graph.input, part.inputs), (model.graph.output, part.outputs)):
        for value, port in zip(values, ports, strict=True):
            for dim, size in zip(value.type.tensor_type.shape.dim, port.shape, strict=True):
                if isinstance(size, str):
                    dim.dim_param = size
    described: ModelProto = onnx.shape_inference.infer_shapes(model)
    return described


def _folded(model: ModelProto, parameters: Mapping[str, Tensor]) -> ModelProto:
    """Fold constants, without which no rank is known behind a mean, but no parameters.

    Folded parameters would no longer be what the copies of a graph differ in, and two that happen
    to be equal in one block would become one. So they are inputs meanwhile.
    """
    from onnxscript import optimizer

    onnx = need_onnx()
    own = [tensor for tensor in model.graph.initializer if tensor.name in parameters]
    constants = [tensor for tensor in model.graph.initializer if tensor.name not in parameters]
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)
    count = len(model.graph.input)
    model.graph.input.extend(
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in own
    )
    folded: ModelProto = optimizer.optimize(model)
    del folded.graph.input[count:]
    for tensor in own:
        folded.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    return folded


def _with_weights(template: ModelProto, module: nn.Module, weights: _Weights) -> ModelProto:
    """Copy a graph; its parameters become places in the weights file."""
    onnx = need_onnx()
    parameters = dict(module.named_parameters())
    model = type(template)()
    model.CopyFrom(template)
    for tensor in model.graph.initializer:
        if tensor.name not in parameters:
            continue  # a constant of the graph
        tensor.data_location = onnx.TensorProto.EXTERNAL
        places = weights.place(parameters[tensor.name])
        for key, value in {"location": WEIGHTS, **places}.items():
            tensor.external_data.add(key=key, value=str(value))
    return model


@final
@define(eq=False)
class _Weights:
    """Appends tensors to a file, each once.

    Attributes:
        file: the file.
        places: offset and length by tensor.
    """

    file: BinaryIO
    places: dict[Tensor, dict[str, int]] = field(factory=dict, init=False)

    def place(self, tensor: Tensor) -> dict[str, int]:
        """Return where a tensor is, after writing it there if it is new."""
        if tensor not in self.places:
            self.file.write(bytes(-self.file.tell() % ALIGNMENT))
            content = tensor.detach().cpu().contiguous().numpy().tobytes()
            self.places[tensor] = {"offset": self.file.tell(), "length": len(content)}
            self.file.write(content)
        return self.places[tensor]


def _example(port: Port) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    sizes = [dim if isinstance(dim, int) else _resolved(dim, SIZES) for dim in port.shape]
    return torch.rand(sizes, generator=generator, dtype=getattr(torch, port.dtype))


def _resolved(dim: str, values: Any) -> Any:
    """Work out "2*rows" or "rows" from values by name."""
    factor, _, name = dim.rpartition("*")
    return int(factor) * values[name] if factor not in {"", "1"} else values[name]


def _described(port: Port) -> dict[str, Any]:
    return {
        "name": port.name,
        "shape": list(port.shape),
        "dtype": port.dtype,
        "meaning": port.meaning,
    }
