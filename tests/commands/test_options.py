"""Flags and presets: the table of disagreements, what beats what, and what is refused."""

import ast
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

import confuse_matrix
import options
import robust
from dataloaders.phantom.embedded import name_embedded_data
from options import (
    FREE_ON_RESUME,
    PRESETS,
    RANGES,
    args_parser,
    build_parser,
    explicit_flags,
    needs_embedded_data,
)
from record.opening import differences, plain_args, resumed_args
from tests.helpers import PROJECT
from utils.errors import UserError

DATA = ["--root_path", "images", "--csv_file_train", "a.csv", "--csv_file_test", "c.csv"]


def parse(*flags: str):
    return args_parser([*DATA, *flags])


def flag_names() -> list[str]:
    return [action.dest for action in build_parser()._actions if action.dest != "help"]


def refused(*flags: str) -> str:
    with pytest.raises(UserError) as error:
        args_parser(list(flags))
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- the names and defaults to keep


def test_defaults_are_the_slides():
    args = parse()
    expected = {
        "batch_size": 48,
        "drop_rate": 0.2,
        "ema_consistency": 1,
        "base_lr": 1e-3,
        "deterministic": 1,
        "seed": 1337,
        "gpu": "0,1",
        "local_ep": 2,
        "num_users": 10,
        "rounds": 200,
        "resume": None,
        "start_epoch": 0,
        "global_step": 0,
        "label_uncertainty": "U-Ones",
        "ema_decay": 0.99,
        "consistency": 1,
        "consistency_rampup": 30,
        "num_labeled": 2,
        "threshold": 0.4,
    }
    assert {name: getattr(args, name) for name in expected} == expected
    assert args.preset == "slides" and PRESETS["slides"] == {}
    assert isinstance(args.drop_rate, float)


# ---- the table of disagreements: flag -> (paper, code, slides)

TABLE = {
    "rounds": (100, 200, 200),
    "local_ep": (1, 1, 2),
    "batch_size": (48, 48, 48),
    "labeled_lr_late": (0.0, 3e-4, 3e-4),
    "base_lr": (2e-4, 2e-4, 1e-3),
    "unlabeled_lr": (0.0, 0.0, 0.0),
    "adam_beta1": (0.9, 0.9, 0.9),
    "adam_beta2": (0.99, 0.999, 0.999),
    "weight_decay": (5e-4, 5e-4, 5e-4),
    "label_smoothing": (0.0, 0.1, 0.0),
    "labeled_views": (1, 2, 1),
    "labeled_matrix": ("dataset", "batches", "batches"),
    "absent_class": ("skip", "uniform", "uniform"),
    "temperature": (2.0, 2.0, 2.0),
    "mc_passes": (8, 11, 11),
    "mc_average": ("probabilities", "logits", "logits"),
    "entropy_threshold": (math.log(2), 2.0, 2.0),
    "confidence_threshold": (0.0, 0.3, 0.3),
    "unlabeled_matrix": ("probabilities", "logits", "logits"),
    "consistency_norm": ("batch", "flag", "flag"),
    "relation_scale": (1.0, 0.5, 0.5),
    "relation_distance": ("kl", "kl", "kl"),
    "unsupervised_weight": (1.0, 15.0, 15.0),
    "consistency_rampup": (30, 30, 30),
    "rampup_power": (1, 2, 2),
    "rampup_clock": ("round", "epoch", "epoch"),
    "join_epoch": (-1, 20, 20),
    "labeled_stop": (0, 200, 200),
    "stopped_clients": ("average", "average", "average"),
    "fedavg_weights": ("size", "equal", "equal"),
    "labeled_weight": (1.0, 1.0, 1.0),
    "head_bias": ("uniform", "zero", "zero"),
    "eval_every": (1, 10, 1),
    "eval_at": ("last", "first", "last"),
    "drop_rate": (0.2, 0.2, 0.2),
    "ema_decay": (0.99, 0.99, 0.99),
    "ema_consistency": (1, 1, 1),
    "bn_updates": ("once", "every_pass", "every_pass"),
    "image_size": (224, 224, 224),
    "degrees": (10.0, 10.0, 10.0),
    "translate": (0.02, 0.02, 0.02),
    "flip": (0.5, 0.5, 0.5),
    "pretrained": (1, 1, 1),
    "threshold": (0.4, 0.4, 0.4),
    "method": ("fedirm", "fedirm", "fedirm"),
}


