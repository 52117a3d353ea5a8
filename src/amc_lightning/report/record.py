"""What a report is made of: the typed content of a run folder, as the reader returns it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Strength = Literal["paper", "check", "stronger", "predicted", "judge"]
"""``paper`` and ``check`` are always there; ``stronger`` is the paper's Table 5, ``predicted`` the paper's attacks away
from the model's own answers, ``judge`` attacks of another making on leading rows."""
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
    the attack's mean per row and ``most_passes`` what it would take if no row left the batch once fooled (None if that
    is not known), ``zero_gradient`` the number of rows that it had no gradient to move by. Under a
    black-box threat model ``proxy`` is the rate of the proxy P'' itself on the same examples, and ``architecture``
    which P'' they were made on: the most harmful.
    """

    n: int
    wrong: float
    error: float
    low: float
    high: float
    norms: Mapping[str, Norm] = field(default_factory=dict)
    quantiles: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    gradient_passes: float | None = None
    most_passes: float | None = None
    zero_gradient: int = 0
    architecture: str = ""
    proxy: "Rate | None" = None


@dataclass(frozen=True)
class Agreement:
    """On how many rows of the test split a proxy gives the model's answer; ``share`` and its interval in percent."""

    n: int
    agree: int
    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Proxy:
    """A proxy and what it took: P'' of an evaluation, or P' of a stage's hardening.

    Args:
        architecture: its network.
        key: its key in the store.
        images: images it was trained on.
        queries: answers of the model that it was trained on.
        epochs: passes over the images.
        minutes: of its training, whenever that was.
        passes_per_image: gradient passes per image of its own training data.
        clean: its own error on the clean test split; None if not measured.
        agreement: with the model it imitates; None if not measured.
        interface: the threat model through which it asked.
        from_store: whether it was there before the run.
    """

    architecture: str
    key: str
    images: int
    queries: int
    epochs: int
    minutes: float
    passes_per_image: float
    clean: Rate | None
    agreement: Agreement | None
    interface: str
    from_store: bool = False


@dataclass(frozen=True)
class Evaluation:
    """Error rates of one model: clean on the test split, everything else on the attack split.

    Under a black-box threat model ``proxies`` are the P'' that attacks were made on, by architecture, and
    ``transfer_paper`` and ``transfer_check`` the model's errors on the examples made for M0 with its own gradients.
    ``others`` are the strengths beside paper and check, each with the attacks that it has.
    """

    clean: Rate
    paper: Mapping[str, Rate]
    check: Mapping[str, Rate]
    proxies: Mapping[str, Proxy] = field(default_factory=dict)
    transfer_paper: Mapping[str, Rate] = field(default_factory=dict)
    transfer_check: Mapping[str, Rate] = field(default_factory=dict)
    others: Mapping[Strength, Mapping[str, Rate]] = field(default_factory=dict)

    def rates(self, strength: Strength) -> Mapping[str, Rate]:
        """Return the rates on the attack split at one strength, by attack; empty if not measured."""
        return {"paper": self.paper, "check": self.check, **self.others}.get(strength, {})

    def transfer(self, strength: Strength) -> Mapping[str, Rate]:
        """Return the errors on M0's examples at one strength, by attack; empty if not measured."""
        return self.transfer_paper if strength == "paper" else self.transfer_check


@dataclass(frozen=True)
class Stage:
    """One row of the table: how a model was trained, what that cost, and how it was measured.

    ``key`` is its key in the store, ``from_store`` whether it was there before the run; ``evaluations`` are by threat
    model, none where the stage was not measured; ``proxy`` is the P' that its adversarial images were made on.
    """

    index: int
    name: str
    attack: str | None
    epochs: int
    steps: int
    minutes: float
    rows: Mapping[str, int]
    passes_per_image: float
    evaluations: Mapping[str, Evaluation]
    key: str = ""
    from_store: bool = False
    proxy: Proxy | None = None

    @property
    def evaluation(self) -> Evaluation:
        """The primary evaluation, that under the first threat model; only a measured stage has one."""
        return next(iter(self.evaluations.values()))

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
        return self.evaluation.rates(strength)


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
class ProxyData:
    """The images that proxies were trained on.

    Args:
        source: where they come from.
        read: images there were.
        overlapping: of these, left out as they are among the target's data.
        repeated: of these, left out as they were there twice.
        kept: images left.
        verified: whether the files are the official ones.
        halves: whether P' and P'' are trained on a half each, so that they share no image.
    """

    source: str
    read: int
    overlapping: int
    repeated: int
    kept: int
    verified: bool
    halves: bool


