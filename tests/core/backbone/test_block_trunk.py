"""The ready trunk for blocks that run whole: rows, attention, signals, costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, scaled_dot_product_attention

from hetcache_core import (
    BlockTrunk,
    BranchRows,
    ContractError,
    DitFlops,
    Stack,
    SubLayer,
    UnsupportedBackboneError,
    in_fp32,
    matrix_macs,
)

BATCH, PREFIX, TOKENS, WIDTH, HEADS = 2, 3, 11, 8, 2


class Block(nn.Module):
    """A block with one attention over all tokens, after one over nothing that matters."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        x = torch.cat([x[:, :PREFIX], x[:, PREFIX:] + shift], dim=1)
        q, k, v = self.qkv(x).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        scaled_dot_product_attention(q[..., :1, :], k[..., :1, :], v[..., :1, :])
        attended = scaled_dot_product_attention(q, k, v)  # (B, heads, n, d)
        return x + self.out(attended.transpose(1, 2).flatten(2))


class Hooks:
    """Keeps what it sees of the attention."""

    def __init__(self, parts: frozenset[SubLayer] = frozenset()) -> None:
        self.parts, self.attends = parts, True
        self.seen: list[tuple[Tensor, ...]] = []

    def sub_layer(self, part: SubLayer, compute: Any) -> Tensor:
        raise AssertionError("not asked for")

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attend: Any) -> Tensor:
        self.seen.append((q, k, v))
        return attend(q, k, v)


def run_block(block: Any, x: Tensor, follow: tuple[Tensor, ...]) -> Tensor:
    return block(x, *follow)


@pytest.fixture
def trunk() -> BlockTrunk:
    torch.manual_seed(0)
    x = torch.randn(BATCH, TOKENS, WIDTH)
    return BlockTrunk(
        x=x,
        blocks=[Block(), Block()],
        heads=HEADS,
        run_block=run_block,
        embed=lambda times: times[:, None].expand(-1, WIDTH) / 1000,
        project=lambda embedded: embedded.repeat(1, 6),
        modulate=lambda x, rows: layer_norm(x, (WIDTH,)) * (1 + rows[1]) + rows[0],
        flops=DitFlops(batch=BATCH, width=WIDTH, around=10, row={}),
        follow=(torch.randn(TOKENS - PREFIX, WIDTH),),
        prefix=PREFIX,
        attention=1,
    )


def test_what_follows_the_rows_is_gathered_with_them(trunk: BlockTrunk) -> None:
    rows = torch.tensor([0, 1, 2, 4, 9])
    view = trunk.view(rows)
    assert torch.equal(view.x, trunk.x[:, rows])
    assert torch.equal(view.follow[0], trunk.follow[0][[1, 6]])
    assert trunk.view(None) is trunk
    assert view.block(0, view.x, None, None).shape == (BATCH, 5, WIDTH)


def test_hooks_see_the_attention_that_was_named_and_change_no_bit(trunk: BlockTrunk) -> None:
    hooks = Hooks()
    plain = trunk.block(1, trunk.x, None, None)
    assert torch.equal(trunk.block(1, trunk.x, None, hooks), plain)
    (seen,) = hooks.seen
    assert [tuple(t.shape) for t in seen] == [(BATCH, TOKENS, WIDTH)] * 3
    assert torch.equal(trunk.block(1, trunk.x, None, None), plain)
    assert len(hooks.seen) == 1


def test_attention_that_is_done_otherwise_is_refused(trunk: BlockTrunk) -> None:
    trunk.attention = 2
    with pytest.raises(UnsupportedBackboneError, match="a Block does without torch's"):
        trunk.block(0, trunk.x, None, Hooks())


def test_sub_layers_and_control_are_none_of_its_business(trunk: BlockTrunk) -> None:
    with pytest.raises(ContractError, match="sub_layers=False"):
        trunk.block(0, trunk.x, None, Hooks(frozenset({SubLayer.FEED_FORWARD})))
    with pytest.raises(ContractError, match="no control branch"):
        trunk.control(0, None)
    assert trunk.control_layers == ()
    assert trunk.flops.control_extra(0, rows=3) == 0


def test_signals_come_from_unrounded_timesteps(trunk: BlockTrunk) -> None:
    modulations = trunk.timestep_modulations([999.5, 999.0])
    assert modulations.shape == (2, 6 * WIDTH)
    assert float(modulations[0, 0]) == pytest.approx(0.9995)
    expected = layer_norm(trunk.x, (WIDTH,)) * 1.999 + 0.999
    torch.testing.assert_close(trunk.modulated_input(modulations[1]), expected)


def test_costs_are_counted_by_hand() -> None:
    x = torch.empty(BATCH, TOKENS, WIDTH)
    once, on_tokens = nn.Linear(4, 6), nn.Linear(8, 8)
    flops = DitFlops.of(x, around=7, self_attention=(on_tokens, once))
    assert flops.outside() == 2 * BATCH * 7
    attention = flops.sub_layer(Stack.MAIN, SubLayer.SELF_ATTENTION, rows=5, keys=11)
    assert attention == 2 * BATCH * (5 * 64 + 24 + 2 * 5 * 11 * WIDTH)
    assert flops.sub_layer(Stack.MAIN, SubLayer.CROSS_ATTENTION, rows=5, keys=11) == 0
    assert matrix_macs(nn.Conv2d(3, 5, 2), nn.LayerNorm(9)) == 3 * 5 * 4


def test_a_module_runs_in_fp32_and_stays_as_it_was() -> None:
    layer = nn.Linear(4, 4).bfloat16()
    weight, x = layer.weight, torch.randn(3, 4)
    expected = nn.functional.linear(x, layer.weight.float(), layer.bias.float())
    assert torch.equal(in_fp32(layer, x), expected)
    assert layer.weight is weight
    assert weight.dtype is torch.bfloat16


def test_a_batch_is_split_into_branches_and_the_conditional_one_decides() -> None:
    split = BranchRows.split(4, "uncond", "cond")
    assert split == (BranchRows("cond", 2, 4), BranchRows("uncond", 0, 2))
    with pytest.raises(UnsupportedBackboneError, match="the branches uncond, cond in equal parts"):
        BranchRows.split(5, "uncond", "cond")
