"""The writers of the paper's tables: numbers by hand, missing systems, several seeds, what must not be shown."""

import csv
import re

import numpy as np
import pytest
from PIL import Image

from amc_lightning.paper import ablations, black_box, table2, table3, table4_summary, table5, table6, tables
from amc_lightning.paper.cells import CLEAN
from amc_lightning.paper.comparison import pairs
from amc_lightning.paper.runs import Runs
from amc_lightning.paper.setting import setting_text
from amc_lightning.paper.tables import write_tables
from amc_lightning.paper.trained import models, undefended_models
from tests.paper.made import FOUR, N_ATTACK, N_TEST, Book, Wrong, assert_balanced, cells, rows_of, text_of
from tests.report.conftest import wilson
from tests.report.sweep_folder import CASCADE
from tests.report.sweep_folder import system as black_box_system

BARE = Wrong(clean=4, fgsm=80, vap=70, eap=100, budget=60, pgm=90, check=100)
AMC = Wrong(clean=6, fgsm=12, vap=10, eap=80, budget=18, pgm=20, check=30)
AT = {
    "fgsm": Wrong(clean=8, fgsm=5, vap=40, eap=95, budget=50, pgm=70, check=90),
    "eap": Wrong(clean=10, fgsm=60, vap=50, eap=70, budget=30, pgm=60, check=80),
    "pgm": Wrong(clean=12, fgsm=30, vap=30, eap=90, budget=40, pgm=25, check=28),
    "vap": Wrong(clean=14, fgsm=30, vap=15, eap=95, budget=50, pgm=60, check=85),
}


@pytest.fixture
def drawn(monkeypatch):
    """Pictures are not drawn, which takes long: the title and the number of rows of each panel, by file."""
    found = {}

    def write_panels(path, title, panels, footnotes):
        if panels:
            found[path.name] = [(panel.title, len(panel.rows)) for panel in panels]
        return [path] if panels else []

    monkeypatch.setattr(tables, "write_panels", write_panels)
    return found


@pytest.fixture
def book(tmp_path):
    return Book(tmp_path / "runs")


@pytest.fixture
def white_box(book):
    """Table 3's systems, without a run of the undefended model: it is M0 of the others."""
    for attack, wrong in AT.items():
        book.add(f"at_{attack}", wrong, undefended=BARE)
    book.add("amc_target_hardened", AMC, undefended=BARE)
    return book


# --- Table 2 ---------------------------------------------------------------------------------------------------------


def test_table_2_averages_the_four_models(white_box):
    papers, systems = table2.table2(white_box.all)
    text = text_of([papers])
    # 8, 10, 12 and 14 of 200 rows: 5.5 %
    assert cells(text, "Adv. Training")[0].startswith("5.5<br>")
    assert cells(text, "Adv. Training")[1] == "1.4"
    assert cells(text, "Undefended") == ["2.0<br>0.8-5.0", "0.9"]
    assert cells(text, "AMC, target-hardened") == ["3.0<br>1.4-6.4", "1.4"]
    assert "| Adv. Training [P] |" not in text
    assert "| Proxy |" not in text
    (row,) = rows_of([papers], row="Adv. Training")
    share = np.mean([np.arange(N_TEST) < wrong.clean for wrong in AT.values()], axis=0)
    assert float(row["high"]) == pytest.approx(5.5 + 196 * share.std(ddof=1) / N_TEST**0.5, abs=1e-3)
    own = text_of([systems])
    # epochs 40 + 4 x 20; minutes 0.2, 0.45, 0.7, 0.95, 1.2; passes 40 + 400 + 800 + 1200 + 1600
    assert cells(own, "AMC, target-hardened")[1:] == ["1,040", "40 + 20 + 20 + 20 + 20", "3.5", "4,040"]
    assert [row.name for row in systems.rows] == [
        "Undefended", "AT fgsm", "AT eap", "AT pgm", "AT vap", "AMC, target-hardened",
    ]  # fmt: skip


def test_table_2_says_which_of_the_four_is_missing(book):
    for attack in ("fgsm", "eap", "vap"):
        book.add(f"at_{attack}", AT[attack])
    text = text_of(table2.table2(book.all))
    assert "| Adv. Training |" not in text
    assert "Adv. Training is the mean over four models and is left out: there is no at_pgm." in text


def test_table_2_leaves_out_a_seed_that_lacks_one_of_the_four(white_box):
    white_box.add("at_fgsm", AT["fgsm"], seed=1)
    text = text_of(table2.table2(white_box.all))
    assert cells(text, "Adv. Training")[0].startswith("5.5<br>")
    assert "Adv. Training is left out of seed 1: not all four models are there." in text


