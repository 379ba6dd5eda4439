"""Counting what the blocks of a model really compute, by hooks on the library's own modules.

Hooks on whole blocks would not do: a cache that replaces a block's ``forward`` is still called. So every
linear layer in a block counts its own calls, and every attention its scores when its output is projected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from attrs import define, field
from peer_subjects import Subject
from torch import Tensor, nn

PROJECTIONS: Final = (("to_q", "to_k", "to_out"), ("q", "k", "o"))
"""Names of the projections of queries, keys and output in diffusers and in DiffSynth."""


@define(eq=False)
class BlockFlops:
    """FLOPs (2 x MAC) of linear layers and attention, by stack.

    Attributes:
        main: of the main blocks.
        control: of the control branch's blocks.
        computed: how often the feed-forward of a block ran, by stack.
    """

    main: int = field(default=0, init=False)
    control: int = field(default=0, init=False)
    computed: Counter[str] = field(factory=Counter, init=False)

    @property
    def total(self) -> int:
        """FLOPs of both stacks."""
        return self.main + self.control

    @contextmanager
    def watching(self, subject: Subject) -> Iterator[BlockFlops]:
        """Count for as long as the ``with`` block lasts."""
        with ExitStack() as stack:
            for name, blocks in (("main", subject.main), ("control", subject.control)):
                for block in blocks:
                    for handle in self._watch(name, block):
                        stack.callback(handle.remove)
            yield self

    def _add(self, name: str, flops: int) -> None:
        setattr(self, name, getattr(self, name) + flops)

    def _watch(self, name: str, block: nn.Module) -> list[Any]:
        handles = [
            module.register_forward_pre_hook(lambda m, a: self._add(name, _linear_flops(m, a[0])))
            for module in block.modules()
            if isinstance(module, nn.Linear)
        ]
        for module in block.modules():
            handles += self._watch_attention(name, module)
        feed_forward: Any = next(
            m for n in ("ff", "ffn", "img_mlp") if (m := getattr(block, n, None))
        )
        last = [m for m in feed_forward.modules() if isinstance(m, nn.Linear)][-1]

        def count(*_: Any) -> None:
            self.computed[name] += 1

        return [*handles, last.register_forward_pre_hook(count)]

    def _watch_attention(self, name: str, module: nn.Module) -> list[Any]:
        found = next((p for p in PROJECTIONS if all(hasattr(module, part) for part in p)), None)
        if found is None:
            return []
        keys, out = (getattr(module, part) for part in found[1:])
        out = out[0] if isinstance(out, nn.ModuleList) else out
        last = {"keys": 0}

        def see_keys(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            last["keys"] = arguments[0].shape[1]

        def see_output(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            # Scores, and values weighted by them: two products of (N, D) with (M, D).
            self._add(name, 4 * arguments[0].numel() * last["keys"])

        return [
            keys.register_forward_pre_hook(see_keys),
            out.register_forward_pre_hook(see_output),
        ]


def _linear_flops(module: Any, given: Tensor) -> int:
    return 2 * given.numel() * int(module.out_features)
