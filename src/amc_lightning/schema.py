"""The typed schema of a run: every setting, its type and its default where the YAML has none."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from amc_lightning.places import CONF_DIR

__all__ = ["CONF_DIR", "Config", "register"]


@dataclass
class AugmentConfig:
    """Augmentation of the clean half."""

    rotation: float = 0.0
    shift: float = 0.0
    horizontal_flip: bool = False
    vertical_flip: bool = False


@dataclass
class ProxyDataConfig:
    """The images that proxies are trained on; their labels are the target's answers."""

    source: dict[str, Any] | None = None
    root: str | None = None
    trust_files: bool = False
    limit: int | None = None
    seed: int = 0


@dataclass
class DatasetConfig:
    """One dataset: where it comes from, how it is cut, and what goes with it."""

    name: str = MISSING
    source: dict[str, Any] = MISSING
    root: str | None = None
    trust_files: bool = False
    limit: int | None = None
    balanced: bool = True
    split_seed: int = 0
    split_rule: str = "standard"
    size: list[int] | None = None
    shape: list[int] = MISSING
    num_classes: int = MISSING
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    epochs: dict[str, int] = field(default_factory=dict)
    budget: dict[str, float] = field(default_factory=dict)
    squeezing: list[str] = field(default_factory=list)
    proxy: ProxyDataConfig = field(default_factory=ProxyDataConfig)


@dataclass
class ScheduleConfig:
    """Batch size, number of epochs and course of the learning rate within a stage."""

    name: str = MISSING
    shape: str = "one_cycle"
    peak_lr: float = 0.05
    milestones: list[int] = field(default_factory=list)
    gamma: float = 0.1
    batch_size: int = 128
    undefended_epochs: int = MISSING
    stage_epochs: int = MISSING


@dataclass
class TrainerConfig:
    """The machine: what pl.Trainer is told."""

    accelerator: str = "auto"
    precision: str = "32-true"
    threads: int | None = None
    crafting: str = "auto"
    progress: str = "auto"


@dataclass
class CascadeConfig:
    """The method: which attacks, in which order, mixed how, handed on how."""

    order: list[str] = MISSING
    alpha: float = 0.5
    current_share: float = 0.8
    shares: list[float] | None = None
    transfer: str = "parent"
    pick: str = "last"
    joint: str | None = None
    passes: float | None = None
    label: str = "predicted"
    craft_params: str = "white_box"
    undefended_epochs: int = MISSING
    epochs: Any = MISSING
    start_from: str | None = None
    augment_clean: bool = True
    augment_adversarial: bool = False
    validate_every: int = 5
    validate_rows: int = 512


@dataclass
class JudgeConfig:
    """Attacks of another making, such as AutoAttack, on leading rows of the attack split: of last stages only."""

    attacks: list[str] = field(default_factory=list)
    rows: int | None = 512
    systems: list[str] = field(default_factory=list)
    params: dict[str, Any] = field(default_factory=dict)


@dataclass
class EvaluationConfig:
    """What every stage is measured with."""

    attacks: list[str] = MISSING
    threat_models: list[str] = MISSING
    params: str | None = None
    proxies: list[str] = field(default_factory=list)
    stages: str = "all"
    check: dict[str, Any] = field(default_factory=dict)
    check_black_box: dict[str, Any] = field(default_factory=dict)
    label: str = "true"
    stronger: bool = False
    squeezing: list[str] = field(default_factory=list)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    stage: str | None = None
    weights: str | None = None
    batch_size: int = 512
    limit: int | None = None
    gallery: int = 12
    seed: int = 0


@dataclass
class DiagnosisConfig:
    """What ``task=diagnose`` examines a model with."""

    level: str = "quick"
    norm: str | None = None
    eps: float | None = None
    rows: int | None = None
    attacks: list[str] = field(default_factory=list)
    only: list[str] = field(default_factory=list)


@dataclass
class ProxyConfig:
    """How a proxy is trained on the answers of a target: apart from how the target is, so that one can change alone."""

    architecture: str = MISSING
    epochs: int = MISSING
    fine_tune_epochs: int = MISSING
    batch_size: int = 64
    peak_lr: float = 0.05
    optimizer: dict[str, Any] = MISSING
    augment: bool = True
    alpha: float = 0.5
    adversarial: bool = True
    halves: bool = False


@dataclass
class ThreatModelConfig:
    """What an adversary sees of the model under attack."""

    name: str = MISSING
    interface: dict[str, Any] | None = None
    budget: int | None = None
    params: str = "white_box"


@dataclass
class StoreConfig:
    """Where finished results are kept, and what ``task=store`` does with them."""

    root: str = MISSING
    checkpoint_minutes: float = 2.0
    action: str = "list"
    keys: list[str] = field(default_factory=list)
    unused_days: float | None = None
    max_mb: float | None = None
    dry_run: bool = False


@dataclass
class ReportConfig:
    """What ``task=report`` builds tables from, and where."""

    manifests: list[str] = field(default_factory=list)
    folder: str | None = None
    publish: str | None = None
    pictures: list[str] = field(default_factory=lambda: ["mnist", "digits"])


@dataclass
class NamedConfig:
    """A choice that carries nothing but its name."""

    name: str = MISSING


@dataclass
class Config:
    """Everything a run needs to know."""

    name: str = MISSING
    task: NamedConfig = field(default_factory=NamedConfig)
    preset: NamedConfig = field(default_factory=NamedConfig)
    seed: int = 0
    plan_only: bool = False
    figures: bool = True
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    model: dict[str, Any] = MISSING
    attacks: dict[str, Any] = field(default_factory=dict)
    attack_params: dict[str, Any] = field(default_factory=dict)
    threat_model: ThreatModelConfig = field(default_factory=ThreatModelConfig)
    threat_models: dict[str, Any] = field(default_factory=dict)
    proxy: ProxyConfig = field(default_factory=ProxyConfig)
    models: dict[str, Any] = field(default_factory=dict)
    squeezings: dict[str, Any] = field(default_factory=dict)
    system: NamedConfig = field(default_factory=lambda: NamedConfig(""))
    scale: dict[str, Any] = field(default_factory=dict)
    defence: NamedConfig = field(default_factory=NamedConfig)
    cascade: CascadeConfig = field(default_factory=CascadeConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    diagnosis: DiagnosisConfig = field(default_factory=DiagnosisConfig)
    optimizer: dict[str, Any] = MISSING
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    logger: dict[str, Any] = field(default_factory=dict)


def register() -> None:
    """Make the schema known to Hydra under the name that conf/config.yaml starts from."""
    ConfigStore.instance().store(name="schema", node=Config, provider="amc_lightning")
