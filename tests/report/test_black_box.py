"""Runs measured under black-box threat models: read, tabled, drawn, and said to be what they are and no more."""

import json
import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from amc_lightning.errors import UserError
from amc_lightning.report import console_table, parse_results, read_results, summary_line, write_all, write_report
from amc_lightning.report.proxy_wording import interface_text
from amc_lightning.report.record import Interface, Results
from amc_lightning.report.wording import not_shown
from tests.report.conftest import as_format_1, black_box, hardened_by_proxy, results, under_black_box, wilson
from tests.report.test_markdown import _tables

MakeRun = Callable[..., Path]
Raw = dict[str, Any]
ALL = ("fgsm", "vap", "eap", "pgm")
LABEL = "black_box_label"


def _raw(order: tuple[str, ...] = ALL, **kwargs: Any) -> Raw:
    return under_black_box(results(order, ALL, (1, 16, 16)), **kwargs)


def _parsed(**kwargs: Any) -> Results:
    return parse_results(_raw(**kwargs))


def test_an_evaluation_for_each_threat_model_in_the_order_of_the_header() -> None:
    raw = _raw(with_white_box=True)
    raw["stages"][0]["evaluations"] = dict(reversed(raw["stages"][0]["evaluations"].items()))
    found = parse_results(raw)
    names = ["white_box", LABEL, "black_box_noisy_label", "black_box_probabilities"]
    assert list(found.stages[0].evaluations) == names
    assert found.stages[0].evaluation is found.stages[0].evaluations["white_box"]
    assert [view.is_black_box for view in found.each()] == [False, True, True, True]
    assert found.interfaces["black_box_noisy_label"] == Interface("noisy_label", {"flip": 0.1}, 2000)
    assert found.proxy_data is not None
    assert (found.proxy_data.overlapping, found.proxy_data.kept) == (12, 2000)


def test_a_black_box_record_has_its_proxies_and_the_transfer() -> None:
    stage = parse_results(hardened_by_proxy(_raw(architectures=("proxy_cnn", "lenet")))).stages[4]
    evaluation = stage.evaluation
    assert list(evaluation.proxies) == ["proxy_cnn", "lenet"]
    proxy = evaluation.proxies["proxy_cnn"]
    assert (proxy.images, proxy.queries, proxy.epochs, proxy.interface) == (2000, 2000, 10, LABEL)
    assert proxy.agreement is not None
    assert (proxy.agreement.agree, proxy.agreement.n) == (320, 350)
    rate = evaluation.check["pgm"]
    assert rate.proxy is not None
    assert (rate.wrong, rate.proxy.wrong, rate.architecture) == (23, 135, "lenet")
    assert evaluation.transfer("check")["pgm"].wrong == 15
    assert stage.proxy is not None
    assert (stage.proxy.architecture, stage.proxy.from_store) == ("proxy_cnn", False)


def test_an_interface_that_only_the_hardening_used_is_no_attack_that_was_measured() -> None:
    raw = results(ALL, ALL, (1, 16, 16))
    raw["interfaces"] = _raw(names=(LABEL,))["interfaces"]
    found = parse_results({**hardened_by_proxy(raw), "threat_models": ["white_box"]})
    assert found.hardening == Interface("label", {}, None)
    assert found.interfaces == {}
    assert "black-box and gradient-free attacks" in not_shown(found)


def test_what_may_be_null_may_be_null() -> None:
    raw = hardened_by_proxy(_raw())
    for stage in raw["stages"]:
        stage["evaluations"][LABEL]["transfer"] = None
        if stage["proxy"]:
            stage["proxy"] |= {"clean": None, "agreement": None}
    found = parse_results({**raw, "proxy_data": None})
    assert found.stages[0].evaluation.transfer("paper") == {}
    assert found.stages[1].proxy is not None
    assert found.stages[1].proxy.agreement is None
    assert found.proxy_data is None


def test_a_file_of_the_first_format_reads_as_before() -> None:
    raw = results(ALL, ALL, (1, 16, 16))
    new, old = parse_results(raw), parse_results(as_format_1(raw))
    assert old == replace(new, crafting=None)
    assert old.threat_models == ("white_box",)


def _set(raw: Raw, path: str, value: object) -> Raw:
    *parents, last = path.split("/")
    node: Any = raw
    for key in parents:
        node = node[int(key) if isinstance(node, list) else key]
    if value is KeyError:
        del node[last]
    else:
        node[last] = value
    return raw


