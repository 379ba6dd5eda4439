"""Running exported graphs on tensors: onnxruntime reads and writes torch's own memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Generic, final

import torch
from attrs import frozen
from torch import Tensor, nn

from hetcache_backends.onnx.folder import RUNS_WITH, Manifest, Sizes, first_line, need_runtime
from hetcache_core import UnsupportedBackboneError

CUDA: Final = "CUDAExecutionProvider"
CPU: Final = "CPUExecutionProvider"

TYPES: Final = {"tensor(float)": torch.float32, "tensor(double)": torch.float64}
ELEMENTS: Final = {torch.float32: 1, torch.float64: 11}
"""Numbers of the types in ONNX. Source: ``TensorProto.DataType`` in onnx.proto."""

WARNINGS_OFF: Final = 3
"""Errors alone are logged. Source: onnxruntime's ``OrtLoggingLevel``."""


def open_sessions(folder: Path, manifest: Manifest[Any], device: str) -> dict[str, Any]:
    """Load all graphs of a folder.

    Args:
        folder: the folder.
        manifest: its manifest.
        device: "cpu", "cuda" or "cuda:N".

    Returns:
        Sessions by the names of the graphs. They hold no state of a run and may be shared.

    Raises:
        UnsupportedBackboneError: onnxruntime is not installed, does not know the device, or cannot
            load a graph.
    """
    runtime = need_runtime()
    place = torch.device(device)
    providers: list[Any] = [CPU]
    if place.type != "cpu":
        if CUDA not in runtime.get_available_providers():
            raise UnsupportedBackboneError(
                f"The installed onnxruntime {runtime.__version__} has no {CUDA} for {device}",
                remedy="Pass --device cpu, or install onnxruntime-gpu.",
            )
        providers.insert(0, (CUDA, {"device_id": place.index or 0}))
    options = runtime.SessionOptions()
    options.log_severity_level = WARNINGS_OFF
    # Threads for each session: a pool for the whole process would make onnxruntime refuse every other
    # session in it. Those that have nothing to do sleep, since there are many sessions.
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    sessions = {}
    for name, file in manifest.graphs.items():
        try:
            sessions[name] = runtime.InferenceSession(
                str(folder / file), options, providers=providers
            )
        except Exception as error:  # onnxruntime's errors have no common class
            raise UnsupportedBackboneError(
                f"onnxruntime {runtime.__version__} cannot load {folder / file}: "
                f"{first_line(error)}",
                remedy="Export the model again, or take a newer onnxruntime.",
            ) from error
    return sessions


@final
class _Graphs(dict[str, "Graph"]):
    """Graphs by name."""

    def __missing__(self, name: str) -> Graph:
        raise UnsupportedBackboneError(
            f"the folder holds no graph {name!r}", remedy="Export the model again."
        )


@final
@frozen(eq=False, kw_only=True)
class OpenedFolder(Generic[Sizes]):
    """A folder of graphs in memory; the folder itself is not needed any more.

    Attributes:
        manifest: its manifest.
        sessions: by the names of the graphs; several pipelines may share them.
        around: what a library's pipeline is made of beside its transformer, or None where it is
            loaded from the checkpoint for each pipeline.
        device: where the sessions run.
    """

    manifest: Manifest[Sizes]
    sessions: Mapping[str, Any]
    around: Any
    device: str

    def graphs(self) -> dict[str, Graph]:
        """Make modules of the sessions."""
        return _Graphs({name: Graph(name, session) for name, session in self.sessions.items()})

    def marked(self, pipeline: Any) -> Any:
        """Write on a pipeline which backbone it belongs to, and what goes with its outputs."""
        pipeline.hetcache_backbone = RUNS_WITH
        if self.manifest.notice:
            pipeline.hetcache_notice = self.manifest.notice
        return pipeline


def through_folder(
    write: Callable[[Path], object], read: Callable[[Path], OpenedFolder[Sizes]]
) -> OpenedFolder[Sizes]:
    """Write a folder and open it; nothing stays on the disk.

    Args:
        write: exports into a folder.
        read: opens it.
    """
    # Some systems do not let a file go that is mapped into memory.
    with tempfile.TemporaryDirectory(prefix="hetcache-", ignore_cleanup_errors=True) as name:
        write(Path(name))
        return read(Path(name))


@final
class Graph(nn.Module):
    """A graph as a module without parameters."""

    def __init__(self, name: str, session: Any) -> None:
        """Read what the graph takes.

        Args:
            name: its name, for messages.
            session: its session.
        """
        super().__init__()
        self.name = name
        self.session = session
        self.inputs = tuple((i.name, tuple(i.shape), TYPES[i.type]) for i in session.get_inputs())
        self.outputs = tuple((o.name, tuple(o.shape), TYPES[o.type]) for o in session.get_outputs())

    def forward(self, *tensors: Tensor) -> Any:
        """Run the graph.

        Args:
            *tensors: its inputs, in its own order, all on one device.

        Returns:
            Its output, or a tuple of several, on the same device.

        Raises:
            UnsupportedBackboneError: the graph was built for other sizes or types.
        """
        sizes: dict[str, int] = {}
        given = [tensor.detach().contiguous() for tensor in tensors]
        for (name, shape, dtype), tensor in zip(self.inputs, given, strict=True):
            fits = tensor.dtype == dtype and len(shape) == tensor.dim()
            if not fits or not all(map(_fits, shape, tensor.shape, [sizes] * len(shape))):
                raise UnsupportedBackboneError(
                    f"The graph {self.name} was built for {name} of {_written(shape)} in {dtype}, "
                    f"not {_written(tensor.shape)} in {tensor.dtype}",
                    remedy="Export the model again with this version, or edit at the size that the "
                    "graph was built for.",
                )
        results = []
        for _, shape, dtype in self.outputs:
            size = [dim if isinstance(dim, int) else sizes[dim] for dim in shape]
            results.append(torch.empty(size, dtype=dtype, device=given[0].device))
        if results[0].numel():  # a mask of nothing has no rows, which onnxruntime does not take
            self._run(given, results)
        return results[0] if len(results) == 1 else tuple(results)

    def _run(self, given: list[Tensor], results: list[Tensor]) -> None:
        """Run the session on the memory of its inputs and outputs."""
        binding = self.session.io_binding()
        for (name, _, _), tensor in zip(self.inputs, given, strict=True):
            _bind(binding.bind_input, name, tensor)
        for (name, _, _), tensor in zip(self.outputs, results, strict=True):
            _bind(binding.bind_output, name, tensor)
        if given[0].device.type == "cuda":  # onnxruntime has a stream of its own
            torch.cuda.current_stream(given[0].device).synchronize()
        self.session.run_with_iobinding(binding)


def _bind(bind: Any, name: str, tensor: Tensor) -> None:
    device = tensor.device
    bind(
        name=name,
        device_type=device.type,
        device_id=device.index or 0,
        element_type=ELEMENTS[tensor.dtype],
        shape=tuple(tensor.shape),
        buffer_ptr=tensor.data_ptr(),
    )


def _fits(dim: int | str, size: int, sizes: dict[str, int]) -> bool:
    """Whether a size fits a dimension such as 96, "rows" or "2*grid_height"; notes what it says."""
    if isinstance(dim, int):
        return dim == size
    factor, _, name = dim.rpartition("*")
    whole, rest = divmod(size, int(factor or 1))
    return rest == 0 and sizes.setdefault(name, whole) == whole


def _written(shape: tuple[int | str, ...] | torch.Size) -> str:
    return f"({', '.join(map(str, shape))})"
