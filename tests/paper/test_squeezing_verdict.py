"""Whether squeezing's gain is real: by the numbers of made-up runs, and by a diagnosis where there is one."""

import pytest

from amc_lightning.paper.report import write_paper_report
from amc_lightning.paper.squeezed import squeezings
from amc_lightning.paper.squeezing_verdict import gain, squeezing_text
from amc_lightning.paper.table5 import table5
from amc_lightning.paper.trained import models
from amc_lightning.referee import Finding, Report, Status, ThreatModel
from amc_lightning.report.columns import Column
from tests.paper.made import Book, Wrong, text_of

AMC = {"clean": 6, "eap": 80, "budget": 18, "pgm": 40, "check": 60, "stronger": (88, 44, 98)}
POST_HOC = {"eap": 20, "budget": 6, "pgm": 10, "check": 12, "stronger": (28, 17, 95)}
# By EAP and PGM, normal and stronger: post hoc 60, 30, 60 and 3 points, 38.25 on average


@pytest.fixture
def book(tmp_path):
    return Book(tmp_path / "runs")


def add(book, adaptive, post_hoc=POST_HOC, amc=AMC, **kwargs):
    """Rows wrong post hoc are the first so many, as those of the adaptive way: either way is the larger count."""
    ways = {"bit_depth_1/post_hoc": Wrong(**post_hoc), "bit_depth_1/adaptive": Wrong(**adaptive)}
    return book.add("amc_target_hardened", Wrong(**amc), squeezed=ways, **kwargs)


def adaptive(eap=80, pgm=40, check=60, eap_stronger=88, pgm_stronger=98):
    """The adaptive attack undoes all of the gain, but for what is given."""
    return {"eap": eap, "budget": 18, "pgm": pgm, "check": check, "stronger": (eap_stronger, 44, pgm_stronger)}


def test_a_gain_is_counted_by_rows(book):
    add(book, adaptive(eap=70, pgm=30))
    systems = book.all.of("mnist")
    amc = models(systems, "amc_target_hardened", "white_box")
    (squeezed,) = squeezings(systems, "amc_target_hardened", [])
    columns = [Column("attack", name, "paper", (name, "")) for name in ("eap", "pgm")]
    found = gain(amc, squeezed, columns)
    # bare 80 and 40, post hoc 20 and 10, either way 70 and 30: rows 70-79 are saved of EAP, 30-39 of PGM
    assert (found.post_hoc, found.either, found.n, found.attacks) == (45.0, 10.0, 100, 2)
    # one half on 20 rows and nothing on 80, mean 0.1: squares of 0.4 and 0.1
    assert found.high - found.either == pytest.approx(196 * ((20 * 0.16 + 80 * 0.01) / 99) ** 0.5 / 10)
    assert found.text == "10.0 (6.1 to 13.9) of 45.0 points"
    assert gain(amc, squeezed, [Column("attack", "nothing", "paper", ("", ""))]) is None


def test_a_gain_that_an_adaptive_attack_undoes_is_not_real(book):
    add(book, adaptive())
    text = squeezing_text(book.all)
    assert text.startswith(
        "**mnist, bit_depth_1: the gain of the paper's Table 5 is not real: of 38.2 points none remains that could be "
        "told from 0.**"
    )
    assert "normal: 0.0 (0.0 to 0.0) of 45.0 points; stronger: 0.0 (0.0 to 0.0) of 31.5 points" in text


def test_a_part_that_remains_is_said_to_be_that_part(book):
    add(book, adaptive(eap=70, pgm=30))
    text = squeezing_text(book.all)
    # 10, 10, 0 and 0 of 60, 30, 60 and 3 points
    assert "is partly real: 5.0 (" in text.split("**")[1]
    assert text.split("**")[1].endswith(") of 38.2 points remain.")
    assert "Under the check (EAP within its radius, PGM with more steps) the gain is not real" in text


def test_a_gain_that_stands_is_real_as_far_as_these_attacks_show(book):
    add(book, {**POST_HOC, "budget": 7})
    text = squeezing_text(book.all)
    assert "is real as far as these attacks show: 38.2 (" in text.split("**")[1]
    # of the check 18 and 60, either way 7 and 12: 29.5, post hoc 30
    assert "the gain is real as far as these attacks show: 29.5 (" in text


def test_no_gain_at_all(book):
    add(book, adaptive(), post_hoc=adaptive())
    assert "is not there: not even examples that are squeezed afterwards do less." in squeezing_text(book.all)


def test_a_number_below_chance_at_half_of_the_range_is_no_gain(book):
    """Stronger PGM at eps 0.6: 6 of 100 wrong post hoc, 50 either way, where guessing is wrong on 90."""
    post_hoc = {**POST_HOC, "stronger": (28, 17, 6)}
    add(book, adaptive(pgm_stronger=50), post_hoc)
    text = squeezing_text(book.all)
    assert "is not real: of 60.5 points none remains" in text.split("**")[1]  # 60, 30, 60 and 92
    assert "the 50.0 % there, either way, are fewer than guessing (90.0 %), which is impossible (E9)" in text
    assert "The paper's own 6.73 % at this radius is impossible (E9)" in text


