"""A stage that is killed goes on from its last checkpoint: same weights, same metrics, same counts, bit for bit."""

import errno
import hashlib
import random
import re
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from amc_lightning import checkpoint
from amc_lightning.build import build_attacks, load_data
from amc_lightning.checkpoint import WholeCheckpoints, checkpoint_folder, newest_checkpoint
from amc_lightning.joint import Extremes
from amc_lightning.stage import StageModule
from amc_lightning.stages import stages_of
from amc_lightning.train import StageTrainer
from tests.test_cascade import TOY, ToyNet, composed
from tests.test_run import door, shell


class KilledError(BaseException):
    """What no handler of ours or of Lightning's swallows."""


@pytest.fixture(autouse=True)
def _checkpoint_before_every_step(monkeypatch):
    monkeypatch.setattr(checkpoint, "COST_SHARE", 1e12)


def trainer_of(*overrides):
    config = composed(*TOY, "store.checkpoint_minutes=1e-9", *overrides)
    data = load_data(config).prepare()
    attacks = build_attacks(config, config.cascade.order, "white_box")
    return StageTrainer(config, data, attacks, device=torch.device("cpu"), console=Console(quiet=True))


def train(trainer, stage, folder):
    return trainer.train(stage, None, folder=folder / "run", work=folder / "work", logger=None)


def killed_at(step, trainer, stage, folder, monkeypatch):
    """Train until a step, and die there."""
    whole = StageModule.training_step

    def dying(self, batch, batch_idx):
        loss = whole(self, batch, batch_idx)
        if self.global_step == step:
            raise KilledError
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(StageModule, "training_step", dying)
        with pytest.raises(KilledError):
            train(trainer, stage, folder)


def same(one, other):
    first, second = one.net.state_dict(), other.net.state_dict()
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert one.metrics == other.metrics
    assert replace(one, net=None, minutes=0.0) == replace(other, net=None, minutes=0.0)


STAGE = ("cascade.order=[fgsm,pgm]", "cascade.epochs=3", "cascade.validate_every=1", "schedule.batch_size=10")
"""36 images in batches of 10: four steps an epoch, the last one smaller; shares that do not come out even."""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    trainer = trainer_of(*STAGE)
    return train(trainer, stages_of(trainer.config)[2], tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("step", range(1, 12))
def test_killed_at_any_step_it_ends_as_if_nothing_had_been(step, uninterrupted, tmp_path, monkeypatch):
    trainer = trainer_of(*STAGE)
    stage = stages_of(trainer.config)[2]
    killed_at(step, trainer, stage, tmp_path, monkeypatch)
    done = []
    watched = StageModule.training_step

    def counted(self, batch, batch_idx):
        done.append(self.global_step)
        return watched(self, batch, batch_idx)

    monkeypatch.setattr(StageModule, "training_step", counted)
    same(train(trainer, stage, tmp_path), uninterrupted)
    assert done == list(range(step, 12))  # the checkpoint before the fatal step


class Drawing(ToyNet):
    """A net whose training steps draw from every global random state."""

    def forward(self, x):
        if self.training:
            x = x + 0.01 * (random.random() + float(np.random.rand()) + torch.rand(1))
        return super().forward(x)


VARIANTS = {
    "stage 0": (0, ()),
    "best by validation": (2, ("cascade.pick=best",)),
    "validation of every third epoch": (2, ("cascade.validate_every=3",)),
    "one batch an epoch": (1, ("schedule.batch_size=64", "cascade.epochs=12", "cascade.validate_every=4")),
    "AdamW with steps": (1, ("optimizer=adam", "schedule.shape=steps", "schedule.milestones=[1]")),
    "augmentation": (1, ("dataset.augment.rotation=20", "dataset.augment.shift=0.1")),
    "every global random state": (1, ("model._target_=tests.test_resume.Drawing",)),
    "bfloat16": (1, ("trainer.precision=bf16-mixed",)),
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("step", [4, 7])
def test_it_goes_on_whatever_is_trained(variant, step, tmp_path, monkeypatch):
    index, overrides = VARIANTS[variant]
    trainer = trainer_of(*STAGE, "cascade.undefended_epochs=3", *overrides)
    stage = stages_of(trainer.config)[index]
    whole = train(trainer, stage, tmp_path / "whole")
    assert whole.steps >= 12
    random.seed(step), np.random.seed(step), torch.manual_seed(step)  # what a new process brings along
    killed_at(step, trainer, stage, tmp_path, monkeypatch)
    same(train(trainer, stage, tmp_path), whole)


def test_a_stage_may_be_killed_again_and_again(uninterrupted, tmp_path, monkeypatch):
    trainer = trainer_of(*STAGE)
    stage = stages_of(trainer.config)[2]
    for step in (2, 2, 5, 6, 11):
        killed_at(step, trainer, stage, tmp_path, monkeypatch)
    same(train(trainer, stage, tmp_path), uninterrupted)


def test_e_at_goes_on_with_its_running_errors(tmp_path, monkeypatch):
    trainer = trainer_of(*STAGE, "defence=e_at")
    stage = stages_of(trainer.config)[1]
    seen = []
    whole = Extremes.observe

    def watched(self, wrong, source):
        whole(self, wrong, source)
        seen.append([int(source[0]), *self.errors])

    monkeypatch.setattr(Extremes, "observe", watched)
    once = train(trainer, stage, tmp_path / "whole")
    expected, seen[:] = list(seen), []
    assert len({tuple(errors) for errors in expected}) == len(expected) == 12
    killed_at(7, trainer, stage, tmp_path, monkeypatch)
    del seen[7:]  # the fatal step
    same(train(trainer, stage, tmp_path), once)
    assert seen == expected


# --- checkpoints -----------------------------------------------------------------------------------------------------


def checkpoints(folder):
    return sorted((folder / "work").rglob("*.ckpt"))


def test_two_checkpoints_are_kept_and_named_by_step_and_checksum(tmp_path, monkeypatch):
    trainer = trainer_of(*STAGE)
    killed_at(9, trainer, stages_of(trainer.config)[1], tmp_path, monkeypatch)
    steps, sums = zip(*(path.stem.split("-") for path in checkpoints(tmp_path)), strict=True)
    assert [int(step) for step in steps] == [8, 9]
    assert list(sums) == [hashlib.sha256(path.read_bytes()).hexdigest() for path in checkpoints(tmp_path)]


@pytest.mark.parametrize("spoil", [lambda content: content[:-100], lambda content: content[:99] + b"?" + content[100:]])
def test_a_damaged_checkpoint_is_left_for_the_one_before(spoil, uninterrupted, tmp_path, monkeypatch, caplog):
    trainer = trainer_of(*STAGE)
    stage = stages_of(trainer.config)[2]
    killed_at(9, trainer, stage, tmp_path, monkeypatch)
    newest = checkpoints(tmp_path)[-1]
    newest.write_bytes(spoil(newest.read_bytes()))
    same(train(trainer, stage, tmp_path), uninterrupted)
    assert f"checkpoint {newest} is damaged" in caplog.text


def test_where_every_checkpoint_is_damaged_the_stage_begins_anew(uninterrupted, tmp_path, monkeypatch):
    trainer = trainer_of(*STAGE)
    stage = stages_of(trainer.config)[2]
    killed_at(9, trainer, stage, tmp_path, monkeypatch)
    for path in checkpoints(tmp_path):
        path.write_bytes(b"")
    same(train(trainer, stage, tmp_path), uninterrupted)


def test_a_checkpoint_of_other_versions_is_not_gone_on_from(uninterrupted, tmp_path, monkeypatch):
    trainer = trainer_of(*STAGE)
    stage = stages_of(trainer.config)[2]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "versions", lambda: {"torch": "1.0"})
        killed_at(9, trainer, stage, tmp_path, monkeypatch)
    assert newest_checkpoint(checkpoint_folder(tmp_path / "work")) is None
    same(train(trainer, stage, tmp_path), uninterrupted)


def test_a_full_disk_ends_no_training(uninterrupted, tmp_path, monkeypatch, caplog):
    trainer = trainer_of(*STAGE)

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint, "write_whole", lambda path, content: path.suffix == ".ckpt" and full(path, content))
    same(train(trainer, stages_of(trainer.config)[2], tmp_path), uninterrupted)
    assert caplog.text.count("no checkpoint could be written") == 1
    assert "No space left on device" in caplog.text


