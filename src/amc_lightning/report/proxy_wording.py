"""Sentences on black-box threat models that the console, the Markdown report and a sweep's summary share."""

from collections.abc import Iterable

from amc_lightning.report import wording
from amc_lightning.report.columns import Column, columns
from amc_lightning.report.record import Agreement, Interface, Results, Stage

_ANSWERS = {
    "label": "the class that the model gives",
    "noisy_label": "the class that the model gives, or now and then another one",
    "probabilities": "the probabilities of all classes",
}
AGREEMENT = "share of the test split on which P'' gives the model's answer"
WEAK = (
    "A proxy that seldom agrees with the model, or that its own examples do not fool, makes a weak attack, not a "
    "strong defence."
)


def interface_text(interface: Interface) -> str:
    """Say what an attacker is answered, and how often.

    Example:
        >>> interface_text(Interface("noisy_label", {"flip": 0.1}, None))
        'the class that the model gives, or now and then another one (noisy_label, flip 0.1), any number of queries'
    """
    given = _given(interface)
    answer = _ANSWERS.get(interface.kind)
    kind = ", ".join([interface.kind, *given]) if answer else ", ".join(given)
    limit = "any number of queries" if interface.budget is None else f"at most {interface.budget:,} queries"
    return f"{answer or f'`{interface.kind}`'}{f' ({kind})' if kind else ''}, {limit}"


def settings_text(interface: Interface) -> str:
    """Return in short what tells an interface from others of its kind.

    Example:
        >>> settings_text(Interface("noisy_label", {"flip": 0.1}, 500)), settings_text(Interface("label", {}, None))
        ('flip 0.1, budget 500', 'no budget')
    """
    budget = [] if interface.budget is None else [f"budget {interface.budget:,}"]
    return ", ".join([*_given(interface), *budget]) or "no budget"


def attacker(interface: Interface, stages: Iterable[Stage]) -> str:
    """Say who attacks under a black-box threat model, and what was spent on it.

    Args:
        interface: what the attacker is answered.
        stages: the attacked models, each with its evaluation under that threat model.
    """
    proxies = [proxy for stage in stages for proxy in stage.evaluation.proxies.values()]
    spent = ""
    if proxies:
        queries, images = span(proxy.queries for proxy in proxies), span(proxy.images for proxy in proxies)
        spent = f"; here {queries} a proxy, on {images} images"
    return (
        f"The attacker has no weights, only answers: {interface_text(interface)}{spent}. On these it trains a proxy "
        "P'' of each model, makes its examples on P'', and shows them to the model."
    )


def what_it_means(results: Results) -> str:
    """Say how the errors under a black-box threat model are to be read."""
    unbounded = [name for name in results.attack_names if name in results.budget]
    text = WEAK
    if unbounded:
        text += (
            f" {', '.join(unbounded)} without limit stops at the least change that fools P''; few other models mind it."
        )
    return text


def outdone(results: Results) -> str:
    """Say where M0's own examples did more harm than those of P'', interval above interval; empty where nowhere."""
    return outdone_text([(stage.label, stage) for stage in results.measured], columns(results))


def outdone_text(rows: Iterable[tuple[str, Stage]], shown: Iterable[Column]) -> str:
    """Say in which cells of a table M0's own examples did more harm than those of P''; empty where in none.

    Args:
        rows: of the table, each with its name.
        shown: its columns.
    """
    hardened = [(name, stage) for name, stage in rows if stage.index > 0]
    where: dict[str, list[str]] = {}
    for column in shown:
        found = [name for name, stage in hardened if column.group == "attack" and is_outdone(stage, column)]
        if found:
            where.setdefault(wording.rows_text(found, [name for name, _ in hardened]), []).append(column.title)
    if not where:
        return ""
    listed = "; under ".join(f"{', '.join(titles)}: {names}" for names, titles in where.items())
    return (
        "Examples made for M0 with its own gradients did more harm than those of P'' (interval above interval); they "
        "need M0's weights, which a black-box attacker does not have, so they are a reference beyond the threat model, "
        f"but also the reason not to call such a row robust. Under {listed}."
    )


def same_kind(results: Results, stage: Stage) -> str:
    """Return the network that P' and every P'' of a hardened model are, if on the same images; empty if they differ.

    Args:
        results: under the threat model of the P''.
        stage: the model, measured under it.
    """
    own = {part.proxy.architecture for part in results.stages if part.proxy and part.index <= stage.index}
    attackers, data = set(stage.evaluation.proxies), results.proxy_data
    if data is None or data.halves or not attackers <= own:
        return ""
    return ", ".join(sorted(attackers))


def same_kind_text(architectures: Iterable[str], rows: str = "") -> str:
    """Say that the defender trained against the attacker's own kind of model; empty without a network to name.

    Args:
        architectures: of ``same_kind``.
        rows: the models of which it is said; empty for all that the reader sees.
    """
    named = ", ".join(sorted({name for name in architectures if name}))
    if not named:
        return ""
    where = f": {rows}" if rows else ""
    return (
        f"P' and P'' are the same kind of network ({named}) and learn from the same images{where}. "
        "So the defender trained against the attacker's own kind of model, as in the paper, which is generous to it; "
        "proxy.halves=true and evaluation.proxies=[...] change that."
    )


def is_outdone(stage: Stage, column: Column) -> bool:
    """Say whether M0's examples did more harm to a later stage's model than those of P'', interval above interval."""
    rate, moved = column.rate(stage), stage.evaluation.transfer(column.strength).get(column.key)
    return stage.index > 0 and rate is not None and moved is not None and moved.low > rate.high


def agreement_text(agreement: Agreement | None) -> tuple[str, str]:
    """Return an agreement in percent and its interval; a dash where it was not measured."""
    if agreement is None:
        return "-", ""
    return wording.percent(agreement.share), f"{wording.bound(agreement.low)}-{wording.bound(agreement.high)}"


def agreements(stage: Stage) -> str:
    """Return the agreements of a measured stage's proxies in short, "96.3"; of several, "96.3 / 91.0"."""
    return " / ".join(agreement_text(proxy.agreement)[0] for proxy in stage.evaluation.proxies.values()) or "-"


def span(values: Iterable[int]) -> str:
    """Return the least and the largest of some numbers, of which there is one.

    Example:
        >>> span([3, 1, 2]), span([2000, 2000])
        ('1 to 3', '2,000')
    """
    known = sorted(set(values))
    return f"{known[0]:,}" if len(known) == 1 else f"{known[0]:,} to {known[-1]:,}"


def _given(interface: Interface) -> list[str]:
    return [f"{name} {value}" for name, value in interface.settings.items() if value is not None]