def test_below_half_of_the_range_nothing_is_impossible(book):
    add(book, adaptive(pgm_stronger=50), {**POST_HOC, "stronger": (28, 17, 6)}, eps=0.4)
    text = squeezing_text(book.all)
    assert "partly real: 12.0 (" in text.split("**")[1]  # 48 of one attack of four
    assert "E9" not in text


def test_as_it_must_be(book):
    add(book, adaptive())
    text = squeezing_text(book.all)
    assert "at eps 0.6, every image can be turned into the same grey one: no number there, either way, is below" in text


def test_what_one_bit_does_to_small_changes_is_said_of_one_bit_alone(book):
    add(book, adaptive())
    assert "Within l-inf 0.3 no attack takes a pixel below 0.2 or above 0.8 across the threshold" in squeezing_text(
        book.all
    )
    other = Book(book.folder.parent / "four")
    name = {"name": "bit_depth_4", "settings": {"bits": 4}}
    also = {f"squeezed/bit_depth_1/{way}": {**name, "adaptive": way == "adaptive"} for way in ("post_hoc", "adaptive")}
    add(other, adaptive(), also=[{"squeezings": also}])
    assert "crosses" not in squeezing_text(other.all)
    assert "threshold" not in squeezing_text(other.all)


def test_a_judge_of_the_bare_model_alone_is_a_doubt(book):
    """The judge: 20 of 20 wrong (83.9-100), the check 60 of 100 (50.2-69.1)."""
    add(book, adaptive(), amc={**AMC, "judge": 20})
    assert "On the bare model the judge's attacks leave 100.0 % wrong (83.9-100), the check 60.0 %" in squeezing_text(
        book.all
    )
    other = Book(book.folder.parent / "judged")
    add(other, {**adaptive(), "judge": 20}, amc={**AMC, "judge": 20})
    assert "judge" not in squeezing_text(other.all)


def diagnosed(run, *findings):
    known = [
        Finding(check, "title", status, f"{check} says so.", "", number, "pp") for check, status, number in findings
    ]
    place = run.folder / "diagnoses" / "bit_depth_1"
    Report("Squeezed", ThreatModel("linf", 0.3), "quick", 256, known).save(place)


def test_without_a_diagnosis_that_is_said(book):
    add(book, adaptive())
    assert "The squeezed model was not diagnosed, so E15, E16, E22 say nothing here." in squeezing_text(book.all)


def test_a_diagnosis_that_finds_a_better_attack_takes_the_gain_back(book):
    run = add(book, {**POST_HOC, "budget": 7})
    diagnosed(run, ("E15", Status.PASS, 0.0), ("E16", Status.WARN, 0.4), ("E22", Status.FAIL, 41.0))
    text = squeezing_text(book.all)
    assert "is at most partly real: 38.2 (" in text.split("**")[1]
    # 29.5 points remain under the check, and the diagnosis gets 41 more
    assert "the diagnosis (E22) found an attack that gets 41.0 points more than the one through the squeezing" in text
    size = "Diagnosed on 256 images (level quick, white box, l-inf 0.3)"
    assert f"{size}: E22 FAILs (41.0 pp): E22 says so. The same: E15 PASS; E16 WARN." in text


def test_a_diagnosis_without_a_better_attack_changes_no_verdict(book):
    run = add(book, {**POST_HOC, "budget": 7})
    diagnosed(run, ("E15", Status.PASS, 0.0), ("E22", Status.PASS, 0.0))
    text = squeezing_text(book.all)
    assert "real as far as these attacks show" in text.split("**")[1]
    assert text.endswith("white box, l-inf 0.3): E15, E22 PASS.")


def test_seeds_are_averaged(book):
    for seed, eap in ((0, 70), (1, 60)):
        add(book, adaptive(eap=eap), seed=seed)
    assert "partly real: 3.8 (" in squeezing_text(book.all)  # 10 and 20 of one attack of four


def test_one_way_alone_has_no_verdict(book):
    book.add("amc_target_hardened", Wrong(**AMC), squeezed={"bit_depth_1/post_hoc": Wrong(**POST_HOC)})
    assert squeezing_text(book.all) == ""


def test_the_report_and_the_table_say_it(book, tmp_path, monkeypatch):
    add(book, adaptive())
    conclusion = squeezing_text(book.all).split("**")[1]
    assert f"- **{conclusion}**\n" in text_of(table5(book.all))
    for name in ("write_claims", "write_figure1", "write_forgetting"):
        monkeypatch.setattr(
            f"amc_lightning.paper.report.{name}", lambda *given, name=name: [] if name == "write_claims" else None
        )
    text = write_paper_report(book.all, tmp_path / "report").read_text()
    assert f"## Feature squeezing: is the gain real?\n\n**{conclusion}** " in text
