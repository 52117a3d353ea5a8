"""report.md: every number of a run with its interval and its n, what was run, and how to read it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from amc_lightning.report import wording
from amc_lightning.report.columns import budget_text, columns
from amc_lightning.report.figures import ERROR_RATES, EXAMPLES, FIGURES_FOLDER, TRAINING_CURVES
from amc_lightning.report.reading import read_results
from amc_lightning.report.record import Norm, Rate, Results, Strength
from amc_lightning.results import write_whole

REPORT_FILE = "report.md"
_FIGURES = (
    (ERROR_RATES, "Heat map of the error rates by stage and attack"),
    (EXAMPLES, "Clean and perturbed images with the answers of the first and the last model"),
    (TRAINING_CURVES, "Training curves of all stages"),
)


def write_report(folder: Path) -> Path:
    """Write report.md of a run folder, in one step; figures are embedded if they are there already.

    Args:
        folder: the run's output folder, with results.json.

    Returns:
        Path of the report.

    Raises:
        UserError: if results.json cannot be read.
    """
    folder = Path(folder)
    results = read_results(folder)
    figures = [(name, text) for name, text in _FIGURES if (folder / FIGURES_FOLDER / name).exists()]
    write_whole(folder / REPORT_FILE, report_text(results, figures).encode())
    return folder / REPORT_FILE


def report_text(results: Results, figures: Sequence[tuple[str, str]]) -> str:
    """Return the report as Markdown.

    Args:
        results: what was measured.
        figures: file names in the folder ``figures``, each with the text that stands for it.
    """
    blocks = [f"# {results.experiment}: {results.defence} on {results.dataset.name}", wording.summary_line(results)]
    blocks += [f"**{text}**" for text in (wording.status_warning(results), wording.data_warning(results)) if text]
    if results.stages:
        blocks += ["## Error rates (%), lower is better", _error_table(results), _notes(results)]
    blocks += [f"![{text}]({FIGURES_FOLDER}/{name})" for name, text in figures]
    if results.stages:
        blocks += _distances(results)
        blocks += _norms(results)
        blocks += ["## What training cost", *_costs(results)]
    blocks += ["## What was run", _run(results), "### Attack parameters", _parameters(results)]
    blocks += ["## Versions", markdown_table(["component", "version"], sorted(results.versions.items()))]
    return "\n\n".join(blocks) + "\n"


def _error_table(results: Results) -> str:
    shown = columns(results)
    rows = (
        [stage.long_label, *(_cell(column.rate(stage), counted=column.key != "mean") for column in shown)]
        for stage in results.stages
    )
    return markdown_table(["model", *(column.title for column in shown)], rows)


def _cell(rate: Rate | None, *, counted: bool) -> str:
    if rate is None:
        return "-"
    count = _count(rate) if counted else f"n = {rate.n}"
    return f"**{wording.percent(rate.error)}**<br>{wording.interval(rate)}<br>{count}"


def _count(rate: Rate) -> str:
    return f"{rate.wrong:.0f} of {rate.n}"


def _notes(results: Results) -> str:
    notes = [
        f"In each cell: error rate; its {wording.INTERVAL}; rows wrong of rows measured.",
        wording.splits(results),
        wording.strengths(results),
        wording.summaries(results),
        wording.not_shown(results),
        wording.without_gradient(results),
        "Where two intervals overlap, this table does not show that the rates differ. Attacks use the true labels.",
    ]
    return "\n".join(f"- {note}" for note in notes if note)


def _distances(results: Results) -> Iterator[str]:
    """Yield the distance quantiles of every attack that has them, one table each."""
    for attack in results.attack_names:
        rows = []
        for stage in results.stages:
            rate = stage.evaluation.paper.get(attack)
            if rate is None:
                continue
            for measure, quantiles in rate.quantiles.items():
                sizes = [f"{value:.3g}" for value in quantiles.values()]
                rows.append([stage.long_label, measure.replace("_", " "), *sizes])
                names = [f"{100 * float(name):g} % quantile" for name in quantiles]
        if rows:
            yield f"## Distance at which {attack} succeeds"
            yield (
                "Over the rows that were right and that it fooled, at strength paper; larger is harder to fool. "
                "The search is short, so these are upper bounds of the least distance; where it fools fewer rows, "
                "the rows left in are the easier ones."
            )
            yield markdown_table(["model", "distance", *names], rows)


def _norms(results: Results) -> Iterator[str]:
    """Yield the section on norms: one row per model and attack, the check too where it differs."""
    rows = []
    for stage in results.stages:
        for attack in results.attack_names:
            strengths: tuple[Strength, ...] = ("paper", "check") if results.differs(attack) else ("paper",)
            for strength in strengths:
                rate = stage.rates(strength).get(attack)
                if rate is not None and rate.norms:
                    name = f"{attack} ({strength})" if len(strengths) > 1 else attack
                    sizes = [_size(rate.norms.get(norm)) for norm in ("linf", "l2", "l1")]
                    passes = "-" if rate.gradient_passes is None else f"{rate.gradient_passes:,.1f}"
                    rows.append([stage.long_label, name, *sizes, passes])
    if rows:
        yield "## Size of the perturbations, and what they took"
        yield (
            "Median and largest over all rows of the attack split, rows not fooled included; pixels in [0, 1]. "
            "Passes: gradient passes of the attack per row."
        )
        yield markdown_table(
            ["model", "attack", "linf: median, max", "l2: median, max", "l1: median, max", "passes"], rows
        )


def _size(norm: Norm | None) -> str:
    return "-" if norm is None else f"{norm.median:.3g}, {norm.max:.3g}"


def _costs(results: Results) -> Iterator[str]:
    yield (
        "Passes: gradient passes of the whole stage, crafting and training, per training image. "
        "Adversarial rows: how many perturbed images of each attack the stage was trained on. Minutes are those of the "
        "training, whenever that was; a stage that was in the store before this run was not trained again."
    )
    attacks = list(dict.fromkeys(name for stage in results.stages for name in stage.rows))
    rows = []
    for stage in results.stages:
        cost = [str(stage.epochs), f"{stage.steps:,}", f"{stage.minutes:.1f}", f"{stage.passes_per_image:,.0f}"]
        origin = f"`{stage.key[:12]}`{', there before' if stage.from_store else ''}" if stage.key else "-"
        rows.append([stage.long_label, *cost, *(f"{stage.rows.get(name, 0):,}" for name in attacks), origin])
    total = sum(stage.minutes for stage in results.stages)
    sums = [f"{sum(stage.rows.get(name, 0) for stage in results.stages):,}" for name in attacks]
    steps = f"{sum(stage.steps for stage in results.stages):,}"
    passes = f"{sum(stage.passes_per_image for stage in results.stages):,.0f}"
    rows.append(["all", str(sum(stage.epochs for stage in results.stages)), steps, f"{total:.1f}", passes, *sums, "-"])
    head = [
        "model",
        "epochs",
        "steps",
        "minutes",
        "passes per image",
        *(f"{name} rows" for name in attacks),
        "in the store",
    ]
    yield markdown_table(head, rows)


def _run(results: Results) -> str:
    data = results.dataset
    kept = ", ".join(f"{name} {count:,}" for name, count in data.counts.items())
    read = ", ".join(f"{name} {count:,}" for name, count in data.counts_read.items() if count)
    budget = ", ".join(f"{name} {budget_text(*value)}" for name, value in results.budget.items()) or "none"
    facts = [
        ("experiment", results.experiment),
        ("defence", results.defence),
        ("attack order", " > ".join(results.order) or "none"),
        ("attacks evaluated", ", ".join(results.evaluated)),
        ("threat model", results.threat_model),
        ("preset of attack parameters", results.preset),
        ("budget of unbounded attacks", budget),
        ("data", f"{data.name}, {len(data.class_names)} classes, {' x '.join(map(str, data.shape))} (C, H, W)"),
        ("data files", "official, checksums agree" if data.verified else "not the official ones: unverified"),
        ("images read", read),
        ("images kept, by split", kept),
        ("cap on training images", "none" if data.limit is None else f"{data.limit:,}"),
        ("fingerprint of the splits", f"`{data.fingerprint}`"),
        ("seed", str(results.seed)),
        ("device, threads", f"{results.device}, {results.threads}"),
        ("status", results.status),
        ("created", results.created),
        ("commit", results.commit or "unknown"),
    ]
    return markdown_table(["", ""], facts)


def _parameters(results: Results) -> str:
    rows = []
    for attack in results.attack_names:
        check = _settings(results.parameters("check", attack)) if results.differs(attack) else "the same"
        rows.append([attack, _settings(results.parameters("paper", attack)), check])
    return markdown_table(["attack", "paper", "check"], rows)


def _settings(parameters: Mapping[str, object]) -> str:
    return "<br>".join(f"{name}: {value}" for name, value in parameters.items()) or "-"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [list(head), ["---"] * len(head), *(list(row) for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
