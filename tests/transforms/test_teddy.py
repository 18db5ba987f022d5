"""TEDDY: what the scores mean, which edges and weights are left, and how sparse networks are trained."""

import copy
import json
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from torchstone.catalog import card, result
from torchstone.errors import CallError, ShapeError, UnknownName
from torchstone.models.registry import build_model
from torchstone.training.fit import fit
from torchstone.training.model_folders import export, open_model, transform_model
from torchstone.training.nodes import NodeClassifier
from torchstone.training.predict import predict
from torchstone.training.recipe import TransformSpec, load_recipe
from torchstone.training.runs import load_run
from torchstone.transforms import teddy

pytestmark = pytest.mark.system("teddy")

FEATURES, CLASSES, NODES = 5, 3, 20


def graph(seed=0, edges=40, nodes=NODES):
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.combinations(torch.arange(nodes))
    one_way = pairs[torch.randperm(len(pairs), generator=generator)[:edges]].T
    return torch.randn(nodes, FEATURES, generator=generator), torch.cat([one_way, one_way.flip(0)], 1)


def network(name="pyg:gcn", **kwargs):
    torch.manual_seed(0)
    return build_model(name, in_channels=FEATURES, out_channels=CLASSES, hidden_channels=8, **kwargs).eval()


def trainer(steps=5, lr=0.05):
    """A ``finetune`` that trains; what it was asked for is in ``.calls``."""

    def finetune(model, loss=None):
        finetune.calls.append((model, loss))
        x, edge_index = graph()
        optimizer = torch.optim.Adam(model.train().parameters(), lr=lr)
        for _ in range(steps):
            value = model(x, edge_index)[:6].square().mean() if loss is None else loss(model, None)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        return model

    finetune.calls = []
    return finetune


def batches():
    labels = torch.arange(NODES) % CLASSES
    labels[6:] = -1
    return [(graph(), labels)]


# --- edges


def test_scores_are_the_equation():
    _, edge_index = graph()
    a = torch.zeros(NODES, NODES, dtype=torch.float64)
    a[edge_index[1], edge_index[0]] = 1
    for loops in (False, True):
        if loops:
            a = a + torch.eye(NODES)
        degree = a.sum(1)
        near = torch.where(degree > 0, (a @ degree.clamp(min=1).rsqrt()) / degree.clamp(min=1), 0)
        node = near / degree.clamp(min=1)
        expected = (node[:, None] * node[None])[edge_index[1], edge_index[0]].float()
        torch.testing.assert_close(teddy.edge_scores(edge_index, NODES, self_loops=loops), expected)


def test_an_edge_between_hubs_goes_first():
    """Two stars whose centres are linked."""
    spokes = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 0], [2, 3, 4, 5, 6, 7, 8, 9, 1]])
    edge_index = torch.cat([spokes, spokes.flip(0)], 1)
    gone = teddy.rank_edges(edge_index, 10)[:2]
    assert {tuple(edge.tolist()) for edge in edge_index[:, gone].T} == {(0, 1), (1, 0)}
    assert (
        teddy.rank_edges(edge_index, 10, criterion="reverse")[-2:].sort().values.tolist() == gone.sort().values.tolist()
    )


@pytest.mark.parametrize("criterion", teddy.CRITERIA)
def test_the_ranking_depends_on_neither_order_nor_repetition_of_the_call(criterion):
    _, edge_index = graph()
    order = torch.randperm(edge_index.shape[1])
    first = edge_index[:, teddy.rank_edges(edge_index, NODES, criterion=criterion)]
    again = edge_index[:, order][:, teddy.rank_edges(edge_index[:, order], NODES, criterion=criterion)]
    assert torch.equal(first, again)


@pytest.mark.parametrize("criterion", teddy.CRITERIA)
@pytest.mark.parametrize("loops", [False, True])
def test_one_pair_at_most_is_split_and_loops_go_last(criterion, loops):
    _, edge_index = graph()
    edge_index = torch.cat([edge_index, torch.tensor([[0, 3], [0, 3]])], 1)
    for sparsity in (0.1, 0.33, 0.5, 0.9):
        left = teddy.prune_edges(edge_index, NODES, sparsity, criterion=criterion, self_loops=loops)
        removed = int((82 + (NODES - 2 if loops else 0)) * sparsity)
        assert left.shape[1] == max(82 - removed, 0)
        pairs = {tuple(edge) for edge in left.T.tolist()}
        assert sum((j, i) not in pairs for i, j in pairs) <= 1
        if left.shape[1] >= 2:
            assert {(0, 0), (3, 3)} <= pairs


