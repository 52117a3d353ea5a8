"""E19, E20, E21 and E33: is the model a plain function from images to logits?"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from amc_lightning.attacks import guarded
from amc_lightning.attacks.randomness import isolated_randomness, kept_torch_randomness
from amc_lightning.referee.case import Case
from amc_lightning.referee.evidence import percent
from amc_lightning.referee.finding import Finding, Status
from amc_lightning.referee.gradients import useless_shares
from amc_lightning.referee.workload import Workload, watched
from amc_lightning.seeding import derive

RANDOMNESS, LOGITS, OPTIMISATION, ADMISSION = (
    "answers are repeatable", "logits, not probabilities", "no optimisation at inference",
    "admission to RobustBench",
)  # fmt: skip
REPEATS = 5
"""Of E19's rule, and the tolerance of logits beside it, in units of the largest logit, or of 1."""
TOLERANCE = 1e-4
EOT_DRAWS = 4
"""Draws that a gradient is averaged over, and that an answer is then averaged over: expectation over transformation."""
TRACED_ROWS = 8
MOST_CALLS, MANY_CALLS = 50, 8
"""Of one module in one pass: to fail, to warn. Recurrent cells and crops of an image are called a few dozen times."""
SLOWER, FLOOR = 50.0, 0.2
"""Times slower than a plain convolution net for as many operations, and seconds a pass of ``TRACED_ROWS`` images below
which nothing is called slow: small networks are all overhead."""
ALLOWED_ZERO = 1.0
"""Percent of rows with a zero gradient: E17's rule."""


class Averaged(nn.Module):
    """The mean of a random model's logits over several draws: what an attack has to climb.

    Args:
        model: returns logits; random.
        draws: to average over.

    Reference:
        Athalye et al., Synthesizing robust adversarial examples, ICML 2018, https://arxiv.org/abs/1707.07397.
    """

    def __init__(self, model: nn.Module, draws: int) -> None:
        super().__init__()
        self.model = model
        self.draws = draws
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        """Return mean logits, (B, K), of images (B, C, H, W)."""
        return torch.stack([self.model(x) for _ in range(self.draws)]).mean(0)


def randomness(case: Case) -> Finding:
    """Return E19: whether repeated passes give the same answers, and what averaging over draws finds if not."""
    spread, flips = repeated(case)
    details: dict[str, object] = {"spread": spread, "flips": 100 * flips, "repeats": REPEATS}
    if not is_random(case):
        return Finding(
            "E19", RANDOMNESS, Status.PASS,
            f"{REPEATS} passes of the same images, under several seeds and in another order, agree to {spread:.1e}.",
            "", 0.0, "%", details,
        )  # fmt: skip
    found = _averaging(case, details)
    return Finding(
        "E19", RANDOMNESS, Status.FAIL,
        f"Answers differ from pass to pass: {100 * flips:.1f} % of the images change their class, logits move by "
        f"{spread:.2g} of the largest{found}.",
        "Average gradients and answers over draws (EOT), and use AutoAttack's rand version.",
        100 * flips, "%", details,
    )  # fmt: skip


