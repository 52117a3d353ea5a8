"""The claims about size and cost: exact numbers of the runs, without an interval."""

from collections.abc import Callable, Mapping, Sequence

from amc_lightning.paper.claim_finding import Finding, Part, Side, Verdict, not_measured
from amc_lightning.paper.claim_list import Claim
from amc_lightning.paper.claim_rows import missing_of, runs_of, seeds_of
from amc_lightning.paper.paired import Interval
from amc_lightning.paper.runs import Run
from amc_lightning.paper.table_notes import epochs_text
from amc_lightning.paper.trained import Systems


def same_size(systems: Systems, claim: Claim) -> Finding:
    """Reckon the weights of the network that a system deploys over those of the reference: exactly 1."""
    names = [claim.text("system"), claim.text("reference")]
    if absent := missing_of(systems, names):
        return not_measured(absent)
    seeds = seeds_of(systems, names)
    sizes = [{_run(systems, name, seed, names).results.num_parameters for seed in seeds} for name in names]
    lacking = [f"{name} (weights)" for name, found in zip(names, sizes, strict=True) if None in found]
    if lacking:
        return not_measured(lacking, seeds)
    # Several sizes among the seeds of one system: the largest deployed is set against the smallest reference.
    deployed, reference = max(size or 0 for size in sizes[0]), min(size or 0 for size in sizes[1])
    verdict: Verdict = "holds" if deployed == reference else "fails"
    words = f"one network of {deployed:,} weights against {reference:,}; by construction: a cascade trains one network"
    ratio = deployed / max(1, reference)
    return Finding((_exact("", ratio, verdict),), verdict, unit="ratio", seeds=seeds, words=words)


def cheaper(systems: Systems, claim: Claim) -> Finding:
    """Reckon the passes of hardening by a cascade over those of training from scratch for every attack: below 1.

    Both with M0 given, as where a trained model is hardened, and with M0 counted for the cascade too; the claim needs
    both.
    """
    system, rivals = claim.text("system"), claim.texts("rivals")
    names = [system, *rivals]
    if absent := missing_of(systems, names):
        return not_measured(absent)
    seeds = seeds_of(systems, names)
    own = [_run(systems, system, seed, names) for seed in seeds]
    others = [_run(systems, name, seed, names) for seed in seeds for name in rivals]
    if not all(run.first.steps for run in (*own, *others)):
        return not_measured(["M0's training (a run began from given weights)"], seeds)
    (passes, minutes), (first, first_minutes) = _cost(own, len(seeds), first=False), _cost(own, len(seeds), first=True)
    stages, m0 = _cost(others, len(seeds), first=False), _cost(others, len(seeds), first=True)
    against, clock = stages[0] + m0[0], stages[1] + m0[1]
    side = Side(above=False, bound=1.0)
    parts = []
    for name, own_passes in (("M0 counted for AMC too", passes + first), ("on top of a trained M0", passes)):
        ratio = own_passes / against if against else float("inf")
        parts.append(_exact(name, ratio, side.verdict(Interval(ratio, ratio, ratio))))
    words = (
        f"{passes:,.0f} passes ({minutes:.1f} minutes), with M0 {passes + first:,.0f} ({minutes + first_minutes:.1f}), "
        f"against {against:,.0f} ({clock:.1f} minutes); {_construction(own, others)}"
    )
    return Finding(tuple(parts), parts[0].verdict, unit="ratio", seeds=seeds, words=words)


def _cost(runs: Sequence[Run], seeds: int, *, first: bool) -> tuple[float, float]:
    """Return passes and minutes of M0 or of the stages after it, summed over runs, averaged over seeds."""
    stages = [stage for run in runs for stage in run.results.stages if (stage.index == 0) == first]
    return sum(stage.passes_per_image for stage in stages) / seeds, sum(stage.minutes for stage in stages) / seeds


def _construction(own: Sequence[Run], others: Sequence[Run]) -> str:
    """Say how far the ratio was settled before anything was trained."""
    mine, theirs = ({stage.epochs for run in runs for stage in run.results.stages[1:]} for runs in (own, others))
    if mine == theirs and len(mine) == 1:
        return f"largely by construction: {epochs_text(mine)} in each stage of both"
    return f"largely by construction: {epochs_text(mine)} a stage of AMC, {epochs_text(theirs)} of AT"


def _run(systems: Systems, system: str, seed: int, near: Sequence[str]) -> Run:
    return runs_of(systems, system, seed, near=near)[0]


def _exact(name: str, value: float, verdict: Verdict) -> Part:
    return Part(name, Interval(value, value, value), verdict)


COST_KINDS: Mapping[str, Callable[[Systems, Claim], Finding]] = {"same_size": same_size, "cheaper": cheaper}
