"""Patients of the embedded data set: who bleeds, where the slices lie, what the scanner saw."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dataloaders.phantom.bleeds import CLASS_NAMES, Bleed, blood_of, draw_bleed, strain_of
from dataloaders.phantom.brain import Spaces, falx_reach, find_spaces, no_strain
from dataloaders.phantom.head import (
    ANGLES,
    HIGHEST_LEVEL,
    LOWEST_LEVEL,
    Frame,
    Head,
    band,
    dome,
    draw_head,
    edge,
    place,
    ripple,
    segment,
)

AIR, CSF, FALX = -1000.0, 6.0, 52.0


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
    sheet = band(np.abs(x), 0.65, frame.pixel) * edge(falx_reach(y, z) - frame.depth, 3)
    sinus = edge(4.5 - np.abs(x) - 0.6 * np.maximum(frame.depth, 0), frame.pixel)
    sinus = sinus * edge(y, 8) * edge(z - 18, 6)
    bowed = np.abs(x) - 0.004 * (y - 22) * (62 - y)
    tent = segment(bowed, y, (15, 22), (40, 62))
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


# Slices with exactly one subtype in the 17,503-slice RSNA training list, in CLASS_NAMES' order.
RSNA_PROPORTIONS = (377, 3687, 2344, 4119, 6976)
LEAST_BLEED = 100.0  # mm2 of blood in a slice; a bleed's last traces are left out instead
SLICE_SPACING = 6.0  # mm
LOWEST_HOUNSFIELD, HIGHEST_HOUNSFIELD = -1024, 3071  # what 12 bits hold
OEDEMA = 19.0  # HU
GOLDEN_RATIO = (5**0.5 - 1) / 2


class Phantom(NamedTuple):
    """N slices of synthetic head CT. A patient's slices stand together, from low to high."""

    hounsfield: np.ndarray  # (N, S, S) int16, HU in -1024..3071
    labels: np.ndarray  # (N, classes) uint8, 1 where the slice shows that bleed
    patient_ids: list[str]
    study_ids: list[str]  # StudyInstanceUIDs
    image_ids: list[str]  # "ID_" and nine hexadecimal digits, unique
    class_names: list[str]


def generate(
    num_patients: int,
    size: int = 128,
    seed: int = 0,
    slices_per_patient: int = 6,
    healthy_fraction: float = 0.1,
    class_proportions: Sequence[float] | None = None,
    with_bleed_rows_only: bool = False,
    difficulty: float = 0.5,
    mixed_fraction: float = 0.0,
) -> Phantom:
    """`num_patients` synthetic patients with `slices_per_patient` slices each.

    `size` is the pictures' side in pixels (of 230 mm together). A share of `healthy_fraction` of
    the patients has no bleed; the others' classes follow `class_proportions` (five weights in
    `CLASS_NAMES`' order, by default RSNA's) as evenly as their number allows; a share of
    `mixed_fraction` of them has a second bleed of another class. Slices that the bleed does not
    reach show no blood and have an all-zero label; `with_bleed_rows_only` leaves them out.
    `difficulty` 0..1 makes bleeds smaller and fainter and the scanner noisier.

    The same arguments give the same bytes, and a patient's slices do not depend on how many
    patients there are. `ValueError` for arguments out of range.
    """
    shares = _shares(class_proportions, healthy_fraction)
    if num_patients < 1 or slices_per_patient < 1 or size < 16:
        raise ValueError("num_patients and slices_per_patient must be >= 1 and size >= 16")
    if not 0 <= difficulty <= 1 or not 0 <= mixed_fraction <= 1:
        raise ValueError("difficulty and mixed_fraction must be within 0..1")
    slices, labels, rows = [], [], []
    for patient in range(num_patients):
        rng = np.random.default_rng([seed, patient])
        kind = _kind_of(patient, seed, shares)
        hounsfield, shown = _scan(rng, kind, size, slices_per_patient, difficulty, mixed_fraction)
        kept = np.flatnonzero(shown.any(axis=1) | (not with_bleed_rows_only))
        slices.append(hounsfield[kept])
        labels.append(shown[kept])
        rows += [(patient, int(index)) for index in kept]
    return Phantom(
        np.concatenate(slices),
        np.concatenate(labels),
        [_identifier("patients", seed, patient, 8) for patient, _ in rows],
        [f"2.25.{_digest('study', seed, patient, size=16)}" for patient, _ in rows],
        [_identifier("images", seed, patient * 1024 + index, 9) for patient, index in rows],
        list(CLASS_NAMES),
    )


