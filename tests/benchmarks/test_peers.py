"""The comparison with other people's caches, and what is wrong in them, each run as it is."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("diffusers")
pytest.importorskip("diffsynth")

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")
if BENCHMARKS not in sys.path:  # scripts import each other from beside them
    sys.path.insert(0, BENCHMARKS)

# ruff: noqa: E402 - they are found only from here on
import peers
from block_flops import BlockFlops
from diffusers import (
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from harness import main
from peer_caches import PEERS, Peer, cache_dit_cache, diffusers_cache
from peer_subjects import SIZES, Subject, make_subject

STEPS = 8
BY_NAME = {(peer.library, peer.name): peer for peer in PEERS}
SAME = 1e-5
"""Rounding of fp32 sums of some ten terms."""


@pytest.fixture(scope="module")
def wan() -> Subject:
    return make_subject("wan-vace-diffusers", SIZES["tiny"], device="cpu", steps=STEPS)


@pytest.fixture(scope="module")
def ltx() -> Subject:
    return make_subject("ltx-video", SIZES["tiny"], device="cpu", steps=STEPS)


@pytest.fixture(scope="module")
def diffsynth() -> Subject:
    return make_subject("wan-vace", SIZES["tiny"], device="cpu", steps=STEPS)


@pytest.fixture
def subject(request: pytest.FixtureRequest) -> Subject:
    found: Subject = request.getfixturevalue(request.param)
    return found


on_both = pytest.mark.parametrize("subject", ["wan", "ltx"], indirect=True)
needs_cache_dit = pytest.mark.skipif(
    BY_NAME["cache-dit", "DBCache"].missing() is not None, reason="cache-dit is not installed"
)


def counted(subject: Subject, **arguments: Any) -> BlockFlops:
    with BlockFlops().watching(subject) as found:
        subject.run(**arguments)
    return found


def error(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


# The benchmark


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def measured(tmp_path: Path, *arguments: str) -> tuple[int, list[dict[str, str]]]:
    output = tmp_path / "peers.csv"
    size = ("--size", "tiny", "--steps", "6", "--repeats", "1", "--output", str(output))
    code = main(peers.BENCHMARK, [*size, *arguments])
    return code, rows_of(output) if output.exists() else []


@pytest.mark.parametrize(
    ("backbone", "peer"),
    [
        ("wan-vace", "TeaCache"),
        ("wan-vace-diffusers", "MagCache"),
        ("wan-vace-diffusers", "PAB"),
        ("ltx-video", "TaylorSeer lite"),
        pytest.param("ltx-video", "DBCache", marks=needs_cache_dit),
    ],
)
def test_ours_is_run_beside_a_peer_and_computes_no_more(
    tmp_path: Path, backbone: str, peer: str
) -> None:
    code, rows = measured(tmp_path, "--backbones", backbone, "--peers", peer)
    bare, theirs, *ours = rows
    assert code == 0
    assert [row["cache"] for row in (bare, theirs)] == ["uncached", peer]
    assert float(bare["all blocks"]) == 1
    assert 0 < float(theirs["all blocks"]) < 1
    assert float(theirs["relative error"]) > 0
    assert {row["at equal"] for row in ours} >= {"main"}
    for row in ours:
        share = f"{row['at equal'].replace('total', 'all')} blocks"
        assert 0 < float(row[share]) <= float(theirs[share]) + peers.SLACK, row
        assert float(row["seconds"]) > 0
        assert float(row["PSNR, dB"]) > 0


def test_a_later_measurement_is_held_against_an_earlier_one(tmp_path: Path) -> None:
    which = ("--backbones", "ltx-video", "--peers", "TaylorSeer")
    code, rows = measured(tmp_path, *which)
    before = tmp_path / "before.csv"
    (tmp_path / "peers.csv").rename(before)
    # What a cache computes must stay the same; seconds are a machine's own.
    changed = before.read_text(encoding="utf-8").splitlines()
    assert code == 0
    assert len(rows) == 2
    again = ("--compare", str(before), "--fail-if-regression", "--margin", "100")
    assert measured(tmp_path, *which, *again)[0] == 0
    column = changed[0].split(",").index("all blocks")
    cells = changed[2].split(",")
    cells[column] = "0.2"
    before.write_text("\n".join([*changed[:2], ",".join(cells)]) + "\n", encoding="utf-8")
    assert measured(tmp_path, *which, *again[:-1], "0.1")[0] == 1


def test_a_peer_that_is_missing_or_fails_is_a_row_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: Any) -> AbstractContextManager[dict[str, Any]]:
        raise ValueError("not on this model")

    known = evolve(BY_NAME["diffusers", "TaylorSeer"], open=fail)
    absent = Peer(name="Absent", library="no-such-cache", backbones=("ltx-video",), open=fail)
    monkeypatch.setattr(peers, "PEERS", (absent, known))
    options = peers.PeerOptions(
        backbones=("ltx-video",), peers=("Absent", "TaylorSeer"), size="tiny", steps=2, repeats=1
    )
    report = peers.run(options)
    assert [row["note"] for row in report.rows] == [
        "no-such-cache is not installed: pip install no-such-cache",
        "ValueError: not on this model",
    ]
    assert {row["seconds"] for row in report.rows} == {None}


@pytest.mark.parametrize(
    "arguments", [("--size", "huge"), ("--peers", "Cache"), ("--backbones", "tiny")]
)
def test_names_that_nothing_has_are_one_clear_error(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, str]
) -> None:
    assert main(peers.BENCHMARK, arguments) == 2
    assert f"{arguments[1]!r} is none of" in capsys.readouterr().err


@on_both
def test_the_blocks_flops_are_those_that_torch_counts(subject: Subject) -> None:
    block = subject.main[1]
    caught: list[tuple[Any, Any]] = []
    hook = block.register_forward_pre_hook(
        lambda _, args, kwargs: caught.append((args, kwargs)), with_kwargs=True
    )
    subject.run()
    hook.remove()
    args, kwargs = caught[0]
    found = BlockFlops()
    with (
        torch.no_grad(),
        found.watching(evolve(subject, main=[block], control=[])),
        FlopCounterMode(display=False) as counter,
    ):
        block(*args, **kwargs)
    assert found.main == counter.get_total_flops()
    assert (found.control, found.computed["main"]) == (0, 1)


def test_the_sizes_for_a_device_are_the_published_models() -> None:
    from diffsynth.models.wan_video_dit import WanModel
    from diffsynth.models.wan_video_vace import VaceWanModel
    from diffusers import LTXVideoTransformer3DModel

    size = SIZES["full"]
    with torch.device("meta"):
        models = (
            WanModel(**size.wan.dit_arguments()),
            VaceWanModel(**size.wan.vace_arguments()),
            LTXVideoTransformer3DModel(**size.ltx),
        )
    billions = [sum(p.numel() for p in model.parameters()) / 1e9 for model in models]
    assert billions == pytest.approx([1.419, 0.735, 1.923], abs=0.002)


# Wan-VACE's hints


@contextmanager
def seen_by_the_head(model: Any) -> Iterator[list[torch.Tensor]]:
    """Collect what every call hands to the head: the trunk's output."""
    seen: list[torch.Tensor] = []
    hook = model.norm_out.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    try:
        yield seen
    finally:
        hook.remove()


