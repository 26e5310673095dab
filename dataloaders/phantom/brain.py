"""The brain inside a phantom head: sulci, fissures, cisterns, ventricles and grey matter.

Implicit functions of place, in the frame of `phantom_head`, so that any number of slices is drawn
at once and every border has its partial volume.
"""

from typing import NamedTuple

import numpy as np

from dataloaders.phantom.head import Frame, Head, band, edge, ripple, segment

# The lateral ventricle as a chain of round cones: (|x|, y, z, radius) from the tip of the frontal
# horn through the foramen of Monro, body and atrium to the occipital and the temporal horn.
_VENTRICLE_NODES = {
    "frontal": (15.0, -36.0, 37.0, 2.6),
    "knee": (9.0, -27.0, 41.0, 4.6),
    "monro": (6.0, -14.0, 42.0, 3.8),
    "body": (10.0, 4.0, 52.0, 4.6),
    "arch": (16.0, 20.0, 49.0, 5.0),
    "atrium": (24.0, 33.0, 38.0, 6.4),
    "occipital": (20.0, 54.0, 34.0, 2.6),
    "inferior": (33.0, 18.0, 23.0, 2.8),
    "temporal": (31.0, -4.0, 13.0, 2.0),
}
_VENTRICLE_LINKS = (
    ("frontal", "knee"),
    ("knee", "monro"),
    ("monro", "body"),
    ("body", "arch"),
    ("arch", "atrium"),
    ("atrium", "occipital"),
    ("atrium", "inferior"),
    ("inferior", "temporal"),
)


class Strain(NamedTuple):
    """What a bleed does to the brain around it; zeros for a healthy head."""

    push_x: np.ndarray  # mm by which the brain was moved
    push_y: np.ndarray  # mm
    collar: np.ndarray  # mm of blood between the inner skull and the brain
    swelling: np.ndarray  # 0..1, how far sulci are pressed shut
    distension: np.ndarray  # mm added to the half-width of sulci and cisterns full of blood


class Spaces(NamedTuple):
    """Coverages, 0..1, of the compartments that a bleed can fill, and of the brain."""

    inside: np.ndarray  # within the inner skull
    sulci: np.ndarray  # sulci, fissures, cisterns and the gap over the cortex
    ventricles: np.ndarray
    x: np.ndarray  # mm, where this bit of brain lies in a straight and symmetric one
    y: np.ndarray  # mm


def no_strain(frame: Frame) -> Strain:
    """The strain of a healthy head."""
    zero = np.zeros_like(frame.z)
    return Strain(zero, zero, zero, zero, zero)


def find_spaces(head: Head, frame: Frame, strain: Strain) -> tuple[Spaces, np.ndarray]:
    """The compartments of a head under `strain`, and the coverage of grey matter."""
    x, y = _unwarp(head, frame, strain)
    gap = np.float32(0.5 + 2.0 * head.atrophy)
    depth = frame.depth - np.maximum(strain.collar, gap)
    inside = edge(frame.depth, frame.pixel)
    sulci, cortex = _sulci(head, frame, strain, depth)
    fissures, inner_cortex = _fissures(head, frame, strain, x, y, depth)
    surface = inside * (1 - edge(depth + 0.3 * strain.distension, frame.pixel))
    surface *= strain.collar <= gap
    fluid = np.maximum(np.maximum(sulci, fissures), surface) * inside
    ventricles = _ventricles(head, frame, x, y, strain.swelling)
    grey = np.maximum(np.maximum(cortex, inner_cortex), _deep_grey(frame, x, y))
    return Spaces(inside, fluid, ventricles, x, y), grey


def _unwarp(head: Head, frame: Frame, strain: Strain) -> tuple[np.ndarray, np.ndarray]:
    """x and y in mm in a straight, symmetric brain, before a bleed pushed it.

    The falx, a taut sheet, stays nearly straight.
    """
    x, y = frame.x - strain.push_x, frame.y - strain.push_y
    amount = 2.1 * np.clip(np.abs(x) / 16, 0.12, 1)
    along_x, along_y = (ripple(wave_table, x, y, frame.z) for wave_table in head.warp)
    return x + amount * along_x, y + amount * along_y


