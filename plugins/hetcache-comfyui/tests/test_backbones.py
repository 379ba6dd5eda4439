"""ComfyUI's models through the contract kit: stand-ins, and ComfyUI's own where a checkout is named."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from attrs import frozen
from torch import Tensor

from hetcache_comfyui import headless
from hetcache_comfyui.backbones import ComfyAny, ComfyLtx, ComfyWan
from hetcache_comfyui.sampling import model_of
from hetcache_comfyui.stand_ins import Euler, small_guider, small_mask, small_run
from hetcache_core import (
    ConfigError,
    Mode,
    PolicyRecipe,
    UnsupportedBackboneError,
    accelerate,
    discover,
)
from hetcache_core.testing import BackboneCase, BoundCheck, parametrize_with_checks, scripted

BACKBONES = {"wan": ComfyWan(), "ltx": ComfyLtx(), "any": ComfyAny()}


@frozen(eq=False)
class World:
    """A model, and who samples it: a stand-in, or ComfyUI's own."""

    name: str
    kind: str
    make: Callable[[int], Any]
    run: Callable[..., Tensor]
    twice: Any
    """A sampler that evaluates the model twice at some noise levels."""

    def __str__(self) -> str:
        return self.name

    @property
    def backbone(self) -> Any:
        return BACKBONES[self.kind]

    def guider(self, seed: int = 0) -> Any:
        made = self.make(seed)
        if self.kind == "ltx":  # its mask comes from a node
            made.edit_mask = small_mask(self.kind)
        return made

    @property
    def case(self) -> BackboneCase:
        blocks = {
            "wan": lambda guider: [block.ffn for block in model_of(guider).blocks],
            "ltx": lambda guider: [block.ff for block in model_of(guider).transformer_blocks],
        }
        return BackboneCase(
            name=self.name,
            backbone=self.backbone,
            make_pipeline=self.guider,
            run=self.run,
            main_blocks=blocks[self.kind],
            control_blocks=lambda guider: [
                block.ffn for block in getattr(model_of(guider), "vace_blocks", ())
            ],
        )


WORLDS = [
    World(kind, kind, partial(small_guider, kind), small_run, Euler(evaluations=2))
    for kind in BACKBONES
]
if headless.checkout() is not None:
    release = headless.start(Path(mkdtemp()))
    WORLDS += [
        World(
            f"{kind} of ComfyUI {release}",
            kind,
            partial(headless.guider, kind),
            partial(headless.run, kind=kind),
            "heun",
        )
        for kind in BACKBONES
    ]
DESCRIBED = [world for world in WORLDS if world.kind != "any"]
everywhere = pytest.mark.parametrize("world", WORLDS, ids=str)
described = pytest.mark.parametrize("world", DESCRIBED, ids=str)


@parametrize_with_checks(backbones=[world.case for world in DESCRIBED])
def test_contract_of_the_backbones(check: BoundCheck) -> None:
    check()


REFUSALS = ("lacks", "guidance", "what a", "leave none to reuse", "blocks")
"""What messages of policies that a model cannot carry speak of."""

SMALL = {"hetcache": {"margin": 0, "pad_to": 1, "threshold": 0.7}}
"""Settings for a grid so small that its margin would be most of it."""


def maker(kind: type[PolicyRecipe]) -> Any:
    return kind(**{**getattr(kind, "anywhere", {}), **SMALL.get(kind.name, {})})


@everywhere
def test_every_policy_runs_or_is_refused_with_what_is_missing(world: World) -> None:
    registry, guider, ran = discover(), world.guider(), {}
    refused: dict[str, str] = {}
    for name in registry.names("policy"):
        kind = registry.policy(name)
        if kind.needs_settings():
            continue
        try:
            with accelerate(guider, maker(kind), backbone=world.backbone) as session:
                assert world.run(guider, 12, "merged", 0).isfinite().all()
        except (UnsupportedBackboneError, ConfigError) as error:
            refused[name] = str(error)
        else:
            ran[name] = session.trace.totals()
    assert all(any(word in said for word in REFUSALS) for said in refused.values()), refused
    assert {"auto", "easycache", "every-nth", "magcache"} <= ran.keys()
    if world.kind != "any":
        assert {"hetcache", "teacache", "fbcache", "pab", "toca"} <= ran.keys()
        assert ran["hetcache"].steps_partial > 0
    assert ran["auto"].steps_reused > 0


