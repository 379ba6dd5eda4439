"""Small stand-ins of what ComfyUI hands to nodes and wrappers, for tests where there is no ComfyUI.

They are written from its interfaces: a patcher that is cloned and takes wrappers, a guider that samples
through them with Euler's method, and models with the attributes that the adapters look at. The same tests
run on ComfyUI itself where there is one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar
from uuid import UUID, uuid4

import torch
from attrs import define, field, frozen
from torch import Tensor, nn
from torch.nn.functional import layer_norm, scaled_dot_product_attention

Wrappers = dict[str, dict[str, list[Callable[..., Any]]]]

TEXT, WIDTH, HEADS = 5, 48, 4
"""Tokens of a prompt, width and heads of the models."""


@define(eq=False, slots=False)
class Executor:
    """Runs a function through wrappers; each gets the rest of them."""

    original: Callable[..., Any]
    class_obj: Any
    wrappers: list[Callable[..., Any]]

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        """Begin with the first wrapper."""
        if not self.wrappers:
            return self.original(*args, **kwargs)
        return self.wrappers[0](self, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Go on with the next."""
        return Executor(self.original, self.class_obj, self.wrappers[1:]).execute(*args, **kwargs)


def through(place: str, function: Any, options: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Run a bound method through the wrappers that ``transformer_options`` name for a place."""
    found = options.get("wrappers", {}).get(place, {}).values()
    wrappers = [wrapper for each in found for wrapper in each]
    return Executor(function, function.__self__, wrappers).execute(*args, **kwargs)


@frozen
class Flow:
    """Noise levels of flow matching."""

    sigma_max: float = 1.0

    def timestep(self, sigma: Tensor) -> Tensor:
        """Timestep of a noise level."""
        return sigma * 1000


class Model(nn.Module):
    """What makes a guider's latents an input of the diffusion model."""

    def __init__(self, diffusion_model: nn.Module, channels: int, scale: float) -> None:
        super().__init__()
        self.diffusion_model, self.scale = diffusion_model, scale
        self.latent_format = SimpleNamespace(latent_channels=channels)

    def apply_model(self, x: Tensor, sigma: Tensor, **given: Any) -> Tensor:
        """Return what the latents would be without noise."""
        velocity = self.diffusion_model(x, sigma * self.scale, **given)
        denoised: Tensor = x - velocity * sigma.view(-1, *[1] * (x.dim() - 1))
        return denoised


@define(eq=False, slots=False)
class Patcher:
    """A model with what nodes have put on it."""

    model: Model
    model_options: dict[str, Any] = field(factory=lambda: {"transformer_options": {}})
    wrappers: Wrappers = field(factory=dict)

    def clone(self) -> Patcher:
        """Copy what nodes have put on it; the model is shared."""
        wrappers = {place: {k: list(v) for k, v in w.items()} for place, w in self.wrappers.items()}
        return Patcher(self.model, copy.deepcopy(self.model_options), wrappers)

    def add_wrapper_with_key(self, place: str, key: str, wrapper: Callable[..., Any]) -> None:
        """Put a wrapper at a place."""
        self.wrappers.setdefault(place, {}).setdefault(key, []).append(wrapper)

    def remove_wrappers_with_key(self, place: str, key: str) -> None:
        """Take wrappers off again."""
        self.wrappers.get(place, {}).pop(key, None)

    def get_wrappers(self, place: str, key: str) -> list[Callable[..., Any]]:
        """Return those of a key."""
        return self.wrappers.get(place, {}).get(key, [])

    def get_model_object(self, name: str) -> Any:
        """Return how the model is sampled."""
        return {"model_sampling": Flow()}[name]


@define(eq=False, slots=False)
class Euler:
    """A sampler."""

    extra_options: ClassVar[dict[str, Any]] = {}
    evaluations: int = 1

    @staticmethod
    def sampler_function(
        model: Any, x: Tensor, sigmas: Tensor, callback: Any, evaluations: int, mask: Any
    ) -> Tensor:
        """Follow the straight line of every step; where a mask is 0, towards nothing."""
        for index in range(len(sigmas) - 1):
            level = sigmas[index] * x.new_ones(len(x))
            # Samplers of higher order come back to a level.
            denoised = sum(model(x, level) for _ in range(evaluations)) / evaluations
            denoised = denoised if mask is None else denoised * mask
            if callback is not None:
                callback(index)
            x = x + (x - denoised) / sigmas[index] * (sigmas[index + 1] - sigmas[index])
        return x

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        callback: Any,
        noise: Tensor,
        denoise_mask: Tensor | None = None,
    ) -> Tensor:
        """Sample from pure noise."""
        return self.sampler_function(
            model_wrap, noise, sigmas, callback, self.evaluations, denoise_mask
        )


