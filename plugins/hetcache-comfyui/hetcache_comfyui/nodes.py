"""The nodes, as ComfyUI looks for them."""

from __future__ import annotations

import logging
from typing import Any, Final, final

from hetcache_comfyui.accelerated import Accelerated, Unsampled, found_on, put_on
from hetcache_comfyui.backbones import is_described
from hetcache_core import ConfigError, Guards, UnsupportedBackboneError, discover

CATEGORY: Final = "hetcache"

_log = logging.getLogger("hetcache.comfyui")


def policies() -> list[str]:
    """Name the policies that run without settings, the default first."""
    registry = discover()
    names = [n for n in registry.names("policy") if not registry.policy(n).needs_settings()]
    skipped = {"fewer-steps"}  # in ComfyUI the sampler has a field for that
    return sorted(set(names) - skipped, key=lambda name: (name != "auto", name))


@final
class HetCache:
    """Puts a caching policy on a model."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Makes sampling faster: steps, and parts of the picture, that change too little are not "
        "computed. Put it between the model and the sampler."
    )
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL", "STRING")
    RETURN_NAMES = ("model", "status")
    OUTPUT_TOOLTIPS = (
        "The model, for the sampler.",
        "What will be done, or why the model was passed through as it is.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        """Describe the inputs."""
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The diffusion model, after its LoRAs."}),
                "policy": (
                    policies(),
                    {
                        "default": "auto",
                        "tooltip": "How to save work. 'auto' suits any model and any edit; 'hetcache' "
                        "computes the edited part of the picture more often than the rest, and "
                        "needs a mask.",
                    },
                ),
                "preset": (
                    ["balanced", "quality", "fast", "none"],
                    {
                        "default": "balanced",
                        "tooltip": "How much to save. 'none' takes the policy's own settings.",
                    },
                ),
                "speedup": (
                    "FLOAT",
                    {
                        "default": 0.0,
                        "min": 0.0,
                        "max": 10.0,
                        "step": 0.1,
                        "tooltip": "How many times less to compute; 0 leaves it to the preset.",
                    },
                ),
                "quality": (
                    "FLOAT",
                    {
                        "default": 0.0,
                        "min": 0.0,
                        "max": 60.0,
                        "step": 0.5,
                        "tooltip": "How near to stay to the result without the node inside the mask, in "
                        "decibels (30 is hard to tell apart); 0 leaves it to the preset. 'auto' only.",
                    },
                ),
                "first_steps": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 100,
                        "tooltip": "Steps at the start that are always computed: they lay out the "
                        "picture. 0 leaves it to the policy.",
                    },
                ),
            },
            "optional": {
                "mask": (
                    "MASK",
                    {
                        "tooltip": "White where the video is edited, one picture a frame or one for all. "
                        "Without it, the mask of VACE's conditioning or of the latent is taken."
                    },
                ),
            },
        }

    def apply(
        self,
        *,
        model: Any,
        policy: str,
        preset: str,
        speedup: float,
        quality: float,
        first_steps: int,
        mask: Any = None,
    ) -> tuple[Any, str]:
        """Return the model that samples with the policy, and what that means."""
        accelerated = Accelerated(
            policy=policy,
            preset=None if preset == "none" else preset,
            guards=Guards(first_steps=first_steps) if first_steps else Guards(),
            target_speedup=speedup or None,
            target_quality=quality or None,
            edit_mask=mask,
        )
        try:
            try:
                session = accelerated.session(Unsampled(model))
            except ConfigError as error:
                if error.setting != "preset":
                    raise
                accelerated.preset = None  # this policy has none, and the field always says one
                session = accelerated.session(Unsampled(model))
        except (ConfigError, UnsupportedBackboneError) as error:
            if isinstance(error, ConfigError) and is_described(Unsampled(model)):
                raise  # a setting is wrong; of other models, it may be that they have one block only
            _log.warning("the model is passed through as it is: %s", error)
            return model, f"passed through as it is: {error}"
        status = f"{session.policy.name} on {session.backbone.summary}"
        return put_on(model, accelerated), status


@final
class HetCacheTrace:
    """Shows what was decided in the last sampling of a model."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Shows which steps were computed and which were not, and why."
    FUNCTION = "show"
    RETURN_TYPES = ("LATENT", "STRING", "IMAGE")
    RETURN_NAMES = ("latent", "text", "picture")
    OUTPUT_TOOLTIPS = (
        "The latent as it came.",
        "A line a step.",
        "A bar a step: red computed, yellow the edited part only, blue not computed.",
    )
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        """Describe the inputs."""
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The model that the sampler was given."}),
                "latent": ("LATENT", {"tooltip": "What the sampler made, so that it ran before."}),
            }
        }

    @classmethod
    def IS_CHANGED(cls, **_inputs: Any) -> float:  # noqa: N802 - ComfyUI's name
        """Say that it is to be run again: a trace is no input."""
        return float("nan")

    def show(self, *, model: Any, latent: Any) -> dict[str, Any]:
        """Return the latent, the text and the picture."""
        import torch

        from hetcache_comfyui.looking import steps_picture, told

        found, picture = found_on(model), torch.zeros(1, 8, 8, 3)
        if found is None:
            text = "There is no HetCache on this model, or it was passed through: see its status."
        elif found.trace is None:
            text = f"Sampled as without HetCache: {found.refusal or 'no step could be followed'}"
        else:
            text, picture = told(found.trace), steps_picture(found.trace)
        return {"ui": {"text": [text]}, "result": (latent, text, picture)}


