"""Following the loop of a library's pipeline, for adapters: runs, steps and model calls.

It fits pipelines that are made as diffusers makes them: ``pipeline.scheduler`` has ``set_timesteps``,
``timesteps`` and ``step``, and each step calls a model with a timestep. For the length of a session
the scheduler is a stand-in that tells of runs and steps, and the model's ``forward`` is routed on the
instance: the pipeline may wrap it (offloading moves the weights there), so the place inside the
wrapper is taken. Where the pipeline hands the model to a function of its own, that one is routed. The
library's own code still runs, with a stand-in for the model whose blocks are one object, the trunk.
What the calls mean is said by a ``ModelCalls``, and that is the adapter.
"""

from __future__ import annotations

import copy
import functools
import inspect
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast, final

from attrs import define, field

from hetcache_core.backbone.adapter import Backbone, ModelCall, RunInfo
from hetcache_core.errors import CacheStateError, PipelineBusyError, UnsupportedBackboneError
from hetcache_core.steps import BranchRows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from hetcache_core.backbone.trunk import RunTrunk
    from hetcache_core.engine.loop import Engine
    from hetcache_core.tokens import Grid

LISTS: Final = ("timesteps", "sigmas")
"""Arguments of ``set_timesteps`` with which a pipeline brings its own schedule."""

PROBED: Final = 2
"""Steps that a copy of a scheduler is tried out for."""

# A model's forward is called twice a step, and its signature is made of its code each time it is asked for.
_signature = functools.cache(inspect.signature)


@final
class StandIn:
    """An object with some of its attributes replaced; everything else is the object's own."""

    def __init__(self, target: Any, **replaced: Any) -> None:
        self.__dict__.update(replaced)
        self.__dict__["_target"] = target

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)


@define(eq=False)
class ModelCalls(ABC):
    """What the calls of one kind of model mean. One object serves one session.

    Attributes:
        pipeline: the pipeline that makes them.
    """

    pipeline: Any

    latents: ClassVar[str] = "hidden_states"
    """Argument of the model's ``forward`` that holds the noisy latents."""
    timestep: ClassVar[str] = "timestep"
    """Argument that holds the timestep, one or (B,), or (B, N) where each token has its own."""
    function: ClassVar[tuple[str, str] | None] = None
    """Attribute of the pipeline that it calls with the model, and the argument that is the model; None
    where it calls the model itself. ``forward`` below is then that function, without that argument."""

    @abstractmethod
    def grid(self, model: Any, arguments: Mapping[str, Any]) -> Grid:
        """Lay out the tokens of a run.

        Args:
            model: the model that its first call is for.
            arguments: of that call's ``forward``, by name.
        """

    @abstractmethod
    def branches(
        self, arguments: Mapping[str, Any], context: str | None, call: int
    ) -> tuple[BranchRows, ...]:
        """Name the branches in one call.

        Args:
            arguments: of the model's ``forward``.
            context: name that the pipeline gave to ``cache_context``, or None.
            call: calls of the same step before this one.
        """

    @abstractmethod
    def stand_in(
        self, model: Any, arguments: Mapping[str, Any], run: RunTrunk
    ) -> tuple[Any, dict[str, Any]]:
        """Make what ``forward`` gets in place of the model.

        Args:
            model: the model that is called.
            arguments: of its ``forward``.
            run: answers a ``TrunkCall`` with the trunk's output (B, N, D).

        Returns:
            What ``forward`` is called with for ``self``, such as a ``StandIn`` whose blocks are one
            function that calls ``run``, and the arguments that change.
        """

    def run_branches(self, arguments: Mapping[str, Any], context: str | None) -> tuple[str, ...]:
        """Name all branches of a run in the order of their first call; by default those of that call."""
        return tuple(branch.name for branch in self.branches(arguments, context, 0))

    def latents_of(self, arguments: Mapping[str, Any]) -> Tensor:
        """Take the noisy latents out of a call's arguments, in the library's layout."""
        latents: Tensor = arguments[self.latents]
        return latents

    def timestep_of(self, arguments: Mapping[str, Any]) -> Tensor:
        """Take the timestep out of a call's arguments: one or (B,), or (B, N)."""
        timestep: Tensor = arguments[self.timestep]
        return timestep

    def is_at(self, given: Tensor, timestep: float) -> bool:
        """Whether a model's timestep is the scheduler's, rounded to the dtype of the former.

        Args:
            given: one or (B,), or (B, N) where each token has its own.
            timestep: of the step that the scheduler is at.
        """
        top = float(given.max())
        # Conditioned tokens have lower timesteps of their own.
        return top == timestep or (top < timestep and given.dim() > 1 and given.shape[1] > 1)

    def mask(self, model: Any, arguments: Mapping[str, Any]) -> Tensor | None:
        """Return the (F, H, W) bool edit mask of the pipeline call that is under way, or None.

        By default it is the pipeline's attribute ``edit_mask``, where it has one.

        Args:
            model: the model that the run's first call is for.
            arguments: of that call's ``forward``, by name.
        """
        mask: Tensor | None = getattr(self.pipeline, "edit_mask", None)
        return mask

    def refuse(self, model: Any, engine: Engine) -> None:
        """Refuse a model with an option that a session cannot carry; called before every run.

        By default that is a cache of the library's own.

        Raises:
            UnsupportedBackboneError: names the option and how to turn it off.
        """
        if getattr(model, "is_cache_enabled", False):
            raise UnsupportedBackboneError(
                "A session cannot carry the library's own cache (enable_cache)",
                option="enable_cache",
                remedy="Call disable_cache() on the model; a session does the caching.",
            )

    def refuse_arguments(self, arguments: Mapping[str, Any]) -> None:
        """Refuse arguments of ``forward`` that a session cannot carry; called with every call.

        By default there are none.

        Raises:
            UnsupportedBackboneError: names the argument.
        """

    def sample(self, result: Any) -> Tensor:
        """Take the output of the trunk's kind, shaped like the latents, out of what ``forward`` returns."""
        if hasattr(result, "dim"):
            return cast("Tensor", result)
        return cast("Tensor", result[0])

    def result(self, output: Tensor) -> Any:
        """Wrap a model's output as ``forward`` does where it is not asked for a tuple."""
        return (output,)

    def expert(self, model: Any) -> str:
        """Name the expert that a model is, "" where there is one model."""
        return ""

    def reset(self) -> None:
        """Forget the run; the pipeline begins a new one."""

    @contextmanager
    def routed(self) -> Iterator[None]:
        """Put further stand-ins on the pipeline while the context lasts."""
        yield