def _shares(proportions: Sequence[float] | None, healthy_fraction: float) -> np.ndarray:
    """Shares of the patients of each class, and of healthy ones as the last."""
    weights = np.asarray(RSNA_PROPORTIONS if proportions is None else proportions, dtype=float)
    if weights.shape != (len(CLASS_NAMES),) or (weights < 0).any() or not weights.sum() > 0:
        raise ValueError(f"class_proportions must be {len(CLASS_NAMES)} weights >= 0, not all 0")
    if not 0 <= healthy_fraction <= 1:
        raise ValueError("healthy_fraction must be within 0..1")
    bleeding = weights / weights.sum() * (1 - healthy_fraction)
    return np.append(bleeding, healthy_fraction)


def _kind_of(patient: int, seed: int, shares: np.ndarray) -> int:
    """The patient's class, or the number of classes for a healthy one.

    Multiples of the golden ratio fill 0..1 evenly, so that every prefix of the patients keeps the
    proportions although no patient knows how many there are.
    """
    start = _digest("classes", seed) / 2**32
    position = (start + patient * GOLDEN_RATIO) % 1.0
    return int(np.searchsorted(np.cumsum(shares)[:-1], position, side="right"))


def _scan(
    rng: np.random.Generator,
    kind: int,
    size: int,
    count: int,
    difficulty: float,
    mixed_fraction: float,
) -> tuple[np.ndarray, np.ndarray]:
    """One patient's slices in HU and their labels."""
    head = draw_head(rng)
    kinds = [kind] if kind < len(CLASS_NAMES) else []
    other = int(rng.integers(len(CLASS_NAMES) - 1))
    if kinds and rng.uniform() < mixed_fraction:
        kinds.append(other + (other >= kind))
    bleeds = [draw_bleed(rng, bleed_kind, head, difficulty) for bleed_kind in kinds]
    if any(CLASS_NAMES[bleed.kind] == "intraventricular" for bleed in bleeds):
        head = head._replace(ventricle_scale=head.ventricle_scale * rng.uniform(1.0, 1.6))
    middle = bleeds[0].center[2] if bleeds else rng.uniform(LOWEST_LEVEL, HIGHEST_LEVEL)
    levels = _levels(middle + rng.uniform(-3, 3), count)
    # Coarse pictures are drawn finer and averaged: several tissues share each of their pixels.
    finer = 1 if size >= 128 else 2
    frame = place(head, levels, size * finer)
    hounsfield, shown = _draw(head, frame, bleeds)
    hounsfield += scanner_noise(rng, head, frame, 0.6 + 0.8 * difficulty)
    averaged = hounsfield.reshape(count, size, finer, size, finer).mean(axis=(2, 4))
    whole = np.clip(np.rint(averaged), LOWEST_HOUNSFIELD, HIGHEST_HOUNSFIELD).astype(np.int16)
    return whole, shown


def _levels(middle: float, count: int) -> np.ndarray:
    """Evenly spaced levels in mm around `middle`, moved to stay within the head."""
    span = min(SLICE_SPACING * (count - 1), HIGHEST_LEVEL - LOWEST_LEVEL)
    low = np.clip(middle - span / 2, LOWEST_LEVEL, HIGHEST_LEVEL - span)
    return np.linspace(low, low + span, count).astype(np.float32)


def _draw(head: Head, frame: Frame, bleeds: list[Bleed]) -> tuple[np.ndarray, np.ndarray]:
    """Noise-free HU of every slice, and which classes of bleed each shows."""
    strains = [strain_of(bleed, head, frame) for bleed in bleeds] or [no_strain(frame)]
    strain = type(strains[0])(*(sum(parts) for parts in zip(*strains, strict=True)))
    spaces, grey = find_spaces(head, frame, strain)
    hounsfield = head_tissue(head, frame, spaces, grey)
    shown = np.zeros((len(frame.z), len(CLASS_NAMES)), dtype=np.uint8)
    for bleed, own_strain in zip(bleeds, strains, strict=False):
        blood = blood_of(bleed, frame, spaces, own_strain)
        enough = blood.coverage.sum(axis=(1, 2)) * frame.pixel**2 >= LEAST_BLEED
        shown[:, bleed.kind] = enough
        visible = enough[:, None, None]
        hounsfield += (OEDEMA - hounsfield) * blood.oedema * visible
        hounsfield += (blood.density - hounsfield) * blood.coverage * visible
    return hounsfield, shown


def _digest(*parts: object, size: int = 4) -> int:
    text = "/".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=size).digest(), "big")


def _identifier(kind: str, seed: int, number: int, digits: int) -> str:
    """ "ID_" and hexadecimal digits that look random and, within a kind and seed, never repeat.

    Odd multipliers and shifted xors map the numbers of that many digits one to one.
    """
    modulus = 16**digits
    number = (number + _digest(kind, seed, size=8)) % modulus
    for multiplier in (0x9E3779B97, 0x85EBCA6B5):
        number = number * multiplier % modulus
        number ^= number >> 17
    return f"ID_{number:0{digits}x}"