def test_table_2_does_not_average_over_different_images(white_box):
    other = white_box.add("at_fgsm", AT["fgsm"], seed=1)
    for attack in ("eap", "pgm", "vap"):
        white_box.add(f"at_{attack}", AT[attack], seed=1)
    with np.load(other.folder / "examples.npz") as file:
        arrays = {key: file[key] for key in file.files}
    arrays["labels/test"] = (arrays["labels/test"] + 1) % 10
    np.savez(other.folder / "examples.npz", **arrays)
    text = text_of(table2.table2(white_box.all))
    assert "Adv. Training is left out of seed 1: the four were not measured on the same images." in text


# --- Table 3 ---------------------------------------------------------------------------------------------------------


def test_table_3_stands_beside_the_paper_s(white_box):
    papers, ours, _ = table3.table3(white_box.all)
    text = text_of([papers])
    assert [row.name for row in papers.rows] == [
        "Undefended", "AT fgsm", "AT eap", "AT pgm", "AT vap", "AMC, target-hardened",
    ]  # fmt: skip
    assert papers.head == ("system", "clean", "F (fgsm)", "E (eap)", "P (pgm)", "V (vap)")
    shown = [(cell.split("<br>")[0], cell.split("<br>")[-1]) for cell in cells(text, "AMC, target-hardened")[1:]]
    assert shown == [("12.0", "paper 5.1"), ("80.0", "paper 8.4"), ("**20.0**", "paper 3.1"), ("**10.0**", "paper 3.2")]
    assert cells(text, "AT eap")[1].endswith("paper 74.2")
    assert ours.head == (
        "system", "eap l1<=10", "pgm check", "mean paper", "mean check", "worst paper", "worst check", "minutes",
        "passes per image",
    )  # fmt: skip
    # worst: 20 of 100 at strength paper (pgm), 30 at check; the mean of 12, 80, 20 and 10, and of 12, 80, 30 and 10
    found = [cell.split("<br>")[0] for cell in cells(text_of([ours]), "AMC, target-hardened")]
    # AT pgm is better under the check of pgm alone (28), and is wrong on 40 in its worst case
    assert found == ["**18.0**", "30.0", "**30.5**", "**33.0**", "**20.0**", "**30.0**", "3.5", "4,040"]
    assert not any("paper" in cell for cell in cells(text_of([ours]), "AMC, target-hardened"))


def test_the_judge_shows_how_many_images_it_saw(white_box):
    white_box.add("amc_target_hardened", Wrong(judge=8, predicted=True), seed=7, dataset="svhn")
    _, ours = table3.table3(Runs((white_box.runs[-1],)))
    row = dict(zip(ours.head, ["", *cells(text_of([ours]), "AMC, target-hardened")], strict=True))
    assert row["AutoAttack judge"] == row["worst judge"] == "40.0<br>21.9-61.3<br>n 20"
    assert row["fgsm predicted"].startswith("41.0<br>")
    text = text_of([ours])
    assert "Attacks, mean, worst: attack split, n = 100." in text
    assert "they may repair it" in text


def test_amc_is_tested_against_the_best_model_of_each_column(white_box):
    paired = table3.table3(white_box.all)[2]
    text = text_of([paired])
    # AT fgsm is wrong on rows 0-4 of 100 under FGSM, AMC on 0-11: 7 discordant rows, p = 2 / 2 ** 7
    assert cells(text, "F (fgsm) paper") == [
        "0", "AT fgsm", "5.0", "12.0", "+7.0", "100", "7", "0", "0.016", "AT fgsm +7.0",
    ]  # fmt: skip
    assert cells(text, "V (vap) paper")[1:5] == ["AT vap", "15.0", "10.0", "-5.0"]
    # AT pgm is wrong on 28 rows at strength check, AMC on 30: p = 2 / 2 ** 2
    assert cells(text, "pgm check")[1:] == ["AT pgm", "28.0", "30.0", "+2.0", "100", "2", "0", "0.5", "AT pgm +2.0"]
    assert cells(text, "clean")[1:5] == ["AT fgsm", "4.0", "3.0", "-1.0"]
    (row,) = rows_of([paired], row="F (fgsm) paper", quantity="p")
    assert (row["system"], row["value"]) == ("amc_target_hardened - at_fgsm", "0.015625")
    (best,) = rows_of([paired], row="F (fgsm) paper", quantity="error", system="at_fgsm")
    assert best["percent"] == "5.0000"
    assert "Gradient passes per training image: AMC 4,040, the AT 440." in text


