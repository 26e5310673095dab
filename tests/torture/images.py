"""Single bits flipped in images: each file either decodes or is named."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from dataloaders.pixels import load_pixels
from tests.torture.flips import flip_bit
from utils.errors import UserError

SIZE = 16


def make_images(folder: Path) -> list[Path]:
    """A few PNGs and JPEGs, grey, colour, with a palette and interlaced or progressive."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    smooth = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(smooth).resize((48, 48), Image.Resampling.BICUBIC)
    made = {
        "grey.png": (picture.convert("L"), {}),
        "colour.png": (picture, {"dpi": (72, 72)}),
        "alpha.png": (picture.convert("RGBA"), {}),
        "palette.png": (picture.convert("P"), {}),
        "grey.jpg": (picture.convert("L"), {}),
        "colour.jpg": (picture, {"quality": 90}),
        "progressive.jpg": (picture, {"progressive": True}),
    }
    for name, (image, options) in made.items():
        image.save(folder / name, **options)
    return [folder / name for name in made]


def trial(folder: Path, number: int, chance: random.Random) -> Counter[str]:
    """Flip, load as training does, put back."""
    paths = make_images(folder)
    counts: Counter[str] = Counter()
    for i in range(number):
        path = paths[i % len(paths)]
        whole = flip_bit(path, chance)
        counts["flips"] += 1
        try:
            pixels, _ = load_pixels(
                [path],
                SIZE,
                folder / "cache",
                lambda _, path=path: f"x.csv line 2: {path.name}",
                str,
            )
            right = pixels.shape[:3] == (1, SIZE, SIZE) and pixels.dtype == np.uint8
            counts["decoded" if right else "ODD ARRAY"] += 1
        except UserError as error:
            named = f"x.csv line 2: {path.name}: " in str(error) and "\n" not in str(error)
            counts["refused by name" if named else "REFUSED WITHOUT NAME"] += 1
        except Exception as error:
            counts[f"TRACEBACK {type(error).__name__}"] += 1
        path.write_bytes(whole)
    return counts


def run_trials(place: Path, number: int, seed: int) -> int:
    """`number` flips; prints counts, 0 if each image was decoded or named."""
    counts = trial(place / "images", number, random.Random(seed))
    print(f"images: {dict(counts)}")
    return int(counts["decoded"] + counts["refused by name"] != counts["flips"])