AT = f"stages/1/evaluations/{LABEL}"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("threat_models", [], r"results.json: threat_models: \[\] is not .*; expected: at least one threat model\."),
        ("stages/1/evaluations", KeyError, r"stages\[1\].evaluations: None is missing; expected: an object\."),
        (
            "stages/1/evaluations/grey",
            {},
            r"evaluations.grey: {} is not .*; expected: nothing: threat_models are black",
        ),
        (f"{AT}/proxies/proxy_cnn/queries", KeyError, r"proxies.proxy_cnn.queries: None is missing; .*a finite number"),
        (f"{AT}/proxies/proxy_cnn/agreement/share", "x", r"proxy_cnn.agreement.share: 'x' is not .*a finite number"),
        (f"{AT}/transfer/check", KeyError, r"black_box_label.transfer.check: None is missing; expected: an object"),
        (f"{AT}/check/pgm/proxy", 3, r"check.pgm.proxy: 3 is not what this field holds; expected: an object"),
        (f"interfaces/{LABEL}/kind", KeyError, r"interfaces.black_box_label.kind: None is missing; expected: a text"),
        (f"interfaces/{LABEL}", KeyError, r"interfaces.black_box_label: None is missing; .*attacks were made on prox"),
        ("proxy_data/overlapping", "many", r"proxy_data.overlapping: 'many' is not .*; expected: a finite number"),
        ("stages/1/proxy/interface", KeyError, r"stages\[1\].proxy.interface: None is missing; expected: a text"),
        ("crafting", [], r"results.json: crafting: \[\] is not what this field holds; expected: an object"),
        ("crafting/column", "grey_box", r"crafting.column: 'grey_box' is not .*; expected: white_box or black_box"),
        ("crafting/column", KeyError, r"crafting.column: None is missing; expected: white_box or black_box"),
        ("crafting/attacks/pgm", 3, r"crafting.attacks.pgm: 3 is not what this field holds; expected: an object"),
        (
            "crafting/epochs",
            [20, 20],
            r"crafting.epochs: \[20, 20\] is not .*; expected: 4 whole numbers, one for each",
        ),
        ("crafting/epochs", [2, 2, 2, 0.5], r"crafting.epochs: \[2, 2, 2, 0.5\] is not .*; expected: 4 whole numbers"),
        ("crafting/epochs", [2, 2, 2, True], r"crafting.epochs: \[2, 2, 2, True\] is not .*; expected: 4 whole numb"),
        ("crafting/transfer", "child", r"crafting.transfer: 'child' is not .*; expected: parent or none"),
    ],
)
def test_a_bad_field_is_named(path: str, value: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_results(_set(deepcopy(hardened_by_proxy(_raw())), path, value))


def test_the_report_has_a_section_for_each_threat_model(make_run: MakeRun) -> None:
    text = write_report(make_run(also=partial(under_black_box, with_white_box=True))).read_text()
    tables = _tables(text)
    assert [line for line in text.splitlines() if line.startswith("## Error rates")] == [
        "## Error rates (%), lower is better: white_box",
        "## Error rates (%), lower is better: black_box_label",
        "## Error rates (%), lower is better: black_box_noisy_label",
        "## Error rates (%), lower is better: black_box_probabilities",
    ]
    rates = tables["Error rates (%), lower is better: black_box_label"]
    last = dict(zip(rates["model"], rates["stage 4 (pgm)"], strict=True))
    assert last["pgm check"] == "**16.4**<br>11.2-23.4<br>23 of 140"
    assert "(noisy_label, flip 0.1), at most 2,000 queries; here 2,000 a proxy, on 2,000 images." in text
    assert text.count("- Not shown: ") == 1
    assert text.startswith("# digits_amc: amc on digits\n\n- white_box: Worst case (check): 100.0 % (M0) -> 43.6 %")
    assert "\n- black_box_label: Worst case (check): 50.0 % (M0) -> 21.4 % (4 pgm)" in text


def test_the_proxy_s_own_error_and_the_transfer_stand_beside_the_model_s(make_run: MakeRun) -> None:
    tables = _tables(write_report(make_run(also=under_black_box)).read_text())
    strength = tables["How strong these attacks were: black_box_label"]
    assert strength["model"] == ["attack on P''", "model wrong", "P'' wrong", "M0's examples: model wrong"]
    assert strength["stage 4 (pgm)/pgm check"] == [
        "pgm check", "16.4 (11.2-23.4)", "96.4 (91.9-98.5)", "10.7 (6.6-16.9)"
    ]  # fmt: skip
    proxies = tables["Proxies P'': black_box_label"]
    assert proxies["stage 4 (pgm)"] == [
        "proxy_cnn", "2,000", "2,000", "10", "0.2", "10", "8.6 (6.1-12.0)", "91.4 (88.0-93.9), 320 of 350"
    ]  # fmt: skip


def test_of_several_architectures_the_most_harmful_is_named(make_run: MakeRun) -> None:
    also = partial(under_black_box, names=[LABEL], architectures=("proxy_cnn", "lenet"))
    tables = _tables(write_report(make_run(also=also)).read_text())
    strength = tables["How strong these attacks were: black_box_label"]
    assert (strength["model"][-1], strength["stage 1 (fgsm)"][-1]) == ("made on", "lenet")
    assert tables["Proxies P'': black_box_label"]["stage 1 (fgsm)/lenet"][-1] == "85.7 (81.7-89.0), 300 of 350"


def test_a_weak_proxy_is_not_called_a_strong_defence(make_run: MakeRun) -> None:
    folder = make_run(also=partial(under_black_box, names=[LABEL]))
    text = write_report(folder).read_text()
    assert "makes a weak attack, not a strong defence. eap without limit stops at the least change that fools" in text
    assert "Examples made for M0" not in text
    raw = json.loads((folder / "results.json").read_text())
    raw["stages"][1]["evaluations"][LABEL]["transfer"]["paper"]["fgsm"] = wilson(139, 140)
    (folder / "results.json").write_text(json.dumps(raw))
    text = write_report(folder).read_text()
    assert (
        "- Examples made for M0 with its own gradients did more harm than those of P'' (interval above interval); they "
        "need M0's weights, which a black-box attacker does not have, so they are a reference beyond the threat model, "
        "but also the reason not to call such a row robust. Under fgsm: 1 fgsm.\n"
    ) in text


def test_where_m0_s_examples_do_more_harm_everywhere_no_row_is_listed(make_run: MakeRun) -> None:
    def worse(raw: Raw) -> Raw:
        raw = under_black_box(raw, names=[LABEL])
        for stage in raw["stages"][1:]:
            transfer = stage["evaluations"][LABEL]["transfer"]
            transfer["paper"] |= {"fgsm": wilson(139, 140), "eap@budget": wilson(139, 140)}
            if stage["index"] > 2:
                transfer["check"]["pgm"] = wilson(140, 140)
        return raw

    folder = make_run(also=worse)
    says = "Under fgsm, eap l1<=10: all hardened rows; under pgm check: 3 eap, 4 pgm."
    assert says in write_report(folder).read_text()
    assert says in " ".join(" ".join(_console(folder, 100)).split())


def test_the_same_network_on_the_same_images_for_both_sides_is_said(make_run: MakeRun) -> None:
    def text(architectures: tuple[str, ...] = ("proxy_cnn",), **changes: Any) -> str:
        def also(raw: Raw) -> Raw:
            raw = hardened_by_proxy(under_black_box(raw, names=[LABEL], architectures=architectures))
            return {**raw, "proxy_data": {**raw["proxy_data"], **changes}}

        return write_report(make_run(also=also)).read_text()

    says = (
        "- P' and P'' are the same kind of network (proxy_cnn) and learn from the same images. So the defender trained "
        "against the attacker's own kind of model, as in the paper, which is generous to it; proxy.halves=true and "
        "evaluation.proxies=[...] change that.\n"
    )
    assert text().count(says) == 1
    for other in (text(halves=True), text(("lenet",)), text(("proxy_cnn", "lenet"))):
        assert "the same kind of network" not in other
    assert "the same kind of network" not in write_report(make_run(also=under_black_box)).read_text(), "no P'"


def test_the_proxy_s_own_error_within_a_budget_is_shown(make_run: MakeRun) -> None:
    def also(raw: Raw) -> Raw:
        raw = under_black_box(raw, names=[LABEL], architectures=("proxy_cnn", "lenet"))
        rate = raw["stages"][4]["evaluations"][LABEL]["paper"]["eap@budget"]
        rate |= {"architecture": "proxy_cnn", "proxy": wilson(70, 140)}
        return raw

    tables = _tables(write_report(make_run(also=also)).read_text())
    row = tables["How strong these attacks were: black_box_label"]["stage 4 (pgm)/eap l1<=10"]
    assert row == ["eap l1<=10", "13.6 (8.9-20.2)", "50.0 (41.8-58.2)", "8.6 (5.0-14.4)", "proxy_cnn"]


def test_how_training_examples_were_crafted_is_said(make_run: MakeRun) -> None:
    def other(raw: Raw) -> Raw:
        raw["crafting"]["attacks"]["pgm"]["nb_iter"] = 7
        raw["crafting"]["attacks"]["unseen"] = {"eps": 0.2}
        return {**raw, "crafting": {**raw["crafting"], "epochs": [3, 4, 5, 6], "transfer": "none"}}

    tables = _tables(write_report(make_run(also=other)).read_text())
    facts = tables["What was run"]
    assert facts["training examples crafted with"] == [
        "the parameters of the white-box column of Table 1; some differ from those evaluated, see the attack parameters"
    ]
    assert (facts["epochs of the stages"], facts["a stage starts from"]) == (["3, 4, 5, 6"], ["M0"])
    parameters = tables["Attack parameters"]
    assert parameters["attack"] == ["paper", "check", "in training"]
    assert parameters["fgsm"][2] == "as paper"
    assert "nb_iter: 7<br>" in parameters["pgm"][2]
    assert parameters["unseen"] == ["-", "-", "eps: 0.2"]


def test_training_as_evaluated_needs_no_column_and_an_old_file_says_that_it_does_not_know(make_run: MakeRun) -> None:
    tables = _tables(write_report(make_run(preset="official_code")).read_text())
    assert tables["Attack parameters"]["attack"] == ["paper", "check"]
    facts = tables["What was run"]
    assert facts["training examples crafted with"] == [
        "the parameters of the white-box column of the preset 'official_code'"
    ]
    assert facts["a stage starts from"] == ["the stage before"]
    folder = make_run()
    raw = json.loads((folder / "results.json").read_text())
    del raw["crafting"]
    (folder / "results.json").write_text(json.dumps(raw))
    assert read_results(folder).crafting is None
    facts = _tables(write_report(folder).read_text())["What was run"]
    assert facts["training examples crafted with"] == ["not recorded"]
    assert "a stage starts from" not in facts
    facts = _tables(write_report(make_run(order=())).read_text())["What was run"]
    assert facts["training examples crafted with"] == ["none were made"]


def test_the_costs_of_local_proxies_and_the_facts_about_their_data(make_run: MakeRun) -> None:
    tables = _tables(write_report(make_run(also=lambda raw: hardened_by_proxy(under_black_box(raw)))).read_text())
    costs = tables["What training cost"]
    assert costs["model"][4:6] == ["P': queries", "P': minutes"]
    assert costs["M0 (undefended)"][4:6] == ["0", "0.0"]
    assert costs["all"][4:6] == ["8,000", "1.0"]
    local = tables["Local proxies P' of the hardening"]
    assert local["P' of stage 2 (vap)"] == [
        "proxy_cnn", "2,000", "2,000", "10", "0.2", "10", "11.4 (8.5-15.2)", "85.7 (81.7-89.0), 300 of 350", LABEL,
        "`cdcdcdcdcdcd`",
    ]  # fmt: skip
    facts = tables["What was run"]
    assert facts["hardened under"] == ["black_box_label: the class that the model gives (label), any number of queries"]
    assert facts["measured under"][0].startswith("black_box_label: the class that the model gives (label), any number")
    assert facts["proxy data"] == [
        "deformed_digits: 2,100 read, 12 removed as they overlap the target's data, 88 removed as repeated, 2,000 "
        "kept; P' and P'' learn from the same images"
    ]
    assert "Attack parameters: black_box_label, black_box_noisy_label, black_box_probabilities" in tables


def test_a_stage_that_was_not_measured_has_costs_and_no_errors(make_run: MakeRun) -> None:
    def ends(raw: Raw) -> Raw:
        for stage in raw["stages"][1:-1]:
            stage["evaluations"] = {}
        return raw

    folder = make_run(also=ends)
    tables = _tables(write_all(folder).read_text())
    assert list(tables["Error rates (%), lower is better"]) == ["model", "---", "M0 (undefended)", "stage 4 (pgm)"]
    assert "stage 2 (vap)" not in tables["Distance at which eap succeeds"]
    assert tables["What training cost"]["stage 2 (vap)"][0] == "20"
    assert summary_line(read_results(folder)).startswith("Worst case (check): 100.0 % (M0) -> 43.6 % (4 pgm)")
    lines = _console(folder, 120)
    assert [line.split()[0] for line in lines if re.match(r"M0|\d \w", line)] == ["M0", "4"]


def test_nothing_measured_at_all_is_said(make_run: MakeRun) -> None:
    def none(raw: Raw) -> Raw:
        return {**raw, "stages": [{**stage, "evaluations": {}} for stage in raw["stages"]]}

    folder = make_run(also=none)
    text = write_all(folder).read_text()
    assert "No stage has been measured (finished)." in text
    assert "## Error rates" not in text
    assert "## What training cost" in text
    assert not (folder / "figures" / "error_rates.png").exists()


@pytest.mark.slow
def test_one_heat_map_for_each_threat_model(make_run: MakeRun) -> None:
    names = (LABEL, "my/own")
    folder = make_run(also=partial(under_black_box, names=names, with_white_box=True))
    linked = re.findall(r"!\[.+?\]\((.+?)\)", write_all(folder).read_text())
    assert linked == [
        "figures/error_rates.png", "figures/error_rates_black_box_label.png", "figures/error_rates_my_own.png",
        "figures/examples.png", "figures/training_curves.png",
    ]  # fmt: skip
    assert all((folder / path).is_file() for path in linked)


def _console(folder: Path, width: int) -> list[str]:
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        console.print(console_table(read_results(folder)))
    return [line.rstrip() for line in capture.get().splitlines()]


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_console_shows_one_table_for_each_threat_model(make_run: MakeRun, width: int) -> None:
    lines = _console(make_run(also=partial(under_black_box, with_white_box=True)), width)
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)
    titles = [line for line in lines if line.startswith("Error rates")]
    assert titles == [
        f"Error rates (%), lower is better: amc on digits under {name}"
        for name in ("white_box", LABEL, "black_box_noisy_label", "black_box_probabilities")
    ]
    text = " ".join(" ".join(lines).split())
    assert text.count("P'' 96.4") == 3 * 5 * 6, "three interfaces, five models, six attack columns"
    assert "P'' agrees: share of the test split on which P'' gives the model's answer" in text
    assert text.count("Not shown: ") == 1
    assert any(line.split()[:2] == ["M0", "47.1"] and "91.4" in line for line in lines) or width == 120