def test_random_edges_are_drawn_by_lot_from_the_seed():
    _, edge_index = graph(edges=190)
    draws = [set(teddy.kept_edges(edge_index, NODES, 0.5, criterion="random", seed=seed).tolist()) for seed in range(8)]
    assert len({frozenset(draw) for draw in draws}) == 8
    _, pairs = torch.stack([edge_index.min(0).values, edge_index.max(0).values]).unique(dim=1, return_inverse=True)
    counts = torch.zeros(190).index_add(0, pairs, torch.ones(380))
    assert counts.eq(2).all()
    kept = torch.stack([torch.zeros(190).index_add(0, pairs[list(draw)], torch.full((190,), 0.5)) for draw in draws])
    assert 1.3 < kept.sum(0).var() < 2.7  # of 8 fair throws it is 2


def test_the_papers_sparsities_are_nested():
    assert teddy.schedule(1) == pytest.approx((0.05, 0.1))
    assert teddy.schedule(20) == pytest.approx((1 - 0.95**20, 1 - 0.9**20))
    _, edge_index = graph()
    before = set(range(80))
    for simulation in range(1, teddy.SIMULATIONS + 1):
        left = set(teddy.kept_edges(edge_index, NODES, teddy.schedule(simulation).graph).tolist())
        assert left <= before
        before = left
    for wrong in (0, 21):
        with pytest.raises(CallError, match="simulations are 1 to 20"):
            teddy.schedule(wrong)


def test_graphs_without_edges_and_shares_that_are_none():
    nothing = torch.empty(2, 0, dtype=torch.int64)
    assert teddy.prune_edges(nothing, 3, 0.5).shape == (2, 0)
    _, edge_index = graph()
    assert torch.equal(teddy.prune_edges(edge_index, NODES, 0), edge_index)
    assert teddy.prune_edges(edge_index, NODES, 1).shape[1] == 0
    for wrong in (-0.1, 1.1, True, "half"):
        with pytest.raises(CallError, match="graph_sparsity is a share from 0 to 1"):
            teddy.prune_edges(edge_index, NODES, wrong)


# --- weights


def test_projection_is_the_nearest_point_of_the_ball():
    tensors = [torch.randn(4, 5), torch.randn(7), torch.randn(1)]
    before = torch.cat([t.flatten() for t in tensors])
    assert teddy.project_l0(tensors, 0.4) == 12  # ceil of 11.2
    after = torch.cat([t.flatten() for t in tensors])
    assert int((after == 0).sum()) == 12
    assert torch.equal(after[after != 0], before[after != 0])
    assert before[after == 0].abs().max() < before[after != 0].abs().min()


def test_projection_of_equal_magnitudes_zeroes_no_more_than_asked():
    tensor = torch.tensor([1.0, -1.0, 1.0, 1.0, 0.0, 2.0])
    teddy.project_l0([tensor], 0.5)
    assert int((tensor == 0).sum()) == 3
    teddy.project_l0([tensor], 0.0)
    assert int((tensor == 0).sum()) == 3
    teddy.project_l0([tensor], 1.0)
    assert int((tensor == 0).sum()) == 6


def test_nothing_is_distilled_from_equal_answers():
    logits = torch.randn(6, 3)
    assert teddy.distillation_loss(logits, logits).abs() < 1e-6
    assert teddy.distillation_loss(logits, -logits) > 0
    with pytest.raises(ShapeError, match="the teacher answered"):
        teddy.distillation_loss(logits, logits[:5])


# --- the transform


@pytest.mark.parametrize("name", ["pyg:gcn", "pyg:gat", "pyg:sage", "pyg:gin", "dagnn", "teddy_gcn"])
def test_a_transformed_network_is_the_network_on_the_trimmed_graph(name):
    model, (x, edge_index) = network(name), graph()
    sparse = teddy.transform(model, (x, edge_index), graph_sparsity=0.4, weight_sparsity=0.0).model
    for seed in range(2):
        x, edge_index = graph(seed)
        assert torch.equal(sparse(x, edge_index), model(x, teddy.prune_edges(edge_index, NODES, 0.4)))
        assert torch.equal(sparse(x, edge_index=edge_index), sparse(x, edge_index))


