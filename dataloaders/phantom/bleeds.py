"""The five kinds of intracranial bleed, as anatomy defines them, as implicit functions of place.

Units and frame are those of `phantom_head`. A bleed has two sides: the strain it puts on the
brain (`strain_of`), needed before the brain is drawn, and the coverage of its blood (`blood_of`),
which follows the spaces that the strained brain leaves.
"""

from typing import NamedTuple

import numpy as np

from dataloaders.phantom.brain import Spaces, Strain, no_strain
from dataloaders.phantom.head import ANGLES, Frame, Head, dome, edge, ripple, waves

CLASS_NAMES = (
    "epidural",
    "intraparenchymal",
    "intraventricular",
    "subarachnoid",
    "subdural",
)


class Bleed(NamedTuple):
    """One bleed of one patient. Lengths in mm; what a kind does not use it leaves unread."""

    kind: int  # index into CLASS_NAMES
    center: np.ndarray  # (3,) the site; for epidural and subdural a point on the inner skull
    extent: float  # half-length along the skull, radius of a mass, spread of blood in the sulci
    height: float  # half-length along z
    thickness: float  # of a lens or crescent at its thickest; of blood added to a sulcus
    push: float  # mm by which the brain gives way
    density: float  # HU
    mottle: float  # HU, unevenness of the clot
    texture: np.ndarray  # (waves, 4) of the mottle and of the outline
    lobes: np.ndarray  # (3, 4) offsets and relative radius of a mass's lobes
    oedema: float  # mm of dark rim around a mass
    level: float  # mm, height of the blood's surface along `Frame.down` in a ventricle
    cast: np.ndarray  # (2,) coverage of blood throughout the right and the left ventricle


class Blood(NamedTuple):
    """Coverage and density of the blood, and coverage of the oedema; (slices, rows, columns)."""

    coverage: np.ndarray
    density: np.ndarray  # HU
    oedema: np.ndarray


def draw_bleed(rng: np.random.Generator, kind: int, head: Head, difficulty: float) -> Bleed:
    """A random bleed of class `kind`; `difficulty` 0..1 makes it smaller and fainter."""
    draw = (_epidural, _intraparenchymal, _intraventricular, _subarachnoid, _subdural)[kind]
    size = rng.uniform(0.85, 1.15) * (1.3 - 0.6 * difficulty)
    lobes = np.column_stack([rng.normal(0, 0.4, (3, 3)), rng.uniform(0.45, 0.75, 3)])
    lobes[0] = 0, 0, 0, 0.85
    common = {
        "kind": kind,
        "density": rng.uniform(59, 80) - rng.uniform(4, 14) * difficulty,
        "mottle": rng.uniform(0.5, 3.5),
        "texture": waves(rng, 8, 9, 36),
        "lobes": lobes,
        "oedema": 0.0,
        "level": np.inf,
        "cast": np.zeros(2),
        "thickness": 0.0,
    }
    return Bleed(**(common | draw(rng, head, size)))


def _on_skull(head: Head, angle: float, z: float) -> np.ndarray:
    radius = np.interp(angle, ANGLES, head.radius) * dome(np.array(z))
    return np.array([radius * np.cos(angle), radius * np.sin(angle), z])


def _side_angle(rng: np.random.Generator, mean: float, spread: float) -> float:
    """An angle at the right or left side; 0 is lateral, negative frontal, positive occipital."""
    angle = rng.normal(mean, spread)
    return angle if rng.uniform() < 0.5 else np.pi - angle - 2 * np.pi * (angle < 0)


def _epidural(rng: np.random.Generator, head: Head, size: float) -> dict:
    thickness = rng.uniform(11, 22) * size
    return {
        "center": _on_skull(head, _side_angle(rng, 0.0, 0.6), rng.uniform(24, 66)),
        "extent": thickness * rng.uniform(1.15, 1.7) + 5,
        "height": rng.uniform(20, 32),
        "thickness": thickness,
        "push": thickness * rng.uniform(0.1, 0.4),
    }


def _subdural(rng: np.random.Generator, head: Head, size: float) -> dict:
    thickness = rng.uniform(6, 12) * size
    return {
        "center": _on_skull(head, _side_angle(rng, 0.05, 0.35), rng.uniform(34, 72)),
        "extent": rng.uniform(55, 95),
        "height": rng.uniform(28, 45),
        "thickness": thickness,
        "push": thickness * rng.uniform(0.3, 0.8),
    }


def _intraparenchymal(rng: np.random.Generator, head: Head, size: float) -> dict:
    side = rng.choice([-1, 1])
    deep = np.array([side * rng.normal(26, 4), rng.normal(0, 6), rng.normal(34, 5)])
    angle = _side_angle(rng, 0.0, 0.8)
    radius = rng.uniform(11, 18) * size
    lobar = _on_skull(head, angle, rng.uniform(24, 66))
    lobar[:2] *= max(1 - (radius * 1.35 + 6) / np.hypot(*lobar[:2]), 0.25)
    return {
        "center": deep if rng.uniform() < 0.5 else lobar,
        "extent": radius,
        "height": radius,
        "push": radius * rng.uniform(0.1, 0.35),
        "oedema": rng.uniform(2, 10),
    }


def _intraventricular(rng: np.random.Generator, head: Head, size: float) -> dict:
    layered = rng.uniform() < 0.65
    full = rng.uniform(0.7, 1.0, 2) * (rng.permutation(2) >= (rng.uniform() < 0.3))
    return {
        "center": np.array([0, 15, rng.uniform(33, 48)]),
        "extent": 1.0 + 0.6 * size,
        "height": 30.0,
        "push": 0.0,
        "level": rng.uniform(14, 36) if layered else np.inf,
        "cast": np.zeros(2) if layered and rng.uniform() < 0.7 else full,
    }


