"""The console table: exact cells, notes that say what may be claimed, and nothing cut off at 80 columns."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from amc_lightning.report import console_table, parse_results, read_results, summary_line

MakeRun = Callable[..., Path]


def _print(folder: Path, width: int, *, terminal: bool = False) -> list[str]:
    console = Console(width=width, force_terminal=terminal, no_color=True)
    with console.capture() as capture:
        console.print(console_table(read_results(folder)))
    return [line.rstrip() for line in Text.from_ansi(capture.get()).plain.splitlines()]


def test_the_whole_table_at_160_columns(make_run: MakeRun) -> None:
    lines = _print(make_run(), 160, terminal=True)
    assert lines[0] == "Error rates (%), lower is better: amc on digits"
    rows = [" ".join(line.split()) for line in lines]
    assert rows[1] == "clean fgsm vap eap eap pgm pgm mean mean worst worst train passes"
    assert rows[2] == "stage no limit l1<=10 paper check paper check paper check minutes per image"
    assert rows[4] == "M0 2.9 92.1 86.4 100.0 98.6 100.0 100.0 94.6 94.6 100.0 100.0 0.2 40"
    assert rows[5] == (
        "1.6-5.2 86.5-95.6 79.8-91.1 97.3-100 94.9-99.6 97.3-100 97.3-100 89.6-97.3 89.6-97.3 97.3-100 97.3-100"
    )
    assert rows[12] == "4 pgm 3.4 17.1 20.7 97.9 27.1 23.6 32.9 39.8 42.1 37.1 43.6 1.2 1,600"
    assert rows[13].startswith("2.0-5.9 11.8-24.2 14.8-28.2 ")


@pytest.mark.parametrize("terminal", [True, False])
def test_80_columns_hold_every_number_in_two_blocks(make_run: MakeRun, terminal: bool) -> None:
    folder = make_run()
    lines = _print(folder, 80, terminal=terminal)
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("stage ") for line in lines) == 2
    wide = {word for line in _print(folder, 160) for word in line.split() if "\u2500" not in word}
    assert wide <= {word for line in lines for word in line.split()}
    assert not any("…" in line for line in lines)


def test_one_block_at_120_columns(make_run: MakeRun) -> None:
    lines = _print(make_run(), 120)
    assert max(map(len, lines)) <= 120
    assert sum(line.startswith("stage ") for line in lines) == 1


def test_a_long_attack_name_at_40_columns(make_run: MakeRun) -> None:
    folder = make_run(order=("pgm",), evaluated=("pgm", "fgsm"))
    text = (folder / "results.json").read_text().replace('"fgsm"', '"my_very_own_attack"')
    (folder / "results.json").write_text(text)
    lines = _print(folder, 40)
    assert max(map(len, lines)) <= 40
    assert any("my_very_own_attack" in line for line in lines)


def _text(folder: Path) -> str:
    return "\n".join(_print(folder, 400))


def test_the_notes_say_what_may_be_claimed(make_run: MakeRun) -> None:
    text = _text(make_run())
    assert "clean: test split, n = 350. Attacks, mean, worst: attack split, n = 140." in text
    assert "check: a stronger pgm; the other attacks are the same in both. Only check may be called robust." in text
    assert "mean: over fgsm, vap, eap without limit, pgm." in text
    assert "worst: wrong under at least one of clean, fgsm, vap, eap l1<=10, pgm." in text
    (line,) = [line for line in text.splitlines() if line.startswith("Not shown")]
    assert line == (
        "Not shown: other seeds (one run, seed 0); black-box and gradient-free attacks, or any attack but fgsm, vap, "
        "eap, pgm. eap without limit is a search that can fool any model; its error at l1<=10 is a lower bound."
    )
    assert "Unverified" not in text
    assert "not finished" not in text


@pytest.mark.parametrize(
    ("name", "parameters", "note"),
    [
        ("unseen", {"eps": 0.2}, "black-box and gradient-free attacks, or any attack but pgm, unseen."),
        ("noise", {"eps": 0.2}, "black-box attacks and gradient-free searches, or any attack but pgm, noise."),
        ("square", {"n_queries": 9}, "attacks transferred from another model, or any attack but pgm, square."),
        ("autoattack", {"n_queries": 9}, "attacks transferred from another model, or any attack but pgm, autoattack."),
        ("my_square", {"n_queries": 9}, "attacks transferred from another model, or any attack but pgm, my_square."),
    ],
)
def test_what_ran_is_not_said_to_be_missing(
    name: str, parameters: dict[str, object], note: str, make_run: MakeRun
) -> None:
    folder = make_run(order=("pgm",), evaluated=("pgm", "unseen"))
    raw = json.loads((folder / "results.json").read_text().replace('"unseen"', f'"{name}"'))
    for attacks in raw["attacks"]["white_box"].values():
        attacks[name] = parameters
    (folder / "results.json").write_text(json.dumps(raw))
    (line,) = [line for line in _text(folder).splitlines() if line.startswith("Not shown")]
    assert line.startswith(f"Not shown: other seeds (one run, seed 0); {note}")


def test_without_a_stronger_check_nothing_may_be_called_robust(make_run: MakeRun) -> None:
    text = _text(make_run(order=("fgsm",), evaluated=("fgsm", "unseen")))
    assert "paper and check are the same attacks here, so none of these rates may be called robust." in text
    assert "eap" not in text


def test_unverified_data_and_a_stopped_run_are_said(make_run: MakeRun) -> None:
    folder = make_run(status="stopped: loss is NaN at step 12")
    raw = json.loads((folder / "results.json").read_text())
    raw["dataset"]["verified"] = False
    (folder / "results.json").write_text(json.dumps(raw))
    text = _text(folder)
    assert "The run is not finished (stopped: loss is NaN at step 12): later stages are missing." in text
    assert "Unverified data: the files read for 'digits' are not the official ones (checksums differ)." in text


def test_the_summary_line(make_run: MakeRun) -> None:
    assert summary_line(read_results(make_run())) == (
        "Worst case (check): 100.0 % (M0) -> 43.6 % (4 pgm), 95 % interval 35.6-51.8, n = 140; "
        "clean: 2.9 % -> 3.4 %, 95 % interval 2.0-5.9, n = 350."
    )


def test_one_stage_no_attack_and_no_stage(make_run: MakeRun) -> None:
    alone = make_run(order=())
    assert summary_line(read_results(alone)).startswith("Worst case (check): 100.0 % (M0), 95 % interval 97.3-100")
    assert sum(line.startswith("M0") for line in _print(alone, 120)) == 1
    unattacked = make_run(order=(), evaluated=())
    assert summary_line(read_results(unattacked)) == "Clean: 2.9 %, 95 % interval 1.6-5.2, n = 350."
    assert "No attack was evaluated: nothing here says how robust a model is." in _text(unattacked)
    raw = json.loads((alone / "results.json").read_text())
    empty = parse_results({**raw, "stages": [], "status": "stopped: KeyboardInterrupt"})
    assert summary_line(empty) == "No stage has been measured (stopped: KeyboardInterrupt)."
    console = Console(width=80)
    with console.capture() as capture:
        console.print(console_table(empty))
    assert "No stage has been measured" in capture.get()
