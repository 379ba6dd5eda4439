"""Keys and values between partial steps: what is kept of them and what active tokens attend over."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from hetcache_core import (
    ConfigError,
    KeySettings,
    KVMode,
    Mode,
    PartialSettings,
    Trace,
    accelerate,
    discover,
)
from hetcache_core.engine.block_pass import full_flops, partial_flops
from hetcache_core.engine.kept_keys import KeptKeys
from hetcache_core.steps import BlockKey, Stack
from hetcache_core.store import CacheStore, StoreSettings
from hetcache_core.testing import BackboneCase
from hetcache_policies.shared.predictors import Linear

REGISTRY = discover()
STEPS = 9
BLOCK = BlockKey(Stack.MAIN, 1)
ROWS = torch.tensor([1, 4])
TOKENS, WIDTH = 7, 3


def kept(
    settings: KeySettings, store: CacheStore, *, step: int, rows: Tensor | None = None
) -> KeptKeys:
    """The keys of one call of a model with four blocks, control hints into the first and third."""
    trunk: Any = SimpleNamespace(layers=4, control_layers=(0, 2), x=torch.zeros(2, TOKENS, WIDTH))
    return KeptKeys(
        settings=settings, trunk=trunk, store=store, branch="cond", step=step, rows=rows
    )


def numbers(seed: int, tokens: int = TOKENS) -> Tensor:
    return torch.randn(2, tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


def completed(settings: KeySettings, *full: tuple[int, Tensor], at: int) -> tuple[Tensor, Tensor]:
    """Keep the keys of full steps, and return those that active rows of a later step attend over."""
    store = CacheStore(StoreSettings())
    for step, value in full:
        kept(settings, store, step=step).put(BLOCK, value, -value)
    fresh = numbers(99, len(ROWS))
    k, v = kept(settings, store, step=at, rows=ROWS).complete(BLOCK, fresh, -fresh)
    assert torch.equal(k[:, ROWS], fresh)
    assert torch.equal(v, -k)
    return k, fresh


def test_those_of_inactive_tokens_are_the_last_computed_ones() -> None:
    first, second = numbers(1), numbers(2)
    k, fresh = completed(KeySettings(), (0, first), (1, second), at=2)
    assert torch.equal(k, second.index_copy(1, ROWS, fresh))


def test_a_token_stands_in_for_those_after_it() -> None:
    value = numbers(1)
    k, fresh = completed(KeySettings(stride=3), (0, value), at=1)
    assert torch.equal(k, value[:, [0, 0, 0, 3, 3, 3, 6]].index_copy(1, ROWS, fresh))


def test_a_line_goes_through_the_last_two_computed_ones() -> None:
    first, second = numbers(1), numbers(2)
    k, fresh = completed(KeySettings(predictor=Linear()), (0, first), (2, second), at=3)
    line = (second + (second - first) / 2).index_copy(1, ROWS, fresh)
    torch.testing.assert_close(k, line)


@pytest.mark.parametrize(("dtype", "error"), [("bfloat16", 2**-8), ("float8_e4m3fn", 2**-4)])
def test_fewer_bits_round_what_is_kept_and_not_what_is_fresh(dtype: str, error: float) -> None:
    value = numbers(1)
    k, fresh = completed(KeySettings(dtype=dtype), (0, value), at=1)
    wanted = value.index_copy(1, ROWS, fresh)
    assert not torch.equal(k, wanted)
    torch.testing.assert_close(k, wanted, rtol=error, atol=2**-9)
    store = CacheStore(StoreSettings())
    kept(KeySettings(dtype=dtype), store, step=0).put(BLOCK, value, value)
    assert store.bytes == 2 * value.numel() * getattr(torch, dtype).itemsize


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float16"])
def test_what_a_dtype_cannot_hold_is_its_largest_number(dtype: str) -> None:
    most = torch.finfo(getattr(torch, dtype)).max
    value = numbers(1)
    value[:, 2] = 2 * most
    value[:, 3] = -1e30
    k, _ = completed(KeySettings(dtype=dtype), (0, value), at=1)
    assert torch.equal(k[:, 2], torch.full_like(k[:, 2], most))
    assert torch.equal(k[:, 3], torch.full_like(k[:, 3], -most))


def test_a_control_block_goes_with_the_block_that_takes_its_hint() -> None:
    keys = kept(KeySettings(layers=(-2,)), CacheStore(StoreSettings()), step=0)
    has = {key for stack in Stack for key in _keys(stack) if keys.has(key)}
    assert has == {BlockKey(Stack.MAIN, 2), BlockKey(Stack.CONTROL, 1)}


def _keys(stack: Stack) -> list[BlockKey]:
    return [BlockKey(stack, index) for index in range(4 if stack is Stack.MAIN else 2)]


@pytest.mark.parametrize("dtype", ["int8", "eight bits", "", "float4_e2m1fn_x2", "float8_e8m0fnu"])
def test_what_is_no_floating_dtype_is_refused(dtype: str) -> None:
    with pytest.raises(ConfigError, match="none of float64"):
        KeySettings(dtype=dtype)


def test_a_stride_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        KeySettings(stride=0)


Edit = Callable[..., tuple[Tensor, Trace]]


@pytest.fixture(scope="module")
def edited(case_of: Callable[[str], BackboneCase]) -> Edit:
    """What runs an edit of a backbone with partial steps; each is run once."""

    @cache
    def run(backbone: str, **settings: object) -> tuple[Tensor, Trace]:
        case = case_of(backbone)
        if not case.backbone.features.attention:
            pytest.skip(f"{backbone} shows no attention")
        pipeline = case.make_pipeline(0)
        plain = {
            "pattern": "Fpp",
            "first_steps": 1,
            "margin": 0,
            "max_active_share": 0.99,
            **settings,
        }
        with accelerate(pipeline, "hetcache", settings=plain, backbone=case.backbone) as session:
            return case.run(pipeline, STEPS, case.layouts[-1], 0), session.trace

    return run


@pytest.mark.parametrize("backbone", REGISTRY.names("backbone"))
def test_keys_of_no_layer_are_pruned_keys(backbone: str, edited: Edit) -> None:
    none, trace = edited(backbone, kv_layers=())
    pruned, reference = edited(backbone, kv_mode="pruned", context_ratio=0.0)
    assert torch.equal(none, pruned)
    assert [r.flops for r in trace.records] == [r.flops for r in reference.records]
    assert trace.peak_cache_bytes == reference.peak_cache_bytes
    assert not torch.equal(none, edited(backbone)[0])


@pytest.mark.parametrize("backbone", REGISTRY.names("backbone"))
def test_keys_of_every_layer_by_name_are_all_keys(
    backbone: str, edited: Edit, case_of: Callable[[str], BackboneCase]
) -> None:
    case = case_of(backbone)
    layers = tuple(range(-case.backbone.describe(case.make_pipeline(0)).layers, 0))
    assert torch.equal(edited(backbone, kv_layers=layers)[0], edited(backbone)[0])


@pytest.mark.parametrize("backbone", REGISTRY.names("backbone"))
@pytest.mark.parametrize(
    "settings",
    [
        {"kv_layers": (0,)},
        {"kv_stride": 2},
        {"kv_dtype": "bfloat16"},
        {"kv_dtype": "float8_e4m3fn"},
        {"kv_predictor": "linear"},
        {"kv_predictor": "taylor"},
    ],
    ids=str,
)
def test_every_backbone_keeps_keys_in_every_way(
    backbone: str, settings: dict[str, object], edited: Edit
) -> None:
    found, trace = edited(backbone, **settings)
    plain, reference = edited(backbone)
    assert any(record.mode is Mode.PARTIAL for record in trace.records)
    assert [r.mode for r in trace.records] == [r.mode for r in reference.records]
    distance = float((found - plain).norm() / plain.norm())
    assert 0 < distance < 0.2
    fewer = trace.peak_cache_bytes < reference.peak_cache_bytes
    assert fewer == ("kv_predictor" not in settings)


@pytest.mark.parametrize("layers", [(), (0,), (0, 2), None])
@pytest.mark.parametrize("control", ["reuse", "recompute"])
def test_flops_are_counted_ahead_as_they_are_run(
    layers: tuple[int, ...] | None,
    control: str,
    case_of: Callable[[str], BackboneCase],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saved: list[int] = []

    def counted(trunk: Any, rows: int, partial: PartialSettings, _: Any) -> int:
        flops = partial_flops(trunk, rows, partial)
        saved.append(full_flops(trunk) - flops)
        return flops

    monkeypatch.setattr("hetcache_core.engine.loop.partial_flops", counted)
    case = case_of("tiny-vace")
    pipeline = case.make_pipeline(0)
    settings = {"kv_layers": layers, "control_mode": control, "margin": 0, "max_active_share": 0.99}
    with accelerate(
        pipeline, "hetcache", settings=settings, backbone=case.backbone, target_speedup=1.5
    ) as session:
        case.run(pipeline, STEPS, "separate", 0)
    flops = {
        mode: {r.flops for r in session.trace.records if r.mode is mode}
        for mode in (Mode.FULL, Mode.PARTIAL)
    }
    assert max(flops[Mode.FULL]) - saved[0] in flops[Mode.PARTIAL]
    assert len(flops[Mode.PARTIAL]) == 1


def test_ways_to_keep_keys_do_not_go_with_pruned_ones() -> None:
    from hetcache_policies.hetcache import HetCache

    with pytest.raises(ConfigError, match="kv_stride says how keys are kept") as caught:
        HetCache(kv_mode=KVMode.PRUNED, kv_stride=2)
    assert "kv_mode=cached" in caught.value.remedy


def test_a_layer_that_the_model_has_not_is_refused(edited: Edit) -> None:
    with pytest.raises(ConfigError, match="kv_layers names block 40"):
        edited("tiny-vace", kv_layers=(40,))
