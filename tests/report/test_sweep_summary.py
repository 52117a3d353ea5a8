"""The summary of a sweep: its text, its data, its picture, its console table; every number worked out by hand."""

import io
import json
from itertools import permutations

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image
from rich.console import Console

from amc_lightning.report.sweep_comparison import choices, order_rows, sweep_columns
from amc_lightning.report.sweep_heat_map import draw_orders, order_map
from amc_lightning.report.sweep_reading import read_entries
from amc_lightning.report.sweep_summary import write_summary
from amc_lightning.report.sweep_table import sweep_table
from tests.report.sweep_folder import two_orders, write_job

SOME = {"clean": 2, "fgsm": 5, "pgm": 15, "pgm_check": 25, "worst": 20, "worst_check": 30}


def summary(sweep):
    return write_summary(sweep).read_text()


def picture_of(sweep):
    entries = read_entries(sweep)
    rows = order_rows(entries)
    return order_map(rows, sweep_columns(entries), choices(rows))


def test_every_job_has_its_row(tmp_path):
    """25 of 100 wrong: Wilson's interval is 17.5 to 34.3."""
    lines = summary(two_orders(tmp_path, total=4)).splitlines()
    assert lines[0] == "# Sweep digits_amc"
    assert "4 jobs: 4 finished, 0 failed." in lines
    head = next(i for i, line in enumerate(lines) if line.startswith("| job |"))
    assert lines[head] == (
        "| job | overrides | order | seed | status | validation mean | clean | fgsm | pgm paper | pgm check "
        "| mean paper | mean check | worst paper | worst check |"
    )
    assert lines[head + 2] == (
        "| [0](0) | `cascade.order=[fgsm,pgm] seed=0` | fgsm > pgm | 0 | finished | 18.0 | 2.0 | 10.0 | 20.0 | 30.0 "
        "| 15.0 | 20.0 | 25.0 (17.5-34.3) | 35.0 (26.4-44.7) |"
    )
    assert len([line for line in lines if line.startswith("| [")]) == 4


def test_the_spread_over_seeds_is_shown_and_said_to_mean_little(tmp_path):
    """Clean errors 2 and 4 %, means 15 and 19, worst 25 and 29: sd = 2 / sqrt(2) or 4 / sqrt(2)."""
    text = summary(two_orders(tmp_path))
    assert (
        "| fgsm > pgm | 0, 1 | 3.0 +- 1.4<br>2.0-4.0 | 17.0 +- 2.8<br>15.0-19.0 | 22.0 +- 2.8<br>20.0-24.0 "
        "| 27.0 +- 2.8<br>25.0-29.0 | 37.0 +- 2.8<br>35.0-39.0 |"
    ) in text
    assert "| pgm > fgsm | 0, 1 | 3.0 +- 0.0<br>3.0-3.0 |" in text
    assert "**With fewer than 3 seeds, a spread means little.**" in text


def test_three_seeds_are_not_belittled_and_one_has_no_spread(tmp_path):
    for seed in range(3):
        write_job(tmp_path / "three", seed, ("fgsm", "pgm"), seed=seed, **SOME)
    write_job(tmp_path / "one", 0, ("fgsm", "pgm"), **SOME)
    assert "means little" not in summary(tmp_path / "three")
    assert "No order has been measured with two seeds or more." in summary(tmp_path / "one")


def test_the_best_order_is_named_with_its_runner_up_and_its_doubt(tmp_path):
    text = summary(two_orders(tmp_path))
    assert "Best of 2 orders of fgsm, pgm: **pgm > fgsm**, with 19.5 % validation error" in text
    assert "Runner-up: fgsm > pgm, 0.5 points behind. That is no more than the 8.0 points" in text
    assert "The attack and test splits, which every other number here comes from, choose nothing." in text


def test_failed_jobs_are_named_with_what_to_do(tmp_path):
    two_orders(tmp_path, total=6)
    write_job(tmp_path, 4, ("nosuch",), exit_status=2, message="cascade.order: 'nosuch' is not a known attack", total=6)
    text = summary(tmp_path)
    assert "5 of 6 jobs have ended: 4 finished, 1 failed." in text
    assert "- **job 4 (cascade.order=[nosuch] seed=0)**: cascade.order: 'nosuch' is not a known attack" in text
    assert "run the same command again: finished stages are kept, and only what is missing is done." in text
    assert "| `cascade.order=[nosuch] seed=0` | nosuch | 0 | failed | - | - |" in text


def test_a_sweep_that_failed_as_a_whole_has_a_summary_without_numbers(tmp_path):
    write_job(tmp_path, 0, ("nosuch",), exit_status=2, message="no such attack")
    text = summary(tmp_path)
    assert "1 job: 0 finished, 1 failed." in text
    assert "## Best order" not in text
    assert not (tmp_path / "figures").exists()
    assert write_summary(tmp_path / "nowhere") is None


