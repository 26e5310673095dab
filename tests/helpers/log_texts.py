"""Logs as train_main.py words them, made up."""

import argparse

from utils.tables.log_lines import (
    CLIENT_RULE,
    NOTE_MARK,
    begin_round_lines,
    client_line,
    evaluation_line,
    loss_line,
    namespace_line,
    training_size_line,
)


def stamp(seconds: float) -> str:
    """A time of day as the logger writes it; counts on over midnight."""
    minutes, seconds = divmod(seconds % 86400, 60)
    return f"[{int(minutes) // 60:02d}:{int(minutes) % 60:02d}:{seconds:06.3f}] "


def write_run(
    seed: int = 1,
    rounds: range = range(3),
    start: float = 36000.0,
    auroc: float = 0.6,
    labeled: int = 2,
    unlabeled: int = 2,
    full: bool = False,
    **flags: object,
) -> str:
    """A whole log as train_main.py words it: 10 s per labelled, 30 s per unlabelled client."""
    args = argparse.Namespace(
        num_labeled=labeled, num_unlabeled=unlabeled, rounds=3, seed=seed, **flags
    )
    clock = start
    text = stamp(clock) + namespace_line(args) + "\n" + stamp(clock) + training_size_line(99) + "\n"
    text += f"{stamp(clock)}{NOTE_MARK}clients: by site\n{NOTE_MARK}Supervised Client: 7 # 2\n"
    for number in rounds:
        text += stamp(clock) + begin_round_lines(number) + "\n"
        for client in range(labeled + unlabeled):
            text += stamp(clock) + client_line(client, client < labeled) + "\n"
            text += stamp(clock) + CLIENT_RULE + "\n"
            clock += 10 if client < labeled else 30
        text += stamp(clock) + loss_line(1 / (number + 1), number, 2e-4) + "\n"
        clock += 5
        more = (0.4, 0.9) if full else ()
        text += stamp(clock) + evaluation_line(auroc + number / 100, 0.8, 0.5, *more) + "\n"
    return text


def only(runs):
    (run,) = runs
    return run
