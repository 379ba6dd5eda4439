"""Which context tokens come first, for every selector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hetcache_core.engine.active_rows import attention_scores
from hetcache_core.tokens import ContextSelector, Grid, Partition, Role, Selection, SelectionRequest
from hetcache_policies.shared.kmeans import Clusters, cluster, project
from hetcache_policies.shared.selectors import (
    AttentionSelector,
    ClusterSelector,
    GuidedClusterSelector,
    RandomSelector,
    UniformSelector,
    order_by_quota,
)

GRID = Grid(frames=5, height=8, width=8, pixel_height=16, pixel_width=16, frame_stride=4)
SELECTORS: list[ContextSelector] = [
    UniformSelector(),
    RandomSelector(),
    AttentionSelector(),
    GuidedClusterSelector(clusters=6),
    ClusterSelector(clusters=6),
    GuidedClusterSelector(clusters=6, backend="sklearn"),
]


def partition_of(grid: Grid = GRID) -> Partition:
    roles = torch.full((grid.tokens,), Role.CONTEXT, dtype=torch.uint8)
    roles[::7] = Role.GENERATIVE
    return Partition(roles, grid)


def refuse() -> Tensor:
    raise AssertionError("the selector did not say that it asks for this")


def request(
    selector: ContextSelector, count: int, seed: int = 0, previous: Selection | None = None
) -> SelectionRequest:
    partition = partition_of()
    total = partition.count(Role.CONTEXT)
    generator = torch.Generator().manual_seed(5)
    scores = torch.rand(total, generator=generator)
    features = torch.randn(total, 96, generator=generator)
    return SelectionRequest(
        partition=partition,
        count=count,
        scores=lambda: scores if selector.needs_scores else refuse(),
        features=lambda: features if selector.needs_features else refuse(),
        seed=seed,
        previous=previous,
    )


def name(selector: ContextSelector) -> str:
    return str(selector)


@pytest.mark.parametrize("selector", SELECTORS, ids=name)
def test_every_context_token_is_ordered_once_and_the_same_way_again(
    selector: ContextSelector,
) -> None:
    if "sklearn" in name(selector):
        pytest.importorskip("sklearn")
    asked = request(selector, 40)
    order = selector.select(asked).order
    assert torch.equal(order.sort().values, torch.arange(asked.partition.count(Role.CONTEXT)))
    assert torch.equal(order, selector.select(asked).order)


class NoWait(TorchDispatchMode):
    """Refuses what brings values to the host, and so waits for the device."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "bincount")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        assert not any(name in str(func) for name in self.WAITS), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("selector", SELECTORS[:-1], ids=name)
def test_a_selection_does_not_wait_for_the_device(selector: ContextSelector) -> None:
    asked = request(selector, 40)
    with NoWait():
        first = selector.select(asked)
        selector.select(evolve(asked, previous=first))


def test_uniform_takes_the_same_share_of_every_frame() -> None:
    asked = request(UniformSelector(), 50)
    context = asked.partition.of(Role.CONTEXT)
    chosen = context[UniformSelector().select(asked).order[:50]]
    per_frame = torch.bincount(chosen // 64, minlength=GRID.frames)
    assert per_frame.tolist() == [10] * 5


def test_random_depends_on_the_seed_alone() -> None:
    selector = RandomSelector()
    state = torch.get_rng_state()
    first = selector.select(request(selector, 40, seed=1)).order
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, selector.select(request(selector, 40, seed=2)).order)


def test_attention_takes_the_highest_scores() -> None:
    asked = request(AttentionSelector(), 40)
    chosen = asked.scores()[AttentionSelector().select(asked).order]
    assert (chosen[:-1] >= chosen[1:]).all()


