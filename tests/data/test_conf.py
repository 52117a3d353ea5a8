"""Every file in conf/dataset is taken by ImageData as it stands."""

import importlib
import inspect
from pathlib import Path

import pytest
import yaml

from amc_lightning.data import Augment, ImageData, ProxyData

CONF = Path(__file__).parents[2] / "conf" / "dataset"
FILES = sorted(CONF.glob("*.yaml"))


def test_the_five_datasets_are_there():
    assert {path.stem for path in FILES} >= {"cifar10", "digits", "folder", "mnist", "svhn"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_keys_source_and_augmentation(path):
    settings = yaml.safe_load(path.read_text())
    assert path.read_text().startswith("# "), "the first line says what the data are and under which licence"
    assert settings["name"] == path.stem
    assert set(settings) == set(inspect.signature(ImageData).parameters) - {"batch_size", "seed"} | {
        "proxy",
        "squeezing",
    }
    module, _, name = settings["source"].pop("_target_").rpartition(".")
    source = getattr(importlib.import_module(module), name)
    inspect.signature(source).bind(root=None, trust_files=False, split_seed=0, **settings["source"])
    Augment(**settings["augment"])
    assert set(settings["epochs"]) == {"undefended", "stage", "proxy", "proxy_fine_tune"}
    assert settings["budget"]["eap"] in (10.0, 12.0)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_keys_and_source_of_the_proxy_data(path):
    settings = yaml.safe_load(path.read_text())["proxy"]
    assert set(settings) == set(inspect.signature(ProxyData).parameters) - {"data", "device"}
    own = {name: value for name, value in settings["source"].items() if name != "_target_"}
    given = dict.fromkeys(("root", "trust_files", "seed", "count", "target", "class_names", "device"))
    inspect.signature(function_of(settings["source"])).bind(**given, **own)
    assert settings["limit"] == {"digits": 2000, "mnist": 60_000, "svhn": 100_000}.get(path.stem)


def function_of(node):
    module, _, name = node["_target_"].rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_digits_load_as_configured():
    settings = yaml.safe_load((CONF / "digits.yaml").read_text())
    proxy, squeezing = settings.pop("proxy"), settings.pop("squeezing")
    assert squeezing == ["bit_depth_1"]
    settings |= {"source": function_of(settings["source"]), "root": None}
    data = ImageData(batch_size=128, seed=0, **settings).prepare()
    assert data.counts["attack"] == 140
    images = ProxyData(data=data, **{**proxy, "source": function_of(proxy["source"])})
    assert len(images) == 2000
    assert images.counts == {"read": 2000, "overlapping": 0, "repeated": 0, "kept": 2000}
