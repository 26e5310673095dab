"""Whole runs with a stand-in network: how they go on, what they refuse, how they are stopped."""

import json
import os
import shutil
import signal
import time

import pandas as pd
import pytest
import torch
from PIL import Image

from dataloaders.dataset import ImageDataset
from local_unsupervised import UnsupervisedLocalUpdate
from networks.saved import load_model
from tests.conftest import DataFolder
from tests.reliability.conftest import SMALL, refused
from tests.torture.runs import (
    differences,
    outcome,
    whole_states,
)
from utils.checkpoint import save_checkpoint

# ---- the same bits


def test_where_clients_wait_and_how_many_train_at_once_changes_nothing(
    train, phantom_folder, tmp_path
):
    ways = {
        "host": ["--client_state", "host"],
        "disk": ["--client_state", "disk"],
        "device": ["--client_state", "device", "--gpu", "cpu,cpu,cpu"],
    }
    for name, flags in ways.items():
        ended = train(*SMALL, *phantom_folder.flags(), *flags, "--run_dir", tmp_path / name)
        assert ended.status == 0, ended.error
    whole = outcome(tmp_path / "host")
    assert len([name for name in whole if name.startswith("client 2/teacher")]) > 10
    assert differences(whole, outcome(tmp_path / "disk")) == []
    assert differences(whole, outcome(tmp_path / "device")) == []


def test_a_run_goes_on_elsewhere_and_longer(train, begun, data, tmp_path):
    assert train(*SMALL, *data.flags(), "--run_dir", tmp_path / "whole").status == 0
    moved = DataFolder(*(tmp_path / "moved" / path.name for path in data))
    (tmp_path / "moved").mkdir()
    for old, new in zip(data, moved, strict=True):
        shutil.move(old, new)
    for image in moved.root_path.iterdir():
        os.utime(image, (1, 1))  # a copy has other times
    flags = ["--rounds", 3, "--client_state", "disk", "--cache", "ram", "--gpu", "cpu,cpu"]
    ended = train("--resume", begun, *moved.flags(), *flags, "--save_every", 2)
    assert ended.status == 0 and "going on with round 2 of 3" in ended.said, ended.error
    assert differences(outcome(tmp_path / "whole"), outcome(begun)) == []


def test_only_two_states_are_kept_and_weights_every_so_often(train, phantom_folder, tmp_path):
    flags = ["--rounds", 5, "--save_every", 2, "--run_dir", tmp_path / "run"]
    assert train(*SMALL, *phantom_folder.flags(), *flags).status == 0
    checkpoints = tmp_path / "run" / "checkpoints"
    assert whole_states(tmp_path / "run") == [4, 5]
    assert sorted(path.name for path in checkpoints.glob("epoch_*")) == [
        "epoch_1.pth",
        "epoch_3.pth",
        "epoch_4.pth",
    ]
    clients = [f"client_{client}_{round:06d}.pth" for client in range(4) for round in (3, 4)]
    assert sorted(os.listdir(checkpoints / "clients")) == sorted(clients)


def test_memories_go_after_the_last_round_where_asked(train, begun, tmp_path, monkeypatch):
    checkpoints = begun / "checkpoints"
    kept = ["clients", "epoch_0.pth", "epoch_1.pth", "state_000002.pth"]
    shutil.copytree(checkpoints, tmp_path / "before")
    assert train("--resume", begun, "--keep_state", 0).status == 0
    assert train("--resume", begun).status == 0  # a report once more: nothing else is to do
    assert sorted(os.listdir(checkpoints)) == kept and os.listdir(checkpoints / "clients") == []
    with monkeypatch.context() as small_disk:  # a report needs no room for states
        small_disk.setattr("record.checks.free_bytes", lambda folder: 0)
        assert train("--resume", begun).status == 0
    words = refused(train("--resume", begun, "--rounds", 3))
    assert "ended after 2" in words and "--keep_state 0" in words
    # A kill while they went leaves some behind; the next --resume removes those.
    for left in ["state_000001.pth", "clients/client_2_000001.pth"]:
        shutil.copy(tmp_path / "before" / left, checkpoints / left)
    assert train("--resume", begun).status == 0
    assert sorted(os.listdir(checkpoints)) == kept and os.listdir(checkpoints / "clients") == []


# ---- damage