def wan_inputs(model: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    config = model.config

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "hidden_states": draw(1, config.in_channels, 2, 8, 12),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": draw(1, 16, config.text_dim),
        "control_hidden_states": draw(1, config.vace_in_channels, 2, 8, 12),
    }


@torch.no_grad()
def trunk_outputs(subject: Subject, config: Any, calls: int) -> list[torch.Tensor]:
    """Call the model again and again with the same inputs, so that a cache has nothing to miss."""
    model = subject.pipeline.transformer
    turned_on = nullcontext() if config is None else diffusers_cache(subject, config)
    with seen_by_the_head(model) as seen, turned_on:
        for _ in range(calls):
            with model.cache_context("cond"):
                model(**wan_inputs(model))
    return seen


@torch.no_grad()
def hints(subject: Subject) -> list[torch.Tensor]:
    model = subject.pipeline.transformer
    found: list[torch.Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _, args, out: found.append(out[0]))
        for block in model.vace_blocks
    ]
    model(**wan_inputs(model))
    for hook in hooks:
        hook.remove()
    return found


ALIKE = [
    FirstBlockCacheConfig(threshold=1.0),
    MagCacheConfig(threshold=1.0, retention_ratio=0.0, num_inference_steps=9, mag_ratios=[1.0] * 9),
]


@pytest.mark.parametrize("config", ALIKE, ids=["FirstBlockCache", "MagCache"])
def test_diffusers_adds_hints_twice_to_what_it_reuses(wan: Subject, config: Any) -> None:
    """The kept residual holds the hints, and the forward adds them after every skipped block again."""
    bare = trunk_outputs(wan, None, 1)[0]
    first, reused = trunk_outputs(wan, config, 2)
    assert torch.equal(first, bare)
    assert error(reused, bare) > 0.1
    assert error(reused, bare + sum(hints(wan))) < SAME


