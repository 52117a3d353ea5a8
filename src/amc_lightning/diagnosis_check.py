"""What must hold between the settings of ``task=diagnose``; found before torch is loaded."""

from amc_lightning.errors import UserError
from amc_lightning.ranges import check_budget, check_choice, check_number
from amc_lightning.schema import Config, DiagnosisConfig

LEVELS = ("quick", "full")
NORMS = ("linf", "l2", "l1")


def check_diagnosis(config: Config) -> None:
    """Refuse settings of a diagnosis that cannot be, or that nothing reads.

    Args:
        config: plain objects.

    Raises:
        UserError: with key, value, what is allowed, and what to do.
    """
    diagnosis = config.diagnosis
    check_choice("diagnosis.level", diagnosis.level, LEVELS)
    if config.task.name != "diagnose":
        _check_unused(diagnosis)
        return
    if diagnosis.rows is not None:
        check_number("diagnosis.rows", diagnosis.rows, 2)
    if diagnosis.norm is not None:
        check_choice("diagnosis.norm", diagnosis.norm, NORMS)
    _check_eps(config)
    if len(config.evaluation.squeezing) > 1:
        raise UserError(
            "evaluation.squeezing",
            config.evaluation.squeezing,
            "names more than one, and one pipeline is examined at a time",
            "at most one with task=diagnose",
            "Name one, and examine the other by itself.",
        )
    if config.evaluation.threat_models != ["white_box"]:
        raise UserError(
            "evaluation.threat_models",
            config.evaluation.threat_models,
            "is not what task=diagnose examines",
            "[white_box]: its checks attack with and without gradients",
            "Leave it out.",
        )


def claimed_ball(config: Config) -> tuple[str, float]:
    """Return norm and radius of the claim: those of ``diagnosis``, or the l-inf ball of PGM in Table 1.

    Raises:
        UserError: if no radius is set, and Table 1 has none in this norm.
    """
    norm, eps = config.diagnosis.norm or "linf", config.diagnosis.eps
    if eps is None and norm == "linf":
        eps = (config.attack_params.get("white_box", {}).get("pgm") or {}).get("eps")
    if eps is None:
        raise UserError(
            "diagnosis.eps",
            None,
            f"is not set, and there is no default for {norm}" if norm != "linf" else "is not set",
            "the radius of the claim in pixel units of [0, 1]",
            "Add diagnosis.eps=...",
        )
    return norm, eps


def _check_eps(config: Config) -> None:
    norm, eps = claimed_ball(config)
    check_number("diagnosis.eps", eps, 0, open_low=True)
    check_budget(eps, norm, config.dataset.shape, key="diagnosis.eps")


def _check_unused(diagnosis: DiagnosisConfig) -> None:
    for name, value in vars(diagnosis).items():
        if value != getattr(DiagnosisConfig(), name):
            raise UserError(
                f"diagnosis.{name}",
                value,
                "is for task=diagnose",
                "nothing else reads it",
                "Add task=diagnose, or remove it.",
            )
