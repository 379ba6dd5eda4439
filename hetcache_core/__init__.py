"""hetcache: caching policies for diffusion video editing, as plugins.

What is exported here is what policy and backbone authors can rely on. Names are loaded on first
use, so that ``import hetcache_core`` (and listing plugins) does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from hetcache_core.backbone import (
        Backbone,
        EditRequest,
        Features,
        FlopModel,
        Geometry,
        LoadRequest,
        ModelCall,
        RunInfo,
    )
    from hetcache_core.block_trunk import BlockTrunk, RowFlops, in_fp32, matrix_macs
    from hetcache_core.calibration import Calibration, Calibrator
    from hetcache_core.clips import ClipSet, EvaluationClip
    from hetcache_core.discovery import Registry, discover
    from hetcache_core.engine import Engine
    from hetcache_core.errors import (
        CacheBudgetError,
        CacheStateError,
        ConfigError,
        ContractError,
        HetCacheError,
        PluginConflictError,
        PluginError,
        PluginLoadError,
        UnsupportedBackboneError,
    )
    from hetcache_core.guards import Guards
    from hetcache_core.hookspecs import Registration, hookimpl
    from hetcache_core.key_settings import KeySettings
    from hetcache_core.pipelines import load_pipeline, run_edit
    from hetcache_core.policy import (
        BlockAction,
        BlockDecider,
        BlockPolicy,
        CachePolicy,
        ControlMode,
        GuidanceDecider,
        GuidancePolicy,
        KVMode,
        PartAction,
        PartialSettings,
        PolicyRecipe,
        Predictor,
        ReusePoint,
        StepDecider,
        StepPolicy,
        Use,
        combine,
    )
    from hetcache_core.routing import ModelCalls, StandIn, attached
    from hetcache_core.session import Session, accelerate
    from hetcache_core.settings import setting
    from hetcache_core.signals import Signals, relative_l1
    from hetcache_core.steps import (
        BlockKey,
        BranchRows,
        Decision,
        Mode,
        ModelInfo,
        Span,
        Stack,
        StepInfo,
        SubLayer,
    )
    from hetcache_core.store import CacheStore, Stored, StoreSettings
    from hetcache_core.tokens import (
        ContextSelector,
        Grid,
        Partition,
        Role,
        Selection,
        SelectionRequest,
        TokenPartitioner,
        mask_to_tokens,
    )
    from hetcache_core.trace import CallRecord, Totals, Trace
    from hetcache_core.trunk import BlockHooks, TrunkCall, TrunkView

_HOMES: Final[dict[str, str]] = {
    name: module
    for module, names in {
        "backbone": "Backbone EditRequest Features FlopModel Geometry LoadRequest ModelCall RunInfo",
        "block_trunk": "BlockTrunk RowFlops in_fp32 matrix_macs",
        "calibration": "Calibration Calibrator",
        "clips": "ClipSet EvaluationClip",
        "discovery": "Registry discover",
        "engine": "Engine",
        "errors": "CacheBudgetError CacheStateError ConfigError ContractError HetCacheError "
        "PluginConflictError PluginError PluginLoadError UnsupportedBackboneError",
        "guards": "Guards",
        "hookspecs": "Registration hookimpl",
        "key_settings": "KeySettings",
        "pipelines": "load_pipeline run_edit",
        "policy": "BlockAction BlockDecider BlockPolicy CachePolicy ControlMode GuidanceDecider "
        "GuidancePolicy KVMode PartAction PartialSettings PolicyRecipe Predictor ReusePoint "
        "StepDecider StepPolicy Use combine",
        "routing": "ModelCalls StandIn attached",
        "session": "Session accelerate",
        "settings": "setting",
        "signals": "Signals relative_l1",
        "steps": "BlockKey BranchRows Decision Mode ModelInfo Span Stack StepInfo SubLayer",
        "store": "CacheStore StoreSettings Stored",
        "tokens": "ContextSelector Grid Partition Role Selection SelectionRequest TokenPartitioner "
        "mask_to_tokens",
        "trace": "CallRecord Totals Trace",
        "trunk": "BlockHooks TrunkCall TrunkView",
    }.items()
    for name in names.split()
}

__all__ = [
    "Backbone",
    "BlockAction",
    "BlockDecider",
    "BlockHooks",
    "BlockKey",
    "BlockPolicy",
    "BlockTrunk",
    "BranchRows",
    "CacheBudgetError",
    "CachePolicy",
    "CacheStateError",
    "CacheStore",
    "Calibration",
    "Calibrator",
    "CallRecord",
    "ClipSet",
    "ConfigError",
    "ContextSelector",
    "ContractError",
    "ControlMode",
    "Decision",
    "EditRequest",
    "Engine",
    "EvaluationClip",
    "Features",
    "FlopModel",
    "Geometry",
    "Grid",
    "Guards",
    "GuidanceDecider",
    "GuidancePolicy",
    "HetCacheError",
    "KVMode",
    "KeySettings",
    "LoadRequest",
    "Mode",
    "ModelCall",
    "ModelCalls",
    "ModelInfo",
    "PartAction",
    "PartialSettings",
    "Partition",
    "PluginConflictError",
    "PluginError",
    "PluginLoadError",
    "PolicyRecipe",
    "Predictor",
    "Registration",
    "Registry",
    "ReusePoint",
    "Role",
    "RowFlops",
    "RunInfo",
    "Selection",
    "SelectionRequest",
    "Session",
    "Signals",
    "Span",
    "Stack",
    "StandIn",
    "StepDecider",
    "StepInfo",
    "StepPolicy",
    "StoreSettings",
    "Stored",
    "SubLayer",
    "TokenPartitioner",
    "Totals",
    "Trace",
    "TrunkCall",
    "TrunkView",
    "UnsupportedBackboneError",
    "Use",
    "accelerate",
    "attached",
    "combine",
    "discover",
    "hookimpl",
    "in_fp32",
    "load_pipeline",
    "mask_to_tokens",
    "matrix_macs",
    "relative_l1",
    "run_edit",
    "setting",
]  # fmt: skip


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'hetcache_core' has no attribute {name!r}")
    return getattr(import_module(f"hetcache_core.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
