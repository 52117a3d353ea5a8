"""FGSM and PGD against torchattacks, foolbox and ART: the same images from the same starts.

A sign is a matter of rounding where the gradient is: FGSM is compared where the float64 gradient is not tiny beside the
row's largest. In float64 nothing is left out.
"""

from types import ModuleType

import numpy as np
import pytest
import torch
import torchattacks
from torch import Tensor, nn
from torch.nn import functional

from amc_lightning.attacks import load
from tests.parity.conftest import Case

pytestmark = pytest.mark.parity

EPS, STEP_SIZE, STEPS = 0.2, 0.05, 7
LIBRARIES = ("torchattacks", "foolbox", "art")


def art_classifier(art: ModuleType, model: nn.Module, x: Tensor) -> object:
    return art.estimators.classification.PyTorchClassifier(
        model,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(x.shape[1:]),
        nb_classes=10,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )


def gradient(case: Case) -> Tensor:
    """The float64 gradient of the cross-entropy, each row scaled to a largest entry of 1."""
    exact = case.double()
    x = exact.x.requires_grad_()
    (found,) = torch.autograd.grad(functional.cross_entropy(exact.model(x), exact.y, reduction="sum"), x)
    return found / found.flatten(1).abs().amax(dim=1).view(-1, 1, 1, 1)


def rival_fgsm(name: str, request: pytest.FixtureRequest, case: Case) -> Tensor:
    if name == "torchattacks":
        return torchattacks.FGSM(case.model, eps=EPS)(case.x, case.y)
    if name == "foolbox":
        fb = request.getfixturevalue("foolbox")
        fmodel = fb.PyTorchModel(case.model, bounds=(0, 1))
        return fb.attacks.LinfFastGradientAttack().run(
            fmodel, case.x, fb.criteria.Misclassification(case.y), epsilon=EPS
        )
    art = request.getfixturevalue("art")
    attack = art.attacks.evasion.FastGradientMethod(art_classifier(art, case.model, case.x), eps=EPS, batch_size=512)
    return torch.from_numpy(attack.generate(case.x.numpy(), case.y.numpy()))


def rival_pgd(
    name: str,
    request: pytest.FixtureRequest,
    case: Case,
    *,
    norm: str = "linf",
    eps: float = EPS,
    step_size: float = STEP_SIZE,
    start: Tensor | None = None,
) -> Tensor:
    """Run a rival from the image, or from ``x + start``; torchattacks draws a start of its own from its seed."""
    if name == "torchattacks":
        rules = {"eps": eps, "alpha": step_size, "steps": STEPS, "random_start": start is not None}
        if norm == "linf":
            return torchattacks.PGD(case.model, **rules)(case.x, case.y)
        return torchattacks.PGDL2(case.model, **rules, eps_for_division=1e-30)(case.x, case.y)
    if name == "foolbox":
        fb = request.getfixturevalue("foolbox")
        made = {"linf": fb.attacks.LinfPGD, "l2": fb.attacks.L2PGD}[norm]
        attack = made(abs_stepsize=step_size, steps=STEPS, random_start=start is not None)
        if start is not None:
            attack.get_random_start = lambda x0, epsilon: x0 + type(x0)(start)
        fmodel = fb.PyTorchModel(case.model, bounds=(0, 1))
        return attack.run(fmodel, case.x, fb.criteria.Misclassification(case.y), epsilon=eps)
    art = request.getfixturevalue("art")
    module = art.attacks.evasion.projected_gradient_descent.projected_gradient_descent_pytorch
    attack = module.ProjectedGradientDescentPyTorch(
        art_classifier(art, case.model, case.x),
        norm={"linf": np.inf, "l2": 2}[norm],
        eps=eps,
        eps_step=step_size,
        max_iter=STEPS,
        num_random_init=int(start is not None),
        batch_size=512,
        verbose=False,
    )
    with pytest.MonkeyPatch.context() as patch:
        if start is not None:
            patch.setattr(module, "random_sphere", lambda *arguments: start.numpy())
        return torch.from_numpy(attack.generate(case.x.numpy(), case.y.numpy()))


