"""Training batches: clips drawn from seeds, encoded, with prompts in several wordings.

A batch is a function of the run's seed and of the step alone, so a run that was interrupted goes on
with the very batches it would have had.

Legend: `B` batch, `T` latent frames, `h`, `w` latent height and width, `L` words.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from attrs import frozen
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from hetcache_backends.tiny_vace.clips import RESERVED_SEEDS, Clip, random_spec
from hetcache_backends.tiny_vace.codec import TinyCodec
from hetcache_backends.tiny_vace.config import SPATIAL_FACTOR, TEMPORAL_FACTOR
from hetcache_backends.tiny_vace.fill import smooth_fill
from hetcache_backends.tiny_vace.text import embed_prompt

SIGMA_SHIFT: Final = 5.0
"""As the pipeline's default. Source: `FlowMatchScheduler.set_timesteps_wan`, DiffSynth 2.1.12."""
PROMPT_DROPOUT: Final = 0.12
OBJECT_PHRASES: Final = (
    "a {}",
    "a {}",
    "{}",
    "one {}, high quality",
    "a photo of a {}",
    "a {} moving over the background",
    "put a {} here",
)
BACKGROUND_PHRASES: Final = (
    "background",
    "background",
    "nothing",
    "empty background",
    "remove the object",
)


