"""Other people's caches, as their documentation turns them on, and the policy of ours to set beside each."""

from __future__ import annotations

import ast
import contextlib
import io
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from attrs import Factory, frozen
from peer_subjects import DESCRIBED, Subject, library

WINDOW: Final = (0.15, 0.85)
"""Fractions of the steps between which attention is broadcast: the default of our ``pab``."""

SELF_RANGE: Final = 2
CROSS_RANGE: Final = 6
"""Source: PAB's settings for models with cross-attention, see ``hetcache_policies.pab``."""

INTERVAL: Final = 3
MAG_LONGEST: Final = 4
WARM_UP: Final = 2

Opened = AbstractContextManager[dict[str, Any]]
DIFFUSERS: Final = ("wan-vace-diffusers", "ltx-video")


@frozen(kw_only=True)
class Peer:
    """One cache of somebody else's.

    Attributes:
        name: as its library calls it.
        library: distribution that it is in.
        backbones: where it can be turned on.
        open: turns it on for the length of a ``with`` block, at a threshold, and returns further
            arguments for the pipeline's call.
        thresholds: between which one is searched that computes about half of the main blocks; None
            where there is none to set.
        settings: the others, for the table.
        policy: of the same kind among ours, or None where there is nothing to compare.
        ours: that policy's settings.
    """

    name: str
    library: str
    backbones: tuple[str, ...]
    open: Callable[[Subject, float], Opened]
    thresholds: tuple[float, float] | None = None
    settings: str = ""
    policy: str | None = None
    ours: Callable[[Subject], Mapping[str, object]] = Factory(lambda: lambda _: {})

    def missing(self) -> str | None:
        """Say why it cannot be run here, or None."""
        try:
            version(self.library)
        except PackageNotFoundError:
            return f"{self.library} is not installed: pip install {self.library}"
        return None

    def by(self) -> str:
        """Library and version."""
        return f"{self.library} {version(self.library)}"


@contextmanager
def diffusers_cache(subject: Subject, config: Any) -> Iterator[dict[str, Any]]:
    """Turn a cache of diffusers' on."""
    model = subject.pipeline.transformer
    model.enable_cache(config)
    try:
        yield {}
    finally:
        model.disable_cache()


def _first_block(subject: Subject, threshold: float) -> Opened:

    return diffusers_cache(subject, library().FirstBlockCacheConfig(threshold=threshold))


def _pab(subject: Subject, _: float) -> Opened:

    # Its window is one of timesteps: those of the steps at ours.
    timesteps = [float(t) for t in subject.pipeline.scheduler.timesteps]
    low, high = (share * (len(timesteps) - 1) for share in WINDOW)
    window = (timesteps[math.ceil(high)], timesteps[math.floor(low)])
    return diffusers_cache(
        subject,
        library().PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=SELF_RANGE,
            cross_attention_block_skip_range=CROSS_RANGE,
            spatial_attention_timestep_skip_range=window,
            cross_attention_timestep_skip_range=window,
            current_timestep_callback=lambda: subject.pipeline.current_timestep,
        ),
    )


def _taylorseer(*, lite: bool) -> Callable[[Subject, float], Opened]:
    def turn_on(subject: Subject, _: float) -> Opened:

        return diffusers_cache(
            subject, library().TaylorSeerCacheConfig(cache_interval=INTERVAL, use_lite_mode=lite)
        )

    return turn_on


@cache
def magnitude_ratios(subject: Subject) -> tuple[float, ...]:
    """Let diffusers calibrate MagCache: the ratios that it prints, of the first branch called."""
    said = io.StringIO()
    config = library().MagCacheConfig(calibrate=True, num_inference_steps=subject.steps)
    with diffusers_cache(subject, config), contextlib.redirect_stdout(said):
        subject.run()
    printed = [line for line in said.getvalue().splitlines() if line.startswith("[1.0")]
    return tuple(ast.literal_eval(printed[0]))


def _magcache(subject: Subject, threshold: float) -> Opened:

    return diffusers_cache(
        subject,
        library().MagCacheConfig(
            threshold=threshold,
            max_skip_steps=MAG_LONGEST,
            num_inference_steps=subject.steps,
            mag_ratios=list(magnitude_ratios(subject)),
        ),
    )


def _dbcache(*, taylor: bool) -> Callable[[Subject, float], Opened]:
    def turn_on(subject: Subject, threshold: float) -> Opened:
        return cache_dit_cache(subject, threshold, taylor=taylor)

    return turn_on


PATTERNS: Final = {
    "CogVideoXTransformer3DModel": 0,
    "MochiTransformer3DModel": 0,
    "QwenImageTransformer2DModel": 1,
    "PixArtTransformer2DModel": 3,
}
"""cache-dit's names of what blocks take and return, as its own adapters of these classes have it; else 2."""


