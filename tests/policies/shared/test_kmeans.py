"""K-means in torch against scikit-learn's, and what selections need of it."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hetcache_core.errors import ConfigError
from hetcache_policies.shared.kmeans import PROJECTED_WIDTH, cluster, project


def blobs(count: int, width: int, groups: int, spread: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(groups, width, generator=generator)
    labels = torch.randint(groups, (count,), generator=generator)
    return centres[labels] + spread * torch.randn(count, width, generator=generator)


def inertia(points: Tensor, labels: Tensor, centroids: Tensor) -> float:
    return float((points - centroids[labels]).square().sum())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("count", "width", "groups", "spread"),
    [
        (600, 2, 16, 0.05),  # well apart
        (2000, 64, 16, 0.5),
        (2000, 64, 40, 0.3),  # more groups than clusters
        (3000, 64, 1, 1.0),  # no groups at all
        (500, 3, 1, 1.0),
        (9000, 8, 16, 0.2),  # more than take part in seeding
    ],
)
def test_inertia_is_within_five_per_cent_of_scikit_learn(
    count: int, width: int, groups: int, spread: float, seed: int
) -> None:
    pytest.importorskip("sklearn")
    points = blobs(count, width, groups, spread, seed)
    ours = cluster(points, 16, seed=seed)
    theirs = cluster(points, 16, seed=seed, backend="sklearn")
    assert float(ours.inertia) <= 1.05 * float(theirs.inertia)
    for found in (ours, theirs):
        assert inertia(points, found.labels, found.centroids) == pytest.approx(
            float(found.inertia), rel=1e-3
        )


def test_points_far_from_the_origin_are_told_apart() -> None:
    """Squared distances of such points lose their digits in fp32, unless they are centred."""
    points = blobs(400, 4, 4, 0.01, seed=0) + 10_000
    near = cluster(points - 10_000, 4, seed=0)
    far = cluster(points, 4, seed=0)
    assert float(far.inertia) == pytest.approx(float(near.inertia), rel=0.1)


def test_the_same_seed_gives_the_same_clusters() -> None:
    points = blobs(500, 8, 6, 0.3, seed=1)
    first, second = (cluster(points, 6, seed=3) for _ in range(2))
    assert torch.equal(first.labels, second.labels)
    assert torch.equal(first.centroids, second.centroids)


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    cluster(project(torch.ones(50, 100), seed=0), 4, seed=0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("backend", ["torch", "sklearn"])
def test_a_warm_start_keeps_the_labels_of_clusters_that_moved_a_little(backend: str) -> None:
    if backend == "sklearn":
        pytest.importorskip("sklearn")
    points = blobs(500, 8, 6, 0.1, seed=2)
    first = cluster(points, 6, seed=0)
    moved = cluster(points + 0.01, 6, seed=99, start=first.centroids, backend=backend)
    assert torch.equal(first.labels, moved.labels)
    assert torch.allclose(moved.centroids, first.centroids + 0.01, atol=1e-4)


def test_a_warm_start_of_another_shape_is_not_used() -> None:
    points = blobs(300, 8, 6, 0.1, seed=2)
    cold = cluster(points, 6, seed=0)
    assert torch.equal(cold.labels, cluster(points, 6, seed=0, start=torch.zeros(5, 8)).labels)


def test_means_without_points_move_to_points() -> None:
    points = torch.tensor([[0.0, 0.0], [0.1, 0.0], [5.0, 0.0], [5.1, 0.0], [0.0, 5.0], [0.0, 5.1]])
    start = torch.tensor([[0.0, 0.0], [1e4, 1e4], [-1e4, 1e4]])
    found = cluster(points, 3, seed=0, start=start)
    assert float(found.inertia) == pytest.approx(3 * 2 * 0.05**2, rel=1e-3)


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 60),
    clusters=st.integers(1, 20),
    distinct=st.integers(1, 5),
    seed=st.integers(0, 10**6),
)
def test_any_points_are_grouped(count: int, clusters: int, distinct: int, seed: int) -> None:
    """Few, equal or fewer points than clusters: labels fit, and equal points share one."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randn(distinct, 3, generator=generator)
    which = torch.randint(distinct, (count,), generator=generator)
    found = cluster(kinds[which], clusters, seed=seed)
    assert found.centroids.shape == (min(clusters, count), 3)
    assert found.labels.shape == (count,)
    assert 0 <= int(found.labels.min()) <= int(found.labels.max()) < min(clusters, count)
    assert torch.isfinite(found.centroids).all()
    if clusters >= distinct:
        assert float(found.inertia) == pytest.approx(0, abs=1e-3 * count)


def test_a_projection_keeps_distances() -> None:
    features = blobs(200, 1536, 5, 0.5, seed=0).bfloat16()
    projected = project(features, seed=0)
    assert projected.shape == (200, PROJECTED_WIDTH)
    assert projected.dtype == torch.float32
    ratio = torch.pdist(projected) / torch.pdist(features.float())
    # A squared distance in d dimensions has a relative deviation of sqrt(2 / d), a distance half.
    assert float(ratio.mean()) == pytest.approx(1, abs=0.05)
    assert float(ratio.std()) <= 1.5 * (2 / PROJECTED_WIDTH) ** 0.5 / 2


def test_narrow_features_are_not_projected() -> None:
    features = torch.randn(10, PROJECTED_WIDTH)
    assert torch.equal(project(features, seed=0), features)


def test_scikit_learn_is_asked_for_by_name_where_it_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ConfigError, match="pip install scikit-learn") as caught:
        cluster(torch.randn(10, 2), 2, seed=0, backend="sklearn")
    assert caught.value.setting == "backend"
