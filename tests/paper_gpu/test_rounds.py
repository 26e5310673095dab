"""Training on strict GPUs on paper: the processor's bits, no wait in a step; and planted faults."""

import importlib
import sys
from collections import Counter
from pathlib import Path
from types import FunctionType, ModuleType

import pytest
import torch

from dataloaders.patches import PatchAugmentation, VolumeDataset
from networks.saved import model_content
from tests.helpers.small_clients import assert_identical, make_dataset
from tests.helpers.volumes import prepared_table, write_prepared
from tests.paper_gpu.gpus import paper_gpus
from tests.paper_gpu.rounds import CPU, to_cpu, train_rounds
from tests.paper_gpu.tensors import DeviceError
from utils.tensors import copy_tensors, to_host

GPUS = [torch.device("cuda", number) for number in range(2)]
PLACES = {
    "device": (GPUS[:1], "device", "device"),
    "ram": (GPUS[:1], "ram", "host"),
    "disk": (GPUS[:1], "disk", "disk"),
    "two": (GPUS, "ram", "device"),
}


@pytest.fixture(scope="module")
def on_the_processor():
    """Filled by the first test: the small backbone is there in tests alone."""
    return {}


def expected(known: dict) -> dict:
    if not known:
        known.update(train_rounds([CPU], "ram", "host"))
    return known


def check(places: str, known: dict) -> None:
    """Two rounds there have the processor's bits, and more steps make the host wait no more."""
    devices, cache, placement = PLACES[places]
    waits = {}
    for images in (8, 16):
        with paper_gpus(len(devices)) as bench:
            found = train_rounds(devices, cache, placement, images)
            waits[images] = bench.waits
        streams = Counter(stream.device for stream in bench.streams)
        assert max(streams.values()) <= 3, f"work, copies to it and from it: {dict(streams)}"
    assert_identical(found, expected(known))
    more = waits[16] - waits[8]
    assert not more, f"a step waits for the GPU: {dict(more)}"


@pytest.mark.parametrize("places", PLACES)
def test_rounds_have_the_processors_bits_and_no_step_waits(places, on_the_processor):
    check(places, on_the_processor)


@pytest.mark.parametrize("method", ["fixmatch", "rscfed", "cbafed"])
def test_rounds_of_a_later_method_have_the_processors_bits(method):
    on_the_processor = train_rounds([CPU], "ram", "host", method=method)
    waits = {}
    for images in (8, 16):
        with paper_gpus(2) as bench:
            found = train_rounds(GPUS, "device", "device", images, method)
            waits[images] = bench.waits
    assert_identical(found, on_the_processor)
    more = waits[16] - waits[8]
    assert not more, f"a step waits for the GPU: {dict(more)}"


def test_images_stay_where_they_are_when_a_step_needs_the_memory(monkeypatch):
    with paper_gpus(1):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**6, 10**6))
        for reserved, place in ((0, "cuda"), (9 * 10**5, "cpu")):
            dataset = make_dataset()
            assert dataset.pixels.nbytes == 16 * 32 * 32 * 3 < 0.4 * 10**6
            dataset.reserved = reserved
            assert dataset._pixels_for(GPUS[0]).device.type == place


def test_patches_of_volumes_are_sent_without_a_wait(tmp_path):
    arrays, table = prepared_table(write_prepared(tmp_path / "volumes", 8))
    dataset = VolumeDataset(arrays, table, (8, 8, 8), 0.5)
    batches, waits = {}, {}
    for device, count in ((CPU, 8), (GPUS[0], 4), (GPUS[0], 8)):
        with paper_gpus(1) as bench:
            drawn = dataset.training_batches(
                torch.arange(count),
                dataset.labels,
                2,
                2,
                PatchAugmentation(0.0, (0, 1)),
                torch.Generator().manual_seed(0),
                device,
            )
            batches[device] = [to_cpu([*batch.views, batch.labels]) for batch in drawn]
            waits[count] = bench.waits
    assert_identical(batches[GPUS[0]], batches[CPU])
    copied_back = {"copy to the host": 2 * 3}
    assert waits[8] - waits[4] == Counter(copied_back), "a batch waits for the GPU"