def halves(book, system, even, odd, **kwargs):
    """Add a run that is wrong under FGSM on so many of the 50 rows of even, and of odd index."""
    run = book.add(system, Wrong(fgsm=even + odd), **kwargs)
    rows = np.zeros(N_ATTACK, dtype=bool)
    rows[0 : 2 * even : 2] = rows[1 : 2 * odd : 2] = True
    with np.load(run.folder / "examples.npz") as file:
        arrays = {key: file[key] for key in file.files}
    arrays[f"{run.last.index}/paper/fgsm/wrong"] = rows
    np.savez(run.folder / "examples.npz", **arrays)
    return run


def fgsm_row(book):
    (paired,) = [grid for grid in table3.table3(book.all) if grid.name == "table3_paired"]
    return cells(text_of([paired]), "F (fgsm) paper")


def test_the_best_model_is_chosen_on_the_other_half(book):
    """AT fgsm is the better one on even rows, AT eap on odd ones, so that each half is compared with the worse one."""
    halves(book, "at_fgsm", 0, 40)
    halves(book, "at_eap", 41, 0)
    book.add("amc_target_hardened", AMC)
    # even rows: chosen on odd ones, AT eap, wrong on 41; odd rows: AT fgsm, wrong on 40; AMC on rows 0 to 11
    found = fgsm_row(book)
    assert found == ["0", "AT eap / AT fgsm", "81.0", "12.0", "-69.0", "100", "0", "69", "<0.001", "AT fgsm -28.0"]


def test_the_best_model_is_chosen_over_the_seeds_of_amc_only(book):
    """AT eap has 10 and 90 of 100, AT fgsm 20: over all seeds AT fgsm is the better one, with AMC's seed AT eap."""
    book.add("at_fgsm", Wrong(fgsm=20))
    for seed, fgsm in ((0, 10), (1, 90)):
        book.add("at_eap", Wrong(fgsm=fgsm), seed=seed)
    book.add("amc_target_hardened", AMC)
    assert fgsm_row(book)[:4] == ["0", "AT eap", "10.0", "12.0"]


def test_the_median_distance_of_an_unbounded_attack_is_shown(book):
    for seed, median in ((0, 11.0), (1, 12.5)):
        run = book.add("at_fgsm", AT["fgsm"], seed=seed)
        object.__setattr__(run.last.evaluations["white_box"].paper["eap"], "quantiles", {"l1": {"0.5": median}})
    book.add("amc_target_hardened", AMC)
    ours = next(grid for grid in table3.table3(book.all) if grid.name == "table3_ours")
    assert ours.head[1] == "eap l1 median"
    assert [cells(text_of([ours]), name)[0] for name in ("AT fgsm", "AMC, target-hardened")] == ["11.8", "-"]
    (number,) = rows_of([ours], quantity="l1_median")
    assert (number["value"], number["seeds"], number["attack"]) == ("11.7500", "0 1", "eap")
    assert "eap l1 median: of the images that were right and that the attack" in text_of([ours])


def test_rows_that_were_not_attacked_are_named(book):
    run = book.add("at_fgsm", AT["fgsm"])
    found = run.last.evaluations["white_box"].paper["fgsm"]
    note = "that they are right shows nothing: at_fgsm under F (fgsm) 7 of 100 (seed 0)."
    assert note not in text_of(table3.table3(book.all))
    object.__setattr__(found, "zero_gradient", 7)
    assert note in text_of(table3.table3(book.all))


def test_each_seed_is_tested_against_its_own(white_box):
    white_box.add("amc_target_hardened", AMC, seed=1)
    (paired,) = [grid for grid in table3.table3(white_box.all) if grid.name == "table3_paired"]
    assert {row.cells[0].main for row in paired.rows} == {"0"}
    white_box.add("at_fgsm", AT["fgsm"], seed=1)
    (paired,) = [grid for grid in table3.table3(white_box.all) if grid.name == "table3_paired"]
    assert [row.cells[0].main for row in paired.rows if row.name == "F (fgsm) paper"] == ["0", "1"]


def test_models_on_different_images_are_not_tested(white_box):
    systems = white_box.all.of("mnist")
    a, b = (models(systems, system) for system in ("amc_target_hardened", "at_fgsm"))
    assert len(list(pairs(a, b, CLEAN))) == 1
    changed = white_box.add(
        "at_fgsm", AT["fgsm"], also=[{"dataset": {**_dataset(white_box), "fingerprint": "sha256:other"}}]
    )
    assert list(pairs(a, [type(a[0])(changed, changed.last, "white_box")], CLEAN)) == []


