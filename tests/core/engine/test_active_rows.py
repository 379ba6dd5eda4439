"""The rows of a partial step: which are active, and how many."""

from __future__ import annotations

import math

import pytest
import torch
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from hetcache_core import (
    CacheStateError,
    ContextSelector,
    ContractError,
    Grid,
    PartialSettings,
    Partition,
    Role,
    Selection,
    SelectionRequest,
    spread,
)
from hetcache_core.engine.active_rows import ActiveRows, attention_scores, pad_multiple

GRID = Grid(frames=1, height=1, width=20, pixel_height=8, pixel_width=8, frame_stride=4)


def partition(
    context: int = 12, margin: int = 4, generative: int = 3, pinned: int = 1
) -> Partition:
    """Pinned tokens first, then context and the others by turns, as a mask would scatter them."""
    video = [Role.CONTEXT] * context + [Role.MARGIN] * margin + [Role.GENERATIVE] * generative
    order = torch.randperm(len(video), generator=torch.Generator().manual_seed(0))
    roles = [Role.PINNED] * pinned + [video[i] for i in order]
    return Partition(torch.tensor([int(role) for role in roles], dtype=torch.uint8), GRID)


class Scored(ContextSelector):
    """Takes the highest scores, and remembers what it was asked."""

    needs_scores = True
    needs_features = True

    def __init__(self) -> None:
        self.asked: list[SelectionRequest] = []

    def select(self, request: SelectionRequest) -> Selection:
        self.asked.append(request)
        assert request.features().shape == (request.partition.count(Role.CONTEXT), 2)
        return Selection(request.scores().argsort(descending=True), centroids=torch.zeros(1))


@given(st.integers(0, 50), st.integers(0, 60))
def test_spread_takes_so_many_ascending_and_reaches_every_part(total: int, count: int) -> None:
    taken = spread(torch.arange(total), count).tolist()
    assert taken == sorted(set(taken))
    assert len(taken) == min(total, count)
    if 0 < count < total:
        gaps = [b - a for a, b in zip(taken, [*taken[1:], total], strict=True)]
        assert max(gaps) - min(gaps) <= 1


def test_active_rows_and_their_complement_are_all_tokens() -> None:
    parts = partition()
    active = ActiveRows(parts, PartialSettings(context_ratio=0.5, pad_to=1), Scored())
    active.after_full_step(torch.rand(20), torch.zeros(20, 2))
    rows = active.current()
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert len(rows) == active.count == 3 + 4 + 1 + 6
    for role in (Role.GENERATIVE, Role.MARGIN, Role.PINNED):
        assert {*parts.of(role).tolist()} <= {*rows.tolist()}
    others = {*range(20)} - {*rows.tolist()}
    assert others <= {*parts.of(Role.CONTEXT).tolist()}


def test_counts_say_the_role_of_every_active_row() -> None:
    active = ActiveRows(partition(), PartialSettings(margin_ratio=0.5, pad_to=1), None)
    assert active.counts == {"generative": 3, "margin": 2, "context": 0, "pinned": 1}
    assert sum(active.counts.values()) == active.count


def test_padding_takes_the_next_best_context() -> None:
    selector = Scored()
    scores = torch.zeros(20)
    context = partition().of(Role.CONTEXT)
    scores[context] = torch.arange(12.0)
    active = ActiveRows(partition(), PartialSettings(context_ratio=0.1, pad_to=4), selector)
    active.after_full_step(scores, torch.zeros(20, 2))
    # 8 fixed rows and 1 wanted context row are padded to 12.
    assert active.count == 12
    assert {*context[-4:].tolist()} <= {*active.current().tolist()}
    assert selector.asked[0].count == 4


def test_padding_never_asks_for_more_context_than_there_is() -> None:
    active = ActiveRows(partition(context=2), PartialSettings(context_ratio=0.0, pad_to=64), None)
    active.after_full_step(None, None)
    assert active.count == active.partition.tokens


def test_without_a_selector_context_is_spread_evenly() -> None:
    active = ActiveRows(partition(), PartialSettings(context_ratio=0.25, pad_to=1), None)
    active.after_full_step(None, None)
    context = active.partition.of(Role.CONTEXT)
    chosen = {*active.current().tolist()} & {*context.tolist()}
    assert chosen == {*context[[0, 4, 8]].tolist()}


