"""What report.md says of proxies: those that attacks were made on, P'', and those that hardening used, P'."""

from collections.abc import Iterator

from amc_lightning.report import proxy_wording, wording
from amc_lightning.report.columns import columns
from amc_lightning.report.markdown_table import markdown_table, short_rate
from amc_lightning.report.record import Agreement, Proxy, ProxyData, Results


def black_box_blocks(results: Results) -> Iterator[str]:
    """Yield what stands below the error table of a black-box threat model: how strong its attacks were, and its P''.

    Args:
        results: of which the primary threat model, a black-box one, is shown.
    """
    yield f"### How strong these attacks were: {results.primary}"
    yield "\n".join(f"- {note}" for note in _notes(results) if note)
    yield _strength(results)
    yield f"### Proxies P'': {results.primary}"
    yield (
        f"Agreement: {proxy_wording.AGREEMENT}. Passes: gradient passes of the training per image of the proxy's data. "
        f"In brackets: the {wording.INTERVAL.partition(' (')[0]} (Wilson)."
    )
    rows = [
        [stage.long_label, *_proxy(proxy)] for stage in results.measured for proxy in stage.evaluation.proxies.values()
    ]
    yield markdown_table(["model", "P''", *_HEAD], rows)


def hardening_proxies(results: Results) -> Iterator[str]:
    """Yield the section on the proxies P' that adversarial images for training were made on; nothing without any."""
    found = [(stage, stage.proxy) for stage in results.stages if stage.proxy is not None]
    if not found:
        return
    yield "### Local proxies P' of the hardening"
    yield (
        "Before such a stage a proxy P' learns from the answers of the model as it is then; the stage's adversarial "
        "images are made on P', never with the model's own gradients. Passes: gradient passes of P' per image of its "
        "own data. Agreement: share of the test split on which P' gives the model's answer."
    )
    rows = []
    for stage, proxy in found:
        origin = f"`{proxy.key[:12]}`{', there before' if proxy.from_store else ''}"
        rows.append([f"P' of {stage.long_label}", *_proxy(proxy), proxy.interface, origin])
    yield markdown_table(["proxy", "network", *_HEAD, "interface", "in the store"], rows)


def proxy_data_text(data: ProxyData | None) -> str:
    """Say what proxies were trained on, and how many images were left out because the target's data hold them."""
    if data is None:
        return "none"
    files = "" if data.verified else "; not the official files: unverified"
    halves = "P' and P'' learn from a half each" if data.halves else "P' and P'' learn from the same images"
    return (
        f"{data.source}: {data.read:,} read, {data.overlapping:,} removed as they overlap the target's data, "
        f"{data.repeated:,} removed as repeated, {data.kept:,} kept{files}; {halves}"
    )


_HEAD = ("images", "queries", "epochs", "minutes", "passes per image", "clean error of the proxy", "agreement")


def _proxy(proxy: Proxy) -> list[str]:
    return [
        proxy.architecture,
        f"{proxy.images:,}",
        f"{proxy.queries:,}",
        str(proxy.epochs),
        f"{proxy.minutes:.1f}",
        f"{proxy.passes_per_image:,.0f}",
        short_rate(proxy.clean),
        _agreement(proxy.agreement),
    ]


def _agreement(agreement: Agreement | None) -> str:
    share, interval = proxy_wording.agreement_text(agreement)
    return share if agreement is None else f"{share} ({interval}), {agreement.agree:,} of {agreement.n:,}"


def _notes(results: Results) -> Iterator[str]:
    yield (
        "P'' wrong: the error of the proxy itself on the very same examples, which were made to fool it"
        f"{'; at a budget, within it' if results.budget else ''}."
    )
    if _has_transfer(results):
        yield (
            "M0's examples: made with M0's own gradients and the same parameters, shown to this model; no proxy takes "
            "part. They need M0's weights, which a black-box attacker does not have."
        )
    if len(_architectures(results)) > 1:
        yield "made on: the P'' whose examples did the most harm; of several networks it alone counts."
    yield proxy_wording.what_it_means(results)
    yield proxy_wording.outdone(results)
    hardened = [stage for stage in results.measured if stage.index > 0]
    yield proxy_wording.same_kind_text(proxy_wording.same_kind(results, stage) for stage in hardened)


def _strength(results: Results) -> str:
    """Return the model's errors beside those of P'' on the same examples and those on M0's examples."""
    transfer, several = _has_transfer(results), len(_architectures(results)) > 1
    rows = []
    for stage in results.measured:
        for column in columns(results):
            rate = column.rate(stage)
            if column.group != "attack" or rate is None:
                continue
            row = [stage.long_label, column.title, short_rate(rate), short_rate(rate.proxy)]
            row += [short_rate(stage.evaluation.transfer(column.strength).get(column.key))] if transfer else []
            rows.append([*row, rate.architecture or "-"] if several else row)
    head = ["model", "attack on P''", "model wrong", "P'' wrong"]
    head += ["M0's examples: model wrong"] if transfer else []
    return markdown_table([*head, "made on"] if several else head, rows)


def _has_transfer(results: Results) -> bool:
    return any(stage.evaluation.transfer_paper or stage.evaluation.transfer_check for stage in results.measured)


def _architectures(results: Results) -> set[str]:
    return {name for stage in results.measured for name in stage.evaluation.proxies}
