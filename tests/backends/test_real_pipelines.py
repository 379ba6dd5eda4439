"""What people do with diffusers' pipelines before and inside a session: it works, or one error names it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from hetcache_core import (
    CachePolicy,
    CacheStateError,
    Mode,
    PartialSettings,
    UnsupportedBackboneError,
    accelerate,
)
from hetcache_core.testing.scripted import BlockScript, scripted

pytest.importorskip("diffusers")

from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler

from hetcache_backends.diffusers.cases import (
    ltx_arguments,
    small_ltx,
    small_wan_vace,
    wan_vace_arguments,
)

F, P, R = Mode.FULL, Mode.PARTIAL, Mode.REUSE
STEPS = 4
PIPELINES: dict[str, tuple[Callable[[int], Any], Callable[..., dict[str, Any]]]] = {
    "wan-vace-diffusers": (small_wan_vace, wan_vace_arguments),
    "ltx-video": (small_ltx, ltx_arguments),
}
LOOKING = CachePolicy(name="looking", blocks=BlockScript(reuses=False))
POLICIES: dict[str, Any] = {
    "partial": scripted(F, P, R, partial=PartialSettings(context_ratio=0.2, pad_to=1)),
    "blocks": CachePolicy(name="blocks", blocks=BlockScript(whole=True)),
    "signals": "teacache",
}
"""Some rows of a block, single blocks, none; and what a signal reads of the model."""

BOTH = pytest.mark.parametrize("name", PIPELINES)


def run(name: str, pipe: Any, policy: Any = None, steps: int = STEPS, **changes: Any) -> Any:
    """Latents, and the session where there is a policy."""
    arguments = {**PIPELINES[name][1](guided=False), **changes}
    if policy is None:
        return pipe(num_inference_steps=steps, **arguments).frames
    with accelerate(pipe, policy) as session:
        latents = pipe(num_inference_steps=steps, **arguments).frames
    return latents, session


@cache
def plain(name: str) -> dict[str, torch.Tensor]:
    """What every policy gives without anything done to the pipeline."""
    pipe = PIPELINES[name][0](0)
    return {"bare": run(name, pipe)} | {k: run(name, pipe, v)[0] for k, v in POLICIES.items()}


@pytest.fixture
def pipe() -> Any:
    return small_wan_vace(0)


def blocks_of(pipe: Any) -> list[Any]:
    model = pipe.transformer
    return [*getattr(model, "transformer_blocks", ()), *getattr(model, "blocks", ()),
            *getattr(model, "vace_blocks", ())]  # fmt: skip


# Offloading and compiling


def by_blocks(pipe: Any, folder: Path) -> None:
    pipe.transformer.enable_group_offload(
        "cpu", offload_type="block_level", num_blocks_per_group=2, offload_to_disk_path=str(folder)
    )


def by_leaves(pipe: Any, folder: Path) -> None:
    pipe.transformer.enable_group_offload(
        "cpu", offload_type="leaf_level", offload_to_disk_path=str(folder)
    )


def sequentially(pipe: Any, folder: Path) -> None:
    """As ``enable_sequential_cpu_offload`` does where there is a GPU."""
    offload = pytest.importorskip("accelerate").cpu_offload
    for part in (pipe.transformer, pipe.vae):
        offload(part, torch.device("cpu"), offload_buffers=True)


def in_place(pipe: Any, folder: Path) -> None:
    pipe.transformer.compile(backend="eager")


def wrapped(pipe: Any, folder: Path) -> None:
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")


@pytest.mark.parametrize("use", [by_blocks, by_leaves, sequentially, in_place, wrapped])
@BOTH
def test_every_policy_gives_what_it_gives_without(
    name: str, use: Callable[[Any, Path], None], tmp_path: Path
) -> None:
    """On disk and on meta there is nothing to read but for the length of a call."""
    if use in {by_blocks, by_leaves} and torch.__version__ < (2, 13):
        pytest.skip("diffusers asks this torch for a GPU where there is none")
    pipe = PIPELINES[name][0](0)
    use(pipe, tmp_path)
    before = dict(vars(pipe.transformer))
    for policy, expected in plain(name).items():
        if policy != "bare":
            assert torch.equal(run(name, pipe, POLICIES[policy])[0], expected), policy
    after = vars(pipe.transformer)
    assert {name: after[name] for name in before} == before
    assert "cache_context" not in after
    if use not in {in_place, wrapped}:  # compiling it as a whole is most of a test's time
        assert torch.equal(run(name, pipe), plain(name)["bare"])


def test_the_blocks_of_a_compiled_model_are_compiled(pipe: Any) -> None:
    wrapped(pipe, Path())
    compiled = pipe.transformer
    with accelerate(pipe, "teacache") as session:
        assert pipe.transformer is compiled._orig_mod
        run("wan-vace-diffusers", pipe)
        kinds = {kind for _, kind, _ in session._engine.compiler.variants}  # type: ignore[union-attr]
    assert kinds == {"WanTransformerBlock", "WanVACETransformerBlock"}
    assert pipe.transformer is compiled
    assert session._engine.compiler is None


# Hooks


@BOTH
def test_forward_hooks_run_where_a_policy_looks_inside(name: str) -> None:
    pipe = PIPELINES[name][0](0)
    seen: list[tuple[str, int, tuple[str, ...]]] = []

    def before(module: Any, args: Any, kwargs: Any) -> None:
        seen.append((type(module).__name__, len(args), tuple(sorted(kwargs))))

    def after(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        seen.append((type(module).__name__, len(args), tuple(sorted(kwargs))))
        return tuple(1.1 * o for o in output) if isinstance(output, tuple) else 1.1 * output

    for block in blocks_of(pipe):
        for module in (block, block.attn1, block.attn2):
            module.register_forward_pre_hook(before, with_kwargs=True)
            module.register_forward_hook(after, with_kwargs=True)
    bare = run(name, pipe)
    expected, seen = sorted(seen), []
    out, _ = run(name, pipe, LOOKING)
    assert torch.equal(out, bare)
    assert not torch.equal(out, plain(name)["bare"])
    assert sorted(seen) == expected


def test_a_forward_that_hides_its_block_is_refused_by_name(pipe: Any) -> None:
    block = pipe.transformer.blocks[1]
    block.forward = lambda *given: type(block).forward(block, *given)
    assert torch.equal(run("wan-vace-diffusers", pipe, "teacache", steps=1)[0],
                       run("wan-vace-diffusers", pipe, steps=1))  # fmt: skip
    with pytest.raises(UnsupportedBackboneError, match=r"forward\(\) of this WanT"):
        run("wan-vace-diffusers", pipe, LOOKING)


def test_a_modular_pipeline_is_refused_by_name() -> None:
    modular = pytest.importorskip("diffusers.modular_pipelines.wan.modular_blocks_wan")
    session = modular.WanBlocks().init_pipeline()
    with pytest.raises(
        UnsupportedBackboneError, match="WanModularPipeline is made of modules"
    ) as it:
        accelerate(session)
    assert "own pipeline" in it.value.remedy


# Parts that are replaced inside a session


def test_a_scheduler_that_is_replaced_inside_is_followed_and_stays(pipe: Any) -> None:
    own, name = pipe.scheduler, "wan-vace-diffusers"
    new = FlowMatchEulerDiscreteScheduler(shift=5.0)
    pipe.scheduler = new
    bare = run(name, pipe)
    pipe.scheduler = own
    with accelerate(pipe, scripted(F), keep_traces=3) as session:
        run(name, pipe)
        pipe.scheduler = new
        out = run(name, pipe)
        again = run(name, pipe)
    assert torch.equal(out, bare)
    assert torch.equal(again, bare)
    assert [len(trace.records) for trace in session.traces] == [STEPS] * 3
    assert pipe.scheduler is new
    pipe.scheduler = own
    with accelerate(pipe, scripted(F)) as session:
        pipe.scheduler = FlowMatchHeunDiscreteScheduler()
        run(name, pipe, steps=3)
    assert session.trace.steps == 5  # twice a step, but for the last


def test_a_model_that_is_replaced_inside_is_followed_and_left_as_it_was(pipe: Any) -> None:
    name, own, new = "wan-vace-diffusers", pipe.transformer, small_wan_vace(1).transformer
    with accelerate(pipe, scripted(F)) as session:
        pipe.transformer = new
        out = run(name, pipe)
    assert len(session.trace.records) == STEPS
    assert torch.equal(out, run(name, pipe))
    assert pipe.transformer is new
    assert not {"forward", "cache_context"} & (vars(own).keys() | vars(new).keys())
    less = copy.deepcopy(own)
    less.blocks = less.blocks[:3]
    with accelerate(pipe, scripted(F)):
        pipe.transformer = less
        with pytest.raises(UnsupportedBackboneError, match="of other sizes"):
            run(name, pipe)


def test_a_run_that_a_session_had_no_part_in_is_told_once(pipe: Any) -> None:
    def replace() -> None:
        pipe.transformer = small_wan_vace(1).transformer
        pipe.scheduler = FlowMatchEulerDiscreteScheduler()
        run("wan-vace-diffusers", pipe)

    with pytest.warns(RuntimeWarning, match="had no part in") as told, accelerate(pipe, "none"):
        replace()
    assert len([w for w in told if w.category is RuntimeWarning]) == 1


# Copies


@pytest.mark.parametrize("how", ["copy", "deepcopy", "pickle", "type", "class"])
def test_another_scheduler_made_of_the_session_s_is_the_library_s(pipe: Any, how: str) -> None:
    made: dict[str, Callable[[Any], Any]] = {
        "copy": copy.copy,
        "deepcopy": copy.deepcopy,
        "pickle": lambda s: pickle.loads(pickle.dumps(s)),
        "type": lambda s: type(s).from_config(s.config),
        "class": lambda s: s.__class__.from_config(s.config),
    }

    def step_aside(pipeline: Any, step: int, now: Any, values: dict[str, Any]) -> dict[str, Any]:
        other = made[how](pipeline.scheduler)
        assert type(other) is FlowMatchEulerDiscreteScheduler
        other.set_timesteps(STEPS)
        other._step_index = None
        other.step(values["latents"], other.timesteps[0], values["latents"])
        return {}

    bare = plain("wan-vace-diffusers")["bare"]
    with accelerate(pipe, scripted(F)) as session:
        assert isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler)
        changes = {} if how == "copy" else {"callback_on_step_end": step_aside}
        out = run("wan-vace-diffusers", pipe, **changes)
        assert type(made[how](pipe.scheduler)) is FlowMatchEulerDiscreteScheduler
    assert torch.equal(out, bare)
    assert len(session.trace.records) == STEPS


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@BOTH
def test_a_copy_of_the_pipeline_is_whole_and_in_no_session(name: str, how: str) -> None:
    pipe = PIPELINES[name][0](0)
    with accelerate(pipe, scripted(F, R)) as session:
        other = copy.deepcopy(pipe) if how == "deepcopy" else pickle.loads(pickle.dumps(pipe))
        assert torch.equal(run(name, other), plain(name)["bare"])
        assert not session.traces
        run(name, pipe)
    assert torch.equal(run(name, other), plain(name)["bare"])
    _, session = run(name, other, scripted(F, R))
    assert session.trace.modes()[:2] == ["full", "reuse"]


@pytest.mark.parametrize("how", ["components", "copy"])
def test_a_pipeline_of_the_same_parts_says_what_to_do_and_runs_afterwards(
    pipe: Any, how: str
) -> None:
    name = "wan-vace-diffusers"
    with accelerate(pipe, scripted(F, R)) as session:
        other = type(pipe)(**pipe.components) if how == "components" else copy.copy(pipe)
        with pytest.raises(CacheStateError, match="session of its own"):
            run(name, other)
        with pytest.raises(UnsupportedBackboneError, match="shares its scheduler"):
            run(name, other, "none")
        run(name, pipe)
    assert len(session.traces) == 1
    assert torch.equal(run(name, other), plain(name)["bare"])
    out, _ = run(name, other, scripted(F))
    assert torch.equal(out, plain(name)["bare"])


# Weights that are not what they were


class Quantized(torch.nn.Linear):
    """A linear layer whose weight is codes of 8 bits, one scale a row."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False)
        self.scale = layer.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        codes = (layer.weight.detach() / self.scale).round().to(torch.int8)
        self.weight = torch.nn.Parameter(codes, requires_grad=False)
        self.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = (self.weight.float() * self.scale).to(x.dtype)
        return torch.nn.functional.linear(x, weight, self.bias)


