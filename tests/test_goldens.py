"""The resolved configuration of every experiment, to be read as a diff; `make goldens` writes them anew."""

import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

from amc_lightning.config import CONF_DIR, read, register

GOLDENS = Path(__file__).parent / "goldens"
EXPERIMENTS = sorted(path.stem for path in (CONF_DIR / "experiment").glob("*.yaml"))


def resolved(experiment: str) -> str:
    """Return the checked configuration of an experiment as YAML."""
    register()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = read(compose("config", overrides=[f"+experiment={experiment}"]))
    return yaml.safe_dump(asdict(config), sort_keys=False, width=120)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_resolved_configuration_is_the_golden_one(experiment, monkeypatch):
    monkeypatch.delenv("AMC_STORE")
    golden = GOLDENS / f"{experiment}.yaml"
    assert resolved(experiment) == golden.read_text(), "changed on purpose? run `make goldens` and read the diff"


def test_there_is_no_golden_without_its_experiment():
    assert sorted(path.stem for path in GOLDENS.glob("*.yaml")) == EXPERIMENTS


if __name__ == "__main__":
    for name in sys.argv[1:] or EXPERIMENTS:
        (GOLDENS / f"{name}.yaml").write_text(resolved(name))