@pytest.mark.parametrize(("limit", "too_many"), [(0.5, True), (0.8, False)])
def test_a_share_over_the_limit_is_too_many(limit: float, too_many: bool) -> None:
    settings = PartialSettings(context_ratio=0.5, pad_to=1, max_active_share=limit)
    active = ActiveRows(partition(), settings, None)
    assert active.share == 14 / 20
    assert active.too_many is too_many


def test_nothing_is_chosen_before_a_full_step() -> None:
    active = ActiveRows(partition(), PartialSettings(), None)
    with pytest.raises(CacheStateError, match="before any full step"):
        active.current()


def test_the_choice_is_made_again_when_it_is_stale() -> None:
    selector = Scored()
    settings = PartialSettings(context_ratio=0.5, pad_to=1, refresh_after=3)
    active = ActiveRows(partition(), settings, selector)
    needed = []
    for _ in range(7):
        needed.append((active.needs_scores, active.needs_features))
        active.after_full_step(torch.rand(20), torch.zeros(20, 2))
    assert needed == [(stale, stale) for stale in (True, False, False) * 2 + (True,)]
    assert len(selector.asked) == 3
    assert selector.asked[0].previous is None
    assert selector.asked[1].previous is not None


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_no_selector_is_asked_where_there_is_nothing_to_choose(ratio: float) -> None:
    selector = Scored()
    settings = PartialSettings(context_ratio=ratio, pad_to=1, max_active_share=1.0)
    active = ActiveRows(partition(), settings, selector)
    assert not active.needs_scores
    active.after_full_step(None, None)
    assert active.count == 8 + 12 * ratio
    assert not selector.asked


def test_a_selector_that_asks_for_what_it_did_not_announce_is_told_so() -> None:
    class Silent(Scored):
        needs_scores = False
        needs_features = False

    active = ActiveRows(partition(), PartialSettings(context_ratio=0.5, pad_to=1), Silent())
    with pytest.raises(ContractError, match="needs_features"):
        active.after_full_step(None, None)


def test_an_order_of_another_length_is_refused() -> None:
    class Short(Scored):
        def select(self, request: SelectionRequest) -> Selection:
            return Selection(torch.arange(request.count))

    active = ActiveRows(partition(), PartialSettings(context_ratio=0.5, pad_to=1), Short())
    with pytest.raises(ContractError, match="6 positions for 12 context tokens"):
        active.after_full_step(torch.rand(20), torch.zeros(20, 2))


def test_score_queries_are_generative_and_limited() -> None:
    settings = PartialSettings(score_queries=2)
    active = ActiveRows(partition(), settings, None)
    generative = active.partition.of(Role.GENERATIVE)
    assert active.score_queries().tolist() == generative[:2].tolist()
    assert (
        len(ActiveRows(partition(), evolve(settings, score_queries=9), None).score_queries()) == 3
    )


def test_scores_are_the_mean_attention_over_queries_heads_and_rows() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    scores = attention_scores(q, k, heads=2)
    split = [x.unflatten(2, (2, 4)).transpose(1, 2) for x in (q, k)]
    expected = (split[0] @ split[1].mT / math.sqrt(4)).softmax(-1).mean((0, 1, 2))
    assert scores.shape == (5,)
    # Sums of 2 * 2 * 3 softmax values, each rounded a few times.
    assert torch.allclose(scores, expected, atol=16 * torch.finfo(torch.float32).eps, rtol=0)
    assert float(scores.sum()) == pytest.approx(1, abs=1e-6)
    assert scores.std() > 0


@pytest.mark.parametrize(
    ("tokens", "multiple"), [(1, 1), (31, 1), (48, 2), (256, 16), (14040, 256), (75600, 256)]
)
def test_padding_is_a_power_of_two_that_costs_at_most_a_sixteenth(
    tokens: int, multiple: int
) -> None:
    assert pad_multiple(tokens) == multiple
    assert multiple <= max(1, tokens / 16)


@pytest.mark.parametrize("seed", [0, 7])
def test_a_selector_is_given_the_seed_of_the_settings(seed: int) -> None:
    selector = Scored()
    settings = PartialSettings(seed=seed, context_ratio=0.5, pad_to=1)
    rows = ActiveRows(partition(), settings, selector)
    rows.after_full_step(torch.rand(20), torch.rand(20, 2))
    assert [request.seed for request in selector.asked] == [seed]
