"""hetcache: edit videos with diffusion transformers, faster; what changes too little is not computed.

``accelerate`` puts a caching policy on a pipeline of yours, ``edit`` takes video files, and ``compare``
runs policies against each other; the command ``hetcache`` does the latter two and more. What authors of
policies and backbones need is in ``hetcache_core``. Names are loaded on first use, so that ``import
hetcache`` imports neither torch nor what the extra ``app`` installs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from hetcache.api import compare, edit
    from hetcache_core import accelerate, discover

    __version__: str

_HOMES: Final = {
    "accelerate": "hetcache_core",
    "compare": "hetcache.api",
    "discover": "hetcache_core",
    "edit": "hetcache.api",
}

__all__ = ["__version__", "accelerate", "compare", "discover", "edit"]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("hetcache")
    if name not in _HOMES:
        raise AttributeError(f"module 'hetcache' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