@final
class HetCacheCompare:
    """Measures how near two videos are, inside the mask and outside of it."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Measures how near a result is to the one without HetCache, in the edit and elsewhere."
    )
    FUNCTION = "compare"
    RETURN_TYPES = ("STRING", "IMAGE")
    RETURN_NAMES = ("text", "roles")
    OUTPUT_TOOLTIPS = (
        "PSNR (30 dB is hard to tell apart) and SSIM (1 is the same) in each region.",
        "Frames of the result: red is the edited part, yellow its margin.",
    )
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        """Describe the inputs."""
        side = {"default": 16, "min": 1, "max": 128}
        return {
            "required": {
                "result": ("IMAGE", {"tooltip": "The video made with HetCache."}),
                "reference": ("IMAGE", {"tooltip": "The same video made without."}),
                "token_size": (
                    "INT",
                    {**side, "tooltip": "Pixels of a token: 16 for Wan, 32 for LTX-Video."},
                ),
                "frame_stride": (
                    "INT",
                    {
                        **side,
                        "default": 4,
                        "tooltip": "Frames of a token: 4 for Wan, 8 for LTX-Video.",
                    },
                ),
            },
            "optional": {
                "mask": ("MASK", {"tooltip": "White where the video was edited; all without it."}),
            },
        }

    def compare(
        self, *, result: Any, reference: Any, token_size: int, frame_stride: int, mask: Any = None
    ) -> dict[str, Any]:
        """Return the measures and the picture of roles."""
        import torch

        from hetcache_comfyui.looking import compared, roles_picture

        if result.shape != reference.shape:
            raise ConfigError(
                f"the result is {tuple(result.shape)} and the reference {tuple(reference.shape)}",
                where="HetCache Compare",
                remedy="Compare videos of the same size and length",
            )
        frames, height, width = result.shape[:3]
        area = torch.ones(1, height, width) if mask is None else mask
        if area.shape[1:] != (height, width) or area.shape[0] not in {1, frames}:
            raise ConfigError(
                f"the mask is {tuple(area.shape)} and the videos {tuple(result.shape[:3])}",
                where="HetCache Compare",
                remedy="Give a mask of their size, with one picture or as many as they have",
            )
        edited = (area > 0.5).expand(frames, -1, -1)  # noqa: PLR2004 - nearer to white than to black
        text = compared(result, reference, edited, token_size)
        picture = roles_picture(result, edited, token_size, frame_stride)
        return {"ui": {"text": [text]}, "result": (text, picture)}


NODE_CLASS_MAPPINGS: Final[dict[str, type]] = {
    "HetCache": HetCache,
    "HetCacheTrace": HetCacheTrace,
    "HetCacheCompare": HetCacheCompare,
}
NODE_DISPLAY_NAME_MAPPINGS: Final[dict[str, str]] = {
    "HetCache": "HetCache",
    "HetCacheTrace": "HetCache Trace",
    "HetCacheCompare": "HetCache Compare",
}
