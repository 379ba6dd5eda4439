"""Published MagCache ratios: how much the trunk's residual grows or shrinks from step to step.

``gamma_i`` is the mean over tokens of ``|r_i| / |r_i-1|``, where ``r`` is the trunk's output minus its input.
They belong to one model, one number of steps and one shift of the noise levels; ``hetcache calibrate``
measures them for others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, final

from attrs import field, frozen
from attrs.validators import min_len

from hetcache_core import Calibration, ConfigError, ModelInfo

__all__ = ["RATIOS", "RATIOS_OF_MODEL", "Ratios", "find_ratios", "ratios_of"]


@final
@frozen(kw_only=True)
class Ratios:
    """Ratios with everything that belongs to them.

    Attributes:
        model: what they were measured on.
        shift: shift of the noise levels in that run, or None where others than a table say so.
        source: where they come from.
        values: one ratio a step, the first 1; as many as the run had steps.
    """

    model: str
    shift: float | None
    source: str
    values: tuple[float, ...] = field(validator=min_len(1))

    def at(self, steps: int) -> tuple[float, ...]:
        """Return ratios for a run of that many steps ``S``: those of the nearest measured steps.

        A ratio is not brought to the length of the new steps; at the measured number of steps this
        is the published rule.
        """
        last = len(self.values) - 1
        if steps == 1:
            return self.values[-1:]
        return tuple(self.values[round(i * last / (steps - 1))] for i in range(steps))


_MAGCACHE: Final = "MagCache (NeurIPS 2025, arXiv:2506.09045)"

# Conditional branch; the unconditional one differs by less than 0.01. Shifts are the defaults of the
# code that they were measured with.
RATIOS: Final[Mapping[str, Ratios]] = {
    "t2v-1.3b": Ratios(
        model="Wan2.1 T2V-1.3B",
        shift=5.0,
        source=f"{_MAGCACHE}, MagCache4Wan2.1",
        values=(
            1.0, 1.0124, 1.00166, 0.99791, 0.99682, 0.99634, 0.99567, 0.99416, 0.99578, 0.9957,
            0.99511, 0.99535, 0.99552, 0.99541, 0.9954, 0.99489, 0.99518, 0.99484, 0.99481, 0.99415,
            0.99419, 0.99396, 0.99388, 0.99349, 0.99309, 0.9927, 0.99228, 0.99171, 0.99137, 0.99068,
            0.99005, 0.98944, 0.98849, 0.98758, 0.98644, 0.98504, 0.9836, 0.98202, 0.97977, 0.97717,
            0.9741, 0.97003, 0.96538, 0.9593, 0.95086, 0.94013, 0.92402, 0.90241, 0.86821, 0.81838,
        ),
    ),
    "t2v-14b": Ratios(
        model="Wan2.1 T2V-14B",
        shift=5.0,
        source=f"{_MAGCACHE}, MagCache4Wan2.1",
        values=(
            1.0, 1.02504, 1.00025, 0.9985, 0.99779, 0.9966, 0.99482, 0.99467, 0.99664, 0.99434,
            0.99533, 0.99468, 0.99438, 0.99516, 0.99384, 0.99404, 0.99517, 0.99409, 0.99428, 0.99347,
            0.99418, 0.99271, 0.99313, 0.99215, 0.99218, 0.99216, 0.99163, 0.99138, 0.98982, 0.98996,
            0.9887, 0.98772, 0.98767, 0.98573, 0.98501, 0.9838, 0.98177, 0.98037, 0.97678, 0.97546,
            0.97184, 0.96711, 0.96349, 0.95629, 0.94926, 0.93964, 0.92511, 0.90693, 0.8796, 0.86111,
        ),
    ),
    "vace-1.3b": Ratios(
        model="Wan2.1 VACE-1.3B",
        shift=16.0,
        source=f"{_MAGCACHE}, its VACE port",
        values=(
            1.0, 1.00129, 1.00056, 0.99776, 0.99726, 0.99725, 0.9958, 0.99703, 0.99863, 0.99735,
            0.99714, 0.99697, 0.9969, 0.99695, 0.99697, 0.99608, 0.99721, 0.99649, 0.99659, 0.99727,
            0.99603, 0.99652, 0.99635, 0.9958, 0.99581, 0.99573, 0.99531, 0.99505, 0.99481, 0.99426,
            0.99403, 0.99357, 0.99302, 0.99243, 0.9916, 0.99085, 0.98985, 0.98857, 0.98717, 0.98551,
            0.98301, 0.9805, 0.97635, 0.97183, 0.96496, 0.95526, 0.94102, 0.91809, 0.87871, 0.80141,
        ),
    ),
}  # fmt: skip

RATIOS_OF_MODEL: Final[Mapping[tuple[str, bool], str]] = {
    ("wan2.1-1.3b", False): "t2v-1.3b",
    ("wan2.1-14b", False): "t2v-14b",
    ("wan2.1-1.3b", True): "vace-1.3b",
}
"""Ratios of a ``ModelInfo.variant`` without and with a control branch."""


def find_ratios(model: ModelInfo) -> Ratios | None:
    """Find the ratios that were published for a model."""
    name = RATIOS_OF_MODEL.get((model.variant, bool(model.control_layers)))
    return RATIOS[name] if name else None


def ratios_of(calibration: Calibration) -> Ratios:
    """Return the ratios that were measured by ``hetcache calibrate``.

    Raises:
        ConfigError: there is not one positive number for each step.
    """
    found = calibration.data.get("ratios")
    ratios = found if isinstance(found, list) else []
    if len(ratios) != calibration.steps or not all(map(_is_ratio, ratios)):
        raise ConfigError(
            f"it has no {calibration.steps} ratios, one positive number a step",
            where=f"calibration for {calibration.policy}",
            setting="calibration",
            given=found,
            remedy="Calibrate again.",
        )
    return Ratios(
        model=calibration.model.variant or calibration.model.backbone,
        shift=None,
        source=f"measured on {calibration.clips} clips",
        values=tuple(map(float, ratios)),
    )


def _is_ratio(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and value > 0
