"""Any diffusion model of ComfyUI as a trunk of one block: the whole call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

from attrs import define
from torch import Tensor

from hetcache_comfyui.sampling import DiffusionCall, DitCalls
from hetcache_core import (
    BlockHooks,
    ContractError,
    DitFlops,
    FlopModel,
    Grid,
    RunTrunk,
    SubLayer,
    TrunkCall,
    TrunkView,
    UnsupportedBackboneError,
    matrix_macs,
)


@final
class WholeCalls(DitCalls):
    """What the calls of a model mean of which nothing is known but its latents."""

    def grid(self, call: DiffusionCall) -> Grid:
        """Lay out the latents, each of them a token; what pixels they cover is not known."""
        *frames, height, width = call.x.shape[2:] if call.x.dim() > 3 else (1, call.x.shape[-1])  # noqa: PLR2004
        count = frames[0] if frames else 1
        return Grid(
            frames=count,
            height=height,
            width=width,
            pixel_height=1,
            pixel_width=1,
            frame_stride=1,
        )

    def mask(self, call: DiffusionCall, grid: Grid) -> Tensor | None:
        """Take none: which pixels a latent covers is not known."""
        return None

    def answer(self, call: DiffusionCall, run: RunTrunk) -> Tensor:
        """Answer the whole call by the engine."""
        latents = call.latents

        def library() -> Tensor:
            output = call.library()
            if output.shape != latents.shape:
                raise UnsupportedBackboneError(
                    f"A {type(call.model).__name__} takes latents {tuple(latents.shape)} and makes "
                    f"{tuple(output.shape)}, so there is no change from one to the other to keep",
                )
            return output

        x = latents.flatten(2).transpose(1, 2)  # (B, N, C)
        rows = call.x.shape[0]
        flops = DitFlops(
            batch=rows, width=0, around=0, row={SubLayer.FEED_FORWARD: matrix_macs(call.model)}
        )
        trunk = WholeTrunk(x=x, library=library, flops=flops, name=type(call.model).__name__)
        return run(trunk).transpose(1, 2).reshape(latents.shape)


@final
@define(eq=False, kw_only=True)
class WholeTrunk(TrunkCall, TrunkView):
    """One call of a model.

    Attributes:
        x: (B, N, C) latents.
        library: makes the output, of the shape of the latents.
        flops: one product of every latent with all matrices; what a call really costs is not known, but
            all calls of a run cost the same.
        name: of the model's class.
    """

    x: Tensor
    library: Callable[[], Tensor]
    flops: FlopModel
    name: str

    @property
    def layers(self) -> int:
        """The one block."""
        return 1

    @property
    def control_layers(self) -> tuple[int, ...]:
        """There is no control branch."""
        return ()

    @property
    def heads(self) -> int:
        """Not known, and counted as one."""
        return 1

    def view(self, rows: Tensor | None) -> WholeTrunk:
        """Return all rows, which cannot be told apart.

        Raises:
            ContractError: some rows are asked for.
        """
        if rows is not None:
            raise ContractError("a whole call cannot run on some tokens")
        return self

    def block(
        self, index: int, hidden: Tensor, hint: Tensor | None, hooks: BlockHooks | None
    ) -> Tensor:
        """Run the model: (B, N, C)."""
        return self.library().flatten(2).transpose(1, 2)

    def control(self, index: int, hooks: BlockHooks | None) -> Tensor:
        """Refuse: there is no control branch."""
        raise ContractError("This call has no control branch.")

    def timestep_embeddings(self, timesteps: Sequence[float]) -> Tensor:
        """Refuse: see ``UnsupportedBackboneError``."""
        raise self._unknown()

    def timestep_modulations(self, timesteps: Sequence[float]) -> Tensor:
        """Refuse likewise."""
        raise self._unknown()

    def modulated_input(self, modulation: Tensor) -> Tensor:
        """Refuse likewise."""
        raise self._unknown()

    def _unknown(self) -> UnsupportedBackboneError:
        return UnsupportedBackboneError(
            f"This policy looks at what a {self.name} makes of its timestep, which is not known",
            backbone="comfy-any",
            remedy="Choose one that looks at latents or at nothing: 'auto', 'easycache' or 'every-nth'",
        )
