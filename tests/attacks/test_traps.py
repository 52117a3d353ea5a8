"""Numerical traps that other libraries spring, each shown on them (or on naive code), then on our attacks.

Every test first asserts that the trap is real, so that a library that mends its defect, or a net that hides it, is
noticed; numbers in the asserts leave room to those of the digits net below.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import torchattacks
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from amc_lightning.attacks import PGDL2, VAP, GuardedAttack, load
from amc_lightning.errors import UserError


class DigitNet(nn.Module):
    """Convolutions and max pooling, without which flat backgrounds would have no ties."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(12, 24, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(96, 48), nn.ReLU(), nn.Linear(48, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Mapped(nn.Module):
    """A model with something before it and something after it."""

    def __init__(
        self,
        inner: nn.Module,
        after: Callable[[Tensor], Tensor] = lambda logits: logits,
        before: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        super().__init__()
        self.inner, self.after, self.before = inner, after, before

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.inner(self.before(x)))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    found = load_digits()
    return torch.tensor(found.images / 16, dtype=torch.float32)[:, None], torch.tensor(found.target)


@pytest.fixture(scope="module")
def trained(digits: tuple[Tensor, Tensor]) -> nn.Module:
    x, y = digits
    with seeded(0):
        net = DigitNet()
        optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
        for _ in range(200):
            rows = torch.randint(1500, (64,))
            loss = functional.cross_entropy(net(x[rows]), y[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return net.eval().requires_grad_(False)


@pytest.fixture
def net(trained: nn.Module) -> nn.Module:
    """A net of its own for each test, in eval mode, without gradients."""
    return copy.deepcopy(trained).requires_grad_()


@pytest.fixture
def batch(digits: tuple[Tensor, Tensor], trained: nn.Module) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Images that the net has not seen, with its own answers."""

    def make(size: int) -> tuple[Tensor, Tensor]:
        x = digits[0][1500 : 1500 + size].clone()
        return x, trained(x).argmax(dim=1)

    return make


Batch = Callable[[int], tuple[Tensor, Tensor]]


def margin(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return by how much another class leads."""
    with torch.no_grad():
        logits, column = model(x), y.unsqueeze(1)
    return logits.scatter(1, column, -math.inf).amax(dim=1) - logits.gather(1, column).squeeze(1)


def distance(x_adv: Tensor, x: Tensor, beta: float = 0.01) -> Tensor:
    """Return the elastic-net distance of each row."""
    delta = (x_adv.detach() - x).flatten(1)
    return delta.square().sum(dim=1) + beta * delta.abs().sum(dim=1)


def moved(x_adv: Tensor, x: Tensor, least: float = 0.0) -> Tensor:
    return (x_adv.detach() - x).flatten(1).abs().amax(dim=1) > least


def their_ead(model: nn.Module, kind: str = "EADEN", **arguments: object) -> torchattacks.attack.Attack:
    common = {"lr": 0.05, "binary_search_steps": 4, "max_iterations": 20, "initial_const": 1.0, "beta": 0.01}
    return getattr(torchattacks, kind)(model, **{**common, "abort_early": False, **arguments})


def our_ead(**arguments: object) -> GuardedAttack:
    common = {"learning_rate": 0.05, "binary_search_steps": 4, "max_iterations": 20, "initial_const": 1.0}
    return load("eap", **{**common, "beta": 0.01, **arguments})


# The elastic-net attack and CW: reference image, margins, confidence, search.


@pytest.mark.parametrize(("kind", "rule"), [("EADL1", "L1"), ("EADEN", "EN")])
@pytest.mark.parametrize("c", [1.0, 10.0])
def test_ead_keeps_its_reference_image(net: nn.Module, batch: Batch, kind: str, rule: str, c: float) -> None:
    """`y_k = nn.Parameter(images)` shares memory with ``images``: the first step moves the origin of all distances."""
    x, y = batch(16)
    theirs = their_ead(net, kind, initial_const=c, binary_search_steps=3)(x, y).detach()
    assert theirs.min() < -0.01
    assert theirs.max() > 1.01
    assert (theirs != x).float().mean() > 0.9

    ours = our_ead(initial_const=c, binary_search_steps=3, decision_rule=rule)(net, x, y)
    assert (margin(net, ours, y) > 0).all()
    assert ours.min() >= 0
    assert ours.max() <= 1
    assert (ours != x).float().mean() < 0.7
    assert distance(ours, x).median() < (0.1 if c == 10 else 1.05) * distance(theirs, x).median()


NEGATIVE = {"log-softmax": lambda logits: logits.log_softmax(dim=1), "minus 60": lambda logits: logits - 60}


@pytest.mark.parametrize("change", NEGATIVE.values(), ids=NEGATIVE)
def test_cw_with_negative_logits(net: nn.Module, batch: Batch, change: Callable[[Tensor], Tensor]) -> None:
    """`max(one_hot * logits)` is 0, not the true logit, where that is negative."""
    x, y = batch(16)
    model = Mapped(net, change).eval()
    assert (model(x) <= 0).all()
    assert (margin(net, torchattacks.CW(net, c=10, steps=40, lr=0.05)(x, y), y) > 0).all()
    assert not moved(torchattacks.CW(model, c=10, steps=40, lr=0.05)(x, y), x, 1e-5).any()

    attack = load("cw", learning_rate=0.05, initial_const=10.0, binary_search_steps=1, max_iterations=40)
    ours = attack(model, x, y)
    assert (margin(net, ours, y) > 0).all()
    torch.testing.assert_close(distance(ours, x), distance(attack(net, x, y), x), rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("change", NEGATIVE.values(), ids=NEGATIVE)
def test_ead_with_negative_logits(net: nn.Module, batch: Batch, change: Callable[[Tensor], Tensor]) -> None:
    """The same margin; rows that are wrong from the start are perturbed, too."""
    x, y = batch(16)
    model = Mapped(net, change).eval()
    wrong = (y + 1) % 10
    assert not moved(their_ead(net)(x.clone(), wrong), x, 1e-5).any()
    assert moved(their_ead(model)(x.clone(), wrong), x, 1e-5).float().mean() > 0.7

    assert torch.equal(our_ead()(model, x, wrong), x)
    ours, expected = our_ead(initial_const=0.1)(model, x, y), our_ead(initial_const=0.1)(net, x, y)
    assert (margin(net, ours, y) > 0).all()
    torch.testing.assert_close(distance(ours, x), distance(expected, x), rtol=0.02, atol=1e-3)


def test_confidence_is_the_rows_own(net: nn.Module, batch: Batch) -> None:
    """`output[:, labels] += kappa` raises the columns of all labels of the batch, in all rows."""
    x, y = batch(24)
    theirs = their_ead(net, kappa=3)
    alone = torch.cat([theirs(x[i : i + 1].clone(), y[i : i + 1]).detach() for i in range(8)])
    assert (margin(net, alone, y[:8]) >= 3 - 1e-3).all()
    assert (margin(net, theirs(x.clone(), y), y) >= 3 - 1e-3).float().mean() < 0.7

    for attack in (
        our_ead(confidence=3.0),
        load("cw", confidence=3.0, learning_rate=0.2, max_iterations=40, binary_search_steps=3, initial_const=1.0),
    ):
        assert (margin(net, attack(net, x, y), y) >= 3 - 1e-3).all()


@pytest.mark.parametrize("iterations", [1, 2, 5, 9])
def test_fewer_than_ten_iterations(net: nn.Module, batch: Batch, iterations: int) -> None:
    """`iteration % (max_iterations // 10)` divides by zero."""
    x, y = batch(4)
    with pytest.raises(ZeroDivisionError):
        their_ead(net, max_iterations=iterations, abort_early=True)(x.clone(), y)

    short = {"max_iterations": iterations, "abort_early": True, "binary_search_steps": 3, "learning_rate": 0.3}
    for name in ("eap", "cw"):
        x_adv = load(name, initial_const=10.0, **short)(net, x, y)
        assert moved(x_adv, x).any()


def test_early_abort_is_the_rows_own(net: nn.Module, batch: Batch) -> None:
    """`if loss > prevloss` compares the loss of the whole batch: what a row gets depends on its company."""
    x, y = batch(16)
    theirs = their_ead(net, abort_early=True, max_iterations=50)
    together = distance(theirs(x.clone(), y), x)
    alone = torch.cat([distance(theirs(x[i : i + 1].clone(), y[i : i + 1]), x[i : i + 1]) for i in range(16)])
    assert (together / alone - 1).abs().max() > 0.02

    net, x = net.double(), x.double()
    ours = our_ead(abort_early=True, max_iterations=50)
    full, whole = our_ead(max_iterations=50)(net, x, y), ours(net, x, y)
    assert not torch.equal(full, whole), "no row has aborted"
    for i in range(16):
        torch.testing.assert_close(ours(net, x[i : i + 1], y[i : i + 1])[0], whole[i], rtol=0, atol=1e-9)


def test_a_new_c_starts_at_the_clean_image(net: nn.Module, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two search steps of which the first finds nothing are one step with ten times its c."""
    x, y = batch(16)
    net, x = net.double(), x.double()
    small, large = {"initial_const": 0.02, "beta": 1e-3}, {"initial_const": 0.2, "beta": 1e-3}
    ours = our_ead(**small, binary_search_steps=2)(net, x, y)
    unfound = ~moved(our_ead(**small, binary_search_steps=1)(net, x, y), x)
    once = our_ead(**large, binary_search_steps=1)(net, x, y)
    assert (unfound & moved(once, x)).sum() >= 3
    torch.testing.assert_close(ours[unfound], once[unfound], rtol=0, atol=1e-9)

    # Their x_k and y_k go on from where the last c left them; their other defect is taken out of the way first.
    eaden, x, net = torchattacks.attacks.eaden, x.float(), net.float()
    monkeypatch.setattr(eaden, "nn", _Namespace(nn, Parameter=lambda images: nn.Parameter(images.clone())))
    twice = their_ead(net, **small, binary_search_steps=2)(x, y)
    single = their_ead(net, **large, binary_search_steps=1)(x, y)
    assert moved(twice[unfound], single.detach()[unfound], 1e-3).any()


class _Namespace:
    def __init__(self, inner: object, **changed: object) -> None:
        self.__dict__.update(vars(inner), **changed)


def test_cw_moves_pixels_that_are_black_or_white(net: nn.Module, batch: Batch) -> None:
    """The inverse of tanh is infinite there, and its gradient nothing or NaN."""
    x, _ = batch(16)
    x = x.round()
    y = net(x).argmax(dim=1)
    theirs = torchattacks.CW(net, c=10, steps=40, lr=0.05)(x, y)
    assert not moved(theirs.nan_to_num(0.5), x, 1e-5).any() or theirs.isnan().any()

    # No early abort: the loss does not fall while a pixel is on its way out of the corner.
    once = {"binary_search_steps": 1, "max_iterations": 40, "abort_early": False}
    ours = load("cw", initial_const=10.0, learning_rate=0.3, **once)(net, x, y)
    assert (margin(net, ours, y) > 0).all()


# Precision: float64, half precision, saturation, reductions.


@pytest.mark.parametrize("name", ["fgsm", "pgm", "pgd_l2", "pgd_l1", "vap", "eap", "cw", "deepfool"])
def test_a_float64_model_is_attacked_in_float64(net: nn.Module, batch: Batch, name: str) -> None:
    """EAD's float32 buffers raise; a cast to float32, as cleverhans and ART make it, loses a small budget."""
    x, y = batch(4)
    net, x = net.double(), 0.25 + 0.5 * x.double()
    with pytest.raises(RuntimeError, match="dtype"):
        their_ead(net)(x.clone(), y)
    eps = 1e-9
    assert torch.equal((x.float() + eps).double(), x.float().double())

    if name in ("eap", "cw", "deepfool"):
        short = {"eap": {"max_iterations": 5}, "cw": {"max_iterations": 25, "initial_const": 10.0}, "deepfool": {}}
        x_adv = load(name, **short[name])(net, x, net(x).argmax(dim=1))
        assert moved(x_adv, x).any()
        changed = x_adv[x_adv != x]
        assert (changed != changed.float()).float().mean() > 0.9, "no more digits than float32 has"
    else:
        attack = load(name, eps=eps, **({"nb_iter": 3, "eps_iter": None} if name.startswith("pg") else {}))
        crafted = attack.craft(net, x, y)
        x_adv = crafted.x_adv
        assert (crafted.distances[attack.norm] > 0.2 * eps).all()
        assert (crafted.distances[attack.norm] <= eps * (1 + 1e-5)).all()
    assert x_adv.dtype == torch.float64


def fan(classes: int, size: float = 2.0) -> nn.Module:
    """A linear net on 64 pixels of which class 0 leads by about ``size`` in the middle of the box."""
    layer = nn.Linear(64, classes)
    with seeded(3), torch.no_grad():
        layer.weight.copy_(size * torch.randn(classes, 64) / 8)
        layer.bias.copy_(-0.5 * layer.weight.sum(dim=1))
        layer.bias[0] += size
    return nn.Sequential(nn.Flatten(), layer).eval()


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lead", [40.0, 400.0])
def test_a_saturated_answer_in_half_precision(classes: int, dtype: torch.dtype, lead: float) -> None:
    """p_y - 1 rounds to 0 before the other probabilities do: the gradient is wrong first, and then nothing."""
    x, y = 0.4 + 0.2 * torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(8).long()
    layer = fan(classes, lead)
    model = Mapped(layer, lambda logits: logits.to(dtype))
    with torch.no_grad():
        logits = layer.double()(x.double())
        others = logits[:, 1:].softmax(dim=1)
        uphill = (others @ layer[1].weight[1:] - layer[1].weight[0]).view_as(x).sign()
        layer.float()
    naive = (torchattacks.FGSM(model, eps=0.1)(x, y) - x).sign()
    assert ((naive == uphill).float().mean() < 0.9) if lead == 40 else not naive.any()

    for attack in (load("fgsm", eps=0.1), load("pgm", eps=0.1, eps_iter=0.1, nb_iter=1, rand_init=False)):
        crafted = attack.craft(model, x, y)
        assert not crafted.zero_gradient.any()
        # Rounded to half precision, the others' logits are not quite what they were.
        assert ((crafted.x_adv - x).sign() == uphill).float().mean() > (0.999 if classes == 2 else 0.9)


def test_a_rows_gradient_does_not_shrink_with_the_batch() -> None:
    """A mean over the batch divides by its size: in float16, a small probability is then no number any more."""
    size, model = 512, Mapped(fan(2, 13.0), lambda logits: logits.half())
    x = 0.49 + 0.02 * torch.rand(size, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(size).long()
    assert not moved(torchattacks.FGSM(model, eps=0.1)(x, y), x).any()
    assert moved(torchattacks.FGSM(model, eps=0.1)(x[:1], y[:1]), x[:1]).all()

    for attack in (load("fgsm", eps=0.1), load("pgm", eps=0.1, eps_iter=0.05, nb_iter=2, rand_init=False)):
        x_adv = attack(model, x, y)
        assert moved(x_adv, x, 0.09).all()
        assert torch.equal(attack(model, x[:3], y[:3]), x_adv[:3])


@pytest.mark.parametrize("name", ["pgd_l2", "pgd_l1", "vap"])
def test_lengths_are_the_rows_own(net: nn.Module, batch: Batch, name: str) -> None:
    """A norm over the whole batch gives the budget to the rows with the largest gradients."""
    x, y = batch(16)
    model = Mapped(net, before=lambda images: (images - 0.3) / 0.4)
    x = 0.3 + 0.4 * x
    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(functional.cross_entropy(model(point), y, reduction="sum"), point)
    naive = (0.1 * gradient / gradient.norm()).flatten(1).norm(dim=1)
    assert naive.max() > 100 * naive.min()

    arguments = {} if name == "vap" else {"eps_iter": 0.1, "nb_iter": 1, "rand_init": False}
    attack = load(name, eps=0.1, **arguments)
    lengths = attack.craft(model, x, y).distances[attack.norm]
    torch.testing.assert_close(lengths, torch.full_like(lengths, 0.1), rtol=1e-4, atol=0)


def test_a_half_precision_model_does_not_round_images_out_of_the_budget(net: nn.Module, batch: Batch) -> None:
    """Images in bfloat16 have steps of 2^-8 below 1: more than a tenth of eps = 8/255."""
    x, y = batch(8)
    x, eps = 0.1 + 0.8 * x, 8 / 255
    model = net.to(torch.bfloat16)
    theirs = torchattacks.PGD(model, eps=eps, alpha=eps / 3, steps=5, random_start=False)(x.bfloat16(), y)
    assert (theirs.double() - x.double()).abs().max() > 1.03 * eps
    ours = load("pgm", eps=eps, eps_iter=eps / 3, nb_iter=5)
    cast = ours(model, x, y).bfloat16()
    assert (cast.double() - x.double()).abs().max() > 1.03 * eps, "a cast afterwards does the same"

    crafted = ours.craft(model, x, y)
    assert crafted.x_adv.dtype == torch.float32
    assert (crafted.distances["linf"] <= eps + 1e-7).all()
    assert (crafted.distances["linf"] > 0.99 * eps).all()
    with torch.no_grad():
        assert torch.equal(crafted.fooled, model(crafted.x_adv.bfloat16()).argmax(dim=1) != y)


def test_the_last_step_counts() -> None:
    """adv-lib's PGD returns the iterate at which it took its last gradient."""
    model, x, y = fan(3), torch.full((2, 1, 8, 8), 0.5), torch.zeros(2).long()
    x_adv = naive = x
    for _ in range(1):
        point = x_adv.clone().requires_grad_()
        loss = functional.cross_entropy(model(point), y)
        naive, x_adv = x_adv, x_adv + 0.1 * torch.autograd.grad(loss, point)[0].sign()
    assert not moved(naive, x).any()

    arguments = {"eps": 0.1, "eps_iter": 0.1, "nb_iter": 1, "rand_init": False}
    for more in ({}, {"keep_best": True}, {"compact": True}):
        torch.testing.assert_close(load("pgm", **arguments, **more)(model, x, y), x_adv)


# AutoAttack: its budget, its number of classes, its results.


class Unfooled(nn.Module):
    """Cannot be fooled, has a gradient everywhere, and counts its rows by kind of pass."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.inner = fan(classes)
        self.gradient_rows = 0

    def forward(self, x: Tensor) -> Tensor:
        self.gradient_rows += len(x) * (x.requires_grad and torch.is_grad_enabled())
        logits = self.inner(x)
        return torch.cat([logits[:, :1] + 1e3, logits[:, 1:]], dim=1)


def test_autoattack_makes_the_references_number_of_steps(capsys: pytest.CaptureFixture[str]) -> None:
    """torchattacks' AutoAttack runs the defaults of its members, a tenth of the reference's steps."""
    theirs = torchattacks.AutoAttack(fan(4), n_classes=4)
    members = theirs._autoattack.attacks if hasattr(theirs, "_autoattack") else theirs.attacks
    assert [member.steps for member in list(members.values() if isinstance(members, dict) else members)[:3]] == 3 * [10]

    ours = load("autoattack")
    assert ours.params["nb_iter"] == 100
    assert ours.params["n_queries"] == 5000
    assert {load(name).params["nb_iter"] for name in ("apgd_ce", "apgd_t", "fab")} == {100}
    model, x = Unfooled(4), torch.full((2, 1, 8, 8), 0.5)
    load("autoattack", n_queries=1)(model, x, torch.zeros(2).long())
    assert model.gradient_rows / 2 >= 100 + 3 * 100 + 3 * 100  # APGD-CE, then three targets each
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("classes", [2, 3, 4, 12])
def test_the_number_of_classes_is_read_from_the_model(classes: int) -> None:
    """torchattacks has to be told; if it is not, it takes 10 for granted."""
    model, x, y = fan(classes, 0.1), torch.full((2, 1, 8, 8), 0.5), torch.zeros(2).long()
    assert torchattacks.AutoAttack(model).n_classes == 10
    crafted = load("autoattack", eps=0.2, nb_iter=5, n_queries=5).craft(model, x, y)
    assert crafted.fooled.all()
    if classes < 4:
        with pytest.raises(UserError, match="too few for the targeted DLR loss"):
            load("apgd_t")(model, x, y)


def test_results_carry_no_graph(net: nn.Module, batch: Batch) -> None:
    """A result that carries its graph keeps every activation alive, and sends the training loss back through it."""
    x, y = batch(4)
    point = x.clone().requires_grad_()
    naive = point + 0.1 * torch.autograd.grad(net(point).sum(), point)[0].sign()  # as cleverhans returns it
    assert naive.requires_grad
    assert torchattacks.APGD(net, steps=3, eps=0.1)(x, y).requires_grad

    for name in ("fgsm", "vap", "apgd_ce", "apgd_t", "fab", "deepfool"):
        x_adv = load(name)(net, point, y)
        assert not x_adv.requires_grad
        assert x_adv.grad_fn is None
    assert point.grad is None
    loss = functional.cross_entropy(net(load("fgsm")(net, x, y)), y)
    loss.backward()


# Damage to the model and to the training around it.

FILL = {
    "eap": lambda net: torchattacks.EADEN(net, max_iterations=10, binary_search_steps=1),
    "cw": lambda net: torchattacks.CW(net, steps=2),
    "fab": lambda net: torchattacks.FAB(net, steps=2, eps=0.1),
    "deepfool": lambda net: torchattacks.DeepFool(net, steps=2),
}
SHORT = {
    "eap": {"max_iterations": 10, "binary_search_steps": 1},
    "cw": {"max_iterations": 5, "binary_search_steps": 1},
    "fab": {"nb_iter": 3},
    "deepfool": {"max_iter": 3},
}


@pytest.mark.parametrize("name", FILL)
def test_gradients_of_parameters_are_not_filled(net: nn.Module, batch: Batch, name: str) -> None:
    x, y = batch(4)
    FILL[name](net)(x.clone(), y)
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in net.parameters())

    net.zero_grad(set_to_none=True)
    load(name, **SHORT[name])(net, x, y)
    assert all(parameter.grad is None for parameter in net.parameters())


RESEED = {
    "apgd_ce": lambda net: torchattacks.APGD(net, steps=2, eps=0.1),
    "apgd_t": lambda net: torchattacks.APGDT(net, steps=2, eps=0.1),
    "fab": lambda net: torchattacks.FAB(net, steps=2, eps=0.1, multi_targeted=True),
    "square": lambda net: torchattacks.Square(net, n_queries=2, eps=0.1),
}


@pytest.mark.parametrize("name", [*RESEED, "autoattack"])
def test_the_global_random_state_is_not_reseeded(net: nn.Module, batch: Batch, name: str) -> None:
    x, y = batch(2)

    def next_numbers(attack: Callable[[], object]) -> set[float]:
        numbers = set()
        for seed in (1, 2, 3):
            with seeded(seed):
                attack()
                numbers.add(torch.rand(()).item())
        return numbers

    if name in RESEED:
        assert len(next_numbers(lambda: RESEED[name](net)(x, y))) == 1
    few = {"n_queries": 2} if name in ("square", "autoattack") else {}
    few |= {} if name == "square" else {"nb_iter": 2}
    assert next_numbers(lambda: load(name, eps=0.1, **few)(net, x, y)) == next_numbers(lambda: None)


def with_frozen_norm() -> nn.Module:
    with seeded(0):
        net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 4))
    net[1].eval()
    return net


def test_modes_come_back_module_by_module() -> None:
    """`model.train()` afterwards thaws a frozen batch norm, whose statistics move in the next forward."""
    x, y = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(4).long()
    thawed = with_frozen_norm()
    torchattacks.FGSM(thawed)(x, y)
    assert thawed[1].training
    before = thawed[1].running_mean.clone()
    thawed(x)
    assert not torch.equal(thawed[1].running_mean, before)
    evaluated = with_frozen_norm().eval()
    forced = torchattacks.FGSM(evaluated)
    forced.set_model_training_mode(True)
    forced(x, y)
    assert evaluated.training

    ours = with_frozen_norm()
    before = ours[1].running_mean.clone()
    load("fgsm")(ours, x, y)
    assert [module.training for module in ours] == [True, False, True, True, True]
    ours(x)
    assert torch.equal(ours[1].running_mean, before)
    load("fgsm")(ours.eval(), x, y)
    assert not any(module.training for module in ours.modules())


def test_modes_come_back_after_an_exception() -> None:
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for attack, comes_back in ((torchattacks.FGSM, False), (lambda net: lambda *xy: load("fgsm")(net, *xy), True)):
        net = with_frozen_norm()
        net.register_forward_hook(lambda *_: (_ for _ in ()).throw(MemoryError("out of memory, say")))
        with pytest.raises(MemoryError):
            attack(net)(x, torch.zeros(4).long())
        assert net.training == comes_back
        assert not net[1].training


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(net: nn.Module, batch: Batch, context: Callable[[], object]) -> None:
    """Lightning validates under ``inference_mode``."""
    x, y = batch(3)
    for theirs in (torchattacks.PGD(net, steps=2), their_ead(net)):
        with context(), pytest.raises(RuntimeError):
            theirs(x.clone(), y)

    for name in ("pgm", "eap", "vap", "cw", "deepfool", "apgd_ce", "fab"):
        attack = load(name, **{"cw": {"max_iterations": 5}, "eap": {"max_iterations": 5}}.get(name, {}))
        expected = attack(net, x, y)
        with context():
            x_adv = attack(net, x.clone(), y)
        assert torch.equal(x_adv, expected)
        x_adv.requires_grad_()  # refused to what was made in inference mode


class Bright(nn.Module):
    """Two classes, dark and bright; no parameters."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(dim=1)
        return torch.stack([0.5 - mean, mean - 0.5], dim=1)


def test_a_model_without_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    theirs = torchattacks.FGSM(Bright())
    assert "Failed to set device" in capsys.readouterr().out
    assert theirs.device is None

    x, y = torch.full((2, 1, 8, 8), 0.4), torch.zeros(2).long()
    for name in ("fgsm", "pgm", "eap", "cw", "deepfool", "apgd_ce", "fab", "square", "autoattack", "vap"):
        short = {"n_queries": 50} if name in ("square", "autoattack") else {}
        short |= {"max_iterations": 20, "initial_const": 10.0, "learning_rate": 0.1} if name in ("eap", "cw") else {}
        crafted = load(name, **short).craft(Bright(), x, y)
        assert name == "vap" or crafted.fooled.all(), name
    assert capsys.readouterr().out == ""


def test_an_attack_does_not_keep_a_model(net: nn.Module, batch: Batch) -> None:
    """Theirs keeps the device its model had, and a copy of the attack is a copy of the model."""
    x, y = batch(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10, device="meta"))
    theirs = torchattacks.FGSM(model)
    model.to_empty(device="cpu").load_state_dict(fan(10).state_dict())
    assert theirs.device.type == "meta", "not where the model is now"
    assert copy.deepcopy(torchattacks.FGSM(net)).model is not net

    attack = load("fgsm", eps=0.1)
    assert not attack(model, x, y).is_meta
    copied = copy.deepcopy(attack)
    before = copied(net, x, y)
    with torch.no_grad():
        net.head[-1].weight.neg_()
    assert torch.equal(copied(net, x, y), attack(net, x, y))
    assert not torch.equal(copied(net, x, y), before)
    wrapped = Mapped(net, before=lambda images: 1 - images)
    assert not torch.equal(attack(wrapped, x, y), attack(net, x, y))
    assert copied == attack


# The virtual adversarial method.

MIDDLE, WIDTH = 0.25, 0.5
"""Where images of these tests lie, well inside the box, so that nothing is clipped; exact in binary."""


def inside(net: nn.Module) -> nn.Module:
    return Mapped(net, before=lambda x: (x - MIDDLE) / WIDTH).eval()


def direction(model: nn.Module, x: Tensor, **arguments: object) -> Tensor:
    """Return what VAP adds, after one power iteration from a start that is always the same."""
    noise = VAP.draw_noise(x.shape, torch.Generator().manual_seed(4))
    return load("vap", eps=0.25, **arguments)(model, x, noise=noise) - x


def cosines(a: Tensor, b: Tensor) -> Tensor:
    return functional.cosine_similarity(a.flatten(1).double(), b.flatten(1).double(), dim=1)


def median_and_tenth(cosines: Tensor) -> tuple[float, float]:
    size = cosines.abs()
    return float(size.median()), float(size.quantile(0.1))


def curvature_product(model: nn.Module, x: Tensor, *, off: float) -> Tensor:
    """Return J^T (diag p - p p^T) J d as it is written, J at ``x + off * d``."""
    d = VAP.draw_noise(x.shape, torch.Generator().manual_seed(4)).to(x)
    d = d / d.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    p = model(x).detach().softmax(dim=1)
    point = (x + off * d).requires_grad_()
    logits = model(point)
    w = torch.zeros_like(logits, requires_grad=True)
    (pulled,) = torch.autograd.grad(logits, point, w, create_graph=True)
    (u,) = torch.autograd.grad(pulled, w, d, retain_graph=True)
    (product,) = torch.autograd.grad(logits, point, p * (u - (p * u).sum(dim=1, keepdim=True)))
    return product


def exact_direction(net: nn.Module, x: Tensor) -> Tensor:
    """Return the direction in float64, where a step off the ties may be as short as the definition wants it."""
    return curvature_product(inside(copy.deepcopy(net).double()), x.double(), off=1e-7)


@pytest.fixture
def faint(batch: Batch) -> Tensor:
    return MIDDLE + WIDTH * batch(128)[0]


def test_vap_at_the_published_distance_is_rounding_in_float32(net: nn.Module, faint: Tensor) -> None:
    """xi * d is about one unit in the last place of a pixel: part of it is lost, and so is the change of the logits."""
    expected, model = exact_direction(net, faint), inside(net)
    naive = cosines(direction(model, faint, method="finite", xi=1e-6), expected)
    median, tenth = median_and_tenth(naive)
    assert median < 0.9
    assert tenth < 0.5
    assert (naive < 0).float().mean() > 0.15, "many directions point the wrong way"

    for method in ("exact", "logit"):
        ours = cosines(direction(model, faint, method=method), expected)
        median, tenth = median_and_tenth(ours)
        assert median >= 0.999
        assert tenth >= 0.999
        assert (ours > 0).all()
    assert load("vap").params["method"] == "exact"


def test_vap_on_confident_rows_is_cancellation(net: nn.Module, faint: Tensor) -> None:
    """q - p of two answers near 1 loses its digits: no distance of the difference is right for confident rows."""
    with torch.no_grad():
        net.head[-1].weight.mul_(2)
        net.head[-1].bias.mul_(2)
    model = inside(net)
    assert model(faint).softmax(dim=1).amax(dim=1).median() > 0.9999
    expected = exact_direction(net, faint)
    for xi in (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0):
        median, tenth = median_and_tenth(cosines(direction(model, faint, method="finite", xi=xi), expected))
        assert tenth < 0.97
    for method, least in (("exact", 0.999), ("logit", 0.998)):  # a longer step meets more kinks of the net
        median, tenth = median_and_tenth(cosines(direction(model, faint, method=method), expected))
        assert median >= 0.999
        assert tenth >= least


def test_vap_where_max_pooling_has_ties(net: nn.Module, faint: Tensor) -> None:
    """On a flat background the derivative at x goes through one of the tied pixels, not through the one along d."""
    expected, model = exact_direction(net, faint), inside(net)
    naive = curvature_product(model, faint, off=0.0)
    ours = cosines(direction(model, faint), expected)
    assert (cosines(naive, expected) < 0.999).float().mean() > 0.1
    assert (ours < 0.999).float().mean() < 0.03


class _Rounded(torch.autograd.Function):
    """TF32: ten bits of mantissa, in both directions and in every derivative."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        bits = x.contiguous().view(torch.int32)
        return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return _Rounded.apply(gradient)


class InTF32(nn.Module):
    """A net whose products take operands of ten bits, as tensor cores take them; sums stay in float32."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        for layer in [*self.net.body, *self.net.head]:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                weight = _Rounded.apply(layer.weight)
                x = _Rounded.apply(x)
                product = (
                    functional.conv2d(x, weight, padding=layer.padding)
                    if isinstance(layer, nn.Conv2d)
                    else functional.linear(x, weight)
                )
                # Backwards, what comes in is rounded too.
                x = product + layer.bias.view(-1, *[1] * (product.dim() - 2))
                x = _RoundedBack.apply(x)
            else:
                x = layer(x)
        return x


class _RoundedBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return _Rounded.apply(gradient)


class InBfloat16(nn.Module):
    """A net that turns autocast on in its own forward, where no guard can turn it off."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.net(x)


@pytest.mark.parametrize(
    ("coarse", "median_at_least", "tenth_at_least"), [(InTF32, 0.999, 0.99), (InBfloat16, 0.988, 0.90)]
)
def test_vap_in_tf32_and_bfloat16_needs_the_exact_product(
    net: nn.Module, faint: Tensor, coarse: type[nn.Module], median_at_least: float, tenth_at_least: float
) -> None:
    expected, model = exact_direction(net, faint), inside(coarse(net))
    median, tenth = median_and_tenth(cosines(direction(model, faint, method="finite", xi=1e-6), expected))
    assert median < 0.8
    assert tenth < 0.3
    exact_median, exact_tenth = median_and_tenth(cosines(direction(model, faint, method="exact"), expected))
    assert exact_median >= median_at_least
    assert exact_tenth >= tenth_at_least
    for xi in (1e-4, 1e-3, 1e-2, 1e-1, 1.0):
        median, tenth = median_and_tenth(cosines(direction(model, faint, method="finite", xi=xi), expected))
        assert median < exact_median
        assert tenth < exact_tenth - 0.01


def test_vap_with_logits_asks_for_the_exact_product_in_bfloat16(net: nn.Module, faint: Tensor) -> None:
    """The change of the logits over a short step is rounding there."""
    model = inside(InBfloat16(net))
    with torch.no_grad():
        shift = 1e-3 * VAP.draw_noise(faint.shape, torch.Generator().manual_seed(4)) / 8
        assert ((model(faint + shift) == model(faint)).float().mean()) > 0.3
    assert torch.equal(direction(model, faint, method="logit"), direction(model, faint, method="exact"))


def test_vap_with_a_direction_of_zero_is_clean_and_not_nan(faint: Tensor) -> None:
    """Divided by its norm, a direction of zero is NaN; a guard such as `norm < 1e-64` is never true in float32."""
    flat = Mapped(fan(4), after=lambda logits: 0 * logits).eval()
    point = (faint[:4] + 1e-6).requires_grad_()
    (zero,) = torch.autograd.grad(flat(point).log_softmax(dim=1).sum(), point)
    norm = zero.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert (zero / norm).isnan().all()
    assert (zero / norm.clamp(min=1e-64)).isnan().all()

    for method in ("exact", "logit", "finite"):
        crafted = load("vap", method=method).craft(flat, faint[:4], torch.zeros(4).long())
        assert torch.equal(crafted.x_adv, faint[:4])
        assert crafted.zero_gradient.all()


def test_unit_length_of_tiny_and_huge_rows() -> None:
    """Squares underflow below 1e-23 and overflow above 1e19: the naive norm is 0 or infinite."""
    x = torch.full((2, 1, 8, 8), 0.5)
    for size in (1e-30, 1e25):
        model = Mapped(fan(2), after=lambda logits, size=size: logits * size).eval()
        gradient = size * (fan(2)[1].weight[1] - fan(2)[1].weight[0]).detach()
        assert gradient.square().sum() in (0.0, math.inf)
        delta = PGDL2(model, eps=0.1, eps_iter=0.1, nb_iter=1, rand_init=False)(x, torch.zeros(2).long()) - x
        torch.testing.assert_close(delta.flatten(1).norm(dim=1), torch.full((2,), 0.1))
