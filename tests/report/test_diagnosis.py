"""What a user sees of a diagnosis: the page, the pictures, plain text, and the table for a terminal."""

import copy
import io
import json
import re

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from amc_lightning.errors import UserError
from amc_lightning.referee import DECISIVE, DIAGNOSIS_FILE, Finding, Report, Status, ThreatModel
from amc_lightning.report import diagnosis_reading
from amc_lightning.report.diagnosis import diagnosis_table, diagnosis_text, write_diagnosis
from amc_lightning.report.diagnosis_figures import draw_by_eps, draw_by_steps, draw_loss
from amc_lightning.report.diagnosis_reading import parse_diagnosis, read_diagnosis
from amc_lightning.report.diagnosis_text import verdict

EPS = [0.0, 0.15, 0.3, 0.5]
CURVES = {
    "error_by_eps": {
        "eps": EPS, "error": [1.0, 30.0, 76.0, 99.0], "low": [0.3, 22.0, 68.0, 96.0], "high": [4.0, 39.0, 83.0, 99.9],
        "n": 128, "chance": 90.0,
    },
    "error_by_steps": {"steps": [1, 2, 5, 10], "error": [10.0, 20.0, 40.0, 44.0], "n": 128},
    "loss": {"steps": [0, 1, 2], "median": [-3.0, -1.0, 0.5], "low": [-4.0, -2.0, -1.0], "high": [-2.0, 0.0, 1.0]},
}  # fmt: skip
FINDINGS = (
    Finding("E4", "norm and box", Status.PASS, "Every image stays in the ball.", number=1.0),
    Finding("E9", "impossibility", Status.FAIL, "12.5 % are wrong at eps 0.5.", "Repair [red]it[/red].", 12.5, "%"),
    Finding("E10", "convergence", Status.WARN, "More steps find\nmore | rows.", "Take more steps.", 1.25, "pp"),
    Finding("E22", "parts without a gradient", Status.FAIL, "41 rows more.", "Attack through them.", 41.0, "rows"),
    Finding("E31", "proxies", Status.NOT_RUN, "No proxy was named."),
)


def report(findings=FINDINGS, curves=CURVES, **changes):
    given = {"model": "LeNet", "threat_model": ThreatModel("linf", 0.3), "level": "quick", "rows": 256, "seconds": 58.3}
    facts = {"clean_error": 1.2, "chance_error": 90.0}
    return Report(**{**given, "facts": facts, **changes}, findings=findings, curves=curves)


def printed(data, width=100, **settings):
    console = Console(file=io.StringIO(), width=width, **settings)
    console.print(diagnosis_table(data))
    return console.file.getvalue()


def test_the_referee_s_own_words_are_these():
    assert (diagnosis_reading.DECISIVE, diagnosis_reading.DIAGNOSIS_FILE) == (DECISIVE, DIAGNOSIS_FILE)
    assert tuple(status.value for status in Status) == diagnosis_reading.STATUSES


def test_the_page_has_the_verdict_a_row_for_every_check_and_the_pictures(tmp_path):
    path = report().save(tmp_path / "new")
    assert path == tmp_path / "new" / "diagnosis.md"
    text = path.read_text()
    assert text.startswith(
        "# Diagnosis of LeNet: white box, l-inf 0.3\n\n**2 of 4 checks FAIL (E9, E22), E9 among them"
    )
    assert "1 WARN (E10).**" in text
    assert "256 images, level quick, seed 0, 58 s. Clean error 1.2 %, guessing 90.0 %. Not run: E31." in text
    lines = [line for line in text.splitlines() if line.startswith("| E")]
    assert [line.split(" | ")[0] for line in lines] == ["| E4", "| E9", "| E10", "| E22", "| E31"]
    row = "| E9 | impossibility | **FAIL** | 12.5 % | 12.5 % are wrong at eps 0.5. | Repair [red]it[/red]. |"
    assert lines[1] == row
    assert lines[2].endswith(r"| **WARN** | 1.2 pp | More steps find more \| rows. | Take more steps. |")
    assert lines[4] == "| E31 | proxies | NOT RUN | - | No proxy was named. |  |"
    assert re.findall(r"\]\((figures/.*)\)", text) == [
        "figures/error_by_eps.png", "figures/error_by_steps.png", "figures/loss.png",
    ]  # fmt: skip
    for picture in (path.parent / "figures").iterdir():
        image = imread(picture)
        assert 700 <= image.shape[1] <= 1200
        assert image[..., :3].std() > 0.05, "blank"
        edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])[:, :3]
        assert edge.min() == 1.0, "cut off at its edge"


