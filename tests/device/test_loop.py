"""Which calls are those of the pipeline's loop, told without asking the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hetcache_core import CacheStateError, accelerate

pytest.importorskip("diffusers")

from hetcache_backends.diffusers.cases import (
    ltx_arguments,
    small_ltx,
    small_wan_vace,
    wan_vace_arguments,
)

STEPS = 6


def there(arguments: dict[str, Any]) -> dict[str, Any]:
    return {k: v.to("cuda:0") if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}


def library(pipe: Any, arguments: dict[str, Any]) -> torch.Tensor:
    answer: torch.Tensor = type(pipe.transformer).forward(pipe.transformer, **arguments)[0]
    return answer


@pytest.fixture
def pipe(log: Any) -> Any:
    return small_wan_vace(0).to("cuda:0")


def call_of(pipe: Any, latents: torch.Tensor, step: int) -> dict[str, Any]:
    return {
        "hidden_states": latents,
        "timestep": pipe.scheduler.timesteps[step][None],
        "encoder_hidden_states": wan_vace_arguments()["prompt_embeds"].to("cuda:0"),
        "control_hidden_states": torch.ones(1, 96, *latents.shape[2:], device="cuda:0"),
    }


def test_a_call_after_a_cancelled_run_is_the_library_s(pipe: Any) -> None:
    """``every-nth`` would have reused step 3."""

    def interrupt(pipeline: Any, step: int, now: Any, values: dict[str, Any]) -> dict[str, Any]:
        pipeline._interrupt = step == 2
        return {}

    with torch.no_grad(), accelerate(pipe, "every-nth") as session:
        arguments = there(wan_vace_arguments())
        latents = pipe(num_inference_steps=STEPS, callback_on_step_end=interrupt, **arguments)
        call = call_of(pipe, latents.frames, 3)
        answer = pipe.transformer(**call).sample
        assert torch.equal(answer, library(pipe, call))
    assert not session.trace.complete
    assert len(session.trace.records) == 2 * 3


def test_a_callback_s_own_call_is_the_library_s(pipe: Any) -> None:
    answers = []

    def ask(pipeline: Any, step: int, now: Any, values: dict[str, Any]) -> dict[str, Any]:
        call = call_of(pipeline, values["latents"], min(step + 1, STEPS - 1))
        answers.append(torch.equal(pipeline.transformer(**call).sample, library(pipeline, call)))
        return {}

    with accelerate(pipe, "every-nth") as session:
        arguments = there(wan_vace_arguments())
        pipe(num_inference_steps=STEPS, callback_on_step_end=ask, **arguments)
    assert answers == [True] * STEPS
    assert session.trace.complete


def test_where_nothing_tells_the_step_the_timestep_is_read(pipe: Any, log: Any) -> None:
    with torch.no_grad(), accelerate(pipe, "every-nth"):
        pipe.scheduler.set_timesteps(STEPS, device="cuda:0")
        call = call_of(pipe, torch.zeros(1, 16, 2, 8, 12, device="cuda:0"), 1)
        with pytest.raises(CacheStateError, match=f"at step 0 of {STEPS}"):
            pipe.transformer(**call)
    assert any(event.ours for event in log.take())


def test_timesteps_of_tokens_are_not_read_where_the_loop_tells_its_step(log: Any) -> None:
    """LTX-Video computes each token's timestep from the loop's, so that memory says nothing of it."""
    pipe = small_ltx(0).to("cuda:0")
    steps: list[list[Any]] = []

    def take(*_: object) -> None:
        steps.append([event for event in log.take() if event.ours])

    with accelerate(pipe, "every-nth", on_step=take):
        pipe(num_inference_steps=STEPS, **there(ltx_arguments()))
    assert len(steps) == STEPS
    assert not any(steps[1:])


def test_a_loop_over_the_timesteps_themselves_tells_its_step_and_when_it_is_left(log: Any) -> None:
    """DiffSynth's loop keeps its timesteps on the host, and says nowhere else how far it is."""
    pytest.importorskip("diffsynth")
    from hetcache_core import EditRequest, LoadRequest, discover

    adapter = discover().backbone("wan-vace")()
    pipe = adapter.random_models.pipeline(LoadRequest(device="cuda:0", dtype="float32"))
    request = EditRequest(
        video=np.zeros((5, 64, 96, 3), np.uint8), mask=np.ones((5, 64, 96), dtype=bool), steps=STEPS
    )
    calls: list[dict[str, Any]] = []
    own = pipe.model_fn
    with torch.no_grad(), accelerate(pipe, "every-nth") as session:
        routed = pipe.model_fn

        def cancelling(**arguments: Any) -> Any:
            calls.append(arguments)
            if len(calls) > 2 * 3:
                raise RuntimeError("cancelled")
            return routed(**arguments)

        pipe.model_fn = cancelling
        try:
            adapter.edit(pipe, request)
        except RuntimeError as error:
            assert str(error) == "cancelled"  # noqa: PT017 - its frames hold the loop until they go
        pipe.model_fn = routed
        call = calls[-1]  # which every-nth would have answered from the cache
        assert torch.equal(pipe.model_fn(**call), own(**call))
        assert not session.traces