def start_of_torchattacks(x: Tensor, *, norm: str = "linf", eps: float = EPS) -> Tensor:
    """What its next call on images like these will draw, in units of eps; its l2 radius is uniform, ours the volume."""
    with torch.random.fork_rng(devices=[]):
        if norm == "linf":
            return torch.empty_like(x).uniform_(-eps, eps) / eps
        direction = torch.empty_like(x).normal_()
        lengths = direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return direction * torch.zeros_like(lengths).uniform_(0, 1) / lengths


@pytest.mark.parametrize("name", LIBRARIES)
def test_fgsm(name: str, case: Case, request: pytest.FixtureRequest) -> None:
    theirs = rival_fgsm(name, request, case)
    ours = load("fgsm", eps=EPS)(case.model, case.x, case.y)
    clear = gradient(case).abs() > 1e-4
    assert clear.float().mean() > 0.5
    torch.testing.assert_close(ours[clear], theirs[clear], rtol=0, atol=1e-6)
    assert ((ours - theirs).abs() <= 1e-6).float().mean() > 0.999


@pytest.mark.parametrize("name", ["torchattacks", "foolbox"])
def test_fgsm_in_float64(name: str, case: Case, request: pytest.FixtureRequest) -> None:
    exact = case.double()
    ours = load("fgsm", eps=EPS)(exact.model, exact.x, exact.y)
    torch.testing.assert_close(ours, rival_fgsm(name, request, exact), rtol=0, atol=1e-9)


@pytest.mark.parametrize("started", [False, True], ids=["from the image", "from a given start"])
@pytest.mark.parametrize("name", LIBRARIES)
def test_pgm(name: str, started: bool, case: Case, request: pytest.FixtureRequest) -> None:
    noise = start_of_torchattacks(case.x) if started else None
    theirs = rival_pgd(name, request, case, start=None if noise is None else EPS * noise)
    attack = load("pgm", eps=EPS, eps_iter=STEP_SIZE, nb_iter=STEPS, rand_init=started)
    ours = attack(case.model, case.x, case.y, noise=noise)
    assert ((ours - theirs).abs() <= 1e-6).double().mean() >= 0.999
    assert (ours != case.x).float().mean() > 0.5


@pytest.mark.parametrize("started", [False, True], ids=["from the image", "from a given start"])
@pytest.mark.parametrize("name", ["torchattacks", "foolbox"])
def test_pgm_in_float64(name: str, started: bool, case: Case, request: pytest.FixtureRequest) -> None:
    exact = case.double()
    noise = start_of_torchattacks(exact.x) if started else None
    theirs = rival_pgd(name, request, exact, start=None if noise is None else EPS * noise)
    attack = load("pgm", eps=EPS, eps_iter=STEP_SIZE, nb_iter=STEPS, rand_init=started)
    ours = attack(exact.model, exact.x, exact.y, noise=noise)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("started", [False, True], ids=["from the image", "from a given start"])
@pytest.mark.parametrize("name", ["torchattacks", "foolbox"])
def test_l2_in_float64(name: str, started: bool, case: Case, request: pytest.FixtureRequest) -> None:
    exact, eps, step_size = case.double(), 1.0, 0.3
    noise = start_of_torchattacks(exact.x, norm="l2") if started else None
    start = None if noise is None else eps * noise
    theirs = rival_pgd(name, request, exact, norm="l2", eps=eps, step_size=step_size, start=start)
    attack = load("pgd_l2", eps=eps, eps_iter=step_size, nb_iter=STEPS, rand_init=started)
    ours = attack(exact.model, exact.x, exact.y, noise=noise)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    lengths = (ours - exact.x).flatten(1).norm(dim=1)
    assert lengths.max() <= eps + 1e-9
    assert lengths.median() > 0.5 * eps


def test_l2_of_art_away_from_the_box(case: Case, request: pytest.FixtureRequest) -> None:
    """ART clips to the box before it projects, which differs on the faces of the box."""
    inner = Case(case.model, 0.3 + 0.4 * case.x, case.y)
    theirs = rival_pgd("art", request, inner, norm="l2", eps=0.5, step_size=0.15)
    ours = load("pgd_l2", eps=0.5, eps_iter=0.15, nb_iter=STEPS, rand_init=False)(inner.model, inner.x, inner.y)
    assert ours.min() > 0.02
    assert ours.max() < 0.98
    assert ((ours - theirs).abs() <= 1e-5).double().mean() >= 0.999
