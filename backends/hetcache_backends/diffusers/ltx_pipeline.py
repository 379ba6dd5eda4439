"""A pipeline that edits inside a mask with LTX-Video, on diffusers' ``LTXConditionPipeline``.

That pipeline conditions whole frames, but on tokens: each has a timestep of its own. Here a token
that the mask does not touch is conditioned on the source video, so it starts at the source's latents,
has timestep 0 and stays as it is, while every other token is denoised from noise.

Imports diffusers; everything else in this package imports this module on use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.pipelines.ltx.pipeline_ltx_condition import (
    LTXConditionPipeline,
    LTXVideoCondition,
    retrieve_latents,
)
from torch import Tensor

from hetcache_core import Grid, binary_mask, mask_to_tokens


class MaskedLTXPipeline(LTXConditionPipeline):
    """``LTXConditionPipeline`` with two more arguments: a source video and a mask.

    Make one with ``from_pretrained`` as usual, or from the parts of a loaded pipeline:
    ``MaskedLTXPipeline(**pipeline.components)``.

    Attributes:
        edit_mask: (F, H, W) bool mask of the call that is under way, or None.
    """

    edit_mask: Tensor | None = None

    def __call__(
        self,
        conditions: LTXVideoCondition | list[LTXVideoCondition] | None = None,
        *,
        source_video: Sequence[Any] | None = None,
        edit_mask: Any = None,
        **arguments: Any,
    ) -> Any:
        """Run the pipeline, inside a mask if one is given.

        Args:
            conditions: further conditions, as in the base class; at the frames that they write they
                go before source video and mask.
            source_video: frames of the video to edit, F of them, as in ``LTXVideoCondition.video``.
            edit_mask: (F, H, W) bool array or tensor, ``True`` where the video is edited, or anything
                else that ``hetcache_core.binary_mask`` reads. It must have the size in pixels of what
                is generated.
            **arguments: of the base class. Height, width and number of frames are by default those
                of the mask; ``denoise_strength`` below 1 lets edited tokens start nearer to the
                source; conditioned tokens get no noise unless ``image_cond_noise_scale`` is given.

        Returns:
            As the base class.

        Raises:
            ValueError: a mask came without a video, or the other way round, or of another length.
            ConfigError: the mask has another size than what is generated.
        """
        if (source_video is None) != (edit_mask is None):
            raise ValueError("source_video and edit_mask go together; give both or neither.")
        if source_video is None:
            return super().__call__(conditions, **arguments)
        mask = binary_mask(edit_mask)  # (F, H, W)
        frames, height, width = mask.shape
        if len(source_video) != frames:
            raise ValueError(
                f"edit_mask has {frames} frames but source_video has {len(source_video)}."
            )
        sizes = {"num_frames": frames, "height": height, "width": width}
        further = [conditions] if isinstance(conditions, LTXVideoCondition) else conditions or []
        source = LTXVideoCondition(video=list(source_video), frame_index=0, strength=1.0)
        self.edit_mask = mask
        try:
            return super().__call__(
                [source, *further], **{**sizes, "image_cond_noise_scale": 0.0, **arguments}
            )
        finally:
            del self.edit_mask

    def prepare_latents(  # type: ignore[override]  # the base class calls it by keyword
        self,
        conditions: list[Tensor] | None = None,
        condition_strength: list[float] | None = None,
        condition_frame_index: list[int] | None = None,
        **arguments: Any,
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        """Put the source's latents where nothing is edited; see the base class.

        Returns:
            (B, N, C) latents, (B, N) share that each token is conditioned by, coordinates, and the
            number of tokens that conditions put before the video's.
        """
        conditions = conditions or []
        strengths, indices = condition_strength or [], condition_frame_index or []
        if self.edit_mask is None:
            return super().prepare_latents(conditions, strengths, indices, **arguments)
        device, dtype = arguments["device"], arguments["dtype"]
        source = retrieve_latents(self.vae.encode(conditions[0]), sample_mode="argmax")
        source = self._normalize_latents(source, self.vae.latents_mean, self.vae.latents_std)
        source = source.to(device, dtype).expand(arguments["batch_size"], -1, -1, -1, -1)
        if arguments.get("sigma") is not None and arguments.get("latents") is None:
            arguments["latents"] = source
            arguments["sigma"] = arguments["sigma"].view(-1, 1, 1, 1, 1)
        latents, given, coordinates, prefix = super().prepare_latents(
            conditions[1:], strengths[1:], indices[1:], **arguments
        )
        if len(conditions) == 1:
            given = latents.new_zeros(latents.shape[:2])  # (B, N)
        sizes = (arguments[name] for name in ("num_frames", "height", "width"))
        edited = mask_to_tokens(self.edit_mask, self._grid(*sizes)).flatten().to(device)
        kept = ~edited & (given[:, prefix:] == 0)  # (B, N - prefix)
        packed = self._pack_latents(
            source, self.transformer_spatial_patch_size, self.transformer_temporal_patch_size
        )
        latents[:, prefix:] = torch.where(kept[..., None], packed, latents[:, prefix:])
        given[:, prefix:] = torch.where(kept, 1.0, given[:, prefix:])
        return latents, given, coordinates, prefix

    def _grid(self, num_frames: int, height: int, width: int) -> Grid:
        """Lay out the video's tokens for a size in pixels."""
        side = self.vae_spatial_compression_ratio * self.transformer_spatial_patch_size
        stride = self.vae_temporal_compression_ratio * self.transformer_temporal_patch_size
        return Grid(
            frames=(num_frames - 1) // stride + 1,
            height=height // side,
            width=width // side,
            pixel_height=side,
            pixel_width=side,
            frame_stride=stride,
        )
