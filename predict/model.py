"""A trained classifier on what a user has: `model = load("runs/NAME"); model.predict(paths)`."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from dataloaders.dicom import Preprocessing
from dataloaders.prepare.conversion import Rejected
from dataloaders.windows import WINDOW_CHOICES
from networks.devices import choose_devices, choose_precision, place_network, set_precision
from networks.kinds import build_network
from networks.models import Network
from networks.saved import find_checkpoint, load_model, load_weights
from predict.files import Arrays, ImageFiles, find_files
from predict.flags import SIZES, UNLIKE
from predict.gradcam import heat_maps, picture_beside_heat
from predict.inference import FilePredictions, SeesBatch, predict_files
from utils.errors import UserError
from utils.tensors import net_device

HOW_TO_KNOW = {
    "image_size": "the flag it was trained with, 224 for the released program",
    "window": "the flag of `dataloaders.prepare rsna`, triple by default",
    "size": "the flag of `dataloaders.prepare rsna`, 128 by default",
}

Images = str | os.PathLike | np.ndarray | Sequence


class Model(NamedTuple):
    """A checkpoint ready to predict. content: everything in the file but its weights. given: what
    its user says where the file is silent: image_size, window, size."""

    path: Path
    net: Network
    content: dict
    precision: str
    given: Mapping

    @property
    def class_names(self) -> list[str]:
        """The classes, in the order of the outputs."""
        return self.content["class_names"]

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return net_device(self.net)

    @property
    def training_pictures(self) -> dict | None:
        """The range of the training images (`likeness.describe_pictures`), where it is known."""
        return self.content.get("preprocessing", {}).get("pictures")

    def predict(
        self,
        images: Images,
        batch_size: int = 48,
        workers: int = 0,
        unlike: str = "refuse",
        root: str | os.PathLike | None = None,
    ) -> pd.DataFrame:
        """What the network says about `images`, a row each: ImageID, `prediction` (the most
        probable class), a column of softmax probabilities per class, and `note`.

        images: paths of pictures (PNG, JPEG, ...), DICOM or NIfTI files, of folders of such, of
        CSVs with a column ImageID (below `root`, by default the CSV's folder); or one array, or
        several: uint8 (H, W) or (H, W, 3), or (H, W) in Hounsfield units. Everything is prepared as
        the training images were. What cannot be read has no probabilities and its reason in `note`.

        Raises `UserError` where a file is missing, nothing could be read, or the images are nothing
        like those of the training, unless `unlike` is "predict": then `note` says so.
        """
        found = self.predict_files(self.open(images, root), batch_size, workers, unlike)
        return prediction_table(found, self.class_names)

    def open(self, images: Images, root: str | os.PathLike | None = None) -> ImageFiles | Arrays:
        """`images` as `predict` takes them, ready to be read one after the other."""
        size, scans = self.image_size(), self.scans_or_none()
        single = isinstance(images, (str, os.PathLike))
        if isinstance(images, np.ndarray) and images.ndim == 2:
            single = True
        if isinstance(images, np.ndarray) and images.ndim == 3 and images.shape[2] in (1, 3):
            single = True
        listed = [images] if single else list(images)
        if listed and not any(isinstance(image, (str, os.PathLike)) for image in listed):
            return Arrays(listed, size, scans)
        root = None if root is None else Path(root)
        return ImageFiles(find_files(map(Path, listed), root, self.class_names), size, scans)

    def predict_files(
        self,
        files: ImageFiles | Arrays,
        batch_size: int,
        workers: int,
        unlike: str = "refuse",
        sees_batch: SeesBatch | None = None,
    ) -> FilePredictions:
        """`inference.predict_files` by this model."""
        if unlike not in UNLIKE:
            raise UserError(f"unlike={unlike!r}: one of {', '.join(UNLIKE)}")
        return predict_files(
            self.net, files, batch_size, workers, self.training_pictures, unlike, sees_batch
        )

    def gradcam(self, images: Images, root: str | os.PathLike | None = None) -> list[np.ndarray]:
        """For each of `images` the picture and beside it, in yellow, where the evidence for its
        most probable class lies: uint8 (S, 2 S, 3); see `gradcam.grad_cam`."""
        sheets: list[np.ndarray] = []

        def draw(_, pixels: np.ndarray, probabilities: np.ndarray) -> None:
            classes = torch.from_numpy(probabilities.argmax(axis=1))
            heats = heat_maps(self.net, pixels, classes)
            sheets.extend(map(picture_beside_heat, pixels, heats))

        self.predict_files(self.open(images, root), 16, 0, "predict", draw)
        return sheets

    def image_size(self) -> int:
        """Pixels per side of the images the network was trained on; see `_settle`."""
        return self._settle("image_size", self.content.get("preprocessing", {}))

    def scan_preprocessing(self) -> Preprocessing:
        """How those images were made from scans; see `_settle`."""
        recorded = self.content.get("preprocessing", {}).get("dicom", {})
        preprocessing = Preprocessing(
            self._settle("window", recorded), self._settle("size", recorded)
        )
        if preprocessing.window not in WINDOW_CHOICES or preprocessing.size not in SIZES:
            raise UserError(f"{self.path}: names a preprocessing that this program does not know")
        return preprocessing

    def scans_or_none(self) -> Preprocessing | None:
        """`scan_preprocessing`, None where neither file nor user says anything of scans."""
        told = "dicom" in self.content.get("preprocessing", {})
        asked = any(self.given.get(name) is not None for name in ("window", "size"))
        return self.scan_preprocessing() if told or asked else None

    def _settle(self, name: str, recorded: dict):
        """What the file records, or where it is silent what its user gives.

        Raises `UserError` where neither says it, or where they disagree.
        """
        given = self.given.get(name)
        value = recorded.get(name, given)
        if value is None:
            raise UserError(
                f"{self.path}: does not say how its images were made; say it with --{name}, "
                f"{HOW_TO_KNOW[name]}"
            )
        if given not in (None, value):
            raise UserError(f"--{name} {given}: {self.path} was trained with {value}")
        return value


def load(
    path: str | os.PathLike,
    device: str = "auto",
    precision: str = "auto",
    class_names: Sequence[str] | None = None,
    say: Callable[[str], None] = lambda line: None,
    **given: int | str | None,
) -> Model:
    """The classifier of a checkpoint, or of a run's folder: the last checkpoint in it.

    device: "auto" (the first GPU where there is one), "cpu", or a GPU's number as "1" or "cuda:1".
    class_names, and of `given` image_size, window and size, are for files that do not say, such as
    the released program's. `say` hears of a GPU that is not there. Raises `UserError` for what
    cannot be used.
    """
    path = find_checkpoint(Path(path))
    weights, content = load_model(path, class_names)
    if content["architecture"]["network"] == "unet3d":
        raise UserError(
            f"{path}: a network of volumes, not of images; use predict.segmenter.load_segmenter"
        )
    net, precision = ready_network(path, weights, content, device, precision, say)
    return Model(path, net, content, precision, given)


def ready_network(
    path: Path,
    weights: Mapping[str, torch.Tensor],
    content: Mapping,
    device: str,
    precision: str,
    say: Callable[[str], None],
) -> tuple[Network, str]:
    """The network of a checkpoint on its device, and the precision of its backbone; device,
    precision and `say` as in `load`, weights and content as `load_model` returns them."""
    net = build_network(content["architecture"], content["class_names"])
    load_weights(net, weights, path)
    gpu = "0" if device == "auto" else device.removeprefix("cuda:")
    place = choose_devices(gpu, say, default="0" if device == "auto" else "")[0]
    net = place_network(net, place)
    precision = choose_precision(precision, [place])
    set_precision([net], precision)
    return net, precision


def prediction_table(found: FilePredictions, class_names: Sequence[str]) -> pd.DataFrame:
    """The table of `Model.predict`."""
    read = iter(zip(found.probabilities.tolist(), found.unlike, strict=True))
    rows = []
    for item in found.outcomes:
        if isinstance(item, Rejected):
            rows.append([item.file, None, *[math.nan] * len(class_names), item.reason])
            continue
        probabilities, unlike = next(read)
        said = class_names[int(np.argmax(probabilities))]
        told = f"nothing like the training images: {unlike}" if unlike else ""
        note = "; ".join(filter(None, (item.note, told)))
        rows.append([item.file, said, *probabilities, note])
    return pd.DataFrame(rows, columns=["ImageID", "prediction", *class_names, "note"])