Euler.sampler_function.__name__ = "sample_euler"


@define(eq=False, slots=False)
class Guider:
    """Samples a patched model with two prompts."""

    model_patcher: Patcher
    conds: list[dict[str, Any]]
    cfg: float = 4.0
    model_options: dict[str, Any] = field(init=False)
    uuids: list[UUID] = field(init=False, factory=lambda: [uuid4(), uuid4()])

    def __attrs_post_init__(self) -> None:
        self.model_options = self.model_patcher.model_options

    @property
    def _options(self) -> dict[str, Any]:
        found: dict[str, Any] = self.model_options["transformer_options"]
        return found

    def sample(
        self,
        noise: Tensor,
        sigmas: Tensor,
        callback: Any = None,
        sampler: Any = None,
        denoise_mask: Tensor | None = None,
    ) -> Tensor:
        """Run the sampler: latents (B, C, T, h, w)."""
        own = self.model_options
        merged = copy.copy(own["transformer_options"])
        merged["wrappers"] = {
            place: {
                **self.model_patcher.wrappers.get(place, {}),
                **merged.get("wrappers", {}).get(place, {}),
            }
            for place in (*self.model_patcher.wrappers, *merged.get("wrappers", {}))
        }
        self.model_options = {**own, "transformer_options": merged}
        try:
            output: Tensor = through(
                "outer_sample",
                self.outer_sample,
                merged,
                noise,
                sampler or Euler(),
                sigmas,
                callback,
                denoise_mask,
            )
        finally:
            self.model_options = own
        return output

    def outer_sample(
        self, noise: Tensor, sampler: Any, sigmas: Tensor, callback: Any, denoise_mask: Any
    ) -> Tensor:
        """Run the sampler's own function."""
        latents: Tensor = through(
            "sampler_sample",
            sampler.sample,
            self._options,
            self,
            sigmas,
            callback,
            noise,
            denoise_mask,
        )
        return latents

    def __call__(self, x: Tensor, timestep: Tensor) -> Tensor:
        """Evaluate the guided model."""
        denoised: Tensor = through("predict_noise", self.predict_noise, self._options, x, timestep)
        return denoised

    def predict_noise(self, x: Tensor, timestep: Tensor) -> Tensor:
        """Run both prompts as rows of one call, the unconditional one first, and mix them."""
        order = [1, 0] if self.cfg != 1 else [0]
        options = {**self._options, "cond_or_uncond": order, "sigmas": timestep}
        options["uuids"] = [self.uuids[place] for place in order]
        rows = [self.conds[place] for place in order]
        given: dict[str, Any] = {
            name: torch.cat([row[name] for row in rows])
            if isinstance(rows[0][name], Tensor)
            else rows[0][name]
            for name in rows[0]
        }
        count = len(order)
        made = self.model_patcher.model.apply_model(
            torch.cat([x] * count),
            torch.cat([timestep] * count),
            transformer_options=options,
            **given,
        ).chunk(count)
        return made[0] if count == 1 else made[0] + (made[1] - made[0]) * self.cfg


def attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, transformer_options: dict[str, Any], **given: Any
) -> Tensor:
    """Attend, or let another kernel do it: (B, n, D)."""
    other = transformer_options.get("optimized_attention_override")
    if other is not None and "_inside" not in given:
        made: Tensor = other(
            attention, q, k, v, heads, transformer_options=transformer_options, _inside=True
        )
        return made
    split = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Self- or cross-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.heads = HEADS

    def forward(
        self,
        x: Tensor,
        context: Any = None,
        pe: Any = None,
        mask: Any = None,
        transformer_options: Any = None,
        context_img_len: Any = None,
    ) -> Tensor:
        """Attend: (B, n, D)."""
        if context is not None and context.dim() > 3:  # noqa: PLR2004 - a rotary table (1, n, 1, D)
            context, pe = None, (context[:, :, 0], None)
        read = x if context is None else context
        turned = (x, read) if pe is None else (x * pe[0], read * pe[0])
        made: Tensor = self.o(
            attention(
                self.q(turned[0]), self.k(turned[1]), self.v(read), HEADS, transformer_options
            )
        )
        return made


