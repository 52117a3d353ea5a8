"""One stage of results.json as typed values: how it was trained, and how it was measured under each threat model."""

from collections.abc import Sequence

from amc_lightning.report.node import Node
from amc_lightning.report.record import Agreement, Evaluation, Norm, Proxy, Rate, Stage, Strength

OTHERS: tuple[Strength, ...] = ("stronger", "predicted", "judge")


def read_stage(node: Node, threat_models: Sequence[str], *, is_first: bool) -> Stage:
    """Check one entry of "stages".

    Args:
        node: the entry.
        threat_models: those that the run measures under, in its order; no other may stand in the entry.
        is_first: whether the file is of the first format, with one evaluation, under the only threat model.

    Raises:
        UserError: if a field is missing or of a wrong type.
    """
    if is_first:
        evaluations = {threat_models[0]: _evaluation(node.child("evaluation"), threat_models[0])}
    else:
        found = node.child("evaluations")
        for name in found.raw:
            if name not in threat_models:
                found.fail(name, f"nothing: threat_models are {', '.join(threat_models)}")
        evaluations = {name: _evaluation(found.child(name), name) for name in threat_models if name in found.raw}
    proxy = node.optional_child("proxy")
    return Stage(
        index=int(node.number("index")),
        name=node.text("name"),
        attack=node.optional_text("attack"),
        epochs=int(node.number("epochs")),
        steps=int(node.number("steps")),
        minutes=node.number("minutes"),
        rows=node.child("rows").counts(),
        passes_per_image=node.number("gradient_passes_per_image"),
        evaluations=evaluations,
        key=node.optional_text("key") or "",
        from_store="from_store" in node.raw and node.flag("from_store"),
        proxy=None if proxy is None else _proxy(proxy, proxy.text("architecture"), proxy.text("interface")),
    )


def _evaluation(node: Node, threat_model: str) -> Evaluation:
    transfer = node.optional_child("transfer")
    return Evaluation(
        clean=_rate(node.child("clean")),
        paper=_rates(node.child("paper")),
        check=_rates(node.child("check")),
        proxies={
            name: _proxy(entry, name, threat_model)
            for name, entry in node.child("proxies", optional=True).children().items()
        },
        transfer_paper={} if transfer is None else _rates(transfer.child("paper")),
        transfer_check={} if transfer is None else _rates(transfer.child("check")),
        others={name: _rates(node.child(name)) for name in OTHERS if name in node.raw},
    )


def _proxy(node: Node, architecture: str, interface: str) -> Proxy:
    clean, agreement = node.optional_child("clean"), node.optional_child("agreement")
    return Proxy(
        architecture=architecture,
        key=node.text("key"),
        images=int(node.number("images")),
        queries=int(node.number("queries")),
        epochs=int(node.number("epochs")),
        minutes=node.number("minutes"),
        passes_per_image=node.number("gradient_passes_per_image"),
        clean=None if clean is None else _rate(clean),
        agreement=None if agreement is None else _agreement(agreement),
        interface=interface,
        from_store="from_store" in node.raw and node.flag("from_store"),
    )


def _agreement(node: Node) -> Agreement:
    return Agreement(
        n=int(node.number("n")),
        agree=int(node.number("agree")),
        share=node.number("share"),
        low=node.number("low"),
        high=node.number("high"),
    )


def _rates(node: Node) -> dict[str, Rate]:
    return {name: _rate(entry) for name, entry in node.children().items()}


def _rate(node: Node) -> Rate:
    proxy = node.optional_child("proxy")
    return Rate(
        n=int(node.number("n")),
        wrong=node.number("wrong"),
        error=node.number("error"),
        low=node.number("low"),
        high=node.number("high"),
        norms={
            name: Norm(entry.number("median"), entry.number("max"))
            for name, entry in node.child("norms", optional=True).children().items()
        },
        quantiles={
            name: {quantile: entry.number(quantile) for quantile in entry.raw}
            for name, entry in node.child("quantiles", optional=True).children().items()
            if None not in entry.raw.values()  # null where no row was fooled
        },
        gradient_passes=node.optional_number("gradient_passes"),
        most_passes=node.optional_number("most_passes"),
        zero_gradient=int(node.optional_number("zero_gradient") or 0),
        architecture=node.optional_text("architecture") or "",
        proxy=None if proxy is None else _rate(proxy),
    )
