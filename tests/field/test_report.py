"""The report as a whole: tables, bold numbers, published ones, the picture, and what is not there."""

import csv

import pytest
from PIL import Image

from amc_lightning.errors import UserError
from amc_lightning.field.published import read_published
from amc_lightning.field.report import write_field_report
from tests.field.made import Field, first
from tests.paper.made import assert_balanced, cells

RESAMPLES = 200


@pytest.fixture
def book(tmp_path):
    return Field(tmp_path / "runs")


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures are not drawn, which takes long."""
    monkeypatch.setattr("amc_lightning.field.report.write_plot", lambda rows, folder: None)


def written(book, tmp_path, **kwargs):
    folder = tmp_path / "report"
    page = write_field_report(book.all, folder, resamples=RESAMPLES, **kwargs)
    return page.read_text(), *((folder / "tables" / f"baselines.{end}").read_text() for end in ("md", "csv", "tex"))


def numbers(text, **given):
    return [row for row in csv.DictReader(text.splitlines()) if all(row[key] == value for key, value in given.items())]


def test_tables_and_sentences(book, tmp_path):
    book.norms("undefended", 100, 100, 100, undefended=True)
    book.norms("norms_avg", 20, 55, passes=380.0)
    book.norms("norms_max", 40, 30, clean=4, passes=900.0, limit=2000)
    book.norms("norms_amc", 30, 10, passes=400.0)
    book.norms("attacks_avg", 70, order=("fgsm", "pgm"))
    page, text, numerals, latex = written(book, tmp_path)
    assert cells(text, "norms: AVG")[:4] == [
        "2.5<br>1.1-5.7",
        "55.0<br>45.2-64.4",
        "25.0<br>17.5-34.3",
        "55.0<br>45.2-64.4",
    ]
    assert cells(text, "norms: AVG")[4:] == ["380", "40", "6.0", "1.0"]
    assert cells(text, "norms: AMC")[1] == "**30.0**<br>21.9-39.6"
    assert cells(text, "norms: MAX")[0] == "**2.0**<br>0.8-5.0"
    assert cells(text, "Undefended")[1].startswith("100.0<br>")
    assert "norms, 4 attacks" not in text
    (row,) = numbers(numerals, table="baselines", row="norms: AMC", attack="union")
    assert (row["percent"], row["n"], row["strength"], row["seeds"]) == ("30.0000", "100", "check", "0")
    (row,) = numbers(numerals, table="baselines", system="norms_max", quantity="passes_after_m0")
    assert row["value"] == "900.0000"
    (row,) = numbers(
        numerals, table="baselines_paired", system="norms_amc - norms_avg", quantity="difference", attack="union"
    )
    assert row["value"] == "-25.0000"
    assert float(row["low"]) < -25 < float(row["high"]) < 0
    (row,) = numbers(
        numerals, table="baselines_paired", system="norms_amc - norms_max", quantity="passes_ratio", attack="union"
    )
    assert row["value"] == "2.2500"
    (row,) = numbers(
        numerals, table="baselines_published_0", system="norms_max", attack="union", quantity="published_error"
    )
    assert float(row["value"] if row["value"] else row["percent"]) == pytest.approx(57.9)
    assert_balanced(latex)
    assert r"\textbf{30.0}" in latex
    assert "*" not in latex.replace(r"\textbf", "")
    assert "A cascade with replay buys a lower union error than the one baseline" in page
    assert "left out of this answer: MAX (2.25 times its passes)" in page
    assert "capped by dataset.limit = 2,000" in page
    assert "**attacks** (hardened against four attacks): no cascade was run" in page
    with Image.open(tmp_path / "report" / "figures" / "baselines.png") as picture:
        assert 880 <= picture.width <= 900
    again = tmp_path / "again"
    write_field_report(book.all, again, resamples=RESAMPLES)
    for path in (tmp_path / "report").rglob("*.*"):
        assert (again / path.relative_to(tmp_path / "report")).read_bytes() == path.read_bytes()


@pytest.mark.usefixtures("undrawn")
def test_a_best_number_is_refused_where_a_check_fails(book, tmp_path):
    book.norms("norms_avg", 55)
    book.norms("norms_amc", 30, clean=4)

    def reasons(run):
        return {"E8": "58 % at eps 1"} if run.system == "norms_amc" else {}

    page, text, _, latex = written(book, tmp_path, reasons=reasons)
    assert cells(text, "norms: AMC")[1] == "30.0<br>21.9-39.6"
    assert "**55.0**" not in text  # the second best does not take its place
    assert "Not in bold: norms: AMC (clean, union check, mean check, worst check) E8: 58 % at eps 1." in text
    assert "**30.0**" not in page
    assert r"\textbf" not in latex


@pytest.mark.usefixtures("undrawn")
def test_a_row_that_guesses_is_never_bold(book, tmp_path):
    book.norms("norms_avg", 55)
    book.norms("norms_max", 20, clean=180)
    book.norms("norms_amc", 30)
    _, text, _, _ = written(book, tmp_path)
    assert cells(text, "norms: MAX")[1].startswith("20.0<br>")
    assert cells(text, "norms: AMC")[1].startswith("**30.0**<br>")
    assert "Not in bold, as no better than guessing on clean images: norms: MAX." in text


@pytest.mark.usefixtures("undrawn")
def test_equal_best_numbers_are_both_bold(book, tmp_path):
    book.norms("norms_avg", 30, clean=9)
    book.norms("norms_max", 31)
    book.norms("norms_amc", 30)
    _, text, _, _ = written(book, tmp_path)
    assert [cells(text, row)[1][:8] for row in ("norms: AVG", "norms: AMC")] == ["**30.0**"] * 2


@pytest.mark.usefixtures("undrawn")
def test_what_was_not_measured_is_a_dash(book, tmp_path):
    book.enter("norms_avg", {"pgd_linf": first(5), "pgd_l2": first(6)})
    book.norms("norms_amc", 30)
    page, text, numerals, _ = written(book, tmp_path)
    assert cells(text, "norms: AVG")[1] == "-"
    assert "norms: AVG: no union check, for want of pgd_l1." in text
    table = text[text.index("every attack, strength check") :]
    assert cells(table, "norms: AVG")[2] == "-"
    assert cells(table, "norms: AMC")[2].startswith("0.0<br>")
    assert numbers(numerals, table="baselines", row="norms: AVG", attack="union") == []
    assert "against AVG: not measured, for want of AVG (pgd_l1)." in page


def test_one_row_only(book, tmp_path):
    book.norms("norms_amc", 30)
    page, text, _, _ = written(book, tmp_path)
    assert "no baseline of its family was run" in page
    assert "**30.0**" not in text  # nothing to be better than
    assert (tmp_path / "report" / "figures" / "baselines.png").is_file()


@pytest.mark.usefixtures("undrawn")
def test_systems_of_no_family_are_named(book, tmp_path):
    book.norms("amc_no_replay", 30)
    page = write_field_report(book.all, tmp_path / "report", resamples=RESAMPLES).read_text()
    assert "None of these runs is a row of this comparison." in page
    assert "No row of this comparison: amc_no_replay." in page
    book.norms("norms_amc", 30)
    page, *_ = written(book, tmp_path)
    assert "No row of this comparison: amc_no_replay." in page


@pytest.mark.usefixtures("undrawn")
def test_the_judge_has_columns_of_its_own(book, tmp_path):
    for system, count in (("norms_avg", 12), ("norms_amc", 2)):
        judge = {"apgd_l1": ("l1", 10.0, first(count))}
        book.norms(system, 1, judge=judge)
    page, text, _, _ = written(book, tmp_path)
    assert cells(text, "norms: AMC")[2] == "**10.0**<br>2.8-30.1<br>n 20"
    assert "union judge: wrong clean or under at least one attack in the balls linf<=0.3 (pgd_linf), l2<=2 (pgd_l2), "
    assert "l1<=10 (pgd_l1, apgd_l1)." in text
    assert "(strength judge)**: A cascade with replay buys a lower union error" in page


def test_published_numbers():
    found = read_published()
    (mnist,) = found["mnist"]
    assert mnist.errors["norms_msd"]["union"] == pytest.approx(41.6)
    assert mnist.errors["norms_avg"]["union"] == pytest.approx(65.1)
    (cifar,) = found["cifar10"]
    assert cifar.errors["norms_e_at"]["union"] == pytest.approx(57.6)
    assert cifar.eps["linf"] == 8 / 255


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("mnist: 3", "published.mnist: 3"),
        ("mnist: [{source: a}]", "published.mnist[0]"),
        ("[", "cannot be read"),
    ],
)
def test_damaged_published_numbers(tmp_path, change, message):
    path = tmp_path / "published.yaml"
    path.write_text(change)
    with pytest.raises(UserError) as caught:
        read_published(path)
    assert message in str(caught.value)
