"""manifest.json beside a folder of images: how `dataloaders.prepare` made them."""

from collections.abc import Mapping
from pathlib import Path

from utils.json_files import read_json
from utils.schema import record, text, whole


def check_manifest(content: Mapping, place: str) -> None:
    """`Mismatch` unless a manifest.json says how its images were made."""
    said = {"preprocessing": content.get("preprocessing")}
    record({"preprocessing": record({}, {"window": text(100), "size": whole(16, 1024)})})(
        said, place
    )


def read_preparation(root_path: Path) -> dict:
    """How DICOM files became the images under `root_path`: {"dicom": {...}} or {}.

    `dataloaders.prepare` leaves that in manifest.json, beside the folder of images. Pictures that
    were pictures before (photographs of skin) come from no window.
    """
    manifest = root_path.resolve().parent / "manifest.json"
    if not manifest.exists():
        return {}
    preprocessing = read_json(manifest, check_manifest, "prepare the images again")["preprocessing"]
    return {"dicom": preprocessing} if "window" in preprocessing else {}
