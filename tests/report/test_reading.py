"""Reading a run folder: exact values, and one clear message for every kind of damage."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amc_lightning.errors import UserError
from amc_lightning.report import parse_results, read_results
from amc_lightning.report.reading import read_epochs, read_gallery

MakeRun = Callable[..., Path]


def test_results_are_read_as_they_were_written(make_run: MakeRun) -> None:
    results = read_results(make_run())
    assert [stage.label for stage in results.stages] == ["M0", "1 fgsm", "2 vap", "3 eap", "4 pgm"]
    assert results.stages[0].long_label == "M0 (undefended)"
    assert results.budget == {"eap": ("l1", 10.0)}
    last = results.stages[-1]
    assert (last.evaluation.clean.n, last.evaluation.clean.wrong) == (350, 12)
    assert last.rates("paper")["pgm"].wrong == 33
    assert last.rates("check")["pgm"].wrong == 46
    assert last.rates("paper")["pgm"].norms["linf"].max == 0.3
    assert last.rates("paper")["eap"].quantiles["l1"] == {"0.1": 5.0, "0.5": 10.0, "0.9": 24.0}
    assert [name for name in results.attack_names if results.differs(name)] == ["pgm"]


def test_attacks_of_the_cascade_come_first(make_run: MakeRun) -> None:
    results = read_results(make_run(order=("pgm", "unseen"), evaluated=("fgsm", "unseen", "pgm")))
    assert results.attack_names == ("pgm", "unseen", "fgsm")


def test_given_weights_are_not_called_undefended(make_run: MakeRun) -> None:
    folder = make_run(order=())
    raw = json.loads((folder / "results.json").read_text())
    raw["stages"][0]["steps"] = 0
    assert parse_results(raw).stages[0].long_label == "M0 (given weights)"


def _break(raw: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    *parents, last = path.split(".")
    node: Any = raw
    for key in parents:
        node = node[int(key) if isinstance(node, list) else key]
    if value is KeyError:
        del node[last]
    else:
        node[last] = value
    return raw


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", 3, r"results.json: format: 3 is not a format that this version reads; known: 1 or 2\."),
        ("format", KeyError, r"results.json: format: None is not a format that this version reads; known: 1 or 2\."),
        ("seed", "0", r"results.json: seed: '0' is not what this field holds; expected: a finite number\."),
        ("stages", {}, r"results.json: stages: {} is not what this field holds; expected: a list of objects\."),
        ("dataset.shape", [16, 16], r"dataset.shape: \[16, 16\] is not what this field holds; expected: C, H, W\."),
        ("dataset.verified", 1, r"results.json: dataset.verified: 1 is not .*; expected: true or false\."),
        (
            "stages.2.evaluations.white_box.check.pgm.low",
            KeyError,
            r"results.json: stages\[2\].evaluations.white_box.check.pgm.low: None is missing; expected: a finite num",
        ),
        (
            "stages.0.evaluations.white_box.paper",
            KeyError,
            r"results.json: stages\[0\].evaluations.white_box.paper: None is missing; expected: an object\.",
        ),
    ],
)
def test_a_bad_field_is_named(make_run: MakeRun, path: str, value: object, message: str) -> None:
    raw = json.loads((make_run() / "results.json").read_text())
    with pytest.raises(UserError, match=message):
        parse_results(_break(raw, path, value))


def test_a_missing_a_truncated_and_a_foreign_file(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"results.json: '.*nowhere.*' does not exist; a run writes it at its end\. Give"
    ):
        read_results(tmp_path / "nowhere")
    folder = make_run()
    path = folder / "results.json"
    path.write_text(path.read_text()[:-100])
    with pytest.raises(UserError, match=r"is not complete JSON \(.*\); a whole file of format 1 or 2 is read"):
        read_results(folder)
    path.write_text("[]")
    with pytest.raises(UserError, match=r"holds a list, not an object"):
        read_results(folder)


def test_epochs_are_means_of_what_is_there(make_run: MakeRun) -> None:
    folder = make_run(order=("pgm",), evaluated=("pgm",))
    (folder / "metrics.csv").write_text(
        "stage,name,epoch,step,train/loss,val/err/clean\n"
        "0,undefended,0,1,2.0,\n0,undefended,0,2,1.0,\n0,undefended,0,2,,12.5\n0,undefended,1,4,nan,\n1,pgm,0,1,0.5,\n"
    )
    first, second, third = read_epochs(folder)
    assert (first.stage, first.name, first.epoch) == (0, "undefended", 0)
    assert first.values == {"train/loss": 1.5, "val/err/clean": 12.5}
    assert second.values == {}
    assert (third.stage, third.epoch, third.values) == (1, 0, {"train/loss": 0.5})


@pytest.mark.parametrize(
    "text", ["stage,name,epoch,step,x\n0,u,zero,1,2\n", "a,b\n1,2\n", "stage,name,epoch,x\n0,u,0,y\n"]
)
def test_a_bad_metrics_file_is_named(make_run: MakeRun, text: str) -> None:
    folder = make_run()
    (folder / "metrics.csv").write_text(text)
    with pytest.raises(UserError, match=r"metrics.csv: .* has a row that cannot be read"):
        read_epochs(folder)


def test_a_gallery_is_optional_but_never_half(make_run: MakeRun) -> None:
    folder = make_run()
    gallery = read_gallery(folder)
    assert gallery is not None
    assert gallery.x.shape == (12, 1, 16, 16)
    attacked = gallery.attacked(4, "vap")
    assert attacked is not None
    assert attacked[0].dtype == np.float32
    assert gallery.attacked(4, "cw") is None
    path = folder / "gallery.npz"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=r"gallery.npz: .* cannot be read .*an .npz with x and y is read"):
        read_gallery(folder)
    np.savez(path, x=np.zeros(1))
    with pytest.raises(UserError, match=r"gallery.npz: "):
        read_gallery(folder)
    path.unlink()
    assert read_gallery(folder) is None
