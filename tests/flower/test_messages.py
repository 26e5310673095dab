"""Answers that are none: every field is checked before its bytes are looked at."""

import io
import json
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from confuse_matrix import RelationMatrix
from deploy.credentials import make_node_key
from deploy.messages import pack_update, unpack_introduction, unpack_update
from deploy.roles import plain_key, read_roles
from deploy.sites import RemoteSite, SiteRegister
from local_update import ClientUpdate
from options import args_parser
from tests.flower.conftest import ROUNDS, Result
from tests.flower.local_grid import LocalGrid, run_rounds
from utils.errors import UserError

LIKE = {"w": torch.zeros(3, 5), "steps": torch.tensor(4)}
MATRIX = RelationMatrix(torch.zeros(5, 5).log_softmax(dim=1), torch.ones(5, dtype=torch.bool))


def answer() -> RecordDict:
    """What an honest client of number 3 sends."""
    update = ClientUpdate(LIKE, 4, True, MATRIX.named(), {"loss": 1.5}, MATRIX.named())
    return pack_update(update, 3, -1)


def array(**changes) -> ArrayRecord:
    honest = answer()["weights"]["weights"]
    fields = {name: getattr(honest, name) for name in ("dtype", "shape", "stype", "data")}
    return ArrayRecord({"weights": Array(**(fields | changes))})


def npy(shape: tuple, dtype: str = "|u1", content: bytes = b"") -> bytes:
    """An array's bytes with a header that claims whatever it likes."""
    buffer = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + content


def shared(**changes) -> ConfigRecord:
    honest = answer()["shared"]
    return ConfigRecord({name: honest[name] for name in honest} | changes)


def test_an_honest_answer_comes_through():
    update, recalled = unpack_update(answer(), LIKE, 3, True)
    assert recalled == -1 and update.num_samples == 4 and update.stats == {"loss": 1.5}
    assert all(torch.equal(update.weights[name], value) for name, value in LIKE.items())
    assert torch.equal(update.shared["relation_present"], MATRIX.present)


BAD_PARTS = [
    ("weights", ArrayRecord()),
    ("weights", ConfigRecord({"weights": b"x"})),
    ("weights", ArrayRecord({"other": Array(np.zeros(68, np.uint8))})),
    ("weights", ArrayRecord({"weights": Array(np.zeros(67, np.uint8))})),
    ("weights", ArrayRecord({"weights": Array(np.zeros(68, np.int8))})),
    ("weights", ArrayRecord({"weights": Array(np.zeros((68, 1), np.uint8))})),
    ("weights", array(data=b"")),
    ("weights", array(data=b"x" * 100)),
    ("weights", array(data=npy((10**12,)))),
    ("weights", array(data=npy((68,), "|u1"))),
    ("weights", array(data=npy((68,), "<f8", bytes(68)))),
    ("weights", array(data=npy((68,), "|O", bytes(68)))),
    ("weights", array(data=npy((68,), content=bytes(10**6)))),
    ("weights", array(stype="pickle")),
    ("weights", array(dtype="float64")),
    ("numbers", MetricRecord()),
    ("numbers", MetricRecord({"num_samples": float("inf")})),
    ("numbers", MetricRecord({"num_samples": float("nan")})),
    ("numbers", MetricRecord({"num_samples": 4.5})),
    ("numbers", MetricRecord({"num_samples": 0})),
    ("numbers", MetricRecord({"num_samples": -4})),
    ("numbers", MetricRecord({"num_samples": 10**18})),
    ("numbers", MetricRecord({"num_samples": [4, 4]})),
    ("numbers", MetricRecord({"num_samples": 4, "more": 1})),
    ("stats", MetricRecord()),
    ("stats", MetricRecord({"loss": [1.0, 2.0]})),
    ("stats", MetricRecord({"loss": 1.0, "x" * 1000: 1.0})),
    ("stats", MetricRecord({"loss": 1.0} | {f"s{i}": 1.0 for i in range(1000)})),
    ("shared", ConfigRecord({"names": ["a"]})),
    ("shared", shared(names=["a"])),
    ("shared", shared(names="ab")),
    ("shared", shared(types=["float32", "object"])),
    ("shared", shared(types=["float32", "float64"])),
    ("shared", shared(shapes=["[5, 5]", "[-5]"])),
    ("shared", shared(shapes=["[5, 5]", "[1e9]"])),
    ("shared", shared(shapes=["[5, 5]", json.dumps([10**9] * 4)])),
    ("shared", shared(shapes=["[5, 5]", "{}"])),
    ("shared", shared(shapes=["[5, 5]", "[" * 99])),
    ("shared", shared(shapes=["[5, 5]", "not JSON"])),
    ("shared", shared(shapes=["[5, 5]", "5"])),
    ("shared", shared(shapes=["[5, 4]", "[5]"])),
    ("shared", shared(bytes=[b"", b""])),
    ("shared", shared(bytes=[bytes(100), b"\1\1\2\1\1"])),
    (
        "shared",
        ConfigRecord({name: ["x"] * 2000 for name in ("names", "types", "shapes", "bytes")}),
    ),
    ("shown", ConfigRecord({"names": ["a"]})),
    ("shown", ArrayRecord()),
    ("report", ConfigRecord()),
    ("report", ConfigRecord({"client": 3})),
    ("report", ConfigRecord({"client": 4, "recalled": -1})),
    ("report", ConfigRecord({"client": "3", "recalled": -1})),
    ("report", ConfigRecord({"client": 3, "recalled": "no"})),
    ("report", ConfigRecord({"client": 3, "recalled": 10**15})),
    ("more", ConfigRecord({"a": 1})),
    *((name, None) for name in ("weights", "numbers", "stats", "shared", "shown", "report")),
]