@everywhere
def test_evaluations_that_are_no_step_of_the_schedule_are_the_librarys(world: World) -> None:
    guider = world.guider()
    bare = world.run(guider, 5, "merged", 0, sampler=world.twice)
    with accelerate(guider, "none", backbone=world.backbone) as session:
        computed = world.run(guider, 5, "merged", 0, sampler=world.twice)
    assert torch.equal(computed, bare)
    assert session.trace.modes() == [Mode.FULL] * 5
    with accelerate(guider, scripted(Mode.FULL, Mode.REUSE), backbone=world.backbone) as session:
        reused = world.run(guider, 5, "merged", 0, sampler=world.twice)
    assert session.trace.letters() == "FsFsF"
    assert not torch.equal(reused, bare)


@described
def test_what_another_node_runs_in_place_of_a_block_is_run(world: World) -> None:
    """Once for each block that runs, also where the trunk is entered with some tokens only."""
    ran: list[int] = []

    def replaced(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        ran.append(args["img"].shape[1])
        made: dict[str, Any] = extra["original_block"](args)
        return {"img": made["img"] * 0.5}

    guider = world.guider()
    plain = world.run(guider, 3, "merged", 0)
    options = guider.model_patcher.model_options["transformer_options"]
    options["patches_replace"] = {"dit": {("double_block", index): replaced for index in (0, 1)}}
    bare = world.run(guider, 3, "merged", 0)
    assert not torch.equal(bare, plain)
    assert len(ran) == 6
    with accelerate(guider, "none", backbone=world.backbone):
        assert torch.equal(world.run(guider, 3, "merged", 0), bare)
    assert len(ran) == 12
    with accelerate(guider, scripted(Mode.FULL, Mode.REUSE), backbone=world.backbone):
        world.run(guider, 3, "merged", 0)
    assert len(ran) == 16


@described
def test_without_another_mask_the_noise_mask_is_the_edit_mask(world: World) -> None:
    guider = world.make(0)
    if world.kind == "wan":
        guider.edit_mask = None
    mask = torch.zeros(1, 1, 3, 6, 8)
    mask[..., :2, :2] = 1
    with accelerate(guider, "hetcache", settings=SMALL["hetcache"]) as session:
        world.run(guider, 12, "merged", 0, mask=mask)
    roles = session.trace.tokens_by_role
    # VACE's own mask of 1 x 2 tokens a frame comes first; a token of LTX is one latent.
    assert roles["generative"] == {"wan": 6, "ltx": 12}[world.kind]
    assert session.trace.totals().steps_partial > 0


def test_a_reference_picture_comes_before_the_video_and_control_inputs_add_up() -> None:
    guider = small_guider("wan", 0)
    control = guider.conds[0]["vace_context"].repeat(1, 2, 1, 1, 1, 1)
    control[:, 1, :16] += 1
    control[:, :, 16:, 0] = 0  # as ComfyUI lays a reference out: nothing to edit, nothing masked
    control[:, :, 16:32, 1:] = 0.5
    for row in guider.conds:
        row |= {"vace_context": control, "vace_strength": [1.0, 0.7]}
    bare = small_run(guider, 4, "merged", 0)
    with accelerate(guider, "none") as session:
        computed = small_run(guider, 4, "merged", 0)
    # Two hints are added up before they are added: that rounds otherwise.
    torch.testing.assert_close(computed, bare, rtol=1e-4, atol=1e-5)
    assert session.trace.tokens == 36
    with accelerate(guider, "hetcache", settings=SMALL["hetcache"]) as session:
        small_run(guider, 12, "merged", 0)
    roles = session.trace.tokens_by_role
    assert (roles["pinned"], roles["generative"]) == (12, 4)
