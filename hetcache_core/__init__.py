"""hetcache: caching policies for diffusion video editing, as plugins.

What is exported here is what policy and backbone authors can rely on. Names are loaded on first
use, so that ``import hetcache_core`` (and listing plugins) does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from hetcache_core.backbone.adapter import (
        Backbone,
        EditRequest,
        Exporter,
        Features,
        FlopModel,
        Geometry,
        LoadRequest,
        ModelCall,
        RandomModels,
        RunInfo,
    )
    from hetcache_core.backbone.block_trunk import BlockTrunk, SeenAttention
    from hetcache_core.backbone.compiling import BlockCompiler
    from hetcache_core.backbone.flops import DitFlops, matrix_macs
    from hetcache_core.backbone.modules import call_inside, call_through, in_fp32, own_parameter
    from hetcache_core.backbone.pipelines import check_options, load_pipeline, run_edit
    from hetcache_core.backbone.ranks import Ranks
    from hetcache_core.backbone.routing import ModelCalls, attached
    from hetcache_core.backbone.stand_ins import StandIn, overridden
    from hetcache_core.backbone.trunk import BlockHooks, RunTrunk, TrunkCall, TrunkView
    from hetcache_core.engine.footprint import footprint
    from hetcache_core.engine.loop import Engine
    from hetcache_core.errors import (
        CacheBudgetError,
        CacheStateError,
        ConfigError,
        ContractError,
        HetCacheError,
        NonFiniteError,
        PipelineBusyError,
        PluginConflictError,
        PluginError,
        PluginLoadError,
        PluginWarning,
        RunCancelledError,
        UnsupportedBackboneError,
        nearest_name,
    )
    from hetcache_core.files import read_json, write_text
    from hetcache_core.plugins.clips import ClipSet, EvaluationClip
    from hetcache_core.plugins.discovery import Registry, discover
    from hetcache_core.plugins.hookspecs import Registration, hookimpl
    from hetcache_core.policy.guards import Guards
    from hetcache_core.policy.partial import ControlMode, KeySettings, KVMode, PartialSettings
    from hetcache_core.policy.pieces import (
        BlockAction,
        BlockDecider,
        BlockPolicy,
        Corrector,
        Gap,
        GuidanceDecider,
        GuidancePolicy,
        Hold,
        KeepOutput,
        Measured,
        PartAction,
        Predictor,
        StepDecider,
        StepPolicy,
        Use,
    )
    from hetcache_core.policy.recipe import CachePolicy, PolicyRecipe, ReusePoint, combine
    from hetcache_core.policy.signals import Signal, Signals, relative_l1
    from hetcache_core.records.calibration import Calibration, Calibrator
    from hetcache_core.records.plan import Plan
    from hetcache_core.records.schedule import Schedule
    from hetcache_core.records.trace import CallRecord, Totals, Trace
    from hetcache_core.session import Session, accelerate, resolve_policy
    from hetcache_core.settings.declare import piece, setting
    from hetcache_core.settings.fitting import structure
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
        binary_mask,
        mask_to_tokens,
        spread,
    )

_HOMES: Final[dict[str, str]] = {
    name: module
    for module, names in {
        "backbone.adapter": "Backbone EditRequest Exporter Features FlopModel Geometry LoadRequest "
        "ModelCall RandomModels RunInfo",
        "backbone.block_trunk": "BlockTrunk SeenAttention",
        "backbone.compiling": "BlockCompiler",
        "backbone.flops": "DitFlops matrix_macs",
        "backbone.modules": "call_inside call_through in_fp32 own_parameter",
        "backbone.pipelines": "check_options load_pipeline run_edit",
        "backbone.ranks": "Ranks",
        "backbone.routing": "ModelCalls attached",
        "backbone.stand_ins": "StandIn overridden",
        "engine.footprint": "footprint",
        "backbone.trunk": "BlockHooks RunTrunk TrunkCall TrunkView",
        "engine.loop": "Engine",
        "errors": "CacheBudgetError CacheStateError ConfigError ContractError HetCacheError "
        "NonFiniteError PipelineBusyError PluginConflictError PluginError PluginLoadError PluginWarning "
        "RunCancelledError UnsupportedBackboneError nearest_name",
        "files": "read_json write_text",
        "plugins.clips": "ClipSet EvaluationClip",
        "plugins.discovery": "Registry discover",
        "plugins.hookspecs": "Registration hookimpl",
        "policy.guards": "Guards",
        "policy.partial": "ControlMode KVMode KeySettings PartialSettings",
        "policy.pieces": "BlockAction BlockDecider BlockPolicy Corrector Gap GuidanceDecider "
        "GuidancePolicy Hold KeepOutput Measured PartAction Predictor StepDecider StepPolicy Use",
        "policy.recipe": "CachePolicy PolicyRecipe ReusePoint combine",
        "policy.signals": "Signal Signals relative_l1",
        "records.calibration": "Calibration Calibrator",
        "records.plan": "Plan",
        "records.schedule": "Schedule",
        "records.trace": "CallRecord Totals Trace",
        "session": "Session accelerate resolve_policy",
        "settings.declare": "piece setting",
        "settings.fitting": "structure",
        "steps": "BlockKey BranchRows Decision Mode ModelInfo Span Stack StepInfo SubLayer",
        "store": "CacheStore StoreSettings Stored",
        "tokens": "ContextSelector Grid Partition Role Selection SelectionRequest TokenPartitioner "
        "binary_mask mask_to_tokens spread",
    }.items()
    for name in names.split()
}

__all__ = [
    "Backbone",
    "BlockAction",
    "BlockCompiler",
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
    "Corrector",
    "Decision",
    "DitFlops",
    "EditRequest",
    "Engine",
    "EvaluationClip",
    "Exporter",
    "Features",
    "FlopModel",
    "Gap",
    "Geometry",
    "Grid",
    "Guards",
    "GuidanceDecider",
    "GuidancePolicy",
    "HetCacheError",
    "Hold",
    "KVMode",
    "KeepOutput",
    "KeySettings",
    "LoadRequest",
    "Measured",
    "Mode",
    "ModelCall",
    "ModelCalls",
    "ModelInfo",
    "NonFiniteError",
    "PartAction",
    "PartialSettings",
    "Partition",
    "PipelineBusyError",
    "Plan",
    "PluginConflictError",
    "PluginError",
    "PluginLoadError",
    "PluginWarning",
    "PolicyRecipe",
    "Predictor",
    "RandomModels",
    "Ranks",
    "Registration",
    "Registry",
    "ReusePoint",
    "Role",
    "RunCancelledError",
    "RunInfo",
    "RunTrunk",
    "Schedule",
    "SeenAttention",
    "Selection",
    "SelectionRequest",
    "Session",
    "Signal",
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
    "binary_mask",
    "call_inside",
    "call_through",
    "check_options",
    "combine",
    "discover",
    "footprint",
    "hookimpl",
    "in_fp32",
    "load_pipeline",
    "mask_to_tokens",
    "matrix_macs",
    "nearest_name",
    "overridden",
    "own_parameter",
    "piece",
    "read_json",
    "relative_l1",
    "resolve_policy",
    "run_edit",
    "setting",
    "spread",
    "structure",
    "write_text",
]  # fmt: skip


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'hetcache_core' has no attribute {name!r}")
    return getattr(import_module(f"hetcache_core.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
