"""What is public is pinned, loads, and costs nothing before it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import hetcache_core
from hetcache_core import testing

PUBLIC = [
    "Backbone", "BlockAction", "BlockCompiler", "BlockDecider", "BlockHooks", "BlockKey", "BlockPolicy",
    "BlockTrunk", "BranchRows", "CacheBudgetError", "CachePolicy", "CacheStateError",
    "CacheStore", "Calibration", "Calibrator", "CallRecord", "ClipSet", "ConfigError",
    "ContextSelector", "ContractError", "ControlMode",
    "Corrector", "Decision", "DitFlops", "EditRequest", "Engine",
    "EvaluationClip", "Exporter", "Features", "FlopModel", "Gap", "Geometry", "Grid", "Guards",
    "GuidanceDecider",
    "GuidancePolicy", "HetCacheError", "Hold", "KVMode", "KeepOutput", "KeySettings", "LoadRequest",
    "Measured",
    "Mode",
    "ModelCall", "ModelCalls", "ModelInfo", "NonFiniteError", "PartAction", "PartialSettings",
    "Partition", "PipelineBusyError",
    "Plan", "PluginConflictError", "PluginError", "PluginLoadError", "PluginWarning",
    "PolicyRecipe", "Predictor", "RandomModels", "Ranks", "Registration", "Registry", "ReusePoint", "Role",
    "RunCancelledError",
    "RunInfo", "RunTrunk", "Schedule", "SeenAttention", "Selection", "SelectionRequest", "Session", "Signal",
    "Signals", "Span",
    "Stack", "StandIn", "StepDecider", "StepInfo", "StepPolicy", "StoreSettings", "Stored",
    "SubLayer", "TokenPartitioner", "Totals", "Trace", "TrunkCall", "TrunkView",
    "UnsupportedBackboneError", "Use", "accelerate", "attached", "binary_mask", "call_inside",
    "call_through", "check_options", "combine", "discover",
    "footprint", "hookimpl", "in_fp32", "load_pipeline", "mask_to_tokens", "matrix_macs",
    "nearest_name", "overridden", "own_parameter", "piece", "read_json", "relative_l1", "resolve_policy",
    "run_edit", "setting", "spread", "structure", "write_text",
]  # fmt: skip

TESTING = [
    "BACKBONE_CHECKS", "FULL_STEPS", "PAIR_CHECKS", "POLICY_CHECKS", "BackboneCase",
    "BoundCheck", "CheckResult", "NotApplicableError", "PolicySubject", "TinyBackbone",
    "TinyConfig", "TinyPipeline", "bind", "check_backbone", "check_piece", "check_policy", "decide",
    "parametrize_with_checks", "scripted", "tiny_case", "tiny_video",
]  # fmt: skip


def test_the_public_names_are_these() -> None:
    """A name that goes is a breaking change; a new one is promised from here on."""
    assert list(hetcache_core.__all__) == PUBLIC


def test_the_names_of_the_contract_kit_are_these() -> None:
    assert list(testing.__all__) == TESTING


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_loads(name: str) -> None:
    assert getattr(hetcache_core, name) is not None
    assert name in dir(hetcache_core)


@pytest.mark.parametrize("name", TESTING)
def test_every_name_of_the_contract_kit_loads(name: str) -> None:
    assert getattr(testing, name) is not None


def test_a_name_that_is_not_public_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'CacheMoney'"):
        hetcache_core.CacheMoney  # noqa: B018 - looking it up is the test


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import hetcache_core", "torch"),
        ("import hetcache_core; hetcache_core.discover()", "torch"),
        ("import hetcache_core.testing", "pytest"),
        ("import hetcache_core.testing", "diffsynth"),
        ("import hetcache_core.testing", "hetcache"),
    ],
)
def test_an_import_brings_no_more_than_it_needs(statement: str, absent: str) -> None:
    code = f"{statement}; import sys; assert {absent!r} not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
