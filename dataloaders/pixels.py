"""A folder of images as one uint8 array, decoded once and kept on disk beside a fingerprint."""

import errno
import hashlib
import json
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from utils.errors import UserError
from utils.files import (
    HashingFile,
    atomic_write,
    hash_file,
    megabytes,
    sweep_temporary_files,
    waiting_lock,
    write_text,
)
from utils.tensors import copy_stream
from utils.workers import cancelling_pool

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2  # batches


def copied_ahead(
    pixels: torch.Tensor, chunks: Sequence[torch.Tensor], device: torch.device
) -> Iterator[torch.Tensor]:
    """`pixels[chunk]` on a CUDA `device` for each chunk, pixels and chunks being on the CPU.

    A thread gathers the next chunks in pinned memory and a stream of their own copies them, while
    the caller works on the one before.
    """
    copying = copy_stream(device, "to")

    def load(chunk: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event]:
        pinned = torch.empty((len(chunk), *pixels.shape[1:]), dtype=pixels.dtype, pin_memory=True)
        torch.index_select(pixels, 0, chunk, out=pinned)
        with torch.cuda.stream(copying):
            return pinned.to(device, non_blocking=True), copying.record_event()

    for images, copied in computed_ahead(load, chunks, AHEAD):
        using = torch.cuda.current_stream(device)
        using.wait_event(copied)
        images.record_stream(using)
        yield images


def computed_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """`map(function, items)`, up to `ahead` results computed by one thread before they are asked
    for."""
    items = iter(items)
    with cancelling_pool(1) as pool:
        waiting = deque(pool.submit(function, item) for item in islice(items, ahead))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in islice(items, 1))
            yield result


MAX_PIXELS = 16_000_000
# Formats whose decoders live in this process. Pillow's others start programs (EPS: Ghostscript) or
# follow what a file says instead of its name.
IMAGE_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM")
GREY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("RGB", "RGBA", "P", "CMYK", "YCbCr")
CHUNK = 256  # images, or fewer where they would take more than
CHUNK_BYTES = 64 * 2**20


class _NotCachedError(Exception):
    """Why the decoded images cannot be taken from the cache."""


def load_pixels(
    paths: Sequence[Path],
    image_size: int,
    cache_dir: Path,
    describe: Callable[[int], str],
    say: Callable[[str], None],
) -> tuple[np.ndarray, str]:
    """All images as uint8 (N, S, S, C), memory-mapped, and the SHA-256 of the array's file.

    C is 1 when every file is grey, else 3. Images are resized to S x S (bilinear, as torchvision
    does for PIL images); image_size 0 keeps the files' own size, which must then be one and
    square. The array is kept in `cache_dir` and rebuilt when what the files hold has changed.
    `describe(i)` names image i in an error ("train.csv line 7: ID_1.png"); `say` takes progress.
    Raises `UserError` for an image that cannot be used and for a disk that is full.
    """
    stem = hashlib.blake2b("\n".join(map(str, paths)).encode(), digest_size=8).hexdigest()
    array_path = cache_dir / f"images-{stem}-{image_size}.npy"
    try:
        return _open_cache(array_path, paths)
    except _NotCachedError as reason:
        say(f"decoding {len(paths)} images ({reason}); kept in {array_path}")
    try:
        with waiting_lock(array_path.with_suffix(".lock")):
            return _open_or_build(array_path, paths, image_size, describe, say)
    except OSError as error:
        names = list(map(str, paths))
        if error.filename in names:
            image = describe(names.index(error.filename))
            raise UserError(f"{image}: {error.strerror}; make it readable") from error
        raise UserError(
            f"--cache_dir {cache_dir}: {error.strerror or error}; name another folder"
        ) from error