@pytest.mark.parametrize(
    ("preset", "column"), [("paper", 0), ("paper-skin", 0), ("official", 1), ("slides", 2)]
)
def test_presets_decide_the_table(preset, column):
    args = parse("--preset", preset)
    expected = {name: values[column] for name, values in TABLE.items()}
    assert {name: getattr(args, name) for name in TABLE} == expected


def test_revised_slides():
    ours, slides = (vars(parse("--preset", name)) for name in ("slides-revised", "slides"))
    changed = {name: ours[name] for name in ours if ours[name] != slides[name]}
    assert changed == {"preset": "slides-revised", "rounds": 100, "local_ep": 1, "batch_size": 5}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_set_flags_that_exist_within_their_ranges(preset):
    assert set(PRESETS[preset]) <= set(flag_names())
    volumes = ["--volumes", "volumes"] if "unet3d" in PRESETS[preset].values() else []
    args = parse("--preset", preset, *volumes)
    for name, value in PRESETS[preset].items():
        assert getattr(args, name) == value
    json.dumps(plain_args(args))


def test_choices_are_those_of_the_rooms_that_implement_them():
    assert options.DISTANCES == confuse_matrix.DISTANCES
    assert tuple(robust.AGGREGATES) == options.AGGREGATES


def test_help_shows_the_chosen_presets_values(capsys):
    with pytest.raises(SystemExit):
        args_parser(["--preset", "paper", "--help"])
    assert "stochastic forward passes (default: 8)" in " ".join(capsys.readouterr().out.split())


def test_flags_are_read_without_pytorch():
    heavy = "{'torch', 'numpy', 'pandas', 'networks', 'dataloaders'}"
    code = f"import sys, options; print({heavy} & sys.modules.keys())"
    ran = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert ran.stdout.strip() == "set()", ran.stderr


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("train_main.py", "--round", "5"), "did you mean --rounds?"),
        (("test.py", "--resume", "r", "--treshold", "0.4"), "did you mean --threshold?"),
        (("reproduce.py", "table9"), "invalid choice: 'table9'"),
    ],
)
def test_a_mistyped_flag_is_answered_before_pytorch_is_loaded(words, answer):
    command = [sys.executable, "-X", "importtime", *words]
    ran = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert ran.returncode == 2 and answer in ran.stderr.splitlines()[-1]
    assert "torch" not in ran.stderr


def test_a_flag_beats_the_preset_and_the_preset_the_default():
    args = parse("--preset", "paper", "--mc_passes", "5", "--base_lr", "0.001")
    assert (args.mc_passes, args.base_lr, args.local_ep) == (5, 1e-3, 1)
    assert parse("--mc_passes", "11", "--preset", "paper").mc_passes == 11
    assert parse().mc_passes == 11  # a preset leaves nothing behind


def test_explicit_flags_are_the_typed_ones():
    assert explicit_flags(["--preset", "paper", "--rounds", "200"]) == {
        "preset": "paper",
        "rounds": 200,
    }
    assert explicit_flags([]) == {}


# ---- every flag is read


def test_every_flag_is_read_somewhere():
    read = set()
    for path in PROJECT.glob("**/*.py"):
        inside = path.relative_to(PROJECT).parts
        if inside[0] in ("tests", "benchmarks", ".venv") or inside == ("options.py",):
            continue
        source = path.read_text()
        if "ArgumentParser(" in source:  # a command of its own with flags of its own
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("args"):
                read.add(node.attr)
    assert sorted(set(flag_names()) - read - {"args_from"}) == []  # which options.py reads itself


