"""Attacks against the passes they cannot do without, beside other libraries: ``python -m benchmarks.attack_speed``.

The *limit* of an attack is the time of its passes and nothing else: forward and backward to the input with frozen
parameters, and plain forwards, in float32 on the net as it is (contiguous, no autocast), times as many as the attack
must make: FGSM 1; PGD-n n; EAP SxK S*K and S*K plain forwards; VAP-n n and one plain forward. It is timed anew before
and after every call of every library, on a batch of the same size, and a call's ratio is its time over the mean of the
two. A round calls the libraries in turn; the tables have medians over rounds, with the quartiles in brackets. Below 1,
work is left out (EAP) or passes are made cheaper (``fast``, bfloat16).

Libraries get a net in eval mode whose parameters ask for gradients, as users have it. What a user makes once (attack
objects, wrappers, the layout of our folded copy) is made before; what happens in every call is timed: refreshing the
copy's weights, checks of the batch, the guard, ART's way through numpy. foolbox is called by ``run``, without the check
of success that its ``__call__`` adds. EAP's beta is the same for all. ART gets at most 3 rounds; where one call would
take longer than ``--patience`` it gets 8 images, against a limit on 8 images (marked *), and none where that would be
too long as well.

The second table says what came of it: success rate, and the median l-inf distance (FGSM, PGD) or elastic-net distance
of the images that fool (EAP), or for VAP the mean KL(f(x) || f(x + d)). EAP starts from images that the net gets right.
On a GPU every time includes a synchronisation. With both nets and nine rounds it takes more than an hour on one thread.
"""

import argparse
import dataclasses
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from benchmarks.rivals import COLUMNS, OURS, Call, LeftOutError, Row, prepared
from benchmarks.subjects import Subject, trained

# Multiples of the limit that ART was seen to take, to leave out what would take too long.
ART_MULTIPLES = {"fgsm": 2, "pgm": 2, "eap": 20, "vap": 200}
ART_ROWS = 8
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
READS = ("aten::_local_scalar_dense", "aten::nonzero")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
PROFILED = ("FGSM", "PGD-20", "EAP 5x8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables of every net."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--only", choices=("lenet", "resnet32"))
    parser.add_argument("--rows", default="", help="only rows whose title starts so, such as PGD")
    parser.add_argument("--beta", type=float, default=0.01, help="of EAP; torchattacks and ART have 0.001 by default")
    parser.add_argument("--quick", action="store_true", help="one round on few images: does it run?")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--profile", action="store_true", help="where time goes; always on a GPU")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds that one call of ART may take")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "amc_benchmarks")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.batch, options.patience = 1, min(options.batch, 8), 3.0
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {name}, {options.rounds} rounds\n")
    for net in ("lenet", "resnet32"):
        if options.only in (None, net):
            subject = trained(net, cache=options.cache, quick=options.quick, device=device)
            rows = [
                row for row in _rows(subject, options.beta, quick=options.quick) if row.title.startswith(options.rows)
            ]
            bench = Bench(subject, options.batch, options.rounds, options.patience)
            bench.tables(rows)
            if not options.rows:
                bench.evaluation()
            if options.profile or device.type == "cuda":
                bench.profile([row for row in rows if row.title in PROFILED])


def _rows(subject: Subject, beta: float, *, quick: bool) -> list[Row]:
    eps = subject.eps
    rows = [Row("FGSM", "fgsm", {"eps": eps})]
    rows += [Row(f"PGD-{n}", "pgm", {"eps": eps, "eps_iter": 2.5 * eps / n, "nb_iter": n}, gradient=n) for n in (5, 20)]
    searches = [(1, 5, 1.0, 0.1, None), (5, 8, 1.0, 0.05, None), (9, 100, 1e-3, 0.01, 3)]
    for abort in (False, True):
        for s, k, c, learning_rate, rounds in searches:
            if quick and k == 100:
                s, k = 2, 10
            arguments = {
                "beta": beta,
                "binary_search_steps": s,
                "max_iterations": k,
                "initial_const": c,
                "learning_rate": learning_rate,
                "abort_early": abort,
            }
            title = f"EAP {s}x{k}" + (", abort" if abort else "")
            batch = 16 if rounds and subject.name == "resnet32" else None
            rows.append(Row(title, "eap", arguments, gradient=s * k, forward=s * k, rounds=rounds, batch=batch))
    for method in ("exact", "logit"):
        for n in (1, 4):
            vap = {"eps": subject.vap_eps, "num_iters": n, "method": method}
            rows.append(Row(f"VAP-{n} {method}", "vap", vap, gradient=n, forward=1))
    return rows