@pytest.mark.parametrize("what", ["state_000002.pth", "clients/client_2_000001.pth"])
def test_resume_falls_back_to_the_round_before_and_says_so(train, begun, data, tmp_path, what):
    whole = outcome(begun)
    path = begun / "checkpoints" / what
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3] ^= 64
    path.write_bytes(raw)
    ended = train("--resume", begun)
    assert ended.status == 0 and "going on with round 1 of 2" in ended.said, ended.error
    assert f"{path}: damaged" in ended.said and "going back to the round before" in ended.said
    assert f"{path}: damaged" in (begun / "log.txt").read_text()
    assert differences(whole, outcome(begun)) == []


def test_nothing_whole_left_is_one_line(train, begun):
    for path in (begun / "checkpoints").glob("state_*"):
        path.write_bytes(path.read_bytes()[:-1])
    assert "no undamaged state left" in refused(train("--resume", begun))


def test_leftovers_of_a_killed_writer_are_swept(train, begun):
    places = [begun, begun / "checkpoints", begun / "checkpoints" / "clients", begun / "figures"]
    places[-1].mkdir(exist_ok=True)
    for place in places:
        (place / ".a.pth.abc.partial").touch()
    assert train("--resume", begun).status == 0
    assert not list(begun.rglob("*.partial"))


def test_tables_are_made_again_where_a_kill_fell_between_them_and_their_state(train, begun):
    whole = outcome(begun)
    (begun / "metrics.csv").unlink()
    (begun / "matrices.csv").write_text("round,source\n")
    assert train("--resume", begun).status == 0
    assert differences(whole, outcome(begun)) == []


# ---- flags and data


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--base_lr", 0.1], "--base_lr 0.1 (was 0.0002)"),
        (["--seed", 2, "--method", "fedavg"], "--seed 2 (was 1337), --method fedavg (was fedirm)"),
        (["--rounds", 1], "--rounds 1: the run was begun with 2"),
        (["--preset", "slides"], "--preset slides (was paper)"),
    ],
)
def test_flags_that_change_the_science_are_refused_with_a_diff(train, begun, flags, reason):
    before = (begun / "args.json").read_text()
    words = refused(train("--resume", begun, *flags))
    first, *rest = reason.split(", ")
    assert first in words and all(part in words for part in rest)
    assert (begun / "args.json").read_text() == before


def test_a_changed_args_file_is_refused_with_a_diff(train, begun):
    path = begun / "args.json"
    path.write_text(path.read_text().replace('"base_lr": 0.0002', '"base_lr": 0.0003'))
    assert "args.json" in (words := refused(train("--resume", begun)))
    assert "--base_lr 0.0003 (was 0.0002)" in words
    path.write_text("{")
    assert "not the folder of a run" in refused(train("--resume", begun))


def swap_labels(data: DataFolder) -> None:
    table = pd.read_csv(data.csv_file_train)
    labels = table.columns[2:]
    table.loc[0, labels] = table.loc[0, labels].to_numpy()[::-1]
    table.to_csv(data.csv_file_train, index=False)


def rename_class(data: DataFolder) -> None:
    for path in data[1:]:
        path.write_text(path.read_text().replace("subdural", "subgaleal"))


def repaint(data: DataFolder) -> None:
    path = data.root_path / pd.read_csv(data.csv_file_test).ImageID[0]
    status = path.stat()
    picture = Image.open(path).convert("RGB")
    picture.putpixel((3, 3), (1, 2, 3))
    picture.save(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def drop_row(data: DataFolder) -> None:
    pd.read_csv(data.csv_file_train).iloc[1:].to_csv(data.csv_file_train, index=False)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (swap_labels, "csv_file_train"),
        (rename_class, "csv_file_train"),
        (repaint, "csv_file_test"),
        (drop_row, "csv_file_train"),
    ],
)
def test_a_changed_data_set_is_refused_by_name(train, begun, data, change, named):
    change(data)
    words = refused(train("--resume", begun))
    assert f"{getattr(data, named)}: the {named[9:]} images or labels changed" in words


def test_a_start_from_other_classes_is_refused_before_a_network_is_built(
    train, begun, data, tmp_path, monkeypatch
):
    weights, content = load_model(begun / "checkpoints" / "epoch_1.pth")
    content["class_names"] = content["class_names"][::-1]
    save_checkpoint(tmp_path / "other.pth", content | {"state_dict": weights})
    monkeypatch.setattr("federation.build_networks", None)
    monkeypatch.setattr("train_main.build_networks", None)
    flags = ["--resume", tmp_path / "other.pth", "--run_dir", tmp_path / "new"]
    assert "made for the classes" in refused(train(*SMALL, *data.flags(), *flags))
    assert not (tmp_path / "new").exists()


