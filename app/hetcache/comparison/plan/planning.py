"""From options to a grid: everything that can be wrong is found here, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen

from hetcache.comparison.config import CompareConfig
from hetcache.comparison.plan.clips import ClipSource, FileClip, Outpainted, SetClip
from hetcache.comparison.plan.finding import find_clips
from hetcache.comparison.plan.grid import Grid, SizedClip
from hetcache.comparison.plan.grids import GRIDS, ReadyGrid
from hetcache.comparison.plan.sizes import check_size, join, scaled
from hetcache.running.console import note
from hetcache.running.run import random_models
from hetcache.running.specs import (
    ALL,
    RANDOM,
    REFERENCE,
    BackboneSpec,
    PolicySpec,
    check_policy_spec,
    parse_backbones,
    parse_numbers,
    parse_policies,
    random_name,
)
from hetcache_core import ConfigError, UnsupportedBackboneError
from hetcache_core.settings.declare import build

if TYPE_CHECKING:
    from hetcache_core import Backbone, ModelInfo, Registry

__all__ = ["Wanted", "choose_backbones", "choose_policies", "grid_of", "plan"]

OTHERWISE = ReadyGrid(summary="", policies=ALL)
"""What holds without a ready grid."""


@frozen(kw_only=True)
class Wanted:
    """What was asked for, read and checked as far as it can be without a model.

    Attributes:
        backbones: The models.
        policies: The policies without the uncached run; "all" is still one of them.
        targets: Speed-ups that are asked of each.
        clips: The clips at their sizes.
        seeds: Seeds of the noise.
        clip_set: Name and version of the clip set, or None.
    """

    backbones: tuple[BackboneSpec, ...]
    policies: tuple[PolicySpec, ...]
    targets: tuple[float, ...]
    clips: tuple[SizedClip, ...]
    seeds: tuple[int, ...]
    clip_set: Mapping[str, str] | None


def plan(config: CompareConfig, registry: Registry) -> Wanted:
    """Read what is asked for, and every clip.

    Args:
        config: What is asked for.
        registry: Where backbones, policies and clip sets are looked up.

    Raises:
        HetCacheError: A name, a setting, a size or a file is wrong.
    """
    ready = GRIDS[config.grid] if config.grid else OTHERWISE
    backbones = choose_backbones(parse_backbones(config.backbones), registry)
    adapters: dict[str, Backbone] = {
        str(s): registry.backbone(s.name)().for_model(s.model or None) for s in backbones
    }
    for spec, adapter in zip(backbones, adapters.values(), strict=True):
        adapter.check_options(config.given.options)
        name = random_name(spec.model)
        if name is not None:
            random_models(adapter, name, where="--backbones")
    policies = parse_policies(ready.policies if config.policies is None else config.policies)
    for policy in policies:
        if policy.name != ALL:
            check_policy_spec(policy, registry)
        elif policy.settings:
            raise ConfigError(f"{ALL} takes no settings", where="--policies")
    asked = config.target_speedups
    if asked is None and config.policies is None:
        asked = ready.target_speedups
    targets: tuple[float, ...] = ()
    if asked is not None:
        targets = parse_numbers(asked, float, option="--target-speedups", least=1.0)
    seeds = parse_numbers(config.seeds, int, option="--seeds", least=0, what="whole numbers")
    sources = _sources(config, ready, registry)
    clips = _sized(config, ready, adapters, sources)
    clip_set = next(
        (
            {"name": source.clips.name, "version": source.clips.version}
            for source in sources
            if isinstance(source, SetClip)
        ),
        None,
    )
    return Wanted(
        backbones=backbones,
        policies=policies,
        targets=targets,
        clips=clips,
        seeds=seeds,
        clip_set=clip_set,
    )


def grid_of(
    wanted: Wanted, config: CompareConfig, models: Sequence[ModelInfo], registry: Registry
) -> Grid:
    """Cross what is asked for.

    Args:
        wanted: What was read.
        config: What is asked for.
        models: The models of the backbones, which say which policies "all" are.
        registry: Where policies are looked up.
    """
    return Grid(
        backbones=wanted.backbones,
        policies=choose_policies(wanted.policies, wanted.targets, models, registry),
        clips=wanted.clips,
        seeds=wanted.seeds,
        steps=config.steps,
        repeat=config.repeat,
    )


def choose_backbones(asked: Sequence[BackboneSpec], registry: Registry) -> tuple[BackboneSpec, ...]:
    """List the models that are run; ``all=random`` stands for every random model there is.

    A backbone whose library is not installed is left out of all, with a note.

    Args:
        asked: What is named.
        registry: Where backbones are looked up.

    Raises:
        ConfigError: All are asked for with a checkpoint.
    """
    chosen: list[BackboneSpec] = []
    for spec in asked:
        if spec.name != ALL:
            chosen.append(spec)
            continue
        if spec.weights != RANDOM:
            raise ConfigError(
                "a checkpoint is of one backbone",
                where="--backbones",
                remedy=f"Write {ALL}={RANDOM}.",
            )
        for name in registry.names("backbone"):
            models = registry.backbone(name)().random_models
            try:
                if models is not None:
                    texts = [f"{RANDOM}:{each}" for each in models.names]
                    if not texts:
                        models.case()  # tells whether it can be made here
                        texts = [RANDOM]
                    chosen += [BackboneSpec(name=name, model=text) for text in texts]
            except UnsupportedBackboneError as error:
                note(f"{name} is left out: {error}")
    return tuple(dict.fromkeys(chosen))


def choose_policies(
    asked: Sequence[PolicySpec],
    targets: Sequence[float],
    models: Sequence[ModelInfo],
    registry: Registry,
) -> tuple[PolicySpec, ...]:
    """List the policies that are run, the uncached run first.

    Args:
        asked: The policies; "all" stands for those that run on at least one of the models without
            a calibration.
        targets: Speed-ups that are asked of each, but for those that name a speed-up or a preset.
        models: The models.
        registry: Where policies are looked up.
    """
    named: list[PolicySpec] = []
    for spec in asked:
        if spec.name != ALL:
            named.append(spec)
            continue
        every = [name for name in registry.names("policy") if _runs_on_any(name, models, registry)]
        named += [
            PolicySpec(name=n, preset=spec.preset, target_speedup=spec.target_speedup)
            for n in every
        ]
    chosen = [PolicySpec(name=REFERENCE)]
    for spec in named:
        if spec.name == REFERENCE:
            continue
        if targets and spec.target_speedup is None and spec.preset is None:
            chosen += [spec.at(target) for target in targets]
        else:
            chosen.append(spec)
    return tuple({str(spec): spec for spec in chosen}.values())


def _runs_on_any(policy: str, models: Sequence[ModelInfo], registry: Registry) -> bool:
    kind = registry.policy(policy)
    for model in models:
        try:
            build(kind, {}, where=f"policy {policy}").compose(model)
        except ConfigError:
            continue
        return True
    return False


def _sources(config: CompareConfig, ready: ReadyGrid, registry: Registry) -> tuple[ClipSource, ...]:
    if config.video is None:
        found = find_clips(ready.clips if config.clips is None else config.clips, registry)
        return tuple(_painted(source) if ready.outpainting else source for source in found)
    video = Path(config.video)
    source = FileClip(
        video=video,
        mask=None if config.mask is None else Path(config.mask),
        prompt=config.prompt,
        reading=config.reading,
        called=video.stem,
    )
    return (_painted(source) if ready.outpainting else source,)


def _painted(source: ClipSource) -> ClipSource:
    """Turn a clip into an outpainting task; those of the built-in set are one already."""
    ready = isinstance(source, SetClip) and source.clip.startswith("outpainting")
    return source if ready else Outpainted(source=source)


def _sized(
    config: CompareConfig,
    ready: ReadyGrid,
    adapters: Mapping[str, Backbone],
    sources: Sequence[ClipSource],
) -> tuple[SizedClip, ...]:
    """Find the sizes of the clips, and read each once."""
    geometries = {name: adapter.geometry for name, adapter in adapters.items()}
    joint = join(geometries)
    check_size(
        geometries, frames=config.frames, height=config.given.height, width=config.given.width
    )
    clips = []
    for source in sources:
        base = source.size(joint, config.frames, config.given.height, config.given.width)
        sizes = {
            scaled(base, joint, frames=frames, side=side): None
            for frames in ready.frames
            for side in ready.sides
        }
        one = ready.frames == ready.sides == (1.0,)
        for size in {base: None} if one else sizes:
            shape = f"{size.frames}x{size.height}x{size.width}"
            clips.append(
                SizedClip(
                    name=source.name if one else f"{source.name} {shape}",
                    source=source,
                    size=size,
                    digest=source.read(size).digest,
                )
            )
    return tuple(clips)
