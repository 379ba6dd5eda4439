"""Which runs a comparison consists of, and in which order they are made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from attrs import evolve, frozen

from hetcache.comparison.plan.clips import ClipSource
from hetcache.comparison.plan.footage import Footage
from hetcache.comparison.plan.sizes import Size
from hetcache.comparison.results.folder import RowKey
from hetcache.running.specs import BackboneSpec, PolicySpec

__all__ = ["Grid", "SizedClip", "Unit"]


@frozen(kw_only=True)
class SizedClip:
    """A clip at one of its sizes.

    Attributes:
        name: What it is called in tables; with its size where it has several.
        source: The clip.
        size: Length and size.
        digest: Says whether it is the same clip, pixel by pixel.
    """

    name: str
    source: ClipSource
    size: Size
    digest: str

    def read(self) -> Footage:
        """Read the clip.

        Raises:
            ConfigError: A file cannot be read any more.
        """
        footage = self.source.read(self.size)
        return evolve(footage, clip=evolve(footage.clip, name=self.name))


@frozen(kw_only=True)
class Unit:
    """The runs that one worker makes one after the other, so that their clocks can be compared.

    Attributes:
        backbone: The model.
        clip: The clip.
        seed: Seed of the noise.
        steps: Steps of the sampler.
        runs: In rounds: every policy once, the uncached run first; then all of them again.
    """

    backbone: BackboneSpec
    clip: SizedClip
    seed: int
    steps: int
    runs: tuple[tuple[RowKey, PolicySpec], ...]


@frozen(kw_only=True)
class Grid:
    """Everything that is crossed.

    Attributes:
        backbones: The models.
        policies: The policies, the uncached run first.
        clips: The clips, at each size.
        seeds: Seeds of the noise.
        steps: Steps of the sampler.
        repeat: How often every run is made.
    """

    backbones: tuple[BackboneSpec, ...]
    policies: tuple[PolicySpec, ...]
    clips: tuple[SizedClip, ...]
    seeds: tuple[int, ...]
    steps: int
    repeat: int

    def units(self) -> Iterator[Unit]:
        """Give the units, those of one model after those of another, so that each is loaded once."""
        for backbone in self.backbones:
            for clip in self.clips:
                for seed in self.seeds:
                    yield Unit(
                        backbone=backbone,
                        clip=clip,
                        seed=seed,
                        steps=self.steps,
                        runs=tuple(
                            (self._key(backbone, clip, seed, policy, repeat), policy)
                            for repeat in range(self.repeat)
                            for policy in self.policies
                        ),
                    )

    def all_keys(self) -> list[RowKey]:
        """List all runs."""
        return [key for unit in self.units() for key, _ in unit.runs]

    def to_dict(self) -> dict[str, Any]:
        """Return values for JSON."""
        return {
            "backbones": [str(spec) for spec in self.backbones],
            "policies": [str(spec) for spec in self.policies],
            "clips": [_plain(clip) for clip in self.clips],
            "seeds": list(self.seeds),
            "steps": self.steps,
            "repeat": self.repeat,
        }

    def _key(
        self, backbone: BackboneSpec, clip: SizedClip, seed: int, policy: PolicySpec, repeat: int
    ) -> RowKey:
        return RowKey(
            backbone=backbone.name,
            model=backbone.weights,
            clip=clip.name,
            seed=seed,
            policy=policy.name,
            variant=policy.variant,
            steps=self.steps,
            frames=clip.size.frames,
            height=clip.size.height,
            width=clip.size.width,
            repeat=repeat,
        )


def _plain(clip: SizedClip) -> Mapping[str, Any]:
    size = clip.size
    return {
        "name": clip.name,
        "frames": size.frames,
        "height": size.height,
        "width": size.width,
        "digest": clip.digest,
    }
