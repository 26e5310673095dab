"""Single bits flipped in checkpoints and image caches: none may be loaded as if it were whole."""

import io
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from dataloaders.pixels import load_pixels
from networks.saved import load_model
from tests.torture import runs
from utils.checkpoint import load_checkpoint
from utils.errors import UserError


def flip_bit(path: Path, chance: random.Random) -> bytes:
    """Flip one random bit of a file; its bytes before."""
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
    path.write_bytes(damaged)
    return whole


def trial_checkpoints(folder: Path, number: int, chance: random.Random) -> Counter[str]:
    """Flips over states, clients' files and weights of a finished run, read as they are read."""
    counts: Counter[str] = Counter()
    readers: dict[str, Callable] = {
        "state_*.pth": load_checkpoint,
        "epoch_*.pth": load_model,
        "clients/client_*.pth": load_checkpoint,
    }
    for pattern, read in readers.items():
        paths = sorted((folder / "checkpoints").glob(pattern))
        for _ in range(number // len(readers)):
            path = chance.choice(paths)
            whole = flip_bit(path, chance)
            counts["flips"] += 1
            counts["torch.load alone would have taken"] += torch_takes(path)
            try:
                read(path)
                counts["LOADED SILENTLY"] += 1
            except UserError as error:
                counts["refused by name"] += str(path) in str(error)
            path.write_bytes(whole)
    return counts


def torch_takes(path: Path) -> bool:
    """Whether a plain `torch.load` raises no error."""
    try:
        torch.load(io.BytesIO(path.read_bytes()), weights_only=True)
    except Exception:
        return False
    return True


def trial_caches(images: Path, cache_dir: Path, number: int, chance: random.Random) -> Counter[str]:
    """Flips over a cache of decoded images and the note beside it. Where the array or its digest is
    hit it must be built again; where the note's words on the image files are, these decide."""
    counts: Counter[str] = Counter()
    paths = sorted(images.glob("*.png"))
    said: list[str] = []

    def load() -> tuple[np.ndarray, str]:
        return load_pixels(paths, 16, cache_dir, str, said.append)

    pixels, digest = load()
    expected = pixels.copy()
    files = [*cache_dir.glob("*.npy"), *cache_dir.glob("*.json")]
    for _ in range(number):
        flip_bit(chance.choice(files), chance)
        said.clear()
        pixels, again = load()
        counts["flips"] += 1
        counts["decoded again" if said else "loaded, the array being whole"] += 1
        if again != digest or not np.array_equal(pixels, expected):
            counts["LOADED SILENTLY"] += 1
    return counts


def run_trials(place: Path, number: int, seed: int) -> int:
    """`number` flips, a quarter of them in caches; prints counts, 0 if none was loaded."""
    chance = random.Random(seed)
    flags = runs.make_data(place / "data")
    run_dir = place / "run"
    status = runs.complete([*flags, "--run_dir", run_dir], place / "output.txt")
    assert status == 0, (place / "output.txt").read_text()
    checkpoints = trial_checkpoints(run_dir, 3 * number // 4, chance)
    caches = trial_caches(place / "data" / "images", place / "cache", number // 4, chance)
    print(f"checkpoints: {dict(checkpoints)}\nimage caches: {dict(caches)}")
    return int(checkpoints["LOADED SILENTLY"] + caches["LOADED SILENTLY"] > 0)
