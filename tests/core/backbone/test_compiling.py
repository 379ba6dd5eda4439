"""Compiled blocks: the same pictures and decisions, one graph for each size, nothing left behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("diffsynth")

from torch._dynamo import config
from torch._dynamo.utils import counters

from hetcache_backends.wan.case import SMALL, WanModels
from hetcache_backends.wan.wan_vace import WanVace
from hetcache_core import StoreSettings, UnsupportedBackboneError, accelerate, discover
from hetcache_core.testing import TinyBackbone, TinyPipeline

CASE = WanModels(WanVace(), SMALL).case()
STEPS = 6
DYNAMO = "eager"
"""Dynamo's own backend: graphs are made and guarded as always, and run without generated code."""


def run(
    policy: str, *, compiled: bool | str = False, layout: str = "separate", **options: Any
) -> tuple[Any, torch.Tensor]:
    pipeline = CASE.make_pipeline(0)
    with accelerate(
        pipeline, policy, backbone=CASE.backbone, compile=compiled, **options
    ) as session:
        return session, CASE.run(pipeline, STEPS, layout, 0)


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        ("hetcache", {}),
        ("hetcache", {"settings": {"context_ratio": 0.3, "selector": "attention"}}),
        ("hetcache", {"settings": {"kv_mode": "pruned", "control_mode": "recompute"}}),
        ("hetcache", {"store": StoreSettings(dtype="bfloat16")}),
        ("pab+teacache", {}),
    ],
)
def test_compiled_blocks_compute_and_decide_the_same(policy: str, options: Any) -> None:
    torch.compiler.reset()
    plain, wanted = run(policy, **options)
    compiled, got = run(policy, compiled=DYNAMO, **options)
    assert [r.mode for r in compiled.trace.records] == [r.mode for r in plain.trace.records]
    assert compiled.trace.totals().flops == plain.trace.totals().flops
    assert compiled.trace.peak_cache_bytes == plain.trace.peak_cache_bytes
    assert torch.linalg.norm(got - wanted) <= 1e-5 * torch.linalg.norm(wanted)


def test_one_graph_for_each_size_and_none_of_them_breaks() -> None:
    torch.compiler.reset()
    counters.clear()
    first, _ = run("hetcache", compiled=DYNAMO)
    modes = {record.mode.value for record in first.trace.records}
    assert {"full", "partial", "reuse"} <= modes
    variants = first._engine.compiler.variants
    ways = {way for way, _, _ in variants}
    assert ways == {"plain", "seen", "over lent keys"}
    assert not counters["graph_break"]
    # The first control block has a projection more; torch 2.6 gives it graphs of its own.
    graphs = counters["stats"]["unique_graphs"]
    assert len(variants) <= graphs <= len(variants) + len(ways)
    run("hetcache", compiled=DYNAMO)
    assert counters["stats"]["unique_graphs"] == graphs


@pytest.mark.parametrize("name", ["wan-vace-diffusers", "ltx-video"])
def test_diffusers_blocks_that_nothing_looks_into_are_compiled(name: str) -> None:
    pytest.importorskip("diffusers")
    torch.compiler.reset()
    counters.clear()
    models = discover().backbone(name)().random_models
    assert models is not None
    case = models.case()
    layout = "none"
    results = []
    for compiled in (False, DYNAMO):
        pipeline = case.make_pipeline(0)
        with accelerate(pipeline, "teacache", backbone=case.backbone, compile=compiled) as session:
            results.append(case.run(pipeline, STEPS, layout, 0))
    assert torch.linalg.norm(results[1] - results[0]) <= 1e-5 * torch.linalg.norm(results[0])
    variants = session._engine.compiler.variants  # type: ignore[union-attr]
    assert {way for way, _, _ in variants} == {"plain"}
    # The first control block of Wan-VACE also projects its input, in a graph of its own.
    # Torch 2.6 cannot tell that diffusers' blocks are alike and breaks at a look at its own version.
    if torch.__version__ >= (2, 13):
        assert counters["stats"]["unique_graphs"] - len(variants) == int(name.startswith("wan"))
        assert not counters["graph_break"]


def test_generated_code_agrees_too() -> None:
    torch.compiler.reset()
    _, wanted = run("hetcache")
    _, got = run("hetcache", compiled=True)
    assert torch.linalg.norm(got - wanted) <= 1e-4 * torch.linalg.norm(wanted)


def test_what_listens_to_a_block_still_hears_it() -> None:
    pipeline = CASE.make_pipeline(0)
    heard: list[int] = []
    CASE.main_blocks(pipeline)[1].register_forward_hook(lambda *_: heard.append(1))
    with accelerate(pipeline, "none", backbone=CASE.backbone, compile=DYNAMO):
        CASE.run(pipeline, 3, "none", 0)
    assert len(heard) == 3


def test_settings_of_torch_come_back() -> None:
    name = (
        "recompile_limit" if "recompile_limit" in config.get_config_copy() else "cache_size_limit"
    )
    before = getattr(config, name)
    pipeline = CASE.make_pipeline(0)
    with accelerate(pipeline, "none", backbone=CASE.backbone, compile=DYNAMO):
        assert getattr(config, name) > before
    assert getattr(config, name) == before


def test_a_backbone_that_cannot_says_so() -> None:
    with pytest.raises(UnsupportedBackboneError, match=r"torch\.compile"):
        accelerate(TinyPipeline(), "auto", backbone=TinyBackbone(), compile=True)


def test_what_cannot_be_compiled_is_one_error_and_the_pipeline_is_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch._inductor import config as inductor

    torch.compiler.reset()
    monkeypatch.setattr(inductor.cpp, "cxx", ("/no/such/compiler",))
    pipeline = CASE.make_pipeline(0)
    bare = CASE.run(pipeline, 2, "none", 0)
    session = accelerate(pipeline, "none", backbone=CASE.backbone, compile=True)
    with session, pytest.raises(UnsupportedBackboneError, match=r"C\+\+ compiler"):
        CASE.run(pipeline, 2, "none", 0)
    assert torch.equal(CASE.run(pipeline, 2, "none", 0), bare)
