"""Other people's caches and ours, side by side: one pipeline object, one set of weights, one seed, one run.

Every peer is turned on as its documentation says, its threshold searched so that about half of the main
blocks are computed, and what it computes is counted by hooks on the real blocks. Then ours is run at no
more than that, in alternation with it and with the uncached pipeline:

    OMP_NUM_THREADS=1 python benchmarks/peers.py --output benchmarks/results/peers.csv

A policy of ours is matched twice: `at equal main` computes no larger share of the main blocks than the peer,
`at equal total` no larger share of the FLOPs of all blocks, those of the control branch included.
Seconds are those of the denoising loop. A peer that is missing, or fails, is a row with the reason.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from statistics import median
from typing import Any, Final

import torch
from attrs import define, frozen
from block_flops import BlockFlops
from harness import (
    Benchmark,
    Better,
    Bound,
    Options,
    Report,
    Row,
    Watched,
    alternate,
    at_least,
    main,
    option,
)
from harness.options import count, names
from peer_caches import PEERS, Opened, Peer
from peer_subjects import DESCRIBED, SIZES, Subject, make_subject
from torch import Tensor

from hetcache_core import ConfigError, HetCacheError, accelerate

BACKBONES: Final = ("wan-vace", "wan-vace-diffusers", "ltx-video")
AIM: Final = 0.5
"""Share of the main blocks that a peer's threshold is searched for."""

SEARCH_ROUNDS: Final = 6
MATCH_ROUNDS: Final = 3
MATCH_RANGE: Final = (0.8, 1.4)
"""Asked speed-ups that are tried, times what the peer's share comes to: ours counts the FLOPs outside of
blocks too, and whole steps only."""

SLACK: Final = 0.005
"""Ours may compute this much more than the peer: less than a block of a step."""

CONTROL_SPEEDUP: Final = 1.3
"""What leaving out the control branch is to be worth, at the peer's share of main blocks."""

CONTROL_SHARE: Final = 0.3
"""Control branch's share of the FLOPs from which on that is asked for; 0.34 in Wan2.1-VACE-1.3B."""


@frozen(kw_only=True)
class PeerOptions(Options):
    """What this benchmark can be asked."""

    backbones: tuple[str, ...] = option(
        BACKBONES,
        doc="where, by commas; also described models: " + ", ".join(DESCRIBED),
        parse=names,
    )
    peers: tuple[str, ...] = option(
        tuple(peer.name for peer in PEERS), doc="which, by commas", parse=names
    )
    size: str = option("small", doc=f"of models and clips: {', '.join(SIZES)}")
    steps: int = option(20, doc="sampler steps", parse=count)

    def prepare(self) -> None:
        """Refuse names that nothing has."""
        super().prepare()
        for given, known in (
            (self.backbones, [*BACKBONES, *DESCRIBED]),
            (self.peers, [peer.name for peer in PEERS]),
            ((self.size,), SIZES),
        ):
            for name in given:
                if name not in known:
                    raise ConfigError(f"{name!r} is none of {', '.join(known)}")


@frozen(kw_only=True)
class Shares:
    """What a run computed, as shares of the uncached run's FLOPs in blocks."""

    main: float
    control: float | None
    total: float


@define(eq=False, kw_only=True)
class Variant:
    """One way to run a subject.

    Attributes:
        open: turns it on for the length of a ``with`` block.
        peer: whose comparison it belongs to.
        cache: name of the cache.
        by: library and version.
        settings: for the table.
        match: at which equal share ours was set, "" for peers.
        shares: what it computed.
        latents: what came out.
        left: attributes that it left in the pipeline when it was turned off.
    """

    open: Callable[[], Opened]
    peer: str
    cache: str
    by: str
    settings: str = ""
    match: str = ""
    shares: Shares
    latents: Tensor
    left: int = 0

    def seconds(self, subject: Subject) -> float:
        """Run once more and return the seconds of the loop."""
        with self.open() as arguments:
            return subject.run(**arguments)[1]


