"""Inpainting pipelines of diffusers: their own mask says which tokens a partial step computes."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")

import diffusers
import numpy as np
import torch
from attrs import evolve
from PIL import Image
from torch import Tensor

from hetcache_backends.diffusers.adapter import DiffusersModels, described_models
from hetcache_backends.diffusers.samples.sample import samples
from hetcache_core import (
    EditRequest,
    KVMode,
    LoadRequest,
    Mode,
    PartialSettings,
    UnsupportedBackboneError,
    accelerate,
)
from hetcache_core.testing.scripted import FULL_STEPS, scripted

LIBRARY: Any = diffusers
SIZE = 32


def normal(*size: int, seed: int = 0) -> Tensor:
    """Random numbers of a size."""
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def library(kind: str) -> Any:
    """A class of diffusers, which older releases may lack."""
    if not hasattr(LIBRARY, kind):
        pytest.skip(f"this release has no {kind}")
    return getattr(LIBRARY, kind)


def transformer(kind: str, **other: Any) -> Any:
    """A small random transformer of a class, or with other settings than that of the samples."""
    library(kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = samples()[kind].make()
        if other:
            own = {k: v for k, v in model.config.items() if not k.startswith("_")}
            model = type(model).from_config({**own, **other})
        for parameter in model.parameters():
            if not parameter.any():  # gates that begin at zero would hide what blocks do
                torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


def coder(channels: int, kind: str = "AutoencoderKL", **more: Any) -> Any:
    """A small image autoencoder: a latent covers 2 x 2 pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return getattr(LIBRARY, kind)(
            block_out_channels=(4, 4),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=channels,
            norm_num_groups=2,
            **more,
        ).eval()


def made(kind: str, model: Any, vae: Any, **more: Any) -> Any:
    """A pipeline without text encoders."""
    scheduler = LIBRARY.FlowMatchEulerDiscreteScheduler()
    texts = [
        f"{part}{number}" for part in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")
    ]
    pipeline = library(kind)
    takes = inspect.signature(pipeline).parameters
    absent = {name: None for name in (*texts, "processor") if name in takes}
    return pipeline(scheduler=scheduler, transformer=model, vae=vae, **absent, **more)


FLUX_TEXT = {"prompt_embeds": normal(1, 6, 32), "pooled_prompt_embeds": normal(1, 32)}
QWEN_TEXT = {
    "prompt_embeds": normal(1, 7, 16),
    "prompt_embeds_mask": torch.ones(1, 7, dtype=torch.long),
    "negative_prompt_embeds": normal(1, 3, 16, seed=1),
    "negative_prompt_embeds_mask": torch.ones(1, 3, dtype=torch.long),
    "true_cfg_scale": 3.0,
}
Made = tuple[Any, dict[str, Any]]


def flux() -> Made:
    """One branch; the source is put back outside of the mask after each step."""
    model = transformer("FluxTransformer2DModel")
    return made("FluxInpaintPipeline", model, coder(1, shift_factor=0.0)), FLUX_TEXT


def flux_fill() -> Made:
    """The mask and what it leaves are channels of the latents."""
    model = transformer("FluxTransformer2DModel", in_channels=4 + 4 + 16, out_channels=4)
    return made("FluxFillPipeline", model, coder(1, shift_factor=0.0)), FLUX_TEXT


def flux_control() -> Made:
    """A picture of edges or depths is channels of the latents."""
    model = transformer("FluxTransformer2DModel", in_channels=4 + 4, out_channels=4)
    pipeline = made("FluxControlInpaintPipeline", model, coder(1, shift_factor=0.0))
    edges = Image.fromarray(np.eye(SIZE, dtype=np.uint8) * 255)
    return pipeline, {**FLUX_TEXT, "control_image": edges.convert("RGB")}


def flux_kontext() -> Made:
    """The source's tokens follow those of the picture."""
    model = transformer("FluxTransformer2DModel")
    pipeline = made("FluxKontextInpaintPipeline", model, coder(1, shift_factor=0.0))
    negative = {f"negative_{name}": value * 2 for name, value in FLUX_TEXT.items()}
    return pipeline, {**FLUX_TEXT, **negative, "true_cfg_scale": 3.0, "_auto_resize": False}


def flux2_klein() -> Made:
    """Two branches, with the source's tokens and those of a reference of another size."""
    vae = coder(1, "AutoencoderKLFlux2")
    pipeline = made("Flux2KleinInpaintPipeline", transformer("Flux2Transformer2DModel"), vae)
    given = {
        "prompt_embeds": normal(1, 6, 32),
        "negative_prompt_embeds": normal(1, 6, 32, seed=1),
        "guidance_scale": 3.0,
        "image_reference": normal(1, 3, 64, 64).clamp(-1, 1),
    }
    return pipeline, given


