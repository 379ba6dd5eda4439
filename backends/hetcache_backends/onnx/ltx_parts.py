"""The graphs of diffusers' LTX-Video transformer.

A masked edit has a timestep for each token, so the modulation has a row for each, and it is gathered
with the rows. Guidance branches are rows of one batch, each with a rotary table of its own.
"""

from __future__ import annotations

from typing import Any

from diffusers.models.transformers.transformer_ltx import apply_rotary_emb
from torch import Tensor, nn

from hetcache_backends.onnx.modules import BlockCode, Head
from hetcache_backends.onnx.parts import (
    BlockPorts,
    Part,
    Port,
    block_parts,
    embedding_parts,
    require_described,
    row_port,
)


def ltx_parts(model: Any) -> tuple[Part, ...]:
    """List the graphs of a model.

    Args:
        model: an ``LTXVideoTransformer3DModel`` in float32.

    Raises:
        UnsupportedBackboneError: the model is of a kind whose parts are not listed here.
    """
    others = {str(p.dtype).removeprefix("torch.") for p in model.parameters()} - {"float32"}
    block, width = model.transformer_blocks[0], int(model.proj_in.out_features)
    reasons = {
        "adapters (LoRA)": bool(getattr(model, "peft_config", None)),
        "weights in the norms of its blocks": block.norm1.weight is not None,
        f"{' and '.join(sorted(others))} weights": bool(others),
    }
    remedy = "LTX-Video 0.9 can, loaded in float32, adapters fused into it."
    require_described("An LTX-Video model", reasons, remedy)
    code = BlockCode(
        heads=int(block.attn1.heads),
        table="scale_shift_table",
        self_attention="attn1",
        cross_attention="attn2",
        cross_norm=None,
        feed_forward="ff",
        projections=("to_q", "to_k", "to_v", "to_out.0"),
        rotated=_rotated,
    )
    modulation = ("batch", "rows", 6, width)
    ports = BlockPorts(
        width=width,
        start=Port(
            name="modulation",
            shape=modulation,
            meaning="output of time_projection for each token, in six rows",
        ),
        modulation=modulation,
        angles=("batch", "rows", width),
        text=(
            Port(
                name="bias",
                shape=("batch", 1, "words"),
                meaning="added to the scores of the words; 0, or far below it for padding",
            ),
        ),
    )
    channels, predicted = int(model.proj_in.in_features), int(model.proj_out.out_features)
    return (
        Part(
            kind="patch",
            meaning="packed latents to tokens",
            inputs=(row_port("latents", channels, "noisy latents, those of a token in one row"),),
            outputs=(row_port("tokens", width, "one vector a token"),),
            modules={"patch": model.proj_in},
        ),
        *_around(model, width),
        Part(
            kind="head",
            meaning="tokens to their predicted latents",
            inputs=(
                row_port("hidden", width, "output of the blocks"),
                row_port("embedding", width, "embedded timestep of each token"),
            ),
            outputs=(row_port("latents", predicted, "packed as those that came in"),),
            modules={"head": Head(model.norm_out, model.scale_shift_table, model.proj_out)},
        ),
        *block_parts(model.transformer_blocks, code, ports),
    )


def _around(model: Any, width: int) -> list[Part]:
    text, time = model.caption_projection, model.time_embed
    return embedding_parts(
        width,
        (int(text.linear_1.in_features), text),
        (int(time.emb.time_proj.num_channels), time.emb.timestep_embedder),
        nn.Sequential(time.silu, time.linear),
    )


def _rotated(x: Tensor, cosines: Tensor, sines: Tensor, _heads: int) -> Tensor:
    """Rotate as the library does, by (B, n, D) each."""
    rotated: Tensor = apply_rotary_emb(x, (cosines, sines))  # type: ignore[no-untyped-call]
    return rotated
