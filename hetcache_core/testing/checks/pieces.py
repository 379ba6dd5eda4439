"""Checks of the pieces that settings take by name: selectors, partitioners, predictors and so on."""

from __future__ import annotations

import pickle
from typing import Any, Final, final

import attrs
import torch
from attrs import define, evolve, field
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hetcache_core.backbone.adapter import RunInfo
from hetcache_core.policy.pieces import Corrector, Gap, Predictor, StepDecider, StepPolicy
from hetcache_core.policy.recipe import CachePolicy
from hetcache_core.policy.signals import Signal, Signals
from hetcache_core.settings.declare import describe
from hetcache_core.steps import Decision, Mode, StepInfo
from hetcache_core.store import Stored
from hetcache_core.testing.comparing import require, require_same
from hetcache_core.testing.subject import PieceSubject
from hetcache_core.testing.tiny.case import tiny_case
from hetcache_core.testing.watch import watched_run
from hetcache_core.tokens import (
    ContextSelector,
    Grid,
    Partition,
    Role,
    Selection,
    SelectionRequest,
    TokenPartitioner,
    mask_to_tokens,
)

__all__ = [
    "CORRECTOR_CHECKS",
    "PARTITIONER_CHECKS",
    "PREDICTOR_CHECKS",
    "SELECTOR_CHECKS",
    "SIGNAL_CHECKS",
]

GRID: Final = Grid(
    frames=3, height=6, width=8, pixel_height=4, pixel_width=4, frame_stride=4, prefix=2
)
KEPT: Final = 20
"""Context tokens that are asked for, of more than a hundred."""

WIDTH: Final = 24
STEPS: Final = 6


def check_the_piece_is_a_value(subject: PieceSubject) -> None:
    """It is a frozen attrs value with a name and a summary: equal, hashable, pickled whole."""
    made, again = subject.make(), subject.make()
    require(attrs.has(type(made)), f"{type(made).__name__} is no attrs class")
    require(made == again, "two pieces made alike are not equal")
    require(hash(made) == hash(again), "two equal pieces have different hashes")
    require(pickle.loads(pickle.dumps(made)) == made, "a pickled piece comes back changed")  # noqa: S301 - our own bytes
    for text in ("name", "summary"):
        value = getattr(type(made), text, None)
        require(isinstance(value, str) and bool(value.strip()), f"{text} is {value!r}, not a text")


def check_its_settings_are_described(subject: PieceSubject) -> None:
    """Every setting says what it does."""
    for info in describe(type(subject.make())):
        require(bool(info.doc), f"setting {info.name!r} does not say what it does")


# Selectors ---------------------------------------------------------------------------------------


def check_it_orders_every_context_token_once(subject: PieceSubject) -> None:
    """The selection is a permutation of the context tokens, so that any number can be kept."""
    request, selection = _selected(subject)
    context = request.partition.count(Role.CONTEXT)
    order = selection.order
    require(order.shape == (context,), f"order is {tuple(order.shape)} instead of ({context},)")
    require(
        torch.equal(order.sort().values, torch.arange(context)),
        "order is no permutation of the positions of the context tokens",
    )


def check_it_selects_alike_by_its_seed(subject: PieceSubject) -> None:
    """Asked again it answers alike, and leaves torch's own generator alone."""
    state = torch.get_rng_state()
    _, first = _selected(subject)
    _, again = _selected(subject)
    require_same(again.order, first.order, "the second selection", "Seed it from request.seed.")
    require(
        torch.equal(state, torch.get_rng_state()),
        "it draws from torch's global generator",
        "Make a torch.Generator of request.seed.",
    )


def check_it_follows_on_a_selection(subject: PieceSubject) -> None:
    """It takes the selection that it replaces, which it made itself."""
    request, first = _selected(subject)
    later = subject.make().select(evolve(request, previous=first))
    require(later.order.shape == first.order.shape, "the next selection has another shape")


