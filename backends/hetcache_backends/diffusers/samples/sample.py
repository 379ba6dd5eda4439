"""What a class of transformers is made of at a small size, and what it is called with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import torch
from attrs import frozen

if TYPE_CHECKING:
    from torch import Tensor

BRANCH_SCALE: Final = 4
"""What the second branch's inputs are larger by, so that its results cannot be taken for the first's."""


@frozen
class Sample:
    """One class at a small size.

    Attributes:
        make: makes the transformer.
        arguments: makes what it is called with, by a function that draws normal numbers of a size.
        latents: argument with the latents.
        timestep: argument with the timestep.
        scale: what the timestep of 0 to 1000 is multiplied with.
        left: whether it is counted from the other end.
        counts: whether FLOPs can be counted exactly.
        side: tokens in a row and in a column of the picture, where there is a mask of it.
    """

    make: Callable[[], Any]
    arguments: Callable[[Callable[..., Tensor]], dict[str, Any]]
    latents: str = "hidden_states"
    timestep: str = "timestep"
    scale: float = 1.0
    left: bool = False
    counts: bool = True
    side: int = 4

    def inputs(
        self, seed: int, branch: int = 0, dtype: torch.dtype | None = None
    ) -> dict[str, Any]:
        """Draw the arguments of a branch, on the CPU."""
        draw = torch.Generator().manual_seed(2 * seed + branch)
        factor = 1 + BRANCH_SCALE * branch
        return self.arguments(
            lambda *size: (torch.randn(*size, generator=draw) * factor).to(dtype or torch.float32)
        )

    def at(self, given: Tensor, t: Tensor) -> Tensor:
        """Write a timestep of the scheduler as the class takes it."""
        value = (1000 - t if self.left else t) * self.scale
        return torch.ones_like(given) * value.to(given)

    def model(self, seed: int) -> Any:
        """Make the transformer; the global random state is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = self.make().eval()
            for parameter in made.parameters():
                if not parameter.any():  # gates that begin at zero would hide what blocks do
                    torch.nn.init.normal_(parameter, std=0.05)
        made.requires_grad_(False)
        return made


TIME: Final = torch.ones(1)


def small(kind: str, **config: Any) -> Callable[[], Any]:
    """Make a transformer of a class of diffusers by its name."""

    def make() -> Any:
        import diffusers

        return getattr(diffusers, kind)(**config)

    return make


def samples() -> Mapping[str, Sample]:
    """Return all, by the names of the classes; some may be absent in the installed diffusers."""
    from hetcache_backends.diffusers.samples.images import IMAGES
    from hetcache_backends.diffusers.samples.videos import VIDEOS

    return {**IMAGES, **VIDEOS}


def ids(rows: int, columns: int = 0) -> Tensor:
    """Places of tokens in a picture (N, 3); all at the origin where there are no columns."""
    if not columns:
        return torch.zeros(rows, 3)
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros_like(x), y, x], dim=-1).reshape(-1, 3).float()


def allegro_rotary(width: int, frames: int, height: int, columns: int) -> Any:
    """Rotary table of Allegro, as its pipeline makes it."""
    from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro

    made: Any = get_3d_rotary_pos_embed_allegro(
        embed_dim=width,
        crops_coords=((0, 0), (height, columns)),
        grid_size=(height, columns),
        temporal_size=frames,
    )
    *tables, times, rows, lines = made
    places = torch.cartesian_prod(times.long(), rows.long(), lines.long()).T.reshape(3, 1, -1)
    return tuple(tables), tuple(places.contiguous())
