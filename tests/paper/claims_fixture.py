"""Run folders made by hand for the claims: which rows each system got wrong is written as a pattern."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from amc_lightning.paper.claim_list import read_claims
from amc_lightning.paper.claims import check_claims
from amc_lightning.paper.runs import Run, Runs
from amc_lightning.report.record import Dataset, Evaluation, Rate, Results, Squeezing, Stage

N, N_TEST = 1000, 2000
ATTACKS = ("fgsm", "eap", "pgm", "vap")
WHITE_BOX = "white_box"
ADAPTIVE, POST_HOC = "squeezed/bit_depth_1/adaptive", "squeezed/bit_depth_1/post_hoc"
CLAIMS = read_claims()
LABELS = {"labels/attack": np.arange(N) % 10, "labels/test": np.arange(N_TEST) % 10}


def wrong(count: int, *, n: int = N, start: int = 0) -> np.ndarray:
    """The first ``count`` rows from ``start`` on wrong."""
    found = np.zeros(n, dtype=bool)
    found[start : start + count] = True
    return found


def rate(count: float, n: int = N) -> Rate:
    error = 100 * count / n
    return Rate(n=n, wrong=count, error=error, low=max(0.0, error - 2), high=min(100.0, error + 2))


def keys(
    stage: int,
    errors: dict[str, int],
    *,
    threat_model: str = "",
    strengths: tuple[str, ...] = ("paper", "check"),
    start: int = 0,
):
    """Arrays of one stage: by attack, how many rows it fools; "clean" on the test split; "eap" is within its radius."""
    place = f"{stage}/{threat_model}/" if threat_model else f"{stage}/"
    found: dict[str, Any] = {}
    for name, count in errors.items():
        if name == "clean":
            found[f"{place}clean/test/wrong"] = wrong(count, n=N_TEST)
            continue
        for strength in strengths:
            found[f"{place}{strength}/{name}/wrong"] = wrong(count, start=start)
            if name == "eap":
                found[f"{place}{strength}/eap/l1"] = np.full(N, 5.0, dtype=np.float32)
    return found


def stage(index: int, name: str, *, passes: float = 10.0, minutes: float = 1.0, evaluations: Any = None) -> Stage:
    return Stage(
        index=index,
        name=name,
        attack=None if index == 0 else name,
        epochs=1,
        steps=10,
        minutes=minutes,
        rows={},
        passes_per_image=passes,
        evaluations={} if evaluations is None else evaluations,
    )


def evaluation(errors: dict[str, int]) -> Evaluation:
    rates = {name: rate(count) for name, count in errors.items()}
    return Evaluation(clean=rate(10), paper=rates, check=rates)


def make_run(
    folder: Path,
    system: str,
    arrays: dict[str, Any],
    *,
    dataset: str = "mnist",
    seed: int = 0,
    order: tuple[str, ...] = ("fgsm",),
    stages: tuple[Stage, ...] | None = None,
    threat_models: tuple[str, ...] = (WHITE_BOX,),
    squeezings: dict[str, Squeezing] | None = None,
    limit: int | None = None,
    labels: dict[str, Any] | None = None,
    weights: int | None = None,
    shape: tuple[int, int, int] = (1, 28, 28),
    fingerprint: str = "",
) -> Run:
    """A run with a last stage for each attack of its order, and examples.npz with these arrays."""
    place = folder / f"{dataset}_{system}_{seed}"
    place.mkdir(parents=True)
    np.savez(place / "examples.npz", **{**(LABELS if labels is None else labels), **arrays})
    made = stages or (stage(0, "undefended"), *(stage(i, name) for i, name in enumerate(order, 1)))
    results = Results(
        experiment="",
        defence="amc",
        created="",
        status="finished",
        seed=seed,
        device="cpu",
        threads=1,
        versions={},
        commit=None,
        dataset=Dataset(
            name=dataset,
            verified=True,
            fingerprint=fingerprint,
            class_names=tuple("0123456789"),
            shape=shape,
            counts={"train": 20_000, "attack": N, "test": N_TEST, "validation": 0},
            counts_read={"train": 60_000, "test": 10_000},
            limit=limit,
        ),
        threat_model=threat_models[0],
        preset="paper",
        order=order,
        evaluated=ATTACKS,
        budget={"eap": ("l1", 10.0)},
        attacks={WHITE_BOX: {"paper": {"fgsm": {"eps": 0.1}}, "check": {"fgsm": {"eps": 0.1}}}},
        stages=made,
        threat_models=threat_models,
        squeezings=squeezings or {},
        num_parameters=weights,
    )
    return Run(system, results, place)


def adversarial(folder: Path, errors: dict[str, dict[str, int]], **kwargs: Any) -> list[Run]:
    """AT against each attack: by system, how many rows each attack fools; M0 is fooled on 900."""
    m0 = keys(0, {**dict.fromkeys(ATTACKS, 900), "clean": 20})
    return [make_run(folder, name, {**m0, **keys(1, found)}, **kwargs) for name, found in errors.items()]


def findings(runs: list[Run], name: str, *, resamples: int = 1000) -> Any:
    """The findings of one claim on the only dataset of the runs."""
    every = Runs(tuple(runs))
    (dataset,) = every.datasets
    claims = replace(CLAIMS, every=tuple(claim for claim in CLAIMS.every if claim.id == name))
    (found,) = check_claims(every.of(dataset), dataset, claims, resamples=resamples)
    return found.findings
