"""What people do with pipelines, on the libraries' own classes with small random weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from attrs import evolve

pytest.importorskip("diffusers")
pytest.importorskip("diffsynth")

from hetcache_backends.diffusers.ltx_video import LtxVideo
from hetcache_backends.diffusers.wan_vace import WanVaceDiffusers
from hetcache_backends.tiny_vace.backbone import TinyVace
from hetcache_backends.wan.wan_vace import WanVace
from hetcache_core import (
    Backbone,
    EditRequest,
    LoadRequest,
    Mode,
    NonFiniteError,
    Session,
    accelerate,
)

BACKBONES: list[Backbone] = [LtxVideo(), WanVaceDiffusers(), WanVace(), TinyVace()]

backbones = pytest.mark.parametrize("backbone", BACKBONES, ids=lambda b: b.name)


def request(backbone: Backbone, **changes: Any) -> EditRequest:
    """A small masked edit of a length and size that every backbone takes."""
    video = np.random.default_rng(0).integers(0, 256, (9, 64, 96, 3), np.uint8)
    mask = np.zeros(video.shape[:3], np.bool_)
    mask[:, 16:40, 20:44] = True
    return EditRequest(
        **{"video": video, "mask": mask, "steps": 4, "prompt": "a red circle", **changes}
    )


def session(backbone: Backbone, policy: str, **options: Any) -> Session:
    pipeline = backbone.stand_in(LoadRequest())
    return accelerate(pipeline, policy, backbone=backbone, **options)


@backbones
@pytest.mark.parametrize("policy", ["none", "teacache"])
def test_a_run_that_ends_in_nan_is_an_error(backbone: Backbone, policy: str) -> None:
    run = session(backbone, policy)
    asked = request(backbone, guidance_scale=1e39)
    with pytest.raises(NonFiniteError, match="from step 0 of 4 on"), run:
        backbone.edit(run.pipeline, asked)


PARTIAL = ("hetcache", "auto", "toca")
"""Policies that compute chosen tokens: in partial steps, or in single sub-layers."""


@backbones
@pytest.mark.parametrize("policy", PARTIAL)
@pytest.mark.parametrize("settings", [{}, {"target_speedup": 2.0}], ids=["", "target"])
def test_a_window_with_nothing_to_edit_is_carried(
    backbone: Backbone, policy: str, settings: dict[str, Any]
) -> None:
    asked = request(backbone)
    with session(backbone, policy, **settings) as run:
        backbone.edit(run.pipeline, evolve(asked, mask=asked.mask & False, steps=8))
    assert Mode.PARTIAL not in run.trace.modes()
    said = [note for note in run.trace.notes if note.startswith("The mask touches no token")]
    assert len(said) == bool(run.policy.partial)