def _dataset(book):
    dataset = book.runs[0].results.dataset
    counts = {"counts": dict(dataset.counts), "counts_read": dict(dataset.counts_read)}
    return {**vars(dataset), **counts, "class_names": list(dataset.class_names), "shape": list(dataset.shape)}


def test_without_amc_or_without_at_nothing_is_tested(book):
    book.add("amc_target_hardened", AMC, undefended=BARE)
    assert [grid.name for grid in table3.table3(book.all)] == ["table3", "table3_ours"]
    assert [row.name for row in table3.table3(book.all)[0].rows] == ["Undefended", "AMC, target-hardened"]


def test_the_undefended_model_alone_is_no_table_3(book):
    book.add("undefended", BARE)
    assert table3.table3(book.all) == []
    assert table2.table2(book.all) != []


def test_the_run_of_the_undefended_model_comes_first_and_given_weights_are_none(book):
    book.add("at_fgsm", AT["fgsm"], undefended=Wrong(clean=20))
    book.add("undefended", BARE)
    book.add("at_eap", AT["eap"], undefended=Wrong(clean=30), seed=1)
    found = undefended_models(book.all.of("mnist"))
    assert [(model.seed, model.evaluation.clean.wrong) for model in found] == [(0, 4), (1, 30)]
    given = book.runs[2].results.stages[0]
    object.__setattr__(given, "steps", 0)
    assert [model.seed for model in undefended_models(book.all.of("mnist"))] == [0]


def test_a_cap_makes_the_numbers_incomparable(book):
    book.add("at_fgsm", AT["fgsm"], limit=2000)
    book.add("at_fgsm", AT["fgsm"], limit=2000, dataset="digits")
    mnist, digits = (
        text_of([grid for grid in table3.table3(book.all) if grid.dataset == name]) for name in ("mnist", "digits")
    )
    note = "Trained on at most 2,000 images, the paper on all: the numbers are not comparable."
    assert note in mnist
    assert note not in digits  # of which the paper has none
    assert "| paper" not in digits


# --- Table 4 ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def black(book):
    """Table 4's systems, without per-example results: the table needs none."""
    rows = [("undefended", (), False), ("at_fgsm_proxy", ("fgsm",), True), ("amc_local_proxy", CASCADE, True)]
    for system, order, by_proxy in rows:
        defence = "amc" if order == CASCADE else "adversarial_training" if order else "undefended"
        book.write(system, black_box_system(order, defence, by_proxy=by_proxy), {})
    return book


def test_table_4_is_the_sweep_s(black, tmp_path, drawn):
    found = black_box.table4(black.all)
    assert [system.name for system in found[0].systems] == ["undefended", "AT[P] fgsm", "AMC, local proxy"]
    assert [table.threat_model for table in black_box.pictured(found)] == ["black_box_label"]
    paths = [path.relative_to(tmp_path).as_posix() for path in write_tables(black.all, tmp_path)]
    assert [path for path in paths if "table4" in path] == [
        *(f"tables/{name}.{suffix}" for name in ("table4", "table4_summary") for suffix in ("md", "csv", "tex")),
        "figures/table4.png",
    ]  # fmt: skip
    assert not any("table3" in path for path in paths)
    assert drawn == {"table4.png": [("mnist: black_box_label", 3)]}
    table = found[0]
    columns = black_box.pictured_columns(table)
    assert [column.title for column in columns] == [
        "F (fgsm)", "E (eap)", "P (pgm)", "V (vap)", "eap l1<=10", "pgm check", "worst check",
    ]  # fmt: skip
    cell = black_box.table4_cell(table, "AMC", table.systems[-1:], columns[2])
    assert (cell.only.n, cell.paper) == (140, 20.8)
    assert cell.only.wrong == 33 // 2


def test_the_picture_of_table_4_has_one_row_for_all_seeds(black):
    raw = black_box_system(CASCADE, "amc", by_proxy=True)
    for stage in raw["stages"]:
        for evaluation in stage["evaluations"].values():
            evaluation["paper"]["pgm"] = wilson(28, 140)
    black.write("amc_local_proxy", {**raw, "seed": 1}, {})
    (table,) = black_box.pictured(black_box.table4(black.all))
    assert [system.name for system in table.systems][-2:] == ["AMC, local proxy, seed 0", "AMC, local proxy, seed 1"]
    rows = black_box.pictured_rows(table)
    assert [*rows] == ["undefended", "AT[P] fgsm", "AMC, local proxy"]
    cell = black_box.table4_cell(table, "AMC", rows["AMC, local proxy"], black_box.pictured_columns(table)[2])
    # 16 and 28 of 140
    assert (cell.main, cell.small, cell.paper) == ("15.7", ("+- 6.1 (2 seeds)",), 20.8)