def test_what_belongs_to_edges_is_trimmed_with_them():
    model, (x, edge_index) = network(), graph()
    weight = torch.rand(80)
    sparse = teddy.transform(model, (x, edge_index), graph_sparsity=0.4, weight_sparsity=0.0).model
    kept = teddy.kept_edges(edge_index, NODES, 0.4)
    expected = model(x, edge_index[:, kept], weight[kept])
    assert torch.equal(sparse(x, edge_index, weight), expected)
    assert torch.equal(sparse(x, edge_index, edge_weight=weight), expected)


def test_an_edge_list_that_is_changed_in_place_is_ranked_anew():
    model, (x, edge_index) = network(), graph()
    sparse = teddy.transform(model, (x, edge_index), graph_sparsity=0.4, weight_sparsity=0.0).model
    sparse(x, edge_index)
    edge_index.copy_(graph(1)[1])
    assert torch.equal(sparse(x, edge_index), model(x, teddy.prune_edges(graph(1)[1], NODES, 0.4)))


def test_weights_stay_on_the_ball_in_any_loop_and_may_come_back():
    model, (x, edge_index) = network(), graph()
    sparse = teddy.transform(model, (x, edge_index), graph_sparsity=0.0, weight_sparsity=0.6).model.train()
    optimizer = torch.optim.Adam(sparse.parameters(), lr=0.1)
    supports = []
    for _ in range(6):
        loss = sparse(x, edge_index).square().mean() - sparse(x, edge_index).mean()  # called twice, then backward
        supports.append(torch.cat([p.detach().flatten() for p in sparse.parameters()]) != 0)
        assert teddy.zero_share(sparse.parameters()) >= 0.6
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert teddy.zero_share(sparse.parameters()) < 0.6
    sparse.eval()(x, edge_index)
    assert teddy.zero_share(sparse.parameters()) >= 0.6
    assert (supports[-1] & ~supports[0]).any()


def test_the_dense_network_is_trained_first_and_learned_from():
    model, finetune = network(), trainer()
    result = teddy.transform(
        model, graph(), data=batches(), finetune=finetune, weight_sparsity=0.5, graph_sparsity=0.3, distill=2.0
    )
    (dense, none), (sparse, loss) = finetune.calls
    assert none is None
    assert not dense._forward_pre_hooks
    x, edge_index = graph()
    expected = teddy.sparse_training_loss(
        sparse(x, edge_index), torch.arange(NODES) % CLASSES, torch.arange(NODES) < 6, dense.eval()(x, edge_index), 2.0
    )
    torch.testing.assert_close(loss(sparse, None), expected.total)
    assert not result.model.training
    assert teddy.zero_share(result.model.parameters()) >= 0.5
    assert result.report.measured["edges now"] == 80 - 24
    assert result.plan["distill"] is None


def test_a_teacher_that_is_given_is_not_trained_again():
    finetune = trainer()
    teddy.transform(network(), graph(), data=batches(), finetune=finetune, teacher=network())
    assert len(finetune.calls) == 1
    finetune = trainer()
    teddy.transform(network(), graph(), data=batches(), finetune=finetune, distill=0)
    assert len(finetune.calls) == 1
    assert finetune.calls[0][1] is None


def test_a_network_that_would_precompute_is_trained_on_the_trimmed_graph():
    model, (x, edge_index) = network("gcn_jaccard"), graph()
    sparse = teddy.transform(model, (x.abs(), edge_index), graph_sparsity=0.5).model
    y = torch.arange(NODES) % CLASSES
    data = SimpleNamespace(num_classes=CLASSES, graph=SimpleNamespace(x=x.abs(), edge_index=edge_index, y=y, views={}))
    for net, precomputed in ((model, True), (sparse, False)):
        module = NodeClassifier(net, load_recipe("teddy_cora").train, seed=0, data=data).eval()
        module.on_fit_start()
        assert (module.precomputed is not None) == precomputed
        torch.testing.assert_close(module.scores(), net(x.abs(), edge_index))
    assert not torch.allclose(module.scores(), model(x.abs(), edge_index))