def test_the_same_file_makes_the_same_page_again(tmp_path):
    first = report(curves={"loss": CURVES["loss"]}).save(tmp_path).read_bytes()
    assert write_diagnosis(tmp_path).read_bytes() == first


def test_text_is_a_line_for_each_check_and_one_for_what_to_do():
    lines = str(report()).splitlines()
    assert lines[2:] == [
        "PASS     E4         1  norm and box: Every image stays in the ball.",
        "FAIL     E9    12.5 %  impossibility: 12.5 % are wrong at eps 0.5.",
        "         -> Repair [red]it[/red].",
        "WARN     E10   1.2 pp  convergence: More steps find more | rows.",
        "         -> Take more steps.",
        "FAIL     E22  41 rows  parts without a gradient: 41 rows more.",
        "         -> Attack through them.",
        "NOT RUN  E31        -  proxies: No proxy was named.",
    ]


def test_a_table_of_100_columns_can_be_read_without_colour():
    long = Finding("E7", "monotone", Status.WARN, "word " * 60, "do " * 50, 0.4, "pp")
    text = printed(report((*FINDINGS, long)).as_json())
    assert max(map(len, text.splitlines())) <= 100
    assert re.search(r"^E9 +FAIL +12\.5 % +impossibility: 12\.5 % are wrong at eps 0\.5\.", text, re.MULTILINE)
    assert "-> Repair [red]it[/red]." in text  # nothing in a sentence is taken for markup
    assert text.split().count("word") == 60
    assert text.split().count("do") == 50
    assert "\x1b" not in text


def test_the_table_has_colours_on_a_terminal():
    text = printed(report().as_json(), force_terminal=True, color_system="standard")
    for status, code in (("PASS", "32"), ("WARN", "33"), ("FAIL", "1;31")):
        assert f"\x1b[{code}m{status}" in text


def test_advice_is_for_what_is_not_well():
    kept = Finding("E1", "stated", Status.PASS, "It is.", "Frame it.")
    data = report((kept,)).as_json()
    assert "Frame it" not in diagnosis_text(data) + printed(data)


@pytest.mark.parametrize(
    ("statuses", "said"),
    [
        ({"E9": "FAIL"}, "1 of 1 check FAILS (E9), decisive: no number"),
        ({"E9": "FAIL", "E6": "PASS"}, "1 of 2 checks FAILS (E9), decisive: no number"),
        ({"E22": "FAIL", "E6": "PASS"}, "none of them decisive: the claim cannot stand as it is. None WARNs."),
        ({"E6": "PASS", "E7": "WARN"}, "None of 2 checks FAILs. 1 WARN (E7)."),
        ({"E6": "PASS"}, "None of 1 check FAILs. None WARNs. That no check objects is no proof of robustness."),
        ({"E6": "NOT RUN"}, "No check was run: nothing is known of this claim."),
        ({}, "No check was run: nothing is known of this claim."),
    ],
)
def test_the_verdict_says_what_fails_and_what_it_means(statuses, said):
    findings = [Finding(check, "title", Status(status), "It is so.") for check, status in statuses.items()]
    assert said in verdict(parse_diagnosis(report(findings).as_json()))


@pytest.mark.parametrize("name", [None, *CURVES])
def test_a_curve_that_is_not_there_is_not_drawn(name, tmp_path):
    path = report(curves={} if name is None else {name: CURVES[name]}).save(tmp_path)
    assert path.read_text().count("![") == (name is not None)
    assert [found.stem for found in tmp_path.glob("figures/*")] == ([] if name is None else [name])


