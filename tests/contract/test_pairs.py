"""Every policy with every backbone: it runs, or it is refused with what is missing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hetcache_core import (
    UnsupportedBackboneError,
    accelerate,
    discover,
)
from hetcache_core.testing import BackboneCase, TinyBackbone, tiny_case

REGISTRY = discover()
POLICIES = [name for name in REGISTRY.names("policy") if not REGISTRY.policy(name).needs_settings()]
"""``replay`` runs with a schedule of the very model; its own tests make one."""


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("backbone", REGISTRY.names("backbone"))
def test_a_pair_runs_or_is_refused_with_what_is_missing(
    backbone: str, policy: str, case_of: Callable[[str], BackboneCase]
) -> None:
    case, kind = case_of(backbone), REGISTRY.policy(policy)
    pipeline, recipe = case.make_pipeline(0), kind(**kind.anywhere)
    composed = recipe.composed(case.backbone.describe(pipeline))
    features = case.backbone.features
    lacks = list(features.missing(composed.needs()))
    if composed.guidance is not None and "separate" not in features.guidance:
        lacks.append("both in one call")
    if not lacks:
        assert accelerate(pipeline, recipe, backbone=case.backbone).policy == composed
        return
    with pytest.raises(UnsupportedBackboneError) as caught:
        accelerate(pipeline, recipe, backbone=case.backbone)
    message = str(caught.value)
    assert backbone in message
    assert policy in message
    assert lacks[0] in message


NEEDING = {
    "rows": "hetcache",
    "mask": "hetcache",
    "attention": "hetcache",
    "sub_layers": "pab",
    "output": "easycache",
    "sampler": "fewer-steps",
}


@pytest.mark.parametrize("feature", NEEDING)
def test_a_backbone_without_a_feature_names_it(
    feature: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = TinyBackbone.features.with_values(**{feature: False})
    monkeypatch.setattr(TinyBackbone, "features", lacking)
    case = tiny_case()
    with pytest.raises(UnsupportedBackboneError, match=f"lacks: .*{feature}"):
        accelerate(
            case.make_pipeline(0), NEEDING[feature], backbone=TinyBackbone(), registry=REGISTRY
        )
    accelerate(case.make_pipeline(0), "every-nth", backbone=TinyBackbone(), registry=REGISTRY)


def test_a_policy_for_one_branch_alone_is_refused_where_they_share_a_call(
    case_of: Callable[[str], BackboneCase],
) -> None:
    case = case_of("ltx-video")
    with pytest.raises(UnsupportedBackboneError, match=r"ltx-video.*fastercache-cfg.*in one call"):
        accelerate(case.make_pipeline(0), "fastercache-cfg", backbone=case.backbone)
