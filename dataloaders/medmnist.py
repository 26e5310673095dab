"""MedMNIST .npz files: read as arrays, or written as PNG + CSV with the official split."""

import hashlib
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from dataloaders.dataset import ImageDataset
from dataloaders.table import ImageTable
from utils.errors import UserError
from utils.files import atomic_write, sweep_temporary_files
from utils.workers import available_cores, cancelling_pool, write_png

# split -> the prefix of its arrays in the file
SPLITS = {"training": "train", "validation": "val", "testing": "test"}
IMAGES_AT_ONCE = 256
MOST_CLASSES = 1000
LARGEST_INFLATION, FEW_BYTES = 100, 64 * 2**20  # pictures shrink to a tenth at best

_ORGANS = (
    "bladder femur_left femur_right heart kidney_left kidney_right liver lung_left lung_right "
    "pancreas spleen"
)
# In the order of the labels, after the data sets' own descriptions, as column names.
CLASS_NAMES = {
    "pathmnist": "adipose background debris lymphocytes mucus smooth_muscle normal_colon_mucosa "
    "cancer_associated_stroma colorectal_adenocarcinoma_epithelium",
    "dermamnist": "AKIEC BCC BKL DF MEL NV VASC",
    "octmnist": "choroidal_neovascularization diabetic_macular_edema drusen normal",
    "pneumoniamnist": "normal pneumonia",
    "retinamnist": "grade_0 grade_1 grade_2 grade_3 grade_4",
    "breastmnist": "malignant normal_or_benign",
    "bloodmnist": "basophil eosinophil erythroblast immature_granulocyte lymphocyte monocyte "
    "neutrophil platelet",
    "tissuemnist": "collecting_duct_connecting_tubule distal_convoluted_tubule "
    "glomerular_endothelial interstitial_endothelial leukocyte podocyte proximal_tubule "
    "thick_ascending_limb",
    "organamnist": _ORGANS,
    "organcmnist": _ORGANS,
    "organsmnist": _ORGANS,
}