def qwen_coder() -> Any:
    """A small autoencoder of Qwen-Image: a latent covers 2 x 2 pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LIBRARY.AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ).eval()


def qwen() -> Made:
    """Two branches whose texts differ in length."""
    model = transformer("QwenImageTransformer2DModel")
    return made("QwenImageInpaintPipeline", model, qwen_coder()), QWEN_TEXT


def qwen_edit() -> Made:
    """The same with the source's tokens after those of the picture."""
    model = transformer("QwenImageTransformer2DModel")
    return made("QwenImageEditInpaintPipeline", model, qwen_coder()), QWEN_TEXT


def z_image() -> Made:
    """Both branches in one call, whose texts differ in length and come after the picture."""
    pipeline = made(
        "ZImageInpaintPipeline", transformer("ZImageTransformer2DModel"), coder(4, shift_factor=0.0)
    )
    texts = {"prompt_embeds": [normal(40, 16)], "negative_prompt_embeds": [normal(4, 16, seed=1)]}
    return pipeline, {**texts, "guidance_scale": 3.0}


def chroma() -> Made:
    """Two branches with a mask of the text's attention."""
    model = transformer("ChromaTransformer2DModel")
    model.register_to_config(guidance_embeds=False)  # the pipeline reads it, as checkpoints have it
    pipeline = made("ChromaInpaintPipeline", model, coder(1, shift_factor=0.0))
    words = torch.ones(1, 6)
    words[:, 4:] = 0
    given = {
        "prompt_embeds": normal(1, 6, 32),
        "prompt_attention_mask": words,
        "negative_prompt_embeds": normal(1, 6, 32, seed=1),
        "negative_prompt_attention_mask": words,
        "guidance_scale": 3.0,
    }
    return pipeline, given


def sd3() -> Made:
    """Both branches in one call, with texts last in attention."""
    model = transformer("SD3Transformer2DModel", in_channels=16, out_channels=16)
    pipeline = made("StableDiffusion3InpaintPipeline", model, coder(16, shift_factor=0.0))
    given = {
        "prompt_embeds": normal(1, 9, 32),
        "pooled_prompt_embeds": normal(1, 32),
        "negative_prompt_embeds": normal(1, 9, 32, seed=1),
        "negative_pooled_prompt_embeds": normal(1, 32, seed=1),
        "guidance_scale": 3.0,
    }
    return pipeline, given


PIPELINES = [
    flux,
    flux_fill,
    flux_control,
    flux_kontext,
    flux2_klein,
    qwen,
    qwen_edit,
    z_image,
    chroma,
    sd3,
]


def test_each_pipeline_that_is_said_to_be_carried_is_run() -> None:
    run = [type(make()[0]).__name__ for make in PIPELINES]
    models = described_models().values()
    assert sorted(run) == sorted(each.name for model in models for each in model.masked)


@pytest.fixture(params=PIPELINES, ids=lambda make: make.__name__)
def inpainting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a run of a pipeline with a mask, and its transformer."""
    pipeline, given = request.param()
    pipeline.set_progress_bar_config(disable=True)
    module = sys.modules[type(pipeline).__module__]
    if hasattr(module, "calculate_dimensions"):  # a million pixels otherwise
        monkeypatch.setattr(module, "calculate_dimensions", lambda *_: (SIZE, SIZE, None))
    takes = inspect.signature(type(pipeline).__call__).parameters
    size = {"height": SIZE, "width": SIZE, "strength": 1.0, "max_sequence_length": 6}
    given = {**{k: v for k, v in size.items() if k in takes}, **given}
    source = Image.fromarray(torch.arange(SIZE * SIZE * 3).reshape(SIZE, SIZE, 3).byte().numpy())

    def run(mask: Tensor, steps: int = 2) -> Tensor:
        latents: Tensor = pipeline(
            **given,
            image=source,
            mask_image=mask[None, None],
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
            return_dict=False,
        )[0]
        return latents

    return pipeline, run


def box() -> Tensor:
    """A mask (H, W) that is no mirror image of itself."""
    mask = torch.zeros(SIZE, SIZE)
    mask[5:16, 8:11] = 1
    return mask


def only_mask(mode: KVMode) -> PartialSettings:
    """Partial steps of the mask's tokens and no others."""
    return PartialSettings(kv_mode=mode, max_active_share=1.0, pad_to=1)