def own(layer: torch.nn.Linear) -> tuple[torch.nn.Module, torch.Tensor]:
    made = Quantized(layer)
    return made, made.weight.float() * made.scale


def gguf(layer: torch.nn.Linear) -> tuple[torch.nn.Module, torch.Tensor]:
    library = pytest.importorskip("gguf")
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

    kind = library.GGMLQuantizationType.Q4_0 if layer.in_features % 32 == 0 else None
    kind = library.GGMLQuantizationType.BF16 if kind is None else kind
    packed = library.quants.quantize(layer.weight.detach().numpy(), kind)
    made = GGUFLinear(layer.in_features, layer.out_features, True, compute_dtype=torch.float32)
    made.weight = GGUFParameter(torch.from_numpy(packed), quant_type=kind)
    made.bias = layer.bias
    weight = torch.from_numpy(library.quants.dequantize(packed, kind))
    return made, weight


def four_bits(layer: torch.nn.Linear) -> tuple[torch.nn.Module, torch.Tensor]:
    library = pytest.importorskip("bitsandbytes")
    made = library.nn.Linear4bit(layer.in_features, layer.out_features)
    made.weight = library.nn.Params4bit(layer.weight.detach(), requires_grad=False)
    made.bias = layer.bias
    made = made.to("cpu")
    try:
        made(torch.zeros(1, layer.in_features))
    except (RuntimeError, NotImplementedError, AttributeError):
        pytest.skip("bitsandbytes does not run here")
    made.compute_dtype, made.compute_type_is_set = None, False
    weight = library.functional.dequantize_4bit(made.weight.data, made.weight.quant_state)
    return made, weight