def lines_of(figure, label):
    (line,) = [line for line in figure.axes[0].get_lines() if line.get_label() == label]
    return list(line.get_xdata()), list(line.get_ydata())


def test_the_curves_are_those_of_the_file():
    found = parse_diagnosis(report().as_json())
    figure = draw_by_eps(found)
    assert lines_of(figure, "error rate") == (EPS, CURVES["error_by_eps"]["error"])
    assert lines_of(figure, "guessing, 90.0 %")[1] == [90.0, 90.0]
    assert lines_of(figure, "radius of the claim, 0.3")[0] == [0.3, 0.3]
    assert figure.axes[0].get_xscale() == "linear"
    figure = draw_by_steps(found)
    assert lines_of(figure, "error rate") == ([1, 2, 5, 10], CURVES["error_by_steps"]["error"])
    assert figure.axes[0].get_xscale() == "log"
    assert lines_of(draw_loss(found), "median over images") == ([0, 1, 2], [-3.0, -1.0, 0.5])


def test_a_small_radius_is_not_pressed_to_the_edge():
    figure = draw_by_eps(parse_diagnosis(report(threat_model=ThreatModel("linf", 8 / 255)).as_json()))
    assert figure.axes[0].get_xscale() == "symlog"


def test_numbers_that_are_none_are_left_out(tmp_path):
    """NaN and infinity, as a model may make them, are no reason to say nothing of the rest."""
    curves = copy.deepcopy(CURVES)
    curves["error_by_eps"]["error"][1] = float("nan")
    curves["loss"]["high"] = [float("inf")] * 3
    findings = [Finding("E17", "gradients", Status.FAIL, "NaN.", "Look.", float("nan"), "%")]
    assert "| E17 | gradients | **FAIL** | - |" in report(findings, curves).save(tmp_path).read_text()
    found = read_diagnosis(tmp_path)
    assert lines_of(draw_by_eps(found), "error rate")[0] == [0.0, 0.3, 0.5]
    assert draw_loss(found) is None


def damaged(**changes):
    return json.dumps({**report().as_json(), **changes})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is not complete JSON"),
        ("[" * 100_000, "is not complete JSON"),
        (damaged()[:-20], "is not complete JSON"),
        ("[]", "holds a list, not an object"),
        (damaged(format=2), "diagnosis.json: format: 2 is not a format that this version reads"),
        ('{"format": 1}', "diagnosis.json: threat_model: None is missing"),
        (damaged(threat_model={"norm": "l7", "eps": 1}), "threat_model.norm: 'l7' is not what this field holds"),
        (damaged(rows="many"), "diagnosis.json: rows: 'many'"),
        (damaged(findings={}), "diagnosis.json: findings"),
        (damaged(findings=[{"check": "E1"}]), "diagnosis.json: findings[0].title: None is missing"),
        (
            damaged(findings=[{"check": "E1", "title": "", "status": "MAYBE", "meaning": ""}]),
            "findings[0].status: 'MAYBE'",
        ),
        (damaged(curves=[1]), "diagnosis.json: curves"),
        (damaged(curves={"loss": {"steps": [1], "median": [1, 2]}}), "curves.loss.median: [1, 2]"),
        (damaged(curves={"loss": {"steps": 3}}), "curves.loss.steps: 3"),
    ],
)  # fmt: skip
def test_a_damaged_or_foreign_file_is_one_line(content, said, tmp_path):
    (tmp_path / "diagnosis.json").write_text(content)
    with pytest.raises(UserError) as caught:
        write_diagnosis(tmp_path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "diagnose" in str(caught.value) or "version that wrote" in str(caught.value)
    assert not (tmp_path / "diagnosis.md").exists()


def test_a_folder_without_a_diagnosis_is_named(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        write_diagnosis(tmp_path)
    (tmp_path / "diagnosis.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not complete JSON"):
        write_diagnosis(tmp_path)