def local_proxy(book, system, order, fgsm, seed):
    """Add a run under the black boxes that is wrong under FGSM on the first so many rows of 140."""
    raw = black_box_system(order, "amc" if order == CASCADE else "adversarial_training", by_proxy=True)
    for stage in raw["stages"]:
        for evaluation in stage["evaluations"].values():
            evaluation["paper"]["fgsm"] = wilson(fgsm, 140)
    arrays = {f"{len(order)}/paper/fgsm/wrong": np.arange(140) < fgsm, "labels/attack": np.arange(140) % 10}
    book.write(system, {**raw, "seed": seed}, arrays)


def test_table_4_over_seeds_has_a_row_a_system_and_the_paired_tests(book):
    for seed, fgsm in ((0, 14), (1, 28)):
        local_proxy(book, "amc_local_proxy", CASCADE, fgsm, seed)
        local_proxy(book, "at_fgsm_proxy", ("fgsm",), 28, seed)
        local_proxy(book, "at_pgm_proxy", ("pgm",), 35, seed)
    grids = table4_summary.table4_summary(book.all, black_box.table4(book.all))
    first = [grid.name for grid in grids if grid.title.startswith("mnist: black_box_label")]
    assert first == ["table4_summary", "table4_paired"]
    errors, paired = grids[:2]
    assert errors.head[:3] == ("system", "clean", "F (fgsm)")
    assert [row.name for row in errors.rows] == ["undefended", "AT[P] fgsm", "AT[P] pgm", "AMC, local proxy"]
    # 10 and 20 %
    assert cells(text_of([errors]), "AMC, local proxy")[1] == "15.0<br>+- 7.1 (2 seeds)<br>paper 18.2"
    assert "n = 140" in text_of([errors])
    (zero, one) = [[cell.main for cell in row.cells] for row in paired.rows]
    assert zero == ["0", "AT[P] fgsm", "20.0", "10.0", "-10.0", "140", "0", "14", "<0.001", "AT[P] fgsm -10.0"]
    assert one[:5] == ["1", "AT[P] fgsm", "20.0", "20.0", "0.0"]
    (p,) = rows_of([paired], quantity="p", seeds="0")
    assert (p["threat_model"], p["system"]) == ("black_box_label", "amc_local_proxy - at_fgsm_proxy")


def test_what_rows_were_made_with_is_said_by_kind(book):
    book.add("undefended", BARE)
    for attack in FOUR:
        book.add(f"at_{attack}", AT[attack])
    local_proxy(book, "amc_local_proxy", CASCADE, 14, 0)
    text = setting_text(book.all.of("mnist"))
    assert [line.split(" | ")[0].strip("| ") for line in text.splitlines()[2:]] == [
        "Undefended", "AT", "AMC, local proxy",
    ]  # fmt: skip
    assert cells(text, "Undefended") == ["1,040", "40", "-", "-", "-", "-", "paper"]
    assert cells(text, "AT")[:3] == ["1,040", "40", "20"]
    row = cells(text, "AMC, local proxy")
    stages = book.runs[-1].results.stages
    own, attacker = stages[1].proxy, next(iter(stages[-1].evaluations["black_box_label"].proxies.values()))
    for cell, proxy in ((row[4], own), (row[5], attacker)):
        assert cell.startswith(f"{proxy.architecture}: {proxy.images:,} images, {proxy.queries:,} queries, ")


def test_table_4_without_rows_of_examples_has_no_paired_tests(black):
    grids = table4_summary.table4_summary(black.all, black_box.table4(black.all))
    assert {grid.name for grid in grids} == {"table4_summary"}


def test_table_2_has_the_proxy_of_the_undefended_model(black):
    (row,) = rows_of(table2.table2(black.all), row="Proxy", quantity="error")
    # 30 of 350
    assert (row["percent"], row["threat_model"], row["paper_percent"]) == ("8.5714", "black_box_label", "0.2")
    assert "Proxy: P'' (proxy_cnn)" in text_of(table2.table2(black.all))


def test_the_undefended_model_alone_is_no_table_4(book):
    book.write("undefended", black_box_system((), "undefended", by_proxy=False), {})
    assert black_box.table4(book.all) == []


# --- Table 5 ---------------------------------------------------------------------------------------------------------

