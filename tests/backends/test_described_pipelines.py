"""Pipelines of diffusers around described transformers, as their users call them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")

import diffusers
import torch
from attrs import evolve
from torch import Tensor

from hetcache_backends.diffusers.adapter import DiffusersModels
from hetcache_backends.diffusers.described import DiffusersModelSet
from hetcache_backends.diffusers.description import BlockList, ModelDescription, blocks
from hetcache_backends.diffusers.guessing import guessed
from hetcache_backends.diffusers.samples.sample import samples
from hetcache_core import ConfigError, Mode, ReusePoint, UnsupportedBackboneError, accelerate
from hetcache_core.testing.scripted import FULL_STEPS, scripted

LIBRARY: Any = diffusers


def transformer(kind: str) -> Any:
    """A small random transformer of a class."""
    return samples()[kind].model(0)


def normal(*size: int, seed: int = 0) -> Tensor:
    """Random numbers of a size."""
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def texts(**parts: Any) -> dict[str, Any]:
    """Parts that a pipeline lacks where it is given embeddings."""
    names = (
        "text_encoder",
        "tokenizer",
        "text_encoder_2",
        "tokenizer_2",
        "text_encoder_3",
        "tokenizer_3",
    )
    return {**dict.fromkeys(names[: parts.pop("encoders") * 2]), **parts}


def flux() -> tuple[Any, dict[str, Any]]:
    """Flux with true guidance: two calls with texts of one length."""
    pipeline = LIBRARY.FluxPipeline(
        scheduler=LIBRARY.FlowMatchEulerDiscreteScheduler(),
        transformer=transformer("FluxTransformer2DModel"),
        **texts(encoders=2, vae=None),
    )
    given = {
        "prompt_embeds": normal(1, 6, 32),
        "pooled_prompt_embeds": normal(1, 32),
        "negative_prompt_embeds": normal(1, 6, 32, seed=1),
        "negative_pooled_prompt_embeds": normal(1, 32, seed=1),
        "true_cfg_scale": 3.0,
        "height": 64,
        "width": 64,
    }
    return pipeline, given


def distilled() -> tuple[Any, dict[str, Any]]:
    """Flux as it is usually called: guidance is an embedding, and there is one branch."""
    pipeline, given = flux()
    own = {k: v for k, v in given.items() if "negative" not in k and k != "true_cfg_scale"}
    return pipeline, own


def qwen() -> tuple[Any, dict[str, Any]]:
    """Qwen-Image: two calls whose texts differ in length."""
    pipeline = LIBRARY.QwenImagePipeline(
        scheduler=LIBRARY.FlowMatchEulerDiscreteScheduler(),
        transformer=transformer("QwenImageTransformer2DModel"),
        **texts(encoders=1, vae=None),
    )
    given = {
        "prompt_embeds": normal(1, 7, 16),
        "prompt_embeds_mask": torch.ones(1, 7, dtype=torch.long),
        "negative_prompt_embeds": normal(1, 3, 16, seed=1),
        "negative_prompt_embeds_mask": torch.ones(1, 3, dtype=torch.long),
        "true_cfg_scale": 3.0,
        "height": 64,
        "width": 64,
    }
    return pipeline, given


def sd3() -> tuple[Any, dict[str, Any]]:
    """SD3: both branches in one call, without a name."""
    pipeline = LIBRARY.StableDiffusion3Pipeline(
        scheduler=LIBRARY.FlowMatchEulerDiscreteScheduler(),
        transformer=transformer("SD3Transformer2DModel"),
        **texts(encoders=3, vae=None),
    )
    given = {
        "prompt_embeds": normal(1, 9, 32),
        "pooled_prompt_embeds": normal(1, 32),
        "negative_prompt_embeds": normal(1, 9, 32, seed=1),
        "negative_pooled_prompt_embeds": normal(1, 32, seed=1),
        "guidance_scale": 3.0,
        "height": 64,
        "width": 64,
    }
    return pipeline, given


def z_image() -> tuple[Any, dict[str, Any]]:
    """Z-Image: latents and texts are lists, timesteps count from the other end."""
    pipeline = LIBRARY.ZImagePipeline(
        scheduler=LIBRARY.FlowMatchEulerDiscreteScheduler(),
        transformer=transformer("ZImageTransformer2DModel"),
        **texts(encoders=1, vae=None),
    )
    given = {
        "prompt_embeds": [normal(6, 16)],
        "negative_prompt_embeds": [normal(4, 16, seed=1)],
        "guidance_scale": 3.0,
        "height": 64,
        "width": 64,
    }
    return pipeline, given


def wan() -> tuple[Any, dict[str, Any]]:
    """Wan with two experts: two calls a step, of one transformer first and of the other then."""
    pipeline = LIBRARY.WanPipeline(
        scheduler=LIBRARY.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        transformer=transformer("WanTransformer3DModel"),
        transformer_2=transformer("WanTransformer3DModel"),
        boundary_ratio=0.875,
        **texts(encoders=1, vae=None),
    )
    given = {
        "prompt_embeds": normal(1, 5, 16),
        "negative_prompt_embeds": normal(1, 5, 16, seed=1),
        "guidance_scale": 3.0,
        "height": 64,
        "width": 64,
        "num_frames": 5,
    }
    return pipeline, given


BOTH = ("cond", "uncond")


@pytest.mark.parametrize(
    ("make", "variant", "calls", "experts"),
    [
        (flux, "flux", BOTH, 1),
        (distilled, "flux", ("cond",), 1),
        (qwen, "qwen-image", BOTH, 1),
        (sd3, "sd3", ("cond+uncond",), 1),
        (z_image, "z-image", ("cond+uncond",), 1),
        (wan, "wan", BOTH, 2),
    ],
)
def test_a_pipeline_is_carried_as_it_is(
    make: Callable[[], Any], variant: str, calls: tuple[str, ...], experts: int
) -> None:
    pipeline, given = make()
    pipeline.set_progress_bar_config(disable=True)

    def run() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        made = pipeline(
            **given,
            num_inference_steps=4,
            generator=generator,
            output_type="latent",
            return_dict=False,
        )[0]
        return torch.stack(list(made)) if isinstance(made, list) else made

    expected = run()
    with accelerate(pipeline, FULL_STEPS) as session:
        made = run()
    assert torch.equal(made, expected)
    trace = session.trace
    assert (trace.backbone, trace.variant) == ("diffusers", variant)
    assert [record.branch for record in trace.records] == [*calls] * 4
    assert len({record.expert for record in trace.records}) == experts
    with accelerate(pipeline, scripted(Mode.FULL, Mode.REUSE)) as session:
        reused = run()
    assert reused.isfinite().all()
    assert not torch.equal(reused, expected)
    assert Mode.REUSE in {record.mode for record in session.trace.records}
    whole = scripted(Mode.FULL, Mode.REUSE, reuse_point=ReusePoint.OUTPUT)
    if DiffusersModels().features_of(pipeline).output:
        with accelerate(pipeline, whole) as session:
            assert run().isfinite().all()
        assert 0 in {
            record.flops for record in session.trace.records
        }  # nothing of those calls was run
    else:
        with pytest.raises(UnsupportedBackboneError, match="lacks: output"):
            accelerate(pipeline, whole)
    assert torch.equal(run(), expected)


class Block(torch.nn.Module):
    """A block that nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)

    def forward(self, state: Tensor, time: Tensor) -> Tensor:
        """Mix the channels."""
        return state + torch.tanh(self.layer(state)) * (1 + time.view(-1, 1, 1) / 1000)


