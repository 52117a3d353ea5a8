"""The experiments on real data sets, small: official-layout files in, a whole run folder out."""

import csv
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
    for split, count in (("train", train_per_class), ("test", test_per_class), ("extra", train_per_class)):
        y = np.repeat(np.arange(1, 11), count)
        x = rng.integers(0, 80, (32, 32, 3, len(y)), dtype=np.uint8)
        for row, label in enumerate(y):
            x[3 * (label - 1) : 3 * label, :, :, row] += 150
        scipy.io.savemat(folder / f"{split}_32x32.mat", {"X": x, "y": y[:, None].astype(np.uint8)})


@pytest.mark.slow
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
    assert results["attacks"]["white_box"]["paper"]["pgm"]["nb_iter"] == 5
    for name in ("report.md", "metrics.csv", "examples.npz", "config.yaml", "figures/examples.png"):
        assert (run / name).stat().st_size > 0


TINY_PROXIES = ["proxy.epochs=1", "proxy.fine_tune_epochs=1", "evaluation.limit=10", "evaluation.attacks=[fgsm,pgm]"]


@pytest.mark.slow
def test_digits_local_proxy_writes_the_papers_table_4_from_one_command(tmp_path, capfd):
    folder = tmp_path / "sweep"
    short = [*SHORT, *TINY_PROXIES, "dataset.limit=50", "dataset.proxy.limit=40", "trainer.threads=1"]
    assert main(["+experiment=digits_local_proxy", *short, f"hydra.sweep.dir={folder}"]) == 0
    rows = list(csv.DictReader((folder / "tables" / "table4.csv").read_text().splitlines()))
    assert {row["system"] for row in rows} == {
        "undefended", "AT[P] fgsm", "AT[P] eap", "AT[P] pgm", "AT[P] vap", "AMC, local proxy", "AMC, target-hardened",
    }  # fmt: skip
    assert {row["threat_model"] for row in rows} == {
        "black_box_label", "black_box_noisy_label", "black_box_probabilities",
    }  # fmt: skip
    for number in range(6):
        results = json.loads((folder / str(number) / "results.json").read_text())
        assert (results["threat_model"] == "white_box") == (number == 5)
        assert [stage["proxy"] is not None for stage in results["stages"][1:]] == [number < 5] * (
            1 if number < 4 else 4
        )
    assert "Black-box (Table 4) on digits" in " ".join(capfd.readouterr().out.split())


@pytest.mark.slow
def test_svhn_local_proxy_asks_about_extra(tmp_path, capfd):
    write_svhn(tmp_path, train_per_class=4, test_per_class=6)
    folder = tmp_path / "sweep"
    arguments = [*SHORT, *TINY_PROXIES, f"dataset.root={tmp_path}", "evaluation.threat_models=[black_box_label]"]
    status = main(["+experiment=svhn_local_proxy", *arguments, "system=at_fgsm_proxy", f"hydra.sweep.dir={folder}"])
    assert status == 0, capfd.readouterr().err
    results = json.loads((folder / "0" / "results.json").read_text())
    assert results["proxy_data"]["source"] == "svhn_extra"
    # train and extra are drawn alike here, so they share nothing
    assert (results["proxy_data"]["read"], results["proxy_data"]["kept"]) == (40, 40)
    assert results["stages"][1]["proxy"]["architecture"] == "proxy_cnn"


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.timeout(1200)
def test_mnist_local_proxy_transfers_and_hardening_on_a_proxy_helps_against_it(tmp_path, shared_data):
    folder = tmp_path / "sweep"
    small = [
        "dataset.limit=3000", "dataset.proxy.limit=3000", "evaluation.limit=200", "cascade.order=[fgsm]",
        "cascade.epochs=4", "evaluation.attacks=[fgsm,pgm]",
    ]  # fmt: skip
    root = f"dataset.root={shared_data / 'mnist'}"
    assert (
        main(["+experiment=mnist_local_proxy", "system=at_fgsm_proxy", root, *small, f"hydra.sweep.dir={folder}"]) == 0
    )
    results = json.loads((folder / "0" / "results.json").read_text())
    first, last = (stage["evaluations"]["black_box_label"] for stage in results["stages"])
    assert first["proxies"]["proxy_cnn"]["agreement"]["share"] > 80
    assert first["paper"]["pgm"]["error"] > first["clean"]["error"] + 10, "the attack transfers"
    assert last["paper"]["pgm"]["error"] < first["paper"]["pgm"]["error"]
    assert results["proxy_data"]["overlapping"] == 0


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
    assert results["stages"][-1]["evaluations"]["white_box"]["check"]["pgm"]["n"] == 64


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
    first, last = results["stages"][0]["evaluations"]["white_box"], results["stages"][-1]["evaluations"]["white_box"]
    assert last["clean"]["error"] < 8
    for name in ("fgsm", "eap@budget", "pgm", "worst"):
        assert last["paper"][name]["error"] < first["paper"][name]["error"], name
