"""What a library's code sees in place of its own objects, for the length of a session."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor

from hetcache_core.errors import UnsupportedBackboneError

if TYPE_CHECKING:
    from types import TracebackType

    from hetcache_core.backbone.routing import Router


@final
class StandIn:
    """An object with some of its attributes replaced; everything else is the object's own.

    Its methods see what is replaced, too.
    """

    def __init__(self, target: Any, **replaced: Any) -> None:
        self.__dict__.update(replaced)
        self.__dict__["_target"] = target

    @property  # type: ignore[misc]  # methods of the object's class may call those of its bases
    def __class__(self) -> type:
        return type(self._target)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if isinstance(value, types.MethodType) and value.__self__ is self._target:
            return types.MethodType(value.__func__, self)
        return value


@final
class Override:
    """A function among an object's own attributes, in place of a method; copies of the object get the method.

    Attributes:
        method: the bound method, or whatever the object had there.
    """

    def __init__(self, function: Callable[..., Any], method: Any) -> None:
        functools.update_wrapper(self, function)
        self._function, self.method = function, method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self._function(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.method, memo)

    def __reduce__(self) -> Any:
        return _same, (self.method,)


def _same(value: Any) -> Any:
    return value


@contextmanager
def overridden(owner: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Put a function in the place of an object's method while the context lasts.

    Args:
        owner: the object; its class stays as it is.
        name: of the method.
        function: takes what the bound method takes.
    """
    own = vars(owner)
    before = own.get(name)
    override = Override(function, getattr(owner, name))
    own[name] = override
    try:
        yield
    finally:
        if own.get(name) is override:  # otherwise somebody has put another one there
            del own[name]
            if before is not None:
                own[name] = before


class SchedulerStandIn:
    """The pipeline's scheduler, which also tells the router about runs and steps.

    It is of a class of its own below the scheduler's, and shares the scheduler's attributes, so that
    whatever asks for its class or makes another of it is answered as by the scheduler. Copies of it are
    copies of the scheduler, and once its session is over it is no more than that.
    """

    target: ClassVar[Any]
    router: ClassVar[Router]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make what the library makes: ``type(pipe.scheduler).from_config(...)``."""
        return type(cls.target)(*args, **kwargs)

    def __copy__(self) -> Any:
        return copy.copy(self.target)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.target, memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _same, (self.target,)


def scheduler_stand_in(
    target: Any, router: Router, **replaced: Callable[..., Any]
) -> SchedulerStandIn:
    """Make a stand-in for a scheduler.

    Args:
        target: the scheduler.
        router: what it tells.
        **replaced: functions by the name of the method that they replace.

    Raises:
        UnsupportedBackboneError: the scheduler has no attributes that could be shared.
    """
    kind = type(target)
    if not hasattr(target, "__dict__"):
        raise UnsupportedBackboneError(
            f"A {kind.__name__} has slots in place of attributes, so a session cannot follow it",
            remedy="Make it a class without __slots__ (attrs: slots=False).",
        )

    def member(name: str, function: Callable[..., Any]) -> property:
        # A property comes before what stands among the shared attributes.
        def replace(_: Any, value: Any) -> None:
            vars(target)[name] = value

        return property(lambda _: function, replace)

    def followed(_: Any) -> Any:
        timesteps = target.timesteps
        if type(timesteps) is not Tensor or not router.open:
            return timesteps  # a tensor of a class of its own takes no second one
        told = timesteps.as_subclass(FollowedTimesteps)
        told.router = router
        return told

    members = {name: member(name, function) for name, function in replaced.items()}
    if not hasattr(type(router.calls.pipeline), "current_timestep"):
        # Where the pipeline does not tell the step that its loop is at, its timesteps do.
        members["timesteps"] = property(
            followed, lambda _, value: setattr(target, "timesteps", value)
        )
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    own = type(
        kind.__name__,
        (SchedulerStandIn, kind),
        {**names, **members, "target": target, "router": router},
    )
    made: SchedulerStandIn = object.__new__(own)
    object.__setattr__(made, "__dict__", vars(target))
    return made


@final
class FollowedTimesteps(Tensor):
    """A schedule's timesteps (S,), which tell the router how far a loop over them is."""

    router: Router
    # What is made of them is plain.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # noqa: SLF001

    def __iter__(self) -> Iterator[Tensor]:
        timesteps = self.as_subclass(Tensor).unbind()
        if self.router.at is not None:  # somebody looks at them inside the loop
            yield from timesteps
            return
        try:
            for index, timestep in enumerate(timesteps):
                self.router.at = index
                yield timestep
        finally:
            self.router.at = None
            self.router.loop_left(GeneratorExit())


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
        try:
            yield from self._target
        except BaseException as error:  # also where an exception leaves the loop over this
            self._router.loop_left(error)
            raise
        self._router.loop_left(None)
