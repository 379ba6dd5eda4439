"""Options of the benchmarks that run models, and compositions whose steps are fixed."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Final, final

import torch
from attrs import evolve, frozen
from torch import Tensor

from harness.options import Options, names, option
from harness.sizes import ClipSize
from harness.subjects import Subject, make_subject
from hetcache_core import (
    CachePolicy,
    ControlMode,
    Grid,
    KVMode,
    Mode,
    PartialSettings,
    Partition,
    Role,
    TokenPartitioner,
)
from hetcache_core.testing import scripted

DEFAULT_SIZES: Final[Mapping[str, ClipSize]] = {
    "": ClipSize(17, 384, 384),
    "ltx-video": ClipSize(33, 768, 768),
}
"""Sizes of 2,880 tokens by backbone; "" holds for the others."""


def sizes(text: str) -> tuple[ClipSize, ...]:
    """Read sizes of clips, by commas."""
    return tuple(ClipSize.parse(part) for part in names(text))


@frozen(kw_only=True)
class ModelOptions(Options):
    """Options of a benchmark that runs models."""

    backbones: tuple[str, ...] = option(
        ("tiny-vace", "wan-vace", "wan-vace-diffusers", "ltx-video"),
        doc="which models, by commas",
        parse=names,
    )
    scale: str = option(
        "small", doc="size of the models with random weights: tiny, small, published"
    )
    sizes: tuple[ClipSize, ...] = option(
        (), doc="sizes of the clip, FxHxW by commas; none takes 2,880 tokens", parse=sizes
    )

    def subjects(self) -> Iterator[Subject]:
        """Make what is measured, one after the other; each is freed before the next one."""
        for name in self.backbones:
            for size in self.sizes or (DEFAULT_SIZES.get(name, DEFAULT_SIZES[""]),):
                print(f"{name} {size}", file=sys.stderr, flush=True)
                yield make_subject(name, self.scale, size, self.device, self.dtype)
                if self.device != "cpu":
                    torch.cuda.empty_cache()


@final
@frozen
class ShareOfTokens(TokenPartitioner):
    """A share of the tokens is generative, evenly spread, and the rest is context.

    Attributes:
        share: of all tokens, in (0, 1].
    """

    share: float

    def partition(self, mask: Tensor, grid: Grid) -> Partition:
        """Give every token a role, whatever the mask."""
        count = max(1, round(self.share * grid.tokens))
        chosen = torch.arange(count, device=mask.device) * grid.tokens // count
        roles = torch.full((grid.tokens,), int(Role.CONTEXT), dtype=torch.uint8, device=mask.device)
        roles[chosen] = int(Role.GENERATIVE)
        return Partition(roles, grid)


def steps_policy(*modes: Mode, share: float, keys: KVMode = KVMode.PRUNED) -> CachePolicy:
    """Compose a policy whose steps are given, and whose partial ones run a share of the tokens."""
    settings = PartialSettings(
        kv_mode=keys, control_mode=ControlMode.RECOMPUTE, max_active_share=1.0, pad_to=1
    )
    return evolve(
        scripted(*modes, partial=settings), partitioner=ShareOfTokens(share), selector=None
    )