@pytest.mark.parametrize(("name", "part"), BAD_PARTS, ids=range(len(BAD_PARTS)))
def test_a_malformed_answer_is_one_line_and_reserves_nothing(name, part):
    content = answer()
    if part is None:
        del content[name]
    else:
        content[name] = part
    tracemalloc.start()
    try:
        with pytest.raises(ValueError) as error:
            unpack_update(content, LIKE, 3, True)
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


HONEST_SITE = {"client": 1, "labeled": True, "num_samples": 40}


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"site": ConfigRecord()},
        {"other": ConfigRecord(HONEST_SITE)},
        {"site": ArrayRecord()},
        *(
            {"site": ConfigRecord(HONEST_SITE | changes)}
            for changes in (
                {"client": -1},
                {"client": "1"},
                {"client": 10**15},
                {"client": 1.5},
                {"labeled": 1},
                {"labeled": "true"},
                {"num_samples": 0},
                {"num_samples": 10**12},
                {"num_samples": float("inf")},
                {"more": 1},
            )
        ),
    ],
)
def test_a_malformed_introduction_is_one_line(content):
    assert unpack_introduction(RecordDict({"site": ConfigRecord(HONEST_SITE)})) == HONEST_SITE
    with pytest.raises(ValueError) as error:
        unpack_introduction(RecordDict(content))
    assert "\n" not in str(error.value)


# ---- who may be who


@pytest.fixture
def keys(tmp_path) -> list[bytes]:
    """Three public keys, whose files lie in the folder."""
    for site in range(3):
        make_node_key(tmp_path / f"site_{site}")
    return [(tmp_path / f"site_{site}.pub").read_bytes() for site in range(3)]


def write_list(folder, text: str):
    (folder / "sites.csv").write_text("client,labeled,key,images\n" + text)
    return folder / "sites.csv"


def test_the_list_of_sites_is_read(tmp_path, keys):
    roles = read_roles(write_list(tmp_path, "0,1,site_0.pub,1200\n4,0,site_1.pub,\n"))
    assert roles[plain_key(keys[0])] == (0, True, 1200)
    assert roles[plain_key(keys[1])] == (4, False, None)
    assert plain_key(keys[2]) not in roles


def test_a_list_of_sites_may_be_separated_as_a_spreadsheet_does(tmp_path, keys):
    path = write_list(tmp_path, "0,1,site_0.pub,1200\n")
    path.write_text(path.read_text().replace(",", ";"))
    assert read_roles(path) == {plain_key(keys[0]): (0, True, 1200)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0,1,gone.pub,\n", "line 2: .*gone.pub: No such file"),
        ("0,1,sites.csv,\n", "line 2: .*sites.csv: no public key"),
        ("0,yes,site_0.pub,\n", "line 2: give a client's number"),
        ("-1,1,site_0.pub,\n", "line 2: give a client's number"),
        ("0,1,site_0.pub,many\n", "line 2: give a client's number"),
        ("0,1,site_0.pub,\n0,0,site_1.pub,\n", "line 3: that key or client"),
        ("0,1,site_0.pub,\n1,0,site_0.pub,\n", "line 3: that key or client"),
    ],
)
def test_a_list_of_sites_with_a_fault_names_the_line(tmp_path, keys, text, words):
    with pytest.raises(UserError, match=words):
        read_roles(write_list(tmp_path, text))


