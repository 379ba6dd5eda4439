"""What a run did, in as many words as it takes to do the same again without deciding anything.

It is recorded with every trace and kept short: an action is a few letters and stands in a table once,
the blocks of a call are runs of places in that table, and token rows are compressed bits.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np
from attrs import asdict, evolve, frozen

from hetcache_core.errors import ConfigError
from hetcache_core.policy.partial import ControlMode, KVMode
from hetcache_core.policy.pieces import BlockAction, PartAction, Use
from hetcache_core.steps import WHOLE_TRUNK, Mode, ModelInfo, Span, Stack, SubLayer
from hetcache_core.tokens import Grid

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from hetcache_core.backbone.adapter import RunInfo

RUN: Final = "run"
"""A block of which nothing is kept or reused."""

NEVER_ASKED: Final = "-"
LISTED: Final = "="
"""Marks rows that are written one by one, since they do not ascend."""

MOST_TOKENS: Final = 1 << 26
MOST_BLOCKS: Final = 1 << 16
"""Far more than a run has: numbers in a file past these are damage, and are not given memory."""

SIGMA_TOLERANCE: Final = 1e-4
"""Noise levels closer than this are the same; shifts that differ by 1 % differ by more."""

REMEDY: Final = "Record a run like this one with --trace, and compile that"


@frozen(kw_only=True)
class PlannedStep:
    """One step.

    Attributes:
        mode: what was decided; a branch of which nothing was kept ran in full all the same.
        span: the blocks that were reused.
        gain: the factor that the predictor got, or None.
        probe: first blocks that a decision looked at and that kept something on the way.
        predicted: branches whose output was predicted.
    """

    mode: Mode
    span: Span = WHOLE_TRUNK
    gain: float | None = None
    probe: int = 0
    predicted: tuple[str, ...] = ()


@frozen(kw_only=True)
class PlannedCall:
    """The blocks of one call.

    Attributes:
        step: index of the step.
        branch: key of the call, its branches joined by "+".
        main: actions of the main blocks, as ``pack_places`` writes them.
        control: actions of the control blocks.
    """

    step: int
    branch: str
    main: str
    control: str


@frozen(kw_only=True)
class Plan:
    """What a run did.

    Attributes:
        model: the model.
        grid: its tokens.
        sigmas: noise levels of the steps.
        steps: one for each step.
        branches: keys of the calls, in the order in which they came first.
        actions: what blocks did, as ``action_text`` writes it; empty if all simply ran.
        calls: one for each call that asked about its blocks.
        rows: token rows, as ``pack_rows`` writes them.
        roles: fingerprint of the roles of the tokens, or "" without partial steps.
        selections: the rows of partial steps, as places in ``rows``, in the order of their choice.
        kv_mode: which keys the active queries of partial steps saw, None without partial steps.
        control_mode: where their control hints came from, None without partial steps.
        kv_dtype: dtype that keys and values were kept in for partial steps, None for the cache's own.
    """

    model: ModelInfo
    grid: Grid
    sigmas: tuple[float, ...]
    steps: tuple[PlannedStep, ...]
    branches: tuple[str, ...]
    actions: tuple[str, ...] = ()
    calls: tuple[PlannedCall, ...] = ()
    rows: tuple[str, ...] = ()
    roles: str = ""
    selections: tuple[int, ...] = ()
    kv_mode: KVMode | None = None
    control_mode: ControlMode | None = None
    kv_dtype: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, of which ``structure`` makes a plan again; then ``check`` it."""
        return {**asdict(self), "steps": [_step_to_dict(step) for step in self.steps]}

    def check(self) -> None:
        """Read everything that is packed.

        Raises:
            ValueError: something cannot be read, or is not there.
        """
        if min(*attrs.astuple(self.grid)) < 0 or not 0 < self.grid.tokens <= MOST_TOKENS:
            raise ValueError(f"there are no {self.grid.tokens} tokens")
        if not self.steps or len(self.steps) != len(self.sigmas):
            raise ValueError(f"{len(self.steps)} steps and {len(self.sigmas)} noise levels")
        for text in self.actions:
            _, at = read_action(text)
            _check_places(at.values(), len(self.rows))
        for call in self.calls:
            for packed in (call.main, call.control):
                asked = (place for place in unpack_places(packed) if place is not None)
                _check_places(asked, len(self.actions))
        for text in self.rows:
            unpack_rows(text, self.grid.tokens)
        _check_places(self.selections, len(self.rows))

    def check_run(self, run: RunInfo) -> None:
        """Refuse a run that is not of the recorded kind.

        Raises:
            ConfigError: other tokens, another number of steps, or other noise levels.
        """
        where, steps = "schedule to replay", len(self.steps)
        if run.steps != steps:
            reason = f"it was recorded with {steps} steps, this run has {run.steps}"
            raise ConfigError(reason, where=where, remedy=f"Run with {steps} steps. {REMEDY}")
        if run.grid != self.grid:
            recorded, given = _tokens(self.grid), _tokens(run.grid)
            reason = f"it was recorded on {recorded}, this run has {given}"
            raise ConfigError(reason, where=where, remedy=REMEDY)
        gaps = (abs(a - b) for a, b in zip(self.sigmas, run.sigmas, strict=True))
        if max(gaps) > SIGMA_TOLERANCE:
            reason = "it was recorded with other noise levels (another shift) than this run has"
            raise ConfigError(reason, where=where, remedy=REMEDY)

    def actions_of(
        self, step: int, branch: str, stack: Stack, device: str
    ) -> list[BlockAction | None]:
        """Return what the blocks of one call did, None where nobody asked.

        Args:
            step: index of the step.
            branch: key of the call.
            stack: main or control blocks.
            device: where the rows of sub-layers that recompute some go.
        """
        call = next((c for c in self.calls if (c.step, c.branch) == (step, branch)), None)
        if call is None:
            return []
        places = unpack_places(call.main if stack is Stack.MAIN else call.control)
        done: dict[int | None, BlockAction | None] = {None: None}
        for place in dict.fromkeys(places):
            if place is not None:
                action, at = read_action(self.actions[place])
                rows = {part: self._rows(row).to(device) for part, row in at.items()}
                done[place] = _with_rows(action, rows) if rows else action
        return [done[place] for place in places]

    def selection(self, number: int, roles: torch.Tensor) -> torch.Tensor | None:
        """Return the rows (n,) of partial steps that were chosen, on the host.

        Args:
            number: how many choices came before.
            roles: (N,) roles of this run's tokens.

        Returns:
            The rows, or None where the roles are others than the recorded ones, or no more was chosen.
        """
        if number >= len(self.selections) or fingerprint(roles) != self.roles:
            return None
        return self._rows(self.selections[number])

    def _rows(self, place: int) -> torch.Tensor:
        import torch

        return torch.from_numpy(unpack_rows(self.rows[place], self.grid.tokens))


