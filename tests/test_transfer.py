"""Weights cross from stage to stage through a file, whole, exact, and nothing else with them."""

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from amc_lightning.data import Augment
from amc_lightning.data.batches import Batches
from amc_lightning.errors import UserError
from amc_lightning.keep import KeepLastGood
from amc_lightning.stage import StageModule
from amc_lightning.transfer import WeightTransfer, load_weights, save_weights
from tests.test_cascade import ToyNet


def net_of(seed):
    torch.manual_seed(seed)
    net = ToyNet()
    net.bn.running_mean.uniform_()
    net.bn.running_var.uniform_(0.5, 1.5)
    net.bn.num_batches_tracked += seed
    return net


def module_of(net, *, lr=0.0):
    return StageModule(
        net,
        title="1 fgsm",
        seed=0,
        mixer=None,
        alpha=0.5,
        augment=Augment(),
        make_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
        make_schedule=lambda optimizer, steps: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
    )


def trainer_of(folder, *callbacks):
    return pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        callbacks=list(callbacks),
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def batches():
    x = torch.randint(0, 256, (6, 1, 8, 8), generator=torch.Generator().manual_seed(3)).to(torch.uint8)
    return Batches(x, torch.arange(6) % 3, batch_size=3)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_parameters_and_batch_norm_buffers_come_back_bit_for_bit(tmp_path):
    path = tmp_path / "deep" / "weights.safetensors"
    save_weights(net_of(1), path)
    assert [file.name for file in path.parent.iterdir()] == ["weights.safetensors"]
    other = net_of(2)
    load_weights(other, path)
    assert same(other.state_dict(), net_of(1).state_dict())
    assert int(other.bn.num_batches_tracked) == 1


def test_a_file_holds_the_nets_own_names_alone(tmp_path):
    module = module_of(net_of(1))
    save_weights(module.net, tmp_path / "weights.safetensors")
    assert set(load_file(tmp_path / "weights.safetensors")) == set(ToyNet().state_dict())


def test_a_net_in_another_memory_format_is_saved_all_the_same(tmp_path):
    net = net_of(1).to(memory_format=torch.channels_last)
    save_weights(net, tmp_path / "weights.safetensors")
    assert same(load_file(tmp_path / "weights.safetensors"), net_of(1).state_dict())


def test_shared_weights_are_saved(tmp_path):
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    save_weights(net, tmp_path / "weights.safetensors")
    other = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    load_weights(other, tmp_path / "weights.safetensors")
    assert torch.equal(other[1].weight, net[0].weight)


def changed(state, change):
    state = {name: tensor.clone() for name, tensor in state.items()}
    change(state)
    return state


def missing(path):
    pass


def folder(path):
    path.mkdir()


def junk(path):
    path.write_bytes(b"these are not weights")


def empty(path):
    path.touch()


def cut_short(path):
    save_weights(net_of(1), path)
    path.write_bytes(path.read_bytes()[:-10])


def one_name_less(path):
    save_file(changed(net_of(1).state_dict(), lambda state: state.pop("bn.running_var")), path)


def one_name_more(path):
    save_file(changed(net_of(1).state_dict(), lambda state: state.update(extra=torch.zeros(1))), path)


def another_shape(path):
    save_file(changed(net_of(1).state_dict(), lambda state: state.update({"fc.bias": torch.zeros(4)})), path)


WRONG = pytest.mark.parametrize(
    ("write", "message"),
    [
        (missing, "cascade.start_from: '.*' does not exist; a .safetensors file.* Check the path"),
        (folder, "cascade.start_from: '.*' does not exist"),
        (
            junk,
            "cascade.start_from: '.*' cannot be read .*; a whole .safetensors file, or .*Use an undamaged copy.",
        ),
        (empty, "cascade.start_from: '.*' cannot be read"),
        (cut_short, "cascade.start_from: '.*' cannot be read"),
        (one_name_less, r"does not fit ToyNet; .*Missing key.*bn\.running_var.*Choose the model these weights"),
        (one_name_more, "does not fit ToyNet; .*Unexpected key.*extra"),
        (another_shape, r"does not fit ToyNet; .*size mismatch for fc\.bias"),
    ],
    ids=["missing", "folder", "junk", "empty", "cut short", "a name less", "a name more", "another shape"],
)


@WRONG
def test_a_file_that_does_not_fit_is_refused(write, message, tmp_path):
    path = tmp_path / "weights.safetensors"
    write(path)
    net = net_of(2)
    with pytest.raises(UserError, match=message) as caught:
        load_weights(net, path, key="cascade.start_from")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_stage_starts_from_its_parents_weights_before_the_first_step(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(net_of(1), path)
    module = module_of(net_of(2))
    transfer = WeightTransfer(path)
    transfer.setup(trainer_of(tmp_path), module, "validate")
    assert same(module.net.state_dict(), net_of(2).state_dict()), "only a fit starts from somewhere"
    transfer.setup(trainer_of(tmp_path), module, "fit")
    assert same(module.net.state_dict(), net_of(1).state_dict())


def test_a_fit_goes_through_it(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(net_of(1), path)
    module = module_of(net_of(2), lr=0.0)
    trainer_of(tmp_path, WeightTransfer(path)).fit(module, batches(), [0])
    start = net_of(1)
    assert all(torch.equal(one, other) for one, other in zip(module.net.parameters(), start.parameters(), strict=True))
    assert int(module.net.bn.num_batches_tracked) == 1 + 2
    assert same(load_file(path), net_of(1).state_dict()), "the parent's file is read only"


@pytest.mark.parametrize(
    ("write", "message"), [(missing, "cascade.start_from: '.*' does not exist"), (another_shape, "does not fit ToyNet")]
)
def test_a_parent_that_does_not_fit_is_told_as_such_by_a_whole_stage(write, message, tmp_path):
    path = tmp_path / "weights.safetensors"
    write(path)
    keep = KeepLastGood(tmp_path / "last_good.safetensors", save_weights)
    transfer = WeightTransfer(path, key="cascade.start_from")
    with pytest.raises(UserError, match=message):
        trainer_of(tmp_path, keep, transfer).fit(module_of(net_of(2)), batches(), [0])
    assert not keep.path.exists()
