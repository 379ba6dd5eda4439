"""Following the loop of a library's pipeline, for adapters: runs, steps and model calls.

It fits pipelines that are made as diffusers makes them: ``pipeline.scheduler`` has ``set_timesteps``,
``timesteps`` and ``step``, and each step calls a model with a timestep. For the length of a session the
scheduler is a stand-in that tells of runs and steps, and the model's innermost ``forward`` is routed on
the instance, inside whatever is wrapped around it (offloading moves the weights there). Parts that are
replaced meanwhile are followed, and only what is still ours is taken back. Where the pipeline hands the
model to a function of its own, that one is routed. The library's own code still runs, with a stand-in
for the model whose blocks are one object, the trunk. What the calls mean is said by a ``ModelCalls``,
and that is the adapter.
"""

from __future__ import annotations

import copy
import functools
import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

from attrs import define, field

from hetcache_core.backbone.adapter import Backbone, ModelCall, RunInfo
from hetcache_core.backbone.modules import any_block_first, inner_forward, offloaded_groups
from hetcache_core.backbone.stand_ins import (
    ProgressBarStandIn,
    SchedulerStandIn,
    overridden,
    scheduler_stand_in,
)
from hetcache_core.errors import CacheStateError, PipelineBusyError, UnsupportedBackboneError
from hetcache_core.steps import BranchRows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from typing_extensions import Self

    from hetcache_core.backbone.ranks import Ranks
    from hetcache_core.backbone.trunk import RunTrunk
    from hetcache_core.engine.loop import Engine
    from hetcache_core.steps import ModelInfo
    from hetcache_core.tokens import Grid

LISTS: Final = ("timesteps", "sigmas")
"""Arguments of ``set_timesteps`` with which a pipeline brings its own schedule."""

PROBED: Final = 2
"""Steps that a copy of a scheduler is tried out for."""

# A model's forward is called twice a step, and its signature is made of its code each time it is asked for.
_signature = functools.cache(inspect.signature)


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

    def ranks(self, model: Any) -> Ranks | None:
        """Name the processes that share a model's rows, by default none."""
        return None

    def expert(self, model: Any) -> str:
        """Name the expert that a model is, "" where there is one model."""
        return ""

    def reset(self) -> None:
        """Forget the run; the pipeline begins a new one."""

    @contextmanager
    def routed(self) -> Iterator[None]:
        """Put further stand-ins on the pipeline while the context lasts."""
        yield


