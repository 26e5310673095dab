"""The frame of the phantom: one patient's head, where a pixel lies in it, and coverages.

Everything is in millimetres in the head's own frame: x to the patient's left (right in the
picture), y to the back of the head (down in the picture), z upwards, with z = 10 at the basal
cisterns, 35 at the third ventricle, 50 at the bodies of the lateral ventricles and 86 near the
vertex. A "coverage" is the share of a pixel, 0..1, that a tissue fills (partial volume). Arrays
are float32 of shape (slices, rows, columns).
"""

from typing import NamedTuple

import numpy as np

LOWEST_LEVEL, HIGHEST_LEVEL = 10.0, 86.0
FIELD_OF_VIEW = 230.0  # mm, both sides of the picture
ANGLES = np.linspace(-np.pi, np.pi, 721)


class Head(NamedTuple):
    """One patient's head: what varies between people, and how the scanner held it."""

    offset: np.ndarray  # (2,) mm, where the head's centre lies in the picture
    rotation: float  # radians, in the picture's plane
    tilt: np.ndarray  # (2,) slope of the cutting plane along x and y
    radius: np.ndarray  # (721,) mm, inner skull at the widest level, over ANGLES
    steepness: np.ndarray  # (721,) cosine between the inner skull's normal and the ray
    skull: np.ndarray  # (721,) mm, thickness over ANGLES
    scalp: np.ndarray  # (721,) mm, thickness over ANGLES
    atrophy: float  # 0 young and tight .. 1 old and wide: sulci and gap under the skull
    ventricle_scale: np.ndarray  # (2,) radius factor of the right and the left lateral ventricle
    sulci: np.ndarray  # (count, 4) per sulcus: depth mm, half-width mm, phase, presence
    sulcus_phases: np.ndarray  # (6,) of the meanders
    grey: float  # HU
    white: float  # HU
    bone: np.ndarray  # (2,) HU of the tables and of the diploe
    texture: np.ndarray  # (waves, 4) of the brain's slow unevenness
    warp: np.ndarray  # (2, waves, 4) of what makes no two brains alike, along x and along y
    calcification: np.ndarray  # (3,) HU x coverage of pineal gland, right and left choroid plexus
    noise: float  # HU at 128 pixels
    cupping: float  # HU, beam hardening next to the skull


class Frame(NamedTuple):
    """Where each pixel lies in the head. Arrays are (slices, rows, columns) float32."""

    x: np.ndarray  # mm
    y: np.ndarray  # mm
    z: np.ndarray  # mm
    angle: np.ndarray  # radians, of (y, x)
    depth: np.ndarray  # mm under the inner skull, negative outside
    down: np.ndarray  # mm, straight down in the room: what a blood level settles along
    pixel: float  # mm


def waves(rng: np.random.Generator, count: int, shortest: float, longest: float) -> np.ndarray:
    """(count, 4) random plane waves (wave vector in 1/mm, phase) for `ripple`."""
    direction = rng.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    length = rng.uniform(shortest, longest, size=(count, 1))
    phase = rng.uniform(0, 2 * np.pi, size=(count, 1))
    return np.concatenate([direction * 2 * np.pi / length, phase], axis=1).astype(np.float32)


