"""Table 4 of a sweep over systems: its rows and columns, the paper's numbers beside ours, and its three files."""

import csv
import io
import json
from typing import Any

import pytest
from rich.console import Console

from amc_lightning.report.paper_table4 import TABLE_4, paper_number
from amc_lightning.report.sweep_reading import read_entries
from amc_lightning.report.sweep_summary import write_summary
from amc_lightning.report.sweep_table import sweep_table
from amc_lightning.report.table4 import black_box_tables
from amc_lightning.report.table4_file import tex
from tests.report.conftest import wilson
from tests.report.sweep_folder import CASCADE, system, systems, two_orders, write_system

LABEL = "black_box_label"


def tables_of(sweep):
    return black_box_tables(read_entries(sweep))


def names_of(sweep):
    return [row.name for row in tables_of(sweep)[0].systems]


def cells(text, first):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {first} |") and "<br>" in line]
    return line.strip("| ").split(" | ")[1:]


def test_the_rows_stand_in_the_paper_s_order(tmp_path):
    tables = tables_of(systems(tmp_path))
    assert [table.threat_model for table in tables] == [LABEL, "black_box_noisy_label", "black_box_probabilities"]
    assert names_of(tmp_path) == [
        "undefended", "AT[P] fgsm", "AT[P] eap", "AT[P] vap", "AMC, local proxy", "AT pgm", "AMC, target-hardened",
    ]  # fmt: skip


def test_the_columns_stand_in_the_paper_s_order(tmp_path):
    assert [column.title for column in tables_of(systems(tmp_path))[0].columns] == [
        "clean", "fgsm", "eap no limit", "eap l1<=10", "pgm paper", "vap", "pgm check", "mean check", "worst check",
    ]  # fmt: skip


def test_the_paper_s_numbers_stand_beside_those_of_the_label_interface_alone(tmp_path):
    write_summary(systems(tmp_path))
    text = (tmp_path / "tables" / "table4.md").read_text()
    label, noisy = text.split("### mnist: black_box_noisy_label")
    assert cells(label, "AMC, local proxy") == [
        "3.4<br>2.0-5.9",
        "8.6<br>5.0-14.4<br>P'' 96.4<br>M0 5.7<br>paper 18.2",
        "48.6<br>40.4-56.8<br>P'' 96.4<br>M0 32.1<br>paper 1.3",
        "13.6<br>8.9-20.2<br>P'' 96.4<br>M0 8.6",
        "11.4<br>7.2-17.8<br>P'' 96.4<br>M0 7.9<br>paper 20.8",
        "10.0<br>6.1-16.1<br>P'' 96.4<br>M0 6.4<br>paper 2.4",
        "16.4<br>11.2-23.4<br>P'' 96.4<br>M0 10.7",
        "20.7<br>14.8-28.2",
        "21.4<br>15.4-28.9",
        "91.4<br>88.0-93.9",
    ]
    assert "paper 3.68" in cells(label, "AT[P] fgsm")[2], "as it is printed there"
    assert "paper" not in " ".join(cells(label, "AMC, target-hardened")), "not in the paper's table"
    assert "<br>paper" not in noisy
    assert "**" not in text, "nothing is bolded"


def test_a_dataset_the_paper_lacks_has_no_paper_numbers(tmp_path):
    write_summary(systems(tmp_path, dataset="digits"))
    text = (tmp_path / "tables" / "table4.md").read_text()
    assert "### digits: black_box_label" in text
    assert "<br>paper" not in text
    assert "number in the paper" not in text


def test_the_paper_s_table_is_copied_whole():
    assert {name: len(rows) for name, rows in TABLE_4.items()} == {"mnist": 6, "svhn": 6, "cifar10": 6}
    assert sum(value for rows in TABLE_4.values() for row in rows.values() for value in row) == pytest.approx(2618.89)
    assert paper_number("cifar10", "vap", "vap") == 34.8
    assert paper_number("cifar10", "", "vap") is None
    assert paper_number("cifar10", "amc", "square") is None


def test_one_undefended_model_of_many_jobs_is_one_row_and_seeds_are_told_apart(tmp_path):
    for number, seed in enumerate((0, 1, 1)):
        raw = system(("pgm",), "adversarial_training", by_proxy=number == 2)
        raw["stages"][0]["key"] = f"{seed}f" * 32
        write_system(tmp_path, number, raw, seed=seed)
    assert names_of(tmp_path) == [
        "undefended, seed 0", "undefended, seed 1", "AT[P] pgm", "AT pgm, seed 0", "AT pgm, seed 1",
    ]  # fmt: skip