def _norm(x: Tensor) -> Tensor:
    return layer_norm(x, x.shape[2:], eps=1e-6)


class WanBlock(nn.Module):
    """A block with the attributes of ``WanAttentionBlock``; as a control block it returns a hint, too."""

    def __init__(self, *, control: int | None = None) -> None:
        super().__init__()
        self.self_attn, self.cross_attn = Attention(), Attention()
        self.norm1 = nn.LayerNorm(WIDTH, 1e-6, elementwise_affine=False)
        self.ffn = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )
        self.modulation = nn.Parameter(torch.randn(1, 6, WIDTH) / 8)
        self.control = control
        if control is not None:
            self.before_proj = nn.Linear(WIDTH, WIDTH) if control == 0 else None
            self.after_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor, *, x: Any = None, **given: Any) -> Any:
        """Run it on (B, n, D)."""
        if self.control == 0 and self.before_proj is not None:
            hidden = self.before_proj(hidden) + x
        e, freqs, context = given["e"], given["freqs"], given["context"]
        options = {"transformer_options": given["transformer_options"]}
        six = (self.modulation + e).chunk(6, dim=1)
        y = self.self_attn(self.norm1(hidden) * (1 + six[1]) + six[0], freqs, **options)
        hidden = hidden + y * six[2]
        hidden = hidden + self.cross_attn(
            hidden, context, context_img_len=given["context_img_len"], **options
        )
        hidden = hidden + self.ffn(_norm(hidden) * (1 + six[4]) + six[3]) * six[5]
        return hidden if self.control is None else (self.after_proj(hidden), hidden)


class VaceWanModel(nn.Module):
    """A model with the attributes of ComfyUI's own of this name."""

    __module__ = "comfy.ldm.wan.model"

    def __init__(self, layers: int = 4, hints: int = 2) -> None:
        super().__init__()
        self.dim, self.num_heads, self.freq_dim, self.patch_size = WIDTH, HEADS, 32, (1, 2, 2)
        self.patch_embedding = nn.Conv3d(16, WIDTH, (1, 2, 2), (1, 2, 2))
        self.text_embedding = nn.Linear(24, WIDTH)
        self.time_embedding = nn.Sequential(
            nn.Linear(32, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 6 * WIDTH))
        self.blocks = nn.ModuleList(WanBlock() for _ in range(layers))
        self.head = nn.Module()
        self.head.head = nn.Linear(WIDTH, 64)
        self.vace_blocks = nn.ModuleList(WanBlock(control=index) for index in range(hints))
        self.vace_layers_mapping = {i * layers // hints: i for i in range(hints)}
        self.vace_patch_embedding = nn.Conv3d(96, WIDTH, (1, 2, 2), (1, 2, 2))

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor, **given: Any) -> Tensor:
        """Run it through its wrappers: (B, 16, T, h, w)."""
        options = given["transformer_options"]
        made: Tensor = through(
            "diffusion_model", self._forward, options, x, timestep, context, **given
        )
        return made

    def _forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        transformer_options: Any = None,
        **given: Any,
    ) -> Tensor:
        return self.forward_orig(x, timestep, context, transformer_options, **given)

    def forward_orig(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor,
        transformer_options: Any,
        vace_context: Tensor,
        vace_strength: list[float],
    ) -> Tensor:
        """Embed, run the blocks and the control blocks beside them, and lay the result out again."""
        hidden = self.patch_embedding(x)
        frames, height, width = hidden.shape[2:]
        hidden = hidden.flatten(2).transpose(1, 2)
        angles = torch.outer(t, torch.pow(10000, -torch.arange(16) / 16))
        e = self.time_projection(self.time_embedding(torch.cat([angles.cos(), angles.sin()], 1)))
        place = torch.arange(hidden.shape[1])[:, None] * torch.arange(1, WIDTH + 1) / 97
        given = {
            "e": e.unflatten(1, (6, WIDTH)),
            "freqs": (1 + 0.5 * place.cos())[None, :, None],
            "context": self.text_embedding(context),
            "context_img_len": None,
            "transformer_options": transformer_options,
        }
        inputs = vace_context.movedim(0, 1).flatten(0, 1)
        controls = self.vace_patch_embedding(inputs).flatten(2).transpose(1, 2)
        states, original = list(controls.split(len(vace_context))), hidden
        replaced = transformer_options.get("patches_replace", {}).get("dit", {})
        for index, block in enumerate(self.blocks):
            hidden = _replaceable(block, index, hidden, given, replaced)
            found = self.vace_layers_mapping.get(index)
            if found is not None:
                for number, strength in enumerate(vace_strength):
                    hint, states[number] = self.vace_blocks[found](
                        states[number], x=original, **given
                    )
                    hidden = hidden + hint * strength
        out: Tensor = self.head.get_submodule("head")(_norm(hidden))
        out = out.view(len(out), frames, height, width, 2, 2, 16)
        made: Tensor = torch.einsum("bfhwpqc->bcfhpwq", out).flatten(5).flatten(3, 4)
        return made


