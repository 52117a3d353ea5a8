"""All checks, in order."""

from collections.abc import Callable
from dataclasses import dataclass

from amc_lightning.referee import (
    bounds,
    claim,
    convergence,
    curves,
    gradients,
    inference,
    parts,
    strength,
    trail,
    transfer,
    validated,
)
from amc_lightning.referee.case import Case
from amc_lightning.referee.finding import Finding


@dataclass(frozen=True)
class Check:
    """One check of a claim.

    Attributes:
        id: identifier in the project's list of checks, such as "E17".
        title: what is checked, a few words.
        run: makes it. It returns a ``Finding`` with the same identifier and title.
    """

    id: str
    title: str
    run: Callable[[Case], Finding]


CHECKS: tuple[Check, ...] = (
    Check("E1", "threat model stated", claim.stated_threat_model),
    Check("E2", "the deployed object was attacked", claim.same_object),
    Check("E3", "clean error beside it", claim.clean_error),
    Check("E4", "norm and box hold", bounds.budget_kept),
    Check("E5", "worst case of each image", claim.worst_case),
    Check("E6", "PGD beats a single step", strength.iterative_beats_single_step),
    Check("E7", "error grows with eps", curves.grows_with_radius),
    Check("E8", "reaches the end", curves.reaches_the_end),
    Check("E9", "nothing impossible", curves.claims_nothing_impossible),
    Check("E10", "converged", convergence.has_converged),
    Check("E11", "loss is flat at the end", convergence.loss_is_flat),
    Check("E12", "steps reach the ball", convergence.steps_reach_the_ball),
    Check("E13", "attacks return their best point", bounds.best_kept),
    Check("E14", "gradients beat noise", strength.gradients_beat_noise),
    Check("E15", "gradients beat random search", strength.gradients_beat_square),
    Check("E16", "transfer does not win", transfer.transfer_does_not_win),
    Check("E17", "gradients are the loss's slope", gradients.gradients),
    Check("E19", "answers are repeatable", inference.randomness),
    Check("E20", "logits, not probabilities", inference.logit_range),
    Check("E21", "no optimisation at inference", inference.optimisation),
    Check("E22", "parts without a gradient", parts.parts),
    Check("E24", "attacks break an undefended model", validated.breaks_undefended),
    Check("E25", "diverse attacks agree", strength.diverse_attacks),
    Check("E26", "unseen attacks measured", trail.unseen_attacks),
    Check("E27", "unbounded attacks by distance", trail.unbounded_attacks),
    Check("E28", "true labels", trail.labels),
    Check("E29", "statistics", trail.statistics),
    Check("E30", "nothing chosen on these images", trail.selection),
    Check("E32", "repeatable", trail.artefacts),
    Check("E33", "admission to RobustBench", inference.admission),
)
