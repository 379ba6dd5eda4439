"""``hetcache doctor``: what is installed, what works, and what is missing."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hetcache.plugins.listing import installed_version, plugins_as_json
from hetcache_core import HetCacheError

if TYPE_CHECKING:
    from hetcache_core import Registry

__all__ = ["examine", "print_findings"]

LIBRARIES: Final = (
    "attrs", "av", "diffsynth", "diffusers", "numpy", "onnxruntime", "pillow",
    "pluggy", "pyyaml", "rich", "scikit-learn", "torch", "torchmetrics", "torchvision",
    "transformers", "typer",
)  # fmt: skip

ENCODER: Final = "libx264"
FITS: Final = {
    "at once": "fits into",
    "in turn": "with the text encoder offloaded it fits into",
    None: "does not fit into",
}

HOUR: Final = 60
"""Minutes."""

DECODERS: Final = ("h264", "hevc", "vp9", "av1", "mpeg4", "png")


def examine(registry: Registry) -> dict[str, Any]:
    """Look at everything that a run depends on.

    Args:
        registry: What was discovered.

    Returns:
        Plain values; "problems" says what is missing that every run needs.
    """
    torch, devices = _torch()
    codecs = _codecs()
    backbones = {name: _usable(registry, name) for name in registry.names("backbone")}
    problems = []
    if torch is None:
        problems.append("torch cannot be imported")
    if ENCODER not in codecs:
        problems.append(f"PyAV cannot encode with {ENCODER}, so no video can be written")
    if not registry.names("policy"):
        problems.append("no plugin provides a policy")
    if all(error is not None for error in backbones.values()):
        problems.append("no backbone can be used; pip install 'hetcache[diffsynth]' brings two")
    return {
        "hetcache": installed_version("hetcache"),
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "torch": torch,
        "cuda_devices": devices,
        "libraries": {name: installed_version(name) for name in LIBRARIES},
        "plugins": plugins_as_json(registry),
        "policies": list(registry.names("policy")),
        "backbones": backbones,
        "codecs": codecs,
        "models": _models(registry) if torch and registry.names("policy") else [],
        "free_disk_bytes": shutil.disk_usage(Path.cwd()).free,
        "problems": problems,
    }


def print_findings(found: dict[str, Any]) -> None:
    """Print what ``examine`` found for people."""
    table = Table(show_header=False)
    libraries = (f"{name} {version or '-'}" for name, version in found["libraries"].items())
    plugins = (
        f"{plugin['name']} ({plugin['distribution']} {plugin['version']}): {plugin['status']}"
        + (f", {plugin['error']}" if plugin["error"] else "")
        for plugin in found["plugins"]
    )
    backbones = (f"{name}: {error or 'ok'}" for name, error in found["backbones"].items())
    rows = {
        "hetcache": found["hetcache"],
        "python": f"{found['python']} ({found['executable']})",
        "platform": f"{found['platform']}, {found['cpu_count']} CPUs",
        "torch": found["torch"] or "missing",
        "CUDA": "\n".join(found["cuda_devices"]) or "none",
        "libraries": ", ".join(libraries),
        "plugins": "\n".join(plugins) or "none",
        "policies": ", ".join(found["policies"]) or "none",
        "backbones": "\n".join(backbones) or "none",
        "video codecs": ", ".join(found["codecs"]) or "none",
        "free disk": f"{found['free_disk_bytes'] / 2**30:.1f} GiB here",
        "real models": "\n".join(map(_in_words, found["models"])) or "unknown",
        "problems": "\n".join(found["problems"]) or "none",
    }
    for title, text in rows.items():
        table.add_row(Text(title, style="bold"), Text(str(text)))
    Console().print(table)


def _models(registry: Registry) -> list[dict[str, Any]]:
    """Say what an edit with each published model needs, and what of that is missing here.

    Its seconds are those of the blocks alone, at the rate at which this machine multiplies matrices.
    """
    from hetcache.editing.checkpoints import CHECKPOINTS, ROOM, STEPS, measured_rate
    from hetcache.running.device import choose_device, choose_dtype, memory_of
    from hetcache_core.session import resolve_policy

    device = choose_device("auto")
    dtype, memory, rate = choose_dtype("auto", device), memory_of(device), measured_rate(device)
    size = 1 if dtype == "bfloat16" else 2  # of what the table of checkpoints counts
    listed = []
    for known in CHECKPOINTS:
        name, missing = known.info.backbone, _usable(registry, known.info.backbone)
        found: dict[str, Any] = {"model": known.model, "backbone": name, "missing": missing}
        if missing is None:
            geometry = registry.backbone(name).geometry
            frames, (height, width) = geometry.default_frames, geometry.default_size
            run = known.run(geometry.grid(frames, height, width))
            policy, _ = resolve_policy("auto", {}, None, known.info, registry)
            cache = size * known.cache_bytes(policy, run)
            weights, encoder = size * int(known.weights), size * int(known.encoder)
            room = ROOM * memory
            in_turn, at_once = max(encoder, weights + cache), encoder + weights + cache
            found |= {"frames": frames, "height": height, "width": width, "steps": STEPS}
            found |= {"device": device, "dtype": dtype, "memory_bytes": memory}
            found |= {"weights_bytes": weights, "encoder_bytes": encoder, "cache_bytes": cache}
            found |= {
                "fits": "at once" if at_once <= room else "in turn" if in_turn <= room else None
            }
            found |= {"flops": known.flops(run), "flops_per_second": rate}
        listed.append(found)
    return listed


def _in_words(model: dict[str, Any]) -> str:
    if model["missing"] is not None:
        return f"{model['model']}: {model['missing']}"
    weights, encoder, cache, memory = (
        f"{model[f'{of}_bytes'] / 1e9:.1f} GB" for of in ("weights", "encoder", "cache", "memory")
    )
    minutes = model["flops"] / model["flops_per_second"] / 60
    time = f"{minutes:.0f} minutes" if minutes < HOUR else f"{minutes / HOUR:.0f} hours"
    size = (
        f"{model['frames']} frames of {model['height']}x{model['width']} in {model['steps']} steps"
    )
    return (
        f"{model['model']}: {weights} of weights, {cache} of cache (auto) and {encoder} of text encoder, in "
        f"{model['dtype']}; {FITS[model['fits']]} {memory} ({model['device']}). {size} without caching: "
        f"{model['flops'] / 1e15:.0f} PFLOP, here more than {time}"
    )


def _torch() -> tuple[str | None, list[str]]:
    try:
        import torch
    except (ImportError, OSError):  # a broken build fails when its libraries are loaded
        return None, []
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = [torch.cuda.get_device_properties(index) for index in range(count)]
    return torch.__version__, [
        f"cuda:{index} {device.name}, {device.total_memory / 2**30:.0f} GiB"
        for index, device in enumerate(devices)
    ]


def _codecs() -> list[str]:
    try:
        import av
    except ImportError:
        return []
    wanted = (ENCODER, *DECODERS)
    return [name for name in wanted if name in av.codecs_available]


def _usable(registry: Registry, name: str) -> str | None:
    """Return why a backbone cannot be used, or None."""
    try:
        library = registry.backbone(name).library
    except HetCacheError as error:
        return str(error)
    return None if installed_version(library) else f"{library} is not installed"