def _replaceable(
    block: Any, index: int, hidden: Tensor, given: dict[str, Any], replaced: dict[Any, Any]
) -> Tensor:
    """Run a block, or what a node has put in its place."""
    replace = replaced.get(("double_block", index))
    if replace is None:
        plain: Tensor = block(hidden, **given)
        return plain

    def original(args: dict[str, Any]) -> dict[str, Any]:
        return {"img": block(args["img"], **given)}

    made: Tensor = replace({"img": hidden}, {"original_block": original})["img"]
    return made


class LtxBlock(nn.Module):
    """A block with the attributes of ``BasicTransformerBlock``."""

    def __init__(self) -> None:
        super().__init__()
        self.attn1, self.attn2, self.ff = Attention(), Attention(), nn.Module()
        self.ff = _FeedForward()
        self.scale_shift_table = nn.Parameter(torch.randn(6, WIDTH) / 8)

    def forward(
        self,
        x: Tensor,
        context: Any = None,
        attention_mask: Any = None,
        timestep: Any = None,
        pe: Any = None,
        transformer_options: Any = None,
    ) -> Tensor:
        """Run it on (B, n, D), which it writes to."""
        six = (self.scale_shift_table + timestep.unflatten(2, (6, WIDTH))).unbind(2)
        options = {"transformer_options": transformer_options}
        x += self.attn1(_rms(x) * (1 + six[1]) + six[0], pe=pe, **options) * six[2]
        x += self.attn2(x, context=context, mask=attention_mask, **options)
        x += self.ff(_rms(x) * (1 + six[4]) + six[3]) * six[5]
        return x


class _FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU()),
            nn.Dropout(0),
            nn.Linear(2 * WIDTH, WIDTH),
        )

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.net(x)
        return made


