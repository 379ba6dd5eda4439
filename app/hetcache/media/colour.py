"""From wide-gamut and HDR pictures to the SDR that models were trained on and that is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["HLG", "PQ", "to_sdr"]

PQ: Final = 16
HLG: Final = 18
"""Numbers of HDR transfer functions in a stream. Source: ITU-T H.273, table 3."""

BT2020_TO_BT709: Final = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]
)
"""Linear RGB. Source: ITU-R BT.2407, section 2."""

REFERENCE_WHITE: Final = 203.0
"""Luminance of diffuse white in HDR pictures, cd/m². Source: ITU-R BT.2408, table 1."""

HLG_PEAK: Final = 1000.0
"""Luminance, cd/m², that HLG is shown with. Source: ITU-R BT.2100, table 5."""

KNEE: Final = 0.75
"""Share of SDR white up to which tone mapping changes nothing. Our design: skin stays as it is."""

SDR_GAMMA: Final = 2.4
"""Source: ITU-R BT.1886."""


def to_sdr(pixels: NDArray[np.uint16], *, transfer: int, wide: bool) -> NDArray[np.uint8]:
    """Convert a picture to BT.709 SDR.

    Light above ``KNEE`` is rolled off by its brightest channel, so that hues stay.

    Args:
        pixels: (H, W, 3) RGB over the full range of 16 bits.
        transfer: number of its transfer function; one that is neither PQ nor HLG is taken for SDR's.
        wide: whether its primaries are those of BT.2020.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    coded = np.asarray(pixels / np.float32(np.iinfo(np.uint16).max), np.float32)
    if transfer == PQ:
        light, peak = _pq(coded) / REFERENCE_WHITE, 10_000.0
    elif transfer == HLG:
        light, peak = _hlg(coded) / REFERENCE_WHITE, HLG_PEAK
    else:
        light, peak = coded**SDR_GAMMA, REFERENCE_WHITE
    if wide:
        light = np.maximum(light @ BT2020_TO_BT709.T, 0).astype(np.float32)  # (H, W, 3)
    light = _rolled_off(light, peak / REFERENCE_WHITE)
    shown = np.clip(light, 0, 1) ** (1 / SDR_GAMMA)
    return np.asarray(np.rint(shown * np.iinfo(np.uint8).max), np.uint8)


def _pq(coded: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return luminance in cd/m². Source: SMPTE ST 2084, equation 4.1."""
    m1, m2 = 2610 / 16384, 2523 / 4096 * 128
    c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    root = coded ** (1 / m2)
    light: NDArray[np.float32] = 10_000 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)
    return light


def _hlg(coded: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return luminance in cd/m². Source: ITU-R BT.2100, table 5, with a system gamma of 1.2."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(coded <= 1 / 2, coded**2 / 3, (np.exp((coded - c) / a) + b) / 12)
    luma = scene @ np.array([0.2627, 0.6780, 0.0593], np.float32)  # (H, W)
    return np.asarray(HLG_PEAK * scene * luma[..., None] ** (1.2 - 1), np.float32)


def _rolled_off(light: NDArray[np.float32], peak: float) -> NDArray[np.float32]:
    """Bring light from 0 to ``peak`` to 0 to 1: unchanged up to ``KNEE``, then ever less."""
    if peak <= 1:
        return light
    brightest = light.max(-1, keepdims=True)  # (H, W, 1)
    above = np.maximum(brightest - KNEE, 0)
    room, reach = 1 - KNEE, peak - KNEE
    # Reinhard's curve with a white point, of slope 1 at the knee, that ends at 1 for the peak.
    mapped = room * (above / room) * (1 + above * room / reach**2) / (1 + above / room)
    scale = np.where(above > 0, (KNEE + mapped) / np.maximum(brightest, KNEE), 1)
    return np.asarray(light * scale, np.float32)
