"""What a policy keeps: the count by rules is what a run really holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hetcache_core import CallRecord, RunInfo, accelerate, discover
from hetcache_core.engine.footprint import footprint
from hetcache_core.engine.run_state import RunState
from hetcache_core.session import resolve_policy
from hetcache_core.store import Kind
from hetcache_core.testing import tiny_case

REGISTRY = discover()
NAMES = [name for name in REGISTRY.names("policy") if REGISTRY.policy(name).decides_on]
STEPS = 20


KEYS = {"pattern": "Fpps", "margin": 0}
SET = [
    ({}, "hetcache+taylorseer"),
    ({}, "pab+teacache"),
    ({"partials": 1.0, "every": 4.0}, "auto"),
    ({**KEYS, "kv_dtype": "float8_e4m3fn"}, "hetcache"),
    ({**KEYS, "kv_layers": (0, 2), "control_mode": "reuse"}, "hetcache"),
    ({**KEYS, "kv_layers": (0, 2), "control_mode": "recompute"}, "hetcache"),
    ({**KEYS, "kv_stride": 3, "kv_predictor": "taylor"}, "hetcache"),
]


@pytest.mark.parametrize(
    ("settings", "name"), [*((REGISTRY.policy(name).anywhere, name) for name in NAMES), *SET]
)
def test_the_count_is_what_a_run_holds(
    settings: dict[str, object], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, runs = [0], list[RunInfo]()
    leave = RunState.leave

    def measured(state: RunState, *given: Any) -> list[CallRecord]:
        values: Any = state.store._values
        held.append(
            sum(
                entry.value.numel() * entry.value.element_size()
                for (_, slot), entries in values.items()
                for entry in entries
                if slot.kind is not Kind.SIGNAL
            )
        )
        runs.append(state.info)
        return leave(state, *given)

    monkeypatch.setattr(RunState, "leave", measured)
    case = tiny_case()
    pipeline = case.make_pipeline(0)
    with accelerate(pipeline, name, settings=settings, backbone=case.backbone):
        latents = case.run(pipeline, STEPS, "separate", 0)
    model = case.backbone.describe(pipeline)
    policy, _ = resolve_policy(name, settings, None, model, REGISTRY)
    counted = footprint(policy, runs[0], latents=latents.numel())
    assert max(held) == len(runs[0].branches) * counted.bytes(torch.float32)
    assert counted.words or counted.elements == 0
