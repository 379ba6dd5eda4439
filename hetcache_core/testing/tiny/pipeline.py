"""A masked-editing pipeline around ``TinyDiT``; like its model, it knows nothing of caching."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from functools import partial
from typing import Any, Final, final

import torch
from torch import Tensor
from torch.nn import functional as F

from hetcache_core.testing.tiny.model import TinyConfig, TinyDiT

PIXELS: Final = 4
"""Pixels that a row or column of the latents covers."""

FRAMES: Final = 2
"""Video frames that a latent frame covers; the first one covers one frame."""

SHIFT: Final = 3.0
"""Shift of the noise levels towards the noisy end, as video models use it."""

EXPERT_BOUNDARY: Final = 500.0
"""Timestep below which the second expert takes over."""


@final
class TinyScheduler:
    """Flow matching with Euler steps."""

    def __init__(self) -> None:
        self.sigmas = torch.empty(0)
        self.timesteps = torch.empty(0)

    def set_timesteps(self, steps: int) -> None:
        """Lay out the noise levels of a run."""
        linear = torch.linspace(1, 0, steps + 1)[:-1]
        self.sigmas = SHIFT * linear / (1 + (SHIFT - 1) * linear)  # (S,)
        self.timesteps = self.sigmas * 1000

    def step(self, velocity: Tensor, timestep: Tensor, latents: Tensor) -> Tensor:
        """Follow the velocity (1, C, T, H, W) from one noise level to the next."""
        index = int((self.timesteps - timestep).abs().argmin())
        following = self.sigmas[index + 1] if index + 1 < len(self.sigmas) else torch.tensor(0.0)
        return latents + velocity * (following - self.sigmas[index])


def tiny_model_fn(
    *,
    model: TinyDiT,
    latents: Tensor,
    timestep: Tensor,
    text: Tensor,
    control: Tensor | None,
    **_context: object,
) -> Tensor:
    """Call the model; what else the pipeline knows of the call comes in ``_context``."""
    rows = len(latents)
    if control is not None:
        control = control.expand(rows, -1, -1, -1, -1)
    velocity: Tensor = model(latents, timestep, text, control)
    return velocity


@final
class TinyPipeline:
    """Edits a masked video.

    Args:
        seed: seed of the weights.
        config: sizes of the model.
        experts: 2 for a second model that takes over at low noise.
    """

    def __init__(
        self, seed: int = 0, config: TinyConfig | None = None, *, experts: int = 1
    ) -> None:
        config = config or TinyConfig()
        self.model = TinyDiT(config, seed).eval()
        self.model2 = TinyDiT(config, seed + 1).eval() if experts > 1 else None
        self.scheduler: Any = TinyScheduler()
        self.model_fn: Any = tiny_model_fn

    @torch.no_grad()
    def __call__(
        self,
        video: Tensor,
        mask: Tensor | None = None,
        *,
        prompt: str = "",
        negative_prompt: str = "blurred",
        reference: Tensor | None = None,
        steps: int = 8,
        guidance_scale: float = 5.0,
        merge_guidance: bool = False,
        uncond_first: bool = False,
        seed: int = 0,
    ) -> Tensor:
        """Run one edit.

        Args:
            video: (F, H, W, 3) uint8.
            mask: (F, H, W) bool, ``True`` where the video is edited; None edits everything.
            prompt: what to put into the mask.
            negative_prompt: what to keep out of it.
            reference: (H, W, 3) uint8 image of what to put in, or None.
            steps: sampler steps.
            guidance_scale: 1 runs without guidance.
            merge_guidance: run both branches in one call.
            uncond_first: with separate calls, call the unconditional branch first.
            seed: seed of the noise.

        Returns:
            (1, C, T, H / 4, W / 4) final latents; ``decode`` makes frames of them.
        """
        references = 0
        keep = torch.zeros(video.shape[:3], dtype=torch.bool) if mask is None else ~mask
        known = self.encode(video * keep[..., None])  # (1, C, T, H, W)
        edited = self.encode((~keep)[..., None].expand(-1, -1, -1, 3) * 255)[:, :1]
        control = torch.cat([known, edited], dim=1)  # (1, C + 1, T, H, W)
        if reference is not None:
            references = 1
            image = F.pad(self.encode(reference[None]), (0, 0, 0, 0, 0, 0, 0, 1))
            control = torch.cat([image, control], dim=2)
        generator = torch.Generator().manual_seed(seed)
        latents = torch.randn(1, known.shape[1], *control.shape[2:], generator=generator)
        latents = latents.to(control)
        text, negative_text = self.encode_text(prompt), self.encode_text(negative_prompt)
        context = {
            "control": control,
            "mask": mask,
            "references": references,
            "guidance_scale": guidance_scale,
        }
        self.scheduler.set_timesteps(steps)
        for timestep in self.scheduler.timesteps:
            call = partial(self._call, latents, timestep, context)
            if guidance_scale == 1:
                velocity = call(text, positive=True)
            elif merge_guidance:
                cond, uncond = call(torch.cat([text, negative_text]), positive=None).chunk(2)
                velocity = uncond + guidance_scale * (cond - uncond)
            else:
                order = (False, True) if uncond_first else (True, False)
                words = {True: text, False: negative_text}
                answers = {positive: call(words[positive], positive=positive) for positive in order}
                velocity = answers[False] + guidance_scale * (answers[True] - answers[False])
            latents = self.scheduler.step(velocity, timestep, latents)
        return latents[:, :, references:]  # (1, C, T, H, W)

    def _call(
        self,
        latents: Tensor,
        timestep: Tensor,
        context: Mapping[str, Any],
        text: Tensor,
        *,
        positive: bool | None,
    ) -> Tensor:
        rows = len(text)
        second = self.model2 is not None and timestep < EXPERT_BOUNDARY
        velocity: Tensor = self.model_fn(
            **context,
            model=self.model2 if second else self.model,
            latents=latents.expand(rows, -1, -1, -1, -1),
            timestep=timestep.to(latents.device).expand(rows),
            text=text,
            positive=positive,
        )
        return velocity

    def encode(self, video: Tensor) -> Tensor:
        """Make latents (1, C, T, H / 4, W / 4) of frames (F, H, W, 3) in 0..255."""
        frames = video.permute(0, 3, 1, 2).to(self.model.head.weight) / 127.5 - 1
        pooled = F.avg_pool2d(frames, PIXELS)  # (F, 3, H, W)
        head, tail = pooled[:1], pooled[1:]
        tail = tail.unflatten(0, (-1, FRAMES)).mean(1) if len(tail) else tail
        pooled = torch.cat([head, tail])  # (T, 3, H, W)
        pooled = torch.cat([pooled, pooled.mean(1, keepdim=True)], dim=1)  # (T, C, H, W)
        return pooled.transpose(0, 1)[None]  # (1, C, T, H, W)

    def decode(self, latents: Tensor) -> Tensor:
        """Make frames (F, H, W, 3) uint8 of latents (1, C, T, H / 4, W / 4)."""
        colours = latents[0, :3].permute(1, 2, 3, 0)  # (T, H, W, 3)
        frames = torch.cat([colours[:1], colours[1:].repeat_interleave(FRAMES, 0)])
        frames = frames.repeat_interleave(PIXELS, 1).repeat_interleave(PIXELS, 2)  # (F, H, W, 3)
        return ((frames.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def encode_text(self, prompt: str) -> Tensor:
        """Make an embedding (1, l, text_width) of a text: noise seeded by its bytes."""
        config = self.model.config
        generator = torch.Generator().manual_seed(zlib.crc32(prompt.encode()))
        words = torch.randn(1, config.text_tokens, config.text_width, generator=generator)
        return words.to(self.model.head.weight)