@define(eq=False)
class Router:
    """Stands between the pipeline's loop and the model's ``forward`` for one session.

    Attributes:
        models: the models that the pipeline calls, by its attributes.
        open: whether the session lasts; what stands in for a scheduler lives on in what was made of it.
    """

    backbone: Backbone
    engine: Engine
    calls: ModelCalls
    models: dict[str, Any]
    scheduler: Any = field(init=False)
    open: bool = field(default=True, init=False)
    at: int | None = field(default=None, init=False)
    """Timestep that the pipeline's loop is at, where it goes over them itself."""
    context: str | None = field(default=None, init=False)
    _stack: ExitStack = field(factory=ExitStack, init=False)
    _described: ModelInfo = field(init=False)
    _stand_in: Any = field(init=False)
    _groups: dict[int, list[Any]] = field(factory=dict, init=False)
    _begun: bool = field(default=False, init=False)
    """Whether a call has been answered since the schedule was set."""
    _routed: bool = field(default=False, init=False)
    _missed: bool = field(default=False, init=False)
    """Whether steps or calls went by that were not answered."""
    _step: int = field(default=0, init=False)
    _calls: int = field(default=0, init=False)
    _asked: int = field(default=0, init=False)
    _evaluations: int = field(default=1, init=False)
    _sampling: bool = field(default=False, init=False)
    _times: tuple[Any, list[float]] | None = field(default=None, init=False)
    """A dtype, and the scheduler's timesteps rounded to it on the host, read once a run."""

    def __enter__(self) -> Self:
        pipeline = self.calls.pipeline
        self._described = self.backbone.describe(pipeline)
        with self._stack:
            self._stand_before(_own_scheduler(pipeline))
            self._stack.callback(self._restore_scheduler)
            if hasattr(pipeline, "progress_bar"):
                self._stack.enter_context(self._watched_loop())
            if self.calls.function is not None:
                self._stack.enter_context(_routed_function(*self.calls.function, self))
            else:
                for model in self.models.values():
                    self._stack.enter_context(_routed_model(model, self))
            self._stack.enter_context(self.calls.routed())
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: object
    ) -> None:
        missed = self._missed or self._replaced()
        self.open = self._sampling = False
        self._stack.close()
        if error is None and missed:
            warnings.warn(
                f"A {type(self.calls.pipeline).__name__} ran in a session that had no part in it: its "
                "scheduler and its model are other ones than when the session began, or its calls are "
                "not those of its own loop. Replace parts before the session.",
                RuntimeWarning,
                stacklevel=2,
            )

    def follow(self) -> None:
        """Take the scheduler that the pipeline has by now, which may have been replaced."""
        found = self.calls.pipeline.scheduler
        if type(found) is type(self._stand_in) or not self.open:
            return
        found = _own_scheduler(self.calls.pipeline)
        timesteps = getattr(found, "timesteps", None)
        count = 0 if timesteps is None else len(timesteps)
        asked = getattr(found, "num_inference_steps", count)
        self._stand_before(found)
        if not asked:
            return  # its schedule is not set yet
        if self.engine.sampler_steps(asked) != asked:
            raise CacheStateError(
                "The scheduler was replaced inside the session, and the policy takes other steps than "
                "it has been set to",
                remedy="Replace it before the session, or call the pipeline again.",
            )
        self.sampler_reset(asked, asked)

    def _stand_before(self, scheduler: Any) -> None:
        """Put a stand-in for a scheduler on the pipeline."""

        @functools.wraps(scheduler.set_timesteps)  # pipelines look at its signature
        def set_timesteps(*args: Any, **kwargs: Any) -> Any:
            if not self.open:
                return scheduler.set_timesteps(*args, **kwargs)
            self._follow_models()
            given = inspect.signature(scheduler.set_timesteps).bind(*args, **kwargs)
            lists = {k: given.arguments[k] for k in LISTS if given.arguments.get(k) is not None}
            asked = given.arguments.get("num_inference_steps")
            asked = len(next(iter(lists.values()))) if asked is None else asked
            steps = self.engine.sampler_steps(asked)
            if steps != asked:
                given.arguments |= {k: _resampled(v, steps) for k, v in lists.items()}
                if given.arguments.get("num_inference_steps") is not None:
                    given.arguments["num_inference_steps"] = steps
            result = scheduler.set_timesteps(*given.args, **given.kwargs)
            self.sampler_reset(asked, steps)
            return result

        @functools.wraps(scheduler.step)
        def step(*args: Any, **kwargs: Any) -> Any:
            result = scheduler.step(*args, **kwargs)
            if self.open:
                guided = args[0] if args else kwargs.get("model_output")
                self.sampler_stepped(_sample(result), guided)
            return result

        self.scheduler = scheduler
        self._stand_in = scheduler_stand_in(scheduler, self, set_timesteps=set_timesteps, step=step)
        # Past the pipeline's own __setattr__, which would write it into its config.
        object.__setattr__(self.calls.pipeline, "scheduler", self._stand_in)

    def _restore_scheduler(self) -> None:
        if self.calls.pipeline.scheduler is self._stand_in:
            object.__setattr__(self.calls.pipeline, "scheduler", self.scheduler)

    def _follow_models(self) -> None:
        """Route models that took the place of ours inside the session."""
        for name, model in self.models.items():
            found = getattr(self.calls.pipeline, name, None)
            if found is model or found is None or self.calls.function is not None:
                continue
            if found not in self.models.values():
                self.calls.refuse(found, self.engine)
                self._stack.enter_context(_routed_model(found, self))
            self.models[name] = found

    def _replaced(self) -> bool:
        """Whether a run may have gone by unseen: neither scheduler nor model is ours any more."""
        pipeline = self.calls.pipeline
        found = pipeline.scheduler
        ran = getattr(found, "num_inference_steps", None) is not None
        others = any(
            getattr(pipeline, name, model) is not model for name, model in self.models.items()
        )
        return found is not self._stand_in and ran and others

    @contextmanager
    def _watched_loop(self) -> Iterator[None]:
        """Learn when the pipeline's loop is left: its progress bar is left with it."""
        library = self.calls.pipeline.progress_bar

        @functools.wraps(library)
        def progress_bar(*args: Any, **kwargs: Any) -> Any:
            return ProgressBarStandIn(library(*args, **kwargs), self)

        with overridden(self.calls.pipeline, "progress_bar", progress_bar):
            yield

    @property
    def sampling(self) -> bool:
        """Whether the pipeline is in its loop; outside of it the library answers itself."""
        self.follow()
        if not self._sampling and not self._routed:
            self._missed = True
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
        self._begun = False
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
        self._missed |= not self._begun
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
            self._groups = {id(model): offloaded_groups(model)}
            self.engine.begin_run(self._run_info(model, arguments, total - count, count))
            self._begun = self._routed = True
            self._missed = False
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

        with any_block_first(self._groups.setdefault(id(model), offloaded_groups(model))):
            return self.engine.model_call(call, forward)

    def _run_info(
        self, model: Any, arguments: Mapping[str, Any], offset: int, count: int
    ) -> RunInfo:
        described = self.backbone.describe(self.calls.pipeline)
        if described != self._described:
            raise UnsupportedBackboneError(
                "The pipeline has another model than when the session began, of other sizes",
                remedy="Leave the session and make one with the new model.",
            )
        timesteps, sigmas = _steps(self.scheduler, offset, count)
        device, mask = self.calls.latents_of(arguments).device, self.calls.mask(model, arguments)
        return RunInfo(
            model=described,
            timesteps=timesteps,
            sigmas=sigmas,
            grid=self.calls.grid(model, arguments),
            mask=None if mask is None else mask.to(device),
            branches=self.calls.run_branches(arguments, self.context),
            device=str(device),
            evaluations=self._evaluations,
            sampler=_sampler(self.scheduler, offset, sigmas),
            ranks=self.calls.ranks(model),
        )

    def _is_the_loops(self, given: Tensor, offset: int) -> bool:
        """Whether a call is the pipeline's loop's own, told on the host wherever that is possible.

        Raises:
            CacheStateError: it has another timestep than the scheduler is at.
        """
        place = offset + self._step
        pipeline = self.calls.pipeline
        current = getattr(pipeline, "_current_timestep", None)
        at = _place_of(current, self.scheduler) if self.at is None else self.at
        if at is not None and at != place:
            return False  # a call between the steps, such as a callback's
        another = current is None and hasattr(type(pipeline), "current_timestep")
        timesteps = self.scheduler.timesteps
        # Looking would wait for the device in every call. Where the schedule is kept on the host, the
        # first step tells whether the loop follows it.
        told = at is not None or (given.device != timesteps.device and self._step > 0)
        if told and given.device.type != "cpu" and not another:
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
        if another:
            raise CacheStateError(
                f"The model is called while the scheduler is at step {self._step}, and not by the loop "
                f"of the {type(pipeline).__name__} in the session",
                remedy="Give a pipeline that was made of its parts (components, copy) a session of its "
                "own, after this one. A loop of your own notes each timestep in pipeline._current_timestep "
                "before it calls the model, as the library's loops do.",
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
    for name, value in vars(trial).items():
        if isinstance(value, torch.Tensor):  # its schedule may be in a device's memory
            setattr(trial, name, value.cpu())
    latents = torch.linspace(-1, 1, 4).view(1, 1, 1, 2, 2)
    for index in range(PROBED):
        velocity = torch.linspace(1 + index, -1, 4).view_as(latents)
        expected = latents + (sigmas[index + 1] - sigmas[index]) * velocity
        try:
            with torch.random.fork_rng(devices=()):  # samplers that draw noise draw the run's own
                stepped = _sample(trial.step(velocity, trial.timesteps[offset + index], latents))
        except Exception:  # noqa: BLE001 - a sampler that cannot be tried out is none that is known
            return type(scheduler).__name__
        if stepped is None or not torch.allclose(stepped, expected, rtol=0, atol=1e-5):
            return type(scheduler).__name__
        latents = expected
    return "euler"


def _own_scheduler(pipeline: Any) -> Any:
    """Return a pipeline's scheduler, out of what a session that is over has left of its stand-in.

    Raises:
        PipelineBusyError: the pipeline is in a session.
        UnsupportedBackboneError: another pipeline, which has the same scheduler, is.
    """
    scheduler = pipeline.scheduler
    while isinstance(scheduler, SchedulerStandIn):
        router = scheduler.router
        if router.open and router.calls.pipeline is pipeline:
            raise PipelineBusyError(pipeline=type(pipeline).__name__)
        if router.open:
            raise UnsupportedBackboneError(
                f"This {type(pipeline).__name__} shares its scheduler with a pipeline in a session",
                remedy="Leave that session first, or give this one a copy of the scheduler.",
            )
        scheduler = scheduler.target
    return scheduler


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
    names = {id(value): name for name, value in _attributes(calls.pipeline)}
    by_name = {names.get(id(model), str(i)): model for i, model in enumerate(models)}
    with Router(backbone, engine, calls, by_name):
        yield


def _attributes(pipeline: Any) -> Iterator[tuple[str, Any]]:
    yield from vars(pipeline).items()
    yield from vars(pipeline).get("_modules", {}).items()  # of a pipeline that is a module itself


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

    with overridden(pipeline, name, function):
        yield


@contextmanager
def _routed_model(model: Any, router: Router) -> Iterator[None]:
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

    with ExitStack() as stack:
        stack.enter_context(inner_forward(model, forward))
        if hasattr(type(model), "cache_context"):
            stack.enter_context(overridden(model, "cache_context", cache_context))
        yield
