"""The columns of the error table, shared by the console, the Markdown report and the heat map."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from amc_lightning.report.record import Rate, Results, Stage, Strength

Group = Literal["clean", "attack", "summary"]
SUMMARIES = ("mean", "worst")
OTHER_HEADINGS: Mapping[Strength, str] = {"predicted": "own label", "stronger": "stronger", "judge": "judge"}
"""The second line of the headings of strengths beside paper and check."""


@dataclass(frozen=True)
class Column:
    """One column: which rate it shows, and its heading in two short lines (the second may be empty).

    Args:
        group: what the column belongs to; clean is the test split, the others the attack split.
        key: name of the rate in an evaluation, such as "fgsm", "eap@budget" or "worst".
        strength: which of the two evaluations it is read from; of no meaning for clean.
        heading: two lines, plain ASCII so that any terminal can show them.
    """

    group: Group
    key: str
    strength: Strength
    heading: tuple[str, str]

    @property
    def title(self) -> str:
        """The heading on one line."""
        return " ".join(part for part in self.heading if part)

    def rate(self, stage: Stage) -> Rate | None:
        """Return this column's rate of one stage; None if the stage was not measured so."""
        return stage.evaluation.clean if self.group == "clean" else stage.rates(self.strength).get(self.key)


def columns(results: Results) -> list[Column]:
    """Return the table's columns: clean, the attacks, then mean and worst at both strengths.

    An attack has a second column where its check is another attack than the paper's, and one more where it is an
    unbounded search that is also measured at a fixed budget. Attacks of other strengths follow them.
    """
    found = [Column("clean", "clean", "paper", ("clean", ""))]
    for attack in results.attack_names:
        found += _attack_columns(results, attack)
    for strength, heading in OTHER_HEADINGS.items():
        found += [
            Column("attack", attack, strength, (attack, heading))
            for attack in results.attacks.get(results.primary, {}).get(strength, {})
        ]
    for name in SUMMARIES if results.attack_names else ():
        found += [Column("summary", name, strength, (name, strength)) for strength in ("paper", "check")]
    return found


def budget_text(norm: str, radius: float) -> str:
    """Return a budget in short, "l1<=10"."""
    return f"{norm}<={radius:g}"


def stronger(results: Results) -> list[str]:
    """Return the evaluated attacks whose check is another attack than the paper's."""
    return [attack for attack in results.attack_names if results.differs(attack)]


def _attack_columns(results: Results, attack: str) -> Iterable[Column]:
    strengths: tuple[Strength, ...] = ("paper", "check") if results.differs(attack) else ("paper",)
    key = f"{attack}@budget"
    for strength in strengths:
        suffix = strength if len(strengths) > 1 else ""
        if attack in results.budget:
            bounded = budget_text(*results.budget[attack])
            yield Column("attack", attack, strength, (attack, f"no limit {suffix}".strip()))
            yield Column("attack", key, strength, (attack, f"{bounded} {suffix}".strip()))
        else:
            yield Column("attack", attack, strength, (attack, suffix))
