"""Log files back into runs, by utils/tables/log_reader.py and log_lines.py."""

import math

import pytest

from options import FREE_ON_RESUME
from tests.helpers.log_texts import only, write_run
from utils.tables.log_lines import (
    CLIENT_RULE,
    NOTE_MARK,
    SIDE_BY_SIDE,
    begin_round_lines,
    client_line,
    evaluation_line,
    loss_line,
    training_size_line,
)
from utils.tables.log_reader import parse_log, parse_namespace

SAMPLE = """Begin: com_round = 94

[14:04:15.974] Supervised Client: 0
[14:04:15.974] --
[14:04:47.034] Semi-Supervised Client: 2
[14:04:47.034] --
[14:08:55.883] Loss Avg: 0.158969905116299, Common Round: 94, LR: 0.001
[14:09:00.894] TEST AUROC: 0.561466, TEST Accus: 0.630000, F1: 0.571264
"""


def test_lines_are_worded_as_in_the_published_log():
    lines = [
        begin_round_lines(94).strip(),
        client_line(0, labeled=True),
        CLIENT_RULE,
        client_line(2, labeled=False),
        CLIENT_RULE,
        loss_line(0.158969905116299, 94, 0.001),
        evaluation_line(0.561466, 0.63, 0.571264),
    ]
    published = [line[15:] if line[:1] == "[" else line for line in SAMPLE.splitlines() if line]
    assert lines == published
    assert training_size_line(6500) == "Training Data Size: 6500"
    assert evaluation_line(0.5, 0.25, 1, 0.125, 0) == (
        "TEST AUROC: 0.500000, TEST Accus: 0.250000, F1: 1.000000, "
        "TEST Senss: 0.125000, TEST Specs: 0.000000"
    )


def test_the_published_sample():
    run = only(parse_log(SAMPLE))
    (entry,) = run.finished_rounds()
    assert (entry.number, entry.loss, entry.learning_rate) == (94, 0.158969905116299, 0.001)
    assert (entry.labeled_clients, entry.unlabeled_clients) == ([0], [2])
    assert entry.metrics == {"test_auroc": 0.561466, "test_accuracy": 0.63, "test_f1": 0.571264}
    # Client 1's line is missing after client 0, so client 0's seconds are unknown.
    assert entry.client_seconds == {2: pytest.approx(248.849)}
    assert run.wall_seconds == pytest.approx(284.920)
    assert (run.arguments, run.lines_not_understood, run.notes) == ({}, 0, [])


def test_seconds_of_a_last_client_that_cannot_be_the_last_are_not_counted():
    # Ten clients are announced, so clients 3 to 9 ran between client 2's line and the loss.
    run = only(parse_log("[14:04:15.000] Namespace(num_users=10)\n" + SAMPLE))
    assert run.rounds[94].client_seconds == {}


def test_round_trip_of_a_whole_run():
    run = only(parse_log(write_run(full=True, base_lr=1e-3, resume=None, gpu="0,1")))
    assert run.arguments == {
        "num_labeled": 2,
        "num_unlabeled": 2,
        "rounds": 3,
        "seed": 1,
        "base_lr": 0.001,
        "resume": None,
        "gpu": "0,1",
    }
    assert run.training_size == 99
    assert [entry.loss for entry in run.finished_rounds()] == [1.0, 0.5, 1 / 3]
    assert run.rounds[2].client_seconds == {0: 10, 1: 10, 2: 30, 3: 30}
    assert run.rounds[1].metrics == {
        "test_auroc": 0.61,
        "test_accuracy": 0.8,
        "test_f1": 0.5,
        "test_sensitivity": 0.4,
        "test_specificity": 0.9,
    }
    assert run.wall_seconds == 3 * (2 * 10 + 2 * 30 + 5)
    assert (run.lines_not_understood, run.notes) == (0, [])


def test_validation_metrics_are_kept_apart_and_nan_is_read_as_nan():
    text = SAMPLE + evaluation_line(0.7, 0.8, 0.9, split="VAL") + "\n"
    text += evaluation_line(0.4, 0.3, math.nan) + "\n"
    metrics = only(parse_log(text)).rounds[94].metrics
    assert (metrics["val_auroc"], metrics["test_auroc"]) == (0.7, 0.4)
    assert math.isnan(metrics["test_f1"])


