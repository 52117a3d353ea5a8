"""What is bold in the paper's tables, and what is refused."""

import pytest

from amc_lightning.paper import black_box, table3, table4_summary, table5
from amc_lightning.paper.document import csv_text, tex_text
from amc_lightning.paper.manifest import read_runs
from amc_lightning.paper.publish import publish
from amc_lightning.referee import Finding, Report, Status, ThreatModel
from amc_lightning.report.table4_file import table4_csv, table4_tex
from amc_lightning.report.table4_markdown import table4_text
from tests.paper.made import Book, Wrong, assert_balanced, cells, text_of
from tests.report.conftest import wilson
from tests.report.sweep_folder import CASCADE
from tests.report.sweep_folder import system as black_box_system

BARE = Wrong(clean=4, fgsm=80, vap=70, eap=100, budget=60, pgm=90, check=100)
AMC = Wrong(clean=6, fgsm=12, vap=10, eap=80, budget=18, pgm=20, check=30, stronger=(88, 44, 98))
AT = Wrong(clean=12, fgsm=30, vap=30, eap=90, budget=40, pgm=25, check=28)


@pytest.fixture
def book(tmp_path):
    return Book(tmp_path / "runs")


def bold_of(text, row):
    return [cell.startswith("**") for cell in cells(text, row)]


def diagnosed(folder, check, meaning):
    finding = Finding(check, "title", Status.FAIL, meaning)
    Report("LeNet", ThreatModel("linf", 0.3), "quick", 8, [finding]).save(folder)


def test_table_3_has_the_best_of_each_column_in_bold(book):
    book.add("at_pgm", AT, undefended=BARE)
    book.add("amc_target_hardened", AMC, undefended=BARE)
    papers, ours, _ = table3.table3(book.all)
    text = text_of([papers])
    assert cells(text, "Undefended")[0] == "**2.0**<br>0.8-5.0"
    assert bold_of(text, "AMC, target-hardened") == [False, True, True, True, True]
    assert bold_of(text, "AT pgm") == [False] * 5
    assert "- In bold: the lowest error of a column, if the decisive checks (E4, E8, E9, E24)" in text
    assert "Not in bold" not in text
    row = dict(zip(ours.head[1:], bold_of(text_of([ours]), "AT pgm"), strict=True))
    assert {name for name, is_bold in row.items() if is_bold} == {"pgm check"}
    latex = tex_text([papers, ours])
    assert_balanced(latex)
    assert r"\shortstack{\textbf{20.0} \\" in latex
    assert "*" not in csv_text([papers, ours])


def test_the_best_number_of_a_run_that_proves_nothing_is_refused(book):
    """M0 of AMC's run is not broken by its attacks: 60 of 100."""
    book.add("at_pgm", AT, undefended=BARE)
    book.add("amc_target_hardened", AMC, undefended=Wrong(fgsm=50, vap=50, pgm=60, budget=50, check=60))
    papers, *_ = table3.table3(book.all)
    text = text_of([papers])
    assert bold_of(text, "AMC, target-hardened") == bold_of(text, "AT pgm") == [False] * 5
    assert (
        "- Not in bold: AMC, target-hardened (F (fgsm), E (eap), P (pgm), V (vap)) E24: the attacks leave the "
        "undefended model too good: 60.0 % wrong in the worst case at strength check (50.2-69.1), where 95 % are asked "
        "for." in text
    )
    assert "textbf{20.0}" not in tex_text([papers])


def test_m0_of_another_run_counts_where_a_run_has_none(book):
    book.add("undefended", Wrong(fgsm=50, vap=50, pgm=60, budget=50, check=60))
    book.add("at_pgm", AT)
    book.add("amc_target_hardened", AMC)
    text = text_of(table3.table3(book.all)[:1])
    assert "AMC, target-hardened (clean, F (fgsm), E (eap), P (pgm), V (vap)) E24" in text


def test_a_diagnosis_of_the_run_refuses_too_and_is_published_with_it(book, tmp_path):
    book.add("at_pgm", AT, undefended=BARE)
    run = book.add("amc_target_hardened", AMC, undefended=BARE)
    diagnosed(run.folder, "E9", "It is grey.")
    text = text_of(table3.table3(book.all)[:1])
    assert "Not in bold: AMC, target-hardened (F (fgsm), E (eap), P (pgm), V (vap)) E9: diagnosed: It is grey." in text
    assert bold_of(text, "Undefended")[0]  # its M0 is not the model that was diagnosed
    diagnosed(run.folder / "diagnoses" / "bit_depth_1", "E9", "Squeezed.")
    copied = read_runs([publish(book.all, tmp_path / "published", pictures=frozenset())])
    assert text_of(table3.table3(copied)[:1]) == text
    place = copied.every[-1].folder
    assert {path.relative_to(place).as_posix() for path in place.rglob("diagnosis.json")} == {
        "diagnosis.json", "diagnoses/bit_depth_1/diagnosis.json",
    }  # fmt: skip