def _averaging(case: Case, details: dict[str, object]) -> str:
    rows = min(case.level.curve_rows, len(case.x))
    if "averaged" not in case.memo:
        case.memo["averaged"] = Averaged(case.model, EOT_DRAWS)
    attack = case.attack("pgd", nb_iter=max(1, case.level.steps // 2), restarts=1)
    plain = case.attempt(attack, rows=rows).wrong
    averaged = case.attempt(attack, rows=rows, on=case.memo["averaged"]).wrong
    more = percent(averaged & ~plain)
    details |= {
        "plain": percent(plain), "eot": percent(averaged), "eot_extra": more,
        "eot_draws": EOT_DRAWS,
    }  # fmt: skip
    return (
        f"; an attack on the mean of {EOT_DRAWS} draws fools {details['eot']:.1f} % where one on single draws fools "
        f"{details['plain']:.1f} %"
    )


def is_random(case: Case) -> bool:
    """Return whether the model's answers differ from pass to pass by more than ``TOLERANCE``."""
    spread, flips = repeated(case)
    return spread > TOLERANCE or flips > 0


def repeated(case: Case) -> tuple[float, float]:
    """Return how far logits of repeated passes lie apart, and the share of rows, 0 to 1, whose class changes.

    Two passes are seeded, differently, and the others are not; in the last one the rows stand in reverse and in batches
    half as large, so that what depends on its neighbours in the batch is found too. State that the model keeps lives on
    from pass to pass. Remembered.
    """
    if "repeated" not in case.memo:
        case.memo["repeated"] = _repeated(case)
    found: tuple[float, float] = case.memo["repeated"]
    return found


def _repeated(case: Case) -> tuple[float, float]:
    device = case.x.device
    size = min(case.batch_size, len(case.x))

    def answers(x: Tensor, size: int = size) -> Tensor:
        return torch.cat([case.model(part).double().cpu() for part in torch.split(x, size)])

    with guarded(case.model), torch.no_grad(), kept_torch_randomness(device):
        passes = []
        for index in range(2):
            with isolated_randomness(derive(case.seed, "referee", "repeat", index) % 2**32, device):
                passes.append(answers(case.x))
        passes += [answers(case.x) for _ in range(REPEATS - 3)]
        passes.append(answers(case.x.flip(0), max(1, size // 2)).flip(0))
    logits = torch.stack(passes).nan_to_num()
    scale = max(1.0, float(logits.abs().max()))
    spread = float((logits.amax(0) - logits.amin(0)).max()) / scale
    classes = logits.argmax(2)
    # Two classes that tie to the last digit are no randomness.
    flips = (classes != classes[0]).any(0) & ((logits.amax(0) - logits.amin(0)).amax(1) > TOLERANCE * scale)
    return spread, float(flips.double().mean())


def logit_range(case: Case) -> Finding:
    """Return E20: whether the model returns logits, judged by range and sum."""
    if case.returns_probabilities:
        furthest = float((case.logits.double().exp().sum(1) - 1).abs().max())
        return Finding(
            "E20", LOGITS, Status.WARN,
            f"The model returns probabilities (they sum to 1 within {furthest:.1e}), on which many losses stand still; "
            "everything here was measured on their logarithm.",
            "Remove the softmax at its end, or take the logarithm before you attack.", furthest, "",
        )  # fmt: skip
    furthest = float((case.logits.double().sum(1) - 1).abs().max())
    low, high = float(case.logits.min()), float(case.logits.max())
    details = {"low": low, "high": high}
    if low >= 0 and high <= 1:
        return Finding(
            "E20", LOGITS, Status.WARN,
            f"All outputs lie between {low:.2g} and {high:.2g}, as squashed ones do, on which many losses stand still.",
            "Attack what stands before the squashing.", furthest, "", details,
        )  # fmt: skip
    return Finding(
        "E20", LOGITS, Status.PASS,
        f"Outputs range from {low:.3g} to {high:.3g}, with sums up to {furthest:.3g} away from 1: they are logits.",
        "", furthest, "", details,
    )  # fmt: skip


def optimisation(case: Case) -> Finding:
    """Return E21: whether a forward pass takes gradients, steps an optimiser, loops, or is only slow."""
    work = workload(case)
    details = {**vars(work), "calls": dict(work.calls), "slowness": work.slowness}
    for status, reasons in ((Status.FAIL, loops(work)), (Status.WARN, _many(work))):
        if reasons:
            return Finding(
                "E21", OPTIMISATION, status,
                f"One forward pass {' and '.join(reasons)}: attacks of a fixed budget get less done on such a model, "
                "which is no robustness.",
                "Measure it without the loop, or with an attack made for it and the budget that it asks for.",
                float(work.most_calls), "", details,
            )  # fmt: skip
    return Finding(
        "E21", OPTIMISATION, Status.PASS,
        f"A forward pass of {len(_few(case))} images takes {1000 * work.seconds:.1f} ms and no gradient, and calls a "
        f"layer {max(1, work.most_calls)} time{'s' if work.most_calls > 1 else ''} at most.",
        "", float(work.most_calls), "", details,
    )  # fmt: skip


def loops(work: Workload) -> list[str]:
    """Return what a pass does that a plain network does not, as phrases; nothing for a plain one."""
    reasons = []
    if work.backward:
        reasons.append(f"takes gradients ({work.backward} operations of a backward pass)")
    if work.optimizer_steps:
        reasons.append(f"makes {work.optimizer_steps} steps of an optimiser")
    if work.most_calls > MOST_CALLS:
        reasons.append(f"calls the same layer {work.most_calls} times")
    if work.seconds > FLOOR and work.slowness > SLOWER:
        reasons.append(
            f"takes {work.seconds:.2f} s, {work.slowness:.2g} times as long as a plain network of as many operations"
        )
    return reasons


def _many(work: Workload) -> list[str]:
    return [f"calls the same layer {work.most_calls} times"] if work.most_calls > MANY_CALLS else []


def workload(case: Case) -> Workload:
    """Return what one forward pass of the model does; remembered."""
    if "workload" not in case.memo:
        case.memo["workload"] = watched(case.model, _few(case))
    found: Workload = case.memo["workload"]
    return found


def _few(case: Case) -> Tensor:
    return case.x[:TRACED_ROWS]


def admission(case: Case) -> Finding:
    """Return E33: whether RobustBench's rules for a model are kept, and which are not."""
    zero = 100 * max(useless_shares(case).values())
    rules: dict[str, Callable[[], bool]] = {
        f"gradients vanish on {zero:.1f} % of the images (E17)": lambda: zero > ALLOWED_ZERO,
        "its forward pass is random (E19)": lambda: is_random(case),
        "it optimises or loops at inference (E21)": lambda: bool(loops(workload(case))),
    }
    broken = [reason for reason, holds in rules.items() if holds()]
    details = {"admitted": not broken, "reasons": broken}
    if broken:
        return Finding(
            "E33", ADMISSION, Status.WARN, f"No: {'; '.join(broken)}.",
            "Nothing, if no leaderboard is meant; else remove what is named.", None, "", details,
        )  # fmt: skip
    return Finding(
        "E33", ADMISSION, Status.PASS,
        "Yes: gradients are not zero, the forward pass is deterministic, and there is no optimisation loop.",
        details=details,
    )  # fmt: skip
