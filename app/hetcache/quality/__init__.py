"""How near a video is to another, and how good it is; what a plugin's metric is made of."""

from __future__ import annotations

from hetcache.quality.metric import (
    Metric,
    PromptMetric,
    QualityTools,
    SetMetric,
    Value,
    VideoMetric,
)

__all__ = ["Metric", "PromptMetric", "QualityTools", "SetMetric", "Value", "VideoMetric"]
