"""Sentences on a sweep that its Markdown summary and its console table share."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from amc_lightning.report import wording
from amc_lightning.report.sweep_comparison import LEAST_SEEDS, Choice
from amc_lightning.report.sweep_record import Entry, OrderRow, order_text

WHAT_TO_DO = (
    "No job that finished is lost. Correct a setting if a message names one, then run the same command again: finished "
    "stages are kept, and only what is missing is done."
)


def counted(entries: Sequence[Entry]) -> str:
    """Say how many jobs ended how: "3 of 24 jobs have ended: 2 finished, 1 failed"."""
    failed = sum(entry.job.exit_status != 0 for entry in entries)
    totals = [entry.job.total for entry in entries if entry.job.total is not None]
    count = max([len(entries), *totals])
    jobs = "1 job" if count == 1 else f"{count} jobs"
    ended = jobs if count == len(entries) else f"{len(entries)} of {jobs} have ended"
    return f"{ended}: {len(entries) - failed} finished, {failed} failed"


def choice_text(choice: Choice) -> list[str]:
    """Say which order validation chooses, how far behind the next one is, and whether that can be told apart."""
    (best, lowest), (second, _) = choice.ranked[:2]
    where = f"With {choice.settings}: best" if choice.settings else "Best"
    over = "seed" if len(choice.seeds) == 1 else "mean over the seeds"
    seeds = f"{over} {', '.join(map(str, choice.seeds))}"
    text = [
        f"{where} of {len(choice.ranked)} orders of {', '.join(choice.attacks)}: {order_text(best.order)}, with "
        f"{wording.percent(lowest)} % validation error ({seeds}). Runner-up: {order_text(second.order)}, "
        f"{choice.gap:.1f} points behind."
    ]
    if choice.resolution is None:
        text.append("How many points the validation images resolve is not known, as no attack was evaluated.")
    elif choice.is_resolved:
        text.append(
            f"That is more than the {choice.resolution:.1f} points that {choice.rows} attacked validation images can "
            "resolve (half a 95 % interval)."
        )
    else:
        text.append(
            f"That is no more than the {choice.resolution:.1f} points that {choice.rows} attacked validation images "
            "can resolve (half a 95 % interval): this sweep does not show that the one order is better than the other."
        )
        if len(choice.ranked) > 2:
            text.append(f"{choice.close} of the {len(choice.ranked)} orders lie that close to the best.")
    return text


def choosing() -> str:
    """Say what an order is chosen by, and what it is not."""
    return (
        "Chosen by the validation split alone: the mean of the clean error and of the error under each attack of the "
        "order, after the last validation of the last stage. The attack and test splits, which every other number here "
        "comes from, choose nothing. Only orders of the same attacks, with the same settings and seeds, are compared. "
        "The lowest of many numbers is lower than it deserves; the errors of that order on the other splits are not."
    )


def nothing_to_choose(rows: Sequence[OrderRow]) -> str:
    """Say why no order is chosen."""
    if len({(row.settings, row.order) for row in rows}) < 2:
        return "Fewer than two orders have been measured: there is nothing to choose from."
    return (
        "No order is chosen: no two orders of the same attacks, with the same settings and a seed in common, have been "
        "validated under attack."
    )


def seeds_warning(count: int) -> str:
    """Say that a spread over few seeds means little; empty where there are enough."""
    if count >= LEAST_SEEDS:
        return ""
    return f"With fewer than {LEAST_SEEDS} seeds, a spread means little."


def attacker_seed(rows: Sequence[OrderRow]) -> str:
    """Say that a spread over seeds is none over attackers; empty where nothing was measured under a black box."""
    runs = [entry.results for row in rows for entry in row.by_seed.values()]
    if not any(run is not None and run.interfaces for run in runs):
        return ""
    return (
        "Under a black-box threat model P'' has one seed (evaluation.seed) whatever the seed of the run: this spread "
        "leaves out the attacker's, how much errors vary with the training of P''."
    )


def notes(entries: Sequence[Entry]) -> Iterator[str]:
    """Yield what the columns are, each sentence once; jobs that were measured differently have one each."""
    shown = [
        replace(entry.results, order=(), stages=entry.results.stages[-1:])
        for entry in entries
        if entry.results is not None
    ]
    primaries = dict.fromkeys(results.primary for results in shown)
    if list(primaries) != [wording.WHITE_BOX]:
        yield f"Errors are those under {' or '.join(primaries)}, the first threat model that a job was measured under."
    for say in (wording.splits, wording.strengths, wording.summaries):
        yield from dict.fromkeys(text for results in shown if (text := say(results)))