def status_of_files(paths: Sequence[Path]) -> str:
    """Changes whenever a file is written, replaced, added, removed or reordered, and sometimes
    when none is: a copy of the folder has other inodes.

    Sizes and times of writing alone would not do: archives are unpacked with the times of their
    makers, and pictures without compression all have one size.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        status = os.stat(path)
        fields = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        digest.update(f"{path}\0{fields}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def contents_of_files(paths: Sequence[Path]) -> str:
    """Changes exactly when the bytes of the files, or their order, do."""
    digest = hashlib.blake2b(digest_size=16)
    with cancelling_pool(min(32, os.cpu_count() or 1)) as pool:
        for found in pool.map(hash_file, paths):
            digest.update(found.encode())
    return digest.hexdigest()


class ImageHeader(NamedTuple):
    """What a file says of its first picture: PIL's size (width, height) and mode; and whether
    there are further ones."""

    size: tuple[int, int]
    mode: str
    several_pages: bool


def open_image(source: Path | str | IO[bytes]) -> Image.Image:
    """`Image.open` for the formats that this project reads, whatever else Pillow could open."""
    return Image.open(source, formats=IMAGE_FORMATS)


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says: cameras store what their sensor saw."""
    return ImageOps.exif_transpose(image)


def read_header(path: Path) -> ImageHeader:
    """The header of an image that can be trained on; `ValueError` with a reason for any other."""
    try:
        with open_image(path) as image:
            header = ImageHeader(image.size, image.mode, _has_second_page(image))
    except UnidentifiedImageError as error:
        raise ValueError(f"damaged or no image (none of {', '.join(IMAGE_FORMATS)})") from error
    except Image.DecompressionBombError as error:
        raise ValueError("more than the 16 million pixels allowed") from error
    except Exception as error:  # a damaged header makes PIL raise nearly anything
        raise ValueError(f"damaged or no image ({_reason(error)})") from error
    width, height = header.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels, more than the 16 million allowed")
    if header.mode not in GREY_MODES + COLOUR_MODES:
        raise ValueError(f"pixels of mode {header.mode}: convert it to 8-bit grey or RGB")
    return header


def _has_second_page(image: Image.Image) -> bool:
    try:
        image.seek(1)
    except EOFError:
        return False
    return True


def decode_image(path: Path, image_size: int, grey: bool) -> np.ndarray:
    """One file as uint8 (S, S, C); `ValueError` with a reason when its bytes are damaged."""
    try:
        with open_image(path) as image:
            picture = upright(image).convert("L" if grey else "RGB")
    except Exception as error:  # PIL's decoders raise many kinds on damaged bytes
        raise ValueError(f"damaged image ({_reason(error)})") from error
    if image_size:
        picture = picture.resize((image_size, image_size), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture, dtype=np.uint8)
    return pixels[:, :, None] if grey else pixels


def _open_or_build(
    array_path: Path,
    paths: Sequence[Path],
    image_size: int,
    describe: Callable[[int], str],
    say: Callable[[str], None],
) -> tuple[np.ndarray, str]:
    """As `_open_cache`, under the array's lock: another run may have made it while we waited."""
    try:
        return _open_cache(array_path, paths)
    except _NotCachedError:
        sweep_temporary_files(array_path.parent, array_path.name)
        _build_cache(array_path, paths, image_size, describe, say)
    try:
        return _open_cache(array_path, paths)
    except _NotCachedError as reason:
        raise UserError(f"{array_path}: unreadable right after it was written ({reason})") from None


