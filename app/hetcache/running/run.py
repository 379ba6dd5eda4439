"""Running a backbone with a policy, and measuring it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

from attrs import evolve, field, frozen

from hetcache.running.specs import RANDOM, REFERENCE, random_name
from hetcache_core import ConfigError, ContractError, LoadRequest, accelerate
from hetcache_core.errors import nearest_name
from hetcache_core.session import StepCallback, with_quality
from hetcache_core.settings.declare import build

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hetcache_core import (
        Backbone,
        CachePolicy,
        EditRequest,
        Guards,
        RandomModels,
        Registry,
        StoreSettings,
        Trace,
    )

__all__ = ["PolicyChoice", "RunResult", "Runner", "check_policy", "load", "random_models"]


@frozen(kw_only=True)
class PolicyChoice:
    """A policy as it is asked for.

    Attributes:
        name: Its name, or several joined by "+".
        settings: Its settings by name.
        preset: The preset that the settings go on top of.
        target_speedup: How many times fewer FLOPs are asked for, or None.
        target_quality: The quality that is asked for, in decibels, or None.
        guards: Steps that run in full in any case, or None.
        store: How the cache is kept, or None for the model's own way.
        watch: What runs instead of the named policy, to look on, or None.
    """

    name: str
    settings: Mapping[str, object] = field(factory=dict)
    preset: str | None = None
    target_speedup: float | None = None
    target_quality: float | None = None
    guards: Guards | None = None
    store: StoreSettings | None = None
    watch: CachePolicy | None = None


@frozen(eq=False, kw_only=True)
class RunResult:
    """What came out of one run.

    Attributes:
        frames: (F, h, w, 3) uint8, as the model made them.
        trace: What was decided and computed.
        total_seconds: Duration of the whole call, from the frames to the frames.
    """

    frames: NDArray[np.uint8] = field(repr=False)
    trace: Trace
    total_seconds: float


@frozen(eq=False, kw_only=True)
class Runner:
    """A loaded pipeline.

    Attributes:
        backbone: Its adapter.
        pipeline: The library's own pipeline.
        registry: Where policies are looked up.
        load_seconds: How long loading took.
        compiles: Whether the model's blocks are run with ``torch.compile``.
    """

    backbone: Backbone
    pipeline: Any
    registry: Registry
    load_seconds: float
    compiles: bool = False

    def run(
        self, request: EditRequest, policy: PolicyChoice, on_step: StepCallback | None = None
    ) -> RunResult:
        """Run one edit; what the library prints goes to stderr.

        Args:
            request: The edit.
            policy: The policy that it runs with.
            on_step: Called after every step.

        Raises:
            HetCacheError: The policy or the request does not go with the backbone.
        """
        import torch

        session = accelerate(
            self.pipeline,
            policy.watch or policy.name,
            settings=policy.settings,
            preset=policy.preset,
            target_speedup=policy.target_speedup,
            target_quality=policy.target_quality,
            guards=policy.guards,
            store=policy.store,
            compile=self.compiles,
            backbone=self.backbone,
            registry=self.registry,
            on_step=on_step,
        )
        begun = time.perf_counter()
        try:
            with redirect_stdout(sys.stderr), session:
                frames = self.backbone.edit(self.pipeline, request)
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                "the memory of the device is too small for this edit",
                remedy="Take fewer --frames, or a smaller --height and --width.",
            ) from error
        total_seconds = time.perf_counter() - begun
        if frames.shape != request.video.shape:
            raise ContractError(
                f"{request.video.shape} frames became {frames.shape}",
                subject=f"backbone {self.backbone.name}",
            )
        return RunResult(frames=frames, trace=session.trace, total_seconds=total_seconds)

    def warm_up(self, request: EditRequest, policy: PolicyChoice | None = None) -> None:
        """Run a single step that is not measured, so that the first run pays for no first call.

        Where blocks are compiled, the policy is run once as well: which graphs it needs shows only
        then.

        Args:
            request: The edit.
            policy: The policy that is measured, or None.
        """
        self.run(evolve(request, steps=1), PolicyChoice(name=REFERENCE))
        if self.compiles and policy is not None:
            self.run(request, policy)


def check_policy(policy: PolicyChoice, registry: Registry) -> None:
    """Find mistakes in a policy's name and settings before a model is loaded.

    What depends on the model, such as presets, is checked when the run begins.

    Args:
        policy: The policy.
        registry: Where it is looked up.

    Raises:
        HetCacheError: There is no such policy, or it has no such setting.
    """
    names = [name.strip() for name in policy.name.split("+")]
    kinds = [registry.policy(name) for name in names]
    settings = policy.settings
    if policy.target_quality is not None:
        settings = with_quality(
            policy.name, settings, policy.target_quality, registry, policy.target_speedup
        )
    if len(kinds) == 1 and policy.preset is None:
        build(kinds[0], settings, where=f"policy {names[0]}", pieces=registry)


def random_models(backbone: Backbone, name: str, *, where: str) -> RandomModels:
    """Return what makes a backbone's random models.

    Args:
        backbone: The adapter.
        name: Which model, "" for the usual one.
        where: The option, for messages.

    Raises:
        UnsupportedBackboneError: Its library is missing.
        ConfigError: It has none, or none of this name.
    """
    models = backbone.random_models
    if models is None:
        raise ConfigError(
            f"the backbone {backbone.name} has no random model",
            where=where,
            remedy=f"Name a checkpoint: {backbone.name}=FOLDER_OR_HUB_ID.",
        )
    if name and name not in models.names:
        known = ", ".join(f"{RANDOM}:{each}" for each in models.names)
        raise ConfigError(
            f"the backbone {backbone.name} has no random model {name!r}",
            where=where,
            given=name,
            allowed=models.names,
            nearest=nearest_name(name, models.names),
            remedy=f"There are {known}." if known else f"Write {backbone.name}={RANDOM}.",
        )
    return models


def load(
    backbone: Backbone, request: LoadRequest, registry: Registry, *, compiles: bool = False
) -> Runner:
    """Load a backbone's pipeline; what the library prints goes to stderr.

    Args:
        backbone: The adapter.
        request: Checkpoint or ``RANDOM``, device and precision.
        registry: Where policies are looked up.
        compiles: Whether the model's blocks are to be run with ``torch.compile``.

    Raises:
        UnsupportedBackboneError: A library or a file is missing.
        ConfigError: A random model is asked for, and the backbone has none.
    """
    begun = time.perf_counter()
    name = random_name(request.model)
    with redirect_stdout(sys.stderr):
        if name is not None:
            request.refuse("variant", "around", why="a random model is made, not loaded")
            models = random_models(backbone, name, where="--backbone")
            pipeline = models.pipeline(evolve(request, model=name or None))
        else:
            pipeline = backbone.load(request)
    return Runner(
        backbone=backbone,
        pipeline=pipeline,
        registry=registry,
        load_seconds=time.perf_counter() - begun,
        compiles=compiles,
    )