def eight_bits(layer: torch.nn.Linear) -> tuple[torch.nn.Module, torch.Tensor]:
    library = pytest.importorskip("bitsandbytes")
    made = library.nn.Linear8bitLt(layer.in_features, layer.out_features, has_fp16_weights=False)
    made.load_state_dict({"weight": layer.weight.detach(), "bias": layer.bias.detach()})
    made = made.to("cpu")
    try:
        made(torch.zeros(1, layer.in_features))
    except (RuntimeError, NotImplementedError, AttributeError):
        pytest.skip("bitsandbytes does not run here")
    return made, layer.weight.detach()


def torchao(layer: torch.nn.Linear) -> tuple[torch.nn.Module, torch.Tensor]:
    library = pytest.importorskip("torchao.quantization")
    made = copy.deepcopy(layer)
    library.quantize_(made, library.Int8WeightOnlyConfig())
    return made, made.weight.dequantize()


def quanto(layer: torch.nn.Linear) -> tuple[torch.nn.Module, torch.Tensor]:
    """With activations of 8 bits too, so that the layer returns codes."""
    library = pytest.importorskip("optimum.quanto")
    made = library.QLinear.from_module(
        copy.deepcopy(layer), weights=library.qint8, activations=library.qint8
    )
    made.freeze()
    with library.Calibration():
        made(torch.randn(64, layer.in_features, generator=torch.Generator().manual_seed(0)))
    return made, made.weight.dequantize()