@needs_cache_dit
def test_cache_dit_gives_its_last_blocks_the_hints_of_skipped_ones(wan: Subject) -> None:
    """Blocks take hints from the end of one list; those that are skipped leave theirs in it."""
    model = wan.pipeline.transformer
    bare = trunk_outputs(wan, None, 1)[0]
    assert list(model.config.vace_layers) == [0, 3, 6]
    errors = {}
    for back in (0, 2):  # two: block 6, which has a hint of its own, and block 7
        # Its own context is begun by the pipeline's call, so the calls are those of a run.
        with seen_by_the_head(model) as seen, cache_dit_on_model(model, back), torch.no_grad():
            for _ in range(4):
                model(**wan_inputs(model))
        errors[back] = [error(each, bare) for each in seen]
    assert max(errors[0]) < SAME
    assert max(errors[2][:2]) < SAME
    assert min(errors[2][2:]) > 0.1


@contextmanager
def cache_dit_on_model(model: Any, back: int) -> Iterator[None]:
    import cache_dit

    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1,
        Bn_compute_blocks=back,
        max_warmup_steps=1,
        residual_diff_threshold=1.0,
    )
    cache_dit.enable_cache(model, cache_config=config)
    try:
        yield
    finally:
        cache_dit.disable_cache(model)
        for module in (model, *model.blocks):
            vars(module).pop("forward", None)
            vars(module).pop("_is_patched", None)


# What is computed


def at(peer: Peer, threshold: float) -> Callable[[Subject], AbstractContextManager[dict[str, Any]]]:
    return lambda subject: peer.open(subject, threshold)


@pytest.mark.parametrize(
    "turn_on",
    [
        pytest.param(at(BY_NAME["diffusers", "FirstBlockCache"], 0.5), id="FirstBlockCache"),
        pytest.param(at(BY_NAME["diffusers", "MagCache"], 1.0), id="MagCache"),
        pytest.param(at(BY_NAME["cache-dit", "DBCache"], 0.5), id="DBCache", marks=needs_cache_dit),
    ],
)
def test_the_control_branch_is_run_in_every_step(
    wan: Subject, turn_on: Callable[[Subject], AbstractContextManager[dict[str, Any]]]
) -> None:
    full = counted(wan)
    with turn_on(wan):
        found = counted(wan)
    assert found.main < 0.7 * full.main
    assert found.control == full.control


def test_diffsynth_s_teacache_runs_the_control_branch_in_every_step(diffsynth: Subject) -> None:
    full = counted(diffsynth)
    given = {"tea_cache_l1_thresh": 0.3, "tea_cache_model_id": "Wan2.1-T2V-1.3B"}
    found = counted(diffsynth, **given)
    assert found.main < 0.7 * full.main
    assert found.control == full.control


def test_diffsynth_s_teacache_never_computes_again_outside_the_fit_of_its_polynomial() -> None:
    """Above changes of 10 % the polynomial of the 1.3B model is negative, and so is the sum."""
    from diffsynth.pipelines.wan_video import TeaCache

    cache = TeaCache(num_inference_steps=20, rel_l1_thresh=0.01, model_id="Wan2.1-T2V-1.3B")
    inputs = torch.ones(1, 6, 8)
    reused = [cache.check(None, inputs, inputs * 1.2**step) for step in range(20)]
    assert reused == [False, *[True] * 18, False]
    assert cache.accumulated_rel_l1_distance == 0  # set back by the last step


def test_diffsynth_drops_its_teacache_where_branches_are_merged(diffsynth: Subject) -> None:
    given = {"tea_cache_l1_thresh": 0.3, "tea_cache_model_id": "Wan2.1-T2V-1.3B"}
    full = counted(diffsynth, cfg_merge=True)
    assert counted(diffsynth, cfg_merge=True, **given).total == full.total


@on_both
def test_taylorseer_s_defaults_match_no_module(subject: Subject) -> None:
    """Its patterns end in ``attn``; here attention is called ``attn1`` and ``attn2``."""
    full = counted(subject)
    with diffusers_cache(subject, TaylorSeerCacheConfig(cache_interval=3)):
        assert counted(subject).total == full.total
    with diffusers_cache(subject, TaylorSeerCacheConfig(cache_interval=3, use_lite_mode=True)):
        assert counted(subject).total < 0.7 * full.total


def test_pab_s_range_of_cross_attention_does_nothing_on_ltx(ltx: Subject) -> None:
    """LTX's attention does not say that it is cross-attention, so it goes by the other range."""
    full = counted(ltx)
    only_cross = PyramidAttentionBroadcastConfig(
        cross_attention_block_skip_range=6,
        cross_attention_timestep_skip_range=(-1, 1001),
        current_timestep_callback=lambda: ltx.pipeline.current_timestep,
    )
    with diffusers_cache(ltx, only_cross):
        assert counted(ltx).total == full.total