def _subarachnoid(rng: np.random.Generator, head: Head, size: float) -> dict:
    basal = np.array([rng.normal(0, 18), rng.normal(-12, 6), rng.uniform(14, 30)])
    convex = _on_skull(head, _side_angle(rng, 0.0, 0.7), rng.uniform(40, 74)) * [0.85, 0.85, 1]
    is_basal = rng.uniform() < 0.5
    return {
        "center": basal if is_basal else convex,
        "extent": rng.uniform(30, 48) if is_basal else rng.uniform(24, 40),
        "height": 24.0,
        "thickness": rng.uniform(0.7, 1.3) * size,
        "push": 0.0,
    }


def strain_of(bleed: Bleed, head: Head, frame: Frame) -> Strain:
    """What the bleed does to the brain around it."""
    strain = no_strain(frame)
    dx, dy, dz = _from_center(bleed, frame)
    near = np.exp(-(dx**2 + dy**2 + dz**2) / np.float32(2 * 42.0**2))
    if CLASS_NAMES[bleed.kind] == "subarachnoid":
        return strain._replace(distension=np.float32(bleed.thickness) * _spread(bleed, frame))
    aside = np.hypot(bleed.center[0], bleed.center[1])
    push = np.float32(-bleed.push / max(aside, 1.0)) * near
    swelling = np.clip(bleed.push / 8, 0, 1) * near
    collar = strain.collar
    if CLASS_NAMES[bleed.kind] in ("epidural", "subdural"):
        collar = _collar(bleed, frame)
    return strain._replace(
        push_x=push * np.float32(bleed.center[0]),
        push_y=push * np.float32(bleed.center[1]),
        swelling=swelling,
        collar=collar,
    )


def _from_center(bleed: Bleed, frame: Frame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, y, z = (np.float32(value) for value in bleed.center)
    return frame.x - x, frame.y - y, frame.z - z


def _spread(bleed: Bleed, frame: Frame) -> np.ndarray:
    """How much of the fluid around the brain is blood, 0..1: full at the site, patchy around."""
    dx, dy, dz = _from_center(bleed, frame)
    away = (dx**2 + dy**2) / bleed.extent**2 + (dz / bleed.height) ** 2
    patchy = away + 0.35 * ripple(bleed.texture, frame.x, frame.y, frame.z)
    return np.clip(2.2 - 1.6 * patchy, 0, 1).astype(np.float32)


def _collar(bleed: Bleed, frame: Frame) -> np.ndarray:
    """Thickness in mm of blood between skull and brain.

    Epidural blood is held by the dura, so its inner border bulges: a parabola over the chord.
    Subdural blood spreads freely: even thickness along the skull, thin only at the ends, and it
    does not cross the midline.
    """
    dx, dy, dz = _from_center(bleed, frame)
    if CLASS_NAMES[bleed.kind] == "epidural":
        chord = (dx**2 + dy**2) / bleed.extent**2 + (dz / bleed.height) ** 2
        return np.maximum(bleed.thickness * (1 - chord), 0).astype(np.float32)
    turn = frame.angle - np.float32(np.arctan2(bleed.center[1], bleed.center[0]))
    turn = np.abs((turn + np.pi) % (2 * np.pi) - np.pi)
    along = turn * np.hypot(bleed.center[0], bleed.center[1]) / bleed.extent
    share = np.clip(1 - along**2, 0, 1) ** 0.6 * np.clip(1 - (dz / bleed.height) ** 2, 0, 1) ** 0.5
    uneven = 1 + 0.14 * ripple(bleed.texture[:4], frame.x, frame.y, frame.z)
    same_side = edge(frame.x * np.float32(np.sign(bleed.center[0])) - 2, 4)
    return (bleed.thickness * share * uneven * same_side).astype(np.float32)


def blood_of(bleed: Bleed, frame: Frame, spaces: Spaces, strain: Strain) -> Blood:
    """Where the blood is, how dense, and where the brain around it is swollen with water."""
    density = bleed.density + bleed.mottle * ripple(bleed.texture, frame.x, frame.y, frame.z)
    oedema = np.zeros_like(frame.z)
    kind = CLASS_NAMES[bleed.kind]
    if kind in ("epidural", "subdural"):
        present = strain.collar > 0.8
        coverage = edge(strain.collar - frame.depth, frame.pixel) * spaces.inside * present
    elif kind == "intraparenchymal":
        inwards = _mass(bleed, frame)
        held = spaces.inside * edge(frame.depth - 5, 3)
        coverage = edge(inwards, max(frame.pixel, 1.5)) * held
        oedema = edge(inwards + bleed.oedema, 4.0) * held * 0.8
    elif kind == "intraventricular":
        settled = edge(frame.down - np.float32(bleed.level), frame.pixel)
        cast = np.where(spaces.x < 0, *bleed.cast)
        coverage = spaces.ventricles * np.maximum(settled, cast)
    else:
        coverage = spaces.sulci * _spread(bleed, frame)
    return Blood(coverage.astype(np.float32), density, oedema)


def _mass(bleed: Bleed, frame: Frame) -> np.ndarray:
    """Distance in mm inside the irregular outline of a mass of three lobes."""
    dx, dy, dz = _from_center(bleed, frame)
    inwards = np.full_like(frame.z, -np.inf)
    for x, y, z, radius in (bleed.lobes * bleed.extent).astype(np.float32):
        away = np.sqrt((dx - x) ** 2 + (dy - y) ** 2 + (dz - z) ** 2)
        np.maximum(inwards, radius - away, out=inwards)
    return inwards + 0.13 * bleed.extent * ripple(bleed.texture, frame.x, frame.y, frame.z)