# name -> (module, what stands there, what is planted instead, where it shows)
BUGS = {
    "the matrix to match stays on the CPU": (
        "local_unsupervised",
        "{k: v.to(device) for k, v in shared.items()}",
        "dict(shared)",
        "device",
    ),
    "dropout draws from the CPU": (
        "local_update",
        'self.generator(round, "dropout", net_device(net))',
        'self.generator(round, "dropout", "cpu")',
        "device",
    ),
    "a fresh stream for each copy to the host": (
        "utils.tensors",
        'copy_stream(device, "from")',
        "torch.cuda.Stream(device)",
        "device",
    ),
    "a fresh stream for each batch's copies": (
        "dataloaders.pixels",
        'copy_stream(device, "to")',
        "torch.cuda.Stream(device)",
        "ram",
    ),
    "numpy of a tensor on the GPU": (
        "predict.inference",
        "torch.softmax(logits.double(), dim=1).cpu().numpy()",
        "torch.softmax(logits.double(), dim=1).numpy()",
        "device",
    ),
    "a number is read in every step": (
        "local_supervised",
        "log.add(batch, loss, loss)",
        "log.add(batch, loss, loss); loss.item()",
        "device",
    ),
    "labels stay on the CPU": (
        "dataloaders.dataset",
        "labels[order].to(device)",
        "labels[order]",
        "device",
    ),
    "draws of the augmentation stay on the CPU": (
        "dataloaders.dataset",
        "augmentation, generator).to(device)",
        "augmentation, generator)",
        "device",
    ),
    "indices are copied in every step": (
        "dataloaders.dataset",
        "(pixels[placed[start:stop]] for start, stop in bounds)",
        "(pixels[indices[start:stop]] for start, stop in bounds)",
        "device",
    ),
    "constants are copied in every step": ("dataloaders.augment", "@cache\n", "", "device"),
    "pseudo labels stay on the GPU": (
        "tasks.classification",
        "labels[indices] = chosen.cpu()",
        "labels[indices] = chosen",
        "device",
    ),
    "a boolean mask in every step": (
        "local_unsupervised",
        "reliable.float().mean())",
        "reliable[reliable].float().sum())",
        "device",
    ),
    "the teacher stays on the CPU": (
        "local_unsupervised",
        "teacher = net.twin().train()",
        "teacher = net.twin().train().cpu()",
        "device",
    ),
    "memories are copied before they are written": (
        "utils.tensors",
        "            stream.wait_stream(torch.cuda.current_stream(device))\n",
        "",
        "device",
    ),
    "memories are given back while they are gathered": (
        "utils.tensors",
        "            tensor.record_stream(torch.cuda.current_stream(tensor.device))\n",
        "            pass\n",
        "device",
    ),
    "images are read before they are copied": (
        "dataloaders.pixels",
        "        using.wait_event(copied)\n",
        "",
        "ram",
    ),
    "images' memory is given back while it is read": (
        "dataloaders.pixels",
        "        images.record_stream(using)\n",
        "",
        "ram",
    ),
    "images are copied from memory that is not pinned": (
        "dataloaders.pixels",
        ", pin_memory=True",
        "",
        "ram",
    ),
    "models of two GPUs are averaged where they are": (
        "server",
        "yield placed(update.weights, device), share",
        "yield update.weights, share",
        "two",
    ),
    "matrices of two GPUs are averaged where they are": (
        "local_update",
        '{name: value.to("cpu") for name, value in (shared or {}).items()}',
        "dict(shared or {})",
        "two",
    ),
}


def plant(monkeypatch, module: ModuleType, old: str, new: str) -> None:
    """`module` as if `new` stood in its file instead of `old`, wherever its functions are used."""
    source = Path(module.__file__).read_text()
    assert source.count(old) == 1, f"{module.__name__} has {source.count(old)} times: {old}"
    changed = ModuleType(module.__name__)
    changed.__file__ = module.__file__
    with monkeypatch.context() as while_made:
        while_made.setitem(sys.modules, module.__name__, changed)
        exec(compile(source.replace(old, new), module.__file__, "exec"), vars(changed))  # noqa: S102
    planted = 0
    for name, value in vars(module).items():
        if getattr(value, "__module__", None) != module.__name__:
            continue
        theirs = vars(changed)[name]
        pairs = [(value, theirs)]
        if isinstance(value, type):
            pairs = [(part, vars(theirs)[key]) for key, part in vars(value).items()]
        for mine, other in pairs:
            planted += _plant_code(monkeypatch, mine, other)
        if type(value) is not type(theirs):  # a decorator went
            monkeypatch.setattr(module, name, theirs)
            planted += 1
    assert planted  # the one, and those whose lines moved with it


def _plant_code(monkeypatch, mine: object, theirs: object) -> bool:
    mine, theirs = (getattr(part, "__wrapped__", part) for part in (mine, theirs))
    if not (isinstance(mine, FunctionType) and isinstance(theirs, FunctionType)):
        return False
    if mine.__code__ == theirs.__code__:
        return False
    monkeypatch.setattr(mine, "__code__", theirs.__code__)
    return True


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_fault_is_caught(bug, monkeypatch, on_the_processor):
    expected(on_the_processor)
    name, old, new, places = BUGS[bug]
    plant(monkeypatch, importlib.import_module(name), old, new)
    with pytest.raises((DeviceError, AssertionError)) as caught:
        check(places, on_the_processor)
    assert str(caught.value)


def test_what_a_client_remembers_travels_in_one_copy_a_type():
    """Its 1,456 tensors, in the order in which they lie in memory."""
    maps = torch.arange(48.0).view(2, 3, 4, 2).contiguous(memory_format=torch.channels_last)
    memory = {
        "teacher": {"conv": maps, "bias": torch.arange(5.0), "every other": torch.arange(8.0)[::2]},
        "steps": [torch.tensor(3), torch.tensor(4), 5],
    }
    with paper_gpus() as bench:
        there = copy_tensors(memory, GPUS[0])
        up = bench.launches["_to_copy"]
        back = to_host(there)
        down = bench.launches["_to_copy"] - up
    assert (up, down) == (2, 2)
    assert_identical(back, memory)
    assert back["teacher"]["conv"].stride() == maps.stride()


def test_what_is_kept_of_a_saved_model_keeps_no_more():
    """The copy from the GPU is one flat tensor; a part of it would keep, and save, all of it."""
    weights = {"conv": torch.arange(48.0), "bias": torch.arange(5.0)}
    with paper_gpus():
        there = copy_tensors(weights, GPUS[0])
        kept = model_content(there, ("a",), {}, {}, "demo", 3)["state_dict"]
    assert_identical(kept, weights)
    assert {name: part.untyped_storage().nbytes() for name, part in kept.items()} == {
        "conv": 48 * 4,
        "bias": 5 * 4,
    }
