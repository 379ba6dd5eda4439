"""Values that describe a run, a step and a branch; no tensors are computed here.

Notation used throughout the project (``docs/notation.md``):

====  ==========================================================
B     batch rows of one DiT call
T     latent frames
h, w  rows and columns of the token grid
N     tokens of one batch row, ``prefix + T * h * w``
n     tokens that are active in a partial step, ``n <= N``
D     width of the trunk
L     blocks of the trunk
S     steps of the sampler
====  ==========================================================
"""

from __future__ import annotations

from enum import Enum

from attrs import frozen

from hetcache_core.errors import UnsupportedBackboneError


class Mode(str, Enum):
    """What one DiT call does with its trunk."""

    FULL = "full"
    """All blocks over all tokens."""
    PARTIAL = "partial"
    """All blocks over the active tokens; the others take their stored residual."""
    REUSE = "reuse"
    """No block of the reused span; every token takes its stored residual."""
    PREDICT = "predict"
    """The branch is not run; its output is predicted from the other branch."""

    def __str__(self) -> str:
        """Return the bare value, for messages and JSON."""
        return self.value

    @property
    def letter(self) -> str:
        """F for full, p for partial, s for reused (skipped), c for predicted (from the condition)."""
        return {"full": "F", "partial": "p", "reuse": "s", "predict": "c"}[self.value]


class SubLayer(str, Enum):
    """A part of a transformer block that can be reused on its own."""

    SELF_ATTENTION = "self_attention"
    CROSS_ATTENTION = "cross_attention"
    FEED_FORWARD = "feed_forward"


ALL_SUB_LAYERS = frozenset(SubLayer)


class Stack(str, Enum):
    """Which stack of blocks a block belongs to."""

    MAIN = "main"
    CONTROL = "control"


@frozen
class BlockKey:
    """Names one block: its stack and its index within that stack."""

    stack: Stack
    index: int


@frozen
class Span:
    """The blocks that a REUSE step leaves out: all but ``front`` first and ``back`` last ones.

    ``Span()`` is the whole trunk. First-block caches use ``Span(front=1)``.
    """

    front: int = 0
    back: int = 0


WHOLE_TRUNK = Span()


@frozen
class BranchRows:
    """A guidance branch and the batch rows that it holds in one call."""

    name: str
    start: int
    stop: int

    @property
    def rows(self) -> slice:
        """The batch rows as a slice."""
        return slice(self.start, self.stop)

    @classmethod
    def split(cls, batch: int, *names: str) -> tuple[BranchRows, ...]:
        """Give each branch an equal part of a batch, in its order.

        Returns:
            The branches, "cond" first where there is one: the first one decides.

        Raises:
            UnsupportedBackboneError: the batch does not fall into such parts.
        """
        each, rest = divmod(batch, len(names))
        if rest:
            raise UnsupportedBackboneError(
                f"A batch of {batch} rows does not hold the branches {', '.join(names)} in equal parts"
            )
        parts = [cls(name, i * each, (i + 1) * each) for i, name in enumerate(names)]
        return tuple(sorted(parts, key=lambda branch: branch.name != "cond"))


@frozen(kw_only=True)
class StepInfo:
    """One step of the sampler, before anything of it has run.

    Attributes:
        index: 0-based position in the sampler's own list, reused steps included.
        total: number of steps ``S``.
        timestep: unrounded timestep in (0, 1000].
        sigma: noise level in (0, 1].
        expert: which of several expert models runs this step ("" where there is one).
        computed: whether a guard computes all of it, whatever is proposed.
    """

    index: int
    total: int
    timestep: float
    sigma: float
    expert: str = ""
    computed: bool = False

    @property
    def fraction(self) -> float:
        """Position in the run: 0 at the first step, 1 at the last."""
        return self.index / (self.total - 1) if self.total > 1 else 0.0

    @property
    def is_first(self) -> bool:
        """Whether this is the run's first step."""
        return self.index == 0

    @property
    def is_last(self) -> bool:
        """Whether this is the run's last step."""
        return self.index == self.total - 1


@frozen(kw_only=True)
class ModelInfo:
    """What a policy may know about the model before a run.

    Attributes:
        backbone: registered name of the backbone.
        variant: published model that these dimensions belong to ("wan2.1-1.3b"), or "".
        layers: blocks ``L`` of the main stack.
        width: trunk width ``D``.
        heads: attention heads.
        control_layers: main block after which each control hint is added, in order.
    """

    backbone: str
    variant: str
    layers: int
    width: int
    heads: int
    control_layers: tuple[int, ...] = ()


@frozen
class Decision:
    """What a step policy wants for one step, and why.

    Attributes:
        mode: FULL, PARTIAL or REUSE.
        reason: a few words for the trace ("every 3 steps", "signal 0.061 >= 0.050").
        signal: the value that was compared, or None.
        span: which blocks a REUSE step leaves out.
        gain: factor handed to the predictor (see ``Predictor.predict``), or None.
        instead: what a step does whose REUSE would be one too many in a row, FULL or PARTIAL.
    """

    mode: Mode
    reason: str
    signal: float | None = None
    span: Span = WHOLE_TRUNK
    gain: float | None = None
    instead: Mode = Mode.FULL
