"""The networks: shapes, sizes that can be counted by hand, and what train and eval mode change."""

import pytest
import torch
from torch import nn

from amc_lightning.models import LeNet, ProxyCNN, ResNet32

NETWORKS = (LeNet, ProxyCNN, ResNet32)
SHAPES = ((1, 28, 28), (1, 16, 16), (3, 32, 32))


def images(shape, n=3):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))


def parameters(net):
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("network", NETWORKS)
def test_logits_have_one_column_per_class_and_rows_do_not_depend_on_each_other(network, shape):
    torch.manual_seed(0)
    net = network(shape[0], shape[1:], 7).eval()
    x = images(shape)
    with torch.no_grad():
        logits = net(x)
        assert logits.shape == (3, 7)
        assert logits.dtype == torch.float32
        assert torch.allclose(net(x[1:2]), logits[1:2], atol=1e-5)
    assert not torch.allclose(logits.softmax(1), logits), "these are logits, not probabilities"


@pytest.mark.parametrize(
    ("shape", "count"),
    [
        # 6 * (25 + 1), 16 * (6 * 25 + 1), then 256, 120 and 84 inputs with a bias each
        ((1, 28, 28), 156 + 2416 + 257 * 120 + 121 * 84 + 85 * 10),
        ((1, 16, 16), 156 + 2416 + 257 * 120 + 121 * 84 + 85 * 10),  # padding 2: 16 -> 8 -> 4, so 256 again
        ((3, 32, 32), 6 * 76 + 2416 + 401 * 120 + 121 * 84 + 85 * 10),  # 32 -> 14 -> 5: 16 * 25 = 400
    ],
    ids=str,
)
def test_lenet_has_the_parameters_counted_by_hand(shape, count):
    assert parameters(LeNet(shape[0], shape[1:], 10)) == count
    assert parameters(LeNet(1, (28, 28), 10)) == 44_426


def test_resnet32_has_the_parameters_counted_by_hand():
    # 31 convolutions of 3x3 without bias, two batch-norm numbers a channel, no parameters in shortcuts, one dense layer
    convolutions = 3 * 16 + 10 * 16 * 16 + (16 * 32 + 9 * 32 * 32) + (32 * 64 + 9 * 64 * 64)
    batch_norms = 2 * (16 + 10 * 16 + 10 * 32 + 10 * 64)
    assert parameters(ResNet32(3, (32, 32), 10)) == 9 * convolutions + batch_norms + 65 * 10 == 464_154
    layers = [module for module in ResNet32(3, (32, 32), 10).modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(layers) == 32


def test_resnet32_takes_images_of_any_size_and_halves_them_twice():
    net = ResNet32(3, (32, 32), 10).eval()
    sizes = []
    for group in net.groups:
        group.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[1:])))
    net(images((3, 32, 32), 1))
    assert sizes == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_a_widening_shortcut_keeps_the_image_and_adds_channels_of_zeros():
    block = ResNet32(3, (32, 32), 10).groups[1][0].eval()
    nn.init.zeros_(block.bn2.weight)  # what is left is the shortcut
    x = images((16, 8, 8))
    out = block(x)
    assert torch.equal(out[:, :16], x[:, :, ::2, ::2])
    assert not out[:, 16:].any()


def test_the_proxy_has_the_parameters_counted_by_hand():
    convolutions = 32 * (9 + 1) + 32 * (9 * 32 + 1) + 64 * (9 * 32 + 1) + 64 * (9 * 64 + 1)
    assert parameters(ProxyCNN(1, (28, 28), 10)) == convolutions + 512 * (64 * 7 * 7 + 1) + 10 * 513


def test_the_proxy_drops_what_the_paper_says():
    net = ProxyCNN(1, (28, 28), 10)
    assert [module.p for module in net.modules() if isinstance(module, nn.Dropout)] == [0.4, 0.3, 0.2]
    x = images((1, 28, 28))
    assert torch.equal(net.eval()(x), net(x))
    torch.manual_seed(0)
    assert not torch.equal(net.train()(x), net(x))


def test_batch_norm_learns_in_train_mode_alone():
    net = ResNet32(3, (32, 32), 10)
    x = images((3, 32, 32))
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    net.eval()(x)
    assert all(torch.equal(before[name], buffer) for name, buffer in net.named_buffers())
    net.train()(x)
    assert not torch.equal(before["bn.running_mean"], net.bn.running_mean)
    assert int(net.bn.num_batches_tracked) == 1


@pytest.mark.parametrize("network", [LeNet, ProxyCNN])
def test_networks_without_batch_norm_start_from_glorot(network):
    torch.manual_seed(0)
    net = network(1, (28, 28), 10)
    for module in net.modules():
        if isinstance(module, nn.Linear):
            bound = (6 / (module.in_features + module.out_features)) ** 0.5
            assert 0.9 * bound < float(module.weight.detach().abs().max()) <= bound
            assert not module.bias.any()