def test_every_flag_has_help():
    for action in build_parser()._actions:
        assert action.help


# ---- what is refused


@pytest.mark.parametrize("name", sorted(RANGES))
def test_out_of_range_is_one_line(name):
    low, high = RANGES[name]
    step = 1 if isinstance(parse_default(name), int) else 1e-3
    for value in (low - step, high + max(step, high * 1e-3)):
        value = int(value) if isinstance(parse_default(name), int) else value
        message = refused(*DATA, f"--{name}={value}")
        assert message.startswith(f"--{name} "), message
        assert str(low) in message and str(high) in message
    if not isinstance(parse_default(name), int):
        assert f"--{name} nan" in refused(*DATA, f"--{name}", "nan")


def parse_default(name):
    value = getattr(parse(), name)
    return 0 if value is None else value


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--no_such_flag", "1"], "no_such_flag"),
        (["--round", "5"], "--round"),  # no abbreviations: they change meaning as flags are added
        (["--rounds", "many"], "--rounds"),
        (["--preset", "nature"], "--preset"),
        (["--method", "fedprox"], "--method"),
        (["--num_labeled", "0"], "--num_labeled 0: nobody would learn"),
        (["--num_users", "3", "--num_labeled", "4"], "more than --num_users 3"),
        (["--num_labeled", "2", "--num_unlabeled", "9"], "more than --num_users 10"),
        (["--start_epoch", "200"], "--start_epoch 200: must be below --rounds 200"),
        (["--rampup_power", "3"], "--rampup_power"),
        (["--labeled_ids", "1", "--labeled_fraction", "0.5"], "--labeled_ids: with"),
        (["--labeled_volumes", "4"], "--labeled_volumes: of volumes"),
    ],
)
def test_mistakes_are_one_line(flags, message):
    assert message in refused(*DATA, *flags)


@pytest.mark.parametrize("missing", ["root_path", "csv_file_train", "csv_file_test"])
def test_data_must_be_named(missing):
    kept = [
        part
        for flag, value in zip(DATA[::2], DATA[1::2], strict=True)
        if flag != f"--{missing}"
        for part in (flag, value)
    ]
    for preset in ("slides", "demo"):  # a preset's own data is used where no data are named
        message = refused("--preset", preset, *kept)
        assert message.startswith(f"--{missing} is missing") and "--preset demo" in message


def test_embedded_data_where_none_are_named(tmp_path):
    assert needs_embedded_data(args_parser(["--preset", "demo"]))
    assert not needs_embedded_data(parse("--preset", "demo"))
    assert not needs_embedded_data(args_parser(["--preset", "demo", "--medmnist", "blood.npz"]))
    weights = tmp_path / "weights.pth"
    assert refused("--resume", str(weights)) == f"--resume {weights}: no such run folder or " + (
        "checkpoint"
    )
    weights.touch()
    assert "--root_path is missing" in refused("--resume", str(weights))
    assert "--dry_run" in refused("--preset", "demo", "--dry_run")


def test_a_run_that_goes_on_makes_its_embedded_data_again(tmp_path):
    args = args_parser(["--preset", "demo", "--phantom_patients", "40"])
    name_embedded_data(args)
    (tmp_path / "args.json").write_text(json.dumps(plain_args(args)))

    def resumed(*flags: str):
        flags = ["--resume", str(tmp_path), *flags]
        return resumed_args(args_parser(flags), flags)

    assert needs_embedded_data(resumed())
    assert resumed().csv_file_test == args.csv_file_test
    assert not needs_embedded_data(resumed("--root_path", "elsewhere"))


# ---- going on


def test_flags_that_may_change_when_a_run_goes_on():
    assert set(flag_names()) >= FREE_ON_RESUME
    computed = {"preset", "seed", "batch_size", "base_lr", "local_ep", "method", "drop_rate"}
    assert not computed & FREE_ON_RESUME
    before = vars(parse())
    assert (
        differences(vars(parse("--rounds", "300", "--gpu", "cpu", "--progress", "0")), before) == ""
    )
    changed = differences({"seed": 1, "batch_size": 48, "mc_passes": 3}, before)
    assert changed == "--seed 1 (was 1337), --mc_passes 3 (was 11)"


