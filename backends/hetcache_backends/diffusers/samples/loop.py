"""A pipeline around any transformer: two branches a step, as most pipelines have it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from attrs import frozen
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.image_processor import VaeImageProcessor

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from hetcache_backends.diffusers.samples.sample import Sample
    from hetcache_core import EditRequest

MASK_SIDE = 64
"""Pixels of a side of the mask, whatever the tokens are."""

LIBRARY: Any = DiffusionPipeline


@frozen(eq=False)
class Made:
    """What a run made.

    Attributes:
        latents: the final latents.
        outputs: everything that the transformer returned, flat, for each of its calls.
    """

    latents: Tensor
    outputs: list[Tensor]


@final
class SampleLoop(LIBRARY):  # type: ignore[misc]
    """Calls a sample's transformer for each branch of each step; ``of`` makes one."""

    sample: Sample
    guidance_scale: float

    def __init__(self, transformer: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    @classmethod
    def of(cls, sample: Sample, seed: int, *, patch: int = 0) -> SampleLoop:
        """Make one.

        Args:
            sample: what the transformer is made of, and called with.
            seed: of the weights.
            patch: latents that a token is wide, for a pipeline with a mask of its own; 0 for one without.
        """
        scheduler: Any = FlowMatchEulerDiscreteScheduler
        made = cls(sample.model(seed), scheduler())
        made.sample, made.guidance_scale = sample, 1.0
        if patch:
            made.vae_scale_factor = MASK_SIDE // (sample.side * patch)
            processor: Any = VaeImageProcessor
            made.mask_processor = processor(
                do_normalize=False, do_binarize=True, do_convert_grayscale=True
            )
        return made

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether there are two branches."""
        return self.guidance_scale > 1

    @torch.no_grad()
    def __call__(
        self,
        num_inference_steps: int,
        *,
        sigmas: list[float] | None = None,
        guidance_scale: float = 2.0,
        seed: int = 0,
        mask: Tensor | None = None,
    ) -> Made:
        """Run some steps.

        Args:
            num_inference_steps: how many.
            sigmas: noise levels, or None for the scheduler's own.
            guidance_scale: strength of the guidance; 1 runs one branch.
            seed: of everything that the transformer is called with.
            mask: (H, W), where the picture is edited; looked at by masked loops alone.
        """
        self.guidance_scale = guidance_scale
        like, sample = next(self.transformer.parameters()), self.sample
        # Releases of diffusers differ in what else a class is called with.
        taken = inspect.signature(type(self.transformer).forward).parameters
        branches = [
            _placed(sample.inputs(seed, branch, like.dtype), like.device)
            for branch in range(2 if self.do_classifier_free_guidance else 1)
        ]
        if mask is not None and hasattr(self, "mask_processor"):
            picture = mask.to(like.device, torch.float32)[None, None]
            self.mask_processor.preprocess(picture, height=MASK_SIDE, width=MASK_SIDE)
        latents = branches[0][sample.latents]
        self.scheduler.set_timesteps(num_inference_steps if sigmas is None else None, sigmas=sigmas)
        self.scheduler.set_begin_index(0)
        outputs: list[Tensor] = []
        for t in self.scheduler.timesteps:
            guided = []
            for given in branches:
                time = sample.at(given[sample.timestep], t)
                arguments = {**given, sample.latents: latents, sample.timestep: time}
                arguments = {k: v for k, v in arguments.items() if k in taken}
                guided.append(_tensors(self.transformer(**arguments)))
            outputs += [torch.cat([each.flatten() for each in made]) for made in guided]
            whole = torch.stack(latents) if isinstance(latents, list) else latents
            noises = [_fitted(made[0], whole) for made in guided]
            noise = noises[-1] + guidance_scale * (noises[0] - noises[-1])
            made = self.scheduler.step(noise, t, whole, return_dict=False)[0]
            latents = list(made) if isinstance(latents, list) else made
        return Made(torch.stack(latents) if isinstance(latents, list) else latents, outputs)

    def edited(self, request: EditRequest) -> NDArray[np.uint8]:
        """Run as many steps as an edit asks for; its video shows the final latents as grey values."""
        made = self(
            request.steps,
            guidance_scale=request.guidance_scale,
            seed=request.seed,
            mask=torch.from_numpy(request.mask.any(axis=0)),
        )
        values = (made.latents.float().sigmoid() * 255).round().to("cpu", torch.uint8)
        return np.resize(values.numpy(), request.video.shape)


def _fitted(output: Tensor, latents: Tensor) -> Tensor:
    """Cut or repeat what is predicted, such as a variance too, to the size of the latents."""
    if output.shape == latents.shape:
        return output
    times = -(-latents.numel() // output.numel())
    return output.flatten().repeat(times)[: latents.numel()].view_as(latents)


def _placed(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {name: _placed(each, device) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_placed(each, device) for each in value)
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _tensors(result: Any) -> list[Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, list | tuple):
        return [tensor for value in result for tensor in _tensors(value)]
    return _tensors(result.to_tuple()) if hasattr(result, "to_tuple") else []
