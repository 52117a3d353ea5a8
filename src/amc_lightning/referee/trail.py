"""Is the evaluation behind a claim complete and repeatable? Unseen attacks, statistics, selection, artefacts."""

from collections.abc import Mapping
from typing import Any

import torch

from amc_lightning.attacks import load
from amc_lightning.metrics import wilson
from amc_lightning.referee.case import Case
from amc_lightning.referee.evidence import and_list, percent
from amc_lightning.referee.finding import Finding, Status, ended
from amc_lightning.referee.pipeline import tensor_hash
from amc_lightning.referee.provenance import hash_of_each
from amc_lightning.referee.record import evaluations_of, is_unbounded, strengths_of, strengths_set
from amc_lightning.referee.threat_model import NAMES
from amc_lightning.referee.unseen import unseen_errors
from amc_lightning.results import versions

MORE_HARM = 2.0
"""An unseen perturbation that does so many times the harm of the claim's own is worth a warning: this project's number,
as the list (E26) asks for a table only."""
ROWS = 1000
"""Images below which a difference of a few points is noise: the field's usual number (RobustBench, Carlini et al.)."""
SEEDS = 3
"""Seeds that a claim should rest on, for a mean and a spread."""
SHARED = 0.01
"""Share of rows that may be exact copies by chance: data sets hold a few images twice."""
ARTEFACTS = ("config", "seed", "versions", "examples", "command", "weights")
"""What makes a claim repeatable (Carlini et al., 2019, section 4.5)."""
QUANTILES = (0.1, 0.5, 0.9)


def unseen_attacks(case: Case) -> Finding:
    """E26: how the model fares outside its claim: moved images, noise, corruptions, the other two norms.

    Reference:
        Carlini et al., 2019, section 4.3; strengths and radii: ``unseen``.
    """
    n = min(len(case.x), case.level.curve_rows)
    case.progress(f"unseen attacks on {n} rows")
    seen = case.attempt(case.attack("pgd")).wrong[:n]
    clean = case.clean_wrong[:n]
    wrong = unseen_errors(case, n)
    errors = {name: percent(rows) for name, rows in wrong.items()}
    worst = max(errors, key=lambda name: errors[name])
    trained = case.provenance.trained_against
    base, own = percent(clean), percent(seen | clean)
    found = Finding(
        "E26",
        "unseen attacks measured",
        Status.PASS,
        f"Of {len(errors)} perturbations outside the claim {worst} does most: {errors[worst]:.1f} % of {n} rows are "
        f"wrong, {base:.1f} % without and {own:.1f} % under the claim's own attack.",
        number=errors[worst],
        unit="%",
        details={
            "n": n, "clean": base, "claim": own, "errors": errors,
            "trained_against": None if trained is None else list(trained),
        },
    )  # fmt: skip
    above = MORE_HARM * max(0.0, wilson(int((seen | clean).sum()), n)[1] - base)
    harmful = [name for name, rows in wrong.items() if wilson(int(rows.sum()), n)[0] - base > above]
    if harmful:
        return ended(
            found,
            Status.WARN,
            f"Outside the claim {worst} makes {errors[worst]:.1f} % of {n} rows wrong, more than {MORE_HARM:g} times "
            f"the harm of the claim's own attack ({own:.1f} % wrong, {base:.1f} % clean).",
            f"Say that the robustness does not reach so far: {', '.join(harmful)}.",
        )
    return found


