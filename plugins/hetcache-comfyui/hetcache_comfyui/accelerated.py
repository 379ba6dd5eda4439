"""What a HetCache node puts on a model: a session for the length of each sampling."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, final

from attrs import define, field, frozen
from torch import Tensor

from hetcache_comfyui.sampling import KEY
from hetcache_core import (
    Guards,
    Session,
    Trace,
    UnsupportedBackboneError,
    accelerate,
)

PLACE: Final = "outer_sample"
"""Where ComfyUI lets a sampling be wrapped as a whole."""

_log = logging.getLogger("hetcache.comfyui")


@final
@frozen
class Unsampled:
    """A patched model before anybody samples it, with what an adapter looks at of a guider."""

    model_patcher: Any

    @property
    def model_options(self) -> dict[str, Any]:
        """What nodes have put on the model."""
        options: dict[str, Any] = self.model_patcher.model_options
        return options


@final
@define(eq=False, kw_only=True)
class Accelerated:
    """Wraps every sampling of a model into a session.

    Clones of the model share it, so that what is done to the model after the node keeps it.

    Attributes:
        policy: name of the policy, names joined by "+".
        settings: the policy's settings.
        preset: of the policy, or None.
        guards: steps that are computed.
        target_speedup: as ``accelerate`` has it.
        target_quality: likewise.
        edit_mask: (F, H, W) in [0, 1], or None where the conditioning holds the mask.
        trace: of the last sampling, or None.
        refusal: why the last sampling ran without a session, or "".
    """

    policy: str
    settings: Mapping[str, object] = field(factory=dict)
    preset: str | None = None
    guards: Guards = field(factory=Guards)
    target_speedup: float | None = None
    target_quality: float | None = None
    edit_mask: Tensor | None = None
    trace: Trace | None = field(default=None, init=False)
    refusal: str = field(default="", init=False)

    def session(self, pipeline: Any) -> Session:
        """Make a session for a guider, or for a model that is not sampled yet.

        Raises:
            ConfigError: a setting is wrong.
            UnsupportedBackboneError: the model cannot carry the policy.
        """
        return accelerate(
            pipeline,
            self.policy,
            settings=self.settings,
            preset=self.preset,
            guards=self.guards,
            target_speedup=self.target_speedup,
            target_quality=self.target_quality,
            on_run=self._keep,
        )

    def __call__(self, executor: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Sample in a session; where the model cannot carry it, say so and sample as without."""
        guider = executor.class_obj  # type: ignore[attr-defined]  # ComfyUI's executors have it
        conds = getattr(guider, "conds", None)
        self.trace, self.refusal = None, ""
        had = "edit_mask" in vars(guider)
        if self.edit_mask is not None and not had:
            guider.edit_mask = self.edit_mask
        try:
            with self.session(guider):
                return executor(*args, **kwargs)
        except UnsupportedBackboneError as error:
            self.refusal = str(error)
        finally:
            if self.edit_mask is not None and not had:
                del guider.edit_mask
        _log.warning("sampled without hetcache: %s", self.refusal)
        if conds is not None:
            guider.conds = conds  # the sampling that was broken off had prepared them
        return executor(*args, **kwargs)

    def _keep(self, trace: Trace) -> None:
        self.trace = trace
        _log.info("%s", trace.summary())


def put_on(model: Any, accelerated: Accelerated) -> Any:
    """Return a clone of a patched model that samples in sessions; one that was put on before is gone."""
    clone = model.clone()
    clone.remove_wrappers_with_key(PLACE, KEY)
    clone.add_wrapper_with_key(PLACE, KEY, accelerated)
    return clone


def found_on(model: Any) -> Accelerated | None:
    """Return what a HetCache node has put on a model, or None."""
    wrappers = model.get_wrappers(PLACE, KEY)
    return wrappers[-1] if wrappers else None
