"""Keep the context tokens next to the edit."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen
from torch.nn.functional import max_pool2d

from hetcache_core import ContextSelector, Role, Selection, SelectionRequest, setting


@frozen(kw_only=True)
class Near(ContextSelector):
    """Those within `radius` tokens of an edited one first, then the rest in their order."""

    name: ClassVar[str] = "near"
    summary: ClassVar[str] = "the context next to the edit first"

    radius: int = setting(2, ge=0, doc="how near, in tokens")

    def select(self, request: SelectionRequest) -> Selection:
        """Called now and then after a full step; (|C|,) positions, best first."""
        grid, roles = request.partition.grid, request.partition.roles
        edited = (roles[grid.prefix :] == int(Role.GENERATIVE)).float()  # (T * h * w,)
        frames = edited.view(grid.frames, 1, grid.height, grid.width)
        near = max_pool2d(frames, 2 * self.radius + 1, stride=1, padding=self.radius).flatten()
        order = near[request.partition.of(Role.CONTEXT) - grid.prefix]  # (|C|,) 1 is near
        return Selection(order.argsort(descending=True, stable=True))