@define(eq=False)
class Comparison:
    """All runs of one subject."""

    subject: Subject
    _full: BlockFlops | None = None

    def counted(self, opened: AbstractContextManager[dict[str, Any]]) -> tuple[Tensor, Shares]:
        """Run once under hooks."""
        with opened as arguments, BlockFlops().watching(self.subject) as found:
            latents, _ = self.subject.run(**arguments)
        full = self._full = self._full or found
        control = found.control / full.control if full.control else None
        shares = Shares(
            main=found.main / full.main, control=control, total=found.total / full.total
        )
        return latents, shares

    def search(self, peer: Peer) -> float:
        """Find the threshold at which a peer computes about half of the main blocks."""
        if peer.thresholds is None:
            return math.nan
        low, high = (math.log(bound) for bound in peer.thresholds)
        best = (math.inf, 0.0)
        for _ in range(SEARCH_ROUNDS):
            middle = (low + high) / 2
            share = self.counted(peer.open(self.subject, math.exp(middle)))[1].main
            best = min(best, (abs(share - AIM), math.exp(middle)))
            low, high = (middle, high) if share > AIM else (low, middle)
        return best[1]

    def peer(self, peer: Peer) -> Variant:
        """Set a peer up and count its blocks."""
        threshold = self.search(peer)
        opened = partial(peer.open, self.subject, threshold)
        latents, shares = self.counted(opened())
        said = [] if math.isnan(threshold) else [f"threshold {threshold:.3g}"]
        return Variant(
            open=opened,
            peer=peer.name,
            cache=peer.name,
            by=peer.by(),
            settings=", ".join([*said, *filter(None, [peer.settings])]),
            shares=shares,
            latents=latents,
            left=len(self.subject.left),
        )

    def ours(
        self, peer: Variant, policy: str, settings: Mapping[str, object], match: str
    ) -> Variant:
        """Set a policy of ours up so that it computes no more than a peer.

        Args:
            peer: that peer.
            policy: name of ours.
            settings: of ours.
            match: which share is to be equal, ``main`` or ``total``.
        """
        if policy == "pab":
            # Its schedule is the peer's own, sub-layer by sub-layer: there is nothing to adjust.
            return self._match(peer, policy, settings, match, None)
        limit = getattr(peer.shares, match)
        low, high = (math.log(factor / limit) for factor in MATCH_RANGE)
        fits: Variant | None = None
        for _ in range(MATCH_ROUNDS):
            middle = (low + high) / 2
            found = self._match(peer, policy, settings, match, math.exp(middle))
            share = getattr(found.shares, match)
            over = share > limit + SLACK
            low, high = (middle, high) if over else (low, middle)
            if not over and (fits is None or share > getattr(fits.shares, match)):
                fits = found
        return fits or found

    def _match(
        self,
        peer: Variant,
        policy: str,
        settings: Mapping[str, object],
        match: str,
        target: float | None,
    ) -> Variant:
        opened = partial(self._session, policy, settings, target)
        latents, shares = self.counted(opened())
        return Variant(
            open=opened,
            peer=peer.cache,
            cache=f"hetcache {policy}",
            by="ours",
            settings="" if target is None else f"target {target:.3g}x",
            match=match,
            shares=shares,
            latents=latents,
            left=len(self.subject.left),
        )

    @contextmanager
    def _session(
        self, policy: str, settings: Mapping[str, object], target: float | None
    ) -> Iterator[dict[str, Any]]:
        subject = self.subject
        before = subject.attributes()
        with accelerate(
            subject.pipeline,
            policy,
            settings=settings,
            backbone=subject.backbone,
            target_speedup=target,
        ):
            yield {}
        subject.left = subject.attributes() - before


@contextmanager
def _nothing() -> Iterator[dict[str, Any]]:
    yield {}


def measure_subject(options: PeerOptions, backbone: str) -> tuple[list[Row], list[Bound]]:
    """Measure all peers on one backbone."""
    subject = make_subject(
        backbone, SIZES[options.size], device=options.device, steps=options.steps
    )
    comparison = Comparison(subject)
    latents, shares = comparison.counted(_nothing())
    bare = Variant(open=_nothing, peer="", cache="uncached", by="", shares=shares, latents=latents)
    rows: list[Row] = []
    bounds: list[Bound] = []
    for peer in PEERS:
        if backbone not in peer.backbones or peer.name not in options.peers:
            continue
        print(f"{backbone}: {peer.name}", file=sys.stderr)
        reason = peer.missing()
        if reason is None:
            try:
                found = measure_peer(comparison, bare, peer, options.repeats)
            except (HetCacheError, RuntimeError, ValueError, TypeError, IndexError) as error:
                reason = f"{type(error).__name__}: {error}"
            else:
                rows += ({"backbone": backbone, **row} for row in found)
                bounds += peer_bounds(backbone, found)
        if reason is not None:
            rows.append({"backbone": backbone, **_row(bare, peer.name, peer.name, reason)})
    return rows, bounds