class Unknown(LIBRARY.ModelMixin, LIBRARY.ConfigMixin):  # type: ignore[misc]
    """A transformer that nobody has described."""

    @diffusers.configuration_utils.register_to_config  # type: ignore[untyped-decorator]
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = torch.nn.Linear(4, 8), torch.nn.Linear(8, 4)
        self.parts = torch.nn.ModuleList([Block(), Block(), Block()])

    def forward(self, hidden_states: Tensor, timestep: Tensor, return_dict: bool = True) -> Any:
        """Run the parts one after the other."""
        x = self.embed(hidden_states)
        for part in self.parts:
            x = part(x, timestep)
        return (self.head(x),)


class UnknownBetween(Unknown):
    """One that does something between its blocks."""

    def forward(self, hidden_states: Tensor, timestep: Tensor, return_dict: bool = True) -> Any:
        """Run the parts, and change the state between them."""
        x = self.embed(hidden_states)
        for part in self.parts:
            x = part(x, timestep)
            x = x * 2
        return (self.head(x),)


class UnknownPipeline(LIBRARY.DiffusionPipeline):  # type: ignore[misc]
    """The shortest loop."""

    def __init__(self, transformer: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """Run four steps."""
        latents = normal(1, 6, 4)
        self.scheduler.set_timesteps(4)
        for t in self.scheduler.timesteps:
            noise = self.transformer(latents, timestep=t.expand(1))[0]
            latents = self.scheduler.step(noise, t, latents, return_dict=False)[0]
        return latents


def test_a_class_that_nobody_has_described_is_held_against_the_library() -> None:
    torch.manual_seed(0)
    pipeline = UnknownPipeline(Unknown(), LIBRARY.FlowMatchEulerDiscreteScheduler())
    expected = pipeline()
    with accelerate(pipeline, FULL_STEPS) as session:
        assert torch.equal(pipeline(), expected)
    assert any("Nobody has described Unknown" in note for note in session.trace.notes)
    runs: list[int] = []
    pipeline.transformer.parts[1].register_forward_hook(lambda *_: runs.append(1))
    with accelerate(pipeline, scripted(Mode.FULL, Mode.REUSE, Mode.REUSE, Mode.REUSE)):
        pipeline()
        first, runs[:] = len(runs), []
        pipeline()
    assert (first, len(runs)) == (1 + 2, 1)  # the first call is held against the library


def test_a_class_that_is_not_understood_is_refused_with_a_description_to_correct() -> None:
    pipeline = UnknownPipeline(UnknownBetween(), LIBRARY.FlowMatchEulerDiscreteScheduler())
    with accelerate(pipeline, FULL_STEPS), pytest.raises(UnsupportedBackboneError) as caught:
        pipeline()
    assert 'blocks("parts", "state")' in str(caught.value)


def test_the_blocks_of_nearly_all_described_classes_are_found_in_their_source() -> None:
    read = []
    for model in DiffusersModelSet().models():
        if (kind := getattr(diffusers, model.transformer, None)) is not None:
            found = guessed(kind)
            read.append(found is not None and found.lists == plain(model))
    assert sum(read) >= 0.9 * len(read)


def plain(model: ModelDescription) -> tuple[BlockList, ...]:
    """Lists without what follows the tokens, which no source says."""
    return tuple(blocks(each.name, *each.state) for each in model.lists)


def test_a_first_description_is_written_for_a_pipeline_or_its_transformer() -> None:
    backbone = DiffusersModels()
    text = backbone.draft("FluxPipeline")
    assert text == backbone.draft("diffusers:FluxTransformer2DModel")
    found = guessed(LIBRARY.FluxTransformer2DModel)
    assert found is not None
    assert eval(text) == evolve(found, guessed=False)
    for subject in ("NoSuchPipeline", "no.such:Thing", "AutoencoderKL"):
        with pytest.raises(ConfigError):
            backbone.draft(subject)


DESCRIPTION = """\
from attrs import frozen
from hetcache_backends.diffusers.description import ModelDescription, ModelSet, blocks
from hetcache_core import Registration, hookimpl


@frozen
class Strangers(ModelSet):
    name, summary = "stranger", "Stable Audio Open"

    def models(self):
        return [
            ModelDescription(
                transformer="StableAudioDiTModel",
                name="stable-audio",
                lists=(blocks("transformer_blocks"),),
            )
        ]


@hookimpl
def hetcache_register_model_sets():
    return [Registration(name="stranger", target="stranger:Strangers", summary=Strangers.summary)]
"""


class AudioPipeline(UnknownPipeline):
    """The shortest loop around Stable Audio Open's transformer."""

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """Run four steps."""
        latents = normal(1, 4, 6)
        rotary = LIBRARY.models.embeddings.get_1d_rotary_pos_embed(
            4, 7, use_real=True, repeat_interleave_real=False
        )
        given = {
            "encoder_hidden_states": normal(1, 3, 8),
            "global_hidden_states": normal(1, 1, 12),
            "rotary_embedding": rotary,
        }
        self.scheduler.set_timesteps(4)
        for t in self.scheduler.timesteps:
            noise = self.transformer(latents, timestep=t.expand(1), **given)[0]
            latents = self.scheduler.step(noise, t, latents, return_dict=False)[0]
        return latents


def test_a_plugin_carries_another_class_with_one_description(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "StableAudioDiTModel" not in samples()
    info = tmp_path / "stranger-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[hetcache]\nstranger = stranger\n")
    (tmp_path / "stranger.py").write_text(DESCRIPTION)
    monkeypatch.syspath_prepend(tmp_path)
    torch.manual_seed(0)
    model = LIBRARY.StableAudioDiTModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        num_key_value_attention_heads=1,
        cross_attention_dim=8,
        cross_attention_input_dim=8,
        global_states_input_dim=12,
        time_proj_dim=8,
    ).eval()
    pipeline = AudioPipeline(model, LIBRARY.FlowMatchEulerDiscreteScheduler())
    expected = pipeline()
    with accelerate(pipeline, FULL_STEPS) as session:
        assert torch.equal(pipeline(), expected)
    assert session.trace.variant == "stable-audio"
    assert not any("Nobody has described" in note for note in session.trace.notes)
    runs: list[int] = []
    for block in model.transformer_blocks:
        block.register_forward_hook(lambda *_: runs.append(1))
    with accelerate(pipeline, scripted(Mode.FULL, Mode.REUSE, Mode.REUSE, Mode.REUSE)):
        assert not torch.equal(pipeline(), expected)
    assert len(runs) == 2  # both blocks, in the first step alone
    del sys.modules["stranger"]
