"""Every described class as a small random model: nothing that a session does can be told from outside."""

from __future__ import annotations

import importlib.util
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hetcache_backends.diffusers.adapter import DiffusersModels, described_models
from hetcache_backends.diffusers.described import DiffusersModelSet
from hetcache_backends.diffusers.table import mask_table, model_table
from hetcache_core import Mode
from hetcache_core.testing import BackboneCase
from hetcache_core.testing.comparing import Snapshot
from hetcache_core.testing.scripted import FULL_STEPS, scripted
from hetcache_core.testing.watch import watched_run

_FILE = Path(__file__).with_name("described_samples.py")
_SPEC = importlib.util.spec_from_file_location("described_samples", _FILE)
assert _SPEC is not None
assert _SPEC.loader is not None
samples = importlib.util.module_from_spec(_SPEC)
sys.modules["described_samples"] = samples
_SPEC.loader.exec_module(samples)

STEPS = 2
FLOP_TOLERANCE = 0.01


PIPELINE: Any = DiffusionPipeline


class Loop(PIPELINE):  # type: ignore[misc]
    """Calls a transformer for two branches in each step, as most pipelines do."""

    do_classifier_free_guidance = True

    def __init__(self, transformer: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    def __call__(self, sample: Any, steps: int, sigmas: list[float] | None) -> list[Tensor]:
        """Run some steps; what the transformer returns for each call.

        Args:
            sample: what the transformer is called with.
            steps: how many.
            sigmas: noise levels, or None for the scheduler's own.
        """
        branches = [sample.inputs(seed) for seed in (0, 1)]
        latents = branches[0][sample.latents]
        self.scheduler.set_timesteps(steps if sigmas is None else None, sigmas=sigmas)
        self.scheduler.set_begin_index(0)
        outputs = []
        for t in self.scheduler.timesteps:
            guided = []
            for given in branches:
                time = sample.at(given[sample.timestep], t)
                arguments = {**given, sample.latents: latents, sample.timestep: time}
                guided.append(_tensors(self.transformer(**arguments)))
            outputs += [torch.cat([each.flatten() for each in made]) for made in guided]
            whole = torch.stack(latents) if isinstance(latents, list) else latents
            noise = guided[0][0]
            noise = noise if noise.shape == whole.shape else whole * 0.1
            made = self.scheduler.step(noise, t, whole, return_dict=False)[0]
            latents = list(made) if isinstance(latents, list) else made
        return outputs


def rows_follow(trunk: Any) -> None:
    """Rows in another order come out in that order: all that follows them has been gathered with them."""
    first, tokens = trunk.leading, trunk.x.shape[1]
    order = torch.randperm(tokens - first, generator=torch.Generator().manual_seed(0)) + first
    rows = torch.cat([torch.arange(first), order])
    outputs = []
    for view in (trunk.view(None), trunk.view(rows)):
        hidden = view.x
        for index in range(trunk.layers):
            hidden = view.block(index, hidden, None, None)
        outputs.append(hidden)
    torch.testing.assert_close(outputs[1], outputs[0][:, rows], rtol=1e-4, atol=1e-4)


def _tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, list | tuple):
        return [tensor for value in result for tensor in _tensors(value)]
    return _tensors(result.to_tuple()) if hasattr(result, "to_tuple") else []


def _pipeline(name: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = samples.SAMPLES[name].make().eval()
        for parameter in transformer.parameters():
            if not parameter.any():  # gates that begin at zero would hide what blocks do
                torch.nn.init.normal_(parameter, std=0.05)
        transformer.requires_grad_(False)
    scheduler: Any = FlowMatchEulerDiscreteScheduler
    return Loop(transformer, scheduler())


@torch.no_grad()
@pytest.mark.parametrize("name", samples.SAMPLES)
def test_a_described_class_is_carried(name: str) -> None:
    pipeline, sample = _pipeline(name), samples.SAMPLES[name]
    description = described_models()[name]
    lists = [getattr(pipeline.transformer, each.name) for each in description.lists]
    every = [block for blocks in lists for block in blocks]
    # As where FLOPs are counted.
    with sdpa_kernel(SDPBackend.MATH) if sample.counts else nullcontext():
        expected = pipeline(sample, STEPS, None)
    before = Snapshot.of(pipeline)
    runs: list[int] = []
    adapter = DiffusersModels(description)
    outputs: list[Tensor] = []

    def run(made: Any, steps: int, sigmas: list[float] | None) -> Tensor:
        outputs[:] = made(sample, steps, sigmas)
        return outputs[-1]

    def watched(policy: Any, steps: int, sigmas: list[float] | None) -> Any:
        runs.clear()
        case = BackboneCase(
            name=name,
            backbone=adapter,
            make_pipeline=lambda _: pipeline,
            run=lambda made, count, *_: run(made, count, sigmas),
            main_blocks=lambda _: every,
        )
        hooks = [block.register_forward_hook(lambda *_: runs.append(1)) for block in every]
        engine, _ = watched_run(
            case,
            policy,
            steps=steps,
            layout="separate",
            pipeline=pipeline,
            count_flops=sample.counts,
        )
        for hook in hooks:
            hook.remove()
        for seen, record in zip(engine.seen, engine.trace.records, strict=True):
            counted = record.flops if seen.flops is None else seen.flops
            assert abs(record.flops - counted) <= FLOP_TOLERANCE * counted, record
        return engine

    engine = watched(FULL_STEPS, STEPS, None)
    assert len(runs) == len(every) * 2 * STEPS
    assert len(outputs) == len(expected) == 2 * STEPS
    for made, own in zip(outputs, expected, strict=True):
        assert torch.equal(made, own)
    assert engine.trace.variant == description.name
    if description.tokens:
        rows_follow(engine.seen[0].trunk)
    # At one noise level the latents stay, and a reused step makes what the computed one made.
    engine = watched(scripted(Mode.FULL, Mode.REUSE, Mode.REUSE), 3, [0.5, 0.5, 0.5])
    assert len(runs) == len(every) * 2
    assert [record.mode for record in engine.trace.records[2:]] == [Mode.REUSE] * 4
    for made, own in zip(outputs[2:], [*outputs[:2]] * 2, strict=True):
        torch.testing.assert_close(made, own, rtol=1e-4, atol=1e-5)
    assert not torch.equal(outputs[-1], outputs[-2])  # each branch keeps its own
    before.require_unchanged(pipeline, "after the sessions")


def test_every_described_class_has_a_sample_and_a_row_in_the_docs() -> None:
    builtin = DiffusersModelSet().models()
    assert sorted(samples.SAMPLES) == sorted(model.transformer for model in builtin)
    page = Path(__file__).parents[2] / "docs/backbones.md"
    parts = page.read_text(encoding="utf-8").split("hetcache_backends.diffusers.table -->\n")[1:]
    tables = [part.split("<!-- end -->")[0] for part in parts]
    assert tables == [model_table(builtin), mask_table(builtin)]