@pytest.mark.parametrize(
    ("broken", "strange"),
    [
        (lambda text: text.replace("\n[", "["), 0),
        (lambda text: text.replace("\n", "\r\n"), 0),
        (lambda text: text.replace("\n\n", ""), 0),
        (lambda text: "".join(text.splitlines()) + "\n", 0),
        (lambda text: "epoch 3 of 9\n" + text.replace("--", "-- 7it/s", 1) + "Killed\n", 3),
    ],
    ids=["no break before stamps", "windows", "no empty lines", "one line", "foreign lines"],
)
def test_lost_line_breaks_and_foreign_lines_lose_no_number(broken, strange):
    intact, ragged = only(parse_log(write_run())), only(parse_log(broken(write_run())))
    assert ragged.lines_not_understood == strange
    assert ragged.rounds == intact.rounds
    assert ragged.arguments == intact.arguments
    assert ragged.wall_seconds == intact.wall_seconds


@pytest.mark.parametrize("cut", range(0, len(write_run(rounds=range(2))), 7))
def test_a_log_cut_anywhere_has_no_number_that_the_whole_log_lacks(cut):
    text = write_run(rounds=range(2))
    whole = only(parse_log(text))
    other = write_run(seed=2, start=50000.0)
    for ragged in (text[:cut], text[:cut] + other):
        for run in parse_log("\n" + ragged):
            if run.arguments.get("seed") == 2:
                assert run.rounds == only(parse_log(other)).rounds
                continue
            assert run.arguments.items() <= whole.arguments.items()
            for number, entry in run.rounds.items():
                known = whole.rounds[number]
                assert entry.loss in (None, known.loss)
                assert entry.learning_rate in (None, known.learning_rate)
                assert entry.metrics.items() <= known.metrics.items()
                assert entry.client_seconds.items() <= known.client_seconds.items()
                assert set(entry.labeled_clients) <= set(known.labeled_clients)


def test_several_runs_in_one_file_and_a_run_cut_off_between_them():
    first, second, third = write_run(seed=1), write_run(seed=2), write_run(seed=3, labeled=1)
    runs = parse_log(first + second[: second.index("Loss Avg")] + third)
    assert [run.arguments["seed"] for run in runs] == [1, 2, 3]
    assert [len(run.finished_rounds()) for run in runs] == [3, 0, 3]
    assert [run.wall_seconds for run in runs] == [255, 80, 225]


def test_clock_over_midnight():
    run = only(parse_log(write_run(start=86400 - 100.5)))
    assert run.wall_seconds == pytest.approx(255)
    assert run.rounds[1].client_seconds == {0: 10, 1: 10, 2: pytest.approx(30), 3: 30}


def test_clock_set_back_counts_nothing_and_says_so():
    text = "[10:00:00.000] Begin: com_round = 0\n[09:00:00.000] Supervised Client: 0\n"
    run = only(parse_log(text + "[09:00:07.000] Loss Avg: 1, Common Round: 0, LR: 1\n"))
    assert run.wall_seconds == 7
    assert run.notes == ["the clock was set back: the wall time is a lower bound"]


def test_clients_side_by_side_have_no_seconds_of_their_own():
    note = f"{NOTE_MARK}{SIDE_BY_SIDE}: 2 devices\n"
    text = write_run().replace(NOTE_MARK + "clients: by site\n", note, 1)
    assert only(parse_log(write_run())).rounds[0].client_seconds
    run = only(parse_log(text))
    assert all(not entry.client_seconds for entry in run.rounds.values())
    assert run.wall_seconds == 255


def test_a_cut_off_beginning_costs_no_finished_round():
    text = write_run(rounds=range(13))
    for end in ("Begin: com_round = 1Killed\n", "Begin: com_round = 1\n"):
        run = parse_log(text + end + write_run(seed=2))[0]
        assert (len(run.finished_rounds()), run.notes) == (13, [])


def test_metrics_of_a_round_without_a_number_belong_to_none():
    text = write_run(rounds=range(2))
    begin, loss = text.rindex("Begin"), text.rindex("[", 0, text.rindex("Loss Avg"))
    damaged = text[:begin] + text[begin:loss].partition("\n")[2] + text[text.rindex("TEST") :]
    run = only(parse_log(damaged))
    assert run.rounds[0].metrics["test_auroc"] == 0.6
    assert run.lines_not_understood == 1


def test_metrics_behind_other_words_are_not_the_rounds():
    text = write_run(rounds=range(2)) + "best round 7: " + evaluation_line(0.99, 0.99, 0.99) + "\n"
    run = only(parse_log(text))
    assert run.rounds[1].metrics["test_auroc"] == 0.61
    assert run.lines_not_understood == 1


def test_a_round_taken_again_leaves_the_clients_of_the_old_one_out():
    text = "Namespace(num_users=4)\n" + SAMPLE.replace("94", "3").replace(
        "Supervised Client: 0", ""
    )
    labeled = SAMPLE[: SAMPLE.index("[14:04:47")].replace("94", "5")
    labeled += "[14:08:55.883] Loss Avg: 0.1, Common Round: 5, LR: 0.001\n"
    again = "Begin: com_round = 5\n\n[15:00:00.000] Semi-Supervised Client: 2\n"
    run = only(parse_log(text + labeled + again))
    assert run.rounds[5].loss is None and run.rounds[5].unlabeled_clients == [2]


