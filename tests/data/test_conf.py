"""Every file in conf/dataset is taken by ImageData as it stands."""

import importlib
import inspect
from pathlib import Path

import pytest
import yaml

from amc_lightning.data import Augment, ImageData

CONF = Path(__file__).parents[2] / "conf" / "dataset"
FILES = sorted(CONF.glob("*.yaml"))


def test_the_five_datasets_are_there():
    assert {path.stem for path in FILES} >= {"cifar10", "digits", "folder", "mnist", "svhn"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_keys_source_and_augmentation(path):
    settings = yaml.safe_load(path.read_text())
    assert path.read_text().startswith("# "), "the first line says what the data are and under which licence"
    assert settings["name"] == path.stem
    assert set(settings) == set(inspect.signature(ImageData).parameters) - {"batch_size", "seed"}
    module, _, name = settings["source"].pop("_target_").rpartition(".")
    source = getattr(importlib.import_module(module), name)
    inspect.signature(source).bind(root=None, trust_files=False, split_seed=0, **settings["source"])
    Augment(**settings["augment"])
    assert set(settings["epochs"]) == {"undefended", "stage"}
    assert settings["budget"]["eap"] in (10.0, 12.0)


def test_digits_load_as_configured():
    settings = yaml.safe_load((CONF / "digits.yaml").read_text())
    module, _, name = settings.pop("source")["_target_"].rpartition(".")
    source = getattr(importlib.import_module(module), name)
    data = ImageData(source=source, batch_size=128, seed=0, **{**settings, "root": None}).prepare()
    assert data.counts["attack"] == 140