def _tokens(grid: Grid) -> str:
    before = f" and {grid.prefix} before them" if grid.prefix else ""
    size = f"{grid.frames} x {grid.height} x {grid.width}"
    return f"{size} tokens of {grid.pixel_height} x {grid.pixel_width} pixels{before}"


def _check_places(places: Iterable[int], size: int) -> None:
    for place in places:
        if not 0 <= place < size:
            raise ValueError(f"there is no place {place} in a table of {size}")


def _step_to_dict(step: PlannedStep) -> dict[str, Any]:
    plain: dict[str, Any] = {"mode": step.mode.value}
    if step.span != WHOLE_TRUNK:
        plain["span"] = [step.span.front, step.span.back]
    if step.gain is not None:
        plain["gain"] = step.gain
    if step.probe:
        plain["probe"] = step.probe
    if step.predicted:
        plain["predicted"] = list(step.predicted)
    return plain


# Actions


def action_text(action: BlockAction, places: Mapping[SubLayer, int]) -> str:
    """Write what a block does: ``run+store``, ``run feed_forward=reuse+store@3``.

    Args:
        action: what it does; what it shows to the policy is left out.
        places: where the rows are that a sub-layer recomputes.
    """
    words = [_use_text(action.use, store=action.store)]
    for part in SubLayer:
        if part not in action.parts:
            continue
        act = action.parts[part]
        at = f"@{places[part]}" if part in places else ""
        if act != PartAction() or at:
            words.append(f"{part.value}={_use_text(act.use, store=act.store)}{at}")
    return " ".join(words)