def test_rows_of_one_name_are_told_apart_by_order_interface_or_job(tmp_path):
    def amc(order: tuple[str, ...], number: int, **changes: Any) -> None:
        raw = {**system(order, "amc", by_proxy=True), **changes}
        raw["stages"][-1]["key"] = f"{number}e" * 32
        write_system(tmp_path, number, raw)

    amc(CASCADE, 0)
    amc(CASCADE[::-1], 1)
    amc(CASCADE, 2, threat_model="black_box_probabilities")
    amc(CASCADE, 3)
    name = "AMC, local proxy, fgsm > vap > eap > pgm"
    assert names_of(tmp_path) == [
        "undefended",
        f"{name}, {LABEL}, job 0",
        "AMC, local proxy, pgm > eap > vap > fgsm",
        f"{name}, black_box_probabilities",
        f"{name}, {LABEL}, job 3",
    ]


def test_a_defence_of_ones_own_and_given_weights_have_rows_without_paper(tmp_path):
    raw = system(("fgsm", "pgm"), "my_defence", by_proxy=True)
    raw["stages"][0]["steps"] = 0
    write_system(tmp_path, 0, raw)
    (first, *_) = tables_of(tmp_path)
    assert [(row.name, row.paper) for row in first.systems] == [
        ("given weights", ""), ("my_defence[P] fgsm > pgm", ""),
    ]  # fmt: skip
    assert not first.is_the_papers


def test_the_summary_has_the_overview_and_the_paper_s_interface(tmp_path):
    text = write_summary(systems(tmp_path)).read_text()
    assert "## Black-box (Table 4)" in text
    assert "| system | clean | label: mean | label: worst | label: P'' agrees | noisy_label: mean |" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| AMC, local proxy | 3.4 (2.0-5.9)")]
    assert row.endswith("| 20.7 (14.8-28.2) | 21.4 (15.4-28.9) | 91.4 | 4.5 | 4,040 |"), "3.5 minutes and 1 of P'"
    assert "### mnist: black_box_label, every attack" in text
    assert "### mnist: black_box_noisy_label, every attack" not in text
    assert "[tables/table4.md](tables/table4.md)" in text
    assert "## Best order" not in text, "a sweep over systems has no orders to choose from"
    assert "Errors are those under black_box_label, the first threat model that a job was measured under." in text


def test_two_orders_of_one_defence_are_still_chosen_from(tmp_path):
    assert "## Best order" in write_summary(two_orders(tmp_path)).read_text()
    assert not (tmp_path / "tables").exists()


def test_every_number_is_a_row_of_the_csv(tmp_path):
    write_summary(systems(tmp_path))
    rows = list(csv.DictReader(io.StringIO((tmp_path / "tables" / "table4.csv").read_text())))
    assert len(rows) == 3 * 7 * (9 + 1), "interfaces, systems, columns and the agreement"
    mine = [row for row in rows if (row["threat_model"], row["system"]) == (LABEL, "AMC, local proxy")]
    (pgm,) = [row for row in mine if (row["source"], row["strength"]) == ("pgm", "paper")]
    assert (pgm["percent"], pgm["n"], pgm["proxy_percent"], pgm["paper_percent"]) == (
        "11.4286",
        "140",
        "96.4286",
        "20.8",
    )
    assert (pgm["transfer_percent"], pgm["order"], pgm["hardened_under"]) == ("7.8571", "fgsm vap eap pgm", LABEL)
    (agreement,) = [row for row in mine if row["quantity"] == "agreement"]
    assert (agreement["percent"], agreement["architecture"]) == ("91.4286", "proxy_cnn")


def test_the_tex_is_balanced_and_escaped(tmp_path):
    raw = system(("pgm",), "my_defence", by_proxy=False, names=[LABEL], with_white_box=True)
    write_system(tmp_path, 0, raw)
    write_summary(tmp_path)
    text = (tmp_path / "tables" / "table4.tex").read_text()
    assert text.count("{") == text.count("}")
    assert text.count("\\begin{table}") == text.count("\\end{table}") == 1, "the white box is another table"
    body = text[text.index("\\begin{tabular}") :]
    assert "my\\_defence pgm & \\shortstack{2.3 \\\\ {\\scriptsize 1.2-4.4}}" in body
    rows = [line for line in body.splitlines() if " & " in line]
    assert {line.count(" & ") for line in rows} == {10}
    assert all(line.endswith(r"\\") for line in rows)
    assert tex("a_b & {5} % <\\") == r"a\_b \& \{5\} \% \textless{}\textbackslash{}"


