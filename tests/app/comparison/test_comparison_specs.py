"""What ``hetcache compare`` reads from short texts, and the grid that it makes of them."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("av")
pytest.importorskip("rich")

import numpy as np
from attrs import evolve

from hetcache.comparison.plan.clips import ClipSource, SetClip
from hetcache.comparison.plan.footage import Footage
from hetcache.comparison.plan.grid import Grid, SizedClip
from hetcache.comparison.plan.grids import GRIDS
from hetcache.comparison.plan.planning import choose_backbones, choose_policies
from hetcache.comparison.plan.sizes import Size, check_size, join, modest, scaled
from hetcache.running.groups import ModelConfig
from hetcache.running.specs import (
    BackboneSpec,
    PolicySpec,
    check_policy_spec,
    parse_backbones,
    parse_numbers,
    parse_policies,
)
from hetcache_core.backbone.adapter import Geometry, LoadRequest
from hetcache_core.errors import ConfigError
from hetcache_core.plugins.clips import ClipSet, EvaluationClip
from hetcache_core.plugins.discovery import discover
from hetcache_core.steps import ModelInfo

REGISTRY = discover()
MODEL = ModelInfo(backbone="somebody's", variant="", layers=4, width=8, heads=2)


@pytest.mark.parametrize(
    ("text", "spec", "label"),
    [
        ("teacache", PolicySpec(name="teacache"), "teacache"),
        ("pab+teacache", PolicySpec(name="pab+teacache"), "pab+teacache"),
        (" pab + teacache ", PolicySpec(name="pab+teacache"), "pab+teacache"),
        ("hetcache@fast", PolicySpec(name="hetcache", preset="fast"), "hetcache fast"),
        ("teacache@3x", PolicySpec(name="teacache", target_speedup=3.0), "teacache 3x"),
        ("teacache@2.5x", PolicySpec(name="teacache", target_speedup=2.5), "teacache 2.5x"),
        (
            "teacache:threshold=0.1;last_steps=0",
            PolicySpec(name="teacache", settings={"threshold": 0.1, "last_steps": 0}),
            "teacache threshold=0.1 last_steps=0",
        ),
        (
            "fastcache@fast:blocks=[0.1,0.9]",
            PolicySpec(name="fastcache", preset="fast", settings={"blocks": [0.1, 0.9]}),
            "fastcache fast blocks=[0.1, 0.9]",
        ),
        (
            'magcache:ratios=vace-1.3b;calibration="a;b,c"',
            PolicySpec(name="magcache", settings={"ratios": "vace-1.3b", "calibration": "a;b,c"}),
            "magcache ratios=vace-1.3b calibration=a;b,c",
        ),
    ],
)
def test_a_policy_is_read_and_named(text: str, spec: PolicySpec, label: str) -> None:
    (read,) = parse_policies(text)
    assert (read, str(read)) == (spec, label)


def test_commas_part_policies_but_not_values() -> None:
    read = parse_policies("pab,fastcache:blocks=[0.1,0.9],hetcache@3x,")
    assert [spec.name for spec in read] == ["pab", "fastcache", "hetcache"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no policy is named"),
        (" , ", "no policy is named"),
        ("pab,pab", "pab is given twice"),
        ("pab@fast,pab@fast", "pab fast is given twice"),
        ("+pab", "cannot read '\\+pab'"),
        ("pab@", "cannot read 'pab@'"),
        ("pab:", "cannot read 'pab:'"),
        ("@fast", "cannot read '@fast'"),
        ("pab@fats", "'fats' in 'pab@fats' is neither a preset nor a speed-up. Take quality"),
        ("pab@3", "neither a preset nor a speed-up"),
        ("pab@0.5x", "at least 1"),
        ("pab:threshold", "cannot read 'threshold'"),
        ("pab:a=1;a=2", "a is given twice"),
    ],
)
def test_a_policy_that_cannot_be_read_is_said_with_the_option(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        parse_policies(text)
    assert "--policies" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("teachache", "did you mean 'teacache'"),
        ("teacache:treshold=1", "did you mean 'threshold'"),
        ("teacache:threshold=-1", ">= 0"),
        ("teacache@fast:treshold=1", "did you mean 'threshold'"),
        ("pab+teacache:threshold=1", "did you mean 'teacache.threshold'"),
        ("pab+teacache:teacache.threshold=-1", ">= 0"),
        ("pab+teachache", "did you mean 'teacache'"),
        ("none@fast", "none caches nothing"),
        ("none+pab", "none caches nothing"),
    ],
)
def test_mistakes_in_names_and_settings_are_found_without_a_model(text: str, said: str) -> None:
    (spec,) = parse_policies(text)
    with pytest.raises(ConfigError, match=said):
        check_policy_spec(spec, REGISTRY)


def test_settings_of_joined_policies_are_checked_by_their_owner() -> None:
    (spec,) = parse_policies("pab+teacache:teacache.threshold=0.1")
    check_policy_spec(spec, REGISTRY)


def test_backbones_are_read_with_their_models() -> None:
    assert parse_backbones("tiny-vace, wan-vace=random,ltx-video=/models/a=b") == (
        BackboneSpec(name="tiny-vace"),
        BackboneSpec(name="wan-vace", model="random"),
        BackboneSpec(name="ltx-video", model="/models/a=b"),
    )


def test_all_random_models_are_those_of_the_installed_libraries() -> None:
    pytest.importorskip("diffusers")
    chosen = [str(each) for each in choose_backbones(parse_backbones("all=random"), REGISTRY)]
    described = [each for each in chosen if each.startswith("diffusers=random:")]
    assert "diffusers=random:wan" in described
    assert {"ltx-video=random", "wan-vace-diffusers=random"} <= {*chosen}
    assert chosen == [*dict.fromkeys(chosen)]
    models = REGISTRY.backbone("diffusers")().random_models
    assert models is not None
    assert described == [f"diffusers=random:{name}" for name in models.names]


def test_a_backbone_says_how_its_model_is_loaded() -> None:
    text = r"ltx-video=C:\a.safetensors:around=/b;variant=fp16,wan-vace-diffusers=/c:variant=bf16"
    single, folder = parse_backbones(text)
    assert f"{single},{folder}" == text.replace("around=/b;variant=fp16", "variant=fp16;around=/b")
    assert single.request("cpu", "float32") == LoadRequest(
        model=r"C:\a.safetensors", around="/b", variant="fp16"
    )
    assert folder.weights == "/c:variant=bf16"
    with pytest.raises(ConfigError, match="so does --variant fp16"):
        ModelConfig(backbone=str(folder), variant="fp16").request("cpu", "float32")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no backbone is named"),
        ("=x", "cannot read '=x'"),
        ("tiny-vace=", "cannot read 'tiny-vace='"),
        ("ltx-video=a:variant=", "cannot read 'ltx-video=a:variant='"),
        ("ltx-video=a:variant=b;dtype=c", "Write NAME, .* NAME=CHECKPOINT:variant=fp16"),
        ("tiny-vace,tiny-vace", "tiny-vace is given twice"),
    ],
)
def test_backbones_that_cannot_be_read(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_backbones(text)


@pytest.mark.parametrize("text", ["", "a", "1.5", "-1", "0,0", "1,,x"])
def test_seeds_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ConfigError, match="--seeds"):
        parse_numbers(text, int, option="--seeds", least=0)


@pytest.mark.parametrize("text", ["0.5", "inf", "nan", "2,x"])
def test_speedups_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ConfigError, match="--target-speedups"):
        parse_numbers(text, float, option="--target-speedups", least=1.0)


def test_numbers_keep_their_order() -> None:
    assert parse_numbers("3, 1,2", int, option="--seeds", least=0) == (3, 1, 2)


def chosen(text: str, *targets: float) -> list[str]:
    return [str(spec) for spec in choose_policies(parse_policies(text), targets, [MODEL], REGISTRY)]


def test_the_uncached_run_is_always_first_and_once() -> None:
    assert chosen("pab,none,teacache") == ["none", "pab", "teacache"]


def test_targets_are_crossed_with_policies_that_name_none_themselves() -> None:
    assert chosen("teacache,pab@fast,hetcache@4x", 2, 3) == [
        "none", "teacache 2x", "teacache 3x", "pab fast", "hetcache 4x",
    ]  # fmt: skip


def test_all_leaves_out_what_needs_a_calibration_and_names_nothing_twice() -> None:
    found = chosen("all,teacache")
    assert {"teacache", "pab", "hetcache", "fewer-steps", "every-nth"} <= {*found}
    assert not {"magcache", "replay"} & {*found}
    assert len({*found}) == len(found)
    known = evolve(MODEL, variant="wan2.1-1.3b", layers=30, width=1536, heads=12)
    models = [MODEL, known]
    every = choose_policies(parse_policies("all"), (), models, REGISTRY)
    assert "magcache" in {spec.name for spec in every}


@pytest.mark.parametrize("name", GRIDS)
def test_the_policies_of_a_ready_grid_exist(name: str) -> None:
    for spec in parse_policies(GRIDS[name].policies):
        if spec.name != "all":
            check_policy_spec(spec, REGISTRY)


def geometry(multiple: int, stride: int, offset: int = 1) -> Geometry:
    return Geometry(
        size_multiple=multiple, frame_stride=stride, frame_offset=offset, default_size=(480, 832)
    )


WAN, LTX = geometry(16, 4), geometry(32, 8)
BOTH = {"wan": WAN, "ltx": LTX}


def test_a_size_has_to_fit_all_backbones() -> None:
    joint = join(BOTH)
    assert (joint.size_multiple, joint.frame_stride, joint.frame_offset) == (32, 8, 1)
    assert modest(joint) == Size(frames=17, height=256, width=256)
    check_size(BOTH, frames=9, height=64, width=96)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"frames": 13}, "13 frames do not fit all backbones: wan takes 4k\\+1, ltx takes 8k\\+1"),
        ({"frames": 13}, "Take 9 or 17"),
        ({"frames": 0}, "Take 1"),
        ({"height": 48}, "--height: 48 does not fit .* multiples: wan 16, ltx 32. Take 32 or 64"),
        ({"width": 5}, "--width: 5 does not fit .* Take 32"),
    ],
)
def test_a_size_that_does_not_fit_is_said_with_those_that_do(
    asked: dict[str, int], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        check_size(BOTH, **asked)


def test_backbones_without_a_common_length_are_compared_apart() -> None:
    with pytest.raises(ConfigError, match="no number of frames fits all backbones"):
        join({"one": geometry(16, 4, 1), "other": geometry(16, 4, 2)})


def test_offsets_that_differ_may_meet() -> None:
    joint = join({"one": geometry(16, 4, 1), "other": geometry(16, 6, 3)})
    assert (joint.frame_stride, joint.frame_offset) == (12, 9)


def test_scaled_sizes_are_those_next_to_it() -> None:
    size = Size(frames=9, height=64, width=96)
    assert scaled(size, join(BOTH), frames=2, side=1.5) == Size(frames=17, height=96, width=128)
    assert scaled(size, join({"wan": WAN}), frames=0.5, side=0.1) == Size(
        frames=5, height=16, width=16
    )


class Clips(ClipSet):
    name, summary, version = "some", "clips for tests", "1"

    def names(self) -> tuple[str, ...]:
        return ("a", "b")

    def clip(self, name: str, *, frames: int, height: int, width: int) -> EvaluationClip:
        video = np.zeros((frames, height, width, 3), np.uint8)
        return EvaluationClip(name=name, prompt="", video=video, mask=video[..., 0] == 0)


def sized(name: str) -> SizedClip:
    source: ClipSource = SetClip(clips=Clips(), clip=name)
    return SizedClip(
        name=name, source=source, size=Size(frames=5, height=32, width=32), digest=name
    )


def test_a_unit_goes_round_by_round_with_the_uncached_run_first() -> None:
    grid = Grid(
        backbones=parse_backbones("tiny-vace,ltx-video=random"),
        policies=choose_policies(parse_policies("pab,teacache"), (2.0,), [MODEL], REGISTRY),
        clips=(sized("a"), sized("b")),
        seeds=(0, 7),
        steps=20,
        repeat=2,
    )
    units = list(grid.units())
    assert [(u.backbone.name, u.clip.name, u.seed) for u in units] == [
        (backbone, clip, seed)
        for backbone in ("tiny-vace", "ltx-video")
        for clip in ("a", "b")
        for seed in (0, 7)
    ]
    runs = [(key.repeat, key.label) for key, _ in units[0].runs]
    assert runs == [(r, label) for r in (0, 1) for label in ("none", "pab 2x", "teacache 2x")]
    keys = grid.all_keys()
    assert len({key.id for key in keys}) == len(keys) == 8 * 6
    assert {key.model for key in keys} == {"", "random"}


def test_clips_that_differ_in_a_pixel_have_another_digest() -> None:
    def digest(**changes: Any) -> str:
        clip = Clips().clip("a", frames=5, height=32, width=32)
        return Footage(clip=evolve(clip, **changes), fps=16).digest  # type: ignore[arg-type]

    mask = np.zeros((5, 32, 32), np.bool_)
    truth = np.zeros((5, 32, 32, 3), np.uint8)
    found = {digest(), digest(prompt="a"), digest(mask=mask), digest(truth=truth)}
    assert len(found) == 4
    assert digest() == digest(name="b")