def unbounded_attacks(case: Case) -> Finding:
    """E27: an attack without a radius is reported by its distances or at a fixed budget, never by its success alone.

    Reference:
        Carlini et al., 2019, section 4.2 (measure distortion, not success); DeepFool: Moosavi-Dezfooli et al., 2016.
    """
    n = min(len(case.x), case.level.curve_rows)
    attempt = case.attempt(load("deepfool", seed=case.seed), rows=n)
    rows = attempt.wrong & ~case.clean_wrong[:n]
    norm = case.threat.norm
    quantiles = {
        name: {str(q): float(torch.quantile(values[rows], q)) for q in QUANTILES} if bool(rows.any()) else {}
        for name, values in attempt.distances.items()
    }
    inside = case.inside_claim(attempt)
    details: dict[str, Any] = {
        "attack": "deepfool",
        "n": n,
        "fooled": int(rows.sum()),
        "right": int((~case.clean_wrong[:n]).sum()),
        "quantiles": quantiles,
        "error_at_budget": percent((attempt.wrong & inside) | case.clean_wrong[:n]),
    }
    bare, half = _bare_rates(case.provenance.record)
    details |= {"bare": bare, "partly": half}
    median = quantiles[norm].get("0.5")
    shown = "none was fooled" if median is None else f"the median distance to an error is {median:.3g} ({NAMES[norm]})"
    found = Finding(
        "E27",
        "unbounded attacks by distance",
        Status.PASS,
        f"DeepFool, which has no radius, fools {details['fooled']} of {details['right']} rows that were right; "
        f"{shown}.",
        number=median,
        unit=NAMES[norm],
        details=details,
    )
    if bare:
        return ended(
            found,
            Status.FAIL,
            f"The record gives bare success rates of attacks without a radius ({', '.join(bare)}), which only say how "
            "long these searched.",
            "Report quantiles of their distances, or the error at a fixed budget.",
        )
    if half:
        return ended(
            found,
            Status.WARN,
            f"The record gives distances or an error at a budget, but not both: {', '.join(half)}.",
            "Report quantiles of the distances and the error at a fixed budget.",
        )
    return found


def labels(case: Case) -> Finding:
    """E28: true labels decide what is wrong; the model's own answers only in a mode that says so."""
    record = case.provenance.record
    strengths = {name: set(found) for name, found in strengths_set(record).items()}
    for one in evaluations_of(record):
        strengths.setdefault(one.title, set()).update(strength for strength, _ in strengths_of(one))
    only = sorted(name for name, found in strengths.items() if found == {"predicted"})
    details = {"labels": case.threat.labels, "record_with_predicted_labels_only": only}
    found = Finding("E28", "true labels", Status.PASS, "True labels decide what is wrong.", details=details)
    if only:
        return ended(
            found,
            Status.FAIL,
            f"The record was measured with the model's own answers as labels only ({', '.join(only)}): an attack "
            "turned away from a wrong answer repairs it.",
            "Evaluate with true labels; keep predicted ones as a named mode beside them.",
        )
    if case.threat.labels == "predicted":
        return ended(
            found,
            Status.WARN,
            "The claim counts with the model's own answers as labels, a mode for comparison with older work; "
            "everything here is measured with true labels.",
            "State the claim with true labels.",
        )
    return found


def statistics(case: Case) -> Finding:
    """E29: enough images, enough seeds, an interval beside every rate.

    WARN below 1000 images or 3 seeds. The paired test between two models that the list (E29) asks for needs two models:
    it is for the tables. Whether mean and spread are quoted cannot be seen from here.

    Reference:
        Wilson, 1927, for the interval; RobustBench and Carlini et al., 2019, for the number of images.
    """
    n, seeds = len(case.x), case.provenance.seeds
    wrong = case.attempt(case.attack("pgd")).wrong | case.clean_wrong
    low, high = wilson(int(wrong.sum()), n)
    lacking = [
        text
        for text, lacks in (
            (f"{n:,} images (fewer than {ROWS:,})", n < ROWS),
            ("an unknown number of seeds" if seeds is None else f"{seeds} seed{'' if seeds == 1 else 's'}",
             seeds is None or seeds < SEEDS),
        )
        if lacks
    ]  # fmt: skip
    details = {"n": n, "seeds": seeds, "error": percent(wrong), "low": low, "high": high}
    interval = f"a rate is known to within {high - low:.1f} points (95 % interval {low:.1f} to {high:.1f} %)"
    found = Finding(
        "E29",
        "statistics",
        Status.PASS,
        f"With {n:,} images {interval}, and the claim rests on {seeds} seeds.",
        number=n,
        unit="rows",
        details=details,
    )
    if lacking:
        return ended(
            found,
            Status.WARN,
            f"The claim rests on {' and '.join(lacking)}: {interval}.",
            f"Use at least {ROWS:,} images and {SEEDS} seeds, and give mean and spread.",
        )
    return found


