"""The pretended device itself: what it refuses and what it writes down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor


def on_device() -> Tensor:
    return torch.arange(6, dtype=torch.float32, device="cuda").view(2, 3)  # (2, 3)


def test_a_tensor_of_it_says_so_and_computes(log: Any) -> None:
    made = on_device() @ torch.ones(3, 1, device="cuda:0")
    assert made.device == torch.device("cuda:0")
    assert made.is_cuda
    assert log.take() == []
    assert made.flatten().tolist() == [3, 12]
    assert torch.where(made > 5, 1.0, 0.0).cpu().equal(torch.tensor([[0.0], [1.0]]))


def test_tensors_of_two_memories_do_not_meet(log: Any) -> None:
    for meeting in (torch.add, torch.mul, torch.maximum):
        with pytest.raises(RuntimeError, match="found one on the cpu"):
            meeting(on_device(), torch.ones(3))
    with pytest.raises(RuntimeError, match="found one on the cpu"):
        torch.nn.functional.scaled_dot_product_attention(
            on_device()[None], torch.ones(1, 2, 3), on_device()[None]
        )
    assert (on_device() * torch.tensor(2.0)).sum().item() == 30  # a number is no tensor to a GPU


def test_views_share_memory_and_copies_do_not(log: Any) -> None:
    whole, host = on_device(), torch.ones(3)
    row, copied = whole[1], host.to("cuda")
    row.mul_(0)
    copied.mul_(0)
    assert whole.sum().item() == 3
    assert host.sum() == 3
    assert row.is_set_to(whole[1])
    assert not row.is_set_to(whole[0])


def test_modules_move_there(log: Any) -> None:
    layer = torch.nn.Linear(3, 2)
    expected = layer(torch.ones(1, 3))
    moved = layer.to("cuda:0", torch.float32)
    assert next(moved.parameters()).device.type == "cuda"
    assert torch.equal(moved(torch.ones(1, 3, device="cuda")).cpu(), expected)


@pytest.mark.parametrize(
    ("ask", "what"),
    [
        (lambda x: x[0, 0].item(), "wait"),
        (lambda x: float(x[0, 0]), "wait"),
        (lambda x: int(x[0, 0]), "wait"),
        (lambda x: bool((x > 9).any()), "wait"),
        (lambda x: x.nonzero(), "wait"),
        (lambda x: x.unique(), "wait"),
        (lambda x: x[x > 1], "wait"),
        (lambda x: x.masked_select(x > 1), "wait"),
        (lambda x: torch.equal(x, x), "wait"),
        (lambda x: torch.cuda.synchronize(), "wait"),
        (lambda x: x.tolist(), "to host"),
        (lambda x: x.cpu(), "to host"),
        (lambda x: torch.ones(2).copy_(x[0, :2]), "to host"),
        (lambda x: torch.ones(2).to(x), "to device"),
        (lambda x: torch.tensor([1.0], device="cuda"), "to device"),
        (lambda x: x.new_tensor([1.0]), "to device"),
        (lambda x: x[0, :2].copy_(torch.ones(2)), "to device"),
        (lambda x: x[0, torch.tensor([1])], "to device"),
    ],
)
def test_waits_and_copies_are_written_down(
    log: Any, ask: Callable[[Tensor], Any], what: str
) -> None:
    given = on_device()
    log.take()
    ask(given)
    assert [(event.what, event.ours) for event in log.take()] == [(what, False)]


def test_casts_and_what_stays_are_no_copies(log: Any) -> None:
    given = on_device()
    given.to(torch.bfloat16)
    given.to("cuda:0")
    given.to(given)
    torch.as_tensor(given, device="cuda")
    torch.full((2,), 3.0, device="cuda")
    torch.randn(2, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    given[0, 1:] += 1
    assert log.take() == []


def test_marks_lie_a_millisecond_apart(log: Any) -> None:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record(torch.cuda.current_stream())
    end.record()
    assert begin.elapsed_time(end) == 1
    assert log.take() == []