POST_HOC = Wrong(clean=7, eap=15, budget=9, pgm=11, check=13, stronger=(25, 17, 19))
ADAPTIVE = Wrong(clean=7, eap=85, budget=21, pgm=23, check=33, stronger=(95, 27, 99))
BOTH = {"bit_depth_1/post_hoc": POST_HOC, "bit_depth_1/adaptive": ADAPTIVE}


def with_stronger(**changes):
    return Wrong(**{**vars(AMC), "stronger": (88, 44, 98), **changes})


def test_table_5_shows_both_ways(book):
    book.add("amc_target_hardened", with_stronger(), squeezed=BOTH)
    (grid,) = table5.table5(book.all)
    text = text_of([grid])
    assert grid.head == (
        "system", "clean", "eap normal", "pgm normal", "eap stronger", "pgm stronger", "eap l1<=10 normal",
        "eap l1<=10 stronger", "pgm check", "worst check",
    )  # fmt: skip
    assert "mnist: AMC and bit_depth_1" in text
    first, last = ([cell.split("<br>")[place] for cell in cells(text, "AMC")] for place in (0, -1))
    # without squeezing AMC is better than with it against who attacks either way: 85, 23, 95, 99, 21, 33 and 33 of 100
    assert first == [
        "**3.0**", "**80.0**", "**20.0**", "**88.0**", "**98.0**", "**18.0**", "44.0", "**30.0**", "**30.0**",
    ]  # fmt: skip
    assert last[1:5] == ["paper 8.4", "paper 3.1", "paper 89.7", "paper 98.8"]
    assert [row.name for row in grid.rows] == [
        "AMC", "AMC and FS (either way)", "AMC and FS (adaptive)", "AMC and FS (the paper's way)",
    ]  # fmt: skip
    post_hoc, adaptive = (cells(text, f"AMC and FS ({way})") for way in ("the paper's way", "adaptive"))
    assert [cell.split("<br>")[-1] for cell in post_hoc[1:5]] == ["paper 3.1", "paper 2.9", "paper 44.6", "paper 6.73"]
    assert [cell.split("<br>")[0] for cell in post_hoc[:5]] == ["3.5", "15.0", "11.0", "25.0", "19.0"]
    assert [cell.split("<br>")[0] for cell in adaptive[:5]] == ["3.5", "85.0", "23.0", "95.0", "99.0"]
    assert not any("paper" in cell for cell in adaptive)
    either = [cell.replace("**", "") for cell in cells(text, "AMC and FS (either way)")]
    assert either == adaptive  # which is wrong on all rows that post hoc is wrong on
    assert "Feature squeezing: bit_depth_1 (bits 1). FS (the paper's way):" in text
    assert "The worst case of FS (adaptive) includes the examples squeezed afterwards already" in text
    assert "did not do its best" not in text
    assert "The stronger PGM has eps 0.6." in text


def test_either_way_is_wrong_under_at_least_one(book):
    """Under pgm adaptive is wrong on rows 0 to 7, post hoc on 50 to 60 of 100."""
    ways = {
        "bit_depth_1/adaptive": Wrong(**{**vars(ADAPTIVE), "pgm": 8}),
        "bit_depth_1/post_hoc": Wrong(**{**vars(POST_HOC), "start": 50}),
    }
    book.add("amc_target_hardened", with_stronger(), squeezed=ways)
    grids = table5.table5(book.all)
    found = {way: cells(text_of(grids), f"AMC and FS ({way})")[2] for way in ("either way", "adaptive")}
    assert found == {"either way": "**19.0**<br>12.5-27.8", "adaptive": "8.0<br>4.1-15.0"}
    assert "**bit_depth_1: under pgm normal adaptive is below post hoc: the adaptive attack did not" in text_of(grids)
    numbers = rows_of(grids, row="AMC and FS (either way)", attack="pgm", strength="paper")
    assert [(row["threat_model"], row["percent"]) for row in numbers] == [("squeezed/bit_depth_1/either", "19.0000")]


def test_half_of_the_range_is_where_robustness_ends(book):
    for eps, said in ((0.5, True), (0.49, False)):
        run = book.add("amc_target_hardened", with_stronger(), eps=eps)
        assert ("into the same grey one" in text_of(table5.table5(Runs((run,))))) == said


