"""K-means on the tensors' own device, without a wait for it; scikit-learn's is the reference.

Random numbers are drawn on the CPU, so that one seed means the same on every device.
"""

from __future__ import annotations

import math
from typing import Final, Literal, final

import torch
from attrs import frozen
from torch import Tensor

from hetcache_core.errors import ConfigError

__all__ = ["Clusters", "KMeansBackend", "cluster", "project"]

KMeansBackend = Literal["torch", "sklearn"]

PROJECTED_WIDTH: Final = 64
"""Our design: distances between a few thousand points survive a random projection this wide (the
Johnson-Lindenstrauss lemma), and clustering costs 1/24 of what it does at Wan-1.3B's 1536."""

LLOYD_ITERATIONS: Final = 10
"""Our design: with k-means++ starts, further iterations lower the inertia by less than the 5 % that
tests/test_kmeans.py allows."""

RESTARTS: Final = 3
"""Starts without a warm one; the best is kept. Source: ``n_init`` of HetCache's k-means."""

SEEDING_POINTS: Final = 4096
"""Our design: at most about this many points take part in choosing where to start."""


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
    if start is not None:
        return _lloyd(points, start)
    generator = _generator(seed)
    tries = [_lloyd(points, _seeds(points, count, generator)) for _ in range(RESTARTS)]
    best = torch.stack([t.inertia for t in tries]).argmin()

    def pick(values: list[Tensor]) -> Tensor:
        # Indexing by a tensor on the device does not wait for it; indexing a list would.
        return torch.stack(values).index_select(0, best[None])[0]

    return Clusters(
        pick([t.labels for t in tries]),
        pick([t.centroids for t in tries]),
        pick([t.inertia for t in tries]),
    )


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _squared_distances(points: Tensor, centroids: Tensor) -> Tensor:
    """Return (n, K) squared distances."""
    lengths = points.square().sum(1, keepdim=True)  # (n, 1)
    products = points @ centroids.T  # (n, K)
    return (lengths - 2 * products + centroids.square().sum(1)).clamp_min(0)  # (n, K)


def _seeds(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Choose points to start from, each likely to be far from those before it: (K, d).

    Source: greedy k-means++ (Arthur and Vassilvitskii, 2007) with 2 + log K candidates, as in
    scikit-learn. Drawing with probability proportional to weight is done as an argmax of
    log-weight plus Gumbel noise, which needs no sum and no wait for the device.
    """
    points = points[:: -(-points.shape[0] // SEEDING_POINTS)]  # (m, d)
    candidates = 2 + int(math.log(count))
    uniform = torch.rand(count, candidates, points.shape[0], generator=generator)
    tiny = torch.finfo(uniform.dtype).tiny
    gumbel = -(-uniform.clamp_min(tiny).log()).clamp_min(tiny).log()
    noise = gumbel.to(points.device)  # (K, c, m)
    chosen = points.index_select(0, noise[0, 0].argmax()[None])  # (1, d)
    nearest = _squared_distances(points, chosen)[:, 0]  # (m,)
    for draw in noise[1:]:
        drawn = points.index_select(0, (nearest.clamp_min(tiny).log() + draw).argmax(1))  # (c, d)
        after = _squared_distances(points, drawn).minimum(nearest[:, None])  # (m, c)
        best = after.sum(0).argmin()[None]
        chosen = torch.cat([chosen, drawn.index_select(0, best)])
        nearest = after.index_select(1, best)[:, 0]
    return chosen  # (K, d)


def _lloyd(points: Tensor, centroids: Tensor) -> Clusters:
    """Move means to the middle of their points, a fixed number of times."""
    centre = points.mean(0)  # distances lose fewer digits around zero
    centred, means = points - centre, centroids - centre
    count = means.shape[0]
    for _ in range(LLOYD_ITERATIONS):
        nearest = _squared_distances(centred, means).min(1)
        members = torch.nn.functional.one_hot(nearest.indices, count).to(centred.dtype)  # (n, K)
        sizes = members.sum(0)  # (K,)
        moved = (members.T @ centred) / sizes.clamp_min(1)[:, None]  # (K, d)
        # A mean without points goes to one of the points farthest from theirs.
        empty = sizes == 0
        farthest = centred.index_select(0, nearest.values.topk(count).indices)  # (K, d)
        rank = (empty.cumsum(0) - 1).clamp_min(0)
        means = torch.where(empty[:, None], farthest.index_select(0, rank), moved)
    nearest = _squared_distances(centred, means).min(1)
    return Clusters(nearest.indices, means + centre, nearest.values.sum())


def _sklearn(points: Tensor, count: int, seed: int, start: Tensor | None) -> Clusters:
    try:
        from sklearn.cluster import KMeans
    except ImportError as error:
        raise ConfigError(
            "scikit-learn is not installed",
            setting="kmeans_backend",
            given="sklearn",
            remedy="Run: pip install scikit-learn; or use kmeans_backend=torch.",
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