def test_a_disk_too_small_for_the_states_is_refused_at_once(
    train, phantom_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("record.checks.free_bytes", lambda folder: 100_000)
    run_dir = tmp_path / "runs" / "new"
    words = refused(train(*SMALL, *phantom_folder.flags(), "--run_dir", run_dir))
    assert f"{run_dir}: 0.1 MB free and 0." in words and "needed" in words
    assert not run_dir.parent.exists()


# ---- signals


@pytest.mark.parametrize("gpu", ["cpu", "cpu,cpu"])
@pytest.mark.parametrize(
    ("sent", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
@pytest.mark.parametrize("method", ["fedirm", "fed_selftraining"])
def test_a_signal_stops_within_a_step(
    train, phantom_folder, tmp_path, monkeypatch, gpu, sent, status, method
):
    """A round of four clients with 3,000 steps each, stopped while the first are at it."""
    steps = []
    batches = ImageDataset.training_batches

    def slow(*arguments):
        for batch in batches(*arguments):
            steps.append(time.monotonic())
            if len(steps) == 8:
                os.kill(os.getpid(), sent)
            time.sleep(0.02)
            yield batch

    monkeypatch.setattr(ImageDataset, "training_batches", slow)
    flags = ["--gpu", gpu, "--method", method, "--local_ep", 1000, "--run_dir", tmp_path / "run"]
    ended = train(*SMALL, *phantom_folder.flags(), *flags)
    stopped = time.monotonic()
    assert ended.status == status and "--resume" in ended.said
    assert len(steps) <= 8 + 3 and stopped - steps[7] < 2
    assert whole_states(tmp_path / "run") == []


# ---- memory


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "the GPU's memory"),
        (torch.AcceleratorError("CUDA error: out of memory"), "the GPU's memory"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "the GPU's memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "the GPU's memory"),
        (
            RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
            "main memory",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "main memory"),
        (MemoryError(), "main memory"),
    ],
)
def test_out_of_memory_names_the_flags_that_help(
    train, phantom_folder, tmp_path, monkeypatch, error, where
):
    def full(*_):
        raise error

    monkeypatch.setattr(UnsupervisedLocalUpdate, "losses", full)
    words = refused(train(*SMALL, *phantom_folder.flags(), "--run_dir", tmp_path / "run"))
    for part in (
        where,
        "--batch_size (now 4)",
        "--image_size (now 32)",
        "--cache",
        "--client_state",
    ):
        assert part in words
    assert ("--precision bf16, --compile off" in words) == ("GPU" in where)
    assert json.loads((tmp_path / "run" / "args.json").read_text())["batch_size"] == 4


def test_out_of_memory_of_a_resumed_run_tells_its_own_numbers(
    train, phantom_folder, tmp_path, monkeypatch
):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(UnsupervisedLocalUpdate, "losses", full)
    run = tmp_path / "run"
    refused(train(*SMALL, *phantom_folder.flags(), "--run_dir", run))
    words = refused(train("--resume", run))
    assert "in a new run, lower --batch_size (now 4) or --image_size (now 32)" in words


def test_other_errors_keep_their_traceback(train, phantom_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(UnsupervisedLocalUpdate, "losses", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(*SMALL, *phantom_folder.flags(), "--run_dir", tmp_path / "run")


def test_another_precision_must_be_asked_for(train, phantom_folder, tmp_path):
    """The folder says that it was trained in bf16; this processor computes in fp32."""
    run_dir = tmp_path / "run"
    flags = [*SMALL, *phantom_folder.flags(), "--rounds", 2, "--run_dir", run_dir]
    assert train(*flags, "--keep_state", 1).status == 0
    environment = json.loads((run_dir / "env.json").read_text())
    assert environment["precision"] == "fp32" and environment["compile"] == "off"
    (run_dir / "env.json").write_text(json.dumps(environment | {"precision": "bf16"}))
    words = refused(train("--resume", run_dir, "--rounds", 3))
    assert "trained in bf16 until now, from here on in fp32; say so with --precision fp32" in words
    assert train("--resume", run_dir, "--rounds", 3, "--precision", "fp32").status == 0
    assert "trained in bf16 until now" in (run_dir / "log.txt").read_text()
