"""Forgetting: both cascades with every stage, or nothing."""

import pytest

from amc_lightning.paper.forgetting import find_pairs, forgetting_text, write_forgetting
from amc_lightning.paper.runs import Runs
from tests.paper.claims_fixture import evaluation, keys, make_run, stage

ORDER = ("fgsm", "eap")
WITH, WITHOUT = "amc_target_hardened", "amc_no_replay"
ERRORS = {
    WITH: ({"fgsm": 800, "eap": 900, "eap@budget": 500}, {"fgsm": 100, "eap": 800, "eap@budget": 400},
           {"fgsm": 120, "eap": 700, "eap@budget": 200}),
    WITHOUT: ({"fgsm": 800, "eap": 900, "eap@budget": 500}, {"fgsm": 100, "eap": 800, "eap@budget": 400},
              {"fgsm": 450, "eap": 600, "eap@budget": 150}),
}  # fmt: skip


def cascade(folder, system, *, measured=(0, 1, 2), order=ORDER, **kwargs):
    errors, arrays, stages = ERRORS[system], {}, []
    for index, name in enumerate(("undefended", *order)):
        arrays |= keys(index, errors[index])
        found = {"white_box": evaluation(errors[index])} if index in measured else {}
        stages.append(stage(index, name, evaluations=found))
    return make_run(folder, system, arrays, order=order, stages=tuple(stages), **kwargs)


@pytest.fixture
def pair(tmp_path):
    return cascade(tmp_path, WITH), cascade(tmp_path, WITHOUT)


def test_the_table_has_every_stage_and_the_change_since_the_attack_s_own(pair):
    text = forgetting_text(Runs(pair))
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert lines[0] == "| cascade | attack | after M0 | after 1 | after 2 | since its stage |"
    cells = {tuple(line.split(" | ")[:2]): line.strip("| ").split(" | ")[2:] for line in lines[2:]}
    kept = cells["| AMC, with replay", "fgsm"]
    assert [cell.split()[0] for cell in kept] == ["80.0", "10.0", "12.0", "+2.0"]
    lost = cells["| without replay", "fgsm"]
    assert [cell.split()[0] for cell in lost] == ["80.0", "10.0", "45.0", "+35.0"]
    low, high = (float(part) for part in lost[-1].split("(")[1].strip(") ").split(" to "))
    assert 31 < low < 33 < 37 < high < 39  # 350 rows of 1,000: half-width 3.0 points
    assert cells["| without replay", "eap@budget"] == ["50.0 (48.0-52.0)", "40.0 (38.0-42.0)", "15.0 (13.0-17.0)", "-"]


def test_the_picture(pair, tmp_path):
    path = write_forgetting(Runs(pair), tmp_path / "out")
    assert path == tmp_path / "out" / "figures" / "forgetting.png"
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_lowest_seed_that_both_have(tmp_path):
    runs = [cascade(tmp_path, WITH, seed=seed) for seed in (0, 1, 2)]
    runs += [cascade(tmp_path, WITHOUT, seed=seed) for seed in (2, 1)]
    (found,) = find_pairs(Runs(tuple(runs)))
    assert (found.replay.seed, found.no_replay.seed) == (1, 1)


@pytest.mark.parametrize("case", ["alone", "ends only", "other order", "other seed"])
def test_nothing_where_one_of_them_is_not_whole(tmp_path, case):
    runs = [cascade(tmp_path, WITH)]
    if case == "ends only":
        runs.append(cascade(tmp_path, WITHOUT, measured=(0, 2)))
    elif case == "other order":
        runs.append(cascade(tmp_path, WITHOUT, order=ORDER[::-1]))
    elif case == "other seed":
        runs.append(cascade(tmp_path, WITHOUT, seed=5))
    assert find_pairs(Runs(tuple(runs))) == []
    assert forgetting_text(Runs(tuple(runs))) == ""
    assert write_forgetting(Runs(tuple(runs)), tmp_path / "out") is None
    assert not (tmp_path / "out").exists()
