"""Which rows are active in a partial step, and the scores that choose them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from attrs import define, field
from torch import Tensor

from hetcache_core.errors import CacheStateError, ContractError
from hetcache_core.policy.partial import PartialSettings
from hetcache_core.tokens import (
    ContextSelector,
    Partition,
    Role,
    Selection,
    SelectionRequest,
    spread,
)


def attention_scores(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """Average attention that queries pay to every key.

    The softmax runs over all keys, so scores are comparable between tokens; a softmax over the
    queries' own group alone would give every token the same score.

    Args:
        q: (b, m, D) sampled queries, after norm and rotary embedding.
        k: (b, N, D) all keys.
        heads: number of heads.

    Returns:
        (N,) fp32, summing to 1.
    """
    total = torch.zeros(k.shape[1], dtype=torch.float32, device=k.device)
    queries = q.unflatten(2, (heads, -1)).transpose(1, 2)  # (b, heads, m, d)
    keys = k.unflatten(2, (heads, -1)).transpose(1, 2)  # (b, heads, N, d)
    scale = queries.shape[-1] ** -0.5
    # One head at a time: all at once would hold heads * m * N numbers.
    for row in range(q.shape[0]):
        for head in range(heads):
            logits = (queries[row, head] @ keys[row, head].T).float() * scale  # (m, N)
            total += logits.softmax(-1).mean(0)
    return total / (q.shape[0] * heads)


@define(eq=False)
class ActiveRows:
    """The active rows of one run: generative, margin, chosen context and pinned tokens.

    Where the mask touches no token (one window of a longer clip), there are none.
    """

    partition: Partition
    settings: PartialSettings
    selector: ContextSelector | None
    rows: Tensor | None = field(default=None, init=False)
    counts: dict[str, int] = field(factory=dict, init=False)
    _selection: Selection | None = field(default=None, init=False)
    _age: int = field(default=0, init=False)
    _fixed: Tensor = field(init=False)
    _context_count: int = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Work out how many rows there will be; the choice itself waits for a full step."""
        roles = self.partition
        margin = roles.of(Role.MARGIN)
        kept_margin = spread(margin, round(self.settings.margin_ratio * margin.numel()))
        self._fixed = torch.cat([roles.of(Role.GENERATIVE), kept_margin, roles.of(Role.PINNED)])
        context = roles.count(Role.CONTEXT)
        if not roles.count(Role.GENERATIVE):
            kept_margin, self._fixed, context = kept_margin[:0], self._fixed[:0], 0
        wanted = round(self.settings.context_ratio * context)
        multiple = self.settings.pad_to or pad_multiple(roles.tokens)
        fixed = self._fixed.numel()
        padded = math.ceil((fixed + wanted) / multiple) * multiple
        self._context_count = min(context, max(wanted, padded - fixed))
        self.counts = {
            "generative": roles.count(Role.GENERATIVE),
            "margin": kept_margin.numel(),
            "context": self._context_count,
            "pinned": self._fixed.numel() - kept_margin.numel() - roles.count(Role.GENERATIVE),
        }

    @property
    def count(self) -> int:
        """Number of active rows ``n``, padding included."""
        return self._fixed.numel() + self._context_count

    @property
    def empty(self) -> bool:
        """Whether nothing is edited, so that a partial step would compute nothing."""
        return self.count == 0

    @property
    def share(self) -> float:
        """Share of all tokens that is active."""
        return self.count / self.partition.tokens

    @property
    def too_many(self) -> bool:
        """Whether a full step is the better choice."""
        return self.share > self.settings.max_active_share

    @property
    def stale(self) -> bool:
        """Whether the next full step has to choose again."""
        return self.rows is None or self._age >= self.settings.refresh_after

    @property
    def needs_scores(self) -> bool:
        """Whether a full step has to score attention for the choice."""
        return (
            self.stale
            and self._chooses
            and self.selector is not None
            and self.selector.needs_scores
        )

    @property
    def needs_features(self) -> bool:
        """Whether a full step has to keep hidden states for the choice."""
        return (
            self.stale
            and self._chooses
            and self.selector is not None
            and self.selector.needs_features
        )

    @property
    def _chooses(self) -> bool:
        return 0 < self._context_count < self.partition.count(Role.CONTEXT)

    def forget(self) -> None:
        """Let the next full step choose anew."""
        self.rows = None

    def score_queries(self) -> Tensor:
        """Token indices (m,) of the generative queries that are scored."""
        return spread(self.partition.of(Role.GENERATIVE), self.settings.score_queries)

    def after_full_step(self, scores: Tensor | None, features: Tensor | None) -> None:
        """Choose the rows if the choice is stale, else let it age.

        Args:
            scores: (N,) fp32 attention scores, or None where not needed.
            features: (N, D) hidden states, or None where not needed.
        """
        if not self.stale:
            self._age += 1
            return
        context = self.partition.of(Role.CONTEXT)
        if not self._chooses:
            chosen = context[: self._context_count]
        elif self.selector is None:
            chosen = spread(context, self._context_count)
        else:
            self._selection = self.selector.select(
                SelectionRequest(
                    partition=self.partition,
                    count=self._context_count,
                    scores=_given(scores, context, "scores"),
                    features=_given(features, context, "features"),
                    seed=self.settings.seed,
                    previous=self._selection,
                )
            )
            order = self._selection.order
            if order.shape != context.shape:
                raise ContractError(
                    f"{type(self.selector).__name__}.select returned an order of {order.numel()} "
                    f"positions for {context.numel()} context tokens; it must order all of them."
                )
            chosen = context[order[: self._context_count]]
        self.rows = torch.cat([self._fixed, chosen]).sort().values  # (n,)
        self._age = 1

    def current(self) -> Tensor:
        """Return the active rows (n,), ascending.

        Raises:
            CacheStateError: no full step has chosen any yet.
        """
        if self.rows is None:
            raise CacheStateError(
                "A partial step was asked for before any full step chose its rows."
            )
        return self.rows


MAX_PAD = 256
"""Rows that a padded count is a multiple of, at most; matrix products lose nothing at this size."""
MIN_PADDED_SIZES = 16
"""So many different padded counts there are at least, so that padding stays below 1 / 16 of N."""


def pad_multiple(tokens: int) -> int:
    """Pick the multiple that row counts are padded to: a power of two, at most N / 16 and 256."""
    return min(MAX_PAD, 1 << max(0, (tokens // MIN_PADDED_SIZES).bit_length() - 1))


def _given(values: Tensor | None, context: Tensor, name: str) -> Callable[[], Tensor]:
    def take() -> Tensor:
        if values is None:
            raise ContractError(
                f"A ContextSelector asks for {name} without saying so: return True from "
                f"needs_{name}."
            )
        return values[context]

    return take
