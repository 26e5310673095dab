"""Flower on volumes, simulated or at sites of their own, computes what the loop computes."""

import json

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from dataloaders.federated_volumes import deal_volumes, read_sets
from dataloaders.volumes import read_volumes, write_volumes
from deploy.client import build_client_app, client_app
from deploy.hospital import own_site
from deploy.messages import pack_flags
from deploy.server import serve_sites
from options import args_parser
from record.run import open_run
from tests.flower.conftest import Result, assert_same, check, train_main
from tests.flower.local_grid import LocalGrid
from tests.helpers.volumes import write_prepared
from tests.volumes.conftest import TINY
from utils.errors import UserError


def test_segmentation_on_flower_has_the_bits_of_the_loop(tmp_path):
    prepared = write_prepared(tmp_path / "volumes", 12, patients=True)
    flags = [*TINY, "--volumes", str(prepared), "--rounds", "4", "--num_users", "3"]
    results = []
    for engine in ("loop", "flower"):
        check(train_main(tmp_path / engine, *flags, "--engine", engine))
        results.append(Result(tmp_path / engine))
    assert_same(*results)
    assert len(results[0].metrics()) == 4


class SiteGrid(LocalGrid):
    """Nodes 100, 101, ... with configurations of their own, as hospitals have them."""

    def __init__(self, configs: list[dict]):
        self.nodes = {100 + number: number for number in range(len(configs))}
        self.configs = configs
        self.app = build_client_app(own_site)
        self.tamper = lambda client, round, answer: answer
        TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
        self.asked = []

    def config_of(self, node: int) -> dict:
        return self.configs[self.nodes[node]]


def run_sites(flags: list[str], configs: list[dict]) -> None:
    torch.set_num_threads(1)
    flags = [*flags, "--engine", "sites"]
    run = open_run(args_parser(flags), flags)
    try:
        serve_sites(run, SiteGrid(configs))
    finally:
        run.close()


def test_volumes_at_sites_of_their_own_have_the_bits_of_the_loop(tmp_path):
    prepared = write_prepared(tmp_path / "volumes", 12, patients=True)
    common = [*TINY, "--rounds", "3", "--num_users", "3", "--relation_min_samples", "5"]
    flags = [*common, "--volumes", str(prepared)]
    check(train_main(tmp_path / "loop", *flags))

    args = args_parser(flags)
    tables, _ = read_sets(args)
    lists = {name: tmp_path / f"{name}.csv" for name in tables}
    for name, table in tables.items():
        write_volumes(lists[name], table)
    dealt = deal_volumes(args, tables["train"])
    configs = []
    for client, rows in enumerate(dealt.clients):
        csv = tmp_path / f"site_{client}.csv"
        write_volumes(csv, tables["train"].select(rows))
        config = {"partition-id": client, "labeled": client in dealt.labelled, "csv": str(csv)}
        config |= {"volumes": str(prepared), "memory": str(tmp_path / f"memory_{client}")}
        configs.append(config | {"gpu": "cpu", "relation-min-samples": 5})
    sets = [f"--csv_file_{name}={lists[name]}" for name in ("val", "test") if name in lists]
    run_sites([*flags, *sets, "--run_dir", str(tmp_path / "sites")], configs)
    loop, sites = Result(tmp_path / "loop"), Result(tmp_path / "sites")
    mine, theirs = loop.state(3), sites.state(3)
    assert all(torch.equal(value, theirs["weights"][k]) for k, value in mine["weights"].items())
    assert loop.metrics() == sites.metrics()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"volumes": None}, "--node-config: volumes is missing"),
        ({"labeled": True}, "volume v0 has no label and stands at a site with labels"),
        ({}, "the classes are background, front, back, the server's are background, tumour"),
        (
            {"labeled": 0},
            "prepared with spacing 1.0 1.0 1.0, the server's volumes with 1.0 1.0 3.0",
        ),
    ],
)
def test_a_site_that_does_not_fit_says_why(tmp_path, changes, words):
    prepared = write_prepared(tmp_path / "volumes", 4)
    table = read_volumes(prepared / "volumes.csv")
    table.counts[0] = 0
    write_volumes(prepared / "volumes.csv", table)
    config = {"partition-id": 0, "labeled": False, "volumes": str(prepared)}
    config |= {"memory": str(tmp_path / "memory")} | changes
    config = {key: value for key, value in config.items() if value is not None}
    args = args_parser([*TINY, "--volumes", str(prepared), "--relation_min_samples", "5"])
    names = ["background", "tumour"] if not changes else list(table.class_names)
    servers = {"channels": 1, "modality": "mr", "ct_window": [-200.0, 300.0]}
    servers |= {"spacing": [1.0, 1.0, 3.0]}
    told = {"flags": pack_flags(args), "class_names": names}
    task = ConfigRecord(told | {"volumes": json.dumps(servers)})
    with pytest.raises(UserError, match=words):
        own_site(Context(0, 1, config, RecordDict(), {}), task)


def test_a_sites_error_stays_in_its_own_log(tmp_path):
    """Of whoever fails the server learns the kind alone: the words name files and images."""
    args = args_parser([*TINY, "--volumes", "unread", "--relation_min_samples", "5"])
    told = {"flags": pack_flags(args), "class_names": ["background", "tumour"], "volumes": "{}"}
    task = ConfigRecord(told)
    config = {"partition-id": 0, "labeled": True, "memory": str(tmp_path / "memory")}
    config |= {"volumes": str(tmp_path / "Doe_Jane")}
    asked = Message(RecordDict({"task": task}), 0, MessageType.QUERY)
    with pytest.raises(RuntimeError) as failed:
        client_app(asked, Context(0, 1, config, RecordDict(), {}))
    assert str(failed.value) == "UserError: the site's own log has more"
    assert "Doe_Jane" in str(failed.value.__cause__)
