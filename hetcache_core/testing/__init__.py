"""The contract kit: what every backbone and every policy must do, as checks to run in your tests.

``TinyBackbone`` is a complete backbone in plain torch, to test policies with and to copy from.
"""

from __future__ import annotations

from hetcache_core.testing.case import BackboneCase
from hetcache_core.testing.tiny import TinyBackbone
from hetcache_core.testing.tiny_case import tiny_case
from hetcache_core.testing.tiny_model import TinyConfig
from hetcache_core.testing.tiny_pipeline import TinyPipeline

__all__ = ["BackboneCase", "TinyBackbone", "TinyConfig", "TinyPipeline", "tiny_case"]