def _rms(x: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


class _AdaLayerNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Module()
        self.emb.timestep_embedder = nn.Sequential(
            nn.Linear(32, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH)
        )
        self.emb.time_proj = _Waves()
        self.silu, self.linear = nn.SiLU(), nn.Linear(WIDTH, 6 * WIDTH)

    def forward(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        embed, waves = (self.emb.get_submodule(n) for n in ("timestep_embedder", "time_proj"))
        embedded = embed(waves(timestep))
        return self.linear(self.silu(embedded)), embedded


class _Waves(nn.Module):
    def forward(self, timestep: Tensor) -> Tensor:
        angles = torch.outer(timestep, torch.pow(10000, -torch.arange(16) / 16))
        return torch.cat([angles.cos(), angles.sin()], 1)


class LTXVModel(nn.Module):
    """A model with the attributes of ComfyUI's own of this name."""

    __module__ = "comfy.ldm.lightricks.model"

    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        self.inner_dim, self.vae_scale_factors = WIDTH, (8, 32, 32)
        self.patchify_proj, self.proj_out = nn.Linear(16, WIDTH), nn.Linear(WIDTH, 16)
        self.caption_projection = nn.Linear(24, WIDTH)
        self.adaln_single = _AdaLayerNorm()
        self.transformer_blocks = nn.ModuleList(LtxBlock() for _ in range(layers))

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor, **given: Any) -> Tensor:
        """Run it through its wrappers: (B, 16, T, h, w)."""
        options = given["transformer_options"]
        made: Tensor = through(
            "diffusion_model", self._forward, options, x, timestep, context, options
        )
        return made

    def _forward(
        self, x: Tensor, timestep: Tensor, context: Tensor, transformer_options: Any
    ) -> Tensor:
        shape = x.shape
        hidden = self.patchify_proj(x.flatten(2).transpose(1, 2))
        modulation, embedded = self.adaln_single(timestep * 1000)
        place = torch.arange(hidden.shape[1])[:, None] * torch.arange(1, WIDTH + 1) / 97
        pe = (1 + 0.5 * place.cos())[None].expand(len(x), -1, -1)
        given = {
            "context": self.caption_projection(context),
            "attention_mask": None,
            "timestep": modulation[:, None],
            "pe": (pe, pe),
            "transformer_options": transformer_options,
        }
        replaced = transformer_options.get("patches_replace", {}).get("dit", {})
        for index, block in enumerate(self.transformer_blocks):
            hidden = _replaceable(block, index, hidden, given, replaced)
        out: Tensor = self.proj_out(_norm(hidden) * (1 + embedded[:, None]))
        return out.transpose(1, 2).reshape(shape)


class OtherModel(nn.Module):
    """A model of which an adapter knows nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Conv3d(16, 16, 3, padding=1)

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor, **given: Any) -> Tensor:
        """Run it through its wrappers: (B, 16, T, h, w)."""
        options = given["transformer_options"]
        made: Tensor = through(
            "diffusion_model", self._forward, options, x, timestep, context, **given
        )
        return made

    def _forward(self, x: Tensor, timestep: Tensor, context: Tensor, **given: Any) -> Tensor:
        mixed = x + context.mean((1, 2)).view(-1, 1, 1, 1, 1)
        made: Tensor = self.inside(mixed).tanh() * (1 + timestep.view(-1, 1, 1, 1, 1) / 1000)
        return made


MODELS: dict[str, Callable[[], nn.Module]] = {
    "wan": VaceWanModel,
    "ltx": LTXVModel,
    "any": OtherModel,
}

LATENTS = (1, 16, 3, 6, 8)
"""Of the small runs: 3 latent frames, which stand for 9 pixel frames of Wan's, and 17 of LTX's."""


def small_patcher(kind: str, seed: int) -> Patcher:
    """Make a model of 3 or 4 blocks with weights by a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MODELS[kind]().requires_grad_(requires_grad=False).eval()
    return Patcher(Model(model, LATENTS[1], scale=1.0 if kind == "ltx" else 1000.0))


def small_conds(kind: str, seed: int) -> list[dict[str, Any]]:
    """Make the conditionings of two prompts, with VACE's control input for a Wan."""
    draw = torch.Generator().manual_seed(seed)
    rows: list[dict[str, Any]] = [
        {"context": torch.randn(1, TEXT, 24, generator=draw)} for _ in range(2)
    ]
    if kind == "wan":
        control = torch.randn(1, 1, 96, *LATENTS[2:], generator=draw)
        control[:, :, 32:] = 0
        control[:, :, 32:, :, 2:4, 3:6] = 1  # the mask
        for row in rows:
            row |= {"vace_context": control, "vace_strength": [1.0]}
    return rows


def small_mask(kind: str) -> Tensor:
    """Make a mask (F, H, W) in [0, 1] that moves over the clip."""
    frames, side = (9, 8) if kind == "wan" else (17, 32)
    mask = torch.zeros(frames, LATENTS[3] * side, LATENTS[4] * side)
    for frame in range(frames):
        mask[frame, 2 * side : 4 * side, 2 * side + frame : 4 * side + frame] = 1
    return mask


def small_guider(kind: str, seed: int, patcher: Patcher | None = None) -> Guider:
    """Make a guider of a small model."""
    return Guider(patcher or small_patcher(kind, seed), small_conds(kind, 0))


def small_run(
    guider: Any, steps: int, guidance: str, seed: int, *, sampler: Any = None, mask: Any = None
) -> Tensor:
    """Sample with "merged" or no guidance: latents (1, 16, 3, 6, 8)."""
    guider.cfg = 1.0 if guidance == "none" else 4.0
    noise = torch.randn(LATENTS, generator=torch.Generator().manual_seed(seed))
    even = torch.linspace(1, 0, steps + 1)
    sigmas = 3 * even / (1 + 2 * even)
    latents: Tensor = guider.sample(noise, sigmas, sampler=sampler, denoise_mask=mask)
    return latents
