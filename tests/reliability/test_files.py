"""Files on disk: whole or absent, checked, never code; locks that die with their holder."""

import ast
import errno
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path

import pytest
import torch

from networks.saved import load_model, starting_weights
from tests.helpers import PROJECT
from tests.torture.flips import flip_bit
from utils.checkpoint import TAIL_BYTES, load_checkpoint, save_checkpoint, verify_checkpoint
from utils.errors import UserError
from utils.files import (
    FolderLock,
    atomic_write,
    hash_file,
    sweep_temporary_files,
    waiting_lock,
    write_text,
)
from utils.logger import Curves, RunLog
from utils.tensors import find_non_finite

HEAD = "densenet121.classifier.0.weight"
ARCHITECTURE = {"network": "densenet121", "mode": "U-Ones", "drop_rate": 0.2, "attention": "none"}


def refusal(function, *arguments, **options) -> str:
    """The one line that a call is refused with."""
    with pytest.raises(UserError) as error:
        function(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- writing


def test_bytes_are_on_the_disk_before_the_name_changes(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(f"fsync {kind(fd)}"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("replace"), replace(*names)))

    def kind(descriptor: int) -> str:
        return "folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file"

    write_text(tmp_path / "a.txt", "new")
    assert done == ["fsync file", "replace", "fsync folder"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), atomic_write(path, "w") as file:
        file.write("new")
        file.flush()
        raise ZeroDivisionError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    with atomic_write(tmp_path / "a", "w") as first, atomic_write(tmp_path / "a", "w") as second:
        first.write("first")
        second.write("second")
    assert (tmp_path / "a").read_text() == "first"  # the outer block ends last


def test_full_disk_is_one_line_with_free_and_needed_bytes(tmp_path, monkeypatch):
    leftover = tmp_path / ".a.partial"

    def full(**_):
        leftover.touch()
        return os.open("/dev/full", os.O_WRONLY), str(leftover)

    monkeypatch.setattr(tempfile, "mkstemp", full)
    message = refusal(save_checkpoint, tmp_path / "a.pth", {"x": torch.zeros(1000)})
    assert "No space left on device" in message and "MB free and 0.0 MB needed" in message
    assert str(tmp_path / "a.pth") in message
    assert os.listdir(tmp_path) == []


def test_a_log_on_a_full_disk_is_an_error_where_it_is_written():
    log = RunLog()
    with pytest.raises(OSError, match="No space left"):
        log.open(Path("/dev/full"), ["first line"])
    log.close()


def test_curves_on_a_full_disk_are_an_error_and_no_thread_that_hangs(tmp_path, monkeypatch):
    full = Path("/dev/full")
    monkeypatch.setattr("tensorboardX.record_writer.open_file", lambda _: full.open("wb"))
    before = threading.active_count()
    curves = Curves(tmp_path / "tb", 0)
    curves.scalars({"round": 0, "loss": 0.5}, 0)
    with pytest.raises(OSError, match="No space left"):
        curves.flush()
    curves.close()
    assert threading.active_count() == before


def test_other_errors_are_not_called_a_full_disk(tmp_path):
    with pytest.raises(OSError) as error, atomic_write(tmp_path / "a"):
        raise OSError(errno.EINVAL, "invalid argument")
    assert error.value.errno == errno.EINVAL


def test_sweep_removes_leftovers_only(tmp_path):
    for name in (".a.pth.x1.partial", ".b.csv.x2.partial", "a.pth", ".lock"):
        (tmp_path / name).touch()
    assert sweep_temporary_files(tmp_path, "a.pth") == 1
    assert sweep_temporary_files(tmp_path) == 1
    assert sorted(os.listdir(tmp_path)) == [".lock", "a.pth"]


# ---- checkpoints


def test_a_checkpoint_comes_back_and_plain_torch_reads_it(tmp_path):
    content = {"x": torch.arange(6.0).reshape(2, 3), "y": [1, None, {"z": (2.5, "text")}]}
    digest = save_checkpoint(tmp_path / "a.pth", content)
    again = load_checkpoint(tmp_path / "a.pth", digest)
    assert again.keys() == content.keys() and again["y"] == content["y"]
    assert torch.equal(again["x"], content["x"])
    assert torch.equal(torch.load(tmp_path / "a.pth", weights_only=True)["x"], content["x"])


def test_every_single_bit_of_the_tail_and_many_of_the_rest_are_guarded(tmp_path):
    path = tmp_path / "a.pth"
    digest = save_checkpoint(path, {"x": torch.arange(40.0)})
    whole = path.read_bytes()
    bits = [8 * len(whole) - 1 - i for i in range(8 * TAIL_BYTES)] + list(
        range(0, 8 * len(whole), 97)
    )
    for bit in bits:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert str(path) in refusal(load_checkpoint, path)
        refusal(verify_checkpoint, path, digest)


@pytest.mark.parametrize("kept", [0, 1, 20, 500, -1, -TAIL_BYTES, -TAIL_BYTES - 1])
def test_a_cut_checkpoint_is_refused(tmp_path, kept):
    path = tmp_path / "a.pth"
    save_checkpoint(path, {"x": torch.arange(400.0)})
    path.write_bytes(path.read_bytes()[:kept])
    assert str(path) in refusal(load_checkpoint, path)


def test_whole_file_of_another_round_is_refused(tmp_path):
    path = tmp_path / "a.pth"
    digest = save_checkpoint(path, {"x": torch.zeros(3)})
    save_checkpoint(path, {"x": torch.ones(3)})
    assert "not the file that was saved" in refusal(load_checkpoint, path, digest)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_no_checkpoint_with_a_number_that_is_not_finite_is_written(tmp_path, bad):
    content = {"clients": {3: {"exp_avg": [torch.zeros(2, 2), torch.tensor([1.0, bad])]}}}
    message = refusal(save_checkpoint, tmp_path / "a.pth", content)
    assert "clients/3/exp_avg/1" in message and os.listdir(tmp_path) == []


def test_find_non_finite_names_the_first_and_knows_a_limit():
    fine = [torch.full((300,), 9e5), torch.tensor([1e20]), torch.arange(3), torch.zeros(0)]
    assert find_non_finite(fine) is None
    assert find_non_finite(fine, 1e6) == "1"
    strided = torch.zeros(4, 5, 3, 3).to(memory_format=torch.channels_last)
    strided[2, 3, 1, 1] = float("nan")
    assert find_non_finite({"a": fine, "b": (strided, strided)}) == "b/0"


class Bomb:
    """Unpickles into a file, where anybody lets it."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("kind", ["zip", "plain pickle", "old format"])
def test_a_file_whose_unpickling_would_run_code_is_refused_and_does_not_run(tmp_path, kind):
    path, target = tmp_path / "bomb.pth", tmp_path / "exploded"
    content = {"state_dict": {HEAD: torch.zeros(2, 1024)}, "class_names": Bomb(target)}
    if kind == "plain pickle":
        path.write_bytes(pickle.dumps(Bomb(target)))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    for read in (load_checkpoint, load_model):
        assert str(path) in refusal(read, path)
    assert not target.exists()
    torch.load(path, weights_only=False) if kind != "plain pickle" else pickle.loads(
        path.read_bytes()
    )
    assert target.exists()  # it was a live one


def test_nothing_in_the_program_loads_pickles():
    for source in PROJECT.rglob("*.py"):
        if "tests" in source.relative_to(PROJECT).parts or ".venv" in source.parts:
            continue
        # The one reader of them takes the operations of plain types alone, see its own tests.
        reader = source == PROJECT / "utils" / "stored_tensors.py"
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                loaders = {"pickle", "dill", "joblib", "shelve", "marshal"} & set(names)
                assert loaders <= ({"pickle"} if reader else set()), source
            if reader and isinstance(node, ast.Attribute):
                assert ast.unparse(node) not in ("pickle.load", "pickle.loads", "pickle.Unpickler")
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load"):
                options = {word.arg: ast.unparse(word.value) for word in node.keywords}
                safe = (
                    options.get("weights_only") == "True" or options.get("allow_pickle") == "False"
                )
                assert safe, f"{source} line {node.lineno}"


# ---- what a checkpoint says about itself


def model(**changes) -> dict:
    return {
        "state_dict": {HEAD: torch.zeros(2, 1024)},
        "class_names": ["cat", "dog"],
        "architecture": ARCHITECTURE,
        "preprocessing": {"image_size": 64},
    } | changes


@pytest.mark.parametrize(
    "content",
    [
        model(state_dict=5),
        model(state_dict={}),
        model(state_dict={HEAD: torch.zeros(2)}),
        model(state_dict={HEAD: "weights"}),
        model(state_dict={1: torch.zeros(2)}),
        model(state_dict={HEAD: torch.full((2, 1024), float("nan"))}),
        model(class_names="cat"),
        model(class_names=[1, 2]),
        model(class_names=["cat", "dog", "cow"]),
        model(architecture="DenseNet121"),
        model(architecture={"mode": "U-Ones"}),
        model(architecture=ARCHITECTURE | {"drop_rate": "high"}),
        model(preprocessing={"image_size": "large"}),
    ],
    ids=range(13),
)
def test_a_checkpoint_that_makes_no_sense_is_one_line(tmp_path, content):
    path = tmp_path / "odd.pth"
    torch.save(content, path)
    assert str(path) in refusal(load_model, path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"class_names": ["dog", "cat"]}, "made for the classes dog, cat, not cat, dog"),
        ({"architecture": ARCHITECTURE | {"attention": "self"}}, "--attention self"),
    ],
)
def test_start_from_other_classes_or_another_network_is_refused_unbuilt(
    tmp_path, monkeypatch, changes, reason
):
    monkeypatch.setattr("networks.models.build_densenet121", None)  # building would fail loudly
    path = tmp_path / "other.pth"
    save_checkpoint(path, model(**changes))
    assert reason in refusal(starting_weights, path, ("cat", "dog"), ARCHITECTURE)
    save_checkpoint(path, model())
    assert HEAD in starting_weights(path, ("cat", "dog"), ARCHITECTURE)


def test_a_compressed_archive_inside_is_no_way_around(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps(Bomb(tmp_path / "exploded")))
        archive.writestr("a/version", "3")
    assert str(path) in refusal(load_checkpoint, path)
    assert not (tmp_path / "exploded").exists()


def test_hash_of_a_file_and_a_flip_in_it(tmp_path):
    import random

    path = tmp_path / "a"
    path.write_bytes(bytes(range(256)) * 9000)
    whole = hash_file(path)
    flip_bit(path, random.Random(0))
    assert hash_file(path) != whole


# ---- locks

HOLD = "import sys; from pathlib import Path; from utils.files import FolderLock\n"
HOLD += "lock = FolderLock(Path(sys.argv[1])); print('mine', flush=True); sys.stdin.read()"


def hold(folder: Path) -> subprocess.Popen:
    """Another process that has the folder's lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "mine\n"
    return process


def test_the_lock_names_its_holder_and_dies_with_it(tmp_path):
    folder = tmp_path / "runs" / "a"
    holder = hold(folder)
    message = refusal(FolderLock, folder)
    assert str(folder) in message and f"process {holder.pid} " in message
    holder.kill()
    holder.communicate()
    FolderLock(folder).release(keep_folder=True)
    assert (folder / ".lock").exists()


def test_a_lock_for_nothing_leaves_no_folder_behind(tmp_path):
    lock = FolderLock(tmp_path / "runs" / "a")
    lock.release(keep_folder=False)
    assert os.listdir(tmp_path) == []
    (tmp_path / "old").mkdir()
    FolderLock(tmp_path / "old").release(keep_folder=False)
    assert os.listdir(tmp_path / "old") == []


def test_a_folder_that_cannot_be_locked_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    assert "--run_dir" in refusal(FolderLock, tmp_path / "file" / "run")


def test_waiting_lock_waits(tmp_path):
    code = "import sys, time; from pathlib import Path; from utils.files import waiting_lock\n"
    code += "with waiting_lock(Path(sys.argv[1])): print('mine', flush=True); time.sleep(0.5); "
    code += "print(time.monotonic(), flush=True)"
    command = [sys.executable, "-c", code, tmp_path / "a.lock"]
    other = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "mine\n"
    with waiting_lock(tmp_path / "a.lock"):
        mine = time.monotonic()
    assert mine > float(other.communicate()[0])  # one clock for all processes of a machine