@pytest.mark.parametrize(
    ("names", "with_white_box", "says"),
    [
        ((), True, "black-box and gradient-free attacks, or any attack but"),
        ((LABEL,), True, "(one run, seed 0); gradient-free attacks, or any attack but"),
        ((LABEL,), False, "attacks with the model's own gradients, searches by queries to the model itself, or any at"),
    ],
)
def test_what_was_evaluated_is_not_said_to_be_missing(names: tuple[str, ...], with_white_box: bool, says: str) -> None:
    text = not_shown(_parsed(names=names, with_white_box=with_white_box))
    assert says in text
    assert ("eap without limit is a search that can fool any model" in text) == with_white_box


@pytest.mark.parametrize(
    ("name", "says"),
    [("square", "searches by queries through an interface, or any"), ("noise", "gradient-free searches, or any")],
)
def test_what_is_missing_beside_a_black_box(name: str, says: str) -> None:
    raw = json.loads(json.dumps(_raw(names=(LABEL,), with_white_box=True)).replace('"vap"', f'"{name}"'))
    assert f"(one run, seed 0); {says}" in not_shown(parse_results(raw))


@pytest.mark.parametrize(
    ("interface", "text"),
    [
        (Interface("label", {}, 500), "the class that the model gives (label), at most 500 queries"),
        (
            Interface("probabilities", {"decimals": 2, "top": None}, None),
            "the probabilities of all classes (probabilities, decimals 2), any number of queries",
        ),
        (Interface("my.pkg.Rank", {}, None), "`my.pkg.Rank`, any number of queries"),
        (Interface("my.pkg.Rank", {"k": 3}, None), "`my.pkg.Rank` (k 3), any number of queries"),
    ],
)
def test_an_interface_in_words(interface: Interface, text: str) -> None:
    assert interface_text(interface) == text


def test_parameters_that_differ_between_threat_models_have_a_table_each(make_run: MakeRun) -> None:
    def also(raw: Raw) -> Raw:
        raw = under_black_box(raw, with_white_box=True)
        stronger = json.loads(json.dumps(raw["attacks"]["white_box"]).replace('"nb_iter": 15', '"nb_iter": 20'))
        return {**raw, "attacks": {n: raw["attacks"][n] if n == "white_box" else stronger for n in raw["attacks"]}}

    tables = _tables(write_report(make_run(also=also)).read_text())
    assert "nb_iter: 15" in tables["Attack parameters: white_box"]["pgm"][0]
    black = "Attack parameters: black_box_label, black_box_noisy_label, black_box_probabilities"
    assert "nb_iter: 20" in tables[black]["pgm"][0]


def test_a_made_up_black_box_is_half_as_bad() -> None:
    white = results((), ("pgm",), (1, 16, 16))["stages"][0]["evaluations"]["white_box"]
    assert black_box(white)["paper"]["pgm"]["wrong"] == 70
