"""What an edit is asked to do, from options and from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hetcache_core.errors import ConfigError

pytest.importorskip("yaml")

from hetcache.editing.config import CalibrateConfig, DemoConfig, EditConfig
from hetcache.running.device import choose_device, choose_dtype
from hetcache.running.limits import guards, read_size, store_settings
from hetcache.running.options import make

FILES = {"video": "clip.mp4", "mask": "mask.mp4", "output": "out.mp4"}


def make_config(given: dict[str, Any], file: str | None = None) -> EditConfig:
    return make(EditConfig, given, where="hetcache edit", file=file)


def make_demo_config(given: dict[str, Any]) -> DemoConfig:
    return make(DemoConfig, given, where="hetcache demo")


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_options_alone_are_enough() -> None:
    config = make_config({**FILES, "steps": 7})
    assert config == EditConfig(**FILES, steps=7)


def test_a_file_takes_the_same_keys_in_both_spellings(tmp_path: Path) -> None:
    config = make_config(
        {},
        written(
            tmp_path,
            "video: clip.mp4\nmask: mask.mp4\noutput: out.mp4\ncfg-scale: 3\ncfg_merge: true\n"
            "settings: {context_ratio: 0.3}\n",
        ),
    )
    assert config.given.cfg_scale == 3.0
    assert config.cfg_merge is True
    assert config.policy.settings == {"context_ratio": 0.3}


def test_options_win_and_settings_are_put_together(tmp_path: Path) -> None:
    file = written(tmp_path, "steps: 10\nseed: 3\nsettings: {rho: 2.0, margin: 1}\n")
    config = make_config({**FILES, "steps": 20, "settings": {"margin": 2}}, file)
    assert (config.steps, config.seed) == (20, 3)
    assert config.policy.settings == {"rho": 2.0, "margin": 2}


def test_an_unknown_key_names_the_nearest_known_one(tmp_path: Path) -> None:
    file = written(tmp_path, "stepz: 10\n")
    with pytest.raises(ConfigError, match="'stepz'") as raised:
        make_config(FILES, file)
    assert raised.value.nearest == "steps"
    assert "did you mean 'steps'" in str(raised.value)


def test_a_mistake_is_said_to_be_where_it_was_made(tmp_path: Path) -> None:
    file = written(tmp_path, "steps: 0\n")
    with pytest.raises(ConfigError) as in_file:
        make_config(FILES, file)
    assert in_file.value.where == file
    with pytest.raises(ConfigError) as in_options:
        make_config({**FILES, "steps": 0}, file)
    assert in_options.value.where == "hetcache edit"


def test_what_is_missing_is_named_as_options() -> None:
    with pytest.raises(ConfigError, match="missing --mask, --output"):
        make_config({"video": "clip.mp4"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n- b\n", "holds no keys"),
        ("a: [1, 2\n", "is no YAML"),
        ("settings: 3\n", "settings must be"),
        ("steps: many\n", "steps must be a whole number"),
        ("preset: quick\n", "preset must be"),
        ("seed: -1\n", "seed must be"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_config(FILES, written(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read"):
        make_config(FILES, str(tmp_path / "nowhere.yaml"))


def test_the_precision_follows_the_device() -> None:
    assert choose_dtype("auto", "cpu") == "float32"
    assert choose_dtype("auto", "cuda:1") == "bfloat16"
    assert choose_dtype("float16", "cpu") == "float16"


def test_devices_that_are_there_are_taken() -> None:
    torch = pytest.importorskip("torch")
    assert choose_device("cpu") == "cpu"
    assert choose_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("asked", ["gpu", "cuda:x", "cpu:0", "", "cuda:99"])
def test_devices_that_are_not_there_are_refused(asked: str) -> None:
    with pytest.raises(ConfigError) as raised:
        choose_device(asked)
    assert raised.value.where == "--device"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1024", 1024), ("500MB", 500_000_000), ("500 mb", 500_000_000), ("2GiB", 2 << 30),
        ("1.5k", 1500), ("0.5Ti", 1 << 39), ("7B", 7),
    ],
)  # fmt: skip
def test_sizes_are_read_in_every_usual_spelling(text: str, expected: int) -> None:
    assert make_demo_config({"max_cache_bytes": text}).cache.max_cache_bytes == expected


@pytest.mark.parametrize("text", ["", "MB", "-1", "1.5.5", "1e9", "2 GiBs", "1iB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="as a size"):
        read_size(text, option="--max-cache-bytes")


def test_limits_become_guards_and_settings_of_the_cache() -> None:
    pytest.importorskip("torch")
    from hetcache_core import Guards, StoreSettings

    plain = make_demo_config({})
    assert guards(plain.limits, 20) == Guards()
    assert store_settings(plain.cache) == StoreSettings()
    asked = make_demo_config(
        {
            "first_steps": 0.1, "last_steps": 2, "longest_reuse": 3, "full_steps": [3, 7],
            "cache_device": "cpu",
            "max_cache_bytes": "1kB", "cache_dtype": "float16",
        }
    )  # fmt: skip
    assert guards(asked.limits, 20) == Guards(
        first_steps=0.1, last_steps=2, longest_reuse=3, full_steps=(3, 7)
    )
    assert store_settings(asked.cache) == StoreSettings(
        dtype="float16", device="cpu", max_bytes=1000
    )
    with pytest.raises(ConfigError, match="no step 7: the 5 steps are counted from 0"):
        guards(asked.limits, 5)


def test_a_mistake_in_a_size_is_said_to_be_where_it_was_made(tmp_path: Path) -> None:
    file = written(tmp_path, "max-cache-bytes: much\n")
    with pytest.raises(ConfigError) as raised:
        make_config(FILES, file)
    assert raised.value.where == file
    with pytest.raises(ConfigError) as raised:
        make_config({**FILES, "max_cache_bytes": "much"})
    assert raised.value.where == "--max-cache-bytes"


def test_a_calibration_needs_a_mask_for_every_video() -> None:
    given = {"policy": "teacache", "output": "file.json"}
    assert make(CalibrateConfig, given, where="here").clips == 1
    with pytest.raises(ConfigError, match="got 2 and 1"):
        make(CalibrateConfig, {**given, "video": ["a", "b"], "mask": ["c"]}, where="here")


def test_a_path_may_be_given_from_python(tmp_path: Path) -> None:
    config = make_config({**FILES, "video": tmp_path / "clip.mp4"})
    assert config.video == str(tmp_path / "clip.mp4")


def test_a_model_may_be_named_with_its_backbone_but_not_twice() -> None:
    spec = make_config({**FILES, "backbone": "wan-vace=random"}).model.spec
    assert (spec.name, spec.model) == ("wan-vace", "random")
    spec = make_config({**FILES, "backbone": "wan-vace", "model": "folder"}).model.spec
    assert (spec.name, spec.model) == ("wan-vace", "folder")
    for given in ({"backbone": "wan-vace=a", "model": "b"}, {"backbone": "wan-vace,tiny-vace"}):
        with pytest.raises(ConfigError, match="names"):
            _ = make_config({**FILES, **given}).model.spec
