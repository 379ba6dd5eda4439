"""Which context tokens stay active in a partial step: evenly spread, random, by clusters, by attention.

Source: HetCache (CVPR 2026), section 3, and its ablation, for "kmeans", "attention" and "both". Its code
normalizes attention over the queries' own group, which gives every token the same score; here scores are
shares of all attention (``SelectionRequest.scores``), and clusters get places in proportion to their size.
Everything stays on the tensors' device and nothing waits for it.
"""

from __future__ import annotations

from typing import ClassVar, Final, final

import torch
from attrs import frozen
from torch import Tensor

from hetcache_core import ContextSelector, Role, Selection, SelectionRequest, setting, spread
from hetcache_policies.shared.kmeans import Clusters, KMeansBackend, cluster, project

__all__ = [
    "AttentionSelector",
    "ClusterSelector",
    "GuidedClusterSelector",
    "RandomSelector",
    "UniformSelector",
    "order_by_quota",
]

CLUSTERS: Final = 16
"""Source: HetCache, K."""


@final
@frozen
class UniformSelector(ContextSelector):
    """Evenly spread over the video, so that every frame has its share."""

    name: ClassVar[str] = "uniform"
    summary: ClassVar[str] = "evenly spread over the video"

    def select(self, request: SelectionRequest) -> Selection:
        """Put tokens at equal distances first, then the rest, both in their order in the video."""
        positions = torch.arange(
            request.partition.count(Role.CONTEXT), device=request.partition.roles.device
        )
        later = torch.ones_like(positions)
        later.index_fill_(0, spread(positions, request.count), 0)
        return Selection(later.argsort(stable=True))


@final
@frozen
class RandomSelector(ContextSelector):
    """At random."""

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "at random"

    def select(self, request: SelectionRequest) -> Selection:
        """Shuffle, the same way on every device."""
        generator = torch.Generator().manual_seed(request.seed)
        order = torch.randperm(request.partition.count(Role.CONTEXT), generator=generator)
        return Selection(order.to(request.partition.roles.device))


@final
@frozen
class AttentionSelector(ContextSelector):
    """Those that generative tokens attend to most."""

    name: ClassVar[str] = "attention"
    summary: ClassVar[str] = "those that the edited tokens attend to most"

    @property
    def needs_scores(self) -> bool:
        """Yes."""
        return True

    def select(self, request: SelectionRequest) -> Selection:
        """Order by score."""
        return Selection(request.scores().argsort(descending=True, stable=True))


@final
@frozen(kw_only=True)
class ClusterSelector(ContextSelector):
    """The same share of every cluster of hidden states: its most typical tokens."""

    name: ClassVar[str] = "kmeans"
    summary: ClassVar[str] = "the same share of every cluster, its most typical tokens first"

    clusters: int = setting(CLUSTERS, ge=1, doc="clusters of context tokens")
    backend: KMeansBackend = setting("torch", doc="who clusters")

    @property
    def needs_features(self) -> bool:
        """Yes."""
        return True

    def select(self, request: SelectionRequest) -> Selection:
        """Cluster, and order within quotas by the distance to the cluster's mean."""
        points, groups = _clustered(request, self.clusters, self.backend)
        means = groups.centroids.index_select(0, groups.labels)
        scores = -(points - means).square().sum(1)  # (|C|,)
        return Selection(order_by_quota(groups, scores, request.count), groups.centroids)


@final
@frozen(kw_only=True)
class GuidedClusterSelector(ContextSelector):
    """The same share of every cluster of hidden states: its most attended tokens."""

    name: ClassVar[str] = "both"
    summary: ClassVar[str] = "the same share of every cluster, its most attended tokens first"

    clusters: int = setting(CLUSTERS, ge=1, doc="clusters of context tokens")
    backend: KMeansBackend = setting("torch", doc="who clusters")

    @property
    def needs_scores(self) -> bool:
        """Yes."""
        return True

    @property
    def needs_features(self) -> bool:
        """Yes."""
        return True

    def select(self, request: SelectionRequest) -> Selection:
        """Cluster, and order within quotas by attention."""
        _, groups = _clustered(request, self.clusters, self.backend)
        order = order_by_quota(groups, request.scores(), request.count)
        return Selection(order, groups.centroids)


def _clustered(
    request: SelectionRequest, clusters: int, backend: KMeansBackend
) -> tuple[Tensor, Clusters]:
    """Cluster projected hidden states, from the last selection's means if there are any."""
    points = project(request.features(), request.seed)
    start = request.previous.centroids if request.previous is not None else None
    return points, cluster(points, clusters, seed=request.seed, start=start, backend=backend)


def order_by_quota(groups: Clusters, scores: Tensor, count: int) -> Tensor:
    """Order points so that the first ``count`` hold the same share of every cluster.

    Of cluster k with ``n_k`` points, the best ``max(1, round(n_k * count / n))`` come first. Where these
    are more than ``count``, the worst of all clusters fall out; where they are fewer, the best of the
    rest follow.

    Args:
        groups: clusters of the points.
        scores: (n,) greater is better.
        count: how many will be kept.

    Returns:
        (n,) permutation, best first.
    """
    labels, total = groups.labels, scores.numel()
    best = scores.argsort(descending=True, stable=True)  # (n,)
    by_cluster = best[labels[best].argsort(stable=True)]  # (n,) clusters in turn, best first
    sizes = torch.zeros_like(groups.centroids[:, 0], dtype=torch.int64)
    sizes.index_add_(0, labels, torch.ones_like(labels))  # (K,)
    starts = sizes.cumsum(0) - sizes  # (K,)
    rank = torch.empty_like(labels)
    rank[by_cluster] = torch.arange(total, device=labels.device) - starts[labels[by_cluster]]
    quota = (sizes * (count / total)).round().clamp_min(1)  # (K,)
    over = rank >= quota[labels]  # (n,)
    return best[over[best].to(torch.uint8).argsort(stable=True)]
