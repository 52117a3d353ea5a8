"""FGSM, PGM and VAP where the answer is known: linear models, torchattacks' own PGD, float64."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import torchattacks
from torch import Tensor, nn
from torch.nn import functional

from amc_lightning.attacks import FGSM, PGM, VAP, GuardedAttack

Batch = Callable[[int], tuple[Tensor, Tensor]]


def linear(classes: int) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(18, classes)
    layer.weight.data = torch.randn(classes, 18, generator=generator)
    layer.bias.data = torch.randn(classes, generator=generator)
    return nn.Sequential(nn.Flatten(), layer)


def images(count: int) -> Tensor:
    return torch.rand(count, 2, 3, 3, generator=torch.Generator().manual_seed(2))


def guarded_attack(attack_class: type, norm: str, **arguments: object) -> GuardedAttack:
    return GuardedAttack(
        name=attack_class.__name__.lower(),
        attack_class=attack_class,
        arguments=arguments,
        params=arguments,
        norm=norm,
        eps=arguments["eps"],
        uses_labels=attack_class is not VAP,
    )


@pytest.mark.parametrize(
    ("attack_class", "arguments"),
    [
        (FGSM, {}),
        (PGM, {"eps_iter": 0.05, "nb_iter": 4, "rand_init": False}),
        (PGM, {"eps_iter": None, "nb_iter": 40, "rand_init": True}),
        (PGM, {"eps_iter": 0.3, "nb_iter": 2, "rand_init": True, "keep_best": True}),
    ],
    ids=["fgsm", "pgm", "pgm from noise", "pgm best"],
)
def test_two_class_linear_model_is_left_by_the_sign(attack_class: type, arguments: dict[str, object]) -> None:
    model, x = linear(2), images(6)
    y = torch.tensor([0, 1, 0, 1, 1, 0])
    away = (model[1].weight[1 - y] - model[1].weight[y]).detach().sign().view_as(x)
    x_adv = guarded_attack(attack_class, "linf", eps=0.15, **arguments)(model, x, y)
    torch.testing.assert_close(x_adv, (x + 0.15 * away).clamp(0, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("random_start", [False, True])
def test_pgm_equals_torchattacks_pgd_pixel_by_pixel(net: nn.Module, batch: Batch, random_start: bool) -> None:
    x, y = batch(8)
    net.double().eval()
    x = x.double()
    theirs = torchattacks.PGD(net, eps=0.2, alpha=0.03, steps=12, random_start=random_start)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        expected = theirs(x, y)
        torch.manual_seed(9)
        noise = torch.empty_like(x).uniform_(-0.2, 0.2) / 0.2
    ours = PGM(net, eps=0.2, eps_iter=0.03, nb_iter=12, rand_init=random_start)
    torch.testing.assert_close(ours(x, y, noise=noise), expected, rtol=0, atol=1e-12)


def test_madrys_step_size_is_the_default_rule() -> None:
    assert PGM(linear(2), eps=0.3, eps_iter=None, nb_iter=40).eps_iter == pytest.approx(2.5 * 0.3 / 40)


class Recording(nn.Module):
    """Keeps every image it is shown."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return self.inner(x)


@pytest.mark.parametrize("eps_iter", [0.02, 0.25])
def test_keep_best_is_never_worse_than_a_point_on_the_path(net: nn.Module, batch: Batch, eps_iter: float) -> None:
    x, y = batch(8)
    model = Recording(net).eval()
    noise = PGM.draw_noise(x.shape, torch.Generator().manual_seed(1)).to(x)
    settings = {"eps": 0.3, "eps_iter": eps_iter, "nb_iter": 7}
    last = PGM(model, **settings)(x, y, noise=noise)
    model.seen.clear()
    best = PGM(model, **settings, keep_best=True)(x, y, noise=noise)
    path = torch.stack(model.seen)
    assert len(path) == 8
    assert torch.equal(path[-1], last)
    with torch.no_grad():
        scores = torch.stack([score(net, point, y) for point in [*path, best]])
    torch.testing.assert_close(scores[-1], scores[:-1].max(dim=0).values)
    if eps_iter == 0.25:
        assert (scores[-1] > scores[-2]).any(), "large steps should lose ground somewhere"


