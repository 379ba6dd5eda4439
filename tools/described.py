"""Tell which described classes of diffusers are others than the ones that were described.

    python tools/described.py          # exit code 1 where a class changed, or is gone
    python tools/described.py --write  # after the tests passed: take the installed release as what is known

A class is what its `forward` and those of its blocks say; `tests/backends/test_described_models.py` tells
whether it still holds. Transformers that nobody has described are named, too.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from pathlib import Path
from typing import Any, Final

import diffusers
from diffusers.models import transformers

from hetcache_backends.diffusers.described import MODELS
from hetcache_backends.diffusers.description import ModelDescription
from hetcache_backends.diffusers.samples.sample import samples
from hetcache_core.files import write_text

KNOWN: Final = Path(__file__).with_name("described.json")


def digest(description: ModelDescription) -> str | None:
    """Sum up the sources of a class and of its blocks; None where the installed diffusers lacks it."""
    kind: Any = getattr(diffusers, description.transformer, None)
    if kind is None:
        return None
    model = samples()[description.transformer].make()
    names = (each.name for each in description.lists)
    kinds = [kind, *(type(block) for name in names for block in getattr(model, name))]
    sources = "".join(inspect.getsource(each.forward) for each in dict.fromkeys(kinds))
    return hashlib.sha256(sources.encode()).hexdigest()[:16]


def main(arguments: list[str]) -> int:
    """Compare, or write."""
    found = {model.transformer: digest(model) for model in MODELS}
    if arguments == ["--write"]:
        known = {"diffusers": diffusers.__version__, "classes": found}
        write_text(KNOWN, json.dumps(known, indent=1) + "\n")
        return 0
    known = json.loads(KNOWN.read_text(encoding="utf-8"))
    before, now = known["diffusers"], diffusers.__version__
    names = [name for name in vars(transformers) if "Transformer" in name or "DiT" in name]
    models = [name for name in names if isinstance(getattr(transformers, name), type)]
    others = sorted({*models} - {*found})
    print(f"diffusers {now}, described for {before}; not described: {', '.join(others)}")
    changed = [
        f"{name}: {'is gone' if value is None else 'changed'}"
        for name, value in found.items()
        if value != known["classes"].get(name)
    ]
    print("\n".join(changed) or f"all {len(found)} described classes are as they were")
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