@pytest.mark.parametrize("way", ["post_hoc", "adaptive"])
def test_a_squeezing_with_one_way_only_is_left_out(book, way):
    name = f"bit_depth_1/{way}"
    book.add("amc_target_hardened", with_stronger(), squeezed={name: BOTH[name]})
    grids = table5.table5(book.all)
    text = text_of(grids)
    assert "| AMC |" in text
    assert "| AMC and" not in text
    word = "adaptive" if way == "adaptive" else "post-hoc"
    assert f"bit_depth_1 of amc_target_hardened, seed 0, is left out: there is only the {word} number" in text
    assert {row["threat_model"] for row in rows_of(grids)} == {"white_box"}


def test_a_number_without_its_other_way_is_not_shown(book):
    adaptive = Wrong(**{**vars(ADAPTIVE), "stronger": None})
    book.add("amc_target_hardened", with_stronger(), squeezed={**BOTH, "bit_depth_1/adaptive": adaptive})
    grids = table5.table5(book.all)
    for way in ("either way", "the paper's way"):
        row = cells(text_of(grids), f"AMC and FS ({way})")
        assert (row[3], row[4]) == ("-", "-")
    assert rows_of(grids, threat_model="squeezed/bit_depth_1/post_hoc", strength="stronger") == []


def test_every_squeezing_has_a_block(book):
    other = {name.replace("bit_depth_1", "median_2"): wrong for name, wrong in BOTH.items()}
    book.add("amc_target_hardened", with_stronger(), squeezed={**BOTH, **other})
    assert [grid.title for grid in table5.table5(book.all)] == [
        "mnist: AMC and bit_depth_1",
        "mnist: AMC and median_2",
    ]


def test_without_squeezing_or_stronger_attacks_there_is_no_table_5(white_box):
    assert table5.table5(white_box.all) == []


# --- Table 6 ---------------------------------------------------------------------------------------------------------


def test_table_6_of_the_unseen_attack(white_box):
    white_box.add("amc_without_fgsm", Wrong(clean=9, fgsm=22), squeezed=BOTH)
    white_box.add("amc_without_pgm", Wrong(pgm=44, check=55))
    papers, ours = table6.table6(white_box.all)
    text, name = text_of([papers]), "AMC (with eap, pgm, vap)"
    assert [cell.split("<br>")[0] for cell in cells(text, name)] == ["4.5", "22.0"]
    assert cells(text, name)[1].endswith("paper 15.4")
    assert cells(text, "Undefended")[1].endswith("paper 85.4")
    assert cells(text, f"{name} and FS (the paper's way), bit_depth_1")[1].endswith("paper 14.8")
    assert "paper" not in cells(text, f"{name} and FS (adaptive), bit_depth_1")[1]
    assert [row.name.removeprefix(name) for row in papers.rows[2:]] == [
        " and FS (either way), bit_depth_1",
        " and FS (adaptive), bit_depth_1",
        " and FS (the paper's way), bit_depth_1",
    ]
    own = text_of([ours])
    assert ours.head == ("system", "F (fgsm)", "P (pgm)", "pgm check")
    found = {row.name: [cell.split("<br>")[0] for cell in cells(own, row.name)] for row in ours.rows}
    assert found["AMC without the column's attack"] == ["22.0", "44.0", "55.0"]
    assert found["Undefended"] == ["80.0", "90.0", "100.0"]
    assert found["AMC, target-hardened"] == ["12.0", "20.0", "30.0"]
    assert found["AT pgm"] == ["30.0", "25.0", "28.0"]
    assert "Not shown, as there is no run: amc_without_eap, amc_without_vap." in own
    systems = [row["system"] for row in rows_of([ours], row="AMC without the column's attack")]
    assert systems == ["amc_without_fgsm", "amc_without_pgm", "amc_without_pgm"]


def test_table_6_leaves_out_a_one_sided_squeezing(book):
    book.add("amc_without_fgsm", Wrong(), squeezed={"bit_depth_1/post_hoc": POST_HOC})
    text = text_of(table6.table6(book.all))
    assert "| AMC (with eap, pgm, vap) and" not in text
    assert "is left out: there is only the post-hoc number" in text


def test_without_a_cascade_that_left_one_out_there_is_no_table_6(white_box):
    assert table6.table6(white_box.all) == []


# --- ablations -------------------------------------------------------------------------------------------------------


