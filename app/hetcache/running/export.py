"""``hetcache export``: a model's parts are written as ONNX graphs into a folder."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

from attrs import asdict, frozen

from hetcache.running.groups import JsonConfig, ModelConfig
from hetcache.running.options import written
from hetcache_core import ConfigError, PluginError, UnsupportedBackboneError, setting
from hetcache_core.settings.declare import group

if TYPE_CHECKING:
    from hetcache_core import Registry

__all__ = ["ExportConfig", "Exported", "export", "print_export"]

EXPORTERS: Final = ("onnx", "onnxscript")
"""Libraries that torch exports with, looked for before a model is loaded."""

MEBIBYTE: Final = 2**20


@final
@frozen(kw_only=True)
class ExportConfig:
    """One export, as it is asked for; its fields are the options of ``hetcache export``."""

    output: str = setting(
        doc="the folder to write; it must not exist yet, or be empty",
        metadata=written("--output", "-o", metavar="FOLDER", writes="folder"),
    )
    model: ModelConfig = group(ModelConfig())
    answer: JsonConfig = group(JsonConfig())


@frozen(kw_only=True)
class Exported:
    """A finished export.

    Attributes:
        output: The folder.
        backbone: The backbone that was exported.
        runs_with: The backbone that runs the folder.
        graphs: How many graphs there are.
        files: How many files there are.
        bytes: Size of all files.
        around: Checkpoint that the folder needs beside it, or None.
        notice: The backbone's own warning, or None.
    """

    output: str
    backbone: str
    runs_with: str
    graphs: int
    files: int
    bytes: int
    around: str | None
    notice: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return asdict(self)


def export(config: ExportConfig, registry: Registry) -> Exported:
    """Load a model and write its graphs.

    Args:
        config: What is asked for.
        registry: Where the backbone is looked up.

    Raises:
        HetCacheError: Something is wrong with what was asked for; nothing was written.
    """
    from hetcache.running.run import load

    output = Path(config.output).expanduser()
    backbone = config.model.find(registry)
    exporter = backbone.exporter
    if exporter is None:
        others = ", ".join(_exporting(registry)) or "none"
        raise UnsupportedBackboneError(
            f"{backbone.name} cannot be exported to ONNX", remedy=f"These can: {others}."
        )
    if output.exists() and any(output.iterdir()):
        raise ConfigError(
            f"{output} is not empty",
            where="--output",
            remedy="Name a folder that does not exist yet.",
        )
    missing = [name for name in EXPORTERS if find_spec(name) is None]
    if missing:
        raise UnsupportedBackboneError(
            f"Exporting needs {' and '.join(missing)}", remedy="Run: pip install 'hetcache[onnx]'"
        )
    model = config.model.spec.model or None
    runner = load(backbone, config.model.request("cpu", "float32"), registry)
    manifest = exporter.export(runner.pipeline, output, model=model)
    files = [path for path in output.rglob("*") if path.is_file()]
    return Exported(
        output=str(output),
        backbone=backbone.name,
        runs_with=str(manifest["runs_with"]),
        graphs=sum(path.suffix == ".onnx" for path in files),
        files=len(files),
        bytes=sum(path.stat().st_size for path in files),
        around=None if (named := manifest.get("checkpoint")) is None else str(named),
        notice=runner.backbone.notice(runner.pipeline),
    )


def print_export(made: Exported) -> None:
    """Print for people what was written, and how to run it."""
    from rich.console import Console
    from rich.text import Text

    console = Console()
    size = f"{made.bytes / MEBIBYTE:.1f} MiB"
    title = f"{made.backbone}: {made.graphs} graphs, {size}"
    console.print(Text(title, style="bold"), soft_wrap=True)
    if made.notice:
        console.print(Text(f"notice: {made.notice}"), soft_wrap=True)
    console.print(Text(f"output: {made.output}"), soft_wrap=True)
    around = f" --around {made.around}" if made.around else ""
    console.print(
        Text(f"use: hetcache edit --backbone {made.runs_with} --model {made.output}{around}"),
        soft_wrap=True,
    )


def _exporting(registry: Registry) -> list[str]:
    """Names of the backbones that can be exported; those that cannot be loaded are left out."""
    names = []
    for name in registry.names("backbone"):
        try:
            if registry.backbone(name)().exporter is not None:
                names.append(name)
        except PluginError:
            continue
    return names
