"""The claim of SWL: the higher a subgraph network's class, the more graphs it tells apart and the better it counts.

    python benchmarks/claim_swl.py --seeds 3 [--data FOLDER] [--kind 5-cycle] [--graphs 1000] [--epochs 40]

First the tests themselves, which no training blurs: for every strict step of the hierarchy a pair of graphs (Furer
graphs over a small base graph) that the stronger class tells apart and the weaker does not, and pairs of strongly
regular graphs, which no test up to 2-FWL tells apart (two of 16 nodes; FOLDER may hold more as ``*.g6``). No pair may
be against the order, told apart by a weaker class and not by a stronger one. The Furer graphs of a complete base graph
of four nodes are a control: no test here separates them.

Then networks of four kinds learn to count substructures of random graphs: equal width and depth, labels by distance
alone, one protocol (Adam at 0.002, cosine, L1 loss, batches of 32; three fifths of the graphs to train, a fifth for the
test, as the last epoch gives it). The error should fall from SWL(VS) over PSWL(VS) and GNN-SSWL to GNN-SSWL+ (which is
of GNN-SSWL's class, and in the paper the better network), and a step is shown when the means differ by more than the
larger spread over the seeds (so never with one seed).

The claim holds when all pairs and all steps of the errors are as said. It does not hold when a pair is against the
order or SWL(VS) does not count worst; otherwise it holds partly.

The result is written after every run, and says how many there are; the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import statistics
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import networkx as nx
import torch
from figures import Point, draw
from torch_geometric.loader import DataLoader

from torchstone import create_model
from torchstone.data.substructures import KINDS, substructure_graphs
from torchstone.environment import write_result
from torchstone.files import read_json
from torchstone.models.graph.swl import SEPARATIONS, STEPS, TESTS, Graph, distinguishes, furer_graphs

RESULT = Path(__file__).parent / "results" / "claims" / "swl.json"
FIGURE = Path(__file__).parents[1] / "docs" / "images" / "swl_counting.svg"
NETWORKS = {"swl_vs": "SWL(VS)", "pswl_vs": "PSWL(VS)", "gnn_sswl": "GNN-SSWL", "gnn_sswl_plus": "GNN-SSWL+"}
STAGES = (0.125, 0.25, 0.5, 1.0)  # of the epochs, where the test error is taken for the figure
CONTROL = tuple(combinations(range(4), 2))
HOLDS = {"yes": "the claim holds", "partly": "the claim holds in part", "no": "the claim does not hold"}


def edges_of(graph: nx.Graph) -> Graph:
    """Both directions of all edges, and the number of nodes."""
    numbered = nx.convert_node_labels_to_integers(graph)
    one_way = torch.tensor(list(numbered.edges)).T
    return torch.cat([one_way, one_way.flip(0)], 1), numbered.number_of_nodes()


def strongly_regular(folder: Path | None) -> dict[str, tuple[Graph, Graph]]:
    """The rook's graph of a board of 4 x 4 and Shrikhande's; of every family in the folder the first two."""
    fields = [(row, column) for row in range(4) for column in range(4)]
    steps = {(0, 1), (0, 3), (1, 0), (3, 0), (1, 1), (3, 3)}
    rook = nx.line_graph(nx.complete_bipartite_graph(4, 4))
    shrikhande = nx.Graph(
        (one, other)
        for one, other in combinations(fields, 2)
        if ((one[0] - other[0]) % 4, (one[1] - other[1]) % 4) in steps
    )
    found = {"rook and Shrikhande": (edges_of(rook), edges_of(shrikhande))}
    for file in sorted(folder.glob("*.g6")) if folder else []:
        lines = file.read_bytes().split(b"\n")[:2]
        one, other = (edges_of(nx.from_graph6_bytes(line)) for line in lines)
        found[file.stem] = (one, other)
    return found


def told_apart(one: Graph, other: Graph) -> dict[str, bool]:
    """Which tests tell two graphs apart."""
    return {test: distinguishes(test, one, other) for test in TESTS}


def separations(folder: Path | None) -> dict[str, Any]:
    """What each test tells apart, and whether the hierarchy shows on these pairs."""
    bases = dict.fromkeys([*SEPARATIONS.values(), CONTROL])
    furer = [{"base": base, "told_apart": told_apart(*furer_graphs(base))} for base in bases]
    regular = {name: told_apart(*pair) for name, pair in strongly_regular(folder).items()}
    rows: Any = [*(entry["told_apart"] for entry in furer), *regular.values()]
    steps = {f"{weak} < {strong}": any(row[strong] and not row[weak] for row in rows) for weak, strong in STEPS}
    return {
        "never_against_the_order": not any(row[weak] and not row[strong] for row in rows for weak, strong in STEPS),
        "strict_steps_shown": sum(steps.values()),
        "strict_steps": steps,
        "strongly_regular_pairs_told_apart": sum(any(row.values()) for row in regular.values()),
        "furer_graphs": furer,
        "strongly_regular": regular,
    }


def train(name: str, seed: int, given: argparse.Namespace) -> list[float]:
    """The error on the test graphs at each of the stages, in standard deviations of the count."""
    graphs: Any = substructure_graphs(given.kind, graphs=given.graphs, seed=0)
    fifth = given.graphs // 5
    torch.manual_seed(seed)
    model = create_model(name, hidden_channels=32, num_layers=3, node_types=False)
    loader = DataLoader(graphs[: 3 * fifth], batch_size=32, shuffle=True, drop_last=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    steps = given.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    stages = [max(1, round(stage * given.epochs)) for stage in STAGES]
    errors = []
    for epoch in range(1, given.epochs + 1):
        model.train()
        for batch in loader:
            loss = (model(batch.x, batch.edge_index, batch.batch) - batch.y).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if epoch in stages:
            errors.append(round(evaluate(model, graphs[-fifth:]), 4))
    print(f"{name}, seed {seed}: {errors}", flush=True)
    return errors


@torch.no_grad()
def evaluate(model: torch.nn.Module, graphs: list[Any]) -> float:
    """Mean absolute error."""
    model.eval()
    batches = DataLoader(graphs, batch_size=64)
    wrong = [(model(batch.x, batch.edge_index, batch.batch) - batch.y).abs() for batch in batches]
    return float(torch.cat(wrong).mean())


def verdict(tests: dict[str, Any], errors: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """Means over the seeds that all networks have, what each step of them shows, and whether the claim holds."""
    seeds = sorted(set.intersection(*(set(runs) for runs in errors.values())))
    last = {name: [runs[seed][-1] for seed in seeds] for name, runs in errors.items()}
    means = {name: statistics.mean(values) for name, values in last.items() if seeds}
    spread = {name: statistics.stdev(values) for name, values in last.items() if len(seeds) > 1}
    steps = {
        f"{NETWORKS[one]} to {NETWORKS[other]}": {
            "falls_by": round(means[one] - means[other], 4),
            "shown": bool(spread) and means[one] - means[other] > max(spread[one], spread[other]),
        }
        for one, other in pairwise(means)
    }
    worst = bool(seeds) and means["swl_vs"] == max(means.values())
    apart = tests["strict_steps_shown"] == len(STEPS) and tests["strongly_regular_pairs_told_apart"] == 0
    falls = bool(steps) and all(step["shown"] for step in steps.values())
    agrees = tests["never_against_the_order"]
    return {
        "holds": "yes" if agrees and apart and falls else "partly" if agrees and worst else "no",
        "never_against_the_order": agrees,
        "strict_steps_shown": f"{tests['strict_steps_shown']} of {len(STEPS)}",
        "weakest_class_counts_worst": worst,
        "error_falls_at_every_step": falls,
        "steps_of_the_error": steps,
        "error": {
            name: {
                "mean": round(means[name], 4),
                "std": round(spread[name], 4) if spread else None,
                "seeds": len(seeds),
            }
            for name in means
        },
    }


def keep(command: str, tests: dict[str, Any], errors: dict[str, dict[str, list[float]]]) -> str:
    """Write what there is; whether the claim holds so far."""
    seeds = sorted({int(seed) for runs in errors.values() for seed in runs})
    results = {**verdict(tests, errors), "errors_at_stages": errors, "tests": tests}
    write_result(RESULT, command=command, seeds=seeds, results=results)
    return results["holds"]


def picture(kind: str, epochs: int, holds: str, errors: dict[str, dict[str, list[float]]]) -> None:
    """The test error of each network against the epochs, and what it amounts to."""
    lines = {}
    for name, runs in errors.items():
        columns = list(zip(*runs.values(), strict=True))
        lines[NETWORKS[name]] = [
            Point(
                max(1, round(stage * epochs)),
                statistics.mean(column),
                statistics.stdev(column) if len(column) > 1 else 0.0,
            )
            for stage, column in zip(STAGES, columns, strict=True)
        ]
    seeds = min(len(runs) for runs in errors.values())
    title = f"Counting the {kind}s of random graphs, {seeds} seed{'s' * (seeds > 1)}: {HOLDS[holds]}"
    top = max(point.mean + point.std for line in lines.values() for point in line)
    draw(FIGURE, lines, title=title, x="epochs", y="test error / spread of counts", top=-(-top // 0.5) / 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a folder of strongly regular graphs, *.g6")
    parser.add_argument("--kind", choices=KINDS, default="5-cycle")
    parser.add_argument("--graphs", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=int, help="train at most so many networks now; the next call goes on")
    given = parser.parse_args()
    torch.set_num_threads(1)
    command = "python benchmarks/claim_swl.py" + (" --data FOLDER" if given.data else "")
    command += f" --kind {given.kind} --graphs {given.graphs} --epochs {given.epochs} --seeds {given.seeds}"
    before: Any = read_json(RESULT) if RESULT.is_file() else {"command": ""}
    errors: Any = {name: {} for name in NETWORKS}
    if before["command"].rpartition(" --seeds ")[0] == command.rpartition(" --seeds ")[0]:
        errors = before["results"]["errors_at_stages"]
    tests = separations(given.data)
    waiting = [(name, seed) for seed in range(given.seeds) for name in NETWORKS if str(seed) not in errors[name]]
    for name, seed in waiting[: given.runs]:
        errors[name][str(seed)] = train(name, seed, given)
        keep(command, tests, errors)
    holds = keep(command, tests, errors)
    if all(errors.values()):
        picture(given.kind, given.epochs, holds, errors)


if __name__ == "__main__":
    main()
