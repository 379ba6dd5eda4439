"""What a card would feel of a step, counted: the meter on known work, and the bounds on small models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("diffsynth")
pytest.importorskip("diffusers")

import counts
from harness import main, read_csv
from harness.counting import CARDS, Meter, weightless
from harness.report import BAD_INPUT

CARD = CARDS["h200"]
ROWS, WIDTH, OUT = 12, 8, 6


def test_matrices_count_flops_and_all_else_bytes() -> None:
    x, weight, table = torch.ones(ROWS, WIDTH), torch.ones(OUT, WIDTH), torch.ones(100, WIDTH)
    rows = torch.arange(0, ROWS, 3)
    with Meter(CARD) as meter:
        nn.functional.linear(x, weight)
        product = meter.take()
        x.view(WIDTH, ROWS).T.add(1)  # a view costs nothing
        x + torch.ones(1, WIDTH).expand(ROWS, WIDTH)  # what is repeated is read once
        added = meter.take()
        table.index_select(0, rows)
        table.index_copy_(0, rows, torch.ones(1, 1).expand(len(rows), WIDTH))
        picked = meter.take()
    number = x.element_size()
    assert (product.operations, product.flops, product.bytes) == (1, 2 * ROWS * WIDTH * OUT, 0)
    assert added.operations == 3  # making the ones as well
    assert added.bytes == number * (4 * ROWS * WIDTH + 2 * WIDTH)
    assert picked.operations == 3
    assert picked.bytes == number * (2 * len(rows) * WIDTH + 1 + 2)
    assert product.device_s == number * (ROWS * WIDTH + OUT * WIDTH + ROWS * OUT) / CARD.bandwidth
    assert added.seconds(CARD) == 3 * CARD.host_s  # as small as this, the host takes longer


def test_models_without_weights_run_and_are_counted_as_those_with_weights() -> None:
    with weightless():
        empty = nn.Linear(WIDTH, OUT).to(torch.bfloat16)
    whole, x = nn.Linear(WIDTH, OUT), torch.ones(ROWS, WIDTH)
    with Meter(CARD) as meter:
        made = empty(x.bfloat16())
        meter.take()
        empty(made[:, :0].new_zeros(ROWS, WIDTH))
        without = meter.take()
        whole(x)
        assert meter.take().flops == without.flops == 2 * ROWS * WIDTH * OUT
    assert made.shape == (ROWS, OUT)
    assert made.dtype is torch.bfloat16
    assert nn.Linear(1, 1).weight.isfinite().all()  # what is made later has weights again


def test_bounds_hold_on_a_small_model(tmp_path: Path) -> None:
    """Two blocks, so that what is done once for a call counts for more than at 30.

    At published sizes ``benchmarks/counts.py --check`` holds them.
    """
    path, once = tmp_path / "counts.csv", 15
    arguments = ["--scale", "tiny", "--sizes", "9x192x192", "--backbones", "wan-vace"]
    arguments += ["--shares", "0.3", "--keys", "cached", "--policies", "none"]
    assert main(counts.BENCHMARK, [*arguments, "--output", str(path)]) == 0
    bare, *steps = read_csv(path)
    seen = {row["step"]: int(row["operations"]) for row in reversed(steps)}
    allowed = counts.OPERATIONS_LIMIT * int(bare["operations"]) + once
    assert seen.keys() == {"full", "partial", "reuse"}
    assert max(seen["full"], seen["partial"]) <= allowed
    of_bytes, of_reused = counts.trunk_bounds([dict(row) for row in (bare, *steps)])[1:]
    assert of_bytes.what.startswith("bytes share")
    assert of_bytes.holds, of_bytes
    assert of_reused.holds, of_reused


def test_a_card_that_is_not_known_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(counts.BENCHMARK, ["--card", "abacus"]) == BAD_INPUT
    assert "Use one of h200" in capsys.readouterr().err
