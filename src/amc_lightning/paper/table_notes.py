"""What stands below the paper's tables: how to read them, what the rows were made with, what they do not show."""

from collections.abc import Iterable, Iterator, Sequence

from amc_lightning.paper.cells import Error
from amc_lightning.paper.measures import clean_or_attack
from amc_lightning.paper.trained import Model
from amc_lightning.report import proxy_wording, wording
from amc_lightning.report.sweep_comparison import LEAST_SEEDS

FOR_COMPARISON = "Where two intervals overlap, this table does not show that the rates differ."


def notes(found: Sequence[Model], errors: Sequence[Error]) -> Iterator[str]:
    """Yield what every table says of itself; sentences may repeat, and be empty.

    Args:
        found: the models that it shows.
        errors: its error rates.
    """
    yield sizes(errors)
    yield from seeds(errors)
    shown = {error.column.strength for error in errors if error.column.group != "clean"}
    if "check" in shown:
        yield from (wording.strengths(model.view) for model in found)
    if any(error.column.group == "summary" for error in errors):
        yield from (wording.summaries(model.view) for model in found)
    yield from unbounded(found, errors)
    yield without_gradient(errors)
    yield made_with(found)
    yield from beside_the_paper(found, errors)
    yield from (wording.data_warning(model.run.results) or "" for model in found)


def sizes(errors: Sequence[Error]) -> str:
    """Say on which split each rate is measured, with its size."""
    counts = list(clean_or_attack(errors))
    parts = []
    for is_clean, name in ((True, "clean: test split"), (False, "attacks, mean, worst: attack split")):
        found = sorted({n for clean, n in counts if clean == is_clean})
        if found:
            parts.append(f"{name}, n = {' or '.join(map(str, found))}")
    text = ". ".join(part[0].upper() + part[1:] for part in parts)
    return f"{text}." if text else ""


def seeds(errors: Sequence[Error]) -> Iterator[str]:
    """Say what stands under the rates, and how much it is worth."""
    counts = {len(error.rates) for error in errors if error.rates}
    named = sorted({seed for error in errors for seed in error.rates})
    listed = ", ".join(map(str, named))
    if counts == {1}:
        which = f"{'One seed' if len(named) == 1 else 'Each of one seed'} ({listed}). Under each rate"
    else:
        which = "Under a rate of one seed"
    if 1 in counts:
        yield f"{which}: its {wording.INTERVAL}; over images only, another training may give another rate."
    if any(count > 1 for count in counts):
        yield f"Of several seeds ({listed}): the mean, and under it +- the standard deviation over seeds (n - 1)."
    if any(1 < count < LEAST_SEEDS for count in counts):
        yield f"**Fewer than {LEAST_SEEDS} seeds say next to nothing about a spread.**"


def unbounded(found: Sequence[Model], errors: Sequence[Error]) -> Iterator[str]:
    """Say what the errors of unbounded attacks are worth."""
    keys = {error.column.key for error in errors}
    for model in found:
        for name, (norm, radius) in model.run.results.budget.items():
            if name in keys or f"{name}@budget" in keys:
                yield (
                    f"{name} without limit is a search that can fool any model; within {norm}<={radius:g} its error is "
                    "a lower bound."
                )


def without_gradient(errors: Sequence[Error]) -> str:
    """Say which attacks had rows that gave them no gradient to move by; empty where none had."""
    listed = [
        f"{error.system} under {error.column.title} {rate.zero_gradient} of {rate.n} (seed {seed})"
        for error in errors
        for seed, rate in error.rates.items()
        if rate.zero_gradient
    ]
    if not listed:
        return ""
    return f"Rows without a gradient, which were not attacked; that they are right shows nothing: {', '.join(listed)}."


def made_with(found: Sequence[Model]) -> str:
    """Say on how much the models were trained; where they differ, from the least to the most."""
    if not found:
        return ""
    stages = [stage for model in found for stage in model.stages]
    images = proxy_wording.span(model.run.results.dataset.counts.get("train", 0) for model in found)
    first, later = ([stage.epochs for stage in stages if (stage.index > 0) == hardens] for hardens in (False, True))
    epochs = [f"{epochs_text(first)} of M0"] if any(first) else []
    epochs += [f"{proxy_wording.span(later) if epochs else epochs_text(later)} a stage of hardening"] if later else []
    return f"Made with: {'; '.join([f'{images} training images', *([' and '.join(epochs)] if epochs else [])])}."


def epochs_text(epochs: Iterable[int]) -> str:
    """Return numbers of epochs in words.

    Example:
        >>> epochs_text([1]), epochs_text([2, 10])
        ('1 epoch', '2 to 10 epochs')
    """
    known = set(epochs)
    return f"{proxy_wording.span(known)} {'epoch' if known == {1} else 'epochs'}"


def beside_the_paper(found: Sequence[Model], errors: Sequence[Error]) -> Iterator[str]:
    """Say how far the paper's numbers can be compared with ours; nothing where it has none."""
    if not any(error.paper is not None for error in errors):
        return
    yield "'paper' before a number, or over it: the paper's own; without intervals, and from its own training."
    for model in found:
        limit, preset = model.run.results.dataset.limit, model.run.results.preset
        if limit is not None:
            yield f"Trained on at most {limit:,} images, the paper on all: the numbers are not comparable."
        if preset != "paper" and any(error.column.group != "clean" for error in errors):
            yield f"Attacks here have the parameters of the preset '{preset}', the paper's those of its Table 1."


def cost(found: Sequence[Model]) -> str:
    """Say what the columns of cost are."""
    text = "Minutes and gradient passes per training image: of all stages up to this model's"
    if any(stage.proxy is not None for model in found for stage in model.stages):
        text += "; minutes of the proxies P' included, passes that trained them not"
    return f"{text}{'; averaged over seeds' if len({model.seed for model in found}) > 1 else ''}."