def test_a_checkpoint_holds_no_code(tmp_path, monkeypatch):
    trainer = trainer_of(*STAGE)
    killed_at(9, trainer, stages_of(trainer.config)[2], tmp_path, monkeypatch)
    state = torch.load(checkpoints(tmp_path)[-1], weights_only=True)
    assert state["global_step"] == 9
    assert state["position"] == 1


@pytest.mark.parametrize(
    ("minutes", "cost", "steps"), [(1e9, 1e12, [4, 8]), (1e-9, 1e12, list(range(1, 12))), (1e-9, 1e-12, [1])]
)
def test_a_checkpoint_comes_before_every_epoch_and_every_so_many_minutes_unless_it_costs_too_much(
    minutes, cost, steps, tmp_path, monkeypatch
):
    monkeypatch.setattr(checkpoint, "COST_SHARE", cost)
    written = []
    save = lambda self, state, path, **rest: written.append(int(path.name))  # noqa: E731 - it is one line
    monkeypatch.setattr(WholeCheckpoints, "save_checkpoint", save)
    trainer = trainer_of(*STAGE, f"store.checkpoint_minutes={minutes}")
    train(trainer, stages_of(trainer.config)[1], tmp_path)
    assert written == steps


def test_no_global_random_state_is_moved(tmp_path):
    trainer = trainer_of(*STAGE, "model._target_=tests.test_resume.Drawing")
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    before = random.random(), np.random.rand(), torch.rand(1)
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    train(trainer, stages_of(trainer.config)[1], tmp_path)
    assert (random.random(), np.random.rand(), torch.rand(1)) == before


# --- the program itself ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_same_command_goes_on_after_sigkill(tmp_path):
    arguments = (*TOY, "trainer.threads=1", "cascade.order=[fgsm]", "evaluation.attacks=[fgsm]", "cascade.epochs=60",
                 "evaluation.gallery=2", "figures=false")  # fmt: skip
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = shell(*arguments, f"store.root={killed}", f"hydra.run.dir={tmp_path / 'run'}", cwd=tmp_path)
    deadline = time.monotonic() + 120
    first = tmp_path / "run" / "stages" / "0_undefended" / "weights.safetensors"
    while not (first.exists() and list(killed.glob("work/*/*/*.ckpt"))):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert not (tmp_path / "run" / "stages" / "1_fgsm" / "weights.safetensors").exists()
    done = door(*arguments, f"store.root={killed}", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.status == 0, done.err
    assert "stage 0/1 undefended  from the store" in done.out
    assert re.search(r"stage 1/1 fgsm  goes on after step \d+ \(epoch \d+ of 60\)", done.out)
    assert list(killed.glob("work/*")) == []
    assert door(*arguments, f"store.root={whole}", f"hydra.run.dir={tmp_path / 'other'}").status == 0
    for name in ("stages/1_fgsm/weights.safetensors", "stages/1_fgsm/metrics.csv", "examples.npz"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "other" / name).read_bytes(), name