def test_the_tables_are_rebuilt_from_the_files_alone(tmp_path):
    systems(tmp_path)
    names = [f"tables/table4.{kind}" for kind in ("md", "csv", "tex")]
    write_summary(tmp_path)
    before = [(tmp_path / name).read_bytes() for name in names]
    for name in names:
        (tmp_path / name).unlink()
    write_summary(tmp_path)
    assert [(tmp_path / name).read_bytes() for name in names] == before
    assert not list(tmp_path.rglob("*.partial"))
    write_system(tmp_path, 7, system(("pgm",), "adversarial_training", by_proxy=True))
    write_summary(tmp_path)
    assert "AT[P] pgm" in (tmp_path / names[0]).read_text()


def test_where_m0_s_examples_do_more_harm_the_attack_is_called_weak(tmp_path):
    raw = system(("pgm",), "adversarial_training", by_proxy=True, names=[LABEL])
    raw["stages"][1]["evaluations"][LABEL]["transfer"]["check"]["pgm"] = wilson(140, 140)
    write_system(tmp_path, 0, raw)
    text = write_summary(tmp_path).read_text()
    assert "also the reason not to call such a row robust. Under pgm check: AT[P] pgm.\n" in text


def test_many_rows_that_m0_s_examples_harm_more_are_a_short_list(tmp_path):
    systems(tmp_path, names=[LABEL])
    for path in tmp_path.glob("*/results.json"):
        raw = json.loads(path.read_text())
        if raw["order"]:
            transfer = raw["stages"][-1]["evaluations"][LABEL]["transfer"]
            transfer["paper"] |= {"fgsm": wilson(140, 140), "vap": wilson(140, 140)}
            if raw["defence"] == "amc":
                transfer["check"]["pgm"] = wilson(140, 140)
            path.write_text(json.dumps(raw))
    assert (
        " Under fgsm, vap: all hardened rows; under pgm check: 'AMC, local proxy', 'AMC, target-hardened'.\n"
    ) in write_summary(tmp_path).read_text()


def test_what_makes_the_paper_s_numbers_not_comparable_is_said(tmp_path):
    raw = system(("pgm",), "adversarial_training", by_proxy=True, names=[LABEL])
    raw["dataset"]["limit"] = 1000
    write_system(tmp_path, 0, {**raw, "preset": "official_code"})
    text = write_summary(tmp_path).read_text()
    assert "Trained on at most 1,000 images, the paper on all: the numbers are not comparable." in text
    assert "the parameters of the preset 'official_code', the paper's those of its Table 1." in text


def test_what_the_rows_were_made_with_is_said_beside_the_paper_s_numbers(tmp_path):
    systems(tmp_path, names=[LABEL])
    raw = system(CASCADE, "amc", by_proxy=True, names=[LABEL])
    for stage in raw["stages"][2:]:
        stage["proxy"]["epochs"] = 2
        stage["epochs"] = 7
    write_system(tmp_path, 1, raw, extra=["system=1"])
    write_summary(tmp_path)
    says = (
        "Made with: 1,040 training images (no cap); 40 epochs of M0 and 7 to 20 a stage of hardening; proxies trained "
        "on 2,000 images (of 2,000 kept), P' for 10 epochs, then 2 at each later stage, P'' for 10 epochs; 140 "
        "attacked images."
    )
    for name in ("table4.md", "table4.tex"):
        text = (tmp_path / "tables" / name).read_text()
        assert "paper 20.8" in text
        assert says in text
    (row, *_) = [
        row
        for row in csv.DictReader(io.StringIO((tmp_path / "tables" / "table4.csv").read_text()))
        if row["system"] == "AMC, local proxy" and row["paper_percent"] == "20.8"
    ]
    names = ("crafted_with", "training_images", "training_limit", "epochs", "hardening_proxy_epochs")
    assert [row[name] for name in names] == ["black_box", "1040", "", "40 20 7 7 7", "10 2 2 2"]
    names = ("hardening_proxy_images", "attack_proxy_images", "attack_proxy_epochs", "n")
    assert [row[name] for name in names] == ["2000 2000 2000 2000", "2000", "10", "140"]


