"""A checkout of ComfyUI without its server, and small random models of its own classes, for tests.

``HETCACHE_COMFYUI`` names the checkout. ComfyUI reads ``sys.argv`` when it is imported, and keeps what it
found, so that a process has one.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from attrs import define, field
from torch import Tensor

CHECKOUT: Final = "HETCACHE_COMFYUI"
"""Environment variable that names a checkout of ComfyUI."""

LATENTS: Final = {"wan": (1, 16, 3, 6, 8), "ltx": (1, 128, 3, 6, 8), "any": (1, 16, 3, 6, 8)}
"""Shapes of the small runs."""

SIZES: Final[dict[str, dict[str, Any]]] = {
    "wan": {
        "image_model": "wan2.1",
        "model_type": "vace",
        "dim": 48,
        "ffn_dim": 96,
        "freq_dim": 32,
        "text_dim": 24,
        "num_heads": 4,
        "num_layers": 4,
        "vace_layers": 2,
        "vace_in_dim": 96,
    },
    "ltx": {
        "image_model": "ltxv",
        "cross_attention_dim": 64,
        "attention_head_dim": 16,
        "num_attention_heads": 4,
        "caption_channels": 24,
        "num_layers": 3,
    },
    "any": {
        "image_model": "cosmos_predict2",
        "max_img_h": 240,
        "max_img_w": 240,
        "max_frames": 128,
        "in_channels": 16,
        "out_channels": 16,
        "patch_spatial": 2,
        "patch_temporal": 1,
        "concat_padding_mask": False,
        "model_channels": 64,
        "num_blocks": 3,
        "num_heads": 2,
        "crossattn_emb_channels": 24,
        "mlp_ratio": 2.0,
        "pos_emb_cls": "rope3d",
        "use_adaln_lora": False,
    },
}
"""Sizes of the models, as ComfyUI finds them in a checkpoint."""

CONFIGS: Final = {"wan": "WAN21_Vace", "ltx": "LTXV", "any": "CosmosT2IPredict2"}
"""Names in ``comfy.supported_models``."""


def checkout() -> Path | None:
    """Return the checkout that the environment names, or None."""
    named = os.environ.get(CHECKOUT)
    return Path(named).expanduser().resolve() if named else None


def start(base: Path) -> str:
    """Import ComfyUI from the checkout, on the CPU, once a process.

    Args:
        base: folder for its input, output, models and ``custom_nodes``.

    Returns:
        Its release.
    """
    root = checkout()
    if root is None:
        raise RuntimeError(f"{CHECKOUT} names no checkout")
    if "comfy" not in sys.modules:
        if str(root) not in sys.path:
            sys.path.insert(0, str(root))
        arguments = ["--cpu", "--base-directory", str(base), "--disable-api-nodes"]
        own, sys.argv = sys.argv, ["main.py", *arguments, "--disable-metadata"]
        try:
            import comfy.options

            comfy.options.enable_args_parsing(True)
            import comfy.samplers
            import utils.extra_config  # noqa: F401 - before the nodes, which have a module 'utils' too
        finally:
            sys.argv = own
    from comfyui_version import __version__

    return str(__version__)


def patcher(kind: str, seed: int) -> Any:
    """Make ComfyUI's own patcher around a small random model of its own class."""
    import comfy.model_patcher
    import comfy.supported_models

    config = getattr(comfy.supported_models, CONFIGS[kind])(dict(SIZES[kind]))
    config.set_inference_dtype(torch.float32, None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = config.get_model({}, "").eval().requires_grad_(requires_grad=False)
        for name, weight in model.diffusion_model.named_parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=0.5 / weight[0].numel() ** 0.5)
            elif "norm" in name and name.endswith("weight"):
                torch.nn.init.ones_(weight)
            else:
                torch.nn.init.normal_(weight, std=0.02)
    device = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, device, device)


def conditionings(kind: str, seed: int) -> list[list[Any]]:
    """Make the conditionings of two prompts, with VACE's control input for a Wan."""
    draw = torch.Generator().manual_seed(seed)
    rows: list[list[Any]] = []
    shape = LATENTS[kind]
    frames = torch.randn(1, 32, *shape[2:], generator=draw)
    mask = torch.zeros(1, 64, *shape[2:])
    mask[:, :, :, 2:4, 3:6] = 1
    for _ in range(2):
        given: dict[str, Any] = {}
        if kind == "wan":
            given = {"vace_frames": [frames], "vace_mask": [mask], "vace_strength": [1.0]}
        elif kind == "ltx":
            given = {"attention_mask": torch.ones(1, 5, dtype=torch.long)}
        rows.append([[torch.randn(1, 5, 24, generator=draw), given]])
    return rows


def guider(kind: str, seed: int, patched: Any = None) -> Any:
    """Make ComfyUI's own guider of a small model."""
    import comfy.samplers

    made = comfy.samplers.CFGGuider(patched or patcher(kind, seed))
    positive, negative = conditionings(kind, 0)
    made.set_conds(positive, negative)
    return made


def run(
    guided: Any,
    steps: int,
    guidance: str,
    seed: int,
    *,
    sampler: str = "euler",
    kind: str = "wan",
    mask: Tensor | None = None,
) -> Tensor:
    """Sample with "merged" or no guidance: latents."""
    import comfy.samplers

    guided.set_cfg(1.0 if guidance == "none" else 4.0)
    noise = torch.randn(LATENTS[kind], generator=torch.Generator().manual_seed(seed))
    sampling = guided.model_patcher.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", steps)
    chosen = comfy.samplers.sampler_object(sampler)
    latents: Tensor = guided.sample(
        noise,
        torch.zeros_like(noise),
        chosen,
        sigmas,
        denoise_mask=mask,
        disable_pbar=True,
        seed=seed,
    )
    return latents


@define(eq=False)
class Server:
    """What the executor tells of its work, in place of the server.

    Attributes:
        events: what was sent, by name.
    """

    client_id: str = "hetcache"
    last_node_id: str | None = None
    last_prompt_id: str = ""
    events: list[tuple[str, Any]] = field(factory=list)

    def send_sync(self, event: str, data: Any, sid: Any = None) -> None:
        """Take an event."""
        self.events.append((event, data))

    def queue_updated(self) -> None:
        """Take that the queue is another one."""


def execute(prompt: Mapping[str, Any], name: str = "one") -> Any:
    """Run a workflow in the API's format through ComfyUI's own executor.

    Returns:
        The executor, whose ``success``, ``status_messages`` and ``history_result`` tell the rest.
    """
    import execution

    valid = asyncio.run(execution.validate_prompt(name, prompt, None))
    if not valid[0]:
        raise RuntimeError(f"ComfyUI refuses the workflow: {valid[1]} {valid[3]}")
    executor = execution.PromptExecutor(Server(), cache_type=execution.CacheType.CLASSIC)
    executor.execute(prompt, name, {}, valid[2])
    return executor


def load_nodes(*, extra: bool = False) -> None:
    """Load the nodes in ``custom_nodes`` of the base folder, and with ``extra`` ComfyUI's further own."""
    import nodes

    async def load() -> None:
        if extra:
            await nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False)
        await nodes.init_external_custom_nodes()

    asyncio.run(load())