def test_the_data_say_what_the_text_says(tmp_path):
    write_summary(two_orders(tmp_path))
    data = json.loads((tmp_path / "summary.json").read_text())
    assert data["format"] == 1
    assert [job["validation"] for job in data["jobs"]] == [18.0, 22.0, 19.0, 20.0]
    assert data["jobs"][0]["errors"]["paper/worst"]["error"] == 25.0
    first, second = data["orders"]
    assert (first["order"], first["seeds"], first["validation"]) == (["pgm", "fgsm"], [0, 1], 19.5)
    assert second["mean"]["check/worst"] == 37.0
    assert second["spread"]["clean"] == {"mean": 3.0, "sd": pytest.approx(2**0.5), "least": 2.0, "most": 4.0}
    (best,) = data["best"]
    assert best["ranked"][0] == {"order": ["pgm", "fgsm"], "validation": 19.5}
    assert (best["gap"], best["is_resolved"]) == (0.5, False)


def test_the_summary_can_be_written_anew_from_the_files_alone(tmp_path):
    two_orders(tmp_path)
    names = ("summary.md", "summary.json", "figures/orders.png")
    write_summary(tmp_path)
    before = [(tmp_path / name).read_bytes() for name in names]
    for name in names:
        (tmp_path / name).unlink()
    write_summary(tmp_path)
    assert [(tmp_path / name).read_bytes() for name in names] == before
    assert not list(tmp_path.rglob("*.partial"))


def test_the_picture_is_drawn_anew_only_if_it_would_change(tmp_path):
    two_orders(tmp_path, total=6)
    picture = tmp_path / "figures" / "orders.png"
    write_summary(tmp_path)
    drawn = picture.stat().st_ino
    write_job(tmp_path, 4, ("nosuch",), exit_status=2, message="no such attack")
    write_summary(tmp_path)
    assert picture.stat().st_ino == drawn
    write_job(tmp_path, 5, ("fgsm",), **SOME)
    write_summary(tmp_path)
    assert picture.stat().st_ino != drawn
    for damage in ("{", "[]"):
        (tmp_path / "summary.json").write_text(damage)
        write_summary(tmp_path)
        assert json.loads((tmp_path / "summary.json").read_text())["figure"]


def test_the_heat_map_shows_means_over_seeds_by_order(tmp_path):
    shown = picture_of(two_orders(tmp_path))
    assert shown.labels == ("pgm > fgsm", "fgsm > pgm")
    assert [heading.replace("\n", " ") for heading in shown.headings] == [
        "validation mean", "clean", "fgsm", "pgm paper", "pgm check", "worst paper", "worst check",
    ]  # fmt: skip
    assert shown.values == ((19.5, 3.0, 40.0, 10.0, 16.0, 42.0, 46.0), (20.0, 3.0, 12.0, 22.0, 32.0, 27.0, 37.0))
    assert (shown.best, shown.row_breaks, shown.column_breaks) == ((0,), (), (1, 2, 5))
    assert shown.title == "Error rates after the last stage, by order of attacks: amc on digits"
    assert shown.footnotes == (
        "validation mean: clean and attacked, n = 25 attacked. clean: test split, n = 200.",
        "Attacks and worst: attack split, n = 100. Each cell: mean of 2 seeds. The frame is round the order that "
        "validation chooses.",
    )


def test_every_cell_of_the_picture_has_the_colour_of_its_number(tmp_path):
    shown = picture_of(two_orders(tmp_path))
    pixels = np.asarray(draw_orders(shown)).reshape(-1, 3)
    colors = {tuple(color) for color in np.unique(pixels, axis=0)}
    for row in shown.values:
        for value in row:
            assert tuple(colormaps["YlOrBr"](value / 100, bytes=True)[:3]) in colors, value


def test_all_24_orders_fit_into_one_picture(tmp_path):
    for number, order in enumerate(permutations(("fgsm", "vap", "eap", "pgm"))):
        write_job(tmp_path, number, order, validation=20.0 + number, **SOME)
    write_summary(tmp_path)
    with Image.open(tmp_path / "figures" / "orders.png") as image:
        assert 800 < image.width < 1600
        assert 800 < image.height < 1600
        assert image.format == "PNG"
    assert len(picture_of(tmp_path).labels) == 24


def test_one_order_without_validation_and_without_an_attack_can_be_drawn(tmp_path):
    write_job(tmp_path, 0, ("fgsm",), **SOME)
    shown = picture_of(tmp_path)
    assert np.isnan(shown.values[0][0])
    assert shown.best == ()
    assert draw_orders(shown).height > 300


@pytest.mark.parametrize("width", [80, 200])
def test_the_console_table_fits_and_says_how_every_job_ended(width, tmp_path):
    two_orders(tmp_path, total=5)
    write_job(tmp_path, 4, ("nosuch",), exit_status=2, message="no such attack", total=5)
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(sweep_table(read_entries(tmp_path)))
    lines = console.export_text().splitlines()
    assert all(len(line) <= width for line in lines)
    rows = [line.split() for line in lines]
    assert ["0", "fgsm", ">", "pgm", "0", "18.0", "2.0", "25.0", "35.0", "finished"] in rows
    assert ["4", "nosuch", "0", "-", "-", "-", "-", "failed"] in rows
    assert "Best of 2 orders of fgsm, pgm: pgm > fgsm" in " ".join(" ".join(row) for row in rows)


def test_the_console_table_shows_in_which_settings_jobs_differ(tmp_path):
    for number, alpha in enumerate(("0.3", "0.5")):
        write_job(tmp_path, number, ("fgsm",), extra=[f"cascade.alpha={alpha}"], **SOME)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(sweep_table(read_entries(tmp_path)))
    text = console.export_text()
    assert "cascade.alpha=0.3" in text
    assert "cascade.alpha=0.5" in text
