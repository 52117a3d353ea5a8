"""The models that stand in the tables: a system's last model, or M0, under one threat model, one for each seed."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from amc_lightning.paper.flags import Wrong
from amc_lightning.paper.runs import Run, undefended
from amc_lightning.report import Results
from amc_lightning.report.columns import Column
from amc_lightning.report.paper_table4 import ATTACKS
from amc_lightning.report.record import UNDEFENDED, Evaluation, Rate, Stage
from amc_lightning.report.wording import WHITE_BOX

AMC_SYSTEM, LOCAL_PROXY, NO_REPLAY = "amc_target_hardened", "amc_local_proxy", "amc_no_replay"
LABEL = "black_box_label"
AT_SYSTEMS = {attack: f"at_{attack}" for attack in ATTACKS}
AT_PROXY_SYSTEMS = {attack: f"at_{attack}_proxy" for attack in ATTACKS}
WITHOUT_SYSTEMS = {attack: f"amc_without_{attack}" for attack in ATTACKS}
NAMES: Mapping[str, str] = {
    UNDEFENDED: "Undefended",
    **{system: f"AT {attack}" for attack, system in AT_SYSTEMS.items()},
    AMC_SYSTEM: "AMC, target-hardened",
    **{system: f"AT[P] {attack}" for attack, system in AT_PROXY_SYSTEMS.items()},
    LOCAL_PROXY: "AMC, local proxy",
    "amc_no_transfer": "AMC, no transfer",
    "amc_reverse": "AMC, reverse order",
    NO_REPLAY: "AMC, no replay",
    **{system: f"AMC without {attack}" for attack, system in WITHOUT_SYSTEMS.items()},
}
"""The rows by the name of the system, in the order in which they stand where all of them do."""

Systems = Mapping[str, Sequence[Run]]


@dataclass(frozen=True)
class Model:
    """One model as it was measured under one threat model.

    Args:
        run: that trained or loaded it.
        stage: the model; it has been measured under the threat model.
        threat_model: its name.
    """

    run: Run
    stage: Stage
    threat_model: str

    @property
    def seed(self) -> int:
        """The seed of its run."""
        return self.run.seed

    @property
    def evaluation(self) -> Evaluation:
        """Its error rates."""
        return self.stage.evaluations[self.threat_model]

    @property
    def stages(self) -> list[Stage]:
        """The stages that led to this model, its own the last."""
        return [stage for stage in self.run.results.stages if stage.index <= self.stage.index]

    @property
    def minutes(self) -> float:
        """What training took, all stages up to this model's and their proxies P'."""
        return sum(stage.minutes + (stage.proxy.minutes if stage.proxy else 0.0) for stage in self.stages)

    @property
    def passes_per_image(self) -> float:
        """Gradient passes per training image of all stages up to this model's; training of proxies P' not counted."""
        return sum(stage.passes_per_image for stage in self.stages)

    @property
    def view(self) -> Results:
        """Its results with nothing but this model under this threat model; attacks in the order of the evaluation."""
        found = self.run.results.under(self.threat_model)
        stages = tuple(stage for stage in found.stages if stage.index == self.stage.index)
        return replace(found, order=(), stages=stages)

    def rate(self, column: Column) -> Rate | None:
        """Return the error rate of a column; None if it was not measured."""
        if column.group == "clean":
            return self.evaluation.clean
        return self.evaluation.rates(column.strength).get(column.key)

    def wrong(self, column: Column) -> Wrong | None:
        """Return the rows that are wrong in a column, (N,) bool; None if they were not kept, as for a mean."""
        flags = self.run.flags
        if column.group == "clean":
            return flags.clean(self.stage.index, threat_model=self.threat_model)
        return flags.wrong(self.stage.index, column.strength, column.key, threat_model=self.threat_model)


def models(systems: Systems, system: str, threat_model: str = "") -> list[Model]:
    """Return the last models of a system, one for each seed in which it was measured so, seeds ascending; maybe none.

    Args:
        systems: the runs of a dataset.
        system: which.
        threat_model: under which; each run's primary one by default.
    """
    found = []
    for run in systems.get(system, ()):
        name = threat_model or run.results.primary
        if name in run.last.evaluations:
            found.append(Model(run, run.last, name))
    return found


def undefended_models(systems: Systems, threat_model: str = WHITE_BOX) -> list[Model]:
    """Return the undefended model of every seed: of its own run, else as M0 of another that was measured the same way.

    Args:
        systems: the runs of a dataset.
        threat_model: under which it has to be measured.
    """
    order = sorted(systems, key=lambda system: system != UNDEFENDED)
    found: dict[int, Model] = {}
    for run in (run for system in order for run in systems[system]):
        if undefended([run]) is not None and threat_model in run.first.evaluations:
            found.setdefault(run.seed, Model(run, run.first, threat_model))
    return [found[seed] for seed in sorted(found)]


def mean_minutes(found: Sequence[Model]) -> float:
    """Return what training took, averaged over seeds."""
    return statistics.fmean(model.minutes for model in found)


def mean_passes(found: Sequence[Model]) -> float:
    """Return the gradient passes per training image, averaged over seeds."""
    return statistics.fmean(model.passes_per_image for model in found)


def same_rows(a: Run, b: Run, split: str) -> bool:
    """Say whether two runs measured on the same images of a split; False where their files do not tell."""
    if a.results.dataset.fingerprint != b.results.dataset.fingerprint:
        return False
    one, other = a.flags.labels(split), b.flags.labels(split)
    return one is not None and other is not None and one.shape == other.shape and bool((one == other).all())
