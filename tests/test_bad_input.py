"""Whatever is wrong with the input: one line that says what, a status, and nothing trained."""

import copy
import io
import math
import os
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from amc_lightning import UserError, load
from amc_lightning.data import sources
from amc_lightning.data.images import Images, Source
from amc_lightning.run import run
from tests.data.official_files import write_mnist
from tests.test_cascade import TOY, ToyNet, composed, toy_images, toy_source
from tests.test_run import door, files, read

HERE = "tests.test_bad_input"
SMALL = (*TOY, "trainer.threads=1", "cascade.order=[fgsm]", "evaluation.attacks=[fgsm]", "evaluation.gallery=2")


@pytest.fixture(autouse=True)
def _one_thread():
    """On nets this small a second thread costs more than it gives; ``trainer.threads`` sets it for the process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def refused(tmp_path, *overrides):
    """Run the toy with something wrong; return the one line, after making sure that nothing was begun."""
    first = 2 if overrides[0] == "--config-dir" else 0  # options stand before overrides
    done = door(*overrides[:first], *SMALL, f"hydra.run.dir={tmp_path}", *overrides[first:])
    assert done.status == 2, done.err
    assert "Plan" not in done.out
    assert files(tmp_path) == []
    return done.message


# --- images and labels -----------------------------------------------------------------------------------------------


def _floats():
    images = toy_images(12, 1)
    return images.x / 255, images.y


def _with(x, y):
    return Source(Images(x, y), toy_images(20, 2), ("low", "middle", "high"), verified=True)


def nan_images(root, **settings):
    x, y = _floats()
    x[3, 0, 4, 4] = math.nan
    return _with(x, y)


def infinite_images(root, **settings):
    x, y = _floats()
    x[3, 0, 4, 4] = math.inf
    return _with(x, y)


def standardised_images(root, **settings):
    x, y = _floats()
    return _with((x - 0.5) / 0.25, y)


def images_in_0_to_255_as_floats(root, **settings):
    x, y = _floats()
    return _with(x * 255, y)


def images_as_integers(root, **settings):
    images = toy_images(12, 1)
    return _with(images.x.astype(np.int32), images.y)


def images_without_channels(root, **settings):
    images = toy_images(12, 1)
    return _with(images.x[:, 0], images.y)


def images_of_another_size(root, **settings):
    images = toy_images(12, 1)
    return _with(images.x[:, :, :6], images.y)


def labels_from_1(root, **settings):
    images = toy_images(12, 1)
    return _with(images.x, images.y + 1)


def negative_labels(root, **settings):
    images = toy_images(12, 1)
    return _with(images.x, np.where(images.y == 2, -1, images.y))


def labels_as_floats(root, **settings):
    images = toy_images(12, 1)
    return _with(images.x, images.y.astype(np.float64))


def labels_for_half(root, **settings):
    images = toy_images(12, 1)
    return _with(images.x, images.y[::2])


def class_too_small(root, **settings):
    test = toy_images(20, 2)
    keep = (test.y != 1) | (np.cumsum(test.y == 1) <= 4)
    return Source(toy_images(12, 1), test.take(np.flatnonzero(keep)), ("low", "middle", "high"), verified=True)


def class_without_images(root, **settings):
    train = toy_images(12, 1)
    keep = np.flatnonzero(train.y != 1)
    return Source(train.take(keep), toy_images(20, 2), ("low", "middle", "high"), verified=True)


def two_classes(root, **settings):
    return Source(toy_images(12, 1, classes=2), toy_images(20, 2, classes=2), ("low", "high"), verified=True)


def refused_by_run(tmp_path, toy_config, *, source=None, model=None):
    """Like ``refused``, behind the door: composing takes longer than all the rest."""
    config = copy.deepcopy(toy_config)
    if source is not None:
        config.dataset.source["_target_"] = f"{HERE}.{source.__name__}"
    if model is not None:
        config.model["_target_"] = f"{HERE}.{model.__name__}"
    out = io.StringIO()
    with pytest.raises(UserError) as caught:
        run(config, tmp_path / "run", console=Console(file=out))
    assert out.getvalue() == ""
    assert not (tmp_path / "run").exists()
    return str(caught.value)


@pytest.fixture(scope="module")
def toy_config():
    return composed(*SMALL)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (nan_images, r"toy, training images: 1 pixels are NaN; images are uint8 in 0\.\.255, or floats in \[0, 1\]\. "),
        (infinite_images, r"toy, training images: \(0\.\d+, inf\) is the range of the pixels; .* Scale the images"),
        (standardised_images, r"toy, training images: \(-\d\.\d+, \d\.\d+\) is the range of the pixels; .*Scale"),
        (images_in_0_to_255_as_floats, r"toy, training images: .* is the range of the pixels; .* Scale the images"),
        (images_as_integers, "toy, training images: 'int32' is not a type of image this reads"),
        (images_without_channels, r"toy, training images: \(36, 8, 8\) is the shape of the images; it must be \(N, C"),
        (images_of_another_size, r"dataset\.shape: \[1, 8, 8\] is not the shape of the images; .*\[1, 6, 8\]"),
        (labels_from_1, r"toy, training images: \[3\] are labels out of range; 3 classes are numbered 0\.\.2"),
        (negative_labels, r"toy, training images: \[-1\] are labels out of range"),
        (labels_as_floats, "toy, training images: 'float64' is the type of the labels; they must be integers"),
        (labels_for_half, r"toy, training images: \(18,\) is the shape of the labels of 36 images; one each"),
        (
            class_too_small,
            r"dataset, class 'low': 4 test images would be split into 1 validation, 0 attack and 3 test images; "
            r"each part needs at least one .* Add test images of this class, or remove the class\.",
        ),
        (class_without_images, "dataset, class 'middle': 0 images were found; every class needs some"),
        (two_classes, r"dataset\.num_classes: 3 is not the number of classes; toy has 2"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_images_and_labels_that_cannot_be_are_refused(source, message, tmp_path, toy_config):
    line = refused_by_run(tmp_path, toy_config, source=source)
    assert "\n" not in line
    assert re.search(message, line), line


@pytest.mark.parametrize(
    ("source", "message"),
    [(nan_images, "1 pixels are NaN"), (standardised_images, "Scale the images"), (labels_from_1, "out of range")],
    ids=["nan", "standardised", "labels"],
)
def test_the_door_tells_it_in_one_line(source, message, tmp_path):
    assert message in refused(tmp_path, f"dataset.source._target_={HERE}.{source.__name__}")


def test_a_class_too_small_is_named_where_classes_are_not_cut_alike(tmp_path):
    line = refused(tmp_path, f"dataset.source._target_={HERE}.class_too_small", "dataset.balanced=false")
    assert "dataset, class 'middle': 4 test images" in line


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dataset.source._target_=tests.test_bad_input.nothing", "dataset.source._target_: .* cannot be imported"),
        ("dataset.source._target_=nowhere.at.all", "dataset.source._target_: 'nowhere.at.all' cannot be imported"),
        ("+dataset.source.colour=red", "dataset.source"),
        ("dataset.limit=2", "dataset.limit: 2 is fewer training images than the 3 classes"),
    ],
)
def test_a_source_that_cannot_be_called_is_named(override, message, tmp_path):
    assert re.search(message, refused(tmp_path, override))


# --- files -----------------------------------------------------------------------------------------------------------

MNIST = ("dataset=mnist", "cascade.order=[fgsm]", "evaluation.attacks=[fgsm]", "plan_only=true")


@pytest.fixture
def _offline(monkeypatch):
    """Point MNIST's URLs at a port of this machine at which nobody listens."""
    nowhere = tuple(
        replace(file, urls=tuple(f"http://127.0.0.1:9/{file.name}" for _ in file.urls)) for file in sources.MNIST_FILES
    )
    monkeypatch.setattr(sources, "MNIST_FILES", nowhere)