def turned(output: Any) -> Any:
    """Turn the channels round of all that a block returns, which no norm after it undoes."""
    if isinstance(output, Tensor):
        return output.flip(-1)
    return tuple(None if each is None else each.flip(-1) for each in output)


def changed(one: Tensor, other: Tensor) -> Tensor:
    """Which tokens of a picture differ; (h, w)."""
    different = one != other
    if different.dim() == 2:  # packed, and references after the picture
        side = SIZE // 4
        return different.any(-1)[: side * side].view(side, side)
    pixels = different.flatten(0, -3).any(0)
    side = pixels.shape[-1] * 4 // SIZE
    return torch.nn.functional.max_pool2d(pixels[None].float(), side)[0] > 0


@torch.no_grad()
def test_a_pipelines_own_mask_says_which_tokens_are_computed(inpainting: Any) -> None:
    pipeline, run = inpainting
    model, processor, mask = pipeline.transformer, pipeline.mask_processor, box()
    expected = run(mask)
    with accelerate(pipeline, FULL_STEPS) as session:
        assert torch.equal(run(mask), expected)
    full = session.trace.totals().flops
    touched = torch.nn.functional.max_pool2d(mask[None], 4)[0] > 0
    block = getattr(model, described_models()[type(model).__name__].lists[-1].name)[-1]
    outputs: list[Tensor] = []
    model.register_forward_hook(lambda *given: outputs.append(given[-1][0]))
    calls = len(session.trace.records) // 2

    def turn(_: Any, __: Any, output: Any) -> Any:
        return turned(output) if len(outputs) >= calls else output

    policy = scripted(Mode.FULL, Mode.PARTIAL, partial=only_mask(KVMode.CACHED))
    with accelerate(pipeline, policy):
        run(mask)
    one = outputs[-1][0]
    outputs.clear()
    # What the last block makes in the second step is turned round: it comes out where it belongs.
    hook = block.register_forward_hook(turn)
    with accelerate(pipeline, policy) as session:
        run(mask)
    hook.remove()
    records = [record for record in session.trace.records if record.step == 1]
    assert {record.mode for record in records} == {Mode.PARTIAL}
    assert torch.equal(changed(one, outputs[-1][0]), touched)
    assert all(0 < record.active < record.tokens for record in records)
    assert session.trace.tokens_by_role["generative"] == int(touched.sum())
    assert session.trace.totals().flops < full
    assert pipeline.mask_processor is processor


@pytest.mark.parametrize("make", [flux, qwen])
def test_a_picture_is_edited_and_what_cannot_be_is_refused(make: Any, tmp_path: Path) -> None:
    pipeline, texts = make()
    # A checkpoint of the text-to-image pipeline is run by the inpainting one.
    plain = getattr(LIBRARY, type(pipeline).__name__.replace("Inpaint", ""))
    plain(**pipeline.components).save_pretrained(tmp_path)
    backbone = DiffusersModels()
    loaded = backbone.load(LoadRequest(model=str(tmp_path), device="cpu", dtype="float32"))
    assert type(loaded) is type(pipeline)
    picture = np.arange(SIZE * SIZE * 3).reshape(1, SIZE, SIZE, 3).astype(np.uint8)
    options = {**texts, "max_sequence_length": 6}
    request = EditRequest(
        video=picture, mask=box().numpy()[None] > 0, steps=6, guidance_scale=2.0, options=options
    )
    with accelerate(loaded, "hetcache", backbone=backbone) as session:
        made = backbone.edit(loaded, request)
    assert made.shape == picture.shape
    assert session.trace.totals().steps_partial > 0
    clip = np.repeat(picture, 2, axis=0)
    with pytest.raises(UnsupportedBackboneError, match="one picture, and 2 frames"):
        backbone.edit(loaded, evolve(request, video=clip))
    with pytest.raises(UnsupportedBackboneError, match="takes no picture with a mask"):
        backbone.edit(plain(**pipeline.components), request)


@torch.no_grad()
def test_a_partial_step_of_all_tokens_is_a_full_one(inpainting: Any) -> None:
    pipeline, run = inpainting
    mask = torch.ones(SIZE, SIZE)
    expected = run(mask)
    for mode in KVMode:
        policy = scripted(Mode.FULL, Mode.PARTIAL, partial=only_mask(mode))
        with accelerate(pipeline, policy) as session:
            latents = run(mask)
        assert Mode.PARTIAL in {record.mode for record in session.trace.records}
        torch.testing.assert_close(latents, expected, rtol=0, atol=0)
