"""A comparison's folder with small real videos, and names that try to break out of the page."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from attrs import evolve

from hetcache_core.records.trace import Trace
from hetcache_core.tokens import Grid, mask_to_tokens

if TYPE_CHECKING:
    from hetcache.comparison.results.folder import Results

EVIL = "<script>document.title = 'broken into'</script>"
"""Name and prompt of a clip that a page must show as it is."""

FRAMES, HEIGHT, WIDTH, TOKEN, STRIDE = 33, 64, 96, 16, 4
FPS = Fraction(16)
WORST = 20
"""The frame in which the faster policy is worst."""

PLAN = {
    "arguments": {},
    "grid": {
        "backbones": ["tiny-vace"], "policies": ["hetcache", "teacache"], "seeds": [0], "steps": 4,
        "clips": [{"name": EVIL}, {"name": "plain"}], "repeat": 1,
    },
}  # fmt: skip
"""What was asked for, as far as it is read again."""

POLICIES = {"none": 1, "hetcache": 2, "teacache fast": 4}
"""Policies and variants, and how many times less each computes."""


def footage() -> np.ndarray:
    """A bright square that wanders over a gradient: (F, H, W, 3) uint8."""
    across = np.linspace(40, 120, WIDTH, dtype=np.uint8)
    frames = np.broadcast_to(across[None, None, :, None], (FRAMES, HEIGHT, WIDTH, 3)).copy()
    for index in range(FRAMES):
        frames[index, 16:32, index + 8 : index + 24] = (220, 60, 60)
    return frames


def masked() -> np.ndarray:
    """Where the square is: (F, H, W) bool."""
    mask = np.zeros((FRAMES, HEIGHT, WIDTH), dtype=bool)
    for index in range(FRAMES):
        mask[index, 16:32, index + 8 : index + 24] = True
    return mask


def trace_of(policy: str) -> Trace:
    """A trace with the number of tokens; only one of the policies knows roles."""
    tokens = ((FRAMES - 1) // STRIDE + 1) * (HEIGHT // TOKEN) * (WIDTH // TOKEN)
    roles: dict[str, int] = {}
    if policy == "hetcache":
        grid = Grid(
            frames=9, height=4, width=6, pixel_height=TOKEN, pixel_width=TOKEN, frame_stride=STRIDE
        )
        generative = mask_to_tokens(torch.from_numpy(masked()), grid)
        grown = torch.nn.functional.max_pool2d(generative.float(), 3, stride=1, padding=1) > 0
        generated, near = int(generative.sum()), int(grown.sum())
        roles = {
            "context": tokens - near, "margin": near - generated, "generative": generated, "pinned": 0,
        }  # fmt: skip
    return Trace(
        policy=policy, settings={}, backbone="tiny-vace", variant="", steps=4, requested_steps=4,
        tokens=tokens, tokens_by_role=roles, complete=True,
    )  # fmt: skip


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """A folder as ``hetcache compare`` leaves it: two clips, three policies, one refusal."""
    from PIL import Image

    from hetcache.comparison.results.folder import Results, Row, RowKey
    from hetcache.media.video import write_video

    results = Results(folder=tmp_path_factory.mktemp("comparison"))
    results.write_plan(PLAN)
    for clip in (EVIL, "plain"):
        folder = results.clip_folder(clip)
        folder.mkdir(parents=True)
        write_video(folder / "source.mp4", footage(), FPS)
        Image.fromarray(masked().reshape(-1, WIDTH).astype(np.uint8) * 255).save(
            folder / "mask.png"
        )
        (folder / "clip.json").write_text(json.dumps({"name": clip, "prompt": EVIL}))
        for label, speed in POLICIES.items():
            policy, _, variant = label.partition(" ")
            key = RowKey(
                backbone="tiny-vace", clip=clip, seed=0, policy=policy, variant=variant, steps=4,
                frames=FRAMES, height=HEIGHT, width=WIDTH,
            )  # fmt: skip
            made = footage()
            if speed > 1:
                made[:, 18:28, 40:50] += np.uint8(speed)
            if speed > 2:
                made[WORST, 16:32] = 255
            run = results.run_folder(key)
            run.mkdir(parents=True)
            write_video(run / "video.mp4", made, FPS)
            trace_of(policy).save(run / "trace.json")
            results.append(
                Row(
                    key=key,
                    modes="ffff" if speed == 1 else "ffpr" if speed == 2 else "frrr",
                    flops=10**12 // speed,
                    flops_full=10**12,
                    denoise_seconds=8.0 / speed,
                    total_seconds=9.0 / speed,
                    peak_cache_bytes=2**20,
                    metrics={"psnr_reference_mask": 60.0 / speed} if speed > 1 else {},
                    metric_notes={"lpips_reference": "needs --lpips FILE"},
                )
            )
        results.append(
            Row(key=evolve(key, policy="fbcache"), status="refused", note="<b>no</b> blocks")
        )
    return results


@pytest.fixture(scope="session")
def evil() -> str:
    return EVIL


@pytest.fixture(scope="session")
def plan() -> dict[str, object]:
    return PLAN