def selection(case: Case) -> Finding:
    """E30: nothing was chosen or trained on the images that the claim is measured on.

    Images are compared by a hash of their 8-bit pixels, so that only exact copies are found, and only among those that
    somebody named. FAIL above 1 % of the rows, WARN for fewer (data sets hold a few images twice). Whether the test set
    was used once, and the gap between best and last epoch, which the list (E30) asks for too, are not seen from here.

    Reference:
        Carlini et al., 2019, section 4.5; Rice et al., 2020, Overfitting in adversarially robust deep learning,
        https://arxiv.org/abs/2002.11569, for choosing the best epoch.
    """
    told = case.provenance
    rows = hash_of_each(case.x)
    shared = {
        kind: sum(row in known for row in rows)
        for kind, known in (("chosen", told.chosen_on), ("trained", told.trained_on))
        if known is not None
    }
    number = max(shared.values(), default=None)
    needed = ["trained"] if told.picked == "last" else ["chosen", "trained"]
    silent = [kind for kind in needed if kind not in shared]
    untold = f"; on which it was {silent[0]} nobody said" if silent else ""
    details = {"n": len(rows), "picked": told.picked, **{f"rows_{kind}_on": count for kind, count in shared.items()}}
    found = Finding(
        "E30",
        "nothing chosen on these images",
        Status.PASS,
        f"None of the {len(rows)} rows is among the images that the model was {' or '.join(shared)} on{untold}.",
        number=number,
        unit="rows",
        details=details,
    )
    if told.picked == "best" and told.chosen_on is None:
        found = ended(
            found,
            Status.WARN,
            "The weights are those of the best epoch, and nobody says on which images it was best.",
            "Choose on a validation split of its own, and name it: Provenance(chosen_on=row_hashes(images)).",
        )
    elif not shared:
        return ended(
            found,
            Status.NOT_RUN,
            "Nobody said which images the model was trained on, or its epochs and settings chosen on.",
            "Tell: Provenance(trained_on=row_hashes(...), chosen_on=row_hashes(...), picked=...).",
        )
    if number:
        kind = max(shared, key=lambda name: shared[name])
        status = Status.FAIL if number > SHARED * len(rows) else Status.WARN
        copies = "the numbers do not hold for new images" if status == Status.FAIL else "as few as copies in a data set"
        return ended(
            found,
            status,
            f"{number} of {len(rows)} rows are among the images that the model was {kind} on: {copies}.",
            "Measure on images that nothing was trained or chosen on.",
        )
    return found


def artefacts(case: Case) -> Finding:
    """E32: what is needed to repeat the claim is there.

    Seed, versions, a hash of the weights and of the reference attack's examples are made here where nobody gave them.

    Reference:
        Carlini et al., 2019, section 4.5.
    """
    attempt = case.attempt(case.attack("pgd"))
    made = {
        "seed": str(case.seed),
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "weights": case.pipeline_before,
        "examples": tensor_hash(attempt.x_adv),
    }
    told = {name: str(value) for name, value in case.provenance.artefacts.items() if value}
    missing = [name for name in ARTEFACTS if name not in told and name not in made]
    details = {
        "told": told,
        "made": made,
        "missing": missing,
        "wrong_rows": attempt.wrong.nonzero().flatten().tolist(),
        "reference": {"attack": "pgd", **{name: str(value) for name, value in case.attack("pgd").params.items()}},
    }
    found = Finding(
        "E32",
        "repeatable",
        Status.PASS,
        f"Everything to repeat the claim is named: {', '.join(ARTEFACTS)}.",
        number=len(missing),
        details=details,
    )
    if missing:
        return ended(
            found,
            Status.WARN,
            f"To repeat the claim {and_list(missing)} {'is' if len(missing) == 1 else 'are'} missing; the rest is in "
            "the report.",
            "Name them: Provenance(artefacts={...}); a command is one line that makes the number again.",
        )
    return found


def _bare_rates(record: Mapping[str, Any] | None) -> tuple[list[str], list[str]]:
    """Return the unbounded attacks of a record that have neither distances nor a budget, and those that have one."""
    bare: list[str] = []
    half: list[str] = []
    for one in evaluations_of(record):
        for strength, members in strengths_of(one):
            for name, rate in members.items():
                if not isinstance(rate, Mapping) or "error" not in rate or not is_unbounded(name):
                    continue
                given = ("quantiles" in rate) + (f"{name}@budget" in members)
                if given < 2:
                    (half if given else bare).append(f"{one.title}, {strength} {name}")
    return bare, half