@dataclass(frozen=True)
class Crafting:
    """How the examples that a run trained on were crafted.

    Args:
        column: of the paper's Table 1, which the parameters are of: "white_box" or "black_box".
        attacks: the parameters of each attack of the order.
        epochs: of each stage after M0.
        transfer: what a stage starts from: "parent", the stage before, or "none", M0.
        joint: by which rule one stage was trained against all attacks of the order; None for a stage per attack.
    """

    column: str
    attacks: Mapping[str, Mapping[str, object]]
    epochs: tuple[int, ...]
    transfer: str
    joint: str | None = None


@dataclass(frozen=True)
class Interface:
    """What a black-box attacker is answered: the kind of answer, its settings, and how many it may ask for."""

    kind: str
    settings: Mapping[str, object]
    budget: int | None


@dataclass(frozen=True)
class Squeezing:
    """Feature squeezing in front of the models, and how it was attacked.

    Args:
        name: its name in the group ``squeezing``.
        settings: its class and parameters.
        adaptive: whether attacks went through it (BPDA); else they were made without it and squeezed afterwards.
    """

    name: str
    settings: Mapping[str, object]
    adaptive: bool


@dataclass(frozen=True)
class Results:
    """The whole of results.json.

    ``threat_model`` is how the defender hardened, through the interface ``hardening`` if it is a black box;
    ``threat_models`` is how the models were measured, the primary one first, ``interfaces`` those of the black boxes.
    ``budget`` maps an evaluated attack to its norm and radius, ``attacks`` a threat model and a strength to each
    attack's parameters; ``crafting`` is None where the run did not record it. ``system`` is the name of a row of the
    paper's tables, empty where the run is none; ``squeezings`` are the threat models that have feature squeezing in
    front of the model; ``num_parameters`` is the number of weights of the network, None where that is not on record.
    """

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
    attacks: Mapping[str, Mapping[str, Mapping[str, Mapping[str, object]]]]
    stages: tuple[Stage, ...]
    threat_models: tuple[str, ...]
    interfaces: Mapping[str, Interface] = field(default_factory=dict)
    proxy_data: ProxyData | None = None
    hardening: Interface | None = None
    crafting: Crafting | None = None
    system: str = ""
    squeezings: Mapping[str, Squeezing] = field(default_factory=dict)
    num_parameters: int | None = None

    @property
    def primary(self) -> str:
        """The threat model that stands first."""
        return self.threat_models[0]

    @property
    def is_black_box(self) -> bool:
        """Whether the primary threat model is a black-box one."""
        return self.primary in self.interfaces

    @property
    def measured(self) -> tuple[Stage, ...]:
        """The stages that were measured under the primary threat model: the rows of a table of errors."""
        return tuple(stage for stage in self.stages if self.primary in stage.evaluations)

    def under(self, threat_model: str) -> "Results":
        """Return the results as if measured under one threat model only; other stages have no evaluation."""
        stages = (
            replace(
                stage, evaluations={name: found for name, found in stage.evaluations.items() if name == threat_model}
            )
            for stage in self.stages
        )
        return replace(self, threat_models=(threat_model,), stages=tuple(stages))

    def each(self) -> "list[Results]":
        """Return the results under each threat model, the primary one first."""
        return [self.under(name) for name in self.threat_models]

    @property
    def attack_names(self) -> tuple[str, ...]:
        """The evaluated attacks: those of the cascade first, in its order, then the others."""
        first = tuple(name for name in self.order if name in self.evaluated)
        return first + tuple(name for name in self.evaluated if name not in first)

    def parameters(self, strength: Strength, attack: str) -> Mapping[str, object]:
        """Return an attack's parameters under the primary threat model at one strength; empty if not recorded."""
        return self.attacks.get(self.primary, {}).get(strength, {}).get(attack, {})

    @property
    def trained_otherwise(self) -> tuple[str, ...]:
        """The attacks that were trained with and evaluated, with other parameters than at strength paper."""
        crafted = {} if self.crafting is None else self.crafting.attacks
        return tuple(
            name
            for name, parameters in crafted.items()
            if name in self.evaluated and parameters != self.parameters("paper", name)
        )

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
