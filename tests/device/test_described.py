"""Pipelines of described models on the pretended device: they run as on the host, and hardly wait."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from hetcache_core import accelerate

_FILE = Path(__file__).parents[1] / "backends" / "test_described_pipelines.py"
_SPEC = importlib.util.spec_from_file_location("described_pipelines", _FILE)
assert _SPEC is not None
assert _SPEC.loader is not None
pipelines = importlib.util.module_from_spec(_SPEC)
sys.modules["described_pipelines"] = pipelines
_SPEC.loader.exec_module(pipelines)

STEPS = 6
FOLLOWED = [("flux", "auto"), ("distilled", "fbcache"), ("qwen", "taylorseer"), ("wan", "teacache")]
READ = [("sd3", "auto"), ("z_image", "teacache")]
"""Pipelines whose timesteps tell where the loop is, which a pretended tensor cannot: they are read."""
NEW_EXPERT = 2
"""A second expert takes over, and its schedule of signals is read."""


def moved(value: Any) -> Any:
    """The same in the device's memory."""
    if isinstance(value, list):
        return [moved(one) for one in value]
    return value.to("cuda:0") if isinstance(value, torch.Tensor) else value


def run(make: Any, policy: str, log: Any, *, there: bool) -> tuple[Any, Any, list[int]]:
    pipe, given = make()
    pipe.set_progress_bar_config(disable=True)
    if there:
        pipe.to("cuda:0")
        given = {name: moved(value) for name, value in given.items()}
    asked: list[int] = []

    def note(*_: object) -> None:
        asked.append(sum(event.ours for event in log.take()))

    with accelerate(pipe, policy, on_step=note) as session:
        log.take()
        made = pipe(
            **given,
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
            return_dict=False,
        )[0]
    made = torch.stack(list(made)) if isinstance(made, list) else made
    return made.cpu(), session.trace, asked


@pytest.mark.parametrize(("name", "policy"), [*FOLLOWED, *READ])
def test_a_described_pipeline_on_the_device_is_that_on_the_host(
    log: Any, name: str, policy: str
) -> None:
    make = getattr(pipelines, name)
    made, trace, asked = run(make, policy, log, there=True)
    expected, known, _ = run(make, policy, log, there=False)
    assert torch.equal(made, expected)
    assert trace.modes() == known.modes()
    assert trace.notes == known.notes
    if (name, policy) in READ:
        return
    experts = [record.expert for record in trace.records]
    for step in range(1, STEPS):
        records = [record for record in trace.records if record.step == step]
        before = [record for record in trace.records if record.step == step - 1]
        reads = min(1, sum(record.host_reads for record in records))
        other = len(set(experts)) > 1 and records[0].expert != before[0].expert
        assert asked[step] <= reads + NEW_EXPERT * other, step