@final
class SchedulerStandIn:
    """The pipeline's scheduler, which also tells the router about runs and steps."""

    def __init__(self, target: Any, router: Router) -> None:
        @functools.wraps(target.set_timesteps)  # pipelines look at its signature
        def set_timesteps(*args: Any, **kwargs: Any) -> Any:
            given = inspect.signature(target.set_timesteps).bind(*args, **kwargs)
            lists = {k: given.arguments[k] for k in LISTS if given.arguments.get(k) is not None}
            asked = given.arguments.get("num_inference_steps")
            asked = len(next(iter(lists.values()))) if asked is None else asked
            steps = router.engine.sampler_steps(asked)
            if steps != asked:
                given.arguments |= {k: _resampled(v, steps) for k, v in lists.items()}
                if given.arguments.get("num_inference_steps") is not None:
                    given.arguments["num_inference_steps"] = steps
            result = target.set_timesteps(*given.args, **given.kwargs)
            router.sampler_reset(asked, steps)
            return result

        @functools.wraps(target.step)
        def step(*args: Any, **kwargs: Any) -> Any:
            result = target.step(*args, **kwargs)
            guided = args[0] if args else kwargs.get("model_output")
            router.sampler_stepped(_sample(result), guided)
            return result

        self.__dict__.update(_target=target, set_timesteps=set_timesteps, step=step)

    @property  # type: ignore[misc]  # pipelines ask which scheduler they have before they step
    def __class__(self) -> type:
        return type(self._target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._target, name, value)


@final
class ProgressBarStandIn:
    """A pipeline's progress bar, which also tells the router that the loop inside it is over."""

    def __init__(self, target: Any, router: Router) -> None:
        self._target, self._router = target, router

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def __enter__(self) -> Any:
        return self._target.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Any:
        self._router.loop_left(error)
        return self._target.__exit__(kind, error, traceback)

    def __iter__(self) -> Iterator[Any]:
        yield from self._target
        self._router.loop_left(None)


