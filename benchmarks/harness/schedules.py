"""Recorded schedules: what policies did at each step on the trained embedded model.

On random weights a policy that looks at content decides something else, so a comparison of whole runs
takes these decisions instead, step by step; tokens and sub-layers follow from the policy's own pieces.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from attrs import asdict, evolve, field, frozen

from hetcache_core import CachePolicy, ConfigError, Guards, Mode
from hetcache_core.files import write_text
from hetcache_core.testing.scripted import Script

SCHEMA: Final = 1
LETTERS: Final = {mode.letter: mode for mode in (Mode.FULL, Mode.PARTIAL, Mode.REUSE)}
"""As in the setting ``pattern`` of ``hetcache``."""


@frozen(kw_only=True)
class Schedules:
    """Steps by policy.

    Attributes:
        backbone: what they were recorded on.
        size: of the clip.
        steps: of the run.
        policies: a letter a step, F, p or s, by policy.
        schema: version of this layout.
    """

    backbone: str
    size: str
    steps: int
    policies: Mapping[str, str] = field(factory=dict)
    schema: int = SCHEMA

    def save(self, path: Path) -> None:
        """Write them as JSON; the file appears whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Schedules:
        """Read them.

        Raises:
            ConfigError: there is no such file, or it holds something else.
        """
        remedy = "Record them with `python benchmarks/policies.py --record FILE`."
        try:
            plain: Any = json.loads(path.read_text(encoding="utf-8"))
            found = cls(**plain)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"{path} cannot be read as schedules: {error}", remedy=remedy
            ) from error
        if found.schema != SCHEMA or not isinstance(found.policies, dict):
            raise ConfigError(f"{path} has another layout (schema {found.schema})", remedy=remedy)
        for name, letters in found.policies.items():
            if set(letters) - set(LETTERS) or len(letters) != found.steps:
                raise ConfigError(
                    f"{path} gives {name} the steps {letters!r}, not {found.steps} of F, p and s",
                    remedy=remedy,
                )
        return found

    def replayed(self, name: str, policy: CachePolicy) -> CachePolicy:
        """Put the recorded steps into a composition in place of what decides them.

        Args:
            name: of the policy in the file.
            policy: its composition.

        Raises:
            ConfigError: nothing is recorded under this name.
        """
        if policy.step is None:
            return policy
        if name not in self.policies:
            raise ConfigError(
                f"No schedule of {name!r} is recorded",
                remedy=f"There are {', '.join(self.policies)}.",
            )
        modes = tuple(LETTERS[letter] for letter in self.policies[name])
        # What is recorded went through the guards already.
        return evolve(policy, step=Script(modes, span=policy.spans[0]), guards=Guards())


def letters(modes: list[Mode]) -> str:
    """Write modes as letters; a step whose call was predicted counts as reused."""
    by_mode = {mode: letter for letter, mode in LETTERS.items()}
    return "".join(by_mode.get(mode, "s") for mode in modes)