@frozen
class Bucket:
    """A clip size and how often it is drawn.

    Attributes:
        frames: Frames, 4k+1.
        height: Pixels.
        width: Pixels.
        early: Relative frequency at the start of training.
        late: Relative frequency at its end.
    """

    frames: int
    height: int
    width: int
    early: float
    late: float

    @property
    def tokens(self) -> int:
        """Tokens of one clip."""
        return (self.frames // 4 + 1) * (self.height // 16) * (self.width // 16)


BUCKETS: Final = (
    Bucket(9, 96, 96, 4.0, 1.0),
    Bucket(17, 96, 96, 1.0, 1.0),
    Bucket(9, 96, 160, 1.5, 1.0),
    Bucket(5, 160, 160, 1.5, 1.0),
    Bucket(1, 256, 256, 0.8, 0.7),
    Bucket(13, 144, 144, 0.7, 1.5),
    Bucket(9, 192, 192, 0.3, 1.5),
    Bucket(5, 256, 256, 0.1, 1.0),
    Bucket(17, 192, 192, 0.0, 1.0),
    Bucket(9, 256, 256, 0.0, 0.8),
    Bucket(17, 256, 256, 0.0, 0.8),
    Bucket(17, 384, 384, 0.0, 0.5),
)


@frozen(eq=False, kw_only=True)
class _Clips:
    """The clips of a batch, encoded.

    Attributes:
        latents: `(B, C, T, h, w)`, the answers.
        control: `(B, 2C+64, T, h, w)`, what `WanVideoUnit_VACE` makes of video and mask.
        masked: `(B, 1, T, h, w)`, 1 where any pixel of the block is masked.
        context: `(B, L, D)`, the prompts.
    """

    latents: Tensor
    control: Tensor
    masked: Tensor
    context: Tensor


@frozen(eq=False, kw_only=True)
class Batch(_Clips):
    """What one step learns from: clips and noise.

    Attributes:
        noise: `(B, C, T, h, w)`.
        sigma: `(B,)`, noise levels in (0, 1].
    """

    noise: Tensor
    sigma: Tensor


class Batches(Dataset[Batch]):
    """Batch `step` of the run with a given seed."""

    def __init__(self, *, seed: int, steps: int, tokens: int, echo: int = 1) -> None:
        """Prepare the stream.

        Args:
            seed: Of the run.
            steps: Length of the run; sizes move from `Bucket.early` to `Bucket.late` over it.
            tokens: Tokens a batch holds, about.
            echo: Steps in a row that see the same clips, each with its own noise: where making
                clips takes as long as learning from them.
        """
        self.seed, self.steps, self.tokens, self.echo = seed, steps, tokens, echo
        self._last: tuple[int, _Clips] | None = None
        self.codec = TinyCodec()

    def __len__(self) -> int:
        """Return the number of steps."""
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        """Make the batch of one step."""
        clips = self._clips(step - step % self.echo)
        generator = torch.Generator().manual_seed(
            int(np.random.default_rng([self.seed, 1, step]).integers(1 << 62))
        )
        size = len(clips.latents)
        u = (torch.arange(size) + torch.rand(size, generator=generator)) / size
        u = 1.0 - u[torch.randperm(size, generator=generator)]
        return Batch(
            latents=clips.latents,
            control=clips.control,
            masked=clips.masked,
            context=clips.context,
            noise=torch.randn(clips.latents.shape, generator=generator),
            sigma=SIGMA_SHIFT * u / (1 + (SIGMA_SHIFT - 1) * u),
        )

    def _clips(self, step: int) -> _Clips:
        """Make the clips that the steps from `step` on share."""
        if self._last is not None and self._last[0] == step:
            return self._last[1]
        rng = np.random.default_rng([self.seed, step])
        done = min(step / self.steps, 1.0)
        weights = np.array([b.early * (1 - done) + b.late * done for b in BUCKETS])
        bucket = BUCKETS[int(rng.choice(len(BUCKETS), p=weights / weights.sum()))]
        size = max(1, round(self.tokens / bucket.tokens))
        clips, phrases = [], []
        for _ in range(size):
            clip_seed = int(rng.integers(RESERVED_SEEDS, 1 << 62))
            spec = random_spec(clip_seed, bucket.frames, bucket.height, bucket.width)
            clips.append(spec.render())
            phrases.append(_phrase(rng, spec.prompt, has_object=spec.has_object))
        target = to_tensor([clip.target for clip in clips])
        mask = torch.from_numpy(np.stack([clip.mask for clip in clips])).float() / 255.0
        pixels = mask[:, None]
        known = self.codec.encode(target * (1 - pixels))
        hidden = self.codec.encode(smooth_fill(target, pixels) * pixels)
        grid, masked = mask_channels(mask)
        made = _Clips(
            latents=self.codec.encode(target),
            control=torch.cat([known, hidden, grid], 1),
            masked=masked,
            context=torch.cat([embed_prompt(phrase) for phrase in phrases]),
        )
        self._last = (step, made)
        return made


def _phrase(rng: np.random.Generator, prompt: str, *, has_object: bool) -> str:
    """Word a prompt in one of several ways, or leave it out."""
    if rng.random() < PROMPT_DROPOUT:
        return ""
    phrase = str(rng.choice(OBJECT_PHRASES if has_object else BACKGROUND_PHRASES))
    return phrase.format(prompt.removeprefix("a "))


def to_tensor(videos: list[np.ndarray]) -> Tensor:
    """Convert uint8 videos `(F, H, W, 3)` to `(B, 3, F, H, W)` in [-1, 1]."""
    return torch.from_numpy(np.stack(videos)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0


def mask_channels(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Bring a mask to the latent grid, as the pipeline does.

    Args:
        mask: `(B, F, H, W)` in [0, 1].

    Returns:
        The 8 x 8 pixels of each latent as channels, every fourth frame, `(B, 64, T, h, w)`, and
        whether anything of the latent's block is masked, `(B, 1, T, h, w)`.

    Source: `WanVideoUnit_VACE.process`, DiffSynth 2.1.12.
    """
    grid = functional.pixel_unshuffle(mask.flatten(0, 1)[:, None], SPATIAL_FACTOR)
    grid = grid.unflatten(0, mask.shape[:2]).transpose(1, 2)  # (B, 64, F, h, w)
    size = ((grid.shape[2] + TEMPORAL_FACTOR - 1) // TEMPORAL_FACTOR, *grid.shape[3:])
    any_pixel = grid.amax(1, keepdim=True)
    groups = any_pixel[:, :, 1:].unflatten(2, (-1, TEMPORAL_FACTOR)).amax(3)
    masked = torch.cat([any_pixel[:, :, :1], groups], 2)
    return functional.interpolate(grid, size=size, mode="nearest-exact"), masked


def clip_inputs(clip: Clip) -> dict[str, object]:
    """Return what `pipe(...)` takes for a clip: prompt, video and mask as images, and the size."""
    from PIL import Image

    frames, height, width = clip.mask.shape
    return {
        "prompt": clip.prompt,
        "vace_video": [Image.fromarray(frame) for frame in clip.video],
        "vace_video_mask": [Image.fromarray(frame).convert("RGB") for frame in clip.mask],
        "num_frames": frames,
        "height": height,
        "width": width,
    }