def test_variations_stand_beside_amc(book):
    book.add("amc_reverse", Wrong(**{**vars(AMC), "check": 40}))
    book.add("amc_no_transfer", Wrong(**{**vars(AMC), "fgsm": 14, "check": 30, "start": 3}))
    book.add("amc_target_hardened", AMC)
    errors, paired = ablations.ablations(book.all)
    assert [row.name for row in errors.rows] == ["AMC, target-hardened", "AMC, no transfer", "AMC, reverse order"]
    text = text_of([paired])
    row = dict(zip(paired.head, ["", *cells(text, "AMC, reverse order")], strict=True))
    assert (row["clean"], row["F (fgsm)"], row["pgm check"], row["worst check"]) == ("0.0", "0.0", "+10.0", "+10.0")
    # rows 0-39 against 0-29: ten discordant rows, all on one side, p = 2 / 2 ** 10
    assert (row["worst check: only this wrong"], row["only AMC wrong"], row["p"]) == ("10", "0", "0.002")
    row = dict(zip(paired.head, ["", *cells(text, "AMC, no transfer")], strict=True))
    # rows 3-32 against 0-29: three on each side
    assert (row["F (fgsm)"], row["worst check"]) == ("+2.0", "0.0")
    assert (row["worst check: only this wrong"], row["only AMC wrong"], row["p"]) == ("3", "3", "1")
    (number,) = rows_of([paired], system="amc_reverse - amc_target_hardened", quantity="p")
    assert float(number["value"]) == pytest.approx(2 / 2**10, rel=1e-5)


def test_variations_without_amc_have_no_difference(book):
    book.add("amc_reverse", AMC)
    (errors,) = ablations.ablations(book.all)
    assert "Nothing to compare with: there is no amc_target_hardened." in text_of([errors])


def test_without_a_variation_there_is_no_table_of_them(white_box):
    assert ablations.ablations(white_box.all) == []


# --- all of it -------------------------------------------------------------------------------------------------------


@pytest.fixture
def whole(white_box):
    white_box.add("amc_target_hardened", with_stronger(judge=9, predicted=True), squeezed=BOTH, seed=1, undefended=BARE)
    white_box.add("amc_without_fgsm", Wrong(), squeezed=BOTH)
    white_box.add("amc_reverse", Wrong())
    white_box.add("at_fgsm", AT["fgsm"], dataset="svhn", undefended=BARE)
    rows = [("undefended", ()), ("at_fgsm_proxy", ("fgsm",)), ("amc_local_proxy", CASCADE)]
    for system, order in rows:
        defence = "amc" if order == CASCADE else "adversarial_training" if order else "undefended"
        white_box.write(system, black_box_system(order, defence, by_proxy=bool(order)), {})
    return white_box.all


def test_all_files_are_written_in_order_and_twice_the_same(whole, tmp_path, request):
    one = write_tables(whole, tmp_path / "one")
    request.getfixturevalue("drawn")
    other = write_tables(whole, tmp_path / "other")  # pictures are compared in test_report
    assert [path.relative_to(tmp_path / "one").as_posix() for path in one] == [
        *(f"tables/table2.{suffix}" for suffix in ("md", "csv", "tex")),
        *(f"tables/table3.{suffix}" for suffix in ("md", "csv", "tex")),
        "figures/table3.png",
        *(f"tables/{name}.{suffix}" for name in ("table4", "table4_summary") for suffix in ("md", "csv", "tex")),
        "figures/table4.png",
        *(f"tables/{name}.{suffix}" for name in ("table5", "table6", "ablations") for suffix in ("md", "csv", "tex")),
    ]
    for a, b in zip(one, other, strict=True):
        assert a.suffix == ".png" or a.read_bytes() == b.read_bytes(), a
        if a.suffix == ".tex":
            assert_balanced(a.read_text())
        elif a.suffix == ".csv":
            found = list(csv.reader(a.read_text().splitlines()))
            assert len(found) > 2
            assert {len(row) for row in found} == {len(found[0])}
        elif a.suffix == ".md":
            blocks = re.findall(r"(?:^\|.*\n)+", a.read_text(), re.MULTILINE)
            assert blocks
            assert all(len({line.count(" | ") for line in block.splitlines()}) == 1 for block in blocks), a
        else:
            with Image.open(a) as picture:
                assert picture.width > 600


def test_the_picture_has_a_panel_for_each_dataset(white_box, tmp_path, drawn):
    white_box.add("at_fgsm", AT["fgsm"], dataset="svhn", undefended=BARE)
    write_tables(white_box.all, tmp_path)
    assert drawn == {"table3.png": [("mnist", 6), ("svhn", 2)]}


def test_the_counts_of_the_runs_are_what_the_tests_say():
    flags = AMC.flags()
    assert {attack: int(flags[f"paper/{attack}/wrong"].sum()) for attack in FOUR} == {
        "fgsm": 12, "vap": 10, "eap": 80, "pgm": 20,
    }  # fmt: skip
    assert len(flags["paper/worst/wrong"]) == N_ATTACK