def test_a_client_on_flower_is_not_compiled():
    for engine in ("flower", "sites"):
        with pytest.raises(UserError, match=f"--compile on: clients of --engine {engine} train"):
            args_parser(["--preset", "demo", "--engine", engine, "--compile", "on"])


def write_split(tmp_path, labelled=(0, 1)):
    path = tmp_path / "split.json"
    held = {"format": 1, "csv": "t.csv", "how": "iid", "seed": 1, "labelled_clients": labelled}
    path.write_text(json.dumps(held | {"clients": [["a"], ["b"], ["c"], ["d"]]}))
    return str(path)


def test_a_split_says_how_many_clients_there_are_and_who_has_labels(tmp_path):
    path = write_split(tmp_path, (1, 3))
    base = ["--medmnist", "x.npz", "--split", path]
    args = args_parser(base)
    assert (args.num_users, args.num_labeled, args.labeled_ids) == (4, 2, [1, 3])
    args = args_parser([*base, "--num_labeled", "3", "--num_users", "4"])
    assert (args.num_labeled, args.labeled_ids) == (3, [0, 1, 2])
    assert args_parser([*base, "--labeled_ids", "2"]).num_labeled == 1
    # Of another run: its split and who has labels there, unless another split is typed.
    (tmp_path / "run").mkdir()
    first = args_parser([*base, "--labeled_ids", "2"])
    (tmp_path / "run" / "args.json").write_text(json.dumps(plain_args(first)))
    again = ["--args_from", str(tmp_path / "run")]
    assert args_parser(again).labeled_ids == [2]
    (tmp_path / "other").mkdir()
    other = write_split(tmp_path / "other", (2, 0, 0))
    assert args_parser([*again, "--split", other]).labeled_ids == [0, 2]
    sites = [
        "--engine",
        "sites",
        "--root_path",
        "a",
        "--csv_file_test",
        "b",
        "--split",
        "none.json",
    ]
    assert args_parser(sites).num_users == 10  # the server deals nothing
    for flags, words in (
        ("--num_users 5", "--num_users 5: .*split.json has 4 clients"),
        ("--partition dirichlet", "--partition: --split says who holds what"),
        ("--labeled_fraction 0.5", "--labeled_fraction: --split says who holds what"),
    ):
        with pytest.raises(UserError, match=words):
            args_parser([*base, *flags.split()])
    with pytest.raises(UserError, match="a run's folder; give .*split.json"):
        args_parser([*base[:-1], str(tmp_path)])


def test_flags_of_another_run_are_fed_back_and_typed_ones_win(tmp_path):
    typed = ["--preset", "paper", "--medmnist", "x.npz", "--rounds", "7", "--batch_size", "6"]
    first = args_parser(typed)
    (tmp_path / "args.json").write_text(json.dumps(plain_args(first)))
    again = args_parser(["--args_from", str(tmp_path)])
    assert plain_args(again) == plain_args(first) and again.medmnist == Path("x.npz")
    changed = args_parser(["--args_from", str(tmp_path / "args.json"), "--rounds", "9"])
    assert (changed.rounds, changed.batch_size, changed.preset) == (9, 6, "paper")
    with pytest.raises(UserError, match="--preset slides: --args_from has every flag of that run"):
        args_parser(["--args_from", str(tmp_path), "--preset", "slides"])
    (tmp_path / "args.json").write_text('{"no_such_flag": 1}')
    with pytest.raises(UserError, match="this version has no --no_such_flag"):
        args_parser(["--args_from", str(tmp_path)])
    with pytest.raises(UserError, match="args.json: no such file; give --args_from a run"):
        args_parser(["--args_from", str(tmp_path / "nowhere" / "args.json")])
