"""The networks: shapes, sizes that can be counted by hand, and what train and eval mode change."""

import pytest
import torch
from torch import nn

from amc_lightning.attacks.fold import CraftingCopy
from amc_lightning.models import LeNet, PreActResNet18, ProxyCNN, ResNet32

NETWORKS = (LeNet, ProxyCNN, ResNet32, PreActResNet18)
ACTIVATIONS = (nn.ReLU, nn.Softplus)
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


def test_preact_resnet18_has_the_parameters_counted_by_hand():
    net = PreActResNet18(3, (32, 32), 10)
    # 3x3 convolutions without bias: the stem, then in each group one that widens (none in the first) and three or four
    threes = 3 * 64 + 4 * 64**2 + (64 * 128 + 3 * 128**2) + (128 * 256 + 3 * 256**2) + (256 * 512 + 3 * 512**2)
    ones = 64 * 128 + 128 * 256 + 256 * 512
    # A norm stands before each convolution of a block, and one at the end
    batch_norms = 2 * (4 * 64 + (64 + 3 * 128) + (128 + 3 * 256) + (256 + 3 * 512) + 512)
    assert parameters(net) == 9 * threes + ones + batch_norms + 513 * 10 == 11_172_170
    layers = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(layers) == 18 + 3, "three shortcuts beside the 18 layers of its name"


def test_preact_resnet18_halves_images_three_times():
    net = PreActResNet18(3, (32, 32), 10).eval()
    sizes = []
    for group in net.groups:
        group.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[1:])))
    net(images((3, 32, 32), 1))
    assert sizes == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]


def test_shortcuts_are_the_input_itself_or_a_convolution_of_what_is_activated():
    narrow, wide = PreActResNet18(3, (32, 32), 10).eval().groups[1]
    for block in (narrow, wide):
        nn.init.zeros_(block.conv2.weight)  # what is left is the shortcut
    x = images((128, 8, 8))
    assert torch.equal(wide(x), x)
    x = images((64, 8, 8)) - 0.5
    # Fresh statistics: 0 and 1, and eps of 1e-5 beside the variance
    expected = nn.functional.conv2d((x / (1 + 1e-5) ** 0.5).relu(), narrow.shortcut.weight, stride=2)
    assert torch.allclose(narrow(x), expected, atol=1e-5)


def test_the_activation_of_preact_resnet18_is_chosen_by_name():
    for name, at_zero in (("relu", 0.0), ("softplus", 0.6931)):  # log 2
        net = PreActResNet18(3, (32, 32), 10, activation=name)
        found = {round(float(part(torch.zeros(()))), 4) for part in net.modules() if isinstance(part, ACTIVATIONS)}
        assert found == {at_zero}
    with pytest.raises(ValueError, match="activation must be relu or softplus, not 'gelu'"):
        PreActResNet18(3, (32, 32), 10, activation="gelu")


@pytest.mark.parametrize("activation", ["relu", "softplus"])
def test_a_crafting_copy_of_preact_resnet18_has_its_logits_and_gradients(activation):
    torch.manual_seed(0)
    net = PreActResNet18(3, (16, 16), 10, activation=activation)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.3)
            module.running_mean.normal_(0.0, 0.3)
            module.running_var.uniform_(0.5, 2.0)
    copy, found = CraftingCopy(net.eval()), []
    norms = [module for module in copy._recording.net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 9, "those behind a sum stay; the second of each block is in the convolution before it"
    for function in (copy, net):
        x = images((3, 16, 16), 4).requires_grad_()
        logits = function(x)
        (gradient,) = torch.autograd.grad(logits.logsumexp(dim=1).sum(), x)
        found.append((logits.detach(), gradient))
    for own, plain in zip(*found, strict=True):
        assert (own - plain).abs().max() <= 1e-4 * plain.abs().max()
    assert copy.has_derivative(), "VAP takes derivatives along a direction"


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
