"""Pipelines that peers and hetcache are run on, and what is measured about a run.

Wan-VACE is one model in two libraries: the weights of DiffSynth's pipeline are converted for diffusers'
by diffusers itself. At the sizes for a laptop they are the trained weights of ``tiny-vace``, so that
fidelity means something; LTX-Video's are random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Final

import torch
from attrs import define, evolve, field, frozen
from harness.timing import now_s
from torch import Tensor, nn

from hetcache_backends.diffusers.ltx_video import LtxVideo
from hetcache_backends.diffusers.wan_vace import WanVaceDiffusers
from hetcache_backends.tiny_vace.clips import Clip, builtin_clips
from hetcache_backends.tiny_vace.config import TINY_VACE, TinyVaceConfig
from hetcache_backends.wan.wan_vace import WanVace
from hetcache_core import Backbone

SEED: Final = 0
GUIDANCE: Final = 2.0
"""More saturates the trained model's colors. Source: ``tiny_vace/MODEL_CARD.md``."""

BLOCKS: Final = 12
HEADS: Final = 32
"""Of described models: enough blocks to leave out, on few tokens, so that a call's own cost shows."""

DESCRIBED: Final[Mapping[str, str]] = {
    "allegro": "AllegroTransformer3DModel",
    "cogvideox": "CogVideoXTransformer3DModel",
    "mochi": "MochiTransformer3DModel",
    "pixart": "PixArtTransformer2DModel",
    "qwen-image": "QwenImageTransformer2DModel",
    "wan": "WanTransformer3DModel",
}
"""Described classes that cache-dit carries as well, whose blocks lie in one list."""

MODELS: Final = ("transformer", "dit")
"""What pipelines of diffusers and of DiffSynth call their transformer."""

SHIFT: Final = 5.0
"""Of Wan's noise levels. Source: DiffSynth 2.1.12, ``FlowMatchScheduler("Wan")``."""


@frozen(kw_only=True)
class Size:
    """Models and clips of one ``--size``.

    Attributes:
        wan: dimensions of Wan-VACE.
        trained: whether Wan-VACE has the weights of ``tiny-vace``, or random ones.
        wan_clip: frames, height and width.
        ltx: arguments of ``LTXVideoTransformer3DModel``.
        ltx_clip: frames, height and width.
        text_tokens: length of LTX-Video's prompt.
    """

    wan: TinyVaceConfig
    trained: bool
    wan_clip: tuple[int, int, int]
    ltx: Mapping[str, int]
    ltx_clip: tuple[int, int, int]
    text_tokens: int


def _ltx(heads: int, head_dim: int, layers: int, text: int) -> dict[str, int]:
    return {
        "num_attention_heads": heads,
        "attention_head_dim": head_dim,
        "cross_attention_dim": heads * head_dim,
        "num_layers": layers,
        "caption_channels": text,
    }


WAN_1_3B: Final = TinyVaceConfig(
    dim=1536,
    num_heads=12,
    num_layers=30,
    control_layers=tuple(range(0, 30, 2)),
    ffn_dim=8960,
    text_dim=4096,
    text_length=512,
)
"""Source: DiffSynth 2.1.12, ``configs/model_configs.py``; latents have the embedded codec's channels."""

SIZES: Final[Mapping[str, Size]] = {
    "tiny": Size(
        wan=TINY_VACE,
        trained=True,
        wan_clip=(5, 64, 96),
        ltx=_ltx(2, 24, 4, 24),
        ltx_clip=(17, 96, 128),
        text_tokens=8,
    ),
    "small": Size(
        wan=TINY_VACE,
        trained=True,
        wan_clip=(9, 192, 192),
        ltx=_ltx(4, 64, 8, 64),
        ltx_clip=(33, 192, 256),
        text_tokens=16,
    ),
    "even": Size(
        wan=evolve(TINY_VACE, control_layers=(0, 2, 4, 6)),
        trained=False,
        wan_clip=(9, 192, 192),
        ltx=_ltx(4, 64, 8, 64),
        ltx_clip=(33, 192, 256),
        text_tokens=16,
    ),
    "full": Size(
        wan=WAN_1_3B,
        trained=False,
        wan_clip=(33, 480, 832),
        ltx=_ltx(32, 64, 28, 4096),
        ltx_clip=(161, 512, 704),
        text_tokens=256,
    ),
}


@define(eq=False)
class LoopClock:
    """Seconds of a pipeline's denoising loop, without encoding and decoding; see ``harness.timing``."""

    device: str
    seconds: float = field(default=0.0, init=False)

    @contextmanager
    def bar(self, *_: Any, **__: Any) -> Iterator[Any]:
        """Stand for diffusers' progress bar, which is open around the loop."""
        begun = now_s(self.device)
        yield SimpleNamespace(update=lambda *_: None)
        self.seconds = now_s(self.device) - begun

    def over(self, steps: Sequence[Any]) -> Iterator[Any]:
        """Stand for DiffSynth's progress bar, which the loop goes over."""
        begun = now_s(self.device)
        yield from steps
        self.seconds = now_s(self.device) - begun


