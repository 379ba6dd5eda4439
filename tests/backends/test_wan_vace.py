"""The DiffSynth adapter on real pipelines of small models with seeded weights."""

from __future__ import annotations

import copy
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve, frozen
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hetcache_core import (
    CachePolicy,
    CacheStateError,
    Decision,
    Grid,
    LoadRequest,
    Mode,
    PartialSettings,
    Partition,
    PipelineBusyError,
    Role,
    RunInfo,
    Session,
    Signals,
    StepDecider,
    StepInfo,
    StepPolicy,
    TokenPartitioner,
    UnsupportedBackboneError,
    accelerate,
    mask_to_tokens,
)
from hetcache_core.policy.partial import ControlMode, KVMode
from hetcache_core.testing.scripted import BlockScript

pytest.importorskip("diffsynth")

from PIL import Image

from hetcache_backends.tiny_vace.config import TinyVaceConfig
from hetcache_backends.tiny_vace.pipeline import build_pipeline
from hetcache_backends.wan.wan_vace import WanVace

SMALL = TinyVaceConfig(
    dim=48, num_heads=4, num_layers=4, control_layers=(0, 2), ffn_dim=96, freq_dim=32
)
FRAMES, HEIGHT, WIDTH = 5, 64, 96
STEPS = 6
F, P, R = Mode.FULL, Mode.PARTIAL, Mode.REUSE


@frozen
class Scheduled(StepPolicy):
    """Takes the modes from a list."""

    modes: tuple[Mode, ...]

    def begin(self, run: RunInfo) -> StepDecider:
        return _Scheduled(self.modes)


class _Scheduled(StepDecider):
    def __init__(self, modes: tuple[Mode, ...]) -> None:
        self._modes = modes

    def decide(self, step: StepInfo, signals: Signals) -> Decision:
        return Decision(self._modes[step.index % len(self._modes)], "scheduled")


@frozen
class MaskOnly(TokenPartitioner):
    """Masked tokens are generative, the rest is context."""

    def partition(self, mask: torch.Tensor, grid: Grid) -> Partition:
        roles = torch.zeros(grid.tokens, dtype=torch.uint8)
        roles[: grid.prefix] = int(Role.PINNED)
        roles[grid.prefix :][mask_to_tokens(mask, grid).flatten()] = int(Role.GENERATIVE)
        return Partition(roles, grid)


def partial_policy(*modes: Mode, **settings: Any) -> CachePolicy:
    values = {"max_active_share": 1.0, "pad_to": 1, **settings}
    return CachePolicy(
        name="scheduled",
        step=Scheduled(modes),
        partitioner=MaskOnly(),
        partial=PartialSettings(**values),
    )


def step_policy(*modes: Mode) -> CachePolicy:
    return CachePolicy(name="scheduled", step=Scheduled(modes))