def test_what_is_left_to_later_training_is_the_same_loss():
    model, teacher, (x, edge_index) = network("teddy_gcn"), network("teddy_gcn", dropout=0.0), graph()
    result = teddy.transform(model, graph(), data=batches(), teacher=teacher, train=False, distill=3.0)
    sparse = result.model
    y, mask = torch.arange(NODES) % CLASSES, torch.arange(NODES) < 6
    expected = teddy.sparse_training_loss(sparse(x, edge_index), y, mask, teacher(x, edge_index), 3.0).total
    data = SimpleNamespace(num_classes=CLASSES, graph=SimpleNamespace(x=x, edge_index=edge_index, y=y, views={}))
    module = NodeClassifier(sparse, load_recipe("teddy_cora").train, seed=0, data=data)
    torch.testing.assert_close(module.training_loss(mask), expected)
    for other in (copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse))):
        assert other.training_loss.args[0] is other
        torch.testing.assert_close(other.training_loss(x, edge_index, y, mask), expected)
    again = teddy.replay(model, result.plan)
    again.load_state_dict(sparse.state_dict())
    torch.testing.assert_close(again.training_loss(x, edge_index, y, mask), expected)


def test_soft_trimming_gives_values_in_training_only():
    model, (x, edge_index) = network("teddy_graph_transformer", heads=2, dropout=0.0), graph()
    sparse = teddy.transform(model, (x, edge_index), graph_sparsity=0.4, weight_sparsity=0.0, soft=True).model
    kept = teddy.kept_edges(edge_index, NODES, 0.4)
    assert torch.equal(sparse.train()(x, edge_index), model(x, edge_index, teddy.edge_values(kept, 80)))
    given = torch.rand(80)
    expected = model(x, edge_index, given * teddy.edge_values(kept, 80))
    assert torch.equal(sparse(x, edge_index, given), expected)
    assert torch.equal(sparse(x, edge_index, edge_value=given), expected)
    assert torch.equal(sparse.eval()(x, edge_index), model(x, edge_index[:, kept]))
    assert torch.equal(sparse(x, edge_index, given), model(x, edge_index[:, kept], given[kept]))
    with pytest.raises(CallError, match="edge_value"):
        teddy.transform(network(), graph(), soft=True)


def sparse_and_graph(self_loops):
    inputs = graph()
    options = {"graph_sparsity": 0.4, "weight_sparsity": 0.5, "self_loops": self_loops}
    return teddy.transform(network("teddy_gcn"), inputs, **options).model, inputs


@pytest.mark.parametrize("self_loops", [False, True])
def test_a_sparse_network_is_exported(warm_compiler, self_loops):
    sparse, inputs = sparse_and_graph(self_loops)
    dynamic = ({0: torch.export.Dim("nodes", min=4)}, {1: torch.export.Dim("edges", min=8)})
    with torch.no_grad():
        program = torch.export.export(
            copy.deepcopy(sparse), inputs, dynamic_shapes=dynamic, prefer_deferred_runtime_asserts_over_guards=True
        )
        exported = program.module()
        for given in (inputs, graph(3, edges=60, nodes=30)):
            torch.testing.assert_close(exported(*given), sparse(*given))


@pytest.mark.parametrize("self_loops", [False, True])
def test_a_sparse_network_is_compiled_whole(warm_compiler, self_loops):
    sparse, inputs = sparse_and_graph(self_loops)
    torch.compiler.reset()
    compiled = torch.compile(copy.deepcopy(sparse), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), sparse(*inputs))
    torch.compiler.reset()


def test_hooks_carry_no_graph_when_they_are_copied():
    sparse = teddy.transform(network(), graph()).model
    before = len(pickle.dumps(sparse))
    sparse(*graph(3, edges=400, nodes=60))
    met = [value for hook in sparse._forward_pre_hooks.values() for value in vars(hook).values()]
    assert any(isinstance(value, tuple) for value in met), "the graph met last is kept"
    assert abs(len(pickle.dumps(sparse)) - before) < 100  # its edges alone take 6400 bytes


@pytest.mark.parametrize("distill", [0.0, 1.0])
def test_a_network_with_a_training_loss_of_its_own_is_refused(distill):
    class Own(type(network())):
        def training_loss(self, x, edge_index, y, mask):
            return self.forward(x, edge_index)[mask].mean()

    model = Own(FEATURES, 8, 2, CLASSES)
    with pytest.raises(CallError, match="Own has a training_loss of its own"):
        teddy.transform(model, graph(), distill=distill)
    plan = teddy.transform(network(), graph()).plan
    with pytest.raises(CallError, match="Own has a training_loss of its own"):
        teddy.replay(model, plan)


