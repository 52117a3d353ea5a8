"""The sweeps that compare AMC with the multi-attack baselines: every row, from one M0, to the page."""

import json

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from amc_lightning.config import CONF_DIR, register
from amc_lightning.field.entrants import PLACES
from tests.test_run import door

SMALL = (
    "dataset.limit=100", "cascade.undefended_epochs=2", "scale.passes=30", "scale.steps=2", "scale.judged_steps=2",
    "scale.queries=5", "evaluation.limit=8", "evaluation.judge.rows=4", "evaluation.gallery=0", "trainer.threads=1",
    "trainer.progress=none", "attack_params.white_box.eap.binary_search_steps=1",
    "'evaluation.check={pgm: {nb_iter: 3, eps_iter: null}}'",
)  # fmt: skip


@pytest.mark.parametrize("experiment", ["digits_baselines", "mnist_baselines", "cifar10_baselines"])
def test_the_sweeps_have_a_row_for_every_place(experiment):
    register()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = compose("config", overrides=[f"+experiment={experiment}"], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        assert cfg.hydra.mode.name == "MULTIRUN"
        named = [name.strip() for name in cfg.hydra.sweeper.params.system.split(",")]
    assert len(set(named)) == len(named) == 18
    assert set(named) <= set(PLACES)


@pytest.mark.slow
def test_a_whole_sweep_on_few_digits(tmp_path):
    """Eighteen systems of seconds: one M0 for all, rows at the cost they were given, and the page with an answer."""
    arguments = [text.strip("'") for text in SMALL]
    sweep = tmp_path / "sweep"
    done = door("+experiment=digits_baselines", *arguments, f"hydra.sweep.dir={sweep}", f"store.root={tmp_path}/store")
    assert done.status == 0, done.err
    assert f"AMC among the multi-attack baselines: {sweep / 'baselines.md'}" in done.out
    results = [json.loads((sweep / str(job) / "results.json").read_text()) for job in range(18)]
    assert len({run["stages"][0]["key"] for run in results}) == 1
    passes = {run["system"]: sum(s["gradient_passes_per_image"] for s in run["stages"][1:]) for run in results}
    # epochs that 30 passes buy: AVG 30 / 10 = 3, MAX 30 / 8 = 4, MSD 30 / 4 = 8, the cascade 30 / 12 = 3
    assert [passes[f"norms_{name}"] for name in ("avg", "max", "msd", "amc")] == [30, 32, 32, 36]
    page = (sweep / "baselines.md").read_text()
    assert "Does a cascade with replay buy anything at equal cost?" in page
    table = (sweep / "tables" / "baselines.csv").read_text()
    assert all(place.label in table for name, place in PLACES.items() if name in passes)
    assert (sweep / "figures" / "baselines.png").stat().st_size > 10_000
