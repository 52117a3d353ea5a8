"""report.md: every number of a run with its interval and its n, what was run, and how to read it."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from amc_lightning.report import proxy_wording, wording
from amc_lightning.report.black_box_markdown import black_box_blocks, hardening_proxies, proxy_data_text
from amc_lightning.report.columns import OTHER_HEADINGS, budget_text, columns
from amc_lightning.report.figures import EXAMPLES, FIGURES_FOLDER, TRAINING_CURVES, error_rates_file
from amc_lightning.report.markdown_table import markdown_table
from amc_lightning.report.reading import read_results
from amc_lightning.report.record import Interface, Norm, Rate, Results, Stage, Strength
from amc_lightning.results import write_whole

REPORT_FILE = "report.md"
_HEAT_MAP = "Heat map of the error rates by stage and attack"
_FIGURES = (
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
    drawn = folder / FIGURES_FOLDER
    figures = {path.name for path in drawn.iterdir()} if drawn.exists() else set()
    write_whole(folder / REPORT_FILE, report_text(results, figures).encode())
    return folder / REPORT_FILE


def report_text(results: Results, figures: Collection[str]) -> str:
    """Return the report as Markdown.

    Args:
        results: what was measured.
        figures: names of the files in the folder ``figures``.
    """
    views = results.each()
    blocks = [f"# {results.experiment}: {results.defence} on {results.dataset.name}", _outcome(views)]
    blocks += [f"**{text}**" for text in (wording.status_warning(results), wording.data_warning(results)) if text]
    for view in views:
        if view.measured:
            blocks += _errors(view, wording.not_shown(results) if view is views[0] else "")
            blocks += _figure(error_rates_file(results, view.primary), f"{_HEAT_MAP}{wording.under(view)}", figures)
    for name, text in _FIGURES:
        blocks += _figure(name, text, figures)
    for view in views:
        blocks += _distances(view)
    for view in views:
        blocks += _norms(view)
    if results.stages:
        blocks += ["## What training cost", *_costs(results), *hardening_proxies(results)]
    blocks += ["## What was run", _run(results), *_parameters(results)]
    blocks += ["## Versions", markdown_table(["component", "version"], sorted(results.versions.items()))]
    return "\n\n".join(blocks) + "\n"


def _outcome(views: Sequence[Results]) -> str:
    if len(views) == 1:
        return wording.summary_line(views[0])
    return "\n".join(f"- {view.primary}: {wording.summary_line(view)}" for view in views)


def _errors(results: Results, not_shown: str) -> Iterator[str]:
    """Yield the error table of the primary threat model with its notes and, if it is a black box, its proxies."""
    yield f"## Error rates (%), lower is better{_threat(results)}"
    if results.is_black_box:
        yield proxy_wording.attacker(results.interfaces[results.primary], results.measured)
    if results.primary in results.squeezings:
        yield wording.squeezed(results.squeezings[results.primary])
    yield _error_table(results)
    yield _notes(results, not_shown)
    if results.is_black_box:
        yield from black_box_blocks(results)


def _threat(results: Results) -> str:
    """Return what a heading has behind it; nothing for a white box that nothing stands beside."""
    return f": {results.primary}" if wording.is_named(results) else ""


def _figure(name: str, text: str, figures: Collection[str]) -> list[str]:
    return [f"![{text}]({FIGURES_FOLDER}/{name})"] if name in figures else []


def _error_table(results: Results) -> str:
    shown = columns(results)
    rows = (
        [stage.long_label, *(_cell(column.rate(stage), counted=column.key != "mean") for column in shown)]
        for stage in results.measured
    )
    return markdown_table(["model", *(column.title for column in shown)], rows)


def _cell(rate: Rate | None, *, counted: bool) -> str:
    if rate is None:
        return "-"
    count = _count(rate) if counted else f"n = {rate.n}"
    return f"**{wording.percent(rate.error)}**<br>{wording.interval(rate)}<br>{count}"


def _count(rate: Rate) -> str:
    return f"{rate.wrong:.0f} of {rate.n}"


def _notes(results: Results, not_shown: str) -> str:
    notes = [
        f"In each cell: error rate; its {wording.INTERVAL}; rows wrong of rows measured.",
        wording.splits(results),
        wording.strengths(results),
        wording.summaries(results),
        wording.other_strengths(results),
        not_shown,
        wording.without_gradient(results),
        "Where two intervals overlap, this table does not show that the rates differ. Attacks use the true labels.",
    ]
    return "\n".join(f"- {note}" for note in notes if note)


def _distances(results: Results) -> Iterator[str]:
    """Yield the distance quantiles of every attack that has them, one table each."""
    for attack in results.attack_names:
        rows = []
        for stage in results.measured:
            rate = stage.evaluation.paper.get(attack)
            if rate is None:
                continue
            for measure, quantiles in rate.quantiles.items():
                sizes = [f"{value:.3g}" for value in quantiles.values()]
                rows.append([stage.long_label, measure.replace("_", " "), *sizes])
                names = [f"{100 * float(name):g} % quantile" for name in quantiles]
        if rows:
            yield f"## Distance at which {attack} succeeds{_threat(results)}"
            yield (
                "Over the rows that were right and that it fooled, at strength paper; larger is harder to fool. "
                "The search is short, so these are upper bounds of the least distance; where it fools fewer rows, "
                "the rows left in are the easier ones."
            )
            yield markdown_table(["model", "distance", *names], rows)


def _norms(results: Results) -> Iterator[str]:
    """Yield the section on norms: one row per model and attack, the check too where it differs."""
    rows: list[list[str]] = []
    for stage in results.measured:
        for attack in results.attack_names:
            strengths: tuple[Strength, ...] = ("paper", "check") if results.differs(attack) else ("paper",)
            for strength in strengths:
                name = f"{attack} ({strength})" if len(strengths) > 1 else attack
                rows += _norm_row(stage, name, stage.rates(strength).get(attack))
        for strength, heading in OTHER_HEADINGS.items():
            for attack in results.attacks.get(results.primary, {}).get(strength, {}):
                rows += _norm_row(stage, f"{attack} ({heading})", stage.rates(strength).get(attack))
    if rows:
        yield f"## Size of the perturbations, and what they took{_threat(results)}"
        yield (
            "Median and largest over all rows of the attack split, rows not fooled included; pixels in [0, 1]. "
            "Passes: gradient passes of the attack per row. Saved: what share of the passes it did not need, as rows "
            "that it had fooled left the batch; the same rows are fooled."
        )
        yield markdown_table(
            ["model", "attack", "linf: median, max", "l2: median, max", "l1: median, max", "passes", "saved"], rows
        )


def _norm_row(stage: Stage, name: str, rate: Rate | None) -> Iterator[list[str]]:
    if rate is not None and rate.norms:
        sizes = [_size(rate.norms.get(norm)) for norm in ("linf", "l2", "l1")]
        passes = "-" if rate.gradient_passes is None else f"{rate.gradient_passes:,.1f}"
        yield [stage.long_label, name, *sizes, passes, wording.saved(rate)]


def _size(norm: Norm | None) -> str:
    return "-" if norm is None else f"{norm.median:.3g}, {norm.max:.3g}"


def _costs(results: Results) -> Iterator[str]:
    proxied = any(stage.proxy is not None for stage in results.stages)
    yield (
        "Passes: gradient passes of the whole stage, crafting and training, per training image. "
        "Adversarial rows: how many perturbed images of each attack the stage was trained on. Minutes are those of the "
        "training, whenever that was; a stage that was in the store before this run was not trained again."
        + (
            " Passes of crafting on a proxy P' are passes of its network, not of the model's. What P' itself took "
            "comes on top, and stands in columns of its own."
            if proxied
            else ""
        )
    )
    attacks = list(dict.fromkeys(name for stage in results.stages for name in stage.rows))
    rows = []
    for stage in results.stages:
        cost = [str(stage.epochs), f"{stage.steps:,}", f"{stage.minutes:.1f}", f"{stage.passes_per_image:,.0f}"]
        origin = f"`{stage.key[:12]}`{', there before' if stage.from_store else ''}" if stage.key else "-"
        cost += _proxy_cost([stage]) if proxied else []
        rows.append([stage.long_label, *cost, *(f"{stage.rows.get(name, 0):,}" for name in attacks), origin])
    total = sum(stage.minutes for stage in results.stages)
    sums = [f"{sum(stage.rows.get(name, 0) for stage in results.stages):,}" for name in attacks]
    steps = f"{sum(stage.steps for stage in results.stages):,}"
    passes = f"{sum(stage.passes_per_image for stage in results.stages):,.0f}"
    cost = [str(sum(stage.epochs for stage in results.stages)), steps, f"{total:.1f}", passes]
    cost += _proxy_cost(results.stages) if proxied else []
    rows.append(["all", *cost, *sums, "-"])
    head = [
        "model",
        "epochs",
        "steps",
        "minutes",
        "passes per image",
        *(["P': queries", "P': minutes"] if proxied else []),
        *(f"{name} rows" for name in attacks),
        "in the store",
    ]
    yield markdown_table(head, rows)


def _proxy_cost(stages: Sequence[Stage]) -> list[str]:
    proxies = [stage.proxy for stage in stages if stage.proxy is not None]
    return [f"{sum(proxy.queries for proxy in proxies):,}", f"{sum(proxy.minutes for proxy in proxies):.1f}"]


def _run(results: Results) -> str:
    data = results.dataset
    kept = ", ".join(f"{name} {count:,}" for name, count in data.counts.items())
    read = ", ".join(f"{name} {count:,}" for name, count in data.counts_read.items() if count)
    budget = ", ".join(f"{name} {budget_text(*value)}" for name, value in results.budget.items()) or "none"
    facts = [
        ("experiment", results.experiment),
        ("defence", results.defence),
        _order(results),
        ("attacks evaluated", ", ".join(results.evaluated)),
        ("hardened under", _threat_model(results.threat_model, results.hardening)),
        (
            "measured under",
            "<br>".join(_threat_model(name, results.interfaces.get(name)) for name in results.threat_models),
        ),
        ("proxy data", proxy_data_text(results.proxy_data)),
        ("preset of attack parameters", results.preset),
        *_crafting(results),
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


def _order(results: Results) -> tuple[str, str]:
    if results.crafting is not None and results.crafting.joint is not None:
        return "attacks, all in one stage", f"{', '.join(results.order)}, by the rule {results.crafting.joint}"
    return "attack order", " > ".join(results.order) or "none"


def _crafting(results: Results) -> Iterator[tuple[str, str]]:
    other = any(view.trained_otherwise for view in results.each())
    more = "; some differ from those evaluated, see the attack parameters" if other else ""
    yield "training examples crafted with", f"{wording.crafted_with(results)}{more}"
    if results.crafting is not None and results.order:
        yield "epochs of the stages", ", ".join(map(str, results.crafting.epochs))
        yield "a stage starts from", "the stage before" if results.crafting.transfer == "parent" else "M0"


def _threat_model(name: str, interface: Interface | None) -> str:
    return name if interface is None else f"{name}: {proxy_wording.interface_text(interface)}"


def _parameters(results: Results) -> Iterator[str]:
    """Yield the attacks' parameters, one table for all threat models that share them."""
    groups: list[list[Results]] = []
    for view in results.each():
        same = next((group for group in groups if _of(group[0]) == _of(view)), None)
        if same is None:
            groups.append([view])
        else:
            same.append(view)
    for group in groups:
        view, names = group[0], ", ".join(member.primary for member in group)
        yield "### Attack parameters" + (
            _threat(view) if len(group) == len(results.threat_models) == 1 else f": {names}"
        )
        crafted = {} if view.crafting is None else view.crafting.attacks
        unmeasured = [attack for attack in crafted if attack not in view.evaluated]
        trained = bool(view.trained_otherwise or unmeasured)
        rows = []
        for attack in view.attack_names:
            check = _settings(view.parameters("check", attack)) if view.differs(attack) else "the same"
            row = [attack, _settings(view.parameters("paper", attack)), check]
            rows.append([*row, _trained(view, attack, crafted)] if trained else row)
        rows += [[attack, "-", "-", _settings(crafted[attack])] for attack in unmeasured]
        yield markdown_table(["attack", "paper", "check", *(["in training"] if trained else [])], rows)


def _trained(results: Results, attack: str, crafted: Mapping[str, Mapping[str, object]]) -> str:
    if attack not in crafted:
        return "not trained with"
    return _settings(crafted[attack]) if attack in results.trained_otherwise else "as paper"


def _of(results: Results) -> Mapping[str, Mapping[str, Mapping[str, object]]]:
    return results.attacks.get(results.primary, {})


def _settings(parameters: Mapping[str, object]) -> str:
    return "<br>".join(f"{name}: {value}" for name, value in parameters.items()) or "-"
