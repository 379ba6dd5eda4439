"""The contract kit: what every backbone and every policy must do, as checks to run in your tests.

A backbone is tested by ``check_backbone(case)``, a policy by ``check_policy(make)``, and
``parametrize_with_checks`` makes every check a pytest test of its own. Checks that fail raise
``ContractError`` with what was found. ``TinyBackbone`` is a complete backbone in plain torch, to
test policies with and to copy from; ``scripted`` policies do what they are told, and ``decide`` plays
a policy without a model.
"""

from __future__ import annotations

from hetcache_core.testing.case import BackboneCase
from hetcache_core.testing.checks.policy import PAIR_CHECKS, POLICY_CHECKS
from hetcache_core.testing.comparing import NotApplicableError
from hetcache_core.testing.deciding import decide
from hetcache_core.testing.kit import (
    BACKBONE_CHECKS,
    BoundCheck,
    CheckResult,
    bind,
    check_backbone,
    check_piece,
    check_policy,
    parametrize_with_checks,
)
from hetcache_core.testing.scripted import FULL_STEPS, scripted
from hetcache_core.testing.subject import PolicySubject
from hetcache_core.testing.tiny.backbone import TinyBackbone
from hetcache_core.testing.tiny.case import tiny_case, tiny_video
from hetcache_core.testing.tiny.model import TinyConfig
from hetcache_core.testing.tiny.pipeline import TinyPipeline

__all__ = [
    "BACKBONE_CHECKS",
    "FULL_STEPS",
    "PAIR_CHECKS",
    "POLICY_CHECKS",
    "BackboneCase",
    "BoundCheck",
    "CheckResult",
    "NotApplicableError",
    "PolicySubject",
    "TinyBackbone",
    "TinyConfig",
    "TinyPipeline",
    "bind",
    "check_backbone",
    "check_piece",
    "check_policy",
    "decide",
    "parametrize_with_checks",
    "scripted",
    "tiny_case",
    "tiny_video",
]
