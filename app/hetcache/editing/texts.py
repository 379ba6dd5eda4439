"""Text is encoded once for all windows of a clip: the encoder is often the largest model of a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from torch import Tensor, nn

from hetcache_core import overridden

__all__ = ["texts_once"]

LONGEST: Final = 1 << 16
"""Numbers of the longest text that is remembered; prompts have a few hundred."""


@contextmanager
def texts_once(pipeline: Any) -> Iterator[None]:
    """Let a pipeline's text encoders give again what they gave for the same words, while the block lasts.

    Args:
        pipeline: A library's; its encoders are the modules whose names begin with ``text_encoder``.
    """
    own = getattr(pipeline, "__dict__", {})
    found = {**own, **own.get("_modules", {})}
    with ExitStack() as stack:
        for name, module in found.items():
            if name.startswith("text_encoder") and isinstance(module, nn.Module):
                stack.enter_context(overridden(module, "forward", _remembering(module.forward)))
        yield


def _remembering(forward: Callable[..., Any]) -> Callable[..., Any]:
    given: dict[Any, Any] = {}

    def remembered(*args: Any, **kwargs: Any) -> Any:
        key = _key([*args, *sorted(kwargs.items())])
        if key is None:
            return forward(*args, **kwargs)
        if key not in given:
            given[key] = forward(*args, **kwargs)
        return given[key]

    return remembered


def _key(value: Any) -> Any:
    """Turn words and settings into something to look up by; None for what is neither."""
    if isinstance(value, Tensor):
        if value.is_floating_point() or value.numel() > LONGEST:
            return None
        return (
            str(value.dtype),
            str(value.device),
            tuple(value.shape),
            tuple(value.flatten().tolist()),
        )
    if isinstance(value, list | tuple):
        keys = tuple(_key(each) for each in value)
        return None if None in keys else keys
    if value is None or isinstance(value, str | int | float | bool):
        return repr(value)
    return None