def score(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the loss of each row, above all losses that do not fool where the row is fooled."""
    logits = net(x)
    return functional.cross_entropy(logits, y, reduction="none") + 100.0 * (logits.argmax(dim=1) != y)


class Scripted(nn.Module):
    """Answers by call number, whatever it sees; for class 0 of three."""

    ANSWERS = (
        [0.40, 0.30, 0.30],  # not fooled, loss 0.92
        [0.45, 0.50, 0.05],  # fooled, loss 0.80
        [0.36, 0.32, 0.32],  # not fooled, loss 1.02, the largest
        [0.49, 0.51, 0.00],  # fooled, loss 0.71
    )

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        answer = torch.tensor(self.ANSWERS[len(self.seen)]).log()
        self.seen.append(x.detach().clone())
        return answer + x.flatten(1)[:, :3] * 1e-6


def test_keep_best_prefers_a_fooling_point_to_a_larger_loss() -> None:
    model = Scripted().eval()
    x = torch.full((2, 1, 2, 2), 0.5)
    best = PGM(model, eps=0.3, eps_iter=0.05, nb_iter=3, rand_init=False, keep_best=True)(x, torch.zeros(2).long())
    assert torch.equal(best, model.seen[1])
    assert not torch.equal(best, model.seen[3])


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return functional.cosine_similarity(a.flatten(1).double(), b.flatten(1).double(), dim=1).abs()


@pytest.mark.parametrize("method", ["exact", "finite"])
def test_vap_on_a_linear_softmax_finds_the_top_curvature(method: str) -> None:
    model, x = linear(4).double(), 0.4 + 0.2 * images(5).double()
    weight = model[1].weight.detach()
    p = model(x).softmax(dim=1).detach()
    attack = VAP(model, eps=0.01, num_iters=300, xi=1e-4, method=method)
    noise = VAP.draw_noise(x.shape, torch.Generator().manual_seed(3)).double()
    delta = attack(x, noise=noise) - x
    top = torch.stack([torch.linalg.eigh(weight.T @ (q.diag() - q.outer(q)) @ weight)[1][:, -1] for q in p])
    assert (cosine(delta, top) > 0.9999).all()
    torch.testing.assert_close(delta.flatten(1).norm(dim=1), torch.full((5,), 0.01).double())


@contextmanager
def scaled_head(net: nn.Module, scale: float) -> Iterator[None]:
    with torch.no_grad():
        net.head[-1].weight *= scale
        net.head[-1].bias *= scale
    yield


@pytest.mark.parametrize("num_iters", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_vap_exact_direction_agrees_with_float64(net: nn.Module, batch: Batch, num_iters: int, scale: float) -> None:
    """Flat backgrounds tie under max pooling, and confident answers cancel: where a float32 difference fails."""
    x, _ = batch(8)
    net.eval()
    with scaled_head(net, scale):
        noise = VAP.draw_noise(x.shape, torch.Generator().manual_seed(4)).to(x)
        attack = VAP(net, eps=0.1, num_iters=num_iters)
        delta = attack(x, noise=noise) - x
        reference = VAP(net.double(), eps=0.1, num_iters=num_iters, xi=1e-6, method="finite")
        expected = reference(x.double(), noise=noise.double()) - x
        exact = attack(x.double(), noise=noise.double()) - x
    assert (cosine(exact, expected) >= 1 - 1e-9).all()
    # In float32 a tie under the pooling may go to another pixel than in float64, which differs between processors:
    # another subgradient of the same function. Of these rows one is so on a CPU without AVX-512.
    agreement = cosine(delta, expected)
    assert (agreement >= 0.999).sum() >= 7
    assert (agreement >= 0.95).all()


def test_vap_keeps_the_direction_where_probabilities_round_to_one() -> None:
    """(diag p - p p^T) u cancels in float32 at p = 1 - 1e-9; the direction must not."""
    model, x = linear(4), 0.4 + 0.2 * images(6)
    with torch.no_grad():
        model[1].bias[0] += 25.0
    assert (model(x).softmax(dim=1).amax(dim=1) == 1.0).all()
    noise = VAP.draw_noise(x.shape, torch.Generator().manual_seed(3))
    delta = VAP(model, eps=0.01)(x, noise=noise) - x
    model.double()
    p = model(x.double()).softmax(dim=1).detach()
    weight, d = model[1].weight.detach(), noise.double().flatten(1)
    u = d @ weight.T
    exact = (p * (u - (p * u).sum(dim=1, keepdim=True))) @ weight
    assert (cosine(delta, exact) > 0.999).all()


def test_vap_follows_the_published_iteration(net: nn.Module, batch: Batch) -> None:
    x, _ = batch(3)
    x = (0.3 + 0.4 * x).double()
    net.double().eval()
    d = torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(x)
    x_adv = VAP(net, eps=0.1, num_iters=2, xi=1e-3, method="finite")(x, noise=d)
    p = net(x).softmax(dim=1).detach()
    for _ in range(2):
        d = (d / d.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * 1e-3).requires_grad_()
        divergence = (p * (p.log() - net(x + d).log_softmax(dim=1))).sum()
        (d,) = torch.autograd.grad(divergence, d)
    torch.testing.assert_close(x_adv, x + 0.1 * d / d.flatten(1).norm(dim=1).view(-1, 1, 1, 1), rtol=0, atol=1e-9)


class Rounded(nn.Module):
    """Passes no gradient back, as bit-depth reduction does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = linear(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.round())


class Saturated(nn.Module):
    """Answers so surely that float32, and float64 too, holds no other probability."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = linear(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * 1e4


class HalfFlat(nn.Module):
    """Ignores dark images, so that some rows have curvature and some do not."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = linear(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * (x.flatten(1).mean(dim=1, keepdim=True) > 0.5)


@pytest.mark.parametrize("method", ["exact", "logit", "finite"])
def test_vap_returns_the_clean_image_where_there_is_no_curvature(method: str) -> None:
    x = images(4)
    attack = guarded_attack(VAP, "l2", eps=1.0, num_iters=2, xi=1e-3, method=method)
    crafted = attack.craft(Rounded(), x, torch.zeros(4).long())
    assert torch.equal(crafted.x_adv, x)
    assert crafted.zero_gradient.all()


@pytest.mark.parametrize("method", ["exact", "logit"])
def test_vap_finds_the_direction_of_a_softmax_that_is_saturated(method: str) -> None:
    """Between one class that is certain and the next, the curvature lies along the difference of their weights."""
    model, x = Saturated(), images(4)
    attack = guarded_attack(VAP, "l2", eps=0.01, num_iters=1, method=method)
    delta = attack(model, 0.3 + 0.4 * x, torch.zeros(4).long()) - (0.3 + 0.4 * x)
    top = model(0.3 + 0.4 * x).topk(2).indices
    weight = model.inner[1].weight.detach()
    assert (cosine(delta, weight[top[:, 0]] - weight[top[:, 1]]) > 0.999).all()


@pytest.mark.parametrize("method", ["exact", "logit", "finite"])
def test_vap_zero_rows_do_not_touch_the_others_and_are_counted(method: str) -> None:
    x = images(4) * torch.tensor([0.2, 1.0, 0.2, 1.0]).view(-1, 1, 1, 1)
    x[1::2] = 0.5 + 0.5 * x[1::2]
    attack = guarded_attack(VAP, "l2", eps=0.1, num_iters=2, xi=1e-3, method=method)
    crafted = attack.craft(HalfFlat(), x, torch.zeros(4).long())
    delta = crafted.x_adv - x
    assert (delta[::2] == 0).all()
    assert (delta[1::2].flatten(1).norm(dim=1) > 0.05).all()
    assert crafted.zero_gradient.tolist() == [True, False, True, False]


@pytest.mark.parametrize("attack_class", [FGSM, PGM])
def test_a_saturated_softmax_does_not_hide_the_gradient(attack_class: type, net: nn.Module, batch: Batch) -> None:
    """In float32 the cross-entropy of a sure answer has no gradient: torchattacks returns such images unmoved."""
    x, _ = batch(8)
    net.eval()
    y = net(x).argmax(dim=1)
    arguments = {"eps": 0.2} if attack_class is FGSM else {"eps": 0.2, "eps_iter": 0.05, "nb_iter": 4}
    with scaled_head(net, 1e3):
        naive = torchattacks.FGSM(net, eps=0.2)(x, y)
        assert ((naive - x).flatten(1).abs().amax(dim=1) == 0).any(), "the trap is not sprung"
        attack = guarded_attack(attack_class, "linf", **arguments)
        crafted = attack.craft(net, x, y)
        assert (crafted.distances["linf"] > 0.19).all()
        assert not crafted.zero_gradient.any()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_fgsm_and_pgm_take_the_sign_of_the_float64_gradient(net: nn.Module, batch: Batch, sign: float) -> None:
    x, y = batch(8)
    net.eval()
    with scaled_head(net, sign):
        ours = FGSM(net, eps=0.1)(x, y)
        one_step = PGM(net, eps=0.1, eps_iter=0.1, nb_iter=1, rand_init=False)(x, y)
        theirs = torchattacks.FGSM(net, eps=0.1)(x, y)
        point = x.double().requires_grad_()
        (gradient,) = torch.autograd.grad(functional.cross_entropy(net.double()(point), y), point)
    clear = gradient.abs() > 1e-6 * gradient.abs().amax(dim=(1, 2, 3), keepdim=True)
    assert clear.float().mean() > 0.5
    exact = (x + 0.1 * gradient.sign().float()).clamp(0, 1)
    for x_adv in (ours, one_step, theirs):
        assert torch.equal(x_adv[clear], exact[clear])


def test_a_broken_model_is_reported_not_hidden() -> None:
    model = linear(3)
    model[1].weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="attack vap returned values that are not finite"):
        guarded_attack(VAP, "l2", eps=1.0, num_iters=1)(model, images(2), torch.zeros(2).long())
