"""K-means on the tensors' own device, without a wait for it; scikit-learn's is the reference.

Random numbers are drawn on the CPU, so that one seed means the same on every device.
"""

from __future__ import annotations

import math
from typing import Final, Literal, final

import torch
from attrs import frozen
from torch import Tensor

from hetcache_core import ConfigError

__all__ = ["Clusters", "KMeansBackend", "cluster", "project"]

KMeansBackend = Literal["torch", "sklearn"]

PROJECTED_WIDTH: Final = 64
"""Our design: distances between a few thousand points survive a random projection this wide (the
Johnson-Lindenstrauss lemma), and clustering costs 1/24 of what it does at Wan-1.3B's 1536."""

LLOYD_ITERATIONS: Final = 10
"""Our design: with k-means++ starts, further iterations lower the inertia by less than the 5 % that
tests/policies/shared/test_kmeans.py allows."""

RESTARTS: Final = 8
"""Our design: starts tried side by side where there is no warm one; the best is kept. HetCache's code has
3, which tests/policies/shared/test_kmeans.py shows to be too few."""

SEEDING_POINTS: Final = 2048
"""Our design: at most about this many points take part in choosing where to start."""

SEEDING_CANDIDATES: Final = 8
"""Our design: points drawn for each start, of which the best is taken. With scikit-learn's 2 + log K, small
groups are left out often enough to be seen in tests/policies/shared/test_kmeans.py."""


@final
@frozen(eq=False)
class Clusters:
    """Points in groups.

    Attributes:
        labels: (n,) int64 cluster of each point.
        centroids: (K, d) fp32 means.
        inertia: () fp32 sum of squared distances of points to their centroids.
    """

    labels: Tensor
    centroids: Tensor
    inertia: Tensor


def project(features: Tensor, seed: int) -> Tensor:
    """Project wide features at random to 64 dimensions, keeping distances on average.

    Args:
        features: (n, D), any floating dtype.
        seed: seed of the projection.

    Returns:
        (n, min(D, 64)) fp32.
    """
    width = features.shape[1]
    if width <= PROJECTED_WIDTH:
        return features.float()
    matrix = torch.randn(width, PROJECTED_WIDTH, generator=_generator(seed))
    return features.float() @ (matrix / math.sqrt(PROJECTED_WIDTH)).to(features.device)  # (n, 64)


def cluster(
    points: Tensor,
    count: int,
    *,
    seed: int,
    start: Tensor | None = None,
    backend: KMeansBackend = "torch",
) -> Clusters:
    """Group points around at most ``count`` means.

    Args:
        points: (n, d) fp32, ``n >= 1``.
        count: clusters ``K``; no more than there are points.
        seed: seed of the starts.
        start: (K, d) means to start from instead of drawn ones; of another shape, it is not used.
        backend: "torch" stays on the points' device, "sklearn" goes through the CPU.

    Raises:
        ConfigError: scikit-learn is asked for and not installed.
    """
    count = min(count, points.shape[0])
    if start is not None and start.shape != (count, points.shape[1]):
        start = None
    if backend == "sklearn":
        return _sklearn(points, count, seed, start)
    starts = _seeds(points, count, seed) if start is None else start[None]
    return _lloyd(points, starts)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _squared_distances(points: Tensor, centroids: Tensor) -> Tensor:
    """Return the squared distances (R, n, K) of points (n, d) to each of R sets of means (R, K, d)."""
    lengths = points.square().sum(1, keepdim=True)  # (n, 1)
    products = points @ centroids.transpose(1, 2)  # (R, n, K)
    return (lengths - 2 * products + centroids.square().sum(2)[:, None]).clamp_min(0)


def _seeds(points: Tensor, count: int, seed: int) -> Tensor:
    """Choose R times K points to start from, each likely to be far from those before: (R, K, d).

    Source: greedy k-means++ (Arthur and Vassilvitskii, 2007). Drawing with a probability in proportion
    to a weight is done as an argmax of log-weight plus Gumbel noise, which needs no sum over points.
    """
    points = points[:: -(-points.shape[0] // SEEDING_POINTS)]  # (m, d)
    shape = (count, RESTARTS, SEEDING_CANDIDATES, points.shape[0])
    uniform = torch.rand(shape, generator=_generator(seed))
    tiny = torch.finfo(uniform.dtype).tiny
    gumbel = -(-uniform.clamp_min(tiny).log()).clamp_min(tiny).log()
    noise = gumbel.to(points.device)  # (K, R, c, m)
    chosen = points[noise[0, :, 0].argmax(1)][:, None]  # (R, 1, d)
    nearest = _squared_distances(points, chosen)[..., 0]  # (R, m)
    for draw in noise[1:]:
        drawn = points[(nearest.clamp_min(tiny).log()[:, None] + draw).argmax(2)]  # (R, c, d)
        after = _squared_distances(points, drawn).minimum(nearest[..., None])  # (R, m, c)
        best = after.sum(1).argmin(1)[:, None, None]  # (R, 1, 1)
        chosen = torch.cat([chosen, drawn.take_along_dim(best, 1)], dim=1)
        nearest = after.take_along_dim(best, 2)[..., 0]
    return chosen  # (R, K, d)


def _lloyd(points: Tensor, starts: Tensor) -> Clusters:
    """Move R sets of means (R, K, d) to the middle of their points, and take the best set."""
    centre = points.mean(0)  # distances lose fewer digits around zero
    centred, means = points - centre, starts - centre
    labels = torch.arange(means.shape[1], device=points.device)
    for _ in range(LLOYD_ITERATIONS):
        nearest = _squared_distances(centred, means).min(2)  # (R, n)
        members = (nearest.indices[..., None] == labels).to(centred.dtype)  # (R, n, K)
        sizes = members.sum(1)  # (R, K)
        moved = (members.transpose(1, 2) @ centred) / sizes.clamp_min(1)[..., None]  # (R, K, d)
        # The first mean without points goes to the point farthest from its own; others wait, as the
        # next farthest points are most often its neighbours.
        empty = sizes == 0
        first = empty & (empty.cumsum(1) == 1)
        farthest = centred[nearest.values.argmax(1)][:, None]  # (R, 1, d)
        moved = torch.where(empty[..., None], means, moved)
        means = torch.where(first[..., None], farthest, moved)
    nearest = _squared_distances(centred, means).min(2)
    inertia = nearest.values.sum(1)  # (R,)
    best = inertia.argmin()[None]
    return Clusters(
        nearest.indices.index_select(0, best)[0],
        means.index_select(0, best)[0] + centre,
        inertia.index_select(0, best)[0],
    )


def _sklearn(points: Tensor, count: int, seed: int, start: Tensor | None) -> Clusters:
    try:
        from sklearn.cluster import KMeans
    except ImportError as error:
        raise ConfigError(
            "scikit-learn is not installed",
            setting="backend",
            given="sklearn",
            remedy="Run: pip install scikit-learn; or use selector.backend=torch.",
        ) from error
    fitted = KMeans(
        count,
        init="k-means++" if start is None else start.cpu().numpy(),
        n_init=RESTARTS if start is None else 1,
        random_state=seed,
    ).fit(points.cpu().numpy())
    return Clusters(
        torch.as_tensor(fitted.labels_, dtype=torch.int64, device=points.device),
        torch.as_tensor(fitted.cluster_centers_, dtype=points.dtype, device=points.device),
        torch.tensor(fitted.inertia_, dtype=points.dtype, device=points.device),
    )
