"""MagCache: the published schedules, the rule by hand, and models without ratios."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from attrs import evolve

from hetcache_core.backbone import ModelCall, RunInfo
from hetcache_core.errors import ConfigError
from hetcache_core.guards import Guards
from hetcache_core.policy import StepDecider
from hetcache_core.session import accelerate
from hetcache_core.signals import Signals
from hetcache_core.steps import BranchRows, Decision, Mode, ModelInfo, StepInfo
from hetcache_core.store import CacheStore
from hetcache_core.testing import tiny_case
from hetcache_core.tokens import Grid
from hetcache_core.trace import Trace
from hetcache_policies.magcache import PRESETS, MagCache
from hetcache_policies.magcache_ratios import RATIOS

import torch  # isort: skip

WAN = ModelInfo(backbone="wan-vace", variant="wan2.1-1.3b", layers=30, width=1536, heads=12)
VACE = evolve(WAN, control_layers=tuple(range(0, 30, 2)))
TINY = ModelInfo(backbone="tiny", variant="", layers=4, width=32, heads=2)
STEPS = (8, 20, 50, 100)
SHARES = {"quality": 0.50, "balanced": 0.36, "fast": 0.28}