@define(eq=False, kw_only=True)
class Subject:
    """One pipeline that is measured.

    Attributes:
        backbone: hetcache's adapter.
        pipeline: the library's pipeline.
        main: main blocks.
        control: blocks of the control branch.
        edit: runs an edit of so many steps, with further arguments; returns the final latents.
        clock: of the loop.
        steps: sampler steps of every run.
        left: what the last cache left in the pipeline when it was turned off.
        bare: what was there before any cache.
    """

    backbone: Backbone
    pipeline: Any
    main: Sequence[nn.Module]
    control: Sequence[nn.Module]
    edit: Callable[..., Tensor]
    clock: LoopClock
    steps: int
    left: frozenset[str] = frozenset()
    bare: frozenset[str] = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Note what hangs on the pipeline before any cache has been there."""
        self.bare = self.attributes()

    def attributes(self) -> frozenset[str]:
        """Name everything that hangs on the pipeline and on the modules of its transformer."""
        models = (getattr(self.pipeline, name, None) for name in MODELS)
        parts = {"pipeline": self.pipeline}
        for model in models:
            parts |= dict(model.named_modules()) if model is not None else {}
        own = {f"{name}.{key}" for name, part in parts.items() for key in vars(part)}
        return frozenset(own | {f"class {key}" for key in vars(type(self.pipeline))})

    def run(self, **arguments: Any) -> tuple[Tensor, float]:
        """Return final latents and the seconds of the loop."""
        with torch.no_grad():
            latents = self.edit(self.steps, **arguments).float().cpu()
        return latents, self.clock.seconds


def library() -> Any:
    """Import diffusers, whose classes have no annotations."""
    import diffusers

    return diffusers


def make_subject(name: str, size: Size, *, device: str, steps: int) -> Subject:
    """Build a subject.

    Args:
        name: of the backbone: ``wan-vace``, ``wan-vace-diffusers`` or ``ltx-video``.
        size: of models and clips.
        device: where they run; in bfloat16 on anything but the CPU.
        steps: sampler steps.
    """
    if name in DESCRIBED:
        return _described(DESCRIBED[name], device, steps)
    make = {"wan-vace": _wan, "wan-vace-diffusers": _wan_diffusers, "ltx-video": _ltx_video}[name]
    return make(size, device, torch.float32 if device == "cpu" else torch.bfloat16, steps)


def _described(kind: str, device: str, steps: int) -> Subject:
    from hetcache_backends.diffusers.adapter import DiffusersModels, described_models
    from hetcache_backends.diffusers.samples.loop import SampleLoop
    from hetcache_backends.diffusers.samples.sample import samples

    def make() -> Any:
        made = samples()[kind].make()
        own = {key: value for key, value in made.config.items() if not key.startswith("_")}
        larger = own | {"num_layers": BLOCKS, "num_attention_heads": HEADS}
        if "cross_attention_dim" in own:
            larger["cross_attention_dim"] = HEADS * own["attention_head_dim"]
        return type(made).from_config(larger)

    pipeline: Any = SampleLoop.of(evolve(samples()[kind], make=make), SEED)
    pipeline.to(device)
    clock = LoopClock(device)

    def edit(count: int) -> Tensor:
        with clock.bar():
            latents: Tensor = pipeline(num_inference_steps=count).latents
        return latents

    name = described_models()[kind].lists[0].name
    return Subject(
        backbone=DiffusersModels(),
        pipeline=pipeline,
        main=list(getattr(pipeline.transformer, name)),
        control=[],
        edit=edit,
        clock=clock,
        steps=steps,
    )


def _clip(size: tuple[int, int, int]) -> Clip:
    frames, height, width = size
    return builtin_clips(frames=frames, height=height, width=width)[SEED].render()


def _images(clip: Clip) -> tuple[list[Any], list[Any]]:
    from PIL import Image

    masks = [
        Image.fromarray(frame).convert("RGB") for frame in (clip.mask > 0).astype("uint8") * 255
    ]
    return [Image.fromarray(frame) for frame in clip.video], masks


def _cast(model: Any, device: str, dtype: torch.dtype) -> Any:
    """Move a model; what its class keeps in fp32 stays so, as ``from_pretrained`` has it."""
    nn.Module.to(model, device, dtype)
    kept = model._keep_in_fp32_modules or ()  # noqa: SLF001 - the library has no other name for it
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if any(part in kept for part in name.split(".")):
            tensor.data = tensor.data.float()
    return model


def _wan(size: Size, device: str, dtype: torch.dtype, steps: int) -> Subject:
    from hetcache_backends.tiny_vace.pipeline import build_pipeline

    seed = None if size.trained else SEED
    pipeline: Any = build_pipeline(device=device, dtype=dtype, seed=seed, config=size.wan)
    clip, clock = _clip(size.wan_clip), LoopClock(device)
    video, masks = _images(clip)
    frames, height, width = size.wan_clip
    decode = pipeline.vae.decode

    def edit(count: int, **arguments: Any) -> Tensor:
        caught: list[Tensor] = []

        def catch(latents: Tensor, **options: Any) -> Tensor:
            caught.append(latents.clone())
            decoded: Tensor = decode(latents, **options)
            return decoded

        pipeline.vae.decode = catch
        try:
            pipeline(
                prompt=clip.prompt,
                negative_prompt="",
                vace_video=video,
                vace_video_mask=masks,
                num_frames=frames,
                height=height,
                width=width,
                seed=SEED,
                num_inference_steps=count,
                cfg_scale=GUIDANCE,
                tiled=False,
                output_type="floatpoint",
                progress_bar_cmd=clock.over,
                **arguments,
            )
        finally:
            del pipeline.vae.decode
        return caught[0]

    return Subject(
        backbone=WanVace(),
        pipeline=pipeline,
        main=list(pipeline.dit.blocks),
        control=list(pipeline.vace.vace_blocks),
        edit=edit,
        clock=clock,
        steps=steps,
    )


class Codec:
    """The codec of DiffSynth's pipeline, called as diffusers calls a VAE."""

    dtype = torch.float32

    def __init__(self, codec: Any, channels: int) -> None:
        self.codec = codec
        self.config = SimpleNamespace(
            z_dim=channels, latents_mean=[0.0] * channels, latents_std=[1.0] * channels
        )

    def encode(self, video: Tensor) -> Any:
        """Encode a video (B, 3, F, H, W)."""
        return SimpleNamespace(latents=self.codec.encode(video))