def test_which_rows_were_hardened_with_other_parameters_is_said(tmp_path):
    def write(number: int, order: tuple[str, ...], column: str | None, **changes: Any) -> None:
        raw = system(order, "adversarial_training", by_proxy=True, names=[LABEL])
        raw["crafting"] = {**raw["crafting"], "column": column, **changes}
        write_system(tmp_path, number, raw if column else {**raw, "crafting": None})

    write(0, ("fgsm",), "black_box")
    assert "Hardened with" not in write_summary(tmp_path).read_text()
    write(1, ("pgm",), "white_box")
    write(2, ("eap",), "black_box", attacks={"eap": {"max_iterations": 8}})
    write(3, ("vap",), None)
    text = write_summary(tmp_path).read_text()
    assert (
        "- Hardened with the parameters of the white-box column of Table 1: AT[P] pgm. The paper does not say" in text
    )
    assert (
        "- Hardened with other parameters of eap than attacked with (both in the report.md of the job): AT[P] ea"
        in text
    )
    assert "- Which column of Table 1 made the examples of training is not recorded: AT[P] vap.\n" in text


def test_a_defender_who_trained_against_the_attacker_s_own_kind_of_model_is_named(tmp_path):
    text = write_summary(systems(tmp_path / "same", names=[LABEL])).read_text()
    says = "P' and P'' are the same kind of network (proxy_cnn) and learn from the same images: "
    assert f"- {says}all rows hardened on a proxy. So the defender trained" in text
    systems(tmp_path / "other", names=[LABEL])
    raw = system(CASCADE, "amc", by_proxy=True, names=[LABEL])
    raw["proxy_data"] = {**raw["proxy_data"], "halves": True}
    write_system(tmp_path / "other", 1, raw, extra=["system=1"])
    assert f"- {says}AT[P] fgsm, AT[P] eap, AT[P] vap. So" in write_summary(tmp_path / "other").read_text()
    text = write_summary(systems(tmp_path / "lenet", names=[LABEL], architectures=["lenet"])).read_text()
    assert "the same kind of network" not in text


def test_passes_on_proxies_are_not_to_be_compared(tmp_path):
    assert "Passes of crafting on a proxy are passes of its network" in write_summary(systems(tmp_path)).read_text()


def test_interfaces_of_one_name_and_other_settings_have_a_table_each(tmp_path):
    name = "black_box_noisy_label"
    for number, settings in enumerate(({"flip": 0.1}, {"flip": 0.2}, {"flip": 0.2, "other": None})):
        raw = system(CASCADE, "amc", by_proxy=True, names=[name])
        raw["interfaces"] = {name: {"kind": "noisy_label", "settings": settings, "budget": None}}
        raw["stages"][-1]["key"] = f"{number}e" * 32
        write_system(tmp_path, number, raw)
    first, second = tables_of(tmp_path)
    assert [first.heading, second.heading] == [f"{name} (flip 0.1)", f"{name} (flip 0.2)"]
    assert [row.name for row in first.systems] == ["undefended", "AMC, local proxy, job 0"]
    assert [row.name for row in second.systems] == [
        "undefended", "AMC, local proxy, job 1", "AMC, local proxy, job 2",
    ]  # fmt: skip
    write_summary(tmp_path)
    text = (tmp_path / "tables" / "table4.md").read_text()
    assert f"### mnist: {name} (flip 0.2), every attack" in text
    assert "| system | clean | noisy_label (flip 0.1): mean |" in text
    assert (
        "| AMC, local proxy, job 0 | 3.4 (2.0-5.9) | 20.7 (14.8-28.2) | 21.4 (15.4-28.9) | 91.4 | - | - | - |" in text
    )
    rows = list(csv.DictReader(io.StringIO((tmp_path / "tables" / "table4.csv").read_text())))
    ours = "the class that the model gives, or now and then another one (noisy_label, flip {}), any number of queries"
    assert list(dict.fromkeys(row["interface"] for row in rows)) == [ours.format(0.1), ours.format(0.2)]


@pytest.mark.parametrize("what", ["budget", "kind"])
def test_another_budget_or_kind_is_another_interface(what, tmp_path):
    for number in range(2):
        raw = system(CASCADE, "amc", by_proxy=True, names=[LABEL])
        interface = {"kind": "label", "settings": {}, "budget": None}
        raw["interfaces"] = {LABEL: interface | ({what: {"budget": 5000, "kind": "my.Kind"}[what]} if number else {})}
        write_system(tmp_path, number, raw)
    other = {"budget": "budget 5,000", "kind": "my.Kind, no budget"}[what]
    assert [table.heading for table in tables_of(tmp_path)] == [f"{LABEL} (no budget)", f"{LABEL} ({other})"]
    shown = write_summary(tmp_path).read_text().count(", every attack\n")
    assert shown == {"budget": 2, "kind": 1}[what], "every interface that answers with labels"


