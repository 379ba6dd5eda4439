"""Fits what a policy keeps under a byte limit by the cheapest means, before anything is computed.

What is kept is counted ahead (``footprint``, and what decisions compare with: ``held``). Where it is
too much, these measures are tried, alone and together, the set with the lowest cost first:

1. *Run the control blocks* on the active tokens instead of keeping their hints: the same tokens see
   newer hints; costs FLOPs. Helps only where no keys and values are kept.
2. *Host memory* takes what does not fit beside the model (not on a CPU): the same numbers; costs
   transfers.
3. *bfloat16* for a cache in single precision: rounds what is kept to eight bits.
4. *Keys and values in eight bits*: a quarter of single precision, half of bfloat16.
5. *No keys and values* of inactive tokens: the active ones attend among themselves, which changes the
   picture most (docs/findings.md) and is therefore the last resort.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Final

import torch
from attrs import evolve, frozen

from hetcache_core.engine.footprint import footprint
from hetcache_core.engine.held import played_bytes
from hetcache_core.errors import CacheBudgetError
from hetcache_core.policy.partial import ControlMode, KVMode
from hetcache_core.policy.recipe import CachePolicy
from hetcache_core.store import StoreSettings

if TYPE_CHECKING:
    from hetcache_core.backbone.adapter import ModelCall, RunInfo

CONTROL: Final = "control blocks run on the active tokens, no hints kept"
HOST: Final = "host memory for what does not fit"
HALF: Final = "kept in bfloat16"
EIGHT: Final = "keys and values kept in eight bits"
PRUNED: Final = "no keys and values of inactive tokens"
COSTS: Final = {CONTROL: 1, HOST: 2, HALF: 4, EIGHT: 8, PRUNED: 16}
"""An order, doubled from one to the next: a dearer measure costs more than all cheaper ones."""
EIGHT_BITS: Final = "float8_e4m3fn"


@frozen(kw_only=True)
class Fitted:
    """What is run instead, and how it is kept.

    Attributes:
        policy: the policy, its partial steps changed where that was needed.
        store: how tensors are kept.
        note: what was done, for the trace; empty where nothing was.
    """

    policy: CachePolicy
    store: StoreSettings
    note: str = ""


def fit_to_limit(
    policy: CachePolicy, store: StoreSettings, run: RunInfo, call: ModelCall
) -> Fitted:
    """Find the cheapest way to keep no more than ``store.max_bytes``.

    Args:
        policy: what was asked for.
        store: how it was asked to be kept; a dtype or device that is given stays as it is.
        run: the run.
        call: its first call, whose latents say which dtype is the model's own.

    Raises:
        CacheBudgetError: nothing would be little enough.
    """
    limit = store.max_bytes
    if limit is None:
        return Fitted(policy=policy, store=store)
    fits, least, dtype = None, 0, call.latents.dtype
    decisions = played_bytes(policy, run, call)
    for measures in _sets(policy, store, run, dtype):
        changed = _apply(measures, policy, store)
        held = kept_bytes(changed.policy, changed.store, run, call) + decisions
        if not measures:
            wanted = least = held
        least = min(least, held)
        if held <= limit or HOST in measures:
            fits = evolve(changed, note=_note(measures, wanted, held, limit))
            break
    if fits is None:
        raise CacheBudgetError(
            f"the cache needs {wanted:,} bytes, and no less than {least:,} by any means; the limit is "
            f"{limit:,}",
            where=f"policy {policy.name}",
            remedy="Raise the limit, edit fewer frames or a smaller picture, or use another policy: "
            "`hetcache policies` tells what each keeps",
            needed_bytes=least,
            held_bytes=0,
            budget_bytes=limit,
        )
    return fits


def _sets(
    policy: CachePolicy, store: StoreSettings, run: RunInfo, dtype: torch.dtype
) -> list[tuple[str, ...]]:
    """Every set of measures that apply, cheapest first; the empty one leads."""
    apply, partial = [], policy.partial
    if partial is not None and partial.control_mode is ControlMode.REUSE:
        apply.append(CONTROL)
    if store.device is None and not run.device.startswith("cpu"):
        apply.append(HOST)
    if store.dtype is None and dtype.itemsize > torch.bfloat16.itemsize:
        apply.append(HALF)
    if partial is not None and partial.kv_mode is KVMode.CACHED:
        unasked = store.dtype is None and partial.keys.dtype is None
        apply += [EIGHT, PRUNED] if unasked else [PRUNED]
    sets = [some for count in range(len(apply) + 1) for some in combinations(apply, count)]
    return sorted(sets, key=lambda some: sum(COSTS[measure] for measure in some))


def _apply(measures: tuple[str, ...], policy: CachePolicy, store: StoreSettings) -> Fitted:
    partial = policy.partial
    if partial is not None and CONTROL in measures:
        partial = evolve(partial, control_mode=ControlMode.RECOMPUTE)
    if partial is not None and EIGHT in measures:
        partial = evolve(partial, keys=evolve(partial.keys, dtype=EIGHT_BITS))
    if partial is not None and PRUNED in measures:
        partial = evolve(partial, kv_mode=KVMode.PRUNED)
    if HALF in measures:
        store = evolve(store, dtype="bfloat16")
    if HOST in measures:
        store = evolve(store, spill=True)
    return Fitted(policy=evolve(policy, partial=partial), store=store)


def kept_bytes(policy: CachePolicy, store: StoreSettings, run: RunInfo, call: ModelCall) -> int:
    """Count what is kept of the branches of a run, but for what decisions compare with."""
    latents = call.latents
    kept: torch.dtype = latents.dtype if store.dtype is None else getattr(torch, store.dtype)
    rows = call.branches[0].stop - call.branches[0].start
    counted = footprint(policy, run, latents=latents.numel() // latents.shape[0])
    return rows * len(run.branches) * counted.bytes(kept)


def _note(measures: tuple[str, ...], wanted: int, held: int, limit: int) -> str:
    if not measures:
        return ""
    return (
        f"Cache limit {limit / 1e6:,.1f} MB: {wanted / 1e6:,.1f} MB would be kept. "
        f"To stay under it: {'; '.join(measures)} ({held / 1e6:,.1f} MB)."
    )
