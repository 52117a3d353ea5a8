"""The paper's Table 2: clean errors of the models and of the proxy, and what every system took."""

from collections.abc import Iterator, Mapping

from amc_lightning.paper.cells import CLEAN, Cell, Error, Fact, error, mean_rate
from amc_lightning.paper.document import Grid, Row
from amc_lightning.paper.numbers import AT, AT_PROXY, LOCAL, PROXY, TARGET, table2_number
from amc_lightning.paper.runs import Runs
from amc_lightning.paper.table_notes import FOR_COMPARISON, cost, notes
from amc_lightning.paper.trained import (
    AT_PROXY_SYSTEMS,
    AT_SYSTEMS,
    LABEL,
    NAMES,
    Model,
    Systems,
    mean_minutes,
    mean_passes,
    models,
    same_rows,
    undefended_models,
)
from amc_lightning.report.record import UNDEFENDED, Rate

TITLE = "Table 2: clean error rates (%) of the models, lower is better"


def table2(runs: Runs) -> list[Grid]:
    """Return two tables for each dataset: the paper's rows, and every system by itself."""
    grids = []
    for dataset in runs.datasets:
        systems = runs.of(dataset)
        every = _every(systems)
        if every:
            grids += [_papers(dataset, systems, every), _by_itself(dataset, every)]
    return grids


def _every(systems: Systems) -> dict[str, list[Model]]:
    """Return the models of every system under its primary threat model; the undefended one first."""
    order = [*(name for name in NAMES if name in systems), *(name for name in systems if name not in NAMES)]
    found = {UNDEFENDED: _undefended(systems), **{name: models(systems, name) for name in order if name != UNDEFENDED}}
    return {name: known for name, known in found.items() if known}


def _undefended(systems: Systems) -> list[Model]:
    primary = dict.fromkeys(run.results.primary for runs in systems.values() for run in runs)
    return next((found for name in primary if (found := undefended_models(systems, name))), [])


def _papers(dataset: str, systems: Systems, every: Mapping[str, list[Model]]) -> Grid:
    said: list[str] = []
    cells = {
        UNDEFENDED: ("Undefended", error(UNDEFENDED, every.get(UNDEFENDED, []), CLEAN)),
        AT: ("Adv. Training", _mean(AT, AT_SYSTEMS, every, said)),
        AT_PROXY: ("Adv. Training [P]", _mean(AT_PROXY, AT_PROXY_SYSTEMS, every, said)),
        TARGET: (NAMES[TARGET], error(TARGET, every.get(TARGET, []), CLEAN)),
        LOCAL: (NAMES[LOCAL], error(LOCAL, every.get(LOCAL, []), CLEAN)),
        PROXY: ("Proxy", _proxy(systems, said)),
    }
    rows = []
    for key, (name, cell) in cells.items():
        if cell.rates:
            paper = table2_number(dataset, key)
            beside = Fact("-" if paper is None else f"{paper:g}")
            ours = Error(cell.system, CLEAN, cell.threat_model, cell.rates, paper, shows_paper=False)
            rows.append(Row(name, (ours, beside)))
    shown = [model for found in every.values() for model in found]
    errors = [cell for row in rows for cell in row.cells if isinstance(cell, Error)]
    head = ("model", "clean", "paper")
    return Grid(
        "table2",
        dataset,
        f"{dataset}: clean error",
        head,
        tuple(rows),
        (*notes(shown, errors), *said, FOR_COMPARISON),
    )


def _mean(key: str, members: Mapping[str, str], every: Mapping[str, list[Model]], said: list[str]) -> Error:
    """Return the mean over the four adversarially trained models, of every seed that has all four."""
    name = "Adv. Training" if key == AT else "Adv. Training [P]"
    missing = [system for system in members.values() if system not in every]
    if missing:
        if len(missing) < len(members):
            said.append(f"{name} is the mean over four models and is left out: there is no {', '.join(missing)}.")
        return Error(key, CLEAN, "", {})
    by_seed = {system: {model.seed: model for model in every[system]} for system in members.values()}
    seeds = sorted(set.intersection(*(set(found) for found in by_seed.values())))
    rates: dict[int, Rate] = {}
    for seed in seeds:
        four = [found[seed] for found in by_seed.values()]
        wrong = [rows for model in four if (rows := model.wrong(CLEAN)) is not None]
        if len(wrong) == len(four) and all(same_rows(four[0].run, model.run, "test") for model in four[1:]):
            rates[seed] = mean_rate(wrong)
        else:
            said.append(f"{name} is left out of seed {seed}: the four were not measured on the same images.")
    alone = sorted({seed for found in by_seed.values() for seed in found} - set(seeds))
    if alone:
        said.append(f"{name} is left out of seed {', '.join(map(str, alone))}: not all four models are there.")
    if rates:
        said.append(f"{name}: the mean over {', '.join(members)}, as in the paper; its interval is normal, over rows.")
    return Error(key, CLEAN, every[next(iter(members.values()))][0].threat_model, rates)


def _proxy(systems: Systems, said: list[str]) -> Error:
    """Return the clean error of the P'' that imitates the undefended model by its labels."""
    rates: dict[int, Rate] = {}
    for model in undefended_models(systems, LABEL):
        proxy = next(iter(model.evaluation.proxies.values()), None)
        if proxy is not None and proxy.clean is not None:
            rates[model.seed] = proxy.clean
            said.append(f"Proxy: P'' ({proxy.architecture}), trained on labels that the undefended model gave.")
    return Error(PROXY, CLEAN, LABEL, rates)


def _by_itself(dataset: str, every: Mapping[str, list[Model]]) -> Grid:
    head = ("system", "clean", "training images", "epochs", "minutes", "passes per image")
    rows = tuple(Row(NAMES.get(name, name), tuple(_row(name, found))) for name, found in every.items())
    shown = [model for found in every.values() for model in found]
    errors = [cell for row in rows for cell in row.cells if isinstance(cell, Error)]
    epochs = "Epochs: of M0, then of every stage of hardening."
    said = (*notes(shown, errors), epochs, cost(shown), FOR_COMPARISON)
    return Grid("table2_systems", dataset, f"{dataset}: every system by itself", head, rows, said)


def _row(name: str, found: list[Model]) -> Iterator[Cell]:
    yield error(name, found, CLEAN)
    images = found[0].run.results.dataset.counts.get("train", 0)
    yield Fact(f"{images:,}", "training_images", images, name)
    epochs = [stage.epochs for stage in found[0].stages]
    yield Fact(" + ".join(map(str, epochs)), "epochs", sum(epochs), name)
    yield from cost_cells(name, found)


def cost_cells(name: str, found: list[Model]) -> Iterator[Fact]:
    """Yield minutes and gradient passes per image of a system, averaged over seeds."""
    minutes, passes = mean_minutes(found), mean_passes(found)
    yield Fact(f"{minutes:.1f}", "minutes", minutes, name)
    yield Fact(f"{passes:,.0f}", "passes_per_image", passes, name)