class Nodes:
    """A grid whose nodes 100, 101, ... have these keys and answer these introductions."""

    def __init__(self, keys: list[bytes], said: list[dict]):
        self.keys, self.said = keys, said

    def get_node_ids(self) -> list[int]:
        return [100 + i for i in range(len(self.said))]

    def get_nodes(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(node_id=100 + i, public_key=key) for i, key in enumerate(self.keys)]

    def send_and_receive(self, messages, *, timeout: float) -> list[Message]:
        replies = []
        for message in messages:
            content = RecordDict(
                {"site": ConfigRecord(self.said[message.metadata.dst_node_id - 100])}
            )
            message.metadata.__dict__["_message_id"] = str(message.metadata.dst_node_id)
            replies.append(Message(content, reply_to=message))
        return replies


def introduced(nodes: Nodes, roles=None) -> tuple[dict, list[str]]:
    """Who is taken for whom, and what the log says."""
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
    said = []
    args = args_parser(["--preset", "demo", "--engine", "flower"])
    register = SiteRegister(nodes, args, ("a", "b"), "run", said.append, roles)
    return {site.client: site.node_id for site in register.online()}, said


def test_a_node_is_who_its_key_says_and_nobody_else(tmp_path, keys):
    roles = read_roles(write_list(tmp_path, "0,1,site_0.pub,50\n1,0,site_1.pub,\n"))
    site = {"client": 0, "labeled": True, "num_samples": 40}
    honest = Nodes(keys, [site, site | {"client": 1, "labeled": False}])
    assert introduced(honest, roles)[0] == {0: 100, 1: 101}
    for lie, words in (
        ({"client": 0, "labeled": False}, "its key is client 1's"),
        ({"client": 1, "labeled": True}, "has labels, the list of sites that it has no labels"),
    ):
        clients, said = introduced(Nodes(keys, [site, site | lie]), roles)
        assert clients == {0: 100}
        assert any("node 101 refused: " in line and words in line for line in said)
    many = Nodes(keys, [site | {"num_samples": 51}])
    assert "51 images, the list of sites 50" in introduced(many, roles)[1][0]
    stranger = Nodes([keys[2]], [site])
    assert "its key is not in the list" in introduced(stranger, roles)[1][0]
    assert "its key is not in the list" in introduced(Nodes([b"junk"], [site]), roles)[1][0]


def test_without_a_list_a_node_is_believed_and_the_log_says_what_it_said(keys):
    site = {"client": 5, "labeled": True, "num_samples": 40}
    clients, said = introduced(Nodes(keys, [site]))
    assert clients == {5: 100} and said == [
        "client 5: 40 images with labels, as it says (node 100)"
    ]


# ---- a federation goes on


def test_malformed_answers_are_skipped_and_the_federation_goes_on(flags, tmp_path):
    bad = [
        lambda content: content.pop("numbers"),
        lambda content: content.update({"weights": array(data=npy((10**12,)))}),
        lambda content: content.update({"report": ConfigRecord({"client": 0, "recalled": -1})}),
    ]

    def tamper(client: int, round: int, reply: Message) -> Message:
        if client == 1 and round in (1, 3):  # not three rounds in a row
            bad[round // 2](reply.content)
        return reply

    def also_a_strange_node(grid: LocalGrid) -> None:
        honest = grid.answer
        grid.nodes[102] = 1

        def reply_to(message: Message) -> Message:
            given = honest(message)
            if message.metadata.dst_node_id == 102:
                given.content["site"] = ConfigRecord({"client": "all of them"})
            return given

        grid.answer = reply_to

    folder = tmp_path / "run"
    policy = ["--on_bad_client", "skip", "--min_clients", "1"]
    run_rounds(folder, [*flags, *policy], tamper, also_a_strange_node)
    rows = Result(folder).metrics()
    assert [row["clients_skipped"] for row in rows] == ["0", "1", "0", "1"] and len(rows) == ROUNDS
    log = (folder / "log.txt").read_text()
    assert "client 1, round 1: its answer is no update: no numbers" in log
    assert "node 102 refused: " in log


def test_what_a_site_said_of_itself_outlives_the_server():
    before = RemoteSite(7, 1, True, 40)
    before.memory_round = 5
    again = RemoteSite(8, 1, True, 40)
    again.load_state_dict(before.state_dict())
    assert again.memory_round == 5
    with pytest.raises(UserError, match="it said 40 images with labels .* 10000000 images with"):
        RemoteSite(8, 1, True, 10**7).load_state_dict(before.state_dict())
    with pytest.raises(UserError, match="now 40 images without labels"):
        RemoteSite(8, 1, False, 40).load_state_dict(before.state_dict())
    RemoteSite(8, 1, True, 10**7).load_state_dict({"memory_round": 2})  # of version 0.2 and before
