"""What the rows of a dataset were made with, by kind of row: data, epochs, attacks of training, proxies, preset."""

from collections.abc import Iterable, Sequence

from amc_lightning.paper.runs import Run
from amc_lightning.paper.trained import AT_PROXY_SYSTEMS, AT_SYSTEMS, LOCAL_PROXY, NAMES, Systems
from amc_lightning.report.markdown_table import markdown_table
from amc_lightning.report.proxy_wording import span
from amc_lightning.report.record import UNDEFENDED, Proxy

_HEAD = (
    "made with", "training images", "epochs of M0", "epochs a stage", "crafted with", "proxy P'", "attackers' P''",
    "preset",
)  # fmt: skip


def setting_text(systems: Systems) -> str:
    """Return a table with one row for each kind of row; where its runs differ, from the least to the most.

    crafted with: the column of the preset's parameters, white-box or black-box, that training examples were made with;
    the preset ``paper`` has those of the paper's Table 1.
    """
    kinds: dict[str, list[Run]] = {}
    for system, runs in systems.items():
        kinds.setdefault(_kind(system), []).extend(runs)
    return markdown_table(_HEAD, [_row(kind, runs) for kind, runs in kinds.items()])


def _kind(system: str) -> str:
    if system in AT_SYSTEMS.values():
        return "AT"
    if system in AT_PROXY_SYSTEMS.values():
        return "AT[P]"
    if system in (UNDEFENDED, LOCAL_PROXY):
        return NAMES[system]
    return "AMC" if system.startswith("amc_") else system


def _row(kind: str, runs: Sequence[Run]) -> list[str]:
    stages = [stage for run in runs for stage in run.results.stages]
    own = [stage.proxy for stage in stages if stage.proxy is not None]
    attackers = [
        proxy for stage in stages for evaluation in stage.evaluations.values() for proxy in evaluation.proxies.values()
    ]
    crafted = [
        f"{run.results.crafting.column.replace('_', '-')} column"
        for run in runs
        if run.results.crafting and run.results.order
    ]
    return [
        kind,
        span(run.results.dataset.counts["train"] for run in runs),
        _span(stage.epochs for stage in stages if stage.index == 0 and stage.steps),
        _span(stage.epochs for stage in stages if stage.index > 0),
        " or ".join(dict.fromkeys(crafted)) or "-",
        _proxies(own),
        _proxies(attackers),
        " or ".join(dict.fromkeys(run.results.preset for run in runs)),
    ]


def _span(values: Iterable[int]) -> str:
    known = list(values)
    return span(known) if known else "-"


def _proxies(found: Sequence[Proxy]) -> str:
    """Return networks, images, queries and epochs of some proxies in short; a dash for none."""
    if not found:
        return "-"
    names = " or ".join(dict.fromkeys(proxy.architecture for proxy in found))
    queries, images = span(proxy.queries for proxy in found), span(proxy.images for proxy in found)
    return f"{names}: {images} images, {queries} queries, {span(proxy.epochs for proxy in found)} epochs"