def check_it_does_not_wait_for_the_device(subject: PieceSubject) -> None:
    """Nothing of a selection is brought to the host."""
    selector = subject.make()
    request = _request(selector)
    with _NoWait():  # type: ignore[no-untyped-call]
        selector.select(request)


def _request(selector: ContextSelector) -> SelectionRequest:
    generator = torch.Generator().manual_seed(0)
    roles = torch.full((GRID.tokens,), int(Role.CONTEXT), dtype=torch.uint8)
    roles[: GRID.prefix] = int(Role.PINNED)
    roles[GRID.prefix : GRID.prefix + KEPT] = int(Role.GENERATIVE)
    context = int((roles == int(Role.CONTEXT)).sum())
    scores = torch.rand(context, generator=generator)
    features = torch.randn(context, WIDTH, generator=generator)
    return SelectionRequest(
        partition=Partition(roles, GRID),
        count=KEPT,
        scores=lambda: _if_announced(scores, "needs_scores", said=selector.needs_scores),
        features=lambda: _if_announced(features, "needs_features", said=selector.needs_features),
        seed=3,
    )


def _if_announced(value: Tensor, what: str, *, said: bool) -> Tensor:
    require(said, f"it asks for what it has not announced: {what} is False")
    return value


def _selected(subject: PieceSubject) -> tuple[SelectionRequest, Selection]:
    selector: ContextSelector = subject.make()
    request = _request(selector)
    return request, selector.select(request)


class _NoWait(TorchDispatchMode):
    """Refuses operations that wait for the device, which CPU tensors would hide."""

    WAITS: Final = (
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "equal",
        "unique",
        "bincount",
    )

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = str(func).removeprefix("aten.").partition(".")[0]
        require(name not in self.WAITS, f"it calls {name}, which waits for the device")
        return func(*args, **(kwargs or {}))


# Partitioners ------------------------------------------------------------------------------------


def check_every_token_has_a_role(subject: PieceSubject) -> None:
    """Roles are (N,) uint8 values of ``Role``; what the mask touches is generative, prefixes pinned."""
    partitioner: TokenPartitioner = subject.make()
    mask = _mask()
    before = mask.clone()
    roles = partitioner.partition(mask, GRID).roles
    require_same(mask, before, "the mask after partitioning")
    require(
        roles.shape == (GRID.tokens,) and roles.dtype == torch.uint8,
        f"roles are {roles.dtype} {tuple(roles.shape)} instead of uint8 ({GRID.tokens},)",
    )
    known = torch.tensor([int(role) for role in Role], dtype=torch.uint8)
    require(bool(torch.isin(roles, known).all()), "some roles are no value of Role")
    prefix, own = roles[: GRID.prefix], roles[GRID.prefix :]
    require(bool((prefix == int(Role.PINNED)).all()), "a prefix token is not pinned")
    touched = mask_to_tokens(mask, GRID).flatten()
    require(
        bool((own[touched] == int(Role.GENERATIVE)).all()),
        "a token that the mask touches is not generative",
    )


def check_it_partitions_alike(subject: PieceSubject) -> None:
    """Asked again it answers alike."""
    first, again = (subject.make().partition(_mask(), GRID).roles for _ in range(2))
    require_same(again, first, "the second partition")


def _mask() -> Tensor:
    frames = 1 + (GRID.frames - 1) * GRID.frame_stride
    mask = torch.zeros(
        frames, GRID.height * GRID.pixel_height, GRID.width * GRID.pixel_width, dtype=torch.bool
    )
    mask[:, 8:14, 10:18] = True
    return mask  # (F, H, W)


# Predictors --------------------------------------------------------------------------------------


