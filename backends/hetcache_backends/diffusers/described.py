"""The classes of diffusers' transformers that come described. Imports no model library.

What a block takes and returns is taken from the sources of diffusers 0.42; a class that an older release
lacks is absent there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final, final

from attrs import frozen

from hetcache_backends.diffusers.description import (
    BlockList,
    MaskedPipeline,
    ModelDescription,
    ModelSet,
    blocks,
)

HIDDEN, TEXT = "hidden_states", "encoder_hidden_states"
SOURCE: Final = "text, source"
ONE_CALL: Final = "one call"


def model(transformer: str, name: str, *lists: BlockList, **more: Any) -> ModelDescription:
    """Describe a class by its name, a short name and its lists."""
    return ModelDescription(transformer=transformer, name=name, lists=lists, **more)


MODELS: Final = (
    model("AceStepTransformer1DModel", "ace-step", blocks("layers")),
    model("AllegroTransformer3DModel", "allegro", blocks("transformer_blocks")),
    model("AnyFlowTransformer3DModel", "anyflow", blocks("blocks")),
    model("AnyFlowFARTransformer3DModel", "anyflow-far", blocks("blocks")),
    model(
        "AuraFlowTransformer2DModel",
        "auraflow",
        blocks("joint_transformer_blocks", TEXT, HIDDEN),
        blocks("single_transformer_blocks"),
    ),
    model(
        "BriaTransformer2DModel",
        "bria",
        blocks("transformer_blocks", TEXT, HIDDEN),
        blocks("single_transformer_blocks", TEXT, HIDDEN),
    ),
    model("BriaFibo2Transformer2DModel", "bria-fibo2", blocks("layers", "x"), video="x"),
    model(
        "ChromaTransformer2DModel",
        "chroma",
        blocks("transformer_blocks", TEXT, HIDDEN, image_rotary_emb=0),
        blocks("single_transformer_blocks", image_rotary_emb=0),
        output=True,
        tokens=True,
        masked=(MaskedPipeline("ChromaInpaintPipeline"),),
        masks=("attention_mask",),
    ),
    model("ChronoEditTransformer3DModel", "chronoedit", blocks("blocks")),
    model("CogVideoXTransformer3DModel", "cogvideox", blocks("transformer_blocks", HIDDEN, TEXT)),
    model(
        "CogView3PlusTransformer2DModel",
        "cogview3-plus",
        blocks("transformer_blocks", HIDDEN, TEXT),
    ),
    model("CogView4Transformer2DModel", "cogview4", blocks("transformer_blocks", HIDDEN, TEXT)),
    model("CosmosTransformer3DModel", "cosmos", blocks("transformer_blocks"), other_times=True),
    model("DiTTransformer2DModel", "dit", blocks("transformer_blocks")),
    model(
        "EasyAnimateTransformer3DModel", "easyanimate", blocks("transformer_blocks", HIDDEN, TEXT)
    ),
    model("ErnieImageTransformer2DModel", "ernie-image", blocks("layers", "x"), video="x"),
    model(
        "FluxTransformer2DModel",
        "flux",
        blocks("transformer_blocks", TEXT, HIDDEN, image_rotary_emb=0),
        blocks("single_transformer_blocks", TEXT, HIDDEN, image_rotary_emb=0),
        output=True,
        tokens=True,
        masked=(
            MaskedPipeline("FluxInpaintPipeline", guidance="one branch"),
            MaskedPipeline("FluxFillPipeline", guidance="one branch", kept="channels of the input"),
            MaskedPipeline("FluxControlInpaintPipeline", guidance="one branch"),
            MaskedPipeline("FluxKontextInpaintPipeline", SOURCE),
        ),
    ),
    model(
        "Flux2Transformer2DModel",
        "flux2",
        blocks("transformer_blocks", TEXT, HIDDEN, image_rotary_emb=0),
        blocks("single_transformer_blocks", HIDDEN, image_rotary_emb=0),
        output=True,
        tokens=True,
        masked=(MaskedPipeline("Flux2KleinInpaintPipeline", "text, source, reference"),),
    ),
    model("Flux3Transformer2DModel", "flux3", blocks("single_transformer_blocks", TEXT, HIDDEN)),
    model(
        "HunyuanVideoFramepackTransformer3DModel",
        "framepack",
        blocks("transformer_blocks", HIDDEN, TEXT),
        blocks("single_transformer_blocks", HIDDEN, TEXT),
    ),
    model("GlmImageTransformer2DModel", "glm-image", blocks("transformer_blocks", HIDDEN, TEXT)),
    model("HeliosTransformer3DModel", "helios", blocks("blocks")),
    model(
        "HunyuanImageTransformer2DModel",
        "hunyuan-image",
        blocks("transformer_blocks", HIDDEN, TEXT),
        blocks("single_transformer_blocks", HIDDEN, TEXT),
    ),
    model(
        "HunyuanVideoTransformer3DModel",
        "hunyuan-video",
        blocks("transformer_blocks", HIDDEN, TEXT),
        blocks("single_transformer_blocks", HIDDEN, TEXT),
    ),
    model(
        "HunyuanVideo15Transformer3DModel",
        "hunyuan-video-1.5",
        blocks("transformer_blocks", HIDDEN, TEXT),
    ),
    model("Ideogram4Transformer2DModel", "ideogram4", blocks("layers")),
    model("JoyImageEditTransformer3DModel", "joyimage-edit", blocks("double_blocks", HIDDEN, TEXT)),
    model(
        "Kandinsky5Transformer3DModel",
        "kandinsky5",
        blocks("visual_transformer_blocks", "visual_embed"),
        video="visual_embed",
    ),
    model("Krea2Transformer2DModel", "krea2", blocks("transformer_blocks")),
    model("LongCatAudioDiTTransformer", "longcat-audio", blocks("blocks")),
    model(
        "LongCatImageTransformer2DModel",
        "longcat-image",
        blocks("transformer_blocks", TEXT, HIDDEN),
        blocks("single_transformer_blocks", TEXT, HIDDEN),
    ),
    model(
        "LTX2VideoTransformer3DModel",
        "ltx2",
        blocks("transformer_blocks", HIDDEN, "audio_hidden_states"),
    ),
    model("LuminaNextDiT2DModel", "lumina-next", blocks("layers")),
    model("Lumina2Transformer2DModel", "lumina2", blocks("layers")),
    model(
        "MiniMaxH3Transformer3DModel", "minimax-h3", blocks("transformer_blocks"), other_times=True
    ),
    model("MiniMaxMusic3Transformer1DModel", "minimax-music3", blocks("transformer_blocks")),
    model("MochiTransformer3DModel", "mochi", blocks("transformer_blocks", HIDDEN, TEXT)),
    model(
        "MotifVideoTransformer3DModel",
        "motif-video",
        blocks("transformer_blocks", HIDDEN, TEXT),
        blocks("single_transformer_blocks", HIDDEN, TEXT),
    ),
    model("NucleusMoEImageTransformer2DModel", "nucleus-image", blocks("transformer_blocks")),
    model("OmniGenTransformer2DModel", "omnigen", blocks("layers")),
    model(
        "OvisImageTransformer2DModel",
        "ovis-image",
        blocks("transformer_blocks", TEXT, HIDDEN),
        blocks("single_transformer_blocks", TEXT, HIDDEN),
    ),
    model("PixArtTransformer2DModel", "pixart", blocks("transformer_blocks")),
    model("PRXTransformer2DModel", "prx", blocks("blocks")),
    model(
        "QwenImageTransformer2DModel",
        "qwen-image",
        blocks("transformer_blocks", TEXT, HIDDEN, image_rotary_emb=(0, None)),
        output=True,
        tokens=True,
        masked=(
            MaskedPipeline("QwenImageInpaintPipeline"),
            MaskedPipeline("QwenImageEditInpaintPipeline", SOURCE),
        ),
    ),
    model("QwenImage21Transformer2DModel", "qwen-image-2.1", blocks("transformer_blocks")),
    model("SanaTransformer2DModel", "sana", blocks("transformer_blocks"), other_times=True),
    model("SanaVideoTransformer3DModel", "sana-video", blocks("transformer_blocks")),
    model(
        "SD3Transformer2DModel",
        "sd3",
        blocks("transformer_blocks", TEXT, HIDDEN),
        output=True,
        tokens=True,
        masked=(MaskedPipeline("StableDiffusion3InpaintPipeline", guidance=ONE_CALL),),
        attends_last=True,
    ),
    model("SkyReelsV2Transformer3DModel", "skyreels-v2", blocks("blocks")),
    model("StableAudio3DiTModel", "stable-audio3", blocks("transformer_blocks")),
    model("WanTransformer3DModel", "wan", blocks("blocks"), output=True),
    model("WanAnimateTransformer3DModel", "wan-animate", blocks("blocks"), beside="face_adapter"),
    model(
        "ZImageTransformer2DModel",
        "z-image",
        blocks("layers", "x", freqs_cis=1),
        video="x",
        latents="x",
        timestep="t",
        cond_first=True,
        tokens=True,
        masked=(MaskedPipeline("ZImageInpaintPipeline", "text, filling", ONE_CALL),),
        masks=("attn_mask",),
    ),
)
"""One value a class."""


@final
@frozen
class DiffusersModelSet(ModelSet):
    """What comes with hetcache."""

    name: ClassVar[str] = "builtin"
    summary: ClassVar[str] = "transformers of diffusers 0.42"

    def models(self) -> Sequence[ModelDescription]:
        """Return the descriptions."""
        return MODELS
