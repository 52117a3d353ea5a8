"""The threat model of a claim: within which ball, by whom, against what."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from amc_lightning.attacks import Norm
from amc_lightning.errors import UserError

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")


@dataclass(frozen=True)
class ThreatModel:
    """What an adversary may do, as a claim of robustness has to state it.

    Args:
        norm: of the perturbation: ``linf``, ``l2`` or ``l1``.
        eps: its radius in pixel units of [0, 1], > 0.
        knowledge: ``white_box`` (the adversary has the weights) or ``black_box`` (answers only).
        targeted: whether one given class has to be reached; everything here is measured untargeted.
        labels: whose labels count: ``true``, or the model's own answers (``predicted``).
        queries: how many answers the adversary may ask for; None for any number.

    Raises:
        UserError: for a norm, a radius or a choice that does not exist.

    Reference:
        Carlini et al., 2019, On Evaluating Adversarial Robustness, https://arxiv.org/abs/1902.06705, section 2.2.
    """

    norm: Norm
    eps: float
    knowledge: Literal["white_box", "black_box"] = "white_box"
    targeted: bool = False
    labels: Literal["true", "predicted"] = "true"
    queries: int | None = None

    def __post_init__(self) -> None:
        """Refuse what does not exist."""
        for key, allowed in (
            ("norm", NORMS),
            ("knowledge", ("white_box", "black_box")),
            ("labels", ("true", "predicted")),
        ):
            if (value := getattr(self, key)) not in allowed:
                raise UserError(
                    f"threat_model.{key}", value, "is not known", f"known: {', '.join(allowed)}", "Choose one of them."
                )
        eps = self.eps
        largest = 1.0 if self.norm == "linf" else float("inf")
        if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 < eps <= largest:
            raise UserError(
                "threat_model.eps",
                eps,
                "is no radius",
                f"allowed: above 0{', at most 1' if self.norm == 'linf' else ''}, in pixel units of [0, 1]",
                "Give it as a share of the pixel range, such as 8/255.",
            )

    @property
    def is_measured(self) -> bool:
        """Whether it is what the diagnosis measures: a white box, any wrong class, true labels.

        Another claim may quote a lower error than a diagnosis finds and be right.
        """
        return self.knowledge == "white_box" and not self.targeted and self.labels == "true"

    def __str__(self) -> str:
        """Return it in a phrase, such as "white box, l-inf 0.3"."""
        whom = self.knowledge.replace("_", " ")
        return f"{whom}, {NAMES[self.norm]} {self.eps:.4g}"

    def as_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return asdict(self)


NAMES = {"linf": "l-inf", "l2": "l2", "l1": "l1"}
"""Norms as people write them."""