def make_pipeline(seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    return build_pipeline(seed=seed, config=SMALL, dtype=dtype)


def clip(seed: int = 0) -> tuple[list[Image.Image], list[Image.Image]]:
    """A noise video and a box that moves a little every frame."""
    noise = np.random.default_rng(seed).integers(0, 255, (FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)
    masks = np.zeros((FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    for t in range(FRAMES):
        masks[t, 16:30, 8 + 6 * t : 24 + 6 * t] = 255
    return [Image.fromarray(v) for v in noise], [Image.fromarray(m) for m in masks]


def denoise(pipe: Any, **options: Any) -> torch.Tensor:
    """Run the pipeline; return the final latents, which the decoder is given."""
    video, mask = clip()
    caught: list[torch.Tensor] = []
    decode = pipe.vae.decode

    def keep(latents: torch.Tensor, **arguments: Any) -> torch.Tensor:
        caught.append(latents.clone())
        return decode(latents, **arguments)

    pipe.vae.decode = keep
    try:
        pipe(
            **{
                "prompt": "a red circle",
                "negative_prompt": "blue",
                "vace_video": video,
                "vace_video_mask": mask,
                "num_frames": FRAMES,
                "height": HEIGHT,
                "width": WIDTH,
                "seed": 0,
                "num_inference_steps": STEPS,
                "tiled": False,
                "output_type": "floatpoint",
                "progress_bar_cmd": lambda steps: steps,
                **options,
            }
        )
    finally:
        del pipe.vae.decode
    return caught[0]


def cached(pipe: Any, policy: Any, **options: Any) -> tuple[torch.Tensor, Session]:
    with accelerate(pipe, policy, backbone=WanVace()) as session:
        return denoise(pipe, **options), session


@pytest.fixture(scope="module")
def pipe() -> Any:
    return make_pipeline()


GUIDANCE = {"separate": {}, "merged": {"cfg_merge": True}, "none": {"cfg_scale": 1.0}}


@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_session_without_caching_is_bitwise_the_library(
    guidance: str, dtype: torch.dtype
) -> None:
    pipe = make_pipeline(dtype=dtype)
    plain = denoise(pipe, **GUIDANCE[guidance])
    inside, session = cached(pipe, "none", **GUIDANCE[guidance])
    assert torch.equal(plain, inside)
    assert session.trace.totals().flops == session.trace.totals().flops_full


def test_merged_and_separate_guidance_decide_alike_and_agree(pipe: Any) -> None:
    policy = partial_policy(F, P, R, P, R, F)
    separate, one = cached(pipe, policy)
    merged, other = cached(pipe, policy, cfg_merge=True)
    assert one.trace.modes() == other.trace.modes() == [F, P, R, P, R, F]
    assert [r.branch for r in other.trace.records] == ["cond+uncond"] * STEPS
    assert [r.branch for r in one.trace.records[:2]] == ["cond", "uncond"]
    torch.testing.assert_close(separate, merged, rtol=0, atol=1e-4)


def test_branches_are_told_apart_by_call_order_where_the_library_does_not_say(pipe: Any) -> None:
    """DiffSynth before 2.1.3 does not pass ``positive`` to the model function."""
    library = pipe.model_fn

    def without_flag(**arguments: Any) -> Any:
        arguments.pop("positive", None)
        return inner(**arguments)

    wanted, _ = cached(pipe, step_policy(F, R))
    with accelerate(pipe, step_policy(F, R), backbone=WanVace()) as session:
        inner = pipe.model_fn
        pipe.model_fn = without_flag
        got = denoise(pipe)
        pipe.model_fn = inner
    assert pipe.model_fn is library
    assert torch.equal(wanted, got)
    assert [r.branch for r in session.trace.records[:2]] == ["cond", "uncond"]


def test_reuse_runs_no_block_and_no_control_block(pipe: Any) -> None:
    ran: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in (*pipe.dit.named_modules(), *pipe.vace.named_modules())
        if name.endswith(".ffn")
    ]
    try:
        _, session = cached(pipe, step_policy(F, R, R))
    finally:
        for hook in hooks:
            hook.remove()
    blocks = SMALL.num_layers + len(SMALL.control_layers)
    assert session.trace.modes() == [F, R, R] * (STEPS // 3)
    assert len(ran) == blocks * 2 * (STEPS // 3)


@pytest.mark.parametrize("kv_mode", KVMode)
def test_a_partial_step_with_all_tokens_active_equals_a_full_one(
    pipe: Any, kv_mode: KVMode
) -> None:
    everything = {
        "kv_mode": kv_mode,
        "control_mode": ControlMode.RECOMPUTE,
        "pad_to": 48,  # all of the 2 x 4 x 6 tokens
    }
    plain = denoise(pipe)
    got, session = cached(pipe, partial_policy(F, P, P, P, P, F, **everything))
    assert session.trace.records[2].active == session.trace.tokens == 48
    torch.testing.assert_close(plain, got, rtol=0, atol=1e-5)


def test_every_token_that_a_masked_pixel_touches_is_generative(pipe: Any) -> None:
    _, session = cached(pipe, partial_policy(F, P))
    _, masks = clip()
    pixels = np.stack([np.asarray(m)[..., 0] > 127 for m in masks])
    touched = pixels.reshape(FRAMES, HEIGHT // 16, 16, WIDTH // 16, 16).any((2, 4))
    union = np.stack([touched[0], touched[1:].any(0)])
    sampled = np.stack([touched[0], touched[3]])  # the frames that the control latents hold
    assert session.trace.tokens_by_role["generative"] == union.sum() > sampled.sum()


def test_tokens_of_reference_images_are_pinned(pipe: Any) -> None:
    image = Image.fromarray(np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
    plain = denoise(pipe, vace_reference_image=image)
    same, _ = cached(pipe, "none", vace_reference_image=image)
    assert torch.equal(plain, same)
    _, session = cached(pipe, partial_policy(F, P), vace_reference_image=image)
    assert session.trace.tokens_by_role["pinned"] == 24  # one latent frame of 4 x 6 tokens
    assert session.trace.records[2].active_by_role["pinned"] == 24


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"sliding_window_size": 2, "sliding_window_stride": 1}, "sliding_window_size"),
        ({"tea_cache_l1_thresh": 0.1, "tea_cache_model_id": "Wan2.1-T2V-1.3B"}, "tea_cache"),
    ],
)
def test_what_a_session_cannot_carry_is_refused_before_any_step(
    pipe: Any, options: dict[str, Any], named: str
) -> None:
    scheduler, model_fn = pipe.scheduler, pipe.model_fn
    with (
        pytest.raises(UnsupportedBackboneError, match=named),
        accelerate(pipe, step_policy(F, R), backbone=WanVace()) as session,
    ):
        denoise(pipe, **options)
    assert session.traces == []
    assert pipe.scheduler is scheduler
    assert pipe.model_fn is model_fn


@pytest.mark.parametrize(
    "option",
    [
        "audio_embeds",
        "longcat_latents",
        "pose_latents",
        "use_gradient_checkpointing",
        "music_feature",
    ],
)
def test_arguments_of_other_models_are_refused_by_name(pipe: Any, option: str) -> None:
    with (
        accelerate(pipe, step_policy(F, R), backbone=WanVace()),
        pytest.raises(UnsupportedBackboneError, match=option),
    ):
        pipe.model_fn(dit=pipe.dit, timestep=torch.zeros(1), **{option: True})


def test_sequence_parallel_pipelines_are_refused(pipe: Any) -> None:
    pipe.use_unified_sequence_parallel = True
    try:
        with pytest.raises(UnsupportedBackboneError, match="unified sequence parallel"):
            accelerate(pipe, "none", backbone=WanVace()).__enter__()
    finally:
        del pipe.use_unified_sequence_parallel


def test_a_second_session_on_an_attached_pipeline_is_refused(pipe: Any) -> None:
    with (
        accelerate(pipe, "none", backbone=WanVace()),
        pytest.raises(PipelineBusyError, match="already in a session"),
    ):
        accelerate(pipe, "none", backbone=WanVace()).__enter__()


def test_a_policy_that_needs_a_mask_refuses_an_unmasked_run(pipe: Any) -> None:
    from hetcache_core import ConfigError

    with pytest.raises(ConfigError, match="needs the edit mask"):
        cached(pipe, partial_policy(F, P), vace_video=None, vace_video_mask=None)


def test_an_exception_inside_a_step_leaves_the_pipeline_as_it_was() -> None:
    pipe = make_pipeline()
    before = {k: v.clone() for k, v in pipe.state_dict().items()}
    attributes = dict(vars(pipe))
    plain = denoise(pipe)
    calls = 0

    def fail(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise RuntimeError("device lost")

    hook = pipe.dit.blocks[2].ffn.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="device lost"):
        cached(pipe, partial_policy(F, R, P))
    hook.remove()
    assert dict(vars(pipe)) == attributes
    assert all(torch.equal(v, before[k]) for k, v in pipe.state_dict().items())
    assert torch.equal(plain, denoise(pipe))


def test_a_run_after_a_failed_one_in_the_same_session_starts_anew(pipe: Any) -> None:
    wanted, _ = cached(pipe, step_policy(F, R))
    with accelerate(pipe, step_policy(F, R), backbone=WanVace()) as session:
        with pytest.raises(ZeroDivisionError):
            denoise(
                pipe,
                progress_bar_cmd=lambda steps: (1 / (2 - i) and s for i, s in enumerate(steps)),
            )
        got = denoise(pipe)
    assert torch.equal(wanted, got)
    assert [t.complete for t in session.traces] == [True]


def test_two_sessions_one_after_the_other_do_not_see_each_other(pipe: Any) -> None:
    first, _ = cached(pipe, step_policy(F, R, R))
    cached(pipe, partial_policy(F, P, P))
    again, _ = cached(pipe, step_policy(F, R, R))
    assert torch.equal(first, again)


def test_four_pipelines_in_four_threads_do_not_see_each_other() -> None:
    policies = [partial_policy(F, P, R), step_policy(F, F, R)] * 2
    pipes = [make_pipeline(seed=s) for s in range(4)]
    alone = [cached(p, policy)[0] for p, policy in zip(pipes, policies, strict=True)]
    together: list[torch.Tensor | None] = [None] * 4

    def work(index: int) -> None:
        together[index] = cached(pipes[index], policies[index])[0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(t is not None and torch.equal(a, t) for a, t in zip(alone, together, strict=True))


def test_the_cache_is_reset_where_the_second_expert_takes_over() -> None:
    pipe = make_pipeline()
    other = make_pipeline(seed=1)
    pipe.dit2, pipe.vace2 = other.dit, other.vace
    plain = denoise(pipe, switch_DiT_boundary=0.8)
    same, none = cached(pipe, "none", switch_DiT_boundary=0.8)
    assert torch.equal(plain, same)
    experts = [r.expert for r in none.trace.records if r.branch == "cond"]
    switch = experts.index("low-noise")
    assert 0 < switch < STEPS - 1
    _, session = cached(pipe, step_policy(F, R, R, R, R, R), switch_DiT_boundary=0.8)
    modes = session.trace.modes()
    assert modes[switch] is F
    assert modes[switch - 1] is modes[switch + 1] is R
    assert [r.reason for r in session.trace.records if r.step == switch] == ["no cache yet"] * 2


def test_a_call_out_of_step_with_the_scheduler_is_an_error(pipe: Any) -> None:
    with accelerate(pipe, step_policy(F, R), backbone=WanVace()):
        pipe.scheduler.set_timesteps(STEPS, shift=5.0)
        with pytest.raises(CacheStateError, match="step 0"):
            pipe.model_fn(dit=pipe.dit, timestep=torch.tensor([123.0]))


@pytest.mark.parametrize("kept", ["cpu", "disk"])
def test_memory_managed_models_run_the_same(kept: str, tmp_path: Path) -> None:
    """DiffSynth's memory management wraps blocks and layers; on disk, nothing is left to be read."""
    from diffsynth.configs import VRAM_MANAGEMENT_MODULE_MAPS
    from diffsynth.core.vram.disk_map import DiskMap
    from diffsynth.core.vram.layers import enable_vram_management
    from diffsynth.models.model_loader import ModelPool
    from safetensors.torch import save_file

    policies = {
        "partial": partial_policy(F, P, R, P, R, F, control_mode=ControlMode.RECOMPUTE),
        "blocks": CachePolicy(name="blocks", blocks=BlockScript(whole=True)),
        "signals": "teacache",
    }
    own = make_pipeline()
    plain = {name: cached(own, policy)[0] for name, policy in policies.items()}
    pipe = make_pipeline()
    config: dict[str, Any] = {"computation_dtype": torch.float32, "computation_device": "cpu"}
    for stage in ("offload", "onload", "preparing"):
        dtype = "disk" if kept == "disk" else torch.float32
        config |= {f"{stage}_dtype": dtype, f"{stage}_device": kept}
    pool = ModelPool()
    for name in ("dit", "vace"):
        model = getattr(pipe, name)
        kind = f"{type(model).__module__}.{type(model).__qualname__}"
        assert kind in VRAM_MANAGEMENT_MODULE_MAPS
        disk = None
        if kept == "disk":
            file = tmp_path / f"{name}.safetensors"
            save_file({k: v.contiguous() for k, v in model.state_dict().items()}, file)
            disk = DiskMap(str(file), "cpu")
            model.to("meta")
        modules = pool.fetch_module_map(kind, config)
        setattr(pipe, name, enable_vram_management(model, modules, config, disk_map=disk))
    assert type(pipe.dit.blocks[0]).__name__.startswith("AutoWrapped")
    assert any(p.is_meta for p in pipe.dit.parameters()) == (kept == "disk")
    for name, policy in policies.items():
        assert torch.equal(cached(pipe, policy)[0], plain[name]), name


def test_forward_hooks_run_where_a_policy_looks_inside(pipe: Any) -> None:
    seen: list[tuple[str, int, tuple[str, ...]]] = []

    def before(module: Any, args: Any, kwargs: Any) -> None:
        seen.append((type(module).__name__, len(args), tuple(kwargs)))

    def after(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        seen.append((type(module).__name__, len(args), tuple(kwargs)))
        # Control blocks hand earlier hints on in the library, and here have none to hand on.
        return None if hasattr(module, "after_proj") else 1.1 * output

    bare = denoise(pipe)
    handles = []
    for block in (*pipe.dit.blocks, *pipe.vace.vace_blocks):
        for module in (block, block.self_attn, block.cross_attn, block.ffn):
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(after, with_kwargs=True))
    try:
        hooked = denoise(pipe)
        expected, seen = sorted(seen), []
        looking = CachePolicy(name="looking", blocks=BlockScript(reuses=False))
        out, _ = cached(pipe, looking)
        assert torch.equal(out, hooked)
        assert not torch.equal(out, bare)
        assert sorted(seen) == expected
        seen = []
        cached(pipe, partial_policy(F))
        assert sorted(seen) == expected
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("modes", [(F,), (F, P, P), (F, R)])
@pytest.mark.parametrize("control", ControlMode)
@pytest.mark.parametrize("kv_mode", KVMode)
def test_counted_flops_agree_with_torch(
    pipe: Any, modes: tuple[Mode, ...], control: ControlMode, kv_mode: KVMode
) -> None:
    """The formulas and torch's own counter see the same work, within 1 %."""
    counted: list[int] = []
    library = pipe.model_fn

    def count(**arguments: Any) -> Any:
        # Before torch 2.15, the counter saw nothing of attention on a CPU but for this kernel.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            output = inner(**arguments)
        counted.append(counter.get_total_flops())
        return output

    policy = partial_policy(*modes, control_mode=control, kv_mode=kv_mode)
    with accelerate(pipe, policy, backbone=WanVace()) as session:
        inner = pipe.model_fn
        pipe.model_fn = count
        denoise(pipe, num_inference_steps=3)
        pipe.model_fn = inner
    assert pipe.model_fn is library
    for record, measured in zip(session.trace.records, counted, strict=True):
        assert record.flops == pytest.approx(measured, rel=0.01)


def test_the_published_model_costs_what_was_counted_for_it() -> None:
    """Wan2.1-VACE-1.3B at 33 x 480 x 832: 110.5 TFLOP a forward (docs/backbones.md)."""
    from diffsynth.models.wan_video_dit import WanModel
    from diffsynth.models.wan_video_vace import VaceWanModel

    from hetcache_backends.wan.trunk import WanControl, wan_trunk
    from hetcache_core.engine.block_pass import full_flops

    with torch.device("meta"):
        dit = WanModel(
            dim=1536, in_dim=16, ffn_dim=8960, out_dim=16, text_dim=4096, freq_dim=256, eps=1e-6,
            patch_size=(1, 2, 2), num_heads=12, num_layers=30, has_image_input=False,
        )  # fmt: skip
        frames, height, width = 9, 30, 52
        trunk = wan_trunk(
            dit=dit,
            inputs=torch.empty(1, frames * height * width, 1536),
            context=torch.empty(1, 512, 1536),
            modulation=torch.empty(1, 6, 1536),
            freqs=torch.empty(frames * height * width, 1, 64),
            control_branch=WanControl(
                model=VaceWanModel(),
                context=torch.empty(1, 96, frames, height * 2, width * 2),
                scale=1.0,
            ),
        )
    tera = (full_flops(trunk) + trunk.flops.outside()) / 1e12
    assert tera == pytest.approx(110.46, abs=0.05)


def test_timestep_signals_do_not_depend_on_the_dtype_of_the_weights() -> None:
    """In bf16 the library rounds the timestep to multiples of 4; the signals don't."""
    seen: dict[str, list[float]] = {}

    @frozen
    class Watch(StepPolicy):
        label: str

        def begin(self, run: RunInfo) -> StepDecider:
            seen[self.label] = []
            return _Watch(self.label)

    class _Watch(StepDecider):
        def __init__(self, label: str) -> None:
            self._label = label

        def decide(self, step: StepInfo, signals: Signals) -> Decision:
            assert signals.timestep_modulation().dtype is torch.float32
            seen[self._label].append(float(signals.timestep_embedding().abs().mean()))
            return Decision(Mode.FULL, "watching")

    for label, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        cached(make_pipeline(dtype=dtype), CachePolicy(name="watch", step=Watch(label)))
    # bf16 weights carry 8 bits; what is left of the difference is theirs, not the timestep's.
    assert seen["fp32"] == pytest.approx(seen["bf16"], rel=2**-7)
    assert len(set(seen["bf16"])) == STEPS


def test_loading_without_a_model_says_what_to_pass() -> None:
    with pytest.raises(UnsupportedBackboneError, match=r"--model Wan-AI/Wan2\.1-VACE-1\.3B"):
        WanVace().load(LoadRequest())


def test_an_incomplete_folder_is_named_with_what_it_lacks(tmp_path: Any) -> None:
    with pytest.raises(UnsupportedBackboneError, match="diffusion_pytorch_model"):
        WanVace().load(LoadRequest(model=str(tmp_path)))


def test_a_checkpoint_folder_loads_through_the_librarys_own_loader(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library knows models by a hash of names and shapes; the small ones are registered."""
    from diffsynth.core.loader import hash_model_file
    from diffsynth.models import model_loader
    from diffsynth.models.wan_video_text_encoder import WanTextEncoder
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pipe = make_pipeline(seed=3)
    text = {"vocab": 32, "dim": SMALL.text_dim, "dim_attn": 32, "dim_ffn": 32, "num_heads": 2,
            "num_layers": 1}  # fmt: skip
    torch.manual_seed(0)
    files = {
        "diffusion_pytorch_model.safetensors": {**pipe.dit.state_dict(), **pipe.vace.state_dict()},
        "models_t5_umt5-xxl-enc-bf16.safetensors": WanTextEncoder(**text).state_dict(),
        "Wan2.1_VAE.safetensors": pipe.vae.state_dict(),
    }
    for name, state in files.items():
        save_file({k: v.contiguous() for k, v in state.items()}, str(tmp_path / name))
    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1, "red": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(tmp_path / "google" / "umt5-xxl")
    hashes = [hash_model_file(str(tmp_path / name)) for name in files]
    models_package, converters = "diffsynth.models", "diffsynth.utils.state_dict_converters"
    registered: list[dict[str, Any]] = [
        {
            "model_hash": hashes[0],
            "model_name": "wan_video_dit",
            "model_class": f"{models_package}.wan_video_dit.WanModel",
            "extra_kwargs": SMALL.dit_arguments(),
            "state_dict_converter": f"{converters}.wan_video_dit.WanVideoDiTStateDictConverter",
        },
        {
            "model_hash": hashes[0],
            "model_name": "wan_video_vace",
            "model_class": f"{models_package}.wan_video_vace.VaceWanModel",
            "extra_kwargs": SMALL.vace_arguments(),
            "state_dict_converter": f"{converters}.wan_video_vace.VaceWanModelDictConverter",
        },
        {
            "model_hash": hashes[1],
            "model_name": "wan_video_text_encoder",
            "model_class": f"{models_package}.wan_video_text_encoder.WanTextEncoder",
            "extra_kwargs": text,
        },
        {
            "model_hash": hashes[2],
            "model_name": "wan_video_vae",
            "model_class": "hetcache_backends.tiny_vace.codec.TinyCodec",
        },
    ]
    monkeypatch.setattr(model_loader, "MODEL_CONFIGS", [*model_loader.MODEL_CONFIGS, *registered])
    loaded = WanVace().load(LoadRequest(model=str(tmp_path)))
    assert WanVace().accepts(loaded)
    for name in ("dit", "vace"):
        for key, value in getattr(pipe, name).state_dict().items():
            assert torch.equal(value, getattr(loaded, name).state_dict()[key])
    result, session = cached(loaded, step_policy(F, R))
    assert torch.isfinite(result).all()
    assert session.trace.modes() == [F, R] * (STEPS // 2)
    alone = tmp_path / "alone.safetensors"
    (tmp_path / "diffusion_pytorch_model.safetensors").rename(alone)
    given = LoadRequest(model=str(alone), around=str(tmp_path))
    assert torch.equal(cached(WanVace().load(given), step_policy(F, R))[0], result)
    with pytest.raises(UnsupportedBackboneError, match="holds another model"):
        WanVace().load(evolve(given, model=str(tmp_path / "Wan2.1_VAE.safetensors")))


def test_a_model_that_cannot_be_downloaded_is_one_clear_error(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the library downloads into the working folder
    monkeypatch.setenv("DIFFSYNTH_SKIP_DOWNLOAD", "True")
    with pytest.raises(UnsupportedBackboneError, match=r"Download .* and pass --model FOLDER"):
        WanVace().load(LoadRequest(model="Wan-AI/Wan2.1-VACE-1.3B"))


def test_an_edit_request_runs_end_to_end() -> None:
    from hetcache_core import EditRequest

    pipe = make_pipeline()
    video, masks = clip()
    request = EditRequest(
        video=np.stack([np.asarray(v) for v in video]),
        mask=np.stack([np.asarray(m)[..., 0] > 0 for m in masks]),
        prompt="a red circle",
        steps=2,
    )
    frames = WanVace().edit(pipe, evolve(request, options={"tiled": False}))
    assert frames.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert frames.dtype == np.uint8


def test_parts_replaced_and_copied_inside_a_session_are_the_library_s(pipe: Any) -> None:
    own, name = (pipe.scheduler, pipe.dit), type(pipe.scheduler)
    bare, other = denoise(pipe), make_pipeline(seed=1)
    with accelerate(pipe, step_policy(F, R), backbone=WanVace()) as session:
        for made in (copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))):
            assert type(made(pipe.scheduler)) is name
        twin = copy.deepcopy(pipe)
        assert torch.equal(denoise(twin), bare)
        assert not session.traces
        pipe.scheduler, pipe.dit = new = copy.deepcopy(own[0]), other.dit
        out = denoise(pipe)
    try:
        assert (pipe.scheduler, pipe.dit) == new
        assert session.trace.modes() == [F, R] * (STEPS // 2)
        assert torch.equal(cached(pipe, step_policy(F, R))[0], out)
        assert torch.equal(denoise(twin), bare)
    finally:
        pipe.scheduler, pipe.dit = own