def test_both_takes_the_most_attended_tokens_of_every_cluster() -> None:
    selector = GuidedClusterSelector(clusters=6)
    asked = request(selector, 60)
    chosen = selector.select(asked).order[:60]
    groups = cluster(project(asked.features(), 0), 6, seed=0)
    for label in range(6):
        members = (groups.labels == label).nonzero().flatten()
        kept = members[torch.isin(members, chosen)]
        assert kept.numel() == pytest.approx(60 * members.numel() / asked.scores().numel(), abs=1.5)
        left = members[~torch.isin(members, chosen)]
        assert asked.scores()[kept].min() > asked.scores()[left].max()


def test_the_next_selection_starts_from_the_last_ones_means() -> None:
    selector = GuidedClusterSelector(clusters=6)
    first = selector.select(request(selector, 60))
    assert first.centroids is not None
    assert first.centroids.shape == (6, 64)
    again = selector.select(request(selector, 60, previous=first))
    points = project(request(selector, 60).features(), 0)
    expected = cluster(points, 6, seed=0, start=first.centroids)
    assert torch.equal(again.centroids, expected.centroids)


def groups_of(sizes: list[int]) -> Clusters:
    labels = torch.cat([torch.full((size,), k) for k, size in enumerate(sizes)])
    return Clusters(labels, torch.zeros(len(sizes), 2), torch.tensor(0.0))


def test_quotas_by_hand() -> None:
    """Half of 4 + 2 + 2 points: the two best of the first cluster, the best of the others."""
    scores = torch.tensor([0.9, 0.1, 0.8, 0.7, 0.2, 0.3, 0.5, 0.6])
    order = order_by_quota(groups_of([4, 2, 2]), scores, 4)
    assert order.tolist() == [0, 2, 7, 5, 3, 6, 4, 1]


def test_a_quota_that_comes_to_too_many_loses_the_worst() -> None:
    """One of each of four clusters is more than three."""
    scores = torch.tensor([0.4, 0.9, 0.1, 0.8])
    order = order_by_quota(groups_of([1, 1, 1, 1]), scores, 3)
    assert order[:3].tolist() == [1, 3, 0]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(lambda s: sum(s) > 1),
    st.floats(0, 1),
    st.integers(0, 10**6),
)
def test_quotas_hold_for_any_sizes(sizes: list[int], share: float, seed: int) -> None:
    total = sum(sizes)
    count = max(1, min(total - 1, round(share * total)))
    scores = torch.rand(total, generator=torch.Generator().manual_seed(seed))
    groups = groups_of(sizes)
    order = order_by_quota(groups, scores, count)
    assert torch.equal(order.sort().values, torch.arange(total))
    wanted = [min(size, max(1, round(size * count / total))) for size in sizes if size]
    kept = torch.bincount(groups.labels[order[:count]], minlength=len(sizes)).tolist()
    kept = [k for k, size in zip(kept, sizes, strict=True) if size]
    # Quotas are met, but for what was trimmed or filled to come to the count.
    if sum(wanted) >= count:
        assert all(k <= w for k, w in zip(kept, wanted, strict=True))
    else:
        assert all(k >= w for k, w in zip(kept, wanted, strict=True))


def test_attention_scores_tell_tokens_apart() -> None:
    """A softmax over the queries' own group gives each context token the same score; this must not."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 20, 32, generator=generator)
    k = torch.randn(1, 100, 32, generator=generator)
    scores = attention_scores(q, k, heads=4)
    assert float(scores.sum()) == pytest.approx(1, abs=1e-5)
    assert float(scores.std() / scores.mean()) > 0.1
    wanted = torch.randn(32, generator=generator)
    k[0, 17] = 3 * wanted
    assert int(attention_scores(q + wanted, k, heads=4).argmax()) == 17


@pytest.mark.parametrize("make", [lambda: torch.rand(30), lambda: torch.zeros(30)])
def test_equal_scores_still_give_a_permutation(make: Callable[[], Tensor]) -> None:
    order = order_by_quota(groups_of([10, 15, 5]), make(), 12)
    assert torch.equal(order.sort().values, torch.arange(30))