def check_it_predicts_from_any_number_of_values(subject: PieceSubject) -> None:
    """From one value to ``history``, it returns a finite tensor of their shape and dtype."""
    predictor: Predictor = subject.make()
    require(predictor.history >= 1, f"history is {predictor.history}, and at least 1 is kept")
    for dtype in (torch.float32, torch.bfloat16):
        for count in range(1, predictor.history + 1):
            values = _values(count, dtype)
            for gain in (None, 0.5):
                found = predictor.predict(values, step=2 * count + 3, gain=gain)
                newest = values[-1].value
                require(
                    found.shape == newest.shape and found.dtype == dtype,
                    f"of {count} values it makes {found.dtype} {tuple(found.shape)} instead of "
                    f"{dtype} {tuple(newest.shape)}",
                )
                require(
                    bool(found.isfinite().all()), f"of {count} values it makes what is not finite"
                )


def check_it_writes_to_no_value(subject: PieceSubject) -> None:
    """The values that it is given are the cache's own, and stay as they are."""
    predictor: Predictor = subject.make()
    values = _values(predictor.history, torch.float32)
    before = [stored.value.clone() for stored in values]
    predictor.predict(values, step=2 * len(values) + 3, gain=None)
    for stored, kept in zip(values, before, strict=True):
        require_same(stored.value, kept, "a stored value after the prediction")


def check_what_does_not_change_is_predicted_to_stay(subject: PieceSubject) -> None:
    """Where all values are equal, the prediction is that value."""
    predictor: Predictor = subject.make()
    still = torch.linspace(-1, 1, 12).view(1, 3, 4)
    values = [Stored(still.clone(), 2 * step) for step in range(predictor.history)]
    found = predictor.predict(values, step=2 * len(values) + 3, gain=None)
    spread = torch.finfo(torch.float32).eps * 8 * predictor.history
    require(
        bool(torch.allclose(found, still, rtol=spread, atol=spread)),
        "it makes something else of values that are all equal",
    )


def _values(count: int, dtype: torch.dtype) -> list[Stored]:
    generator = torch.Generator().manual_seed(0)
    return [
        Stored(torch.randn(1, 3, 4, generator=generator).to(dtype), 2 * step)
        for step in range(count)
    ]


# Correctors --------------------------------------------------------------------------------------

SIGMAS: Final = (1.0, 0.9, 0.75, 0.5, 0.2, 0.0)
GAP: Final = Gap(step=3, last=0, sigmas=SIGMAS)


def check_it_pays_nothing_where_nothing_was_missed(subject: PieceSubject) -> None:
    """Not a bit changes after an empty gap, and where the output is the one that was expected."""
    corrector: Corrector = subject.make()
    for dtype in (torch.float32, torch.bfloat16):
        output, expected = (stored.value for stored in _values(2, dtype))
        require_same(
            corrector.correct(output, expected, evolve(GAP, last=GAP.step - 1)),
            output,
            "the output after no skipped step",
        )
        require_same(
            corrector.correct(output, output.clone(), GAP), output, "the output that was expected"
        )


def check_it_corrects_guidance_with_its_branches(subject: PieceSubject) -> None:
    """Corrected branches make the corrected guided output; outputs keep shape and dtype, unwritten."""
    corrector: Corrector = subject.make()
    cond, uncond, expected_cond, expected_uncond = (
        stored.value for stored in _values(4, torch.float32)
    )
    before = cond.clone()

    def guided(one: Tensor, other: Tensor) -> Tensor:
        return other + 5.0 * (one - other)

    apart = guided(
        corrector.correct(cond, expected_cond, GAP), corrector.correct(uncond, expected_uncond, GAP)
    )
    whole = corrector.correct(guided(cond, uncond), guided(expected_cond, expected_uncond), GAP)
    require_same(cond, before, "an output after its correction")
    require(bool(whole.isfinite().all()), "what it makes is not finite")
    require(
        bool(torch.allclose(apart, whole, rtol=1e-4, atol=1e-4)),
        "corrected branches do not make the corrected guided output",
        "Be linear in both outputs together.",
    )


