"""Groups of options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, final

import attrs
from attrs import evolve, frozen

from hetcache.running.options import written
from hetcache.running.specs import BackboneSpec, PolicySpec, parse_backbones, parse_policies
from hetcache_core import ConfigError, setting

if TYPE_CHECKING:
    from hetcache.running.limits import CacheConfig, LimitsConfig
    from hetcache.running.run import PolicyChoice
    from hetcache_core import Backbone, LoadRequest, Registry

__all__ = ["JsonConfig", "ModelConfig", "PictureConfig", "PolicyConfig", "Preset", "WorkersConfig"]

Preset = Literal["quality", "balanced", "fast", "paper", "code"]
"""``PRESETS`` and ``VARIANTS``."""

MOST_STEPS: Final = 10_000
MOST_FRAMES: Final = 1 << 20
LONGEST_SIDE: Final = 1 << 13
"""Far more than any model takes, and small enough that no size computed from them is out of range."""

WORKERS: Final = re.compile(r"(?P<ray>ray)(:(?P<of_ray>[1-9]\d*))?|(?P<here>[1-9]\d*)")


@final
@frozen(kw_only=True)
class JsonConfig:
    """How a command answers."""

    json: bool = setting(default=False, doc="print JSON, and nothing else, on stdout")


@final
@frozen(kw_only=True)
class WorkersConfig:
    """Who works: processes of this machine, or a Ray cluster."""

    workers: str | None = setting(
        None,
        doc="how many work side by side: N processes of this machine; or ray, or ray:N, on a Ray cluster",
        metadata=written(metavar="N|ray|ray:N", unset="one for each CUDA device, else 1"),
    )
    ray_address: str | None = setting(
        None,
        doc="a Ray cluster that is there",
        metadata=written(unset="one is started on this machine"),
    )

    def __attrs_post_init__(self) -> None:
        """Make sure that both go together."""
        if self.workers is not None and WORKERS.fullmatch(self.workers) is None:
            raise ConfigError(
                f"workers must be a whole number, ray or ray:N, got {self.workers!r}",
                setting="workers",
                given=self.workers,
            )
        if self.ray_address is not None and not self.on_ray:
            raise ConfigError("--ray-address goes with --workers ray", setting="ray_address")

    @property
    def on_ray(self) -> bool:
        """Whether the workers are on a Ray cluster."""
        return self.workers is not None and self.workers.startswith("ray")

    @property
    def count(self) -> int | None:
        """How many workers there are, or None for as many as there are devices."""
        found = WORKERS.fullmatch(self.workers or "")
        count = (found["of_ray"] or found["here"]) if found else None
        return None if count is None else int(count)


@final
@frozen(kw_only=True)
class ModelConfig:
    """Which model runs."""

    backbone: str = setting(
        "tiny-vace",
        doc="the model: NAME, or NAME=random for a small random model of its classes; `hetcache "
        "backbones` lists them",
    )
    model: str | None = setting(
        None,
        doc="folder, hub id or single file of a checkpoint",
        metadata=written(metavar="PATH|ID", unset="the backbone's own"),
    )
    variant: str | None = setting(
        None,
        doc="which weights of the checkpoint, such as fp16",
        metadata=written(unset="those without a name"),
    )
    around: str | None = setting(
        None,
        doc="folder or hub id of what a single file lacks: VAE, text encoder, scheduler",
        metadata=written(metavar="PATH|ID", unset="the backbone's published checkpoint"),
    )

    @property
    def spec(self) -> BackboneSpec:
        """The backbone and its model.

        Raises:
            ConfigError: It cannot be read, names several, or names its model twice.
        """
        spec, *others = parse_backbones(self.backbone, option="--backbone")
        given = {name: getattr(self, name) for name in ("model", "variant", "around")}
        given = {name: value for name, value in given.items() if value is not None}
        twice = next((name for name in given if getattr(spec, name)), None)
        if others or twice:
            both = f"{self.backbone!r} names the {twice}, and so does --{twice} {given.get(twice or '')}"
            several = f"{self.backbone!r} names {1 + len(others)} backbones, and a run has one"
            raise ConfigError(several if others else both, where="--backbone")
        return evolve(spec, **given)

    def find(self, registry: Registry) -> Backbone:
        """Look up the backbone.

        Args:
            registry: Where it is looked up.

        Raises:
            HetCacheError: There is no such backbone, or it does not know the checkpoint.
        """
        spec = self.spec
        return registry.backbone(spec.name)().for_model(spec.model or None)

    def request(self, device: str, dtype: str) -> LoadRequest:
        """Say how the model is loaded."""
        return self.spec.request(device, dtype)


@final
@frozen(kw_only=True)
class PolicyConfig:
    """Which policy runs, and how it is set."""

    policy: str = setting(
        "auto",
        doc="the caching policy, or several joined by +, also as NAME@fast, NAME@3x or "
        "NAME:setting=value;setting=value; `hetcache policies` lists them",
    )
    preset: Preset | None = setting(
        None, doc="settings of the policy, and the share of FLOPs to compute"
    )
    settings: Mapping[str, object] = attrs.field(
        factory=dict,
        metadata={"doc": "a setting of the policy, on top of the preset", **written("--set")},
    )

    def choose(self, limits: LimitsConfig, cache: CacheConfig, steps: int) -> PolicyChoice:
        """Put the policy, its settings and what holds whatever it says together.

        Args:
            limits: What the run may spend.
            cache: How the cache is kept.
            steps: Steps of the run.

        Raises:
            ConfigError: The policy's text cannot be read, names several policies, or repeats another
                option; or a limit does not go with the run.
        """
        from hetcache.running.limits import guards, store_settings
        from hetcache.running.run import PolicyChoice

        spec = self._spec()
        for name, value in (("preset", self.preset), ("target_speedup", limits.target_speedup)):
            if None not in {getattr(spec, name), value}:
                option = "--" + name.replace("_", "-")
                raise ConfigError(f"{self.policy!r} goes with no {option}", where="--policy")
        asked = limits.target_speedup if spec.target_speedup is None else spec.target_speedup
        return PolicyChoice(
            name=spec.name,
            settings={**spec.settings, **self.settings},
            preset=spec.preset or self.preset,
            target_speedup=asked,
            target_quality=limits.target_quality,
            guards=guards(limits, steps),
            store=store_settings(cache),
        )

    def _spec(self) -> PolicySpec:
        if not {":", "@"} & {*self.policy}:
            return PolicySpec(name=self.policy)
        spec, *others = parse_policies(self.policy, option="--policy")
        if others:
            raise ConfigError(
                f"{self.policy!r} names {1 + len(others)} policies, and a run has one",
                where="--policy",
                remedy="Join policies that go together by +; hetcache compare runs several.",
            )
        return spec


@final
@frozen(kw_only=True)
class PictureConfig:
    """What the model is given: size, guidance, and its library's own arguments."""

    height: int | None = setting(
        None,
        ge=1,
        le=LONGEST_SIDE,
        doc="height that the model works at",
        metadata=written(unset="what fits the video"),
    )
    width: int | None = setting(
        None,
        ge=1,
        le=LONGEST_SIDE,
        doc="width that the model works at",
        metadata=written(unset="what fits the video"),
    )
    cfg_scale: float | None = setting(
        None,
        ge=0,
        doc="strength of the guidance; 1 goes without",
        metadata=written(unset="the model's own"),
    )
    options: Mapping[str, Any] = attrs.field(
        factory=dict,
        metadata={"doc": "an argument of the model library's own call", **written("--option")},
    )
