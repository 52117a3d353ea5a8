"""Say before anything is trained what a run has to do, and about how long that takes."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from rich.console import Console
from torch import nn

from amc_lightning.attacks import GuardedAttack
from amc_lightning.cascade import Cascade
from amc_lightning.measure_plan import BARE, UNDEFENDED, Job, MeasurementPlan
from amc_lightning.plan import Probe, StageCost, plan_table, probe, stage_cost
from amc_lightning.proxy_recipe import PlannedProxy
from amc_lightning.stages import adversarial_copies, shares_of, validation_interval

PROBE_ROWS = 64  # enough to fill two cores; small enough that the plan is there in seconds


def show_plan(cascade: Cascade, plan: MeasurementPlan, console: Console) -> None:
    """Print what there is to do; what is in the store already is not.

    Args:
        cascade: the stages, and the local proxies they are crafted on.
        plan: the attacks, and the proxies they are crafted on.
        console: where to print.
    """
    config, data = cascade.config, cascade.trainer.data
    counts = data.counts
    console.print(
        f"[bold]{config.name}[/]: {config.defence.name} on {data.name}; {counts['train']:,} training images, held out "
        f"{counts['validation']:,} validation / {counts['attack']:,} attack / {counts['test']:,} test "
        f"(of {sum(data.counts_read.values()):,} read); preset {config.preset.name}, "
        f"seed {config.seed}",
        highlight=False,
    )
    if cascade.proxies is not None:
        images = cascade.proxies.images.counts
        console.print(
            f"hardened under {config.threat_model.name}, measured under {', '.join(plan.threats)}; "
            f"{images['kept']:,} images for queries ({images['overlapping']:,} of the target's own left out)",
            highlight=False,
        )
    todo = _todo(cascade, plan)
    if todo.is_empty:
        return
    probes = _probes(cascade, plan, todo)
    costs = _costs(cascade, todo, probes)
    seconds = sum(
        probes[job.crafter if job.crafter in config.models else None].attack[_title(job)] * job.rows
        for job in todo.jobs
    )
    stored = [planned.stage.title for planned in cascade.recipes if cascade.store.has(planned.key)]
    console.print(plan_table(costs, seconds / 60, stored=stored))


@dataclass(frozen=True)
class _Todo:
    """What is not in the store: indices of stages, their local proxies, proxies of the evaluation, attacks."""

    stages: list[int]
    proxies: list[tuple[int, PlannedProxy]]
    attackers: list[PlannedProxy]
    jobs: list[Job]

    @property
    def is_empty(self) -> bool:
        return not (self.stages or self.attackers or self.jobs)


def _todo(cascade: Cascade, plan: MeasurementPlan) -> _Todo:
    store = cascade.store
    stages = [place for place, planned in enumerate(cascade.recipes) if not store.has(planned.key)]
    local = [(place, proxy) for place in stages if (proxy := cascade.recipes[place].proxy) is not None]
    planned = {
        proxy.key: proxy
        for stage in (recipe.stage for recipe in cascade.recipes)
        for threat_model in plan.measured_under(stage)
        for proxy in plan.planned_proxies(stage, threat_model).values()
    }
    return _Todo(
        stages,
        [(place, proxy) for place, proxy in local if not store.has(proxy.key)],
        [proxy for key, proxy in planned.items() if not store.has(key)],
        [job for recipe in cascade.recipes for job in plan.missing(recipe.stage)],
    )


def _title(job: Job) -> str:
    return f"{job.threat_model} {job.title}"


def _probes(cascade: Cascade, plan: MeasurementPlan, todo: _Todo) -> dict[str | None, Probe]:
    """Time the target (None) and every architecture of a proxy: training, and the attacks that are crafted on it."""
    config, trainer = cascade.config, cascade.trainer
    images, labels = trainer.data.tensors("train", trainer.device)
    batch = slice(0, min(config.schedule.batch_size, PROBE_ROWS))
    x, y = images[batch].float() / 255, labels[batch]
    on_proxy = any(planned.proxy is not None for planned in cascade.recipes)
    attacks: dict[str | None, dict[str, GuardedAttack]] = {None: {} if on_proxy else dict(trainer.attacks)}
    used = {proxy.spec.architecture for _, proxy in todo.proxies} | {p.spec.architecture for p in todo.attackers}
    used |= {job.crafter for job in todo.jobs if job.crafter not in (None, UNDEFENDED, BARE)}
    if on_proxy:
        used.add(config.proxy.architecture)
    for name in sorted(used):
        attacks[name] = dict(trainer.attacks) if on_proxy and name == config.proxy.architecture else {}
    for job in todo.jobs:
        attacks[job.crafter if job.crafter in attacks else None][_title(job)] = job.attack
    nets: Mapping[str | None, nn.Module] = {
        name: (trainer.new_net("probe") if name is None else trainer.fitter.new_net(config.models[name], "probe"))
        for name in attacks
    }
    return {name: probe(net.to(trainer.device), attacks[name], x, y) for name, net in nets.items()}


def _costs(cascade: Cascade, todo: _Todo, probes: Mapping[str | None, Probe]) -> list[StageCost]:
    """Return a row for each stage to train, with the local proxies before it, and one for the proxies that attack."""
    config, data = cascade.config, cascade.trainer.data
    rows = min(config.cascade.validate_rows, data.counts["validation"])
    proxies = dict(todo.proxies)
    found = []
    for place in todo.stages:
        planned = cascade.recipes[place]
        if planned.recipe["kind"] == "given":
            continue
        stage = planned.stage
        if place in proxies:
            found.append(_proxy_cost(cascade, proxies[place], probes))
        target = probes[None]
        if planned.proxy is not None:
            crafter = probes[planned.proxy.spec.architecture]
            target = replace(target, attack=crafter.attack, passes=crafter.passes)
        found.append(
            stage_cost(
                target,
                title=stage.title,
                shares=shares_of(config, stage),
                validated=stage.epochs // validation_interval(config, stage) * rows,
                rows=data.counts["train"],
                steps_per_epoch=-(-data.counts["train"] // config.schedule.batch_size),
                epochs=stage.epochs,
                copies=adversarial_copies(config),
            )
        )
    kinds = Counter(proxy.spec.architecture for proxy in todo.attackers)
    for name, number in kinds.items():
        example = next(proxy for proxy in todo.attackers if proxy.spec.architecture == name)
        cost = _proxy_cost(cascade, example, probes)
        found.append(
            replace(
                cost, title=f"{number} x {name}, to attack", steps=cost.steps * number, minutes=cost.minutes * number
            )
        )
    return found


def _proxy_cost(cascade: Cascade, planned: PlannedProxy, probes: Mapping[str | None, Probe]) -> StageCost:
    assert cascade.proxies is not None
    spec = planned.spec
    count = len(cascade.proxies.images.images(spec.part))
    return stage_cost(
        probes[spec.architecture],
        title=f"proxy {spec.title}",
        shares=spec.shares,
        validated=0,
        rows=count,
        steps_per_epoch=-(-count // cascade.config.proxy.batch_size),
        epochs=spec.epochs,
    )
