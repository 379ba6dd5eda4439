"""Whole edits of the small real classes on the pretended device, and what they ask of it."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from attrs import field, frozen

from hetcache_core import Backbone, EditRequest, LoadRequest, Trace, accelerate, discover

pytest.importorskip("diffsynth")
pytest.importorskip("diffusers")

REGISTRY = discover()
STEPS = 6
POLICIES = [name for name in REGISTRY.names("policy") if not REGISTRY.policy(name).needs_settings()]
WAN = (5, 64, 96)
SIZES = {"tiny-vace": WAN, "wan-vace": WAN, "wan-vace-diffusers": WAN, "ltx-video": (9, 96, 128)}
CASES = [
    *(("wan-vace-diffusers", policy, "float32") for policy in POLICIES),
    ("wan-vace-diffusers", "hetcache", "bfloat16"),
    ("wan-vace-diffusers", "teacache", "float16"),
    ("wan-vace", "hetcache", "float16"),
    ("wan-vace", "dicache", "bfloat16"),
    ("tiny-vace", "hetcache", "bfloat16"),
    ("ltx-video", "hetcache", "bfloat16"),
    ("ltx-video", "toca", "float16"),
    ("ltx-video", "fbcache", "bfloat16"),
]
"""Every policy where there is a control branch and guidance in calls of its own, and those that look into
blocks, choose tokens or read numbers on the others, in the dtypes of a GPU."""

FIRST_STEP = 12
"""Prompts, mask, schedule, noise levels, a copy of both to try the sampler with, coordinates, roles, the
clock and a signal of the whole schedule, each once or twice."""
AFTER_THE_LAST_STEP = 5
"""The clock, kept rows, roles, sizes of residuals."""


@frozen(kw_only=True, eq=False)
class Edit:
    """What an edit came to.

    Attributes:
        frames: (F, H, W, 3) uint8.
        trace: of its run.
        asked: by step, and last what came after the steps: how often the host had to wait for the
            device because of a line of this project.
        lines: which ones, likewise.
    """

    frames: np.ndarray
    trace: Trace
    asked: list[int] = field(factory=list)
    lines: list[list[str]] = field(factory=list)


@cache
def pipeline(backbone: str, device: str, dtype: str) -> Any:
    """The pipeline that ``edit --backbone NAME --model NAME=random --device DEVICE`` runs."""
    adapter: Backbone = REGISTRY.backbone(backbone)()
    request = LoadRequest(device=device, dtype=dtype)
    if backbone == "tiny-vace":
        return adapter.load(request)
    models = adapter.random_models
    assert models is not None
    return models.pipeline(request)


def edit(
    backbone: str, policy: str, dtype: str, device: str, log: Any = None, steps: int = STEPS
) -> Edit:
    """Edit a noise clip under a box."""
    shape = SIZES[backbone]
    _, height, width = shape
    mask = np.zeros(shape, dtype=bool)
    mask[:, height // 4 : height // 2, width // 3 : 2 * width // 3] = True
    request = EditRequest(
        video=np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8),
        mask=mask,
        prompt="a red circle",
        steps=steps,
    )
    made = pipeline(backbone, device, dtype)
    settings = dict(getattr(REGISTRY.policy(policy), "anywhere", {}))
    lines: list[list[str]] = []

    def note(*_: object) -> None:
        events = log.take() if log is not None else []
        lines.append([f"{e.what}, {e.how} at {e.where}" for e in events if e.ours])

    if log is not None:
        log.take()
    with accelerate(made, policy, settings=settings, on_step=note) as session:
        frames = REGISTRY.backbone(backbone)().edit(made, request)
    note()
    return Edit(
        frames=frames, trace=session.trace, asked=[len(step) for step in lines], lines=lines
    )


@pytest.mark.parametrize(
    ("backbone", "policy", "dtype"), CASES, ids=["-".join(case) for case in CASES]
)
def test_an_edit_on_the_device_is_that_on_the_host_and_hardly_waits(
    log: Any, backbone: str, policy: str, dtype: str
) -> None:
    """A step that looks at no content never waits; one that does, once.

    The pretended device computes on the host, so nothing may differ: neither steps nor pixels.
    """
    there = edit(backbone, policy, dtype, "cuda:0", log)
    reads = [
        sum(record.host_reads for record in there.trace.records if record.step == step)
        for step in range(there.trace.steps)
    ]
    for step, (asked, read) in enumerate(zip(there.asked, reads, strict=False)):
        assert asked <= (min(read, 1) if step else FIRST_STEP), (step, there.lines[step])
    assert there.asked[-1] <= AFTER_THE_LAST_STEP, there.lines[-1]
    here = edit(backbone, policy, dtype, "cpu")
    assert there.trace.modes() == here.trace.modes()
    assert np.array_equal(there.frames, here.frames)


@pytest.mark.parametrize("backbone", ["wan-vace-diffusers", "ltx-video"])
def test_more_steps_ask_no_more_of_the_device_before_and_after_them(
    log: Any, backbone: str
) -> None:
    """ToCa keeps rows of its own in every step."""
    few = edit(backbone, "toca", "float32", "cuda:0", log, steps=6)
    many = edit(backbone, "toca", "float32", "cuda:0", log, steps=12)
    assert few.asked[0] == many.asked[0], (few.lines[0], many.lines[0])
    assert few.asked[-1] == many.asked[-1], (few.lines[-1], many.lines[-1])