def test_an_undefended_model_attacked_through_other_proxies_is_another_row(tmp_path):
    for number in range(3):
        raw = system((CASCADE[number],), "adversarial_training", by_proxy=True, names=[LABEL])
        raw["stages"][0]["evaluations"][LABEL]["proxies"]["proxy_cnn"]["key"] = f"{number // 2}d" * 32
        write_system(tmp_path, number, raw)
    assert names_of(tmp_path)[:2] == ["undefended, job 0", "undefended, job 2"]
    raw["stages"][0]["evaluations"][LABEL]["proxies"]["proxy_cnn"]["key"] = "0d" * 32
    raw["attacks"] = json.loads(json.dumps(raw["attacks"]).replace('"eps": 0.1', '"eps": 0.2'))
    write_system(tmp_path, 2, raw)
    assert names_of(tmp_path)[:2] == ["undefended, job 0", "undefended, job 2"], "and so it is with other parameters"


@pytest.mark.parametrize(
    ("order", "defence", "crafting", "paper"),
    [
        (CASCADE, "amc", {}, "amc"),
        (CASCADE, "amc", None, "amc"),
        (CASCADE, "amc", {"transfer": "none"}, ""),
        (CASCADE[::-1], "amc", {}, ""),
        (("fgsm", "pgm"), "amc", {}, ""),
        (("pgm",), "adversarial_training", {}, "pgm"),
        (("unseen",), "adversarial_training", {}, ""),
        (("fgsm", "pgm"), "adversarial_training", {}, ""),
    ],
)
def test_only_the_paper_s_own_rows_have_its_numbers(order, defence, crafting, paper, tmp_path):
    raw = system(order, defence, by_proxy=True, names=[LABEL])
    raw["crafting"] = None if crafting is None else {**raw["crafting"], **crafting}
    write_system(tmp_path, 0, raw)
    assert [row.paper for row in tables_of(tmp_path)[0].systems] == ["undefended", paper]


def test_a_spread_over_seeds_is_said_to_leave_out_the_attacker_s(tmp_path):
    says = "P'' has one seed (evaluation.seed) whatever the seed of the run: this spread leaves out the attacker's"
    for seed in range(2):
        write_system(tmp_path, seed, system(("pgm",), "amc", by_proxy=True, names=[LABEL]), seed=seed)
        assert (says in write_summary(tmp_path).read_text()) == (seed == 1)
    assert "P''" not in write_summary(two_orders(tmp_path / "white")).read_text()


def test_several_proxies_have_an_agreement_each(tmp_path):
    write_summary(systems(tmp_path, architectures=("proxy_cnn", "lenet")))
    text = (tmp_path / "tables" / "table4.md").read_text()
    assert cells(text.split("noisy_label, every")[0], "AT[P] eap")[-1] == "91.4<br>88.0-93.9<br>85.7<br>81.7-89.0"
    assert "| 91.4 / 85.7 |" in text


@pytest.mark.parametrize("width", [100, 120])
def test_the_console_shows_the_overview(width, tmp_path):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(sweep_table(read_entries(systems(tmp_path))))
    text = console.export_text()
    assert all(len(line) <= width for line in text.splitlines())
    assert "Black-box (Table 4) on mnist: error rates (%), strength check" in text
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "system clean mean worst agrees mean worst agrees mean worst agrees" in rows
    assert "AMC, local proxy 3.4 20.7 21.4 91.4 20.7 21.4 91.4 20.7 21.4 91.4" in rows
    assert "under black_box_label" in text.splitlines()[0]


def test_a_job_whose_last_stage_was_not_measured_has_no_rates(tmp_path):
    raw = system(("pgm",), "adversarial_training", by_proxy=True)
    raw["stages"][-1]["evaluations"] = {}
    folder = write_system(tmp_path, 0, raw)
    text = write_summary(tmp_path).read_text()
    assert names_of(tmp_path) == ["undefended"]
    assert "| fgsm | 0 | finished | - | - |" in text.replace("pgm", "fgsm")
    assert json.loads((folder / "results.json").read_text())["stages"][-1]["evaluations"] == {}