def check_every_step_can_be_corrected(subject: PieceSubject) -> None:
    """The last step, and steps between equal noise levels, come out finite."""
    corrector: Corrector = subject.make()
    output, expected = (stored.value for stored in _values(2, torch.bfloat16))
    still = (1.0, 1.0, 1.0, 1.0, 1.0, 0.0)
    for sigmas in (SIGMAS, still):
        for step in range(2, 5):
            made = corrector.correct(output, expected, Gap(step=step, last=0, sigmas=sigmas))
            require(
                made.dtype == output.dtype and bool(made.isfinite().all()),
                f"step {step} comes out as {made.dtype}, or not finite",
            )


# Signals -----------------------------------------------------------------------------------------


@final
@define(eq=False)
class _Watching(StepPolicy, StepDecider):
    """Runs every step in full and writes down a signal."""

    _signal: Signal
    seen: list[Tensor] = field(factory=list)
    ahead: list[Tensor] = field(factory=list)
    reads: int = 0

    def begin(self, run: RunInfo) -> StepDecider:
        return self

    def decide(self, step: StepInfo, signals: Signals) -> Decision:
        self.seen.append(self._signal.value(signals, step.index).clone())
        if self._signal.sigmas_only and not self.ahead:
            self.ahead = [self._signal.value(signals, i).clone() for i in range(step.total)]
        self.reads += signals.reads
        return Decision(Mode.FULL, "watched")


def check_it_is_a_finite_tensor_of_one_shape(subject: PieceSubject) -> None:
    """At every step it is a finite fp32 tensor, of the same shape, and nothing is read of it."""
    watching = _watched(subject)
    for value in watching.seen:
        require(
            value.dtype == torch.float32 and value.shape == watching.seen[0].shape,
            f"it is {value.dtype} {tuple(value.shape)}, and was {tuple(watching.seen[0].shape)}",
            "Return it in fp32 and in one shape.",
        )
        require(bool(value.isfinite().all()), "it is not finite")
    require(watching.reads == 0, "it brings numbers to the host", "Leave that to the policy.")


def check_a_signal_of_the_schedule_is_known_ahead(subject: PieceSubject) -> None:
    """With ``sigmas_only``, the first step gives it for all steps as they give it themselves."""
    watching = _watched(subject)
    for ahead, value in zip(watching.ahead, watching.seen, strict=False):
        require_same(ahead, value, "the signal of a step, asked for at the first")


def _watched(subject: PieceSubject) -> _Watching:
    watching = _Watching(subject.make())
    case = tiny_case()
    policy = CachePolicy(name="watching", step=watching)
    watched_run(case, policy, layout=case.layouts[-1], steps=STEPS)
    return watching


_VALUE: Final = (check_the_piece_is_a_value, check_its_settings_are_described)

SELECTOR_CHECKS: Final = (
    *_VALUE,
    check_it_orders_every_context_token_once,
    check_it_selects_alike_by_its_seed,
    check_it_follows_on_a_selection,
    check_it_does_not_wait_for_the_device,
)
PARTITIONER_CHECKS: Final = (*_VALUE, check_every_token_has_a_role, check_it_partitions_alike)
PREDICTOR_CHECKS: Final = (
    *_VALUE,
    check_it_predicts_from_any_number_of_values,
    check_it_writes_to_no_value,
    check_what_does_not_change_is_predicted_to_stay,
)
CORRECTOR_CHECKS: Final = (
    *_VALUE,
    check_it_pays_nothing_where_nothing_was_missed,
    check_it_corrects_guidance_with_its_branches,
    check_every_step_can_be_corrected,
)
SIGNAL_CHECKS: Final = (
    *_VALUE,
    check_it_is_a_finite_tensor_of_one_shape,
    check_a_signal_of_the_schedule_is_known_ahead,
)
"""All checks of a piece of each kind, in the order in which they run."""