@contextmanager
def cache_dit_cache(
    subject: Subject, threshold: float, *, taylor: bool = False, back: int = 0
) -> Iterator[dict[str, Any]]:
    """Turn cache-dit's DBCache on, and put back what it leaves behind.

    Args:
        subject: whose pipeline is cached.
        threshold: of the first block's residual.
        taylor: whether the middle is predicted by a line instead of held.
        back: blocks that every step runs last.
    """
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")  # it is read at the import
    import cache_dit  # type: ignore[import-untyped]  # it ships no annotations

    pipeline, model = subject.pipeline, subject.pipeline.transformer
    adapter = cache_dit.BlockAdapterRegister.get_adapter(pipeline)
    if adapter is None:  # it goes by the name of the class, and knows none of ours
        pattern = PATTERNS.get(type(model).__name__, 2)
        blocks = next(n for n in ("blocks", "transformer_blocks") if hasattr(model, n))
        adapter = cache_dit.BlockAdapter(
            pipe=pipeline,
            transformer=model,
            blocks=getattr(model, blocks),
            forward_pattern=getattr(cache_dit.ForwardPattern, f"Pattern_{pattern}"),
            check_forward_pattern=False,
            has_separate_cfg=type(model).__name__ in DESCRIBED.values(),
        )
    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1,
        Bn_compute_blocks=back,
        max_warmup_steps=WARM_UP,
        residual_diff_threshold=threshold,
    )
    line = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=1) if taylor else None
    cache_dit.enable_cache(adapter, cache_config=config, calibrator_config=line)
    try:
        yield {}
    finally:
        cache_dit.disable_cache(pipeline)
        subject.left = subject.attributes() - subject.bare
        for module in (model, *subject.main):
            vars(module).pop("forward", None)
            vars(module).pop("_is_patched", None)


@contextmanager
def _diffsynth_teacache(_: Subject, threshold: float) -> Iterator[dict[str, Any]]:
    yield {"tea_cache_l1_thresh": threshold, "tea_cache_model_id": "Wan2.1-T2V-1.3B"}


def _our_ratios(subject: Subject) -> dict[str, object]:
    return {"values": magnitude_ratios(subject), "longest_reuse": MAG_LONGEST}


def _our_dbcache(predictor: str) -> Callable[[Subject], Mapping[str, object]]:
    def settings(_subject: Subject) -> dict[str, object]:
        # The peer computes no last step of its own accord; what is set holds under a target.
        return {"front": 1, "first_steps": WARM_UP, "last_steps": 0, "predictor": predictor}

    return settings


PEERS: Final = (
    Peer(
        name="TeaCache",
        library="diffsynth",
        backbones=("wan-vace",),
        open=_diffsynth_teacache,
        thresholds=(1e-4, 1.0),
        settings="Wan2.1-T2V-1.3B",
        policy="teacache",
    ),
    Peer(
        name="FirstBlockCache",
        library="diffusers",
        backbones=DIFFUSERS,
        open=_first_block,
        thresholds=(1e-4, 1.0),
        policy="fbcache",
    ),
    Peer(
        name="MagCache",
        library="diffusers",
        backbones=DIFFUSERS,
        open=_magcache,
        thresholds=(1e-4, 4.0),
        settings=f"at most {MAG_LONGEST} skipped, calibrated",
        policy="magcache",
        ours=_our_ratios,
    ),
    Peer(
        name="TaylorSeer",
        library="diffusers",
        backbones=DIFFUSERS,
        open=_taylorseer(lite=False),
        settings=f"interval {INTERVAL}",
    ),
    Peer(
        name="TaylorSeer lite",
        library="diffusers",
        backbones=DIFFUSERS,
        open=_taylorseer(lite=True),
        settings=f"interval {INTERVAL}",
        policy="taylorseer",
        ours=lambda _: {"interval": INTERVAL},
    ),
    Peer(
        name="PAB",
        library="diffusers",
        backbones=DIFFUSERS,
        open=_pab,
        settings=f"self {SELF_RANGE}, cross {CROSS_RANGE}",
        policy="pab",
        ours=lambda _: {
            "self_attention": SELF_RANGE,
            "cross_attention": CROSS_RANGE,
            "window": WINDOW,
        },
    ),
    Peer(
        name="DBCache",
        library="cache-dit",
        backbones=(*DIFFUSERS, *DESCRIBED),
        open=_dbcache(taylor=False),
        thresholds=(1e-4, 1.0),
        settings=f"F1 B0, warm-up {WARM_UP}",
        policy="dbcache",
        ours=_our_dbcache("hold"),
    ),
    Peer(
        name="DBCache TaylorSeer",
        library="cache-dit",
        backbones=(*DIFFUSERS, *DESCRIBED),
        open=_dbcache(taylor=True),
        thresholds=(1e-4, 1.0),
        settings=f"F1 B0, warm-up {WARM_UP}, order 1",
        policy="dbcache",
        ours=_our_dbcache("taylor"),
    ),
)
"""In the order of the table."""
