from functools import partial

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from amc_lightning.data import Batch, Batches


def tensors(n):
    x = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 1, 2, 2).contiguous()
    return x, torch.arange(n) % 3


def rows_of(batches):
    return torch.cat([batch.rows for batch in batches]).tolist()


@pytest.mark.parametrize(("n", "size", "count"), [(10, 4, 3), (12, 4, 3), (3, 8, 1), (1, 1, 1), (0, 4, 0)])
@pytest.mark.parametrize("seed", [None, 0])
def test_every_row_once_with_its_own_image(n, size, count, seed):
    batches = Batches(*tensors(n), batch_size=size, shuffle_seed=seed)
    read = list(batches)
    assert len(batches) == len(read) == count
    assert [len(batch.y) for batch in read[:-1]] == [size] * max(0, count - 1)
    assert sorted(row for batch in read for row in batch.rows.tolist()) == list(range(n))
    for batch in read:
        assert isinstance(batch, Batch)
        assert (batch.x.dtype, batch.y.dtype, batch.rows.dtype) == (torch.float32, torch.int64, torch.int64)
        assert torch.equal(batch.x[:, 0, 0, 0] * 255, batch.rows.float())
        assert torch.equal(batch.y, batch.rows % 3)


def test_pixels_are_in_0_1_exactly():
    x = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(3, 1, 1, 1)
    (batch,) = Batches(x, torch.zeros(3, dtype=torch.int64), batch_size=3)
    assert batch.x.flatten().tolist() == [0.0, torch.tensor(0.2).item(), 1.0]


def test_order_depends_on_seed_and_epoch_alone():
    make = partial(Batches, *tensors(50), batch_size=8)
    first, again, other = make(shuffle_seed=0), make(shuffle_seed=0), make(shuffle_seed=1)
    epoch_0 = rows_of(first)
    assert epoch_0 != list(range(50))
    assert rows_of(first) == epoch_0  # iterating changes nothing
    assert rows_of(other) != epoch_0
    first.sampler.set_epoch(3)
    assert rows_of(first) != epoch_0
    torch.manual_seed(5)
    np.random.seed(5)
    again.set_epoch(3)
    assert rows_of(again) == rows_of(first)
    again.batch_size = 3  # nor does the size of the batches
    assert rows_of(again) == rows_of(first)
    first.set_epoch(0)
    assert rows_of(first) == epoch_0


def test_unshuffled_ignores_the_epoch():
    batches = Batches(*tensors(5), batch_size=2)
    batches.set_epoch(7)
    assert rows_of(batches) == [0, 1, 2, 3, 4]


def test_iterating_leaves_the_global_random_states_alone():
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()
    rows_of(Batches(*tensors(20), batch_size=4, shuffle_seed=0))
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == np.random.get_state()[1].tolist()


def test_batch_size_must_be_positive():
    with pytest.raises(ValueError, match=r"^batch_size is 0; it must be at least 1$"):
        Batches(*tensors(3), batch_size=0)


class Recorder(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 3)
        self.seen = []
        self.validated = []

    def training_step(self, batch, batch_idx):
        if batch_idx == 0:
            self.seen.append([])
        self.seen[-1] += batch.rows.tolist()
        return nn.functional.cross_entropy(self.net(batch.x.flatten(1)), batch.y)

    def validation_step(self, batch, batch_idx):
        self.validated += batch.rows.tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


# Lightning asks torch's pytree in a way that torch has deprecated, and recommends workers where there is no need.
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:.*does not have many workers")
def test_lightning_sets_the_epoch_and_takes_the_batches_as_they_are(tmp_path):
    train = Batches(*tensors(10), batch_size=4, shuffle_seed=3)
    module = Recorder()
    trainer = pl.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, train, Batches(*tensors(5), batch_size=2))
    expected = []
    for epoch in range(3):
        train.set_epoch(epoch)
        expected.append(rows_of(train))
    assert module.seen == expected
    assert module.validated == [0, 1, 2, 3, 4] * 3