@define(eq=False)
class Router:
    """Stands between the pipeline's loop and the model's ``forward`` for one session."""

    backbone: Backbone
    engine: Engine
    calls: ModelCalls
    scheduler: Any
    context: str | None = field(default=None, init=False)
    _step: int = field(default=0, init=False)
    _calls: int = field(default=0, init=False)
    _asked: int = field(default=0, init=False)
    _evaluations: int = field(default=1, init=False)
    _sampling: bool = field(default=False, init=False)
    _times: tuple[Any, list[float]] | None = field(default=None, init=False)
    """A dtype, and the scheduler's timesteps rounded to it on the host, read once a run."""

    @property
    def sampling(self) -> bool:
        """Whether the pipeline is in its loop; outside of it the library answers itself."""
        return self._sampling

    def sampler_reset(self, asked: int, taken: int) -> None:
        """A pipeline call begins; whatever ran before was not finished.

        Args:
            asked: steps that the pipeline asked for.
            taken: steps that the scheduler was asked for.
        """
        self.engine.abort_run()
        self.calls.reset()
        self._step = self._calls = 0
        total = len(self.scheduler.timesteps)
        # Heun's method evaluates the model twice for a step, but for the last one.
        self._evaluations = max(1, round(total / taken))
        self._asked = total + (asked - taken) * self._evaluations
        self._sampling = True
        self._times = None

    def loop_left(self, error: BaseException | None) -> None:
        """The pipeline's loop is over, perhaps before its last step: what follows is none of its calls."""
        if not self.engine.running:
            return  # no call of the loop has come yet: another part shows its progress
        if error is None:
            self.engine.end_run()
        else:
            self.engine.abort_run()
        self._sampling = False

    def sampler_stepped(self, latents: Tensor | None, guided: Tensor | None) -> None:
        """The scheduler has taken a step and made these latents of the model's guided output."""
        if self.engine.running:
            self.engine.end_step(latents, guided)
            self._sampling = self.engine.running
        self._step += 1
        self._calls = 0

    def answer(
        self, model: Any, arguments: Mapping[str, Any], library: Callable[..., Tensor]
    ) -> Tensor:
        """Answer one call of a model inside the pipeline's loop.

        Args:
            model: the model.
            arguments: of the call, by name.
            library: the library's own code, of a model or its stand-in and of arguments by name.
        """
        total = len(self.scheduler.timesteps)
        count = getattr(self.calls.pipeline, "num_timesteps", total)
        if not self._is_the_loops(self.calls.timestep_of(arguments), total - count):
            return library(model, **arguments)
        if not self.engine.running:
            self.calls.refuse(model, self.engine)
            # The pipeline may leave out the first steps (denoise_strength).
            self.engine.sampler_steps(round(self._asked * count / total))
            self.engine.begin_run(self._run_info(model, arguments, total - count, count))
        call = ModelCall(
            step=self._step,
            branches=self.calls.branches(arguments, self.context, self._calls),
            latents=self.calls.latents_of(arguments),
            expert=self.calls.expert(model),
        )
        self._calls += 1

        def forward(run: RunTrunk) -> Tensor:
            stand_in, changed = self.calls.stand_in(model, arguments, run)
            return library(stand_in, **{**arguments, **changed})

        return self.engine.model_call(call, forward)

    def _run_info(
        self, model: Any, arguments: Mapping[str, Any], offset: int, count: int
    ) -> RunInfo:
        timesteps, sigmas = _steps(self.scheduler, offset, count)
        device, mask = self.calls.latents_of(arguments).device, self.calls.mask(model, arguments)
        return RunInfo(
            model=self.backbone.describe(self.calls.pipeline),
            timesteps=timesteps,
            sigmas=sigmas,
            grid=self.calls.grid(model, arguments),
            mask=None if mask is None else mask.to(device),
            branches=self.calls.run_branches(arguments, self.context),
            device=str(device),
            evaluations=self._evaluations,
            sampler=_sampler(self.scheduler, offset, sigmas),
        )

    def _is_the_loops(self, given: Tensor, offset: int) -> bool:
        """Whether a call is the pipeline's loop's own, told on the host wherever that is possible.

        Raises:
            CacheStateError: it has another timestep than the scheduler is at.
        """
        place = offset + self._step
        at = _place_of(getattr(self.calls.pipeline, "_current_timestep", None), self.scheduler)
        if at is not None and at != place:
            return False  # a call between the steps, such as a callback's
        timesteps = self.scheduler.timesteps
        # Looking would wait for the device in every call. Where the schedule is kept on the host, the
        # first step tells whether the loop follows it.
        told = at is not None or (given.device != timesteps.device and self._step > 0)
        if told and given.device.type != "cpu":
            return True
        if self._times is None or self._times[0] != given.dtype:
            # The pipeline may round them to its own dtype.
            self._times = given.dtype, timesteps.to(given.dtype).tolist()
        times = self._times[1]
        own = times[place] if place < len(times) else None
        if own is None or not self.calls.is_at(given, own):
            raise CacheStateError(
                f"The model is called with timestep {float(given.max())} while the scheduler is at step "
                f"{self._step} of {len(times) - offset}. A session needs the pipeline's own loop."
            )
        return True


