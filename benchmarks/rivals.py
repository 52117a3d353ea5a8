"""One call per library and attack, ``call(x, y) -> x_adv``, with what a user prepares once prepared outside of it."""

import importlib.util
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torchattacks
from torch import Tensor, nn

from amc_lightning.attacks import load

Call = Callable[[Tensor, Tensor], Tensor]
OURS: Mapping[str, Mapping[str, bool]] = {
    "plain": {},
    "fast": {"fast": True},
    "fast bf16": {"fast": True, "bf16": True},
}
COLUMNS = ("torchattacks", "foolbox", "ART", *OURS)
PACKAGES = {"foolbox": "foolbox", "ART": "art"}


class LeftOutError(Exception):
    """Says why a library has no number in a row."""


@dataclass(frozen=True)
class Row:
    """One attack, under this project's names, and the passes it must make.

    Attributes:
        title: what the table calls it.
        attack: ``fgsm``, ``pgm``, ``eap`` or ``vap``.
        arguments: for ``load``.
        gradient: passes forward and backward to the input per image.
        forward: plain forward passes per image besides.
        rounds: at most so many rounds, for rows that take minutes; None for as many as asked for.
        batch: at most so many images, for the same reason.
    """

    title: str
    attack: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    gradient: int = 1
    forward: int = 0
    rounds: int | None = None
    batch: int | None = None


def prepared(column: str, row: Row, net: nn.Module, shape: tuple[int, int, int]) -> Call:
    """Return one library's attack on a net in eval mode.

    Args:
        column: one of ``COLUMNS``.
        row: what to do.
        net: returns logits.
        shape: (C, H, W) of the images.

    Raises:
        LeftOutError: if the library is missing, has no such attack, or its attack does not work with these arguments.
    """
    if column in OURS:
        return _ours(row, net, **OURS[column])
    if column in PACKAGES and importlib.util.find_spec(PACKAGES[column]) is None:
        raise LeftOutError("not installed")
    if column == "ART" and row.arguments.get("method") == "logit":
        raise LeftOutError("as exact")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecated names in imports
        return {"torchattacks": _torchattacks, "foolbox": _foolbox, "ART": _art}[column](row, net, shape)


def _ours(row: Row, net: nn.Module, **execution: bool) -> Call:
    attack = load(row.attack, **row.arguments, **execution)
    return lambda x, y: attack(net, x, y)


def _torchattacks(row: Row, net: nn.Module, shape: tuple[int, int, int]) -> Call:
    given = row.arguments
    if row.attack == "fgsm":
        return torchattacks.FGSM(net, eps=given["eps"])
    if row.attack == "pgm":
        return torchattacks.PGD(net, eps=given["eps"], alpha=given["eps_iter"], steps=given["nb_iter"])
    if row.attack == "vap":
        raise LeftOutError("has none")
    if given["abort_early"] and given["max_iterations"] < 10:
        raise LeftOutError("crashes")  # iteration % (max_iterations // 10)
    return torchattacks.EADEN(
        net,
        lr=given["learning_rate"],
        binary_search_steps=given["binary_search_steps"],
        max_iterations=given["max_iterations"],
        abort_early=given["abort_early"],
        initial_const=given["initial_const"],
        beta=given["beta"],
    )


def _foolbox(row: Row, net: nn.Module, shape: tuple[int, int, int]) -> Call:
    """Call ``run``, the attack without the check of success that ``__call__`` adds."""
    import foolbox as fb

    given = row.arguments
    model = fb.PyTorchModel(net, bounds=(0, 1), device=next(net.parameters()).device)
    budget = {} if row.attack == "eap" else {"epsilon": given["eps"]}
    if row.attack == "fgsm":
        attack = fb.attacks.LinfFastGradientAttack()
    elif row.attack == "pgm":
        attack = fb.attacks.LinfPGD(abs_stepsize=given["eps_iter"], steps=given["nb_iter"])
    elif row.attack == "vap":
        attack = fb.attacks.VirtualAdversarialAttack(steps=given["num_iters"])
    else:
        attack = fb.attacks.EADAttack(
            binary_search_steps=given["binary_search_steps"],
            steps=given["max_iterations"],
            initial_stepsize=given["learning_rate"],
            initial_const=given["initial_const"],
            regularization=given["beta"],
            abort_early=given["abort_early"],
        )
    return lambda x, y: attack.run(model, x, fb.criteria.Misclassification(y), **budget)


def _art(row: Row, net: nn.Module, shape: tuple[int, int, int]) -> Call:
    from art.attacks import evasion
    from art.estimators.classification import PyTorchClassifier

    given = row.arguments
    device = next(net.parameters()).device
    classifier = PyTorchClassifier(
        nn.Sequential(net, nn.Softmax(dim=1)).eval() if row.attack == "vap" else net,  # its VAP wants probabilities
        loss=nn.CrossEntropyLoss(),
        input_shape=shape,
        nb_classes=10,
        clip_values=(0.0, 1.0),
        device_type="cpu" if device.type == "cpu" else "gpu",
    )
    if row.attack == "fgsm":
        attack = evasion.FastGradientMethod(classifier, eps=given["eps"], batch_size=128)
    elif row.attack == "pgm":
        attack = evasion.ProjectedGradientDescentPyTorch(
            classifier,
            eps=given["eps"],
            eps_step=given["eps_iter"],
            max_iter=given["nb_iter"],
            num_random_init=1,
            batch_size=128,
            verbose=False,
        )
    elif row.attack == "vap":
        attack = evasion.VirtualAdversarialMethod(
            classifier, eps=given["eps"], max_iter=given["num_iters"], batch_size=128, verbose=False
        )
    else:
        if given["abort_early"]:
            raise LeftOutError("has none")
        attack = evasion.ElasticNet(
            classifier,
            learning_rate=given["learning_rate"],
            binary_search_steps=given["binary_search_steps"],
            max_iter=given["max_iterations"],
            beta=given["beta"],
            initial_const=given["initial_const"],
            batch_size=128,
            verbose=False,
        )

    def call(x: Tensor, y: Tensor) -> Tensor:
        return torch.from_numpy(attack.generate(x.cpu().numpy(), y.cpu().numpy())).to(x)

    return call