def test_of_several_seeds_one_that_fails_refuses_the_row(book):
    for seed in (0, 1):
        book.add("at_pgm", AT, undefended=BARE, seed=seed)
        run = book.add("amc_target_hardened", AMC, undefended=BARE, seed=seed)
    diagnosed(run.folder, "E8", "It stops short.")
    text = text_of(table3.table3(book.all)[:1])
    assert "E8: seed 1: diagnosed: It stops short." in text


POST_HOC = Wrong(clean=5, fgsm=9, vap=9, eap=15, budget=9, pgm=11, check=13, stronger=(25, 17, 6))
ADAPTIVE = Wrong(clean=5, fgsm=9, vap=9, eap=70, budget=12, pgm=15, check=16, stronger=(80, 27, 50))


def squeezed(book, post_hoc=POST_HOC, adaptive=ADAPTIVE, **kwargs):
    ways = {"bit_depth_1/post_hoc": post_hoc, "bit_depth_1/adaptive": adaptive}
    return book.add("amc_target_hardened", AMC, undefended=BARE, squeezed=ways, **kwargs)


def test_table_5_compares_amc_with_either_way_alone_and_refuses_what_is_impossible(book):
    """Either way 50 of 100 are wrong under PGM at eps 0.6, where guessing is wrong on 90."""
    squeezed(book)
    text = text_of(table5.table5(book.all))
    assert not any(bold_of(text, "AMC and FS (the paper's way)") + bold_of(text, "AMC and FS (adaptive)"))
    assert not any(bold_of(text, "AMC and FS (either way)"))
    assert "are what FS (either way) is made of, and do not compete for the best." in text
    assert "AMC and FS (either way) (clean, eap normal, pgm normal, eap stronger, pgm stronger," in text
    assert ") E9: pgm (stronger) at l-inf 0.6, from where every image" in text


def test_table_5_has_what_holds_in_bold(book):
    squeezed(book, adaptive=Wrong(**{**vars(ADAPTIVE), "stronger": (80, 27, 97)}))
    text = text_of(table5.table5(book.all))
    assert all(bold_of(text, "AMC and FS (either way)"))
    assert not any(bold_of(text, "AMC"))


def test_table_5_is_impossible_only_if_both_ways_together_are(book):
    """Adaptive is wrong on the first 60 of 100, post hoc on the last 50: together on all."""
    post_hoc = Wrong(**{**vars(POST_HOC), "stronger": (25, 17, 50), "start": 50})
    squeezed(book, post_hoc, Wrong(**{**vars(ADAPTIVE), "stronger": (80, 27, 60)}))
    assert "Not in bold" not in text_of(table5.table5(book.all))


# --- Table 4 ---------------------------------------------------------------------------------------------------------


def proxied(book, system, order, undefended, fgsm):
    """Add a run under the black boxes: M0 wrong in the worst case on so many, the last model under FGSM, of 140."""
    raw = black_box_system(order, "amc" if order == CASCADE else "adversarial_training", by_proxy=True)
    for stage in raw["stages"]:
        for evaluation in stage["evaluations"].values():
            for strength in ("paper", "check"):
                evaluation[strength] = {
                    name: {key: value for key, value in rate.items() if key != "norms"}
                    for name, rate in evaluation[strength].items()
                }
                evaluation[strength]["fgsm"] |= wilson(fgsm if stage["index"] else 138, 140)
                if stage["index"] == 0:
                    evaluation[strength]["worst"] = wilson(undefended, 140)
    book.write(system, raw, {})


@pytest.mark.parametrize(("undefended", "holds"), [(139, True), (100, False)])
def test_table_4_has_the_best_in_bold_where_the_attacks_break_m0(undefended, holds, book):
    for system, order, fgsm in (("at_fgsm_proxy", ("fgsm",), 21), ("amc_local_proxy", CASCADE, 14)):
        proxied(book, system, order, undefended, fgsm)
    tables = black_box.table4(book.all)
    text = table4_text(tables)
    detailed = text[text.index("every attack") :]
    assert ("| **10.0**<br>6.1-16.1<br>P'' 96.4" in detailed) == holds
    assert ("Not in bold: " in text) != holds
    latex = table4_tex(tables)
    assert_balanced(latex)
    assert ("\\textbf{10.0}" in latex) == holds
    assert "*" not in table4_csv(tables)
    summary = text_of(table4_summary.table4_summary(book.all, tables))
    assert ("**10.0**<br>6.1-16.1<br>paper 18.2" in summary) == holds
    if not holds:
        assert "AMC, local proxy (" in text
        assert "E24: the attacks leave the undefended model too good: 71.4 % wrong" in text
        assert "E24: the attacks leave the undefended model too good: 71.4 % wrong" in summary
