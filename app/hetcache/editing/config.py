"""What one edit is asked to do: options of ``hetcache edit``, or the keys of its YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import attrs
import yaml
from attrs import frozen

from hetcache.running.limits import LimitsConfig, Precision, read_texts
from hetcache.running.policy_text import read_policy
from hetcache_core import ConfigError, setting
from hetcache_core.settings.declare import build, describe, parse_assignments

__all__ = [
    "CalibrateConfig",
    "DemoConfig",
    "EditConfig",
    "Preset",
    "assignments",
    "make_calibrate_config",
    "make_config",
    "make_demo_config",
    "option_help",
    "read_yaml",
]

Preset = Literal["quality", "balanced", "fast"]

DEMO_STEPS: Final = 20
"""Enough for a policy to show all its kinds of steps, and under two minutes on two CPU cores."""

REQUIRED: Final = ("video", "mask", "output")
MAPPINGS: Final = ("settings", "options")
"""Keys that hold several values by name; single ones are added or replaced by options."""


@frozen(kw_only=True)
class EditConfig(LimitsConfig):
    """One edit, as it is asked for.

    Its fields are the options of ``hetcache edit`` and the keys of ``--config``, and say
    themselves what they mean.
    """

    video: str = setting(doc="the video to edit")
    mask: str = setting(
        doc="where to edit: a video, a folder of pictures or one picture; white is edited"
    )
    output: str = setting(doc="the video to write (.mp4, .m4v, .mov or .mkv)")
    prompt: str = setting("", doc="what to put into the mask")
    negative_prompt: str = setting("", doc="what to keep out of it")
    invert_mask: bool = setting(default=False, doc="black is edited instead of white")
    backbone: str = setting("tiny-vace", doc="the model; `hetcache backbones` lists them")
    model: str | None = setting(None, doc="folder or hub id of a checkpoint")
    policy: str = setting(
        "auto",
        doc="the caching policy, or several joined by +, also as NAME:setting=value;setting=value; "
        "`hetcache policies` lists them",
    )
    preset: Preset | None = setting(None, doc="settings of the policy: quality, balanced or fast")
    settings: Mapping[str, object] = attrs.field(
        factory=dict, metadata={"doc": "settings of the policy by name; on top of the preset"}
    )
    options: Mapping[str, object] = attrs.field(
        factory=dict, metadata={"doc": "further arguments of the model library's own call, by name"}
    )
    steps: int = setting(50, ge=1, doc="steps of the sampler")
    seed: int = setting(0, ge=0, lt=2**63, doc="seed of the noise")
    frames: int | None = setting(
        None, ge=1, doc="how many frames to edit; by default the model's own number"
    )
    height: int | None = setting(None, ge=1, doc="height that the model works at")
    width: int | None = setting(None, ge=1, doc="width that the model works at")
    cfg_scale: float | None = setting(
        None, ge=0, doc="strength of the guidance; 1 goes without; by default the model's own"
    )
    cfg_merge: bool = setting(default=False, doc="run both guidance branches in one call")
    device: str = setting("auto", doc="auto, cpu, cuda or cuda:N")
    dtype: Precision = setting("auto", doc="auto, float32, bfloat16 or float16")
    composite: bool = setting(
        default=True, doc="outside of the mask, keep the pixels of the video as they are"
    )
    compare: bool = setting(default=False, doc="also run without caching, and compare")
    trace: str | None = setting(None, doc="write what every step did to this JSON file")
    json: bool = setting(default=False, doc="print one JSON object, and nothing else, on stdout")


@frozen(kw_only=True)
class DemoConfig(LimitsConfig):
    """One demonstration, as it is asked for; its fields are the options of ``hetcache demo``."""

    output: str = setting("hetcache-demo", doc="folder for the videos, the strip and the traces")
    backbone: str = setting("tiny-vace", doc="the model, which must come with a clip")
    model: str | None = setting(None, doc="folder or hub id of a checkpoint")
    policy: str = setting("hetcache", doc="the caching policy")
    steps: int = setting(DEMO_STEPS, ge=1, doc="steps of the sampler")
    seed: int = setting(0, ge=0, lt=2**63, doc="seed of the noise")
    device: str = setting("auto", doc="auto, cpu, cuda or cuda:N")
    dtype: Precision = setting("auto", doc="auto, float32, bfloat16 or float16")


@frozen(kw_only=True)
class CalibrateConfig:
    """One calibration, as it is asked for; its fields are the options of ``hetcache calibrate``."""

    policy: str = setting(doc="the policy to measure for")
    output: str = setting(doc="the calibration file to write")
    backbone: str = setting("tiny-vace", doc="the model; `hetcache backbones` lists them")
    model: str | None = setting(None, doc="folder or hub id of a checkpoint")
    video: tuple[str, ...] = setting((), doc="a video to measure on; repeatable, each with a mask")
    mask: tuple[str, ...] = setting((), doc="where that video is edited; repeatable")
    prompt: str = setting("", doc="what to put into the masks")
    clips: int = setting(
        1, ge=1, doc="without videos: how often to run the model's own clip, each with another seed"
    )
    steps: int = setting(50, ge=1, doc="steps of the sampler, for which alone the file will be")
    seed: int = setting(0, ge=0, lt=2**63, doc="seed of the noise; later clips count up from it")
    frames: int | None = setting(
        None, ge=1, doc="how many frames; by default the model's own number"
    )
    height: int | None = setting(None, ge=1, doc="height that the model works at")
    width: int | None = setting(None, ge=1, doc="width that the model works at")
    cfg_scale: float | None = setting(
        None, ge=0, doc="strength of the guidance; 1 goes without; by default the model's own"
    )
    options: Mapping[str, object] = attrs.field(
        factory=dict, metadata={"doc": "further arguments of the model library's own call, by name"}
    )
    device: str = setting("auto", doc="auto, cpu, cuda or cuda:N")
    dtype: Precision = setting("auto", doc="auto, float32, bfloat16 or float16")


def option_help(config: type[Any]) -> dict[str, str]:
    """Write the help of every option, by the name of its field.

    Args:
        config: The class whose fields are the options.
    """
    texts = {}
    for info in describe(config):
        plain = isinstance(info.default, str | int | float)
        shown = plain and info.default != "" and info.default is not False
        default = "on" if info.default is True else info.default
        texts[info.name] = f"{info.doc} (default: {default})" if shown else info.doc
    return texts


def assignments(texts: list[str] | None, *, option: str) -> dict[str, object]:
    """Read the ``name=value`` texts of a repeated option.

    Args:
        texts: The texts.
        option: The option.

    Raises:
        ConfigError: A text cannot be read.
    """
    try:
        return parse_assignments(texts or ())
    except ConfigError as error:
        error.where = option
        raise


def read_yaml(path: Path) -> dict[str, object]:
    """Read a configuration file.

    Args:
        path: A YAML file with a mapping.

    Returns:
        Its values by key, with ``-`` in keys written ``_``.

    Raises:
        ConfigError: It cannot be read, or holds something else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror or error}", where="--config"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no YAML: {error}", where="--config") from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path} holds no keys", where="--config", remedy="Write lines such as steps: 20."
        )
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def make_config(given: Mapping[str, Any], config: str | None = None) -> EditConfig:
    """Put options and a configuration file together; options win.

    Args:
        given: The options that were given, by the names of the fields.
        config: ``--config``, a YAML file with any of the same keys.

    Raises:
        ConfigError: A key is unknown, missing, of the wrong type or out of range.
    """
    from_file = read_yaml(Path(config)) if config else {}
    values: dict[str, Any] = {**from_file, **given}
    for name in MAPPINGS:
        base = from_file.get(name)
        if isinstance(base, Mapping) and name in given:
            values[name] = {**base, **given[name]}
    unknown = from_file.keys() - {info.name for info in describe(EditConfig)}
    missing = [name for name in REQUIRED if name not in values]
    if missing and not unknown:
        raise ConfigError(
            f"missing {', '.join('--' + name for name in missing)}",
            remedy="Give each as an option, or as a key of --config FILE.",
            setting=missing[0],
        )
    try:
        return build(EditConfig, read_texts(read_policy(values)), where="hetcache edit")
    except ConfigError as error:
        if error.setting in from_file and error.setting not in given:
            error.where = str(config)
        raise


def make_demo_config(given: Mapping[str, Any]) -> DemoConfig:
    """Check the options of a demonstration.

    Args:
        given: The options that were given, by the names of the fields.

    Raises:
        ConfigError: One cannot be read, or is out of range.
    """
    return build(DemoConfig, read_texts(given), where="hetcache demo")


def make_calibrate_config(given: Mapping[str, Any]) -> CalibrateConfig:
    """Check the options of a calibration.

    Args:
        given: The options that were given, by the names of the fields.

    Raises:
        ConfigError: One is missing or out of range, or videos and masks do not go together.
    """
    missing = [name for name in ("policy", "output") if name not in given]
    if missing:
        names = ", ".join("--" + name for name in missing)
        raise ConfigError(f"missing {names}", where="hetcache calibrate", setting=missing[0])
    config = build(CalibrateConfig, given, where="hetcache calibrate")
    if len(config.video) != len(config.mask):
        raise ConfigError(
            f"every --video needs its --mask, got {len(config.video)} and {len(config.mask)}",
            where="hetcache calibrate",
            setting="mask",
        )
    return config
