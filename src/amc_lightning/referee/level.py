"""How much work a diagnosis takes."""

from dataclasses import dataclass

from amc_lightning.errors import UserError


@dataclass(frozen=True)
class Level:
    """The size of everything that is counted in a diagnosis.

    Attributes:
        name: ``quick`` or ``full``.
        rows: images that are attacked, at most.
        steps: of the reference attack (PGD, best iterate kept).
        restarts: of the reference attack.
        curve_rows: images of the curves of error against eps and steps.
        curve_steps: steps of the attacks along the eps curve.
        apgd_steps: of APGD-CE, APGD-T and FAB.
        target_classes: of APGD-T and FAB, at most.
        queries: of Square, for each image.
        noise_draws: random points in the ball, for each image.
        substitute_epochs: of the network that examples are transferred from, on the rows themselves.
    """

    name: str
    rows: int
    steps: int
    restarts: int
    curve_rows: int
    curve_steps: int
    apgd_steps: int
    target_classes: int
    queries: int
    noise_draws: int
    substitute_epochs: int


QUICK = Level(
    name="quick", rows=256, steps=40, restarts=1, curve_rows=128, curve_steps=40, apgd_steps=30, target_classes=3,
    queries=500, noise_draws=50, substitute_epochs=20,
)  # fmt: skip
"""About a minute on two cores for LeNet on MNIST."""
FULL = Level(
    name="full", rows=1000, steps=100, restarts=5, curve_rows=512, curve_steps=100, apgd_steps=100, target_classes=9,
    queries=5000, noise_draws=500, substitute_epochs=60,
)  # fmt: skip
"""With the budgets of AutoAttack."""
LEVELS = {level.name: level for level in (QUICK, FULL)}


def level_of(level: str | Level) -> Level:
    """Return a level by its name, or as it is.

    Raises:
        UserError: for a name that does not exist.
    """
    if isinstance(level, Level):
        return level
    if level not in LEVELS:
        raise UserError("level", level, "is not known", f"known: {', '.join(LEVELS)}", "Choose one of them.")
    return LEVELS[level]
