"""YAML in which no key is there twice."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, Final

import yaml

__all__ = ["UniqueLoader"]

DEEPEST: Final = 50
"""Values within values; Python's own limit on recursion is whatever some library has made of it."""

MOST: Final = 100_000
"""Values of a file, each counted as often as it is named: a few lines may stand for all of memory."""


class UniqueLoader(yaml.SafeLoader):
    """Loads plain values alone, and refuses a key that is there twice: the last would win silently."""

    def __init__(self, stream: str) -> None:
        """Read a text."""
        super().__init__(stream)
        self._depth = 0
        self._sizes: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Read a value with all that is in it.

        Raises:
            yaml.composer.ComposerError: It is nested too deeply, has too much in it, or has itself in it.
        """
        again = self.check_event(yaml.AliasEvent)
        self._depth += 1
        node = super().compose_node(parent, index) if self._depth <= DEEPEST else None
        self._depth -= 1
        if node is None or (again and node not in self._sizes):
            what = "it is nested too deeply" if node is None else "a value is within itself"
            raise yaml.composer.ComposerError(None, None, what, None)
        if not again:
            self._sizes[node] = 1 + sum(self._sizes[each] for each in _within(node))
        if self._sizes[node] > MOST:
            what = f"it stands for more than {MOST:,} values"
            raise yaml.composer.ComposerError(None, None, what, None)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002 - as the library has it
        """Make a mapping.

        Raises:
            yaml.constructor.ConstructorError: A key is there twice.
        """
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"found the key {key.value!r} twice", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _within(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from (key, value)