@pytest.mark.parametrize("quantize", [own, gguf, four_bits, eight_bits, torchao, quanto])
@BOTH
def test_signals_of_quantized_layers_are_those_of_what_they_stand_for(
    name: str, quantize: Callable[[torch.nn.Linear], tuple[torch.nn.Module, torch.Tensor]]
) -> None:
    pipes = [PIPELINES[name][0](0) for _ in range(2)]
    for pipe, packed in zip(pipes, (True, False), strict=True):
        layers = {n: m for n, m in pipe.transformer.named_modules() if type(m) is torch.nn.Linear}
        for path, layer in layers.items():
            if not path.startswith(("time_embed", "condition_embedder.time_proj")):
                continue  # Wan's time_embedder is kept in fp32 by the library, and breaks otherwise
            made, weight = quantize(layer)
            if packed:
                pipe.transformer.set_submodule(path, made)
            else:
                layer.weight.data = weight.view_as(layer.weight)
    traces = [run(name, pipe, "teacache", steps=6)[1].trace for pipe in pipes]
    signals = [[r.signal for r in trace.records if r.signal is not None] for trace in traces]
    # Outputs of 8 bits are off by some hundredths of what they change by in a step.
    assert signals[0] == pytest.approx(signals[1], rel=0.15 if quantize is quanto else 0.05)
    assert traces[0].totals().flops_full == traces[1].totals().flops_full


