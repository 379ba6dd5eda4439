"""CogVideoX inside a mask, on diffusers' video-to-video pipeline, which takes none."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.pipelines.cogvideo.pipeline_cogvideox_video2video import (
    CogVideoXVideoToVideoPipeline,
)
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hetcache_core import Grid, binary_mask, mask_to_tokens


class MaskedCogVideoX(CogVideoXVideoToVideoPipeline):
    """Keeps latents outside of the mask on the source, as noisy as each step has them.

    Source: Blended Latent Diffusion (arXiv:2206.02779). Tokens that the mask does not touch in any
    pixel of any of their frames end as the source's latents.
    """

    edit_mask: Any = None
    """(F, H, W) bool mask of the call that is under way, or None."""

    def __call__(self, video: list[Any], *, edit_mask: Any, **arguments: Any) -> Any:
        """Run the pipeline inside a mask.

        Args:
            video: F frames of the video to edit.
            edit_mask: (F, H, W) bool array or tensor of the generated size, ``True`` where edited, or
                anything else that ``binary_mask`` reads.
            **arguments: of the base class, but for ``callback_on_step_end``.

        Returns:
            As the base class.
        """
        self.edit_mask = binary_mask(edit_mask)
        try:
            return super().__call__(video, callback_on_step_end=type(self).blend, **arguments)
        finally:
            del self.edit_mask
            vars(self).pop("source", None)
            self._current_timestep = None  # the library leaves it where an error struck

    def prepare_latents(self, video: Any = None, *arguments: Any) -> Tensor:
        """Make the latents to start from, and keep what they are made of; all (B, T, C, h, w)."""
        *_, dtype, device, generator, _, timestep = arguments
        clean = self.vae.encode(video).latent_dist.mode().movedim(2, 1).to(dtype)
        clean = clean * self.vae_scaling_factor_image
        noise = randn_tensor(clean.shape, generator=generator, device=device, dtype=dtype)
        self.source = clean, noise
        noisy: Tensor = self.scheduler.add_noise(clean, noise, timestep)
        return noisy

    def blend(self, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """Put the source outside of the mask; the pipeline calls this after each step."""
        (kept, noise), left = self.source, self.num_timesteps - step - 1
        if left:
            kept = self.scheduler.add_noise(kept, noise, self.scheduler.timesteps[-left][None])
        edited = mask_to_tokens(self.edit_mask.to(kept.device), token_grid(self, kept))
        for axis in (1, 2):  # a token is several latents high and wide
            edited = edited.repeat_interleave(self.transformer.config.patch_size, axis)  # (T, h, w)
        return {"latents": torch.where(edited[None, :, None], tensors["latents"], kept)}


def token_grid(pipeline: Any, latents: Tensor, text: int = 0) -> Grid:
    """Lay out the tokens of latents (B, T, C, h, w) behind so many tokens of text."""
    _, frames, _, height, width = latents.shape
    side = pipeline.transformer.config.patch_size
    return Grid(
        frames=frames,
        height=height // side,
        width=width // side,
        prefix=text,
        pixel_height=side * pipeline.vae_scale_factor_spatial,
        pixel_width=side * pipeline.vae_scale_factor_spatial,
        frame_stride=pipeline.vae_scale_factor_temporal,
    )