def test_networks_and_inputs_that_are_no_graphs_are_refused():
    with pytest.raises(CallError, match="Linear takes"):
        teddy.transform(nn.Linear(3, 3), torch.zeros(2, 3))
    with pytest.raises(CallError, match="takes a graph"):
        teddy.transform(network(), graph()[0])
    with pytest.raises(UnknownName, match="degree"):
        teddy.transform(network(), graph(), criterion="degrees")
    with pytest.raises(CallError, match="weight_sparsity is a share"):
        teddy.transform(network(), graph(), weight_sparsity=2)
    for option, wrong in (("seed", 0.5), ("seed", -1), ("seed", True), ("self_loops", 1), ("soft", "yes")):
        with pytest.raises(CallError, match=f"{option} is"):
            teddy.transform(network(), graph(), **{option: wrong})
    with pytest.raises(CallError, match="distill is the weight of a loss"):
        teddy.transform(network(), graph(), distill=-1)
    with pytest.raises(CallError, match="one graph"):
        teddy.transform(network(), graph(), data=batches() * 2, finetune=trainer())
    sparse = teddy.transform(network(), graph()).model
    with pytest.raises(CallError, match="a batch of several"):
        sparse(*graph(), batch=torch.zeros(NODES, dtype=torch.int64))
    with pytest.raises(ShapeError, match="the graph has 0 to 19"):
        sparse(graph()[0], graph()[1] + 5)
    with pytest.raises(CallError, match="edge_index"):
        sparse(graph()[0], torch.zeros(NODES, NODES).to_sparse())


# --- the claim


def test_the_card_says_what_the_claims_script_found():
    claim = card("teddy").claim
    found = result(claim.result)["results"]
    sure = [part["above two standard errors"] for part in found["parts"].values()]
    assert sure == [part["points"] > 2 * part["standard_error"] for part in found["parts"].values()]
    assert claim.holds == found["holds"] == ("yes" if all(sure) else "partly" if any(sure) else "no")


# --- runs and folders


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    x, edge_index = graph(nodes=60, edges=150)
    path = tmp_path_factory.mktemp("graph") / "graph.npz"
    np.savez(path, x=x.abs().numpy(), edge_index=edge_index.numpy(), y=np.arange(60) % CLASSES)
    return path


@pytest.fixture(scope="module")
def run(file, tmp_path_factory):
    """A short run of the recipe, whose network is sparse while it is trained."""
    out = tmp_path_factory.mktemp("run") / "run"
    changes = [f"data.source={file}", "data.split=random", "train.epochs=3", "model.args={hidden_channels: 8}"]
    fit(load_recipe("teddy_cora", changes), out, device="cpu")
    return out


def test_a_run_keeps_a_sparse_network_that_was_distilled(run):
    told = json.loads((run / "model.json").read_text())
    assert told["plans"][0]["distill"] == {"weight": 1.0, "shape": [60, CLASSES]}
    model, _ = load_run(run)
    assert teddy.zero_share(model.parameters()) >= 0.4095
    assert model.teddy_teacher.abs().sum() > 0


def test_a_transformed_folder_keeps_the_graph_and_the_protocol(file, tmp_path, monkeypatch):
    monkeypatch.chdir(file.parent)
    changes = ["data.source=graph.npz", "data.split=random", "train.epochs=2", "model.args={hidden_channels: 8}"]
    recipe = load_recipe("teddy_cora", [*changes, "seed=3"])
    fit(recipe, tmp_path / "run", device="cpu")
    options = {"graph_sparsity": 0.5, "distill": 0, "train": False}
    transform_model(tmp_path / "run", [TransformSpec("teddy", options)], tmp_path / "sparse", device="cpu")
    monkeypatch.chdir(tmp_path)
    opened = open_model("sparse")
    assert opened.recipe.data.source == str(file.absolute())
    assert (opened.recipe.train, opened.recipe.seed) == (recipe.train, 3)
    assert opened.example_inputs(1)[0].shape == (60, FEATURES)


def test_a_transformed_run_predicts_and_is_exported(run, file, tmp_path):
    (report,) = transform_model(
        run, [TransformSpec("teddy", {"graph_sparsity": 0.5, "distill": 0})], tmp_path / "sparse", device="cpu"
    )
    assert report.measured["edges before"] == 300
    nodes = predict(tmp_path / "sparse", [file], device="cpu")
    assert [one.node for one in nodes] == list(range(60))
    exported = export(tmp_path / "sparse", tmp_path / "sparse.pt2")
    assert exported.batch == 1
    opened = open_model(tmp_path / "sparse")
    inputs = opened.example_inputs(1)
    program = torch.export.load(tmp_path / "sparse.pt2").module()
    torch.testing.assert_close(program(*inputs), opened.model(*inputs))
