"""The experiments on real data sets, small: official-layout files in, a whole run folder out."""

import json
import subprocess
import sys

import numpy as np
import pytest
import scipy.io

from amc_lightning.__main__ import main

SHORT = ["cascade.undefended_epochs=1", "cascade.epochs=1", "cascade.validate_rows=4", "evaluation.gallery=3"]


def write_svhn(folder, *, train_per_class, test_per_class):
    """Write noise with a bright stripe that tells the class, in the official layout (label 10 is digit 0)."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train_per_class), ("test", test_per_class)):
        y = np.repeat(np.arange(1, 11), count)
        x = rng.integers(0, 80, (32, 32, 3, len(y)), dtype=np.uint8)
        for row, label in enumerate(y):
            x[3 * (label - 1) : 3 * label, :, :, row] += 150
        scipy.io.savemat(folder / f"{split}_32x32.mat", {"X": x, "y": y[:, None].astype(np.uint8)})


def test_svhn_amc_runs_unchanged_on_official_layout_files(tmp_path, capfd):
    write_svhn(tmp_path, train_per_class=4, test_per_class=6)
    run = tmp_path / "run"
    status = main(["+experiment=svhn_amc", f"dataset.root={tmp_path}", f"hydra.run.dir={run}", *SHORT])
    streams = capfd.readouterr()
    assert status == 0, streams.err
    assert streams.err.count("verified: false") == 1, streams.err
    results = json.loads((run / "results.json").read_text())
    assert results["status"] == "finished"
    assert not results["dataset"]["verified"]
    assert results["dataset"]["counts"] == {"train": 40, "validation": 10, "attack": 10, "test": 40}
    assert [stage["name"] for stage in results["stages"]] == ["undefended", "fgsm", "vap", "eap", "pgm"]
    assert results["stages"][4]["rows"] == {"fgsm": 2, "vap": 3, "eap": 3, "pgm": 32}
    assert results["attacks"]["paper"]["pgm"]["nb_iter"] == 5
    for name in ("report.md", "metrics.csv", "examples.npz", "config.yaml", "figures/examples.png"):
        assert (run / name).stat().st_size > 0


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.timeout(1200)
def test_cifar10_amc_runs_on_jpeg_coded_cifar10(tmp_path, shared_data):
    subprocess.run([sys.executable, str(shared_data / "cifar10_jpeg" / "unpack.py"), str(tmp_path)], check=True)
    run = tmp_path / "run"
    arguments = [
        "+experiment=cifar10_amc",
        f"dataset.root={tmp_path}",
        f"hydra.run.dir={run}",
        *SHORT,
        "dataset.limit=500",
        "evaluation.limit=64",
    ]
    assert main(arguments) == 2  # these pickles are not the official ones
    assert main([*arguments, "dataset.trust_files=true"]) == 0
    results = json.loads((run / "results.json").read_text())
    assert results["dataset"]["counts"] == {"train": 500, "validation": 3000, "attack": 2100, "test": 4900}
    assert results["stages"][-1]["evaluation"]["check"]["pgm"]["n"] == 64


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.timeout(1200)
def test_mnist_amc_makes_the_papers_attacks_less_harmful(tmp_path, shared_data):
    """A small cascade on real digits: the trend that docs/results.md reports, with room for another machine's noise."""
    run = tmp_path / "run"
    status = main(
        [
            "+experiment=mnist_amc",
            f"dataset.root={shared_data / 'mnist'}",
            f"hydra.run.dir={run}",
            "dataset.limit=3000",
            "cascade.undefended_epochs=6",
            "cascade.epochs=2",
            "evaluation.limit=300",
        ]
    )
    assert status == 0
    results = json.loads((run / "results.json").read_text())
    assert results["dataset"]["verified"]
    first, last = results["stages"][0]["evaluation"], results["stages"][-1]["evaluation"]
    assert last["clean"]["error"] < 8
    for name in ("fgsm", "eap@budget", "pgm", "worst"):
        assert last["paper"][name]["error"] < first["paper"][name]["error"], name
