"""A head without a bleed, as implicit functions of place: the healthy half of the phantom.

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

AIR, CSF, FALX = -1000.0, 6.0, 52.0

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


def draw_head(rng: np.random.Generator) -> Head:
    """A random head. Draws the same number of values whoever it is."""
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
    between = edge(_falx_reach(y, z) - depth, 4)
    midline = band(wavy, 0.7 * width, pixel) * between
    at_insula = edge(z - 20, 6) * edge(46 - z, 8)
    opening = _segment(side, y, (68, -13), (40, -2)) - 0.12 * np.maximum(side - 40, 0)
    insula = _segment(side, y, (36, -22), (40, 13))
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
    arm = band(_segment(side, y, (6, -16), (37, -22)), 0.8 * width, pixel)
    midbrain = np.hypot(side / 17, (y - 9) / (15 + 0.12 * side))
    ring = band((midbrain - 1) * 16, 0.4 + 0.6 * width, pixel) * edge(y + 2, 3) * edge(27 - z, 4)
    smile = band(np.hypot(side / 1.5, y - 11) - 14, 0.8 + 0.9 * width, pixel)
    smile = smile * edge(y - 19, 3) * edge(30 - z, 4)
    return np.maximum(np.maximum(star, arm) * low, np.maximum(ring, smile))


def _falx_reach(y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Depth in mm to which the midline fissure goes: through the whole brain above z = 58."""
    front = 22 + np.maximum(z - 20, 0) * 0.35
    back = np.where(z > 24, 14 + (z - 24) * 0.5, -5)
    return np.where(y < 0, front, back) + 90 * edge(z - 58, 8)


def _segment(x: np.ndarray, y: np.ndarray, start: tuple, end: tuple) -> np.ndarray:
    """Distance in mm to the line segment from `start` to `end`, both (x, y)."""
    along_x, along_y = end[0] - start[0], end[1] - start[1]
    from_x, from_y = x - np.float32(start[0]), y - np.float32(start[1])
    share = (from_x * along_x + from_y * along_y) / np.float32(along_x**2 + along_y**2)
    share = np.clip(share, 0, 1)
    return np.hypot(from_x - share * along_x, from_y - share * along_y)


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


def head_tissue(head: Head, frame: Frame, spaces: Spaces, grey: np.ndarray) -> np.ndarray:
    """HU of the head with everything but blood, calcium and noise."""
    hounsfield = _coverings(head, frame)
    brain = head.white + (head.grey - head.white) * grey
    brain = brain + 0.7 * ripple(head.texture, frame.x, frame.y, frame.z)
    brain = brain + (CSF - brain) * np.maximum(spaces.sulci, spaces.ventricles)
    brain = brain + head.cupping * np.exp(-np.maximum(frame.depth, 0) / 5)
    hounsfield += (brain - hounsfield) * spaces.inside
    falx = _falx(frame, spaces)
    hounsfield += (FALX - hounsfield) * falx
    calcium = _calcifications(head, frame, spaces)
    return hounsfield + calcium


def _coverings(head: Head, frame: Frame) -> np.ndarray:
    """HU of air, scalp and skull. Cut obliquely, near the vertex, the layers look thicker."""
    outwards = -frame.depth
    oblique = 1 + 0.9 * (1 - dome(frame.z))
    skull = np.interp(frame.angle, ANGLES, head.skull).astype(np.float32) * oblique
    scalp = np.interp(frame.angle, ANGLES, head.scalp).astype(np.float32) * oblique
    pixel = frame.pixel
    from_skin = skull + scalp - outwards
    hounsfield = np.full_like(frame.z, AIR)
    hounsfield += (35 - hounsfield) * edge(from_skin, pixel)
    hounsfield += (-70 - hounsfield) * edge(from_skin - 2.8, pixel)
    temple = np.abs(np.sin(frame.angle + 0.15)) * 26 + np.maximum(frame.z - 22, 0) * 0.9
    muscle = edge(10 - temple, 4)
    hounsfield += (55 - hounsfield) * edge(skull + 3.5 * muscle + 0.8 - outwards, pixel)
    table, diploe = head.bone
    hounsfield += (table - hounsfield) * edge(skull - outwards, pixel)
    marrow = band(outwards - skull * 0.5, np.maximum(skull * 0.5 - 1.8, 0.1), pixel)
    return hounsfield + (diploe - hounsfield) * marrow * edge(skull - outwards, pixel)


def _falx(frame: Frame, spaces: Spaces) -> np.ndarray:
    """Coverage of the falx, the sagittal sinus at its ends, and the tentorium's edge."""
    x, y, z = spaces.x, spaces.y, frame.z
    sheet = band(np.abs(x), 0.65, frame.pixel) * edge(_falx_reach(y, z) - frame.depth, 3)
    sinus = edge(4.5 - np.abs(x) - 0.6 * np.maximum(frame.depth, 0), frame.pixel)
    sinus = sinus * edge(y, 8) * edge(z - 18, 6)
    bowed = np.abs(x) - 0.004 * (y - 22) * (62 - y)
    tent = _segment(bowed, y, (15, 22), (40, 62))
    tentorium = 0.5 * band(tent, 0.9, frame.pixel) * edge(21 - z, 5)
    return np.maximum(np.maximum(sheet, sinus), tentorium) * edge(frame.depth - 0.5, frame.pixel)


def _calcifications(head: Head, frame: Frame, spaces: Spaces) -> np.ndarray:
    """HU added by calcium in the pineal gland and the choroid plexus of each side."""
    total = np.zeros_like(frame.z)
    spots = ((0, 21, 30, 2.4), (-23, 33, 39, 2.8), (23, 33, 39, 2.8))
    for amount, (x, y, z, radius) in zip(head.calcification, spots, strict=True):
        squared = (spaces.x - x) ** 2 + (spaces.y - y) ** 2 + (frame.z - z) ** 2
        total += np.float32(amount) * edge(radius - np.sqrt(squared), frame.pixel)
    return total


def scanner_noise(rng: np.random.Generator, head: Head, frame: Frame, amount: float) -> np.ndarray:
    """Noise in HU as filtered back projection leaves it: grainy, louder in the head's middle."""
    count, size, _ = frame.z.shape
    down = np.fft.fftfreq(size)[:, None]
    across = np.fft.rfftfreq(size)
    frequency = np.hypot(down, across)
    response = (0.15 + frequency) * np.exp(-((frequency / 0.42) ** 4))
    white = rng.standard_normal((count, size, size), dtype=np.float32)
    grain = np.fft.irfft2(np.fft.rfft2(white) * response, s=(size, size)).astype(np.float32)
    grain /= np.sqrt((grain**2).mean())
    loudness = 0.6 + 0.5 * np.clip(frame.depth / 50, 0, 1)
    return grain * loudness * np.float32(head.noise * amount * np.sqrt(size / 128))
