"""What a report is made of: the typed content of a run folder, as the reader returns it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Strength = Literal["paper", "check"]
UNDEFENDED = "undefended"


@dataclass(frozen=True)
class Norm:
    """Size of a perturbation over all rows of a split, pixels in [0, 1]."""

    median: float
    max: float


@dataclass(frozen=True)
class Rate:
    """An error rate in percent with its 95 % Wilson interval.

    ``wrong`` is a count of rows, except for a mean over attacks, where it is a mean of counts. ``gradient_passes`` is
    the attack's mean per row, ``zero_gradient`` the number of rows that it had no gradient to move by.
    """

    n: int
    wrong: float
    error: float
    low: float
    high: float
    norms: Mapping[str, Norm] = field(default_factory=dict)
    quantiles: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    gradient_passes: float | None = None
    zero_gradient: int = 0


@dataclass(frozen=True)
class Evaluation:
    """Error rates of one model: clean on the test split, everything else on the attack split."""

    clean: Rate
    paper: Mapping[str, Rate]
    check: Mapping[str, Rate]


@dataclass(frozen=True)
class Stage:
    """One row of the table: how a model was trained, what that cost, and how it was measured.

    ``key`` is its key in the store, ``from_store`` whether it was there before the run.
    """

    index: int
    name: str
    attack: str | None
    epochs: int
    steps: int
    minutes: float
    rows: Mapping[str, int]
    passes_per_image: float
    evaluation: Evaluation
    key: str = ""
    from_store: bool = False

    @property
    def label(self) -> str:
        """The short name of the row: "M0", "1 fgsm"."""
        return "M0" if self.index == 0 and self.name == UNDEFENDED else f"{self.index} {self.name}"

    @property
    def long_label(self) -> str:
        """The name of the row in prose: "M0 (undefended)", "M0 (given weights)", "stage 1 (fgsm)"."""
        if self.label == "M0":
            return f"M0 ({UNDEFENDED if self.steps else 'given weights'})"
        return f"stage {self.index} ({self.name})"

    def rates(self, strength: Strength) -> Mapping[str, Rate]:
        """Return the rates on the attack split at one strength, by attack name, "mean" and "worst" among them."""
        return self.evaluation.paper if strength == "paper" else self.evaluation.check


@dataclass(frozen=True)
class Dataset:
    """What was trained and measured on; ``counts`` are after balancing and splitting, ``counts_read`` before."""

    name: str
    verified: bool
    fingerprint: str
    class_names: tuple[str, ...]
    shape: tuple[int, int, int]
    counts: Mapping[str, int]
    counts_read: Mapping[str, int]
    limit: int | None


@dataclass(frozen=True)
class Results:
    """The whole of results.json; ``budget`` maps an evaluated attack to its norm and radius."""

    experiment: str
    defence: str
    created: str
    status: str
    seed: int
    device: str
    threads: int
    versions: Mapping[str, str]
    commit: str | None
    dataset: Dataset
    threat_model: str
    preset: str
    order: tuple[str, ...]
    evaluated: tuple[str, ...]
    budget: Mapping[str, tuple[str, float]]
    attacks: Mapping[str, Mapping[str, Mapping[str, object]]]
    stages: tuple[Stage, ...]

    @property
    def attack_names(self) -> tuple[str, ...]:
        """The evaluated attacks: those of the cascade first, in its order, then the others."""
        first = tuple(name for name in self.order if name in self.evaluated)
        return first + tuple(name for name in self.evaluated if name not in first)

    def parameters(self, strength: Strength, attack: str) -> Mapping[str, object]:
        """Return an attack's parameters at one strength; empty if they were not recorded."""
        return self.attacks.get(strength, {}).get(attack, {})

    def differs(self, attack: str) -> bool:
        """Say whether the attack is another one at strength check than at strength paper."""
        return self.parameters("paper", attack) != self.parameters("check", attack)


@dataclass(frozen=True)
class Gallery:
    """A few images of the attack split with what each stage made of them.

    Args:
        x: clean images, (G, C, H, W) float32 in [0, 1].
        y: class indices, (G,) int64.
        arrays: every array of the file, by its key.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    arrays: Mapping[str, NDArray[np.generic]]

    def clean_predicted(self, stage_index: int) -> NDArray[np.int64] | None:
        """Return the classes a stage's model gives to the clean images, (G,); None if not kept."""
        found = self.arrays.get(f"clean_predicted/{stage_index}")
        return None if found is None else found.astype(np.int64)

    def attacked(self, stage_index: int, attack: str) -> tuple[NDArray[np.float32], NDArray[np.int64]] | None:
        """Return the perturbed images (G, C, H, W) and the classes given to them (G,); None if not kept."""
        x_adv = self.arrays.get(f"x_adv/{stage_index}/{attack}")
        predicted = self.arrays.get(f"predicted/{stage_index}/{attack}")
        return None if x_adv is None or predicted is None else (x_adv.astype(np.float32), predicted.astype(np.int64))


@dataclass(frozen=True)
class Epoch:
    """Mean of every metric over one epoch of one stage; ``epoch`` counts from 0 within the stage."""

    stage: int
    name: str
    epoch: int
    values: Mapping[str, float]
