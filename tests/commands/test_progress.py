"""What one sees of a run while it goes, and when it dies: pictures, TensorBoard, what to type."""

import io
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time

import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData
from tqdm import tqdm

from tests.helpers import PROJECT
from utils.logger import curve_tag

FIGURE_EVERY = 2
PATIENCE = 240  # seconds, on a busy machine


@pytest.fixture(scope="module")
def stopped(phantom_folder, tmp_path_factory):
    """A run that was ended by SIGTERM once it had drawn: its folder, exit status and last line."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    command = [sys.executable, "train_main.py", "--preset", "demo", *phantom_folder.flags()]
    command += ["--image_size", "32", "--num_users", "3", "--num_labeled", "1", "--rounds", "999"]
    command += ["--join_epoch", "-1", "--figure_every", str(FIGURE_EVERY), "--gpu", "cpu"]
    command += ["--cache_dir", str(folder.parent / "cache"), "--run_dir", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(folder.parent / "printed.txt", "w+") as printed:
        process = subprocess.Popen(
            command, cwd=PROJECT, stdout=printed, stderr=subprocess.STDOUT, env=environment
        )
        deadline = time.monotonic() + PATIENCE
        while not (folder / "figures" / "relation.png").exists():
            assert process.poll() is None and time.monotonic() < deadline, printed.read()
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        status = process.wait(PATIENCE)
        printed.seek(0)
        return folder, status, printed.read().splitlines()[-1]


def test_pictures_come_every_figure_every_rounds(stopped):
    folder, _, _ = stopped
    rounds = (folder / "metrics.csv").read_text().splitlines()[1:]
    assert len(rounds) >= FIGURE_EVERY
    assert {path.name for path in (folder / "figures").iterdir()} == {"curves.png", "relation.png"}
    assert all(path.stat().st_size > 5000 for path in (folder / "figures").iterdir())


def test_a_run_that_dies_says_where_it_is_and_how_to_go_on(stopped):
    folder, status, last_line = stopped
    assert status == 128 + signal.SIGTERM
    assert f"python train_main.py --resume {folder}" in last_line


def test_no_thread_watches_the_progress_bars():
    with tqdm(total=2, file=io.StringIO()) as bar:
        bar.update()
        assert not any("TMonitor" in type(thread).__name__ for thread in threading.enumerate())


def read_events(folder):
    """The events of TensorBoard's only file in `folder`: length, checksum, bytes, checksum."""
    (path,) = folder.iterdir()
    content, start, events = path.read_bytes(), 0, []
    while start + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, start)
        events.append(event_pb2.Event.FromString(content[start + 12 : start + 12 + length]))
        start += length + 16
    return events


def test_tensorboard_gets_the_flags_beside_the_metrics_in_one_place(stopped):
    folder, _, _ = stopped
    events = read_events(folder / "tb")
    values = [value for event in events for value in event.summary.value]
    tags = {value.tag for value in values}
    assert {"test/auroc", curve_tag("loss"), "matrices/labeled_mean"} <= tags
    data = {
        value.tag: HParamsPluginData.FromString(value.metadata.plugin_data.content)
        for value in values
        if value.metadata.plugin_data.plugin_name == "hparams"
    }
    flags = json.loads((folder / "args.json").read_text())
    shown = data["_hparams_/session_start_info"].session_start_info.hparams
    assert shown.keys() == flags.keys()
    assert shown["base_lr"].number_value == flags["base_lr"]
    assert shown["method"].string_value == "fedirm"
    experiment = data["_hparams_/experiment"].experiment
    metrics = {info.name.tag for info in experiment.metric_infos}
    assert "test/auroc" in metrics and metrics <= tags
