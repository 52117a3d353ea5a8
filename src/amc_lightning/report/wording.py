"""Sentences and numbers that the console, the Markdown report and the figures share."""

from collections.abc import Iterable, Sequence

from amc_lightning.report.columns import budget_text, stronger
from amc_lightning.report.record import Rate, Results, Squeezing, Stage

WHITE_BOX = "white_box"
GREY = 0.5
"""The l-inf radius from which a grey image is within reach of every image (Carlini et al., 2019, section 4)."""
INTERVAL = "95 % interval (Wilson; of a mean over attacks: normal, over rows)"


def percent(value: float) -> str:
    """Return a percentage with one decimal, and never as "-0.0".

    Example:
        >>> percent(8.5714), percent(-1e-15), percent(100.0)
        ('8.6', '0.0', '100.0')
    """
    return f"{round(value, 1) + 0.0:.1f}"


def bound(value: float) -> str:
    """Return the end of an interval with one decimal, 100 without."""
    text = percent(value)
    return "100" if text == "100.0" else text


def interval(rate: Rate) -> str:
    """Return the 95 % interval of a rate.

    Example:
        >>> interval(Rate(n=140, wrong=140, error=100.0, low=97.33, high=100.0))
        '97.3-100'
    """
    return f"{bound(rate.low)}-{bound(rate.high)}"


def headline(results: Results) -> str:
    """Return what the table is of: "Error rates (%), lower is better: amc on digits"."""
    return f"Error rates (%), lower is better: {results.defence} on {results.dataset.name}{under(results)}"


def under(results: Results) -> str:
    """Return " under black_box_label", to be put behind a title; empty for a white box that nothing stands beside."""
    return f" under {results.primary}" if is_named(results) else ""


def is_named(results: Results) -> bool:
    """Say whether a title has to name the primary threat model: it is no white box, or there are others."""
    return results.primary != WHITE_BOX or bool(results.interfaces)


def splits(results: Results) -> str:
    """Say which split each column is measured on, with its size."""
    clean = _sizes(stage.evaluation.clean.n for stage in results.measured)
    attack = _sizes(rate.n for stage in results.measured for rate in stage.evaluation.check.values())
    return f"clean: test split, n = {clean}. Attacks, mean, worst: attack split, n = {attack}."


def sizes(results: Results) -> str:
    """Say what ``splits`` says, and what the small numbers under the rates are."""
    return f"{splits(results)} Under each rate: its {INTERVAL}."


def strengths(results: Results) -> str:
    """Say what the two strengths are, and that only check may be called robust."""
    names = stronger(results)
    if not results.attack_names:
        return "No attack was evaluated: nothing here says how robust a model is."
    if not names:
        return "paper and check are the same attacks here, so none of these rates may be called robust."
    rest = "" if len(names) == len(results.attack_names) else "; the other attacks are the same in both"
    whom = ", and against this attacker only" if results.is_black_box else ""
    return (
        f"paper: attacks of the preset '{results.preset}'. check: a stronger {_listed(names)}{rest}. "
        f"Only check may be called robust{whom}."
    )


def summaries(results: Results) -> str:
    """Say what mean and worst are over; empty where there are none."""
    if not results.attack_names:
        return ""
    bounded = [
        f"{name} {budget_text(*results.budget[name])}" if name in results.budget else name
        for name in results.attack_names
    ]
    bare = [f"{name} without limit" if name in results.budget else name for name in results.attack_names]
    return f"mean: over {_listed(bare)}. worst: wrong under at least one of {_listed(['clean', *bounded])}."


def other_strengths(results: Results) -> str:
    """Say what the strengths beside paper and check are; empty where there are none."""
    measured = results.attacks.get(results.primary, {})
    last = results.measured[-1].evaluation.others.get("judge", {}) if results.measured else {}
    rows = f" on the first {last['clean'].n} attacked images" if "clean" in last else ""
    said = {
        "predicted": "own label: the paper's attacks, away from the model's own answers; counted by true labels.",
        "stronger": "stronger: the paper's Table 5, with what attack_params.stronger changes; in no mean and no worst.",
        "judge": f"judge: attacks of another making{rows}, on the last model only; in no mean and no worst.",
    }
    beyond = sorted(
        {
            f"{name} ({strength}, eps {parameters['eps']:g})"
            for strength, members in measured.items()
            for name, parameters in members.items()
            if parameters.get("norm", "linf") == "linf" and _is_beyond(name, parameters.get("eps"))
        }
    )
    if beyond:
        said["beyond"] = (
            f"{_listed(beyond)}: from eps 0.5 on a grey image is within reach of every image, so no model can be "
            "better than chance there; a lower error shows an attack that fails, not robustness."
        )
    return " ".join(text for strength, text in said.items() if strength in measured or strength == "beyond")


def _is_beyond(name: str, eps: object) -> bool:
    """Say whether an attack in the l-inf ball can turn every image into the same one."""
    return name in ("fgsm", "pgm", "autoattack", "apgd_ce", "apgd_t", "fab", "square") and (
        isinstance(eps, int | float) and eps >= GREY
    )


def squeezed(squeezing: Squeezing) -> str:
    """Say what is in front of the models, and how it was attacked."""
    settings = ", ".join(f"{name} {value}" for name, value in squeezing.settings.items() if name != "_target_")
    what = f"Feature squeezing in front of the models: {squeezing.name} ({settings})."
    if squeezing.adaptive:
        return (
            f"{what} Attacks go through it, its gradient replaced by a smooth one (BPDA): these numbers count. "
            "In their worst case the examples that were squeezed afterwards count as well."
        )
    return (
        f"{what} Examples were made on the model without it and squeezed afterwards, as in the paper: an attacker who "
        "knows of it does not do that, so these rates are no robustness; see those under the adaptive attack."
    )