def test_lines_from_before_the_first_line_are_part_of_the_run():
    text = "[10:00:09.000] Namespace(seed=1)\n[10:00:01.000] decoding images\n"
    run = only(parse_log(text + "[10:00:12.000] Begin: com_round = 0\n"))
    assert (run.wall_seconds, run.notes, run.lines_not_understood) == (11, [], 1)


def test_a_resumed_run_is_one_run_and_its_later_rounds_count():
    before = write_run(rounds=range(3), auroc=0.6, resume=None)
    after = write_run(rounds=range(2, 4), auroc=0.7, start=80000.0, resume="runs/a")
    run = only(parse_log(before + after))
    assert sorted(run.rounds) == [0, 1, 2, 3]
    assert [run.rounds[number].metrics["test_auroc"] for number in range(4)] == [
        0.6,
        0.61,
        0.72,
        0.73,
    ]
    assert run.wall_seconds == 255 + 170
    assert run.notes == ["started again", "goes on from round 2: 1 earlier round(s) replaced"]
    assert run.arguments["resume"] is None


def test_a_run_that_went_on_elsewhere_and_longer_is_one_run():
    before = write_run(rounds=range(2), root_path="a", on_bad_client="stop")
    after = write_run(rounds=range(2, 5), start=80000.0, root_path="b", on_bad_client="skip")
    run = only(parse_log(before + after.replace("rounds=3", "rounds=5")))
    assert len(run.finished_rounds()) == run.arguments["rounds"] == 5


@pytest.mark.parametrize("flag", sorted(FREE_ON_RESUME - {"rounds"}))
def test_a_run_that_went_on_with_another_value_of_a_flag_that_is_free_is_one_run(flag):
    before = write_run(rounds=range(2), **{flag: "1"})
    after = write_run(rounds=range(2, 3), start=80000.0, **{flag: "2"})
    assert len(only(parse_log(before + after)).finished_rounds()) == 3
    others = write_run(rounds=range(2, 3), start=80000.0, base_lr="2")
    assert len(parse_log(write_run(rounds=range(2), base_lr="1") + others)) == 2


def test_a_run_repeated_from_its_first_round_is_another_run():
    runs = parse_log(write_run() + write_run(rounds=range(2)))
    assert [len(run.rounds) for run in runs] == [3, 2]


def test_a_run_without_first_line_after_another_has_unknown_arguments():
    text = write_run()
    second = text[text.index("\nBegin") :]
    runs = parse_log(text + second)
    assert [bool(run.arguments) for run in runs] == [True, False]
    assert runs[1].rounds == runs[0].rounds
    assert runs[1].notes == ["first line missing: arguments unknown"]


def test_rounds_without_begin_line_and_without_labelled_client():
    text = write_run(labeled=0, unlabeled=2)
    without = "".join(line for line in text.splitlines(True) if "Begin: com_round = 1" not in line)
    run = only(parse_log(without))
    assert sorted(run.rounds) == [0, 1, 2]
    assert (run.rounds[1].labeled_clients, run.rounds[1].unlabeled_clients) == ([], [0, 1])


def test_metrics_before_any_round_belong_to_none():
    run = only(parse_log("[10:00:00.000] Namespace(seed=1)\n" + evaluation_line(1, 1, 1) + "\n"))
    assert (run.rounds, run.lines_not_understood) == ({}, 1)


def test_wrapped_namespace_with_brackets_quotes_and_objects():
    text = (
        "Namespace(batch_size=48, base_l\n    r=0.001, name='a, (b)=c', wide=(1, [2, 3]),\n"
        "device=device(type='cuda', index=0), resume=None, quote=\"it's\") tail"
    )
    arguments, end, closed = parse_namespace(text)
    assert closed and text[end:] == " tail"
    assert arguments == {
        "batch_size": 48,
        "base_lr": 0.001,
        "name": "a, (b)=c",
        "wide": (1, [2, 3]),
        "device": "device(type='cuda', index=0)",
        "resume": None,
        "quote": "it's",
    }


def test_namespace_that_was_cut_off_keeps_whole_arguments_only():
    runs = parse_log("[10:00:00.000] Namespace(seed=1, rounds=20" + write_run(seed=3))
    assert runs[0].arguments == {"seed": 1}
    assert runs[0].notes == ["first line cut off: some arguments are missing"]
    assert runs[1].arguments["seed"] == 3