def _build_cache(
    array_path: Path,
    paths: Sequence[Path],
    image_size: int,
    describe: Callable[[int], str],
    say: Callable[[str], None],
) -> None:
    # In this order: a file that is replaced meanwhile must not pass for what was decoded.
    note = {"status": status_of_files(paths), "contents": contents_of_files(paths)}
    with cancelling_pool(min(32, os.cpu_count() or 1)) as pool, warnings.catch_warnings():
        # PIL warns of huge images; read_header refuses them in its own words.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        headers = list(_named(pool.map(_attempt(read_header), paths), describe))
        _say_of_pages(headers, describe, say)
        grey = all(header.mode in GREY_MODES for header in headers)
        side = image_size or _common_side([header.size for header in headers], describe)
        decode = _attempt(lambda path: decode_image(path, image_size, grey))
        with (
            atomic_write(array_path) as file,
            tqdm(total=len(paths), desc="decode", unit="image", disable=None) as bar,
        ):
            hashing = HashingFile(file)
            header = {
                "descr": "|u1",
                "fortran_order": False,
                "shape": (len(paths), side, side, 1 if grey else 3),
            }
            np.lib.format.write_array_header_1_0(hashing, header)
            step = images_at_once(side * side * (1 if grey else 3))
            for start in range(0, len(paths), step):
                chunk = pool.map(decode, paths[start : start + step])
                for pixels in _named(chunk, lambda i: describe(start + i)):  # noqa: B023
                    hashing.write(np.ascontiguousarray(pixels).data)
                    bar.update()
    _write_note(array_path, note | {"sha256": hashing.digest.hexdigest()})


def _write_note(array_path: Path, note: dict[str, str]) -> None:
    write_text(array_path.with_suffix(".json"), json.dumps(note) + "\n")


def images_at_once(image_bytes: int) -> int:
    """How many images of that size are decoded before they are written."""
    return max(1, min(CHUNK, CHUNK_BYTES // image_bytes))


def _say_of_pages(
    headers: Sequence[ImageHeader], describe: Callable[[int], str], say: Callable[[str], None]
) -> None:
    found = [i for i, header in enumerate(headers) if header.several_pages]
    if found:
        say(
            f"{len(found)} image files hold several pages, page 1 of each is used; the first is "
            f"{describe(found[0])}"
        )


def _open_cache(array_path: Path, paths: Sequence[Path]) -> tuple[np.ndarray, str]:
    """(array, SHA-256 of its file); `_NotCachedError` says why there is none to be used."""
    try:
        note = json.loads(array_path.with_suffix(".json").read_text())
        status = status_of_files(paths)
        if note["status"] != status:
            if note["contents"] != contents_of_files(paths):
                raise _NotCachedError("the files have changed since they were cached")
            with suppress(OSError):  # a cache that is only read stays as it is
                _write_note(array_path, note | {"status": status})
        if note["sha256"] != hash_file(array_path):
            raise _NotCachedError("the cached copy is damaged")
        # Mapped read-only: a private copy that could be written to would be counted against
        # memory and swap as a whole.
        return np.load(array_path, mmap_mode="r", allow_pickle=False), note["sha256"]
    except FileNotFoundError:
        raise _NotCachedError("first use") from None
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise _NotCachedError("the cached copy is damaged") from None
        size = megabytes(array_path.stat().st_size)
        raise UserError(f"{array_path}: no address space for {size} (see ulimit -v)") from None
    except (ValueError, KeyError, TypeError):
        raise _NotCachedError("the cached copy is damaged") from None


def _attempt(function: Callable) -> Callable:
    """`function` returning (result, reason) instead of raising `ValueError`."""

    def attempt(path: Path):
        try:
            return function(path), None
        except ValueError as error:
            return None, str(error)
        except OSError as error:
            return None, f"cannot be read ({error.strerror or 'damaged'})"

    return attempt


def _named(attempts: Iterator, describe: Callable[[int], str]) -> Iterator:
    for i, (result, reason) in enumerate(attempts):
        if reason is not None:
            raise UserError(f"{describe(i)}: {reason}; replace the file or remove the row")
        yield result


def _common_side(sizes: Sequence[tuple[int, int]], describe: Callable[[int], str]) -> int:
    first = sizes[0]
    for i, size in enumerate(sizes):
        if size != first or size[0] != size[1]:
            raise UserError(
                f"{describe(i)}: {size[0]} x {size[1]} pixels, but --image_size 0 needs square "
                "images of one size: choose a size, for instance --image_size 224"
            )
    return first[0]


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
