"""Hounsfield units of a phantom head: brain, falx, skull, scalp, calcium and scanner noise."""

import numpy as np

from dataloaders.phantom_brain import Spaces, falx_reach
from dataloaders.phantom_head import ANGLES, Frame, Head, band, dome, edge, ripple, segment

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
