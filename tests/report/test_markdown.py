"""report.md: exact cells and facts, and a file that is whole or not there."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from amc_lightning.report import write_all, write_report

MakeRun = Callable[..., Path]


def _tables(text: str) -> dict[str, dict[str, list[str]]]:
    """Cells of every table by section, then by first cell (first two where the first repeats)."""
    found: dict[str, dict[str, list[str]]] = {}
    section = ""
    for line in text.splitlines():
        if line.startswith("#"):
            section = line.strip("# ")
        elif line.startswith("| "):
            cells = line.strip("| ").split(" | ")
            rows = found.setdefault(section, {})
            rows[cells[0] if cells[0] not in rows else f"{cells[0]}/{cells[1]}"] = cells[1:]
    return found


def test_every_number_with_its_interval_and_its_n(make_run: MakeRun) -> None:
    text = write_report(make_run()).read_text()
    tables = _tables(text)
    rates = tables["Error rates (%), lower is better"]
    head = rates["model"]
    last = dict(zip(head, rates["stage 4 (pgm)"], strict=True))
    assert last["clean"] == "**3.4**<br>2.0-5.9<br>12 of 350"
    assert last["eap no limit"] == "**97.9**<br>93.9-99.3<br>137 of 140"
    assert last["eap l1<=10"] == "**27.1**<br>20.5-35.0<br>38 of 140"
    assert last["pgm paper"] == "**23.6**<br>17.3-31.2<br>33 of 140"
    assert last["pgm check"] == "**32.9**<br>25.6-41.0<br>46 of 140"
    assert last["mean check"] == "**42.1**<br>34.3-50.4<br>n = 140"
    assert last["worst check"] == "**43.6**<br>35.6-51.8<br>61 of 140"
    cells = [cell for row in rates.values() for cell in row]
    assert sum(bool(re.fullmatch(r"\*\*[\d.]+\*\*<br>[\d.]+-[\d.]+<br>(\d+ of|n =) \d+", c)) for c in cells) == 5 * 11
    assert "Only check may be called robust." in text
    assert "Not shown: other seeds" in text


def test_distances_norms_costs_and_facts(make_run: MakeRun) -> None:
    tables = _tables(write_report(make_run()).read_text())
    distances = tables["Distance at which eap succeeds"]
    assert distances["model"] == ["distance", "10 % quantile", "50 % quantile", "90 % quantile"]
    assert distances["stage 4 (pgm)"] == ["elastic net", "1.6", "3.2", "10.4"]
    norms = tables["Size of the perturbations, and what they took"]
    assert norms["stage 2 (vap)/pgm (check)"] == ["pgm (check)", "0.27, 0.3", "2.7, 4.05", "21.6, 32.4", "15.0", "-"]
    costs = tables["What training cost"]
    assert costs["M0 (undefended)"] == ["40", "360", "0.2", "40", "0", "0", "0", "0", "`0a0a0a0a0a0a`, there before"]
    assert costs["stage 2 (vap)"] == ["20", "180", "0.7", "800", "150", "700", "0", "0", "`2a2a2a2a2a2a`"]
    assert costs["all"] == ["120", "1,080", "3.5", "4,040", "1,025", "875", "775", "700", "-"]
    facts = tables["What was run"]
    assert facts["images read"] == ["train 1,080, test 717"]
    assert facts["images kept, by split"] == ["train 1,040, validation 210, attack 140, test 350"]
    assert facts["attack order"] == ["fgsm > vap > eap > pgm"]
    parameters = tables["Attack parameters"]
    assert parameters["fgsm"] == ["eps: 0.1", "the same"]
    assert "eps_iter: 0.01<br>" in parameters["pgm"][0]
    assert "nb_iter: 40<br>eps_iter: 0.01875<br>" in parameters["pgm"][1]
    assert tables["Versions"]["torch"] == ["2.13.0"]


def test_figures_are_embedded_only_if_they_are_there(make_run: MakeRun) -> None:
    folder = make_run()
    assert "![" not in write_report(folder).read_text()
    text = write_all(folder).read_text()
    linked = re.findall(r"!\[.+?\]\((.+?)\)", text)
    assert linked == ["figures/error_rates.png", "figures/examples.png", "figures/training_curves.png"]
    assert all((folder / path).is_file() for path in linked)


def test_warnings_and_the_smallest_reports(make_run: MakeRun) -> None:
    folder = make_run(order=(), evaluated=(), status="stopped: Ctrl-C")
    text = write_report(folder).read_text()
    assert "**The run is not finished (stopped: Ctrl-C): later stages are missing.**" in text
    assert "| M0 (undefended) | **2.9**<br>1.6-5.2<br>10 of 350 |" in text
    assert "Distance at which" not in text
    assert "Size of the perturbations" not in text
    raw = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps({**raw, "stages": []}))
    assert "No stage has been measured (stopped: Ctrl-C)." in write_report(folder).read_text()


def test_rows_without_a_gradient_are_said_to_show_nothing(make_run: MakeRun) -> None:
    folder = make_run()
    assert "Rows without a gradient" not in write_report(folder).read_text()
    raw = json.loads((folder / "results.json").read_text())
    raw["stages"][0]["evaluations"]["white_box"]["paper"]["fgsm"]["zero_gradient"] = 12
    raw["stages"][0]["evaluations"]["white_box"]["check"]["fgsm"]["zero_gradient"] = 12  # the same attack: said once
    raw["stages"][1]["evaluations"]["white_box"]["check"]["pgm"]["zero_gradient"] = 3
    (folder / "results.json").write_text(json.dumps(raw))
    assert (
        "- Rows without a gradient, which were not attacked; that they are right shows nothing: "
        "M0 under fgsm (paper) 12 of 140, 1 fgsm under pgm (check) 3 of 140.\n"
    ) in write_report(folder).read_text()


def test_an_attack_that_fooled_nobody_has_no_distance(make_run: MakeRun) -> None:
    folder = make_run()
    raw = json.loads((folder / "results.json").read_text())
    raw["stages"][4]["evaluations"]["white_box"]["paper"]["eap"]["quantiles"] = {}
    (folder / "results.json").write_text(json.dumps(raw))
    distances = _tables(write_report(folder).read_text())["Distance at which eap succeeds"]
    assert "stage 4 (pgm)" not in distances
    assert "stage 3 (eap)" in distances


def test_a_failed_write_leaves_the_old_report(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run()
    (folder / "report.md").write_text("old")
    before = sorted(path.name for path in folder.iterdir())

    def fail(self: Path, target: Path) -> None:
        raise OSError("disk is full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk is full"):
        write_report(folder)
    assert (folder / "report.md").read_text() == "old"
    assert sorted(path.name for path in folder.iterdir()) == before
