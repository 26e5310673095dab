"""How long the rounds that are left take, and whether a run is to end before its last one."""

import math
from argparse import Namespace
from collections.abc import Mapping, Sequence

import numpy as np

from record.rounds import is_scored
from server import Participant, Server
from utils.tables.log_lines import ENDED_BY

# What an image costs, in forward and backward passes of one view: benchmarks/RESULTS.md.
UNLABELED_COST = 1.4
EVALUATION_COST = 0.2
RECENT = 5  # rounds whose speed tells that of the next ones


def round_costs(
    args: Namespace, server: Server, clients: Sequence[Participant], evaluated: int
) -> list[float]:
    """What each round of the run costs beside the others; `evaluated`: images of an evaluation."""
    costs = []
    for round in range(args.rounds):
        cost = sum(
            client.num_samples * args.local_ep * _image_cost(args, client.labeled)
            for client in server.active(clients, round)
        )
        if is_scored(round, args):
            cost += EVALUATION_COST * evaluated
        costs.append(cost)
    return costs


def _image_cost(args: Namespace, labeled: bool) -> float:
    return args.labeled_views if labeled else UNLABELED_COST


def seconds_left(history: Sequence[Mapping], costs: Sequence[float]) -> float:
    """Seconds for the rounds after the last of `history`, at the speed of its last ones."""
    recent = [
        row["seconds_round"] / costs[row["round"]]
        for row in history[-RECENT:]
        if costs[row["round"]] > 0
    ]
    if not recent:
        return math.nan
    return float(np.median(recent)) * sum(costs[history[-1]["round"] + 1 :])


def duration(seconds: float) -> str:
    """A time for a reader: "45 s", "12 min", "3 h 05 min", "4 days 2 h"; "unknown" for NaN."""
    if math.isnan(seconds):
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02} min"
    return f"{hours // 24} days {hours % 24} h"


def round_line(history: Sequence[Mapping], costs: Sequence[float], last: bool) -> str:
    """How long the round took and how much time is left."""
    row = history[-1]
    line = f"round {row['round'] + 1} of {len(costs)}: {row['seconds_round']:.1f} s"
    return line if last else f"{line}, about {duration(seconds_left(history, costs))} left"


def reason_to_end(
    args: Namespace, history: Sequence[Mapping], round: int, headline: str
) -> str | None:
    """Why the run ends before `round`, None where it goes on.

    `--patience` counts the rounds since the best `headline` on the validation images, from the
    round on in which the unlabelled clients join: before it nothing of theirs has been tried.
    """
    if args.finish:
        return f"--finish: ended after {round} of {args.rounds} rounds"
    if not args.patience:
        return None
    scored = {
        row["round"]: row[f"val_{headline}"]
        for row in history
        if row["round"] * args.local_ep > args.join_epoch
        and not math.isnan(row.get(f"val_{headline}", math.nan))
    }
    if not scored:
        return None
    best = max(scored, key=scored.get)
    if max(scored) - best < args.patience:
        return None
    return (
        f"{ENDED_BY} {args.patience}: ended after {round} of {args.rounds} rounds, the best "
        f"{headline} on the validation images, {scored[best]:.4f}, was in round {best}"
    )