def _wan_diffusers(size: Size, device: str, dtype: torch.dtype, steps: int) -> Subject:
    from diffusers.loaders import single_file_utils

    from hetcache_backends.diffusers.cases import small_wan_vace
    from hetcache_backends.tiny_vace.pipeline import build_pipeline
    from hetcache_backends.tiny_vace.text import embed_prompt

    config = size.wan
    original: Any = build_pipeline(seed=None if size.trained else SEED, config=config)
    model = library().WanVACETransformer3DModel(
        num_attention_heads=config.num_heads,
        attention_head_dim=config.dim // config.num_heads,
        in_channels=config.z_dim,
        out_channels=config.z_dim,
        text_dim=config.text_dim,
        freq_dim=config.freq_dim,
        ffn_dim=config.ffn_dim,
        num_layers=config.num_layers,
        vace_layers=list(config.control_layers),
        vace_in_channels=config.vace_arguments()["vace_in_dim"],
    )
    weights = {**original.dit.state_dict(), **original.vace.state_dict()}
    convert: Any = single_file_utils.convert_wan_transformer_to_diffusers
    model.load_state_dict(convert(weights))
    model = _cast(model.eval(), device, dtype)
    pipeline = small_wan_vace(SEED)
    pipeline.register_modules(
        transformer=model, scheduler=library().FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    )
    vars(pipeline)["vae"] = Codec(original.vae.to(device=device), config.z_dim)
    clip, clock = _clip(size.wan_clip), LoopClock(device)
    video, masks = _images(clip)
    frames, height, width = size.wan_clip
    texts = [embed_prompt(text, config).to(device, dtype) for text in (clip.prompt, "")]
    pipeline.progress_bar = clock.bar

    def edit(count: int, **arguments: Any) -> Tensor:
        latents: Tensor = pipeline(
            video=video,
            mask=masks,
            prompt_embeds=texts[0],
            negative_prompt_embeds=texts[1],
            guidance_scale=GUIDANCE,
            num_inference_steps=count,
            generator=torch.Generator().manual_seed(SEED),
            output_type="latent",
            num_frames=frames,
            height=height,
            width=width,
            **arguments,
        ).frames
        return latents

    return Subject(
        backbone=WanVaceDiffusers(),
        pipeline=pipeline,
        main=list(model.blocks),
        control=list(model.vace_blocks),
        edit=edit,
        clock=clock,
        steps=steps,
    )


def _ltx_video(size: Size, device: str, dtype: torch.dtype, steps: int) -> Subject:
    from hetcache_backends.diffusers.cases import small_ltx

    pipeline = small_ltx(SEED)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = library().LTXVideoTransformer3DModel(**size.ltx)
        text = torch.randn(2, 1, size.text_tokens, size.ltx["caption_channels"])
    pipeline.register_modules(transformer=_cast(model.eval(), device, dtype))
    _cast(pipeline.vae, device, dtype)
    clip, clock = _clip(size.ltx_clip), LoopClock(device)
    video, _ = _images(clip)
    pipeline.progress_bar = clock.bar
    text = text.to(device, dtype)
    words = torch.ones(text.shape[1:3], device=device)

    def edit(count: int, **arguments: Any) -> Tensor:
        latents: Tensor = pipeline(
            source_video=video,
            edit_mask=clip.mask > 0,
            prompt_embeds=text[0],
            prompt_attention_mask=words,
            negative_prompt_embeds=text[1],
            negative_prompt_attention_mask=words,
            guidance_scale=3.0,
            num_inference_steps=count,
            generator=torch.Generator().manual_seed(SEED),
            output_type="latent",
            **arguments,
        ).frames
        return latents

    return Subject(
        backbone=LtxVideo(),
        pipeline=pipeline,
        main=list(model.transformer_blocks),
        control=[],
        edit=edit,
        clock=clock,
        steps=steps,
    )