def with_lora(pipe: Any, seed: int) -> None:
    """A LoRA of the time layers and of attention, large enough to be seen."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(seed)
    time = "time_proj" if hasattr(pipe.transformer, "condition_embedder") else "time_embed.linear"
    layers = ["to_q", "to_v", "linear_1", "linear_2", time]
    config = peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, target_modules=layers)
    pipe.transformer.add_adapter(config, f"lora{seed}")
    pipe.transformer.set_adapters([f"lora{seed}"])


@BOTH
def test_a_lora_that_comes_inside_a_session_counts_as_if_it_were_fused(name: str) -> None:
    """Compiled or not, and also where the adapters change between two steps."""
    pipes = [PIPELINES[name][0](0) for _ in range(3)]
    outputs, signals = [], []
    for pipe, fused, compiled in zip(
        pipes, (True, False, False), (False, False, "eager"), strict=True
    ):
        with accelerate(pipe, "teacache", compile=compiled) as session:
            before = run(name, pipe)
            with_lora(pipe, 1)
            if fused:
                pipe.transformer.fuse_lora()
            outputs.append(run(name, pipe))
        assert not torch.allclose(before, outputs[-1])
        signals.append([r.signal for r in session.trace.records if r.signal is not None])
    for output, signal in zip(outputs[1:], signals[1:], strict=True):
        torch.testing.assert_close(output, outputs[0], rtol=1e-4, atol=1e-4)
        assert signal == pytest.approx(signals[0], rel=1e-3)

    def swap(pipeline: Any, step: int, now: Any, values: dict[str, Any]) -> dict[str, Any]:
        pipeline.transformer.set_adapters(["lora1"], [0.5 * step])
        return {}

    def whole(policy: Any) -> torch.Tensor:
        pipes[1].transformer.set_adapters(["lora1"], [1.0])
        made = run(name, pipes[1], policy, callback_on_step_end=swap)
        return made if policy is None else made[0]

    assert torch.equal(whole(None), whole(LOOKING))


@BOTH
def test_a_lora_that_is_swapped_by_name_is_followed_between_runs_and_between_steps(
    name: str,
) -> None:
    """With the library's hotswap, which writes into the layers that are there."""
    peft, loras = pytest.importorskip("peft"), []
    for seed in (1, 2):
        pipe = PIPELINES[name][0](0)
        with_lora(pipe, seed)
        state = peft.get_peft_model_state_dict(pipe.transformer, adapter_name=f"lora{seed}")
        loras.append({f"transformer.{key}": value for key, value in state.items()})

    def load(pipe: Any, index: int, hotswap: bool = True) -> None:
        own = {key: value.clone() for key, value in loras[index].items()}
        pipe.load_lora_weights(own, adapter_name="one", hotswap=hotswap)

    def swap(pipeline: Any, step: int, now: Any, values: dict[str, Any]) -> dict[str, Any]:
        load(pipeline, step % 2)
        return {}

    def prepared(index: int) -> Any:
        pipe = PIPELINES[name][0](0)
        pipe.transformer.enable_lora_hotswap(target_rank=4)
        load(pipe, index, hotswap=False)
        return pipe

    signals = []
    with accelerate(prepared(1), "teacache") as session:
        expected = run(name, session.pipeline)
    signals.append([r.signal for r in session.trace.records])
    with accelerate(prepared(0), "teacache") as session:
        first = run(name, session.pipeline)
        load(session.pipeline, 1)
        assert torch.equal(run(name, session.pipeline), expected)
    signals.append([r.signal for r in session.trace.records])
    assert signals[0] == signals[1]
    assert not torch.allclose(first, expected)
    bare = run(name, prepared(0), callback_on_step_end=swap)
    assert torch.equal(run(name, prepared(0), LOOKING, callback_on_step_end=swap)[0], bare)
