"""Every preset computes the share of FLOPs that it declares, on the embedded backbone."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import pytest

pytest.importorskip("diffsynth")

import numpy as np
from attrs import evolve

from hetcache_core import EditRequest, LoadRequest, Trace, accelerate
from hetcache_core.plugins.discovery import discover

REGISTRY: Final = discover()
BACKBONE: Final = REGISTRY.backbone("tiny-vace")()
BUILT_IN: Final = tuple(
    name
    for name in REGISTRY.names("policy")
    if REGISTRY.policy(name).__module__.startswith("hetcache_policies.")
)
PRESETS: Final = ("quality", "balanced", "fast")
DECLARING: Final = tuple(name for name in BUILT_IN if REGISTRY.policy(name).preset_shares)
TOLERANCE: Final = 0.05

SMALL: Final = (64, 96)
WIDE: Final = (160, 240)
"""For policies whose steps run some of the tokens: a margin of two tokens must fit beside the mask."""


@cache
def pipeline() -> Any:
    return BACKBONE.load(LoadRequest())


def request(size: tuple[int, int], steps: int, guidance: float) -> EditRequest:
    """A clip of 5 frames, of whose tokens the mask covers 13 % (wide) or 17 % (small)."""
    height, width = size
    sample = BACKBONE.sample()
    assert sample is not None
    mask = np.zeros((5, height, width), bool)
    if size == WIDE:
        mask[:, 48:112, 80:160] = True
    else:
        mask[:, 16:48, 32:64] = True
    video = sample.video[:5, :height, :width].copy()
    return evolve(sample, video=video, mask=mask, steps=steps, guidance_scale=guidance)


def run(policy: str, preset: str, steps: int, **settings: object) -> Trace:
    size = WIDE if policy == "hetcache" else SMALL
    guidance = 5.0 if policy == "fastercache-cfg" else 1.0
    session = accelerate(
        pipeline(),
        policy,
        settings={**REGISTRY.policy(policy).anywhere, **settings},
        preset=preset,
        backbone=BACKBONE,
        registry=REGISTRY,
    )
    with session:
        BACKBONE.edit(pipeline(), request(size, steps, guidance))
    return session.trace


def test_every_built_in_policy_with_presets_declares_their_shares() -> None:
    model = BACKBONE.describe(pipeline())
    for name in DECLARING:
        kind = REGISTRY.policy(name)
        assert set(kind.preset_shares) == set(PRESETS)
        assert all(kind.preset(preset, model) for preset in PRESETS)
        shares = [kind.preset_shares[preset] for preset in PRESETS]
        assert shares == sorted(shares, reverse=True)
    assert set(BUILT_IN) - set(DECLARING) == {"none", "replay"}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("policy", DECLARING)
def test_a_preset_computes_its_share(policy: str, preset: str) -> None:
    declared = REGISTRY.policy(policy).preset_shares[preset]
    for steps in (20, 50):
        trace = run(policy, preset, steps)
        assert 1 / trace.totals().flops_speedup == pytest.approx(declared, abs=TOLERANCE)


def test_a_preset_asks_for_its_share_unless_one_of_its_settings_is_replaced() -> None:
    asked = run("teacache", "fast", 8).target_speedup
    assert asked == pytest.approx(1 / REGISTRY.policy("teacache").preset_shares["fast"])
    assert run("teacache", "fast", 8, longest_reuse=0.5).target_speedup == asked
    replaced = run("teacache", "fast", 8, threshold=0.0)
    assert replaced.target_speedup is None
    assert replaced.totals().steps_full == 8
