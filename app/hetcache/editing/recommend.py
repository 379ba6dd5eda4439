"""``hetcache recommend``: which model and which policy, from the mask, the picture and the memory."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, final

from attrs import asdict, frozen

from hetcache.editing.checkpoints import CHECKPOINTS, ROOM, Checkpoint
from hetcache.editing.config import EditConfig, SpanConfig
from hetcache.editing.job import prepare
from hetcache.editing.preview import count_roles
from hetcache.media.options import MaskConfig
from hetcache.running.device import choose_device, memory_of
from hetcache.running.groups import JsonConfig, ModelConfig
from hetcache.running.limits import read_size
from hetcache.running.options import written
from hetcache_core import setting
from hetcache_core.session import resolve_policy
from hetcache_core.settings.declare import group

if TYPE_CHECKING:
    from hetcache_core import Registry, RunInfo

__all__ = ["RecommendConfig", "Recommendation", "recommend"]

FEW: Final = 0.25
"""Share of active tokens up to which partial steps are worth their memory. In the findings they bring 1.2 dB
at four times fewer FLOPs, with masks of a few percent to a quarter of the tokens."""


@final
@frozen(kw_only=True)
class RecommendConfig:
    """What is to be edited, and with what at hand."""

    video: str = setting(doc="the video to edit", metadata=written(metavar="FILE"))
    mask: str = setting(
        doc="where to edit: a video, a folder of pictures or one picture; white is edited",
        metadata=written(metavar="PATH"),
    )
    memory: int | None = setting(
        None,
        ge=1,
        doc="memory of the device, such as 16GB",
        metadata=written(
            metavar="SIZE",
            unset="the GPU's, or the machine's where there is none",
            read=lambda text, option: read_size(text, option=option),
        ),
    )
    speedup: float = setting(3.0, ge=1, doc="how many times fewer FLOPs to compute")
    reading: MaskConfig = group(MaskConfig())
    span: SpanConfig = group(SpanConfig())
    answer: JsonConfig = group(JsonConfig())


@frozen(kw_only=True)
class Recommendation:
    """What to take, and why.

    Attributes:
        backbone: Name of the backbone.
        model: Checkpoint for it.
        policy: Name of the policy.
        settings: Settings of the policy that are not its defaults.
        speedup: How many times fewer FLOPs are asked for.
        active: Share of the tokens that a partial step runs.
        weights_bytes: Of the transformer in bfloat16.
        cache_bytes: That the policy keeps, both guidance branches.
        memory_bytes: What there is.
        reasons: Why, a sentence each.
        command: What to type.
    """

    backbone: str
    model: str
    policy: str
    settings: Mapping[str, Any]
    speedup: float
    active: float
    weights_bytes: int
    cache_bytes: int
    memory_bytes: int
    reasons: tuple[str, ...]
    command: str

    def to_dict(self) -> dict[str, Any]:
        """Return the values of the JSON output."""
        return {**asdict(self), "reasons": list(self.reasons)}


def recommend(config: RecommendConfig, registry: Registry) -> Recommendation:
    """Choose a model and a policy for an edit; nothing is loaded, and nothing is run.

    Args:
        config: What is to be edited.
        registry: Where backbones and policies are looked up.

    Raises:
        HetCacheError: The video or the mask cannot be used.
    """
    memory, of = _memory(config.memory)
    for checkpoint in CHECKPOINTS:
        active, run = _look(config, checkpoint, registry)
        for partials in (True, False) if active <= FEW else (False,):
            settings = {"partials": 1} if partials else {}
            policy, _ = resolve_policy("auto", settings, None, checkpoint.info, registry)
            cache = checkpoint.cache_bytes(policy, run)
            fits = checkpoint.weights + cache <= ROOM * memory
            if fits:
                break
        if fits:
            break
    size = f"{checkpoint.weights / 1e9:.1f} GB of weights and {cache / 1e9:.1f} GB of cache"
    reasons = [
        f"{checkpoint.model}: {size} "
        + (f"fit into {ROOM:.0%} of {of}" if fits else f"do not fit into {ROOM:.0%} of {of}, and there is "
           "nothing smaller: keep the weights in host memory (offloading), or take fewer pixels"),
        "auto: the default; docs/findings.md shows where another policy is nearer to the run without caching",
    ]  # fmt: skip
    if settings:
        reasons.append(
            f"partials=1: {active:.0%} of the tokens are edited or beside those, few enough"
        )
    elif active <= FEW:
        reasons.append(
            f"no partial steps: {active:.0%} of the tokens are active, but their keys do not fit"
        )
    else:
        reasons.append(
            f"no partial steps: {active:.0%} of the tokens are active, too many to save much"
        )
    if not config.speedup > 1:
        reasons.append("nothing is saved at a speed-up of 1")
    return Recommendation(
        backbone=checkpoint.info.backbone,
        model=checkpoint.model,
        policy="auto",
        settings=settings,
        speedup=config.speedup,
        active=active,
        weights_bytes=int(checkpoint.weights),
        cache_bytes=cache,
        memory_bytes=memory,
        reasons=tuple(reasons),
        command=_command(config, checkpoint, settings),
    )


def _memory(asked: int | None) -> tuple[int, str]:
    if asked is not None:
        return asked, f"{asked / 1e9:.0f} GB"
    device = choose_device("auto")
    there = memory_of(device)
    if device == "cpu":
        whose = f"this machine's {there / 1e9:.0f} GB (it has no GPU, and a real model takes hours)"
    else:
        whose = f"the GPU's {there / 1e9:.0f} GB"
    return there, whose


def _look(
    config: RecommendConfig, checkpoint: Checkpoint, registry: Registry
) -> tuple[float, RunInfo]:
    """Return the share of active tokens, and the run of the window that edits most."""
    backbone = registry.backbone(checkpoint.info.backbone)()
    asked = EditConfig(
        video=config.video,
        mask=config.mask,
        output="",
        reading=config.reading,
        model=ModelConfig(backbone=backbone.name),
        span=config.span,
    )
    job = prepare(asked, backbone)
    counted = [
        (int((roles > 0).sum()), roles.size, grid, mask)
        for _, roles, grid, mask in count_roles(job, backbone, registry, margin=1)
    ]
    most = max(counted, key=lambda each: each[0])
    active = sum(each[0] for each in counted) / sum(each[1] for each in counted)
    return active, checkpoint.run(most[2], most[3])


def _command(config: RecommendConfig, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> str:
    words = [
        "hetcache",
        "edit",
        "--video",
        config.video,
        "--mask",
        config.mask,
        "--output",
        "out.mp4",
    ]
    words += ["--backbone", checkpoint.info.backbone, "--model", checkpoint.model]
    words += ["--policy", "auto", "--target-speedup", f"{config.speedup:g}"]
    for name, value in settings.items():
        words += ["--set", f"{name}={value}"]
    return shlex.join(words)
