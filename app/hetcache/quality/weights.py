"""Files of weights that metrics need: a group of options."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, final

from attrs import frozen

from hetcache.running.options import written
from hetcache_core import ConfigError, setting

if TYPE_CHECKING:
    from hetcache.quality.metric import QualityTools

__all__ = ["WeightsConfig"]


@final
@frozen(kw_only=True)
class WeightsConfig:
    """What metrics that look at a picture as a network does are given; without it they are left out."""

    lpips: str | None = setting(
        None,
        doc="torchvision's weights of the network that LPIPS uses",
        metadata=written(metavar="FILE"),
    )
    video_features: str | None = setting(
        None,
        doc="a TorchScript, torch.export or ONNX file that describes videos, for VFID",
        metadata=written(metavar="FILE"),
    )
    clip: str | None = setting(
        None, doc="folder with a CLIP checkpoint", metadata=written(metavar="FOLDER")
    )

    def tools(self) -> QualityTools:
        """Return them for measuring on the CPU.

        Raises:
            ConfigError: A file does not exist.
        """
        from hetcache.quality.metric import QualityTools

        return QualityTools(
            lpips=_there(self.lpips, "--lpips"),
            video_features=_there(self.video_features, "--video-features"),
            clip=_there(self.clip, "--clip"),
        )


def _there(text: str | None, option: str) -> Path | None:
    if text is None:
        return None
    path = Path(text).absolute()
    if not path.exists():
        raise ConfigError(f"there is no {text}", where=option)
    return path
