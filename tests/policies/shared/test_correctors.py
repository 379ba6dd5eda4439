"""What is paid back, against a gap that can be worked out by hand."""

from __future__ import annotations

import pytest
import torch

from hetcache_core.policy.pieces import Gap
from hetcache_policies.shared.correctors import Payback

SIGMAS = (1.0, 0.9, 0.7, 0.4, 0.0)


def test_the_drift_of_a_gap_by_hand() -> None:
    """Steps 1 and 2 miss -0.1 / -0.6 and -0.3 / -0.6 of what step 3 finds, over -0.2 and -0.3."""
    gap = Gap(step=3, last=0, sigmas=SIGMAS)
    assert gap.drift == pytest.approx((-0.2 * 0.1 + -0.3 * 0.3) / 0.6)
    assert Gap(step=3, last=2, sigmas=SIGMAS).drift == 0


def test_an_error_that_grows_with_the_noise_removed_is_paid_back_whole() -> None:
    """A sampler whose model does not look at its latents ends where it would have without the gap."""
    slope = 2.0

    def true(index: int) -> float:
        return 1.0 + slope * (SIGMAS[index] - SIGMAS[0])

    honest = skipped = torch.zeros(1)
    for index in range(4):
        distance = SIGMAS[index + 1] - SIGMAS[index]
        honest = honest + true(index) * distance
        found = torch.tensor([true(index) if index in {0, 3} else true(0)])
        if index == 3:
            gap = Gap(step=3, last=0, sigmas=SIGMAS)
            found = Payback(beta=0.0).correct(found, torch.tensor([true(0)]), gap)
        skipped = skipped + found * distance
    torch.testing.assert_close(skipped, honest)


def test_the_model_that_undoes_a_part_itself_is_paid_that_part_less() -> None:
    gap = Gap(step=2, last=0, sigmas=SIGMAS)
    output, expected = torch.tensor([3.0]), torch.tensor([1.0])
    error = 2.0 * gap.drift
    found = Payback(beta=0.5).correct(output, expected, gap)
    assert float(found) == pytest.approx(3.0 + error / -0.3 + 0.5 * error / 0.7)