def test_pab_gives_the_unconditional_branch_the_attention_of_the_other(wan: Subject) -> None:
    """One count and one output are kept for both branches, which take turns."""
    model = wan.pipeline.transformer
    attention = model.blocks[0].attn1
    computed, outputs = [], []
    hooks = [
        attention.to_q.register_forward_pre_hook(lambda *_: computed.append(len(outputs))),
        attention.register_forward_hook(lambda _, args, out: outputs.append(out)),
    ]
    whole = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 1001),
        current_timestep_callback=lambda: wan.pipeline.current_timestep,
    )
    with diffusers_cache(wan, whole):
        wan.run()
    for hook in hooks:
        hook.remove()
    cond, uncond = outputs[::2], outputs[1::2]
    assert computed == list(range(0, 2 * STEPS, 2))  # calls of the conditional branch, all of them
    assert all(mine is theirs for mine, theirs in zip(uncond, cond, strict=True))


# What is right


class StoppedError(Exception):
    pass


def stop(_: Any, step: int, *__: Any) -> Any:
    if step == STEPS // 2:
        raise StoppedError
    return {}


@torch.no_grad()
def test_firstblockcache_is_right_on_ltx(ltx: Subject) -> None:
    """The same inputs again: what is reused is what would be computed."""
    model = ltx.pipeline.transformer
    caught: list[dict[str, Any]] = []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: caught.append(kwargs), with_kwargs=True
    )
    ltx.run()
    hook.remove()
    with diffusers_cache(ltx, FirstBlockCacheConfig(threshold=1.0)):
        outputs = []
        for _ in range(2):
            with model.cache_context("cond_uncond"), BlockFlops().watching(ltx) as found:
                outputs.append(model(**caught[0])[0])
    assert found.computed["main"] == 1
    assert error(outputs[1], outputs[0]) < SAME


@pytest.mark.parametrize("peer", PEERS, ids=[f"{p.library} {p.name}" for p in PEERS])
def test_a_pipeline_is_as_it_was_after_the_benchmark_turned_a_peer_off(
    wan: Subject, diffsynth: Subject, peer: Peer
) -> None:
    if reason := peer.missing():
        pytest.skip(reason)
    subject = diffsynth if peer.backbones == ("wan-vace",) else wan
    before, _ = subject.run()
    with peer.open(subject, 0.3) as arguments:
        subject.run(**arguments)
    after, _ = subject.run()
    assert torch.equal(after, before)


@needs_cache_dit
def test_cache_dit_forgets_an_interrupted_run(wan: Subject) -> None:
    with cache_dit_cache(wan, 0.2):
        before, _ = wan.run()
        with pytest.raises(StoppedError):
            wan.run(callback_on_step_end=stop)
        after, _ = wan.run()
    assert torch.equal(after, before)


# What is left behind


@pytest.mark.parametrize(
    "config",
    [
        MagCacheConfig(num_inference_steps=STEPS, mag_ratios=[1.0] * STEPS, threshold=1.0),
        TaylorSeerCacheConfig(use_lite_mode=True, cache_interval=3),
    ],
    ids=["MagCache", "TaylorSeer"],
)
@on_both
def test_the_run_after_an_interrupted_one_goes_on_where_that_one_was(
    subject: Subject, config: Any
) -> None:
    with diffusers_cache(subject, config):
        before, _ = subject.run()
        with pytest.raises(StoppedError):
            subject.run(callback_on_step_end=stop)
        after, _ = subject.run()
        later, _ = subject.run()
    assert error(after, before) > 0.01
    assert torch.equal(later, before)


@needs_cache_dit
def test_cache_dit_leaves_its_blocks_in_wan_vace_when_it_is_turned_off(wan: Subject) -> None:
    import cache_dit

    model = wan.pipeline.transformer
    with cache_dit_cache(wan, 0.1):
        cache_dit.disable_cache(wan.pipeline)
        assert all("forward" in vars(block) for block in model.blocks)
        with pytest.raises(TypeError, match="control_hidden_states_list"), torch.no_grad():
            type(model).forward(model, **wan_inputs(model))
    with torch.no_grad():
        type(model).forward(model, **wan_inputs(model))  # the benchmark puts it back


@needs_cache_dit
def test_cache_dit_turned_off_on_one_pipeline_breaks_others_of_its_class() -> None:
    import cache_dit

    one, other = (
        make_subject("wan-vace-diffusers", SIZES["tiny"], device="cpu", steps=3) for _ in range(2)
    )
    kind = type(one.pipeline)
    call = kind.__call__
    try:
        for subject in (one, other):
            cache_dit.enable_cache(subject.pipeline, cache_config=cache_dit.DBCacheConfig())
            subject.run()
        cache_dit.disable_cache(one.pipeline)
        with pytest.raises(AttributeError, match="_context_manager"):
            other.run()
    finally:
        kind.__call__ = call
        for name in ("_is_cached", "_original_call"):
            if name in vars(kind):
                delattr(kind, name)
