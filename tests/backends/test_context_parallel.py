"""diffusers' context parallelism: two processes that share the rows make what one makes, and decide alike."""

from __future__ import annotations

import multiprocessing
import re
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

pytest.importorskip("diffusers", minversion="0.42")
if sys.platform != "linux" or "fork" not in multiprocessing.get_all_start_methods():
    pytest.skip("the processes are forked, which spares them the imports", allow_module_level=True)

import torch
import torch.distributed as dist
from attrs import asdict, evolve
from diffusers import ContextParallelConfig
from diffusers.models import attention_dispatch
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from torch import Tensor

from hetcache_backends.diffusers.cases import (
    ltx_arguments,
    small_ltx,
    small_wan_vace,
    wan_vace_arguments,
)
from hetcache_backends.diffusers.samples.loop import SampleLoop
from hetcache_backends.diffusers.samples.sample import samples
from hetcache_core import HetCacheError, accelerate

STEPS = 6
CONFIG: Any = ContextParallelConfig
ROWS = ContextParallelInput(split_dim=1, expected_dims=3)
TABLE = ContextParallelInput(split_dim=1, expected_dims=4, split_output=True)
WAN_VACE_PLAN: Any = {
    "rope": {0: TABLE, 1: TABLE},
    "blocks.0": {"hidden_states": ROWS},
    "vace_blocks.0": {"hidden_states": ROWS, "control_hidden_states": ROWS},
    "proj_out": ContextParallelOutput(gather_dim=1, expected_dims=3),
}
"""diffusers has none for this class."""


def with_lse(ctx: Any, query: Tensor, key: Tensor, value: Tensor, *given: Any, **named: Any) -> Any:
    """Attention (B, n, heads, d) with what ring attention adds up by, which torch's own lacks."""
    split = [x.permute(0, 2, 1, 3) for x in (query, key, value)]
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*split)
    out = out.permute(0, 2, 1, 3)
    wanted = named.get("return_lse", len(given) > 5 and given[5])
    return (out, lse.permute(0, 2, 1)) if wanted else out


def shared(model: Any, ways: Any, plan: Any = None) -> None:
    """Share the rows of a model between both processes."""
    model.set_attention_backend("native")
    with mock.patch("torch.accelerator.device_count", return_value=1):
        model.enable_parallelism(config=CONFIG(**ways), cp_plan=plan)


def run(make: Any, call: Any, policy: Any, ways: dict[str, int] | None, plan: Any = None) -> Any:
    """Run a policy on a pipeline; its output, and its trace without what a clock has measured."""
    pipe = make()
    if ways is not None:
        shared(pipe.transformer, ways, plan)
    try:
        with torch.no_grad(), accelerate(pipe, policy) as session:
            out = call(pipe)
    except HetCacheError as error:
        return str(error)
    trace = asdict(session.trace)
    records = [
        {k: v for k, v in r.items() if k not in {"seconds", "cache_bytes"}}
        for r in trace["records"]
    ]
    return out, records, trace["decisions"]


def loop(name: str) -> Any:
    """Make a pipeline around a described class, which asks for tuples, as the hooks on a model demand."""
    own = samples()[name]

    def arguments(*given: Any) -> dict[str, Any]:
        return {**own.arguments(*given), "return_dict": False}

    return SampleLoop.of(evolve(own, arguments=arguments), 0)


def sampled(pipe: Any) -> Tensor:
    """Call a described class; all that it returns."""
    return torch.cat(pipe(STEPS).outputs)


POLICIES = (
    "adacache",  # looks at what blocks make
    "dbcache",  # probes the first blocks
    "fastcache",  # looks at the input of each block
    "fastercache-cfg",  # predicts a branch
    "pab+teacache",  # sub-layers, and the first block's input
)
WAYS = ({"ulysses_degree": 2}, {"ring_degree": 2})
ROUNDING = 1e-5
"""Ring attention adds its parts up in another order; Ulysses differs in nothing."""


def edit(pipe: Any) -> Tensor:
    """Edit a clip of 48 tokens."""
    made: Tensor = pipe(num_inference_steps=STEPS, **wan_vace_arguments()).frames
    return made


def cases() -> dict[str, tuple[Any, Any, Any, Any]]:
    """Name all cases: how the pipeline is made, how it is called, the policy and the plan."""
    made: dict[str, tuple[Any, Any, Any, Any]] = {
        policy: (lambda: small_wan_vace(0), edit, policy, WAN_VACE_PLAN)
        for policy in (*POLICIES, "duca", "hetcache")
    }
    wan, flux = "WanTransformer3DModel", "FluxTransformer2DModel"
    made["wan"] = (lambda: loop(wan), sampled, "teacache", None)
    made["flux"] = (lambda: loop(flux), sampled, "fbcache", None)

    def smallest(pipe: Any) -> Any:
        arguments = wan_vace_arguments()
        arguments |= {"height": 48, "width": 48, "num_frames": 1}
        arguments["video"], arguments["mask"] = arguments["video"][:1], arguments["mask"][:1]
        return pipe(num_inference_steps=STEPS, **arguments).frames  # 3 * 3 tokens

    made["odd"] = (lambda: small_wan_vace(0), smallest, "teacache", WAN_VACE_PLAN)

    def ltx(pipe: Any) -> Any:
        return pipe(num_inference_steps=STEPS, **ltx_arguments()).frames

    made["ltx"] = (lambda: small_ltx(0), ltx, "teacache", None)
    return made


def work(rank: int, folder: Path) -> None:
    """Run all cases in this process alone and then with the other one, and write what came of them."""
    torch.set_num_threads(1)
    attention_dispatch._native_attention_forward_op = with_lse
    store = f"file://{folder}/store"
    dist.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    found = {}
    for name, (make, call, policy, plan) in cases().items():
        one = run(make, call, policy, None)
        found[name] = one, [run(make, call, policy, ways, plan) for ways in WAYS]
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=work, args=(rank, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("case", [*POLICIES, "wan", "flux"])
def test_two_processes_make_what_one_makes_and_decide_alike(
    found: list[dict[str, Any]], case: str
) -> None:
    (output, records, decisions), together = found[0][case]
    for way, mine, others in zip(WAYS, together, found[1][case][1], strict=True):
        assert torch.equal(mine[0], others[0])
        assert mine[1:] == others[1:]
        torch.testing.assert_close(mine[0], output, rtol=ROUNDING, atol=ROUNDING)
        if case != "flux" and "ulysses_degree" in way:
            assert torch.equal(mine[0], output)
        assert _alike(mine[1:], (records, decisions))


def _alike(one: Any, own: Any) -> bool:
    """Whether two records are equal, numbers within rounding."""
    if isinstance(one, dict):
        return all(_alike(value, own[name]) for name, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(own) and all(map(_alike, one, own))
    if isinstance(one, float):
        return bool(one == pytest.approx(own, rel=1e-3, abs=1e-9))
    if isinstance(one, str):  # a reason may name a number
        return re.sub(r"[\d.]+", "", one) == re.sub(r"[\d.]+", "", own)
    return bool(one == own)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("duca", "computes some of the tokens"),
        ("hetcache", "policy 'hetcache' computes some of the tokens"),
        ("odd", "9 rows of the video do not divide by 2 processes"),
        ("ltx", "context parallelism of a LTXVideoTransformer3DModel.*mask"),
    ],
)
def test_what_processes_cannot_share_is_refused_on_each(
    found: list[dict[str, Any]], case: str, message: str
) -> None:
    told = [text for each in found for text in each[case][1]]
    assert len(told) == 2 * len(WAYS)
    for text in told:
        assert re.search(message, text), text
