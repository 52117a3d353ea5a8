"""Our classes are `torchattacks` attacks: usable, without the guard, wherever theirs are."""

import pytest
import torch
import torchattacks
from torch import Tensor, nn
from torchattacks.attack import Attack

from amc_lightning.attacks import EAP, FGSM, PGM, VAP, DeepFool

MEAN, STD = torch.tensor([0.3, 0.5, 0.6]).view(1, 3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).view(1, 3, 1, 1)


class Normalized(nn.Module):
    """Takes images from [0, 1] to where the inner model wants them."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner((x - MEAN) / STD)


def model() -> nn.Module:
    layer = nn.Linear(192, 4)
    layer.weight.data = 0.2 * torch.randn(4, 192, generator=torch.Generator().manual_seed(0))
    layer.bias.data.zero_()
    return nn.Sequential(nn.Flatten(), layer)


def attacks(net: nn.Module) -> dict[str, Attack]:
    return {
        "fgsm": FGSM(net, eps=0.1),
        "pgm": PGM(net, eps=0.1, eps_iter=0.05, nb_iter=3, rand_init=False),
        "vap": VAP(net, eps=1.0),
        "eap": EAP(net, binary_search_steps=3, max_iterations=8, initial_const=1.0, learning_rate=0.1),
        "deepfool": DeepFool(net),
    }


def images() -> Tensor:
    return torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", attacks(model()))
def test_torchattacks_normalisation_works_with_them(name: str) -> None:
    net, x = model(), images()
    y = Normalized(net)(x).argmax(dim=1)
    ours = attacks(net)[name]
    ours.set_normalization_used(mean=MEAN.flatten().tolist(), std=STD.flatten().tolist())
    torch.manual_seed(3)
    x_adv = ours((x - MEAN) / STD, y) * STD + MEAN
    torch.manual_seed(3)
    expected = attacks(Normalized(net))[name](x, y)
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-4)
    assert not torch.allclose(expected, x, atol=1e-3)


def test_torchattacks_composes_them_with_its_own() -> None:
    net, x = model().train(), images()
    y = net(x).argmax(dim=1)
    weak = torchattacks.FGSM(net, eps=1e-4)
    assert (net(weak(x, y)).argmax(dim=1) == y).any()
    together = torchattacks.MultiAttack([weak, attacks(net)["eap"], attacks(net)["deepfool"]])
    assert (net(together(x, y)).argmax(dim=1) != y).all()
    assert net.training


@pytest.mark.parametrize("name", attacks(model()))
def test_a_call_gives_images_in_the_box_and_keeps_the_mode(name: str) -> None:
    net, x = model().train(), images()
    x_adv = attacks(net)[name](x, net(x).argmax(dim=1))
    assert ((x_adv >= 0) & (x_adv <= 1)).all()
    assert not x_adv.requires_grad
    assert net.training
