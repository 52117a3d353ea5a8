"""Attacks inside a training step: on every rank of a distributed run, and within one process."""

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import yaml
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from amc_lightning.attacks import GuardedAttack, build
from tests.attacks.conftest import SmallNet, seeded

CONF = Path(__file__).parents[2] / "conf"
RANKS = 2
ROWS = 4  # of each rank
SECONDS = 60.0


def pgm(steps: int) -> GuardedAttack:
    spec = yaml.safe_load((CONF / "attack" / "pgm.yaml").read_text())
    return build("pgm", spec, {"nb_iter": steps, "eps_iter": 0.1}, image_shape=(1, 12, 12))


def still_net() -> SmallNet:
    """A net whose answer for a row is the same in every batch, so that two half batches make a whole one."""
    with seeded(0):
        net = SmallNet()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.Dropout):
            module.eval()
    return net


def images(rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(10 + rank)
    return torch.rand(ROWS, 1, 12, 12, generator=generator), torch.randint(5, (ROWS,), generator=generator)


def craft(model: nn.Module, rank: int) -> Tensor:
    """Another number of passes on every rank, so that whoever waits for the other in one of them waits for ever."""
    return pgm(2 + rank)(model, *images(rank), generator=torch.Generator().manual_seed(rank))


def train(model: nn.Module, ranks: list[int], optimizer: torch.optim.Optimizer, quiet: Callable[[], object]) -> Tensor:
    """Make one step over the rows of ``ranks``, in two parts whose gradients add up; return the adversarial images."""
    x, y = (torch.cat(parts) for parts in zip(*map(images, ranks), strict=True))
    optimizer.zero_grad()
    with quiet():
        cross_entropy(model(x), y).backward()
    x_adv = torch.cat([craft(model, rank) for rank in ranks])
    loss = cross_entropy(model(torch.cat([x, x_adv])), torch.cat([y, y]))
    for rank in ranks:
        craft(model, rank)
    loss.backward()
    optimizer.step()
    return x_adv


def counted_reduction(calls: list[int], bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    calls.append(bucket.index())
    future = dist.all_reduce(bucket.buffer().div_(RANKS), async_op=True).get_future()
    return future.then(lambda done: done.value()[0])


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=timedelta(seconds=20))
    try:
        net, calls = still_net(), []
        model = DistributedDataParallel(net)
        model.register_comm_hook(calls, counted_reduction)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        x_advs = [train(model, [rank], optimizer, model.no_sync) for _ in range(2)]
        gradients = [parameter.grad for parameter in net.parameters()]
        result = {"x_advs": x_advs, "gradients": gradients, "state": net.state_dict(), "reductions": len(calls)}
        torch.save(result, f"{folder}/{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """What every rank has after two steps."""
    folder = tmp_path_factory.mktemp("ranks")
    processes = mp.start_processes(run_rank, (str(folder),), nprocs=RANKS, join=False, start_method="spawn")
    deadline = time.monotonic() + SECONDS
    try:
        while not processes.join(timeout=1.0):  # raises what a rank has raised
            assert time.monotonic() < deadline, "the ranks wait for each other"
    finally:
        for process in processes.processes:
            process.kill()
            process.join()
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.slow
def test_ranks_together_train_as_one_process_does(ranks: list[dict[str, object]]) -> None:
    """Gradients of the second step hold all that could go wrong in the first."""
    net = still_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    x_advs = [train(net, [*range(RANKS)], optimizer, torch.enable_grad) for _ in range(2)]
    for step in range(2):
        crafted = torch.cat([result["x_advs"][step] for result in ranks])
        assert not torch.equal(crafted, torch.cat([images(rank)[0] for rank in range(RANKS)]))
        torch.testing.assert_close(crafted, x_advs[step], rtol=0, atol=1e-5)
    for result in ranks:
        torch.testing.assert_close(result["gradients"], [p.grad for p in net.parameters()], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(result["state"], net.state_dict(), rtol=1e-4, atol=1e-6)


def test_ranks_have_the_same_weights(ranks: list[dict[str, object]]) -> None:
    torch.testing.assert_close(ranks[0]["state"], ranks[1]["state"], rtol=0, atol=0)
    torch.testing.assert_close(ranks[0]["gradients"], ranks[1]["gradients"], rtol=0, atol=0)


def test_crafting_reduces_no_gradients(ranks: list[dict[str, object]]) -> None:
    """One bucket, two steps, and four attacks that are to add nothing."""
    assert [result["reductions"] for result in ranks] == [2, 2]


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.AdamW])
def test_steps_with_attacks_in_between_are_those_without(optimizer_class: type[torch.optim.Optimizer]) -> None:
    """Gradients accumulated over two parts, batch norm and dropout in train mode, attacks everywhere between."""
    finals = []
    for attacked in (False, True):
        with seeded(0):
            net = SmallNet()
            optimizer = optimizer_class(net.parameters(), lr=0.1)

            def attack(net: nn.Module = net, attacked: bool = attacked) -> None:
                if attacked:
                    craft(net, 0)

            for _ in range(2):
                attack()
                optimizer.zero_grad()
                for part in range(2):
                    attack()
                    x, y = images(part)
                    loss = cross_entropy(net(x), y)
                    attack()
                    loss.backward()
                attack()
                optimizer.step()
        finals.append(net.state_dict())
    torch.testing.assert_close(finals[1], finals[0], rtol=0, atol=0)
    assert finals[0]["body.1.num_batches_tracked"] == 4