def read_action(text: str) -> tuple[BlockAction, dict[SubLayer, int]]:
    """Read what ``action_text`` has written: the action without rows, and where its rows are.

    Raises:
        ValueError: it cannot be read.
    """
    first, *rest = text.split()
    parts, places = {}, {}
    for word in rest:
        name, _, what = word.partition("=")
        what, at, place = what.partition("@")
        use, store = _read_use(what)
        parts[SubLayer(name)] = PartAction(use, store=store)
        if at:
            places[SubLayer(name)] = int(place)
    use, store = _read_use(first)
    return BlockAction(use=use, store=store, parts=parts), places


def _with_rows(action: BlockAction, rows: Mapping[SubLayer, torch.Tensor]) -> BlockAction:
    parts = {part: evolve(act, rows=rows.get(part)) for part, act in action.parts.items()}
    return evolve(action, parts=parts)


def _use_text(use: Use, *, store: bool) -> str:
    return use.value + ("+store" if store else "")


def _read_use(text: str) -> tuple[Use, bool]:
    use, plus, store = text.partition("+")
    if plus and store != "store":
        raise ValueError(f"{text!r} is no use of a block")
    return Use(use), bool(plus)


def pack_places(places: Sequence[int | None]) -> str:
    """Write places as runs, ``0*10 1 -*3``; None, which is ``-``, stands for "was not asked"."""
    runs = [(place, len(list(same))) for place, same in groupby(places)]
    words = [(NEVER_ASKED if place is None else str(place), count) for place, count in runs]
    return " ".join(word if count == 1 else f"{word}*{count}" for word, count in words)


def unpack_places(text: str) -> list[int | None]:
    """Read what ``pack_places`` has written.

    Raises:
        ValueError: it cannot be read.
    """
    places: list[int | None] = []
    for run in text.split():
        word, star, count = run.partition("*")
        if star and int(count) > MOST_BLOCKS:
            raise ValueError(f"{count} blocks are more than a model has")
        places += [None if word == NEVER_ASKED else int(word)] * (int(count) if star else 1)
    return places


# Rows


def pack_rows(rows: NDArray[np.integer[Any]], tokens: int) -> str:
    """Write token rows (k,) as the compressed bits of all tokens, in base 64.

    Rows that do not ascend are written one by one: their order matters to what comes out.
    """
    if (np.diff(rows) <= 0).any():
        return LISTED + ",".join(str(row) for row in rows.tolist())
    flags = np.zeros(tokens, bool)
    flags[rows] = True
    return base64.b64encode(zlib.compress(np.packbits(flags).tobytes(), 9)).decode("ascii")


def unpack_rows(text: str, tokens: int) -> NDArray[np.int64]:
    """Read what ``pack_rows`` has written: (k,) token rows.

    Raises:
        ValueError: it cannot be read, or names tokens that are not there.
    """
    if text.startswith(LISTED):
        rows = np.array([int(row) for row in text[1:].split(",")], np.int64)
    else:
        try:
            # No more than there should be is unpacked: a few bytes may stand for all of memory.
            unpacker = zlib.decompressobj()
            packed = unpacker.decompress(base64.b64decode(text, validate=True), -(-tokens // 8) + 1)
        except zlib.error as error:
            raise ValueError(f"rows cannot be unpacked: {error}") from error
        flags = np.unpackbits(np.frombuffer(packed, np.uint8))
        if len(flags) != -(-tokens // 8) * 8:  # packed by eights
            raise ValueError(f"{len(flags)} bits of rows do not stand for {tokens} tokens")
        rows = flags.nonzero()[0].astype(np.int64)
    if len(rows) and not 0 <= rows.min() <= rows.max() < tokens:
        raise ValueError(f"rows reach beyond the {tokens} tokens")
    return rows


def fingerprint(roles: torch.Tensor) -> str:
    """Return a short text that only the same roles (N,) have; waits for the device."""
    return hashlib.sha256(roles.cpu().numpy().tobytes()).hexdigest()[:32]
