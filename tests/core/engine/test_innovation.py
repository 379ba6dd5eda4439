"""What is measured after guidance, which samplers are known, and what a run says of it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from hetcache_core.backbone.routing import _sampler
from hetcache_core.session import accelerate
from hetcache_core.steps import Mode
from hetcache_core.testing import decide, tiny_video
from hetcache_core.testing.tiny.backbone import TinyBackbone
from hetcache_core.testing.tiny.pipeline import TinyPipeline, TinyScheduler
from hetcache_policies.auto import Auto
from hetcache_policies.every_nth import EveryNth


def schedulers() -> list[tuple[Any, bool]]:
    diffusers = pytest.importorskip("diffusers")
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    return [
        (diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0), True),
        (diffusers.UniPCMultistepScheduler(**flow), False),
        (diffusers.DPMSolverMultistepScheduler(**flow), False),
        (diffusers.FlowMatchHeunDiscreteScheduler(), False),
        (TinyScheduler(), True),
    ]


def test_samplers_are_known_by_what_they_do() -> None:
    for scheduler, euler in schedulers():
        scheduler.set_timesteps(20)
        sigmas = [float(sigma) for sigma in scheduler.sigmas[:20]]
        found = _sampler(scheduler, 0, sigmas)
        assert found == ("euler" if euler else type(scheduler).__name__)


def innovations(guidance: float, **options: Any) -> list[float]:
    pipeline, clip = TinyPipeline(seed=0), tiny_video()
    with accelerate(pipeline, "auto", backbone=TinyBackbone()) as run:
        pipeline(*clip, prompt="a duck", steps=20, guidance_scale=guidance, **options)
    return [d.innovation for d in run.trace.decisions if d.innovation is not None]


def test_what_is_measured_is_the_guided_output() -> None:
    """With more guidance the same errors count for more, however the branches come."""
    apart = innovations(6.0)
    assert apart == pytest.approx(innovations(6.0, merge_guidance=True), rel=1e-3)
    assert apart == pytest.approx(innovations(6.0, uncond_first=True), rel=1e-3)
    assert apart[0] > 1.3 * innovations(1.5)[0]


def test_an_unknown_sampler_is_told_and_nothing_is_paid_back() -> None:
    trace = decide(Auto(every=4.0), steps=12, outputs=float)
    assert any("Nothing is paid back" in note for note in trace.notes)
    assert not any("paid back" in note for note in decide(EveryNth(), steps=12).notes)


def test_outputs_on_no_line_are_said_not_to_be_helped_by_lines() -> None:
    """The trunk adds what grows, and the output does not care."""
    trace = decide(Auto(every=4.0), steps=20, added=float)
    gains = [d.gain for d in trace.decisions if d.gain is not None]
    after = sum((a.done, b.done) == (Mode.REUSE, Mode.FULL) for a, b in pairwise(trace.decisions))
    assert len(gains) == after > 2
    assert gains == [0.5] * after  # no difference between line and value: what was taken stays