def ripple(wave_table: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Smooth noise of about unit variance: the sum of plane waves from `waves` at a place."""
    total = np.zeros_like(x)
    for along_x, along_y, along_z, phase in wave_table:
        total += np.sin(along_x * x + along_y * y + along_z * z + phase)
    return total * np.float32(np.sqrt(2 / len(wave_table)))


def edge(distance: np.ndarray, width: float) -> np.ndarray:
    """Coverage of a pixel of `width` mm whose centre is `distance` mm inside a border."""
    return np.clip(distance / np.float32(width) + np.float32(0.5), 0, 1)


def band(distance: np.ndarray, half_width: np.ndarray | float, pixel: float) -> np.ndarray:
    """Coverage of a strip of 2 x `half_width` mm at `distance` mm from its centre line."""
    return edge(half_width + distance, pixel) - edge(distance - half_width, pixel)


def segment(x: np.ndarray, y: np.ndarray, start: tuple, end: tuple) -> np.ndarray:
    """Distance in mm to the line segment from `start` to `end`, both (x, y)."""
    along_x, along_y = end[0] - start[0], end[1] - start[1]
    from_x, from_y = x - np.float32(start[0]), y - np.float32(start[1])
    share = (from_x * along_x + from_y * along_y) / np.float32(along_x**2 + along_y**2)
    share = np.clip(share, 0, 1)
    return np.hypot(from_x - share * along_x, from_y - share * along_y)


def draw_head(rng: np.random.Generator) -> Head:
    """A random head."""
    radius = _inner_skull(rng)
    slope = np.gradient(radius, ANGLES)
    atrophy = rng.beta(1.6, 1.8)
    count = int(rng.integers(30, 38))
    sulci = np.stack(
        [
            rng.uniform(5, 24, count),
            rng.uniform(0.5, 1.1, count) * (0.5 + 1.3 * atrophy),
            rng.uniform(0, 2 * np.pi, count),
            rng.uniform(size=count) < 0.85,
        ],
        axis=1,
    )
    white = rng.uniform(25, 29)
    return Head(
        offset=rng.normal(0, 4.0, 2),
        rotation=np.deg2rad(rng.normal(0, 6)),
        tilt=np.tan(np.deg2rad(rng.normal(0, [2.0, 5.0]))),
        radius=radius,
        steepness=radius / np.hypot(radius, slope),
        skull=rng.uniform(4.5, 7.0) * (1 + 0.12 * _harmonics(rng, 2, 6) + 0.12 * np.sin(ANGLES)),
        scalp=rng.uniform(4.0, 8.0) * (1 + 0.15 * _harmonics(rng, 1, 5)),
        atrophy=atrophy,
        ventricle_scale=(0.75 + 0.75 * atrophy)
        * rng.uniform(0.85, 1.15)
        * rng.uniform(0.9, 1.1, 2),
        sulci=sulci.astype(np.float32),
        sulcus_phases=rng.uniform(0, 2 * np.pi, 6),
        grey=white + rng.uniform(7, 10),
        white=white,
        bone=np.array([rng.uniform(1200, 1700), rng.uniform(500, 900)]),
        texture=waves(rng, 6, 25, 70),
        warp=np.stack([waves(rng, 5, 22, 70), waves(rng, 5, 22, 70)]),
        calcification=rng.uniform(40, 160, 3) * (rng.uniform(size=3) < [0.5, 0.35, 0.35]),
        noise=rng.uniform(2.0, 4.5),
        cupping=rng.uniform(2, 8),
    )


def _harmonics(rng: np.random.Generator, lowest: int, highest: int) -> np.ndarray:
    """A random periodic curve over ANGLES; the k-th harmonic's amplitude falls as lowest/k."""
    orders = np.arange(lowest, highest + 1)[:, None]
    phases = rng.uniform(0, 2 * np.pi, len(orders))[:, None]
    sizes = rng.normal(size=len(orders))[:, None] * lowest / orders
    return (sizes * np.cos(orders * ANGLES + phases)).sum(axis=0)


def _inner_skull(rng: np.random.Generator) -> np.ndarray:
    size = rng.uniform(0.93, 1.05)
    half_width = 67.5 * size * rng.uniform(0.96, 1.05)
    half_length = 86 * size * rng.uniform(0.96, 1.04)
    power = rng.uniform(2.05, 2.35)
    egg = 1 + rng.uniform(0.03, 0.1) * np.sin(ANGLES)  # wider at the back
    across = np.abs(np.cos(ANGLES) / (half_width * egg)) ** power
    along = np.abs(np.sin(ANGLES) / half_length) ** power
    return (across + along) ** (-1 / power) * (1 + 0.008 * _harmonics(rng, 2, 6))


def dome(z: np.ndarray) -> np.ndarray:
    """Width of the inner skull at level `z` mm as a share of its widest."""
    above = np.maximum(z - 34, 0) / 76
    below = np.maximum(34 - z, 0) / 62
    return np.sqrt(np.clip(1 - above**2 - below**2, 0.05, 1))


def place(head: Head, levels: np.ndarray, size: int) -> Frame:
    """The frame of axial slices at `levels` mm, `size` x `size` pixels."""
    pixel = FIELD_OF_VIEW / size
    axis = ((np.arange(size) + 0.5) * pixel - FIELD_OF_VIEW / 2).astype(np.float32)
    right, down = np.meshgrid(axis - head.offset[0], axis - head.offset[1])
    cosine, sine = np.cos(head.rotation), np.sin(head.rotation)
    x = (cosine * right + sine * down).astype(np.float32)
    y = (cosine * down - sine * right).astype(np.float32)
    slope = head.tilt[0] * x + head.tilt[1] * y
    z = (levels[:, None, None] + slope).astype(np.float32)
    angle = np.arctan2(y, x)
    radius = np.interp(angle, ANGLES, head.radius).astype(np.float32)
    steepness = np.interp(angle, ANGLES, head.steepness).astype(np.float32)
    depth = (radius * dome(z) - np.hypot(x, y)) * steepness
    shape = z.shape
    return Frame(
        np.broadcast_to(x, shape),
        np.broadcast_to(y, shape),
        z,
        np.broadcast_to(angle, shape),
        depth,
        np.broadcast_to(down.astype(np.float32), shape),
        pixel,
    )
