"""Windows of head CT: from Hounsfield units to the grey values that a reader looks at."""

import numpy as np

# name -> (centre, width) in HU
WINDOWS = {"brain": (40.0, 80.0), "subdural": (80.0, 200.0), "bone": (600.0, 2800.0)}
TRIPLE = ("brain", "subdural", "bone")
WINDOW_CHOICES = ("file", *WINDOWS, "triple")  # "file": the one that the file names


def apply_window(hounsfield: np.ndarray, center: float, width: float) -> np.ndarray:
    """Clip to [center - width/2, center + width/2] HU and scale linearly to 0..255.

    Any shape in, the same shape out as uint8, rounded to nearest. `width` must be positive
    (`ValueError` otherwise).
    """
    if width <= 0:
        raise ValueError(f"window width must be positive, not {width}")
    low = center - width / 2
    scaled = (hounsfield.astype(np.float32) - low) * np.float32(255.0 / width)
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def window_picture(hounsfield: np.ndarray, window: str) -> np.ndarray:
    """A named window of `hounsfield` (..., H, W), as uint8.

    "brain", "subdural" and "bone" keep the shape (grey); "triple" gives (..., H, W, 3) with those
    three windows as red, green and blue.
    """
    if window == "triple":
        return np.stack([apply_window(hounsfield, *WINDOWS[name]) for name in TRIPLE], axis=-1)
    return apply_window(hounsfield, *WINDOWS[window])