def read_medmnist(
    path: str | os.PathLike, splits: Iterable[str] = tuple(SPLITS), image_size: int = 0
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The `splits` ("training", "validation", "testing") of a MedMNIST file, as (images, labels).

    images: (N, H, W) or (N, H, W, 3) uint8, resized (bilinear) to `image_size` unless that is 0.
    labels: (N,) int64, 0-based; see `class_names`.
    Raises `UserError` for missing arrays, wrong types or shapes, 3-D and multi-label sets, and
    damaged files. Pickled objects are never loaded.
    """
    with _open(Path(path)) as file:
        return {split: (file.images(split, image_size), file.labels[split]) for split in splits}


def read_class_names(path: str | os.PathLike) -> list[str]:
    """`class_names` of a file, for the labels of all its splits; `UserError` as `read_medmnist`."""
    with _open(Path(path)) as file:
        return class_names(path, file.labels.values())


def class_names(path: str | os.PathLike, labels: Iterable[np.ndarray]) -> list[str]:
    """The classes of a MedMNIST file in the order of its `labels` (those of all splits).

    Known sets, by file name (`dermamnist.npz`, `dermamnist_224.npz`), have names; others
    `class_0`, `class_1`, ... Raises `UserError` where a known set has more labels than classes.
    """
    highest = max(int(split_labels.max()) for split_labels in labels)
    known = CLASS_NAMES.get(Path(path).stem.split("_")[0].lower())
    if known is None:
        return [f"class_{number}" for number in range(highest + 1)]
    names = known.split()
    if highest >= len(names):
        raise UserError(
            f"{path} has a label {highest}, but the set of that name has {len(names)} classes"
        )
    return names


def prepare_medmnist(file: Path, out: Path) -> None:
    """Write images/ and training.csv, validation.csv, testing.csv (ImageID and a 0/1 column per
    class), keeping the file's own split. Memory stays small whatever the file's size.

    Raises `UserError` as `read_medmnist` does.
    """
    with _open(file) as source:
        names = class_names(file, source.labels.values())
        try:
            (out / "images").mkdir(parents=True, exist_ok=True)
            sweep_temporary_files(out / "images")
            for split, labels in source.labels.items():
                image_names = [f"{SPLITS[split]}_{at:06}.png" for at in range(len(labels))]
                _write_images(source, split, [out / "images" / name for name in image_names])
                table = pd.DataFrame(
                    np.eye(len(names), dtype=np.uint8)[labels], index=image_names, columns=names
                )
                with atomic_write(out / f"{split}.csv", "w") as csv_file:
                    table.to_csv(csv_file, index_label="ImageID", lineterminator="\n")
                print(f"{len(labels):,} images in {out / f'{split}.csv'}")
        except OSError as error:
            raise UserError(f"--out {out}: {error.strerror}") from None


def _write_images(source: "_MedMnistFile", split: str, paths: list[Path]) -> None:
    with cancelling_pool(available_cores()) as threads:
        with tqdm(total=len(paths), unit="image", desc=split, mininterval=0.5) as bar:
            for block in source.image_blocks(split):
                list(threads.map(write_png, block, paths[bar.n : bar.n + len(block)]))
                bar.update(len(block))


class _MedMnistFile:
    """An open .npz whose arrays' types and shapes are those of a MedMNIST set.

    labels: split -> (N,) int64.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile):
        self._path = path
        self._archive = archive
        self.labels = {split: self._read_labels(f"{SPLITS[split]}_labels") for split in SPLITS}
        self._shapes = {split: self._check_images(split) for split in SPLITS}
        if len({shape[1:] for shape in self._shapes.values()}) > 1:
            self._refuse("the splits' images have different sizes")

    def images(self, split: str, image_size: int = 0) -> np.ndarray:
        """All images of a split, (N, S, S) or (N, S, S, 3) uint8; never all at the file's size."""
        count, *sides = self._shapes[split]
        sides[:2] = [image_size, image_size] if image_size else sides[:2]
        try:
            images = np.empty((count, *sides), dtype=np.uint8)
        except MemoryError:
            raise UserError(
                f"{self._path}: its {count} images of the {split} set need "
                f"{count * np.prod(sides) / 1e9:.1f} GB of memory; give a smaller --image_size"
            ) from None
        start = 0
        for block in self.image_blocks(split):
            images[start : start + len(block)] = resize_pixels(block, image_size)
            start += len(block)
        return images

    def image_blocks(self, split: str) -> Iterator[np.ndarray]:
        """The images of a split, some hundred at a time."""
        count, *image_shape = self._shapes[split]
        with self._archive.open(f"{SPLITS[split]}_images.npy") as stream:
            _read_header(stream)
            for start in range(0, count, IMAGES_AT_ONCE):
                shape = (min(IMAGES_AT_ONCE, count - start), *image_shape)
                yield np.frombuffer(stream.read(int(np.prod(shape))), dtype=np.uint8).reshape(shape)

    def _read_labels(self, name: str) -> np.ndarray:
        shape, dtype = self._header(name)
        if dtype.kind not in "iu":
            self._refuse(f"{name} are {dtype}, not whole numbers")
        if len(shape) == 2 and shape[1] > 1:
            self._refuse(
                f"{name} have {shape[1]} columns: a multi-label set, and this program needs one "
                "class per image"
            )
        if len(shape) not in (1, 2) or shape[0] == 0:
            self._refuse(f"{name} have the shape {shape}, not (N, 1)")
        with self._archive.open(f"{name}.npy") as stream:
            labels = np.lib.format.read_array(stream, allow_pickle=False)
        labels = labels.reshape(-1).astype(np.int64)
        if labels.min() < 0:
            self._refuse(f"{name} have negative values")
        if labels.max() >= MOST_CLASSES:
            self._refuse(f"{name} have the value {labels.max()}: more than {MOST_CLASSES} classes")
        return labels

    def _check_images(self, split: str) -> tuple[int, ...]:
        name = f"{SPLITS[split]}_images"
        shape, dtype = self._header(name)
        if dtype != np.uint8:
            self._refuse(f"{name} are {dtype}, not uint8")
        if len(shape) == 4 and shape[3] not in (1, 3):
            self._refuse(f"{name} are 3-D volumes of the shape {shape[1:]}: use a 2-D set")
        if len(shape) not in (3, 4) or 0 in shape:
            self._refuse(f"{name} have the shape {shape}, not (N, H, W) or (N, H, W, 3)")
        if shape[0] != len(self.labels[split]):
            self._refuse(f"{name} are {shape[0]}, their labels {len(self.labels[split])}")
        return shape[:3] if shape[-1] == 1 else shape

    def _header(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and type of an array, without loading it; its size must be what they say."""
        try:
            member = self._archive.getinfo(f"{name}.npy")
        except KeyError:
            self._refuse(f"no array {name}")
        if member.file_size > max(FEW_BYTES, LARGEST_INFLATION * member.compress_size):
            self._refuse(
                f"{name} claims {member.file_size} bytes in {member.compress_size} of the file"
            )
        with self._archive.open(member) as stream:
            shape, fortran_order, dtype = _read_header(stream)
            data_bytes = member.file_size - stream.tell()
        if dtype.hasobject or fortran_order and len(shape) > 2:
            self._refuse(f"{name} is not a plain array in C order")
        if data_bytes != int(np.prod(shape, dtype=object)) * dtype.itemsize:
            self._refuse(f"{name} is shorter or longer than its shape {shape} says")
        return shape, dtype

    def _refuse(self, reason: str) -> None:
        raise UserError(f"{self._path}: {reason}")


@contextmanager
def _open(path: Path) -> Iterator[_MedMnistFile]:
    """The file, with everything that a damaged one raises turned into a `UserError`."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield _MedMnistFile(path, archive)
    except FileNotFoundError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (
        OSError,
        EOFError,
        ValueError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is no readable .npz file ({reason}): download it again") from None


def _read_header(stream) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    return np.lib.format.read_array_header_2_0(stream)


def load_medmnist(
    path: Path, image_size: int, cache: str, splits: Sequence[str] = tuple(SPLITS)
) -> tuple[dict[str, ImageTable], dict[str, ImageDataset]]:
    """The file's official `splits` as tables and data sets, by name: "train", "val", "test".

    Images are resized to `image_size` (bilinear) unless that is 0. `UserError` as `read_medmnist`.
    """
    classes = tuple(read_class_names(path))
    arrays = read_medmnist(path, splits, image_size)
    tables, datasets = {}, {}
    for split_name, (images, labels) in arrays.items():
        name = SPLITS[split_name]
        names = [f"{name}_{row:06}" for row in range(len(labels))]
        tables[name] = ImageTable(
            path, names, labels, classes, None, None, None, np.arange(1, len(labels) + 1), 0
        )
        pixels = images if images.ndim == 4 else images[..., None]
        digest = hashlib.blake2b(np.ascontiguousarray(pixels), digest_size=16)
        digest.update(labels)
        datasets[name] = ImageDataset(
            pixels, labels, names, classes, None, digest.hexdigest(), cache
        )
    return tables, datasets


def resize_pixels(images: np.ndarray, image_size: int) -> np.ndarray:
    """uint8 (N, H, W) or (N, H, W, 3) -> (N, S, S, ...) alike, bilinear; S 0 keeps the size."""
    if image_size == 0 or images.shape[1:3] == (image_size, image_size):
        return images
    resized = np.empty((len(images), image_size, image_size, *images.shape[3:]), dtype=np.uint8)

    def resize(row: int) -> None:
        picture = Image.fromarray(images[row])
        resized[row] = picture.resize((image_size, image_size), Image.Resampling.BILINEAR)

    with cancelling_pool(available_cores()) as pool:
        list(pool.map(resize, range(len(images))))
    return resized