def saved(rate: Rate) -> str:
    """Return the share of its passes that an attack did without as fooled rows left; a dash where that is not known.

    Example:
        >>> saved(Rate(n=2, wrong=1, error=50.0, low=0.0, high=100.0, gradient_passes=10.0, most_passes=40.0))
        '75 %'
    """
    if rate.gradient_passes is None or not rate.most_passes:
        return "-"
    return f"{max(0.0, 100 * (1 - rate.gradient_passes / rate.most_passes)):.0f} %"


def not_shown(results: Results) -> str:
    """Say in one line what the tables under all threat models together do not show."""
    attacks = "any attack"
    if results.attack_names:
        attacks = ", or ".join([_kinds_not_shown(results), f"any attack but {_listed(results.attack_names)}"])
    text = f"Not shown: other seeds (one run, seed {results.seed}); {attacks}."
    for name, (norm, radius) in results.budget.items() if _has_white_box(results) else ():
        text += f" {name} without limit is a search that can fool any model; its error at {budget_text(norm, radius)} "
        text += "is a lower bound."
    return text


def without_gradient(results: Results) -> str:
    """Say which attacks had rows that gave them no gradient; empty where none had."""
    found = [
        f"{stage.label} under {name} ({strength}) {rate.zero_gradient} of {rate.n}"
        for stage in results.measured
        for strength in ("paper", "check")
        for name, rate in stage.rates(strength).items()
        if rate.zero_gradient and (strength == "paper" or results.differs(name))
    ]
    if not found:
        return ""
    return f"Rows without a gradient, which were not attacked; that they are right shows nothing: {_listed(found)}."


def crafted_with(results: Results) -> str:
    """Say which parameters the examples of training were crafted with.

    For example: ``the parameters of the white-box column of Table 1``.
    """
    if not results.order:
        return "none were made"
    if results.crafting is None:
        return "not recorded"
    of = "Table 1" if results.preset == "paper" else f"the preset '{results.preset}'"
    return f"the parameters of the {results.crafting.column.replace('_', '-')} column of {of}"


def rows_text(found: Sequence[str], every: Sequence[str], all_of_them: str = "all hardened rows") -> str:
    """Name some rows of a table, in short if it is all of them; a name with a comma in it is put in quotes.

    Example:
        >>> rows_text(["AT[P] eap", "AMC, local proxy"], ["AT[P] eap", "AT[P] pgm", "AMC, local proxy"])
        "AT[P] eap, 'AMC, local proxy'"
        >>> rows_text(["1 fgsm", "2 vap"], ["1 fgsm", "2 vap"])
        'all hardened rows'
    """
    if len(found) > 1 and set(found) == set(every):
        return all_of_them
    return _listed([f"'{name}'" if ", " in name else name for name in dict.fromkeys(found)])


def data_warning(results: Results) -> str | None:
    """Say that the data are not the official files, where that is so."""
    if results.dataset.verified:
        return None
    return f"Unverified data: the files read for '{results.dataset.name}' are not the official ones (checksums differ)."


def status_warning(results: Results) -> str | None:
    """Say that the run did not finish, where that is so."""
    if results.status == "finished":
        return None
    return f"The run is not finished ({results.status}): later stages are missing."


def summary_line(results: Results) -> str:
    """Return the outcome in one line: worst case (check) and clean error, from the first row to the last.

    For example: ``Worst case (check): 100.0 % (M0) -> 41.4 % (4 pgm), 95 % interval 33.6-49.7, n = 140; clean: 2.9 %
    -> 3.4 %, 95 % interval 2.0-5.9, n = 350.``
    """
    if not results.measured:
        return f"No stage has been measured ({results.status})."
    first, last = results.measured[0], results.measured[-1]
    clean = last.evaluation.clean
    change = _change(first, last, first.evaluation.clean, clean, named=False)
    text = f"clean: {change}, 95 % interval {interval(clean)}, n = {clean.n}."
    before, worst = first.evaluation.check.get("worst"), last.evaluation.check.get("worst")
    if before is None or worst is None:
        return text.capitalize()
    change = _change(first, last, before, worst)
    return f"Worst case (check): {change}, 95 % interval {interval(worst)}, n = {worst.n}; {text}"


def _change(first: Stage, last: Stage, before: Rate, after: Rate, *, named: bool = True) -> str:
    tail = f"{percent(after.error)} %" + (f" ({last.label})" if named else "")
    if first is last:
        return tail
    return f"{percent(before.error)} %" + (f" ({first.label})" if named else "") + f" -> {tail}"


def _kinds_not_shown(results: Results) -> str:
    """Name the kinds of attack of which none ran; a search by queries alone is gradient-free and black-box at once."""
    names, black_box = results.attack_names, bool(results.interfaces)
    if not _has_white_box(results):
        return "attacks with the model's own gradients, searches by queries to the model itself"
    queried = (name in ("square", "autoattack") or "n_queries" in results.parameters("paper", name) for name in names)
    if any(queried):
        return "searches by queries through an interface" if black_box else "attacks transferred from another model"
    if "noise" in names:
        return "gradient-free searches" if black_box else "black-box attacks and gradient-free searches"
    return "gradient-free attacks" if black_box else "black-box and gradient-free attacks"


def _has_white_box(results: Results) -> bool:
    return any(name not in results.interfaces for name in results.threat_models)


def _sizes(values: Iterable[int]) -> str:
    return " or ".join(str(value) for value in sorted(set(values))) or "0"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
