"""The guard by itself: whatever is done inside, the model comes back."""

import pytest
import torch
from torch import nn

from amc_lightning.attacks import guarded


def test_inside_everything_is_still_and_gradients_flow(net: nn.Module) -> None:
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16), guarded(net):
        assert not any(module.training for module in net.modules())
        assert not any(parameter.requires_grad for parameter in net.parameters())
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert not torch.is_autocast_enabled("cpu")
    assert net.training
    assert not net.body[1].training


def test_undoes_what_is_done_to_gradients_and_buffers(net: nn.Module) -> None:
    first = net.body[0].weight
    gradient, values = first.grad, first.grad.clone()
    norm = net.body[5]
    mean, mean_values = norm.running_mean, norm.running_mean.clone()
    variance, variance_values = norm.running_var, norm.running_var.clone()
    count = norm.num_batches_tracked
    with guarded(net):
        net.zero_grad(set_to_none=False)
        first.grad = torch.ones_like(first)
        net.train()
        net(torch.rand(4, 1, 12, 12))
        norm.running_var = torch.zeros(8)
    assert first.grad is gradient
    assert torch.equal(gradient, values)
    assert norm.running_mean is mean
    assert torch.equal(mean, mean_values)
    assert norm.running_var is variance
    assert torch.equal(variance, variance_values)
    assert norm.num_batches_tracked is count
    assert count == 0


def test_restoring_keeps_a_graph_of_the_caller_valid(net: nn.Module) -> None:
    """A frozen batch norm has saved its statistics for backward; writing them back must not void that."""
    loss = net(torch.rand(4, 1, 12, 12)).sum()
    with guarded(net):
        net(torch.rand(4, 1, 12, 12))
    loss.backward()


def test_never_calls_a_users_own_train_or_eval() -> None:
    class Proud(nn.Sequential):
        def train(self, mode: bool = True) -> nn.Module:
            raise AssertionError("train was called")

        def eval(self) -> nn.Module:
            raise AssertionError("eval was called")

    model = nn.Sequential(Proud(nn.Linear(2, 2), nn.Dropout()))
    with guarded(model):
        assert not model[0][1].training
    assert model[0][1].training


def test_nests_and_restores_when_the_inner_part_raises(net: nn.Module) -> None:
    modes = [module.training for module in net.modules()]
    frozen = [parameter.requires_grad for parameter in net.parameters()]
    with guarded(net):
        with pytest.raises(KeyError, match="inner"), guarded(net):
            raise KeyError("inner")
        assert not any(module.training for module in net.modules())
        assert not any(parameter.requires_grad for parameter in net.parameters())
    assert [module.training for module in net.modules()] == modes
    assert [parameter.requires_grad for parameter in net.parameters()] == frozen


def test_a_model_without_parameters() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout())
    with guarded(model):
        assert not model[1].training
    assert model[1].training


def test_a_training_step_around_an_attack_is_the_one_without_it(net: nn.Module) -> None:
    """Between forward and backward of a step: the graph, the statistics and the gradients stay whole."""
    net.zero_grad()
    x = torch.rand(4, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    net.head[1].p = 0.0
    state = {name: value.clone() for name, value in net.state_dict().items()}
    gradients = []
    for attacked in (False, True):
        net.load_state_dict(state)
        net.zero_grad()
        loss = net(x).square().mean()
        if attacked:
            with guarded(net):
                inside = x.clone().requires_grad_()
                net(inside).sum().backward()
        loss.backward()
        gradients.append([p.grad.clone() for p in net.parameters() if p.requires_grad])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)
