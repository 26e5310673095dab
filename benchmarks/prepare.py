"""What `prepare rsna` costs: files per second against the bare cost of the same files, the time
and memory for the long label file of the full set, and the memory that a deflated bomb gets.

The bare cost is one process that reads with pydicom, decodes, applies the modality LUT, the
window and Pillow's resize, and neither checks nor writes anything. The files are phantom slices of
512 x 512 pixels (or those of --dicom_dir), read from the disk cache.

    python -m benchmarks.prepare [--files 2000] [--dicom_dir DIR]
"""

import argparse
import io
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import pydicom
from PIL import Image
from pydicom.pixels import apply_modality_lut
from pydicom.uid import DeflatedExplicitVRLittleEndian

from dataloaders.dicom import Preprocessing
from dataloaders.prepare.rsna import ALL_COLUMNS, convert_dicom
from dataloaders.windows import window_picture
from utils.errors import run_command
from utils.workers import Task, WorkerPool, available_cores

PREPROCESSING = Preprocessing("triple", 128)
ROUNDS = 5
BOMB_BYTES = 800 * 10**6
STAGE_2_IMAGES, STAGE_2_DUPLICATES = 752_803, 4

# VmHWM, not ru_maxrss: the latter starts at the parent's size.
MEASURED_CALL = """
import sys, time
from dataloaders.{module} import {name} as function

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) // 1024 for line in status if line.startswith("VmHWM"))

before, start = peak(), time.perf_counter()
try:
    function(sys.argv[1], {arguments})
except ValueError as error:
    print(error, end=", ")
seconds = time.perf_counter() - start
print(f"{{seconds:.1f}} s, peak {{peak()}} MB, of them {{before}} MB before it began")
"""


class Cost(NamedTuple):
    """wall: files per second. cpu: files per second of one core's time."""

    wall: float
    cpu: float


def main() -> None:
    """Print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=2000, help="conversions in every round")
    parser.add_argument("--dicom_dir", type=Path, help="measure on these files instead")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        sources = sorted((args.dicom_dir or _phantom(scratch)).glob("*.dcm"))
        measure_throughput(sources, args.files, scratch)
        measure_labels(scratch / "long.csv")
        measure_bomb(sources[0], scratch / "bomb.dcm")


def bare(path: str) -> np.ndarray:
    """Read, decode, window and resize, the shortest way."""
    dataset = pydicom.dcmread(path)
    hounsfield = apply_modality_lut(dataset.pixel_array, dataset)
    picture = Image.fromarray(window_picture(hounsfield, PREPROCESSING.window))
    size = (PREPROCESSING.size, PREPROCESSING.size)
    return np.asarray(picture.resize(size, Image.Resampling.BILINEAR))


def measure_throughput(sources: Sequence[Path], count: int, scratch: Path) -> None:
    """Print both costs, medians over rounds that alternate. Where other programs use the cores
    too, wall time says little and the share of CPU time is the one to read."""
    cores = available_cores()
    tasks = [Task(f"{number}.png", str(sources[number % len(sources)])) for number in range(count)]
    (scratch / "images").mkdir()
    _pooled(tasks[:100], scratch / "images", cores)
    rounds = [
        (_bare_cost(tasks[: count // cores]), _pooled(tasks, scratch / "images", cores))
        for _ in range(ROUNDS)
    ]
    for name in Cost._fields:
        scale = cores if name == "wall" else 1
        single = [getattr(one, name) for one, _ in rounds]
        pooled = [getattr(all_cores, name) for _, all_cores in rounds]
        shares = [100 * b / (a * scale) for a, b in zip(single, pooled, strict=True)]
        print(
            f"{name:>4}: bare {median(single):.1f} files/s, prepare with {cores} processes "
            f"{median(pooled):.1f} files/s, {median(shares):.0f} % of {scale} x bare "
            f"(rounds: {', '.join(f'{share:.0f}' for share in shares)})",
            flush=True,
        )


def _bare_cost(tasks: Sequence[Task]) -> Cost:
    wall, cpu = time.perf_counter(), time.process_time()
    for task in tasks:
        bare(task.source)
    return Cost(len(tasks) / (time.perf_counter() - wall), len(tasks) / (time.process_time() - cpu))


def _pooled(tasks: Sequence[Task], images: Path, cores: int) -> Cost:
    """The cost from the first outcome on. CPU time is that of all processes; the workers' is known
    once they have ended, so that what starting them takes is measured apart and taken off."""
    convert = partial(convert_dicom, preprocessing=PREPROCESSING)
    starting = _cpu()
    with WorkerPool(convert, images, cores) as pool:
        list(pool.run(tasks[:cores]))
    starting, start = _cpu() - starting, _cpu()
    with WorkerPool(convert, images, cores) as pool:
        list(pool.run(tasks[:cores]))
        wall = time.perf_counter()
        list(pool.run(tasks[cores:]))
        wall = time.perf_counter() - wall
    converted = len(tasks) - cores
    return Cost(converted / wall, converted / (_cpu() - start - starting))


def _cpu() -> float:
    """CPU seconds of this process and of its children that have ended."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure_labels(path: Path) -> None:
    """Print time and memory for a label file of stage 2's size."""
    hexadecimal = np.random.default_rng(0).choice(16**9, STAGE_2_IMAGES, replace=False)
    rows = [
        f"ID_{number:09x}_{name},{int(number % 7 == 0 and column in (1, 5))}\n"
        for number in hexadecimal
        for column, name in enumerate(ALL_COLUMNS)
    ]
    rows += rows[: STAGE_2_DUPLICATES * len(ALL_COLUMNS)]
    path.write_text("ID,Label\n" + "".join(rows))
    print(f"label file of {len(rows):,} rows: ", end="", flush=True)
    _measured_call("rsna_labels", "read_rsna_labels", "", path)


def measure_bomb(source: Path, path: Path) -> None:
    """Print what becomes of a small deflated file that inflates to `BOMB_BYTES`."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dcmread(source).file_meta
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    header = stream.getvalue()
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    pixel_data = b"\xe0\x7f\x10\x00OW\x00\x00" + BOMB_BYTES.to_bytes(4, "little")
    parts = [header[: 144 + int.from_bytes(header[140:144], "little")]]
    parts += [deflate.compress(pixel_data)]
    parts += [deflate.compress(bytes(10**6)) for _ in range(BOMB_BYTES // 10**6)]
    path.write_bytes(b"".join(parts) + deflate.flush())
    print(f"{path.stat().st_size:,} bytes that inflate to {BOMB_BYTES:,}: ", end="", flush=True)
    _measured_call("dicom", "read_picture", "'brain', 128", path)


def _measured_call(module: str, name: str, arguments: str, path: Path) -> None:
    program = MEASURED_CALL.format(module=module, name=name, arguments=arguments)
    subprocess.run([sys.executable, "-c", program, path], check=True)


def _phantom(folder: Path) -> Path:
    """Drawn in a process of its own, whose memory does not serve the bare cost."""
    command = [
        "-m",
        "dataloaders.phantom",
        "--format",
        "dicom",
        "--patients",
        "20",
        "--size",
        "512",
    ]
    subprocess.run([sys.executable, *command, "--out", folder], check=True, capture_output=True)
    return folder / "stage_2_train"


if __name__ == "__main__":
    run_command(main)
