"""Every described class as a small random model: nothing that a session does can be told from outside."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")

import diffusers
import torch
from attrs import evolve
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hetcache_backends.diffusers.adapter import DiffusersModels, described_models
from hetcache_backends.diffusers.described import DiffusersModelSet
from hetcache_backends.diffusers.samples.loop import SampleLoop
from hetcache_backends.diffusers.samples.sample import samples
from hetcache_backends.diffusers.table import mask_table, model_table
from hetcache_core import Mode, UnsupportedBackboneError, accelerate
from hetcache_core.testing import BackboneCase
from hetcache_core.testing.comparing import Snapshot
from hetcache_core.testing.scripted import FULL_STEPS, scripted
from hetcache_core.testing.watch import watched_run

SAMPLES = samples()
STEPS = 2
FLOP_TOLERANCE = 0.01


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


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in SAMPLES if hasattr(diffusers, name)])
def test_a_described_class_is_carried(name: str) -> None:
    sample = SAMPLES[name]
    pipeline: Any = SampleLoop.of(sample, 0)
    description = described_models()[name]
    lists = [getattr(pipeline.transformer, each.name) for each in description.lists]
    every = [block for blocks in lists for block in blocks]
    # As where FLOPs are counted.
    with sdpa_kernel(SDPBackend.MATH) if sample.counts else nullcontext():
        expected = pipeline(STEPS).outputs
    before = Snapshot.of(pipeline)
    runs: list[int] = []
    adapter = DiffusersModels(description)
    outputs: list[Tensor] = []

    def run(made: Any, steps: int, sigmas: list[float] | None) -> Tensor:
        outputs[:] = made(steps, sigmas=sigmas).outputs
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


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("CogView4Transformer2DModel", "teacache"),  # embeds sizes behind the timestep
        (
            "FluxTransformer2DModel",
            "fastercache-cfg",
        ),  # returns the picture's tokens without the text's
    ],
)
def test_a_policy_reads_what_a_class_has(name: str, policy: str) -> None:
    pipeline: Any = SampleLoop.of(SAMPLES[name], 0)
    with accelerate(pipeline, policy) as run:
        pipeline(6)
    totals = run.trace.totals()
    assert 0 < totals.flops < totals.flops_full


def test_masked_texts_refuse_partial_steps() -> None:
    pipeline: Any = SampleLoop.of(SAMPLES["QwenImageTransformer2DModel"], 0, patch=2)
    own = pipeline.sample
    masked = torch.ones(1, 7, dtype=torch.long)
    pipeline.sample = evolve(
        own, arguments=lambda r: {**own.arguments(r), "encoder_hidden_states_mask": masked}
    )
    mask = torch.zeros(64, 64)
    mask[:16] = 1
    with (
        pytest.raises(UnsupportedBackboneError, match="different lengths"),
        accelerate(pipeline, "hetcache"),
    ):
        pipeline(8, mask=mask)


def test_every_described_class_has_a_sample_and_a_row_in_the_docs() -> None:
    builtin = DiffusersModelSet().models()
    assert sorted(SAMPLES) == sorted(model.transformer for model in builtin)
    page = Path(__file__).parents[2] / "docs/backbones.md"
    parts = page.read_text(encoding="utf-8").split("hetcache_backends.diffusers.table -->\n")[1:]
    tables = [part.split("<!-- end -->")[0] for part in parts]
    assert tables == [model_table(builtin), mask_table(builtin)]
