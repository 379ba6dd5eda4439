"""Sets of clips that policies are compared on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from attrs import field, frozen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["ClipSet", "EvaluationClip"]


@frozen(eq=False, kw_only=True)
class EvaluationClip:
    """One masked edit, with the right answer where it is known.

    Attributes:
        name: what the clip is called in tables.
        prompt: what belongs into the mask.
        video: (F, H, W, 3) uint8 source frames.
        mask: (F, H, W) bool; ``True`` means "edit".
        truth: (F, H, W, 3) uint8, the answer, or None where nobody knows it.
    """

    name: str
    prompt: str
    video: NDArray[np.uint8] = field(repr=False)
    mask: NDArray[np.bool_] = field(repr=False)
    truth: NDArray[np.uint8] | None = field(default=None, repr=False)


class ClipSet(ABC):
    """A fixed set of clips, at any size and length. Subclasses hold no state."""

    name: ClassVar[str]
    summary: ClassVar[str]
    version: ClassVar[str]
    """Changes whenever a clip of the set would look different."""

    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Names of the clips, each once, in the order of tables."""

    @abstractmethod
    def clip(self, name: str, *, frames: int, height: int, width: int) -> EvaluationClip:
        """Make or read one clip.

        Args:
            name: One of ``names()``.
            frames: Number of frames ``F``.
            height: Height ``H`` in pixels.
            width: Width ``W`` in pixels.

        Raises:
            ConfigError: There is no such clip, or not at this size or length.
        """
