"""E22: parts without a gradient, and the stand-in that looks through them."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from amc_lightning.models import BitDepth, MedianSmoothing, Squeezed
from amc_lightning.referee import Status
from amc_lightning.referee.calls import parts_of
from amc_lightning.referee.case import Case
from amc_lightning.referee.parts import parts
from amc_lightning.referee.straight_through import straight_through
from tests.referee.conftest import SMALL, THREAT, network


class Before(nn.Module):
    """A function of the images in front of a network."""

    def __init__(self, function, net):
        super().__init__()
        self.function, self.net = function, net

    def forward(self, x):
        return self.net(self.function(x))


class Detached(nn.Module):
    """A strong network that gradients do not see, beside a weak one."""

    def __init__(self, strong, weak):
        super().__init__()
        self.strong, self.weak = strong, weak

    def forward(self, x):
        return self.strong(x.detach()) + 0.1 * self.weak(x)


@pytest.fixture
def case(rows):
    return lambda model: Case(model.eval(), *rows, THREAT, SMALL)


LEVELS = torch.linspace(0, 1, 5)


def in_place(x):
    x = x * 4
    x.round_()
    return x / 4


def without_grad(x):
    with torch.no_grad():
        return x * 1


def masked(x):
    x = x.clone()
    x[x > 0.5] = 1.0
    x[x <= 0.5] = 0.0
    return x


def through_numpy(x):
    return torch.from_numpy(np.round(x.detach().numpy() * 4) / 4)


def fake(x):
    return torch.fake_quantize_per_tensor_affine(x, 0.25, 0, 0, 4)


def one_by_one(x):
    return torch.stack([torch.from_numpy(np.round(image.detach().numpy() * 4) / 4) for image in x])


# By what it is: the function, the names that are found, and the least cosine with the gradient of what comes after.
FUNCTIONS = {
    "round": (lambda x: torch.round(x * 4) / 4, {"round"}, 0.999),
    "floor": (lambda x: (x * 4).floor() / 4, {"floor"}, 0.999),
    "in place": (in_place, {"round"}, 0.999),
    "division": (lambda x: x // 0.25 * 0.25, {"__floordiv__"}, 0.999),
    "remainder": (lambda x: x - x % 0.25, {"remainder"}, 0.999),
    "sign": (lambda x: (x - 0.5).sign(), {"sign"}, 0.999),
    "bytes": (lambda x: (x * 7).to(torch.uint8).float() / 7, {"to", "no gradient"}, 0.999),
    "bits": (lambda x: ((x * 255).byte() & 0xE0).float() / 255, {"byte", "no gradient"}, 0.999),
    "comparison": (lambda x: (x > 0.5).float(), {"gt", "no gradient"}, 0.9),
    "reversed": (lambda x: 1 - (x < 0.5).float(), {"lt", "no gradient"}, 0.9),
    "where": (lambda x: torch.where(x > 0.5, 1.0, 0.0), {"gt", "no gradient"}, 0.9),
    "mask": (masked, {"gt", "le"}, 0.5),
    "thermometer": (lambda x: (x[..., None] > LEVELS).float().mean(-1), {"gt", "no gradient"}, 0.9),
    "nearest": (lambda x: LEVELS[(-((x[..., None] - LEVELS) ** 2)).argmax(-1)], {"argmax", "no gradient"}, 0.7),
    "table": (lambda x: LEVELS[torch.bucketize(x, LEVELS[1:-1])], {"bucketize", "no gradient"}, 0.999),
    "one-hot": (lambda x: (functional.one_hot((x * 4).long(), 5) * LEVELS).sum(-1), {"long", "no gradient"}, 0.5),
    "detach": (lambda x: x.detach(), {"detach", "no gradient"}, 0.999),
    "data": (lambda x: x.data, {"data", "no gradient"}, 0.999),
    "reset": (lambda x: x.detach().requires_grad_() * 1, {"detach"}, 0.999),
    "no_grad": (without_grad, {"no_grad", "no gradient"}, 0.999),
    "numpy": (through_numpy, {"detach", "no gradient"}, 0.999),
    "one by one": (one_by_one, {"detach", "no gradient"}, 0.999),
    "fake": (fake, {"fake_quantize_per_tensor_affine"}, 0.999),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_stand_in_has_the_answers_and_a_gradient(name):
    function, found, least = FUNCTIONS[name]
    weights = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    model = Before(function, nn.Flatten())
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    assert set(parts_of(model, x)) == found
    images = x.clone().requires_grad_()
    logits = straight_through(model)(images)
    torch.testing.assert_close(logits, model(x), rtol=0, atol=0)
    gradient = torch.autograd.grad((logits @ weights)[:, 0].sum(), images)[0]
    assert float(functional.cosine_similarity(gradient.flatten(1), weights[:, :1].T).min()) > least
    assert torch.equal(x, images.detach())


def test_a_network_without_parts_is_its_own_stand_in(rows):
    net = network()
    assert parts_of(net, rows[0][:4]) == {}
    images = rows[0][:4].clone().requires_grad_()
    own, other = (torch.autograd.grad(model(images).sum(), images)[0] for model in (net, straight_through(net)))
    torch.testing.assert_close(own, other, rtol=0, atol=0)


def test_a_backward_pass_of_its_own_is_named(rows):
    class Flat(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.round()

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    assert parts_of(Before(Flat.apply, nn.Flatten()), rows[0][:2]) == {"round": 1, "backward of Flat": 1}


def test_sound_and_undefended_models_pass(case, sound, undefended):
    for model in (sound, undefended):
        assert parts(case(model)).status == Status.PASS


@pytest.mark.parametrize("name", ["round", "bytes", "no_grad", "numpy"])
def test_a_part_that_hides_weakness_fails(case, undefended, sound, name):
    for net in (undefended,) if name == "numpy" else (undefended, sound):
        finding = parts(case(Before(FUNCTIONS[name][0], net)))
        assert finding.status == Status.FAIL
        assert "straight-through" in finding.meaning
        details = finding.details
        assert details["straight_through"] > details["plain"] + 10
        assert finding.number == pytest.approx(details["union"] - details["plain"])
        assert "square" not in details


def test_a_detached_branch_fails(case, undefended):
    finding = parts(case(Detached(undefended, network(5))))
    assert finding.status == Status.FAIL
    assert "detach" in finding.details["parts"]


def test_what_no_stand_in_sees_is_found_without_gradients(case, undefended):
    """In inference mode nothing is recorded, and nobody is told."""

    class Hidden(nn.Module):
        def forward(self, x):
            with torch.inference_mode():
                return undefended(x).clone()

    finding = parts(case(Hidden()))
    assert finding.status == Status.FAIL
    assert finding.meaning.count("Square") == 1
    assert set(finding.details) == {"parts", "plain", "square", "union"}  # a stand-in without a gradient is none


@pytest.mark.parametrize("squeezer", [BitDepth(3), MedianSmoothing(3)])
def test_squeezers_with_their_own_backward_pass(case, sound, squeezer):
    finding = parts(case(Squeezed(sound, squeezer)))
    assert finding.status == Status.PASS
    assert "without_part" in finding.details


def test_one_bit_is_told_by_part(case, undefended):
    details = parts(case(Squeezed(undefended, BitDepth(1)))).details
    assert {"plain", "without_part", "union"} <= set(details)
    assert details["union"] >= max(details["plain"], details["without_part"])