def _sulci(
    head: Head, frame: Frame, strain: Strain, depth: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Coverages of the sulci and of the cortex along the surface and the sulci.

    A sulcus is a line of constant phase: the phase counts sulci along the skull's inside and
    meanders with depth and level.
    """
    count = len(head.sulci)
    a, b, c, d, e, f = (np.float32(phase) for phase in head.sulcus_phases)
    angle, z = frame.angle, frame.z
    phase = angle * np.float32(count / (2 * np.pi)) + np.float32(count)
    phase = phase + 0.5 * np.sin(3 * angle + a) + 0.4 * np.sin(7 * angle + b)
    phase += 0.7 * np.sin(z / 13 + 2 * angle + c) + 0.3 * np.sin(z / 6 + 5 * angle + d)
    phase += 0.22 * np.sin(depth / 3.6 + 4 * angle + e) + 0.15 * np.sin(depth / 2.1 + z / 5 + f)
    index = np.floor(phase).astype(np.int32)
    aside = np.abs(phase - index - np.float32(0.5))
    sulcus = np.take(head.sulci, index, axis=0, mode="wrap")
    spacing = (2 * np.pi / count) * np.hypot(frame.x, frame.y)
    aside = aside * spacing
    reach = sulcus[..., 0] * (0.75 + 0.35 * np.sin(z / 9 + sulcus[..., 2]))
    reach = reach * (1 + np.maximum(z - 55, 0) / 18) * sulcus[..., 3]
    taper = np.clip(1.25 - depth / np.maximum(reach, 1), 0.35, 1)
    half_width = sulcus[..., 1] * taper * (1 - 0.85 * strain.swelling) + strain.distension
    within = edge(reach - depth, 3.0) * edge(depth + 2, frame.pixel)
    fluid = band(aside, half_width, frame.pixel) * within
    ribbon = edge(3.4 + half_width - aside, 2.5) * edge(reach + 3.5 - depth, 3.0)
    return fluid, np.maximum(ribbon, edge(4.0 - depth, 2.5))


def _fissures(
    head: Head,
    frame: Frame,
    strain: Strain,
    x: np.ndarray,
    y: np.ndarray,
    depth: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Coverages of the fissures and basal cisterns, and of the cortex along the fissures."""
    z, pixel, side = frame.z, frame.pixel, np.abs(x)
    width = (0.5 + 1.5 * head.atrophy) * (1 - 0.6 * strain.swelling) + strain.distension
    wavy = np.abs(x + np.sin(y / 7 + np.float32(head.sulcus_phases[0])))
    between = edge(falx_reach(y, z) - depth, 4)
    midline = band(wavy, 0.7 * width, pixel) * between
    at_insula = edge(z - 20, 6) * edge(46 - z, 8)
    opening = segment(side, y, (68, -13), (40, -2)) - 0.12 * np.maximum(side - 40, 0)
    insula = segment(side, y, (36, -22), (40, 13))
    patchy = width * (0.75 + 0.35 * np.sin(y / 5 + x / 9 + np.float32(head.sulcus_phases[1])))
    nearest = np.minimum(opening, insula)
    sylvian = band(nearest, patchy, pixel) * at_insula
    cortex = np.maximum(edge(4 - nearest, 2.5) * at_insula, edge(4.5 - wavy, 2.5) * between)
    fluid = np.maximum(midline, sylvian)
    return np.maximum(fluid, _cisterns(head, frame, strain, side, y, width)), cortex


def _cisterns(
    head: Head,
    frame: Frame,
    strain: Strain,
    side: np.ndarray,
    y: np.ndarray,
    width: np.ndarray,
) -> np.ndarray:
    """Coverage of the fluid at the brain's base: the star over the sella with its arms into the
    Sylvian fissures, the ring around the midbrain and the smile behind it."""
    z, pixel = frame.z, frame.pixel
    low = edge(24 - z, 5)
    turn = np.arctan2(side, -(y + 13))
    a, b = (np.float32(phase) for phase in head.sulcus_phases[:2])
    points = 1.5 * np.cos(5 * turn) + 0.8 * np.cos(3 * turn + a) + 0.6 * np.sin(8 * turn + b)
    star = (7.5 + points) * (0.8 + 0.4 * head.atrophy) + strain.distension
    star = edge(star - np.hypot(side, 0.8 * (y + 13)), max(pixel, 2.0))
    arm = band(segment(side, y, (6, -16), (37, -22)), 0.8 * width, pixel)
    midbrain = np.hypot(side / 17, (y - 9) / (15 + 0.12 * side))
    ring = band((midbrain - 1) * 16, 0.4 + 0.6 * width, pixel) * edge(y + 2, 3) * edge(27 - z, 4)
    smile = band(np.hypot(side / 1.5, y - 11) - 14, 0.8 + 0.9 * width, pixel)
    smile = smile * edge(y - 19, 3) * edge(30 - z, 4)
    return np.maximum(np.maximum(star, arm) * low, np.maximum(ring, smile))


def falx_reach(y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Depth in mm to which the midline fissure goes: through the whole brain above z = 58."""
    front = 22 + np.maximum(z - 20, 0) * 0.35
    back = np.where(z > 24, 14 + (z - 24) * 0.5, -5)
    return np.where(y < 0, front, back) + 90 * edge(z - 58, 8)


def _ventricles(
    head: Head, frame: Frame, x: np.ndarray, y: np.ndarray, swelling: np.ndarray
) -> np.ndarray:
    """Coverage of the lateral ventricles and the third ventricle."""
    side, z = np.abs(x), frame.z
    scale = np.where(x < 0, *head.ventricle_scale).astype(np.float32) * (1 - 0.55 * swelling)
    inwards = np.full_like(side, -np.inf)
    for first, second in _VENTRICLE_LINKS:
        start, end = np.array(_VENTRICLE_NODES[first]), np.array(_VENTRICLE_NODES[second])
        along = (end - start)[:3].astype(np.float32)
        place_from = [
            side - np.float32(start[0]),
            y - np.float32(start[1]),
            z - np.float32(start[2]),
        ]
        share = sum(p * a for p, a in zip(place_from, along, strict=True)) / (along @ along)
        share = np.clip(share, 0, 1)
        squared = sum((p - share * a) ** 2 for p, a in zip(place_from, along, strict=True))
        radius = np.float32(start[3]) + share * np.float32(end[3] - start[3])
        np.maximum(inwards, radius * scale - np.sqrt(squared), out=inwards)
    lateral = edge(inwards, frame.pixel)
    half_width = (0.8 + 1.6 * head.atrophy) * (1 - 0.5 * swelling)
    third = band(side, half_width, frame.pixel) * edge(13 - np.abs(y - 1), 3)
    third = third * edge(z - 22, 4) * edge(40 - z, 3)
    return np.maximum(lateral, third)


def _deep_grey(frame: Frame, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Coverage of lentiform nucleus, caudate head, thalamus and midbrain."""
    side, z = np.abs(x), frame.z
    along = (side - 25) * 0.92 + (y + 3) * 0.38
    across = (y + 3) * 0.92 - (side - 25) * 0.38
    lentiform = 1 - np.sqrt((along / 7.5) ** 2 + (across / 16) ** 2 + ((z - 32) / 13) ** 2)
    caudate = 1 - np.sqrt(((side - 15) / 5) ** 2 + ((y + 25) / 9) ** 2 + ((z - 39) / 10) ** 2)
    thalamus = 1 - np.sqrt(((side - 10) / 8.5) ** 2 + ((y - 10) / 13) ** 2 + ((z - 36) / 11) ** 2)
    return edge(np.maximum(np.maximum(lentiform, caudate), thalamus) * 9, 2.5)