def measure_peer(comparison: Comparison, bare: Variant, peer: Peer, repeats: int) -> list[Row]:
    """Measure one peer, ours beside it and the uncached run, in alternation."""
    subject, theirs = comparison.subject, comparison.peer(peer)
    variants = [bare, theirs]
    if peer.policy is not None:
        settings = peer.ours(subject)
        matches = ["main"]
        if theirs.shares.total > theirs.shares.main + SLACK and peer.policy != "pab":
            matches.append("total")
        for match in matches:
            variants += [
                comparison.ours(theirs, peer.policy, settings, match),
                comparison.ours(theirs, "auto", {}, match),
            ]
    timed = alternate(
        {str(index): partial(each.seconds, subject) for index, each in enumerate(variants)},
        repeats,
        warm_up=False,  # each has run once, to be counted
    )
    seconds = [median(timed[str(index)]) for index in range(len(variants))]
    rows = []
    for each, spent in zip(variants, seconds, strict=True):
        row = _row(each, peer.name, each.cache, "")
        error = torch.linalg.vector_norm(each.latents - bare.latents)
        row |= {
            "seconds": spent,
            "speed-up": seconds[0] / spent,
            "main blocks": each.shares.main,
            "control blocks": each.shares.control,
            "all blocks": each.shares.total,
            "relative error": float(error / torch.linalg.vector_norm(bare.latents)),
            "PSNR, dB": psnr(each.latents, bare.latents),
            "times the peer's speed": seconds[1] / spent,
            "left behind": each.left,
        }
        rows.append(row)
    return rows


def _row(variant: Variant, peer: str, cache: str, note: str) -> Row:
    empty = dict.fromkeys(
        (
            "seconds",
            "speed-up",
            "main blocks",
            "control blocks",
            "all blocks",
            "relative error",
            "PSNR, dB",
            "times the peer's speed",
            "left behind",
        )
    )
    said = {"by": variant.by, "settings": variant.settings, "at equal": variant.match}
    return {"peer": peer, "cache": cache, **said, **empty, "note": note}


def psnr(latents: Tensor, uncached: Tensor) -> float | None:
    """PSNR in dB of latents to the uncached ones, the peak being their range; None if equal."""
    error = float(((latents - uncached) ** 2).mean())
    peak = float(uncached.max() - uncached.min())
    return 10 * math.log10(peak**2 / error) if error else None


def peer_bounds(backbone: str, rows: list[Row]) -> list[Bound]:
    """Ours is at least as fast; where the peer runs a large control branch in every step, more so."""
    theirs = rows[1]
    main, control, total = (
        float(theirs[f"{name} blocks"] or 0) for name in ("main", "control", "all")
    )
    always = control > 1 - SLACK > main and (total - main) / (control - main) > CONTROL_SHARE
    return [
        at_least(
            f"{backbone}: {row['cache']} beside {theirs['cache']}, equal {row['at equal']}",
            float(row["times the peer's speed"] or 0),
            CONTROL_SPEEDUP if always and row["at equal"] == "main" else 1.0,
        )
        for row in rows[2:]
    ]


def run(options: PeerOptions) -> Report:
    """Measure all backbones."""
    rows: list[Row] = []
    bounds: list[Bound] = []
    for backbone in options.backbones:
        found = measure_subject(options, backbone)
        rows += found[0]
        bounds += found[1]
    return Report(rows=rows, bounds=bounds)


BENCHMARK: Final = Benchmark(
    name="peers",
    question="How do other people's caches compare with ours at equal computed share?",
    options=PeerOptions,
    run=run,
    keys=("backbone", "peer", "cache", "at equal"),
    watched={
        "times the peer's speed": Watched(better=Better.HIGHER, floor=0.05),
        "all blocks": Watched(better=Better.SAME, floor=0.02),
    },
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
