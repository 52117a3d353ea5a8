"""Which stages a cascade has, and how each mixes its attacks: read off the configuration."""

from dataclasses import dataclass
from fractions import Fraction

from amc_lightning.config import Config, exact_shares, stage_epochs, stage_names
from amc_lightning.mixer import stage_shares
from amc_lightning.seeding import derive


@dataclass(frozen=True)
class Stage:
    """One stage to train.

    Attributes:
        index: position; 0 is the undefended model.
        attack: the attack it is hardened against, or the rule of a joint stage; None for stage 0.
        epochs: passes over the training set.
    """

    index: int
    attack: str | None
    epochs: int

    @property
    def name(self) -> str:
        """The attack's name, or "undefended"."""
        return self.attack or "undefended"

    @property
    def title(self) -> str:
        """Position and name, such as "2 vap"."""
        return f"{self.index} {self.name}"

    @property
    def folder(self) -> str:
        """Where it lies below the run folder."""
        return f"stages/{self.index}_{self.name}"


WHOLE = ("avg", "max")
"""The joint rules under which every row of a batch meets every attack."""


def adversarial_copies(config: Config) -> int:
    """Return how many adversarial rows are trained on for each clean one."""
    return len(config.cascade.order) if config.cascade.joint == "avg" else 1


def stages_of(config: Config) -> list[Stage]:
    """Return the stages of a run: M0, then one per attack of the order, or one that is joint."""
    stages = [Stage(0, None, config.cascade.undefended_epochs)]
    pairs = zip(stage_names(config.cascade), stage_epochs(config.cascade), strict=True)
    return stages + [Stage(index, name, epochs) for index, (name, epochs) in enumerate(pairs, start=1)]


def shares_of(config: Config, stage: Stage) -> dict[str, Fraction]:
    """Return the share of each attack in a stage's adversarial half, by name in cascade order; empty for stage 0.

    Where every row meets every attack (AVG, MAX) each share is 1; where one attack is drawn for a batch, what it is
    drawn with at first.
    """
    if stage.index == 0:
        return {}
    joint = config.cascade.joint
    if joint == "msd":
        return {joint: Fraction(1)}
    if joint is not None:
        share = Fraction(1) if joint in WHOLE else Fraction(1, len(config.cascade.order))
        return dict.fromkeys(config.cascade.order, share)
    current, vector = exact_shares(config.cascade)
    shares = stage_shares(stage.index, current_share=current, shares=vector)
    return dict(zip(config.cascade.order[: stage.index], shares, strict=True))


def stage_seed(config: Config, stage: Stage) -> int:
    """Return the seed of everything random in a stage: it depends on the run's seed and the stage's place alone."""
    return derive(config.seed, "stage", stage.index)


def validation_interval(config: Config, stage: Stage) -> int:
    """Return the epochs between validations: the largest divisor of the stage's epochs that is asked for at most.

    A divisor, so that the last epoch is validated: of 8 epochs with ``validate_every=5``, the 4th and the 8th.
    """
    at_most = min(stage.epochs, config.cascade.validate_every)
    return max(k for k in range(1, at_most + 1) if stage.epochs % k == 0)