def _place_of(timestep: Any, scheduler: Any) -> int | None:
    """Find an element of a scheduler's timesteps by where it lies in memory, which reads nothing.

    Returns:
        Its index, or None where it is none of them.
    """
    timesteps = scheduler.timesteps
    if not hasattr(timestep, "is_set_to") or timestep.dtype != timesteps.dtype:
        return None
    if timestep.device != timesteps.device:
        return None
    return next((i for i, own in enumerate(timesteps) if timestep.is_set_to(own)), None)


def _sample(result: Any) -> Tensor | None:
    """Take the latents out of what a scheduler's ``step`` returns: they, a tuple, or an output of fields."""
    import torch

    if isinstance(result, torch.Tensor):
        return result
    latents: Tensor | None = (
        result[0] if isinstance(result, tuple) else getattr(result, "prev_sample", None)
    )
    return latents


def _resampled(values: Any, count: int) -> NDArray[np.float32]:
    """Take ``count`` values of a schedule, evenly spread over its steps from the first on."""
    import numpy as np

    given = np.asarray(values, dtype=np.float32)
    places = np.arange(count) * (len(given) / count)
    taken: NDArray[np.float32] = np.interp(places, np.arange(len(given)), given).astype(np.float32)
    return taken


def _steps(scheduler: Any, offset: int, count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Read unrounded timesteps and noise levels of the last ``count`` steps."""
    timesteps = scheduler.timesteps[offset:]
    times = tuple(map(float, timesteps.tolist()))
    if getattr(scheduler, "sigmas", None) is None:
        # Signal and noise are shares of one variance: sigma^2 = 1 - (product of alphas).
        levels = (1 - scheduler.alphas_cumprod[timesteps.cpu().long()]).sqrt()
        return times, tuple(levels.tolist())
    sigmas = tuple(map(float, scheduler.sigmas[offset : offset + count].tolist()))
    if not timesteps.is_floating_point():
        whole = float(scheduler.config.num_train_timesteps)
        # Some schedulers round their timesteps to integers. Where sigma is a share of the whole
        # (flow matching), it still holds the fraction.
        times = tuple(
            s * whole if abs(s * whole - t) <= 1 else t for s, t in zip(sigmas, times, strict=True)
        )
    return times, sigmas


def _sampler(scheduler: Any, offset: int, sigmas: Sequence[float]) -> str:
    """Tell how a scheduler steps: "euler", or the name of its class.

    It is found out rather than told by the name: a copy takes two steps with numbers made up, the second
    of which shows whether it remembers the first.
    """
    import torch

    if len(sigmas) <= PROBED:
        return type(scheduler).__name__
    trial = copy.deepcopy(scheduler)
    latents = torch.linspace(-1, 1, 4).view(1, 1, 1, 2, 2)
    for index in range(PROBED):
        velocity = torch.linspace(1 + index, -1, 4).view_as(latents)
        expected = latents + (sigmas[index + 1] - sigmas[index]) * velocity
        try:
            stepped = _sample(trial.step(velocity, scheduler.timesteps[offset + index], latents))
        except Exception:  # noqa: BLE001 - a sampler that cannot be tried out is none that is known
            return type(scheduler).__name__
        if stepped is None or not torch.allclose(stepped, expected, rtol=0, atol=1e-5):
            return type(scheduler).__name__
        latents = expected
    return "euler"


@contextmanager
def attached(
    backbone: Backbone, engine: Engine, calls: ModelCalls, models: Sequence[Any]
) -> Iterator[None]:
    """Route a pipeline's model calls through an engine while the context lasts.

    Args:
        backbone: describes the pipeline.
        engine: what answers the calls.
        calls: what they mean; the scheduler of their pipeline is replaced on the instance.
        models: the models that the pipeline calls, one or two experts.

    Raises:
        PipelineBusyError: the pipeline is already in a session.
        UnsupportedBackboneError: a model is already in a session, or ``calls`` refuses it.
    """
    for model in models:
        calls.refuse(model, engine)
    pipeline = calls.pipeline
    if isinstance(pipeline.scheduler, SchedulerStandIn):
        raise PipelineBusyError(pipeline=type(pipeline).__name__)
    scheduler = pipeline.scheduler
    router = Router(backbone, engine, calls, scheduler)
    with ExitStack() as stack:
        # Past the pipeline's own __setattr__, which would write the stand-in into its config.
        stack.callback(object.__setattr__, pipeline, "scheduler", scheduler)
        object.__setattr__(pipeline, "scheduler", SchedulerStandIn(scheduler, router))
        stack.enter_context(_watched_loop(pipeline, router))
        if calls.function is not None:
            stack.enter_context(_routed_function(*calls.function, router))
        else:
            for model in models:
                stack.enter_context(_routed_model(model, router))
        stack.enter_context(calls.routed())
        yield


@contextmanager
def _routed_function(name: str, argument: str, router: Router) -> Iterator[None]:
    pipeline = router.calls.pipeline
    own: Callable[..., Tensor] = getattr(pipeline, name)

    def library(model: Any, **arguments: Any) -> Tensor:
        return own(**{argument: model}, **arguments)

    @functools.wraps(own)
    def function(**arguments: Any) -> Tensor:
        model = arguments.pop(argument)
        router.calls.refuse_arguments(arguments)
        if not router.sampling:
            return library(model, **arguments)
        return router.answer(model, arguments, library)

    setattr(pipeline, name, function)
    try:
        yield
    finally:
        setattr(pipeline, name, own)


@contextmanager
def _watched_loop(pipeline: Any, router: Router) -> Iterator[None]:
    """Tell the router when the pipeline's loop is left: its progress bar is left with it."""
    if not hasattr(pipeline, "progress_bar"):
        yield
        return
    own, library = vars(pipeline), pipeline.progress_bar
    before = own.get("progress_bar")

    @functools.wraps(library)
    def progress_bar(*args: Any, **kwargs: Any) -> ProgressBarStandIn:
        return ProgressBarStandIn(library(*args, **kwargs), router)

    own["progress_bar"] = progress_bar
    try:
        yield
    finally:
        del own["progress_bar"]
        if before is not None:
            own["progress_bar"] = before


@contextmanager
def _routed_model(model: Any, router: Router) -> Iterator[None]:
    own, held = vars(model), "_old_forward" if "_old_forward" in vars(model) else "forward"
    before = own.get(held)
    if before is not None and getattr(before, "__func__", None) is not type(model).forward:
        raise UnsupportedBackboneError(
            f"Something else has replaced forward() of this {type(model).__name__}, perhaps another "
            "session that shares the model",
            remedy="Undo that first.",
        )

    library = type(model).forward

    @functools.wraps(library)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if not router.sampling:
            return library(model, *args, **kwargs)
        arguments = dict(_signature(library).bind(model, *args, **kwargs).arguments)
        del arguments["self"]
        form = {k: arguments.pop(k) for k in ("return_dict",) if k in arguments}
        router.calls.refuse_arguments(arguments)
        made: list[Any] = []

        def plain(stand_in: Any, **given: Any) -> Tensor:
            made[:] = [library(stand_in, **given, **form)]
            made.append(router.calls.sample(made[0]))
            return cast("Tensor", made[1])

        output = router.answer(model, arguments, plain)
        if made and output is made[1]:
            return made[0]  # the library's own, with whatever else it holds
        return router.calls.result(output) if form.get("return_dict", True) else (output,)

    @contextmanager
    def cache_context(name: str, **kwargs: Any) -> Iterator[None]:
        router.context = name
        try:
            with type(model).cache_context(model, name, **kwargs):
                yield
        finally:
            router.context = None

    own[held] = forward
    if hasattr(type(model), "cache_context"):
        own["cache_context"] = cache_context
    try:
        yield
    finally:
        own.pop("cache_context", None)
        # Offloading hooks may have been put around `forward`, or taken off, in the meantime.
        for place in ("forward", "_old_forward"):
            if own.get(place) is forward:
                own[place] = before or types.MethodType(type(model).forward, model)
        if before is None and own.get("forward") == types.MethodType(type(model).forward, model):
            del own["forward"]
