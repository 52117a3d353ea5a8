"""What stands below a table of Table 4: how to read it, what its rows were made with, and what it does not show."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from amc_lightning.report import proxy_wording, wording
from amc_lightning.report.table4 import System, Table4
from amc_lightning.report.table4_bold import table4_marks


def notes(table: Table4) -> Iterator[str]:
    """Yield what stands below a table; sentences may repeat, and be empty."""
    yield (
        f"In each cell: error rate; its {wording.INTERVAL}; P'': the error of the proxy itself on the same examples; "
        "M0: the error on examples made with the undefended model's own gradients"
        f"{'; the number in the paper' if table.is_the_papers else ''}. P'' agrees: {proxy_wording.AGREEMENT}."
    )
    views = [replace(system.results, order=(), stages=(system.stage,)) for system in table.systems]
    for say in (wording.splits, wording.strengths, wording.summaries, proxy_wording.what_it_means):
        yield from map(say, views)
    yield proxy_wording.outdone_text([(system.name, system.stage) for system in table.systems], table.columns)
    yield (
        "AT: hardened against one attack; [P] and local proxy: with examples made on a proxy P' of the defender's own; "
        "target-hardened, or without [P]: with the model's own gradients."
    )
    yield _same_kind(table.systems)
    yield _scale(table.systems)
    yield from _crafting(table.systems)
    if table.is_the_papers:
        yield "The paper's numbers come without intervals, from its own training, proxies and proxy data."
    for view in views:
        if table.is_the_papers and view.dataset.limit is not None:
            yield f"Trained on at most {view.dataset.limit:,} images, the paper on all: the numbers are not comparable."
        if table.is_the_papers and view.preset != "paper":
            yield f"Attacks here have the parameters of the preset '{view.preset}', the paper's those of its Table 1."
    yield from table4_marks(table).notes
    yield "Where two intervals overlap, this table does not show that the rates differ."


def _hardened(systems: Sequence[System]) -> list[System]:
    return [system for system in systems if system.stage.index > 0]


def _rows(found: Iterable[System], every: Sequence[System], all_of_them: str = "all hardened rows") -> str:
    return wording.rows_text([system.name for system in found], [system.name for system in every], all_of_them)


def _same_kind(systems: Sequence[System]) -> str:
    shared = {system.name: proxy_wording.same_kind(system.results, system.stage) for system in _hardened(systems)}
    by_proxy = [system for system in _hardened(systems) if any(stage.proxy for stage in system.stages)]
    rows = _rows([system for system in by_proxy if shared[system.name]], by_proxy, "all rows hardened on a proxy")
    return proxy_wording.same_kind_text(shared.values(), rows)


def _scale(systems: Sequence[System]) -> str:
    """Say on how much the rows were trained and attacked; where rows differ, from the least to the most."""
    runs = [system.results for system in systems]
    limits = {run.dataset.limit for run in runs}
    capped = "no cap" if limits == {None} else "capped" if None not in limits else "some capped"
    parts = [f"{proxy_wording.span(run.dataset.counts.get('train', 0) for run in runs)} training images ({capped})"]
    stages = [stage for system in systems for stage in system.stages]
    first, later = ([stage.epochs for stage in stages if (stage.index > 0) == hardens] for hardens in (False, True))
    epochs = [f"{proxy_wording.span(first)} epochs of M0"] if any(first) else []
    epochs += [f"{proxy_wording.span(later)} a stage of hardening"] if later else []
    parts += [" and ".join(epochs)] if epochs else []
    parts += [_proxies(systems)]
    attacked = [rate.n for system in systems for rate in system.stage.evaluation.check.values()]
    parts += [f"{proxy_wording.span(attacked)} attacked images"] if attacked else []
    return f"Made with: {'; '.join(part for part in parts if part)}."


def _proxies(systems: Sequence[System]) -> str:
    """Say on how many images and for how many epochs P' and P'' were trained."""
    own = [(stage.index, stage.proxy) for system in systems for stage in system.stages if stage.proxy is not None]
    attackers = [proxy for system in systems for proxy in system.stage.evaluation.proxies.values()]
    every = [*(proxy for _, proxy in own), *attackers]
    if not every:
        return ""
    kept = {system.results.proxy_data.kept for system in systems if system.results.proxy_data is not None}
    text = f"proxies trained on {proxy_wording.span(proxy.images for proxy in every)} images"
    text += f" (of {proxy_wording.span(kept)} kept)" if kept else ""
    first, later = ([proxy.epochs for index, proxy in own if (index > 1) == goes_on] for goes_on in (False, True))
    epochs = [f"P' for {proxy_wording.span(first)} epochs"] if first else []
    epochs += [f"then {proxy_wording.span(later)} at each later stage"] if later else []
    epochs += [f"P'' for {proxy_wording.span(proxy.epochs for proxy in attackers)} epochs"] if attackers else []
    return ", ".join([text, *epochs])


def _crafting(systems: Sequence[System]) -> Iterator[str]:
    """Say which rows were hardened with other parameters than those of the black-box column, or than evaluated."""
    hardened = _hardened(systems)
    other: dict[str, list[System]] = {}
    unequal: dict[str, list[System]] = {}
    for system in hardened:
        crafting = system.results.crafting
        if crafting is None:
            continue
        if crafting.column != "black_box":
            other.setdefault(wording.crafted_with(system.results), []).append(system)
        elif system.results.trained_otherwise:
            unequal.setdefault(", ".join(system.results.trained_otherwise), []).append(system)
    for column, found in other.items():
        yield (
            f"Hardened with {column}: {_rows(found, hardened)}. The paper does not say openly which column it hardened "
            "the models of its Table 4 with."
        )
    for attacks, found in unequal.items():
        yield (
            f"Hardened with other parameters of {attacks} than attacked with (both in the report.md of the job): "
            f"{_rows(found, hardened)}."
        )
    unknown = [system for system in hardened if system.results.crafting is None]
    if unknown:
        yield f"Which column of Table 1 made the examples of training is not recorded: {_rows(unknown, hardened)}."