class Bench:
    """Times attacks on one net, and says what came of them."""

    def __init__(self, subject: Subject, batch: int, rounds: int, patience: float) -> None:
        self.subject = subject
        self.batch = batch
        self.rounds = rounds
        self.patience = patience
        self.shape = tuple(subject.x.shape[1:])
        self.repeats: dict[tuple[int, bool], int] = {}

    def tables(self, rows: Sequence[Row]) -> None:
        """Print times as ratios to the limit, then what came of them."""
        print(f"### {self.subject.title}, batch {self.batch}\n\nTime as a multiple of the limit, median [quartiles].\n")
        print(f"| attack | {' | '.join(COLUMNS)} | limit, ms |\n|{' --- |' * (len(COLUMNS) + 2)}")
        results = []
        for row in rows:
            cells, results_of_row, limit = self.row(row)
            print(f"| {row.title} | {' | '.join(cells)} | {1e3 * limit:.3g} |", flush=True)
            results.append(f"| {row.title} | {' | '.join(results_of_row)} |")
        print("\nSuccess rate / median distance (FGSM, PGD l-inf; EAP elastic net); VAP: mean KL.\n")
        print(f"| attack | {' | '.join(COLUMNS)} |\n|{' --- |' * (len(COLUMNS) + 1)}")
        print("\n".join(results) + "\n", flush=True)

    def row(self, row: Row) -> tuple[list[str], list[str], float]:
        """Time one attack in every library; return cells of both tables and the limit in seconds."""
        calls: dict[str, Call] = {}
        cells: dict[str, str] = {}
        batches: dict[str, tuple[Tensor, Tensor]] = {}
        for column in COLUMNS:
            try:
                calls[column] = prepared(column, row, self.subject.net, self.shape)
                batches[column] = self.images(row, column)
            except LeftOutError as reason:
                calls.pop(column, None)
                cells[column] = str(reason)
        limit = self.limit(row, batches["plain"][0])
        for column, call in calls.items():
            if limit < 3 and column != "ART":
                self.called(call, *batches[column])  # first calls make caches
        ratios: dict[str, list[float]] = {column: [] for column in calls}
        came: dict[str, str] = {}
        for index in range(min(self.rounds, row.rounds or self.rounds)):
            for column, call in calls.items():
                if column == "ART" and index >= 3:
                    continue
                x, y = batches[column]
                before = self.limit(row, x)
                seconds, x_adv = self.called(call, x, y)
                ratios[column].append(2 * seconds / (before + self.limit(row, x)))
                came[column] = self.outcome(row, x, y, x_adv)
        for column, values in ratios.items():
            mark = " *" if len(batches[column][0]) < len(batches["plain"][0]) else ""
            cells[column] = _cell(values) + mark
            came[column] += mark
        return [cells[column] for column in COLUMNS], [came.get(column, "-") for column in COLUMNS], limit

    def images(self, row: Row, column: str) -> tuple[Tensor, Tensor]:
        """Return the batch of one library in one row.

        Raises:
            LeftOutError: if ART would take too long even on a few images.
        """
        x, y = self.subject.x, self.subject.y
        if row.attack == "eap":
            x, y = x[self.subject.right], y[self.subject.right]
        counts = [min(self.batch, row.batch or self.batch)]
        if column == "ART":
            multiple = ART_MULTIPLES[row.attack] * (5 if row.attack == "vap" and self.shape[0] == 3 else 1)
            counts = [n for n in (counts[0], ART_ROWS) if multiple * self.limit(row, x[:n]) < self.patience]
        if not counts:
            raise LeftOutError("too slow")
        return x[: counts[0]], y[: counts[0]]

    def limit(self, row: Row, x: Tensor) -> float:
        """Return the seconds that the passes of a row take now, on bare ``x``."""
        forward = row.forward * self.unit(x, gradient=False) if row.forward else 0.0
        return row.gradient * self.unit(x, gradient=True) + forward

    def unit(self, x: Tensor, *, gradient: bool) -> float:
        """Return the seconds of one bare pass, mean over at least a tenth of a second."""
        net, point = self.subject.net, x.detach().clone().requires_grad_(gradient)
        key = len(x), gradient
        net.requires_grad_(False)

        def once() -> None:
            with torch.set_grad_enabled(gradient):
                logits = net(point)
            if gradient:
                torch.autograd.grad(logits.logsumexp(dim=1).sum(), point)

        if key not in self.repeats:
            once()
            self.repeats[key] = max(2, round(0.1 / self.seconds(once)))
        repeats = self.repeats[key]
        seconds = self.seconds(lambda: [once() for _ in range(repeats)]) / repeats
        net.requires_grad_(True)
        return seconds

    def called(self, call: Call, x: Tensor, y: Tensor) -> tuple[float, Tensor]:
        """Time one call; leave no gradients behind."""
        made: list[Tensor] = []
        seconds = self.seconds(lambda: made.append(call(x, y)))
        self.subject.net.zero_grad(set_to_none=True)
        self.subject.net.eval()
        return seconds, made[0].detach()

    def seconds(self, call: Callable[[], object]) -> float:
        """Return the wall time of a call, with the device's work done."""
        synchronize = torch.cuda.synchronize if self.subject.x.is_cuda else lambda: None
        synchronize()
        start = time.perf_counter()
        call()
        synchronize()
        return time.perf_counter() - start

    @torch.no_grad()
    def outcome(self, row: Row, x: Tensor, y: Tensor, x_adv: Tensor) -> str:
        """Say what an attack reached."""
        before, after = self.subject.net(x).log_softmax(dim=1), self.subject.net(x_adv).log_softmax(dim=1)
        if row.attack == "vap":
            kl = functional.kl_div(after, before, reduction="none", log_target=True).sum(dim=1)
            lost = int(kl.isnan().sum())
            return f"{kl.nanmean():.3f}" + (f", {lost} NaN" if lost else "")
        fooled = after.argmax(dim=1) != y
        delta = (x_adv - x).flatten(1)
        if row.attack == "eap":
            distance = delta.square().sum(dim=1) + row.arguments["beta"] * delta.abs().sum(dim=1)
            fooled &= (x_adv != 0).flatten(1).any(dim=1)  # foolbox gives black images where it fails
            distance = distance[fooled]
        else:
            distance = delta.abs().amax(dim=1)
        return f"{fooled.float().mean():.2f} / {distance.median():.4g}"

    def evaluation(self) -> None:
        """Print PGD-20 as an evaluation makes it: rows leave the batch as soon as they are fooled."""
        eps = self.subject.eps
        row = Row("PGD-20", "pgm", {"eps": eps, "eps_iter": 2.5 * eps / 20, "nb_iter": 20}, gradient=20)
        variants = {"last point": {}, "best point": {"keep_best": True}, "compact": {"compact": True}}
        calls = {"torchattacks": prepared("torchattacks", row, self.subject.net, self.shape)}
        for execution in ("plain", "fast"):
            for title, more in variants.items():
                own = dataclasses.replace(row, arguments={**row.arguments, **more})
                calls[f"{execution}, {title}"] = prepared(execution, own, self.subject.net, self.shape)
        x, y = self.images(row, "plain")
        ratios: dict[str, list[float]] = {title: [] for title in calls}
        fooled: dict[str, Tensor] = {}
        for title, call in calls.items():
            x_adv = self.called(call, x, y)[1]
            with torch.no_grad():
                fooled[title] = self.subject.net(x_adv).argmax(dim=1) != y
        for _ in range(self.rounds):
            for title, call in calls.items():
                before = self.limit(row, x)
                seconds, _ = self.called(call, x, y)
                ratios[title].append(2 * seconds / (before + self.limit(row, x)))
        reference = statistics.median(ratios["torchattacks"])
        print(f"PGD-20 as an evaluation, {len(x)} images, time as a multiple of 20 passes.\n")
        print("| | time | times torchattacks' speed | success | rows that differ from the plain best point |")
        print("| --- | --- | --- | --- | --- |")
        for title, values in ratios.items():
            differ = int((fooled[title] != fooled["plain, best point"]).sum())
            speed = reference / statistics.median(values)
            print(f"| {title} | {_cell(values)} | {speed:.1f} | {fooled[title].float().mean():.3f} | {differ} |")
        print(flush=True)

    def profile(self, rows: Sequence[Row]) -> None:
        """Print launches, waits of the host and the costliest operations of one call."""
        on_gpu = self.subject.x.is_cuda
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
        print(f"Where the time of one call goes, batch {self.batch}; reads: values the host asked for.\n")
        print("| attack | library | operations | launches | reads | waits | ms | costliest, share of the time |")
        print(f"|{' --- |' * 8}")
        for row in rows:
            for column in ("torchattacks", *OURS):
                call = prepared(column, row, self.subject.net, self.shape)
                x, y = self.images(row, column)
                self.called(call, x, y)
                with profile(activities=activities) as recorded:
                    self.called(call, x, y)
                events = recorded.key_averages()
                counts = {event.key: event.count for event in events}
                spent = {e.key: e.self_device_time_total if on_gpu else e.self_cpu_time_total for e in events}
                total = max(1, sum(spent.values()))
                costly = sorted(spent, key=spent.__getitem__, reverse=True)[:5]
                cells = [sum(n for key, n in counts.items() if key.startswith("aten::"))]
                cells += [sum(counts.get(key, 0) for key in keys) for keys in (LAUNCHES, READS, WAITS)]
                shares = ", ".join(f"{key[:40]} {100 * spent[key] / total:.0f} %" for key in costly)
                line = " | ".join(map(str, cells))
                print(f"| {row.title} | {column} | {line} | {total / 1e3:.1f} | {shares} |", flush=True)
        print()


def _cell(ratios: Sequence[float]) -> str:
    if len(ratios) < 3:
        return " ".join(f"{ratio:.3g}" for ratio in ratios)
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main()
