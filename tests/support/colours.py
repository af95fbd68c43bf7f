"""Colours compared, as everyone sees them and as the colour-blind do."""

from __future__ import annotations

import re

import numpy as np

# Machado, Oliveira and Fernandes (2009), severity 1.0: what is left of linear red, green and blue.
VISIONS = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour: str) -> np.ndarray:
    """Linear red, green and blue of "#rrggbb", "rgb(…)" or "rgba(…)"."""
    if colour.startswith("#"):
        parts = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    else:
        parts = [int(part) for part in re.findall(r"[0-9]+", colour)[:3]]
    share = np.array(parts) / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def brightness(colour: str) -> float:
    """WCAG's relative luminance."""
    return float(linear(colour) @ _TO_XYZ[1])


def contrast(one: float, other: float) -> float:
    """WCAG's ratio of two luminances, 1 to 21."""
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


def difference(one: str, other: str, vision: str) -> float:
    """CIE 1976: the distance in L*a*b*; about 2 can just be told apart."""

    def lab(colour: str) -> np.ndarray:
        xyz = _TO_XYZ @ np.clip(VISIONS[vision] @ linear(colour), 0, 1) / _TO_XYZ.sum(1)
        x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])

    return float(np.linalg.norm(lab(one) - lab(other)))
