"""The figures: written, of the right size, with something in them, and right in what they say."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from pytorch_lightning.loggers import WandbLogger

from amc_lightning import tracking
from amc_lightning.report import read_results, write_all, write_figures
from amc_lightning.report.curves import draw_curves
from amc_lightning.report.examples import choose_rows, draw_examples
from amc_lightning.report.heat_map import draw_error_rates
from amc_lightning.report.palette import look
from amc_lightning.report.reading import read_epochs, read_gallery
from amc_lightning.report.record import Gallery

MakeRun = Callable[..., Path]
ALL = ["examples.png", "error_rates.png", "training_curves.png"]
CASES: dict[str, dict[str, Any]] = {
    "cascade": {},
    "undefended": {"order": ()},
    "one attack, RGB": {"order": ("pgm",), "evaluated": ("pgm",), "shape": (3, 32, 32)},
    "unknown attack": {"order": ("pgm", "unseen"), "evaluated": ("unseen", "pgm", "fgsm"), "shape": (3, 24, 32)},
}


@pytest.mark.parametrize("case", CASES)
def test_all_figures_are_drawn(make_run: MakeRun, case: str) -> None:
    folder = make_run(**CASES[case])
    before = {key: value for key, value in mpl.rcParams.items() if key != "backend"}
    paths = write_figures(folder)
    assert [path.name for path in paths] == ALL
    assert sorted(path.name for path in (folder / "figures").iterdir()) == sorted(ALL)
    for path in paths:
        image = imread(path)
        height, width = image.shape[:2]
        assert 700 <= width <= 2000, path.name
        assert 450 <= height <= 2500, path.name
        assert image[..., :3].std() > 0.05, f"{path.name} is blank"
        edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])[:, :3]
        assert edge.min() == 1.0, f"{path.name} is cut off at its edge"
    assert {key: value for key, value in mpl.rcParams.items() if key != "backend"} == before


def _texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(mpl.text.Text) if text.get_text()]


def test_the_heat_map_shows_the_table(make_run: MakeRun) -> None:
    figure = draw_error_rates(read_results(make_run()))
    assert figure is not None
    texts = _texts(figure)
    assert texts.count("100.0") == 5  # M0 under eap, pgm (twice) and worst (twice)
    assert "43.6" in texts
    assert "35.6-51.8" in texts
    assert "eap\nl1 \u2264 10" in texts
    assert "error rate (%), lower is better" in texts
    (image,) = figure.axes[0].images
    assert image.get_clim() == (0, 100)
    assert image.get_array().shape == (5, 11)


def test_examples_are_labelled_with_class_verdict_and_size(make_run: MakeRun) -> None:
    folder = make_run()
    gallery = read_gallery(folder)
    assert gallery is not None
    y = int(gallery.y[3])
    arrays = dict(gallery.arrays)
    delta = np.zeros_like(gallery.x)
    delta[:, 0, 0, 0] = 0.3
    delta[:, 0, 0, 1] = 0.4
    for attack in ("fgsm", "vap", "eap", "pgm"):
        arrays[f"x_adv/0/{attack}"] = gallery.x + delta
        arrays[f"predicted/0/{attack}"] = np.where(np.arange(12) == 3, (y + 1) % 10, gallery.y)
    np.savez(folder / "gallery.npz", **arrays)
    figure = draw_examples(read_results(folder), Gallery(gallery.x, gallery.y, arrays))
    assert figure is not None
    texts = _texts(figure)
    assert f"{(y + 1) % 10} \u2717\n" in texts
    assert f"true: {y}" in texts
    assert "l2 0.50  linf 0.40" in texts
    assert "l1 0.7  l2 0.50  linf 0.40" in texts
    assert "M0 (undefended)" in texts
    assert "Stage 4 (pgm)" in texts
    heads = [ax.get_title() for ax in figure.subfigs[0].axes[:5]]
    assert heads == ["clean", "fgsm", "eap\n(no limit)", "pgm", "vap"], "the order of the paper's Figure 1"


def test_rows_are_right_when_clean_fooled_by_most_and_of_different_classes() -> None:
    y = np.array([0, 1, 1, 2, 3])
    fooled = {"a": [1, 1, 1, 1, 0], "b": [1, 1, 1, 0, 0]}
    arrays: dict[str, Any] = {"clean_predicted/0": np.array([9, 1, 1, 2, 3])}
    for attack, rows in fooled.items():
        arrays[f"x_adv/0/{attack}"] = np.zeros((5, 1, 2, 2))
        arrays[f"predicted/0/{attack}"] = np.where(rows, 8, y)
    gallery = Gallery(np.zeros((5, 1, 2, 2), np.float32), y, arrays)
    assert choose_rows(gallery, 0, ["a", "b"], 2) == [1, 3]
    assert choose_rows(gallery, 0, ["a", "b"], 3) == [1, 3, 4]
    assert choose_rows(gallery, 0, ["a", "b"], 9) == [0, 1, 2, 3, 4]


def test_curves_count_epochs_through_all_stages(make_run: MakeRun) -> None:
    folder = make_run(order=("pgm",), evaluated=("pgm",))
    figure = draw_curves(read_results(folder), read_epochs(folder))
    assert figure is not None
    clean, attacked, loss = figure.axes
    # M0 has 4 epochs, the stage 3; a line for each stage and split
    assert [list(line.get_xdata()) for line in loss.lines[:2]] == [[1, 2, 3, 4], [5, 6, 7]]
    assert [list(line.get_xdata()) for line in attacked.lines[:2]] == [[5, 6, 7], [5, 6, 7]]
    assert np.allclose(clean.lines[0].get_ydata()[0], 54.0)
    labels = [text.get_text() for text in attacked.get_legend().get_texts()]
    assert labels == ["pgm, validation", "pgm, train"]
    assert {"M0", "1 pgm"} <= set(_texts(figure))


def test_what_was_not_kept_is_not_drawn(make_run: MakeRun) -> None:
    folder = make_run()
    (folder / "gallery.npz").unlink()
    (folder / "metrics.csv").unlink()
    assert [path.name for path in write_figures(folder)] == ["error_rates.png"]
    empty = make_run(stages=[])
    (empty / "gallery.npz").unlink()
    (empty / "metrics.csv").unlink()
    assert write_figures(empty) == []


def test_every_attack_of_a_run_has_its_own_look() -> None:
    attacks = ["fgsm", "cw", "pgm", "square", "vap", "fab", "eap"]
    looks = [look(attack, attacks) for attack in attacks]
    assert len({entry.color for entry in looks}) == len(attacks)
    assert len({entry.marker for entry in looks}) == len(attacks)
    assert look("pgm", ["pgm"]) == look("pgm", attacks)


@pytest.mark.slow
def test_the_report_reaches_wandb(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run()
    write_all(folder)
    logger = tracking.open_stage_logger(
        {"name": "wandb", "project": "p", "mode": "offline"},
        run_folder=folder, group="g", run_id=None, stage_index=4, stage_name="pgm", hparams={},
    )  # fmt: skip
    assert isinstance(logger, WandbLogger)
    tracking.log_report(logger, folder)
    tracking.close(logger)
    media = [path.name for path in folder.glob("wandb/offline-run-*/files/media/**/*.*")]
    assert sum(name.endswith(".png") for name in media) == 3
    assert sum(name.startswith("error_rates") and name.endswith(".json") for name in media) == 1