@pytest.mark.usefixtures("_offline")
def test_offline_without_files_it_says_which_to_put_where(tmp_path):
    root, folder = tmp_path / "data", tmp_path / "run"
    done = door(*MNIST, f"dataset.root={root}", f"hydra.run.dir={folder}")
    assert done.status == 2
    line = done.message
    assert line.startswith(f"amc_lightning: dataset.root: '{root}' lacks ")
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        assert f"{name}-ubyte.gz" in line
    assert f"Put the files into {root}, or set dataset.root to the folder that holds them." in line
    assert files(folder) == []


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file_is_named(zipped, tmp_path):
    root = tmp_path / "data"
    write_mnist(root, zipped=zipped)
    path = root / f"t10k-images-idx3-ubyte{'.gz' if zipped else ''}"
    path.write_bytes(path.read_bytes()[:-100])
    done = door(*MNIST, f"dataset.root={root}", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.status == 2
    assert done.message.startswith(f"amc_lightning: {path}: ")
    assert "cut short or damaged" in done.message


def test_a_damaged_file_is_named(tmp_path):
    root = tmp_path / "data"
    write_mnist(root)
    path = root / "train-labels-idx1-ubyte.gz"
    path.write_bytes(b"not at all an idx file")
    done = door(*MNIST, f"dataset.root={root}", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.status == 2
    assert f"{path}: '6e6f7420' is not how this file must begin" in done.message


def test_a_file_that_may_not_be_read_is_named(tmp_path):
    root = tmp_path / "data"
    write_mnist(root, zipped=False)
    path = root / "t10k-labels-idx1-ubyte"
    path.unlink()
    path.symlink_to(path)  # what nobody can open, not even root
    (root / "t10k-labels-idx1-ubyte.gz").mkdir()
    done = door(*MNIST, f"dataset.root={root}", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.status in (1, 2)
    assert "t10k-labels-idx1-ubyte" in done.message


# --- models ----------------------------------------------------------------------------------------------------------


class Probabilities(ToyNet):
    """Ends in a softmax."""

    def forward(self, x):
        return super().forward(x).softmax(dim=1)


class FourClasses(ToyNet):
    """Has a class too many, whatever it is told."""

    def __init__(self, in_channels=1, image_size=(8, 8), num_classes=3):
        super().__init__(in_channels, image_size, 4)


class ForColour(ToyNet):
    """Takes three channels, whatever it is told."""

    def __init__(self, in_channels=1, image_size=(8, 8), num_classes=3):
        super().__init__(3, image_size, num_classes)


class ForVectors(ToyNet):
    """Normalises rows of numbers, where images come; torch says so with a ValueError."""

    def __init__(self, in_channels=1, image_size=(8, 8), num_classes=3):
        super().__init__(in_channels, image_size, num_classes)
        self.bn = nn.BatchNorm1d(4)


class ForVideo(ToyNet):
    """Unpacks a fifth axis, which fails with a ValueError of Python's own."""

    def forward(self, x):
        _, _, _, _, _ = x.shape
        return x


class WithTwoInputs(ToyNet):
    """Wants more than images, which is a TypeError."""

    def forward(self, x, mask):
        return super().forward(x * mask)


class Pair(ToyNet):
    """Returns logits and something else."""

    def forward(self, x):
        return super().forward(x), x


class Maps(ToyNet):
    """Returns logits per pixel."""

    def forward(self, x):
        return super().forward(x)[:, :, None, None].expand(-1, -1, 8, 8)


class Unbuildable(ToyNet):
    """Cannot be made of its arguments."""

    def __init__(self, in_channels=1, image_size=(8, 8), num_classes=3):
        raise ValueError("num_classes must be even")


class NotANetwork:
    """Is no module."""

    def __init__(self, in_channels=1, image_size=(8, 8), num_classes=3):
        pass


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Probabilities, "model: 'Probabilities' returns probabilities; needed: logits, before any softmax. Remove the"),
        (FourClasses, r"model: 'FourClasses' returns \(4, 4\) for 4 images; needed: logits of shape \(4, 3\)\. Match"),
        (ForColour, r"model: 'ForColour' cannot take images of shape \(1, 8, 8\) .*; a model for the shape of the"),
        (ForVectors, r"model: 'ForVectors' cannot take images of shape \(1, 8, 8\) "),
        (ForVideo, r"model: 'ForVideo' cannot take images of shape \(1, 8, 8\) "),
        (WithTwoInputs, r"model: 'WithTwoInputs' cannot take images of shape \(1, 8, 8\) .*mask"),
        (Pair, "model: 'Pair' returns tuple for 4 images; needed: logits"),
        (Maps, r"model: 'Maps' returns \(4, 3, 8, 8\) for 4 images; needed: logits"),
        (Unbuildable, "model: .*num_classes must be even"),
        (NotANetwork, "model._target_: '.*NotANetwork' is not an? Module"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_model_that_is_no_classifier_of_these_images_is_refused(model, message, tmp_path, toy_config):
    line = refused_by_run(tmp_path, toy_config, model=model)
    assert "\n" not in line
    assert re.search(message, line), line


@pytest.mark.parametrize("model", [Probabilities, FourClasses])
def test_the_door_tells_what_is_wrong_with_a_model_in_one_line(model, tmp_path):
    assert f"model: '{model.__name__}' returns " in refused(tmp_path, f"model._target_={HERE}.{model.__name__}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.image_size=8", "model"),  # a number where the package's networks take two
        ("model.image_size=[16,16]", r"model: 'LeNet' cannot take images of shape \(1, 8, 8\)"),
        ("model.num_classes=5", r"model: 'LeNet' returns \(4, 5\) for 4 images; needed: logits of shape \(4, 3\)"),
        ("model.num_classes=-1", "model"),
        ("+model.depth=3", "model"),
    ],
)
def test_arguments_that_do_not_fit_the_model_are_refused(override, message, tmp_path):
    line = refused(tmp_path, "model._target_=amc_lightning.models.LeNet", override)
    assert re.search(message, line), line


# --- training --------------------------------------------------------------------------------------------------------


def test_batches_smaller_than_the_number_of_attacks_work(tmp_path):
    done = door(
        *SMALL, "schedule.batch_size=2", "dataset.limit=12", "cascade.undefended_epochs=1", "evaluation.gallery=1",
        "cascade.order=[fgsm,vap,pgm]", "attack_params.white_box.pgm.nb_iter=2", f"hydra.run.dir={tmp_path}",
    )  # fmt: skip
    assert done.status == 0, done.err
    assert sum(read(tmp_path)["stages"][3]["rows"].values()) == 12


def test_a_loss_that_is_not_finite_stops_the_run_and_says_when(tmp_path):
    torch.set_warn_always(True)  # not once a process, so that the order of tests does not matter
    try:
        done = door(*SMALL, "schedule.peak_lr=1e30", f"hydra.run.dir={tmp_path}")
    finally:
        torch.set_warn_always(False)
    assert done.status == 1
    assert re.search(
        r"stage 0 undefended: the loss became (nan|inf) in epoch 1, step [23]; needed: finite numbers\. .* are "
        r"in stages/0_undefended/last_good\.safetensors, and finished stages stay\. Lower schedule\.peak_lr",
        done.message,
    )
    assert read(tmp_path)["status"].startswith("stopped: stage 0 undefended: the loss became ")
    assert read(tmp_path)["stages"] == []
    kept = load_file(tmp_path / "stages/0_undefended/last_good.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())


def test_finished_stages_stay_when_a_later_one_diverges(tmp_path):
    before = tmp_path / "before"
    assert door(*SMALL, "defence=undefended", "cascade.order=[]", f"hydra.run.dir={before}").status == 0
    given, folder = before / "stages" / "0_undefended" / "weights.safetensors", tmp_path / "run"
    torch.set_warn_always(True)
    try:
        done = door(*SMALL, f"cascade.start_from={given}", "schedule.peak_lr=1e30", f"hydra.run.dir={folder}")
    finally:
        torch.set_warn_always(False)
    assert done.status == 1
    assert "stage 1 fgsm: attack fgsm returned values that are not finite" in done.message
    results = read(folder)
    assert results["status"].startswith("stopped: stage 1 fgsm: attack fgsm returned values that are not finite")
    assert [stage["name"] for stage in results["stages"]] == ["undefended"]
    assert (folder / "report.md").is_file()
    assert (folder / "examples.npz").is_file()
    assert all(torch.equal(tensor, load_file(given)[name]) for name, tensor in load(folder).state_dict().items())
    kept = load_file(folder / "stages/1_fgsm/last_good.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.momentum=0", "optimizer: .*[Nn]esterov"),
        ("optimizer.lr=-1", "optimizer: .*[Ii]nvalid learning rate"),
        ("+optimizer.betas=[1]", "optimizer"),
        ("optimizer._target_=torch.optim.Nadir", "optimizer._target_: 'torch.optim.Nadir' cannot be imported"),
        ("optimizer._target_=torch.nn.Linear", "optimizer._target_: 'torch.nn.Linear' is not an? Optimizer"),
    ],
)
def test_an_optimiser_that_cannot_be_made_is_told_in_one_line(override, message, tmp_path):
    done = door(*SMALL, override, f"hydra.run.dir={tmp_path}")
    assert done.status == 2
    assert re.search(message, done.message), done.message
    assert not list(tmp_path.glob("stages/*/weights.safetensors"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cascade.start_from: '.*' does not exist; a file of weights.* Check the path"),
        (b"junk", "cascade.start_from: '.*' cannot be read .*; a whole .safetensors file, or .*Use an undamaged copy."),
    ],
)
def test_weights_to_start_from_that_cannot_be_are_told_in_one_line(content, message, tmp_path):
    path = tmp_path / "given.safetensors"
    if content is not None:
        path.write_bytes(content)
    done = door(*SMALL, f"cascade.start_from={path}", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.status == 2
    assert re.search(message, done.message), done.message
    assert not list(tmp_path.glob("run/stages/*/weights.safetensors"))


# --- a user's own attack ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"params": {"eps": 8}}, "mine.*eps: 8 .*8/255"),
        ({"params": {"epz": 0.1}}, "mine.*epz: 0.1 is set, but FGSM has no epz; known: eps"),
        ({"_target_": "torchattacks.FGSMM"}, "attacks.mine._target_: 'torchattacks.FGSMM' cannot be imported"),
        ({"_target_": "torch.nn.Linear"}, "attacks.mine._target_: 'torch.nn.Linear' is not an attack class"),
        ({"norm": "l3"}, "attacks.mine.norm: 'l3' is not a norm; known: linf, l2, l1, .*, null"),
        ({"uses_labels": "sometimes"}, "attacks.mine.uses_labels: 'sometimes' is not a switch"),
        ({"eps": 0.1}, "attacks.mine: 'eps' is not a setting of an attack"),
    ],
)
def test_a_users_attack_file_with_a_mistake_is_refused(change, message, tmp_path):
    spec = {"_target_": "torchattacks.FGSM", "norm": "linf", "uses_labels": True, "params": {"eps": 0.1}, **change}
    folder = tmp_path / "own" / "attack"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(yaml.safe_dump(spec))
    line = refused(tmp_path / "run", "--config-dir", str(tmp_path / "own"), "cascade.order=[mine]")
    assert re.search(message, line), line


def test_an_attack_file_that_is_no_yaml_is_told_in_one_line(tmp_path):
    folder = tmp_path / "own" / "attack"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("params: {eps: 0.1")
    line = refused(tmp_path / "run", "--config-dir", str(tmp_path / "own"), "cascade.order=[mine]")
    assert "mine" in line


def test_the_toy_itself_is_sound(tmp_path):
    assert toy_source(tmp_path).train.x.shape == (36, 1, 8, 8)
    assert door(*SMALL, "plan_only=true", f"hydra.run.dir={tmp_path}").status == 0
    assert set(os.listdir(tmp_path)) <= {".hydra", "amc_lightning.log"}
