"""Neural Sheaf Diffusion: its Laplacians by their definition, its maps, its limits in time, and the paper's sizes."""

import pytest
import torch
from torch.nn import functional as F

from torchstone import create_model
from torchstone.errors import CallError, ShapeError, UnknownName
from torchstone.instruments.macs import count_macs
from torchstone.layers.adjacency import compressed
from torchstone.models.graph.neural_sheaf import (
    ContinuousSheafDiffusion,
    DiscreteSheafDiffusion,
    bundle_laplacian,
    diagonal_laplacian,
    general_laplacian,
    link,
    orthogonal_matrices,
)
from torchstone.models.graph.neural_sheaf.integration import METHODS, Integration, StepsExceeded
from torchstone.models.graph.neural_sheaf.laplacian import inverse_square_root
from torchstone.models.graph.neural_sheaf.networks import MapLearner, PooledMapLearner
from torchstone.models.graph.neural_sheaf.orthogonal import ORTHOGONAL_MAPS, orthogonal_parameters

N, F_IN, C, D = 9, 5, 3, 3
ONE_WAY = torch.tensor([[0, 0, 1, 2, 3, 4, 5, 2], [1, 2, 3, 4, 5, 6, 7, 7]])
EDGES = torch.cat([ONE_WAY, ONE_WAY.flip(0)], 1)[:, torch.randperm(16, generator=torch.Generator().manual_seed(0))]
LINKS = link(EDGES, N)


def by_definition(maps, augmented=True):
    """The normalised Laplacian (N d, N d) of maps (E, d, d) from its coboundary: (delta x)_e = F_ij x_i - F_ji x_j."""
    dim, edges = maps.shape[-1], EDGES.t().tolist()
    rows = []
    for e, (i, j) in enumerate(edges):
        if i < j:
            row = torch.zeros(dim, N, dim)
            row[:, i], row[:, j] = maps[e], -maps[edges.index([j, i])]
            rows.append(row.flatten(1))
    laplacian = torch.cat(rows).T @ torch.cat(rows)
    diagonal = torch.block_diag(*(laplacian[k : k + dim, k : k + dim] for k in range(0, N * dim, dim)))
    values, vectors = torch.linalg.eigh(diagonal + torch.eye(N * dim))
    scale = vectors @ torch.diag(values**-0.5) @ vectors.T
    return scale @ laplacian @ scale if augmented else laplacian


def network(cls=DiscreteSheafDiffusion, **kwargs):
    torch.manual_seed(1)
    return cls(F_IN, C, hidden_channels=4, **kwargs).eval()


# --- Laplacians


@pytest.mark.parametrize("normalized", [True, False])
def test_general_maps_give_the_laplacian_of_the_definition(normalized):
    maps = torch.randn(16, D, D) / 2
    found = general_laplacian(maps, LINKS, normalization="sheaf" if normalized else "none").to_sparse().to_dense()
    torch.testing.assert_close(found, by_definition(maps, normalized), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalized", [True, False])
def test_diagonal_maps_give_the_laplacian_of_the_definition(normalized):
    maps = torch.randn(16, D)
    found = diagonal_laplacian(maps, LINKS, normalization="sheaf" if normalized else "none").to_sparse().to_dense()
    torch.testing.assert_close(found, by_definition(maps.diag_embed(), normalized), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ORTHOGONAL_MAPS)
def test_a_bundle_gives_the_laplacian_of_the_definition(kind):
    params = torch.randn(16, orthogonal_parameters(D, kind))
    weight = torch.rand(16, 1)
    weight = weight * weight[LINKS.reverse]
    found = bundle_laplacian(params, LINKS, dim=D, orthogonal=kind, edge_weight=weight).to_sparse().to_dense()
    maps = orthogonal_matrices(params, D, kind) * weight[:, :, None]
    torch.testing.assert_close(found, by_definition(maps), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("maps", ["diagonal", "bundle", "general"])
def test_products_are_those_of_the_written_matrix(maps):
    fixed = (1.0, -1.0)
    laplacian = {
        "diagonal": lambda: diagonal_laplacian(torch.randn(16, D), LINKS, fixed=fixed),
        "bundle": lambda: bundle_laplacian(torch.randn(16, 3), LINKS, dim=D, fixed=fixed),
        "general": lambda: general_laplacian(torch.randn(16, D, D), LINKS, fixed=fixed),
    }[maps]()
    matrix, x = laplacian.to_sparse(), torch.randn(N, D + 2, 4)
    torch.testing.assert_close((laplacian @ x).flatten(0, 1), matrix @ x.flatten(0, 1))
    torch.testing.assert_close(matrix.to_dense(), matrix.to_dense().T)
    eigenvalues = torch.linalg.eigvalsh(matrix.to_dense())
    assert eigenvalues.min() > -1e-5
    assert eigenvalues.max() < 2


def test_degree_normalisation_divides_by_what_maps_can_reach():
    maps = torch.randn(16, D, D)
    plain = general_laplacian(maps, LINKS, normalization="none").to_sparse().to_dense()
    degree = torch.bincount(EDGES[0], minlength=N).repeat_interleave(D)
    scale = (D * degree + 1.0).rsqrt()
    found = general_laplacian(maps, LINKS, normalization="degree").to_sparse().to_dense()
    torch.testing.assert_close(found, scale[:, None] * plain * scale)


def test_no_entry_of_a_normalised_laplacian_is_above_one():
    """The authors cut the entries of general blocks to [-1, 1], which without their perturbation changes nothing."""
    for size in (0.1, 1.0, 100.0):
        matrix = general_laplacian(size * torch.randn(16, D, D), LINKS).to_sparse()
        assert 0.1 * min(1, size) ** 2 < matrix.values().abs().max() <= 1


def test_the_trivial_sheaf_is_the_graphs_own_laplacian_and_so_is_the_low_pass_coordinate():
    adjacency = torch.zeros(N, N)
    adjacency[EDGES[0], EDGES[1]] = 1
    degree = adjacency.sum(1)
    scale = (degree + 1).rsqrt()
    expected = scale[:, None] * (torch.diag(degree) - adjacency) * scale
    trivial = diagonal_laplacian(torch.ones(16, 1), LINKS, fixed=(1.0, -1.0)).to_sparse().to_dense()
    torch.testing.assert_close(trivial[0::3, 0::3], expected)
    torch.testing.assert_close(trivial[2::3, 2::3], expected)
    high_pass = scale[:, None] * (torch.diag(degree) + adjacency) * scale
    torch.testing.assert_close(trivial[1::3, 1::3], high_pass)


def test_diffusion_levels_a_graph_but_not_a_sheaf_that_tells_its_sides_apart():
    """Section 3: on a bipartite graph a sheaf of dimension 1 keeps in the limit what the graph's Laplacian erases."""
    left, right = torch.meshgrid(torch.arange(4), torch.arange(4, 8), indexing="ij")
    one_way = torch.stack([left.flatten(), right.flatten()])
    links = link(torch.cat([one_way, one_way.flip(0)], 1), 8)
    side = torch.where(links.node < 4, 1.0, -1.0)[:, None]
    limits = {}
    for name, maps in (("graph", torch.ones_like(side)), ("sheaf", side)):
        x, laplacian = torch.arange(8.0)[:, None, None] - 2, diagonal_laplacian(maps, links)
        for _ in range(300):
            x = x - laplacian @ x
        limits[name] = x.flatten()
    torch.testing.assert_close(limits["graph"], limits["graph"][:1].expand(8), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(limits["sheaf"][:4], -limits["sheaf"][4:], rtol=1e-4, atol=1e-5)
    assert limits["sheaf"].abs().min() > 0.1


def test_memory_grows_with_edges_not_with_the_square_of_nodes():
    """The matrix would have 10^10 elements."""
    ring = torch.arange(50_000)
    one_way = torch.stack([ring, ring.roll(1)])
    laplacian = diagonal_laplacian(torch.ones(100_000, 2), link(torch.cat([one_way, one_way.flip(0)], 1), 50_000))
    assert (laplacian @ torch.ones(50_000, 2, 1)).abs().max() < 1e-6


def test_hubs_are_summed_in_single_precision():
    """In bfloat16 a sum of ones stands still at 256."""
    leaves = torch.arange(1, 2001)
    one_way = torch.stack([torch.zeros_like(leaves), leaves])
    links = link(torch.cat([one_way, one_way.flip(0)], 1), 2001, torch.bfloat16)
    assert links.degree[0] == 2000
    total = links.sum(torch.ones(4000, dtype=torch.bfloat16))
    assert total.dtype == torch.bfloat16
    assert total[0] == 2000


def test_inverse_square_roots_and_their_gradients_survive_equal_eigenvalues():
    torch.manual_seed(0)
    a = torch.randn(4, D, D, dtype=torch.float64)
    a = a @ a.mT + torch.eye(D)
    root = inverse_square_root(a)
    torch.testing.assert_close(root @ root @ a, torch.eye(D, dtype=torch.float64).expand(4, D, D))
    symmetric = lambda x: inverse_square_root((x + x.mT) / 2)  # noqa: E731
    assert torch.autograd.gradcheck(symmetric, a.requires_grad_())
    assert torch.autograd.gradcheck(symmetric, (2 * torch.eye(D, dtype=torch.float64))[None].requires_grad_())


def test_edges_of_a_node_to_itself_change_nothing():
    loops = torch.cat([EDGES, torch.tensor([[0, 3], [0, 3]])], 1)
    for maps in ("diagonal", "bundle", "general"):
        model, x = network(maps=maps, low_pass=True), torch.randn(N, F_IN)
        torch.testing.assert_close(model(x, loops), model(x, EDGES))


def test_an_edge_given_twice_is_two_edges():
    twice = link(torch.cat([EDGES, EDGES], 1), N)
    maps = torch.randn(16, 2)
    once = diagonal_laplacian(maps, LINKS, normalization="none").to_sparse().to_dense()
    found = diagonal_laplacian(torch.cat([maps, maps]), twice, normalization="none").to_sparse().to_dense()
    torch.testing.assert_close(found, 2 * once)
    assert torch.equal(twice.reverse[twice.reverse], torch.arange(32))


# --- maps


@pytest.mark.parametrize(
    ("kind", "dim"), [(kind, dim) for kind in ORTHOGONAL_MAPS for dim in (2, 3, 4) if dim < 4 or kind != "euler"]
)
def test_maps_are_orthogonal_for_any_parameters(kind, dim):
    params = 3 * torch.randn(20, orthogonal_parameters(dim, kind), dtype=torch.float64)
    q = orthogonal_matrices(params, dim, kind)
    torch.testing.assert_close(q.mT @ q, torch.eye(dim, dtype=torch.float64).expand_as(q))
    sign = (-1.0) ** dim if kind == "householder" else 1.0
    torch.testing.assert_close(torch.linalg.det(q), torch.full((20,), sign, dtype=torch.float64))


def test_householder_maps_are_lapacks_products():
    params = torch.randn(6, 6, dtype=torch.float64)
    normals = torch.zeros(6, 4, 4, dtype=torch.float64)
    row, column = torch.tril_indices(4, 4, -1)
    normals[:, row, column] = params
    normals += torch.eye(4)
    expected = torch.linalg.householder_product(normals, 2 / normals.square().sum(1))
    torch.testing.assert_close(orthogonal_matrices(params, 4, "householder"), expected)


@pytest.mark.parametrize("dim", [2, 3])
def test_euler_angles_are_in_turns(dim):
    params = torch.rand(5, orthogonal_parameters(dim, "euler"), dtype=torch.float64)
    torch.testing.assert_close(orthogonal_matrices(params + 1, dim, "euler"), orthogonal_matrices(params, dim, "euler"))


@pytest.mark.parametrize("dim", [2, 3, 4, 5])
def test_learners_are_the_papers_formula_on_edges(dim):
    x = torch.randn(N, dim, 4)
    pairs = torch.cat([x.flatten(1)[EDGES[0]], x.flatten(1)[EDGES[1]]], 1)  # (E, 2 D f)
    plain, pooled = MapLearner(4 * dim, (2, 2)), PooledMapLearner(4, (2, 2))
    torch.testing.assert_close(plain(x, LINKS), plain.linear1(pairs).tanh().view(-1, 2, 2))
    summed = pairs.reshape(-1, dim, 8).sum(1)
    torch.testing.assert_close(pooled(x, LINKS), pooled.linear1(summed).tanh().view(-1, 2, 2))
    mirrored = pooled(x, LINKS)[LINKS.reverse]
    assert torch.allclose(mirrored, pooled(x, LINKS), atol=1e-5) == (dim % 2 == 0)


# --- networks


def test_a_layer_is_the_papers_equation():
    x = torch.randn(N, F_IN)
    model = network(num_layers=1, high_pass=True, maps="diagonal", stalk_dim=2)
    with torch.no_grad():
        model.epsilons[0].uniform_(-1, 1)
        model.lin_left_weights[0].weight.normal_()
    start = F.elu(model.lin1(x)).view(N * 3, 4)
    laplacian = model.sheaves(x, EDGES)[0].to_sparse().to_dense()
    mixed = torch.kron(torch.eye(N), model.lin_left_weights[0].weight) @ start @ model.lin_right_weights[0].weight.T
    end = (1 + model.epsilons[0].tanh().tile(N, 1)) * start - F.elu(laplacian @ mixed)
    torch.testing.assert_close(model(x, EDGES), model.lin2(end.view(N, 12)).log_softmax(1))


def test_a_shared_sheaf_is_learned_once_and_each_layer_learns_its_own_otherwise():
    x = torch.randn(N, F_IN)
    assert len(network(num_layers=3, shared_sheaf=True).sheaves(x, EDGES)) == 1
    one, two, three = network(num_layers=3).sheaves(x, EDGES)
    assert not torch.allclose(one.transport, two.transport)
    assert not torch.allclose(two.transport, three.transport)


@pytest.mark.parametrize("maps", ["diagonal", "bundle", "general"])
def test_continuous_diffusion_of_a_constant_sheaf_is_the_exponential(maps):
    model = network(
        ContinuousSheafDiffusion,
        maps=maps,
        shared_sheaf=True,
        activation=False,
        left_weights=False,
        right_weights=False,
    ).double()
    x = torch.randn(N, D, 4, dtype=torch.float64)
    links = link(EDGES, N, torch.float64)
    laplacian = model.sheaf(x, links, model.sheaf_learner, model.edge_weight_learner).to_sparse().to_dense()
    expected = (torch.matrix_exp(-laplacian) @ x.flatten(0, 1)).view_as(x)
    torch.testing.assert_close(model.diffuse(x, links), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("maps", ["diagonal", "bundle", "general"])
def test_steps_of_euler_are_the_papers_equation_along_the_sheaf_of_each_instant(maps, shared):
    """X + h ELU(-L (I x W_left) X W_right^T), twice, with everything written densely and on edges."""
    model = network(ContinuousSheafDiffusion, maps=maps, method="euler", step_size=0.5, shared_sheaf=shared)
    with torch.no_grad():
        for left in model.lin_left_weights:
            left.weight.normal_()
    left, right = model.lin_left_weights[0].weight, model.lin_right_weights[0].weight
    x = start = torch.randn(N, D, 4)
    for step in range(2):
        if step == 0 or not shared:
            pairs = torch.cat([x.flatten(1)[EDGES[0]], x.flatten(1)[EDGES[1]]], 1)
            params = (pairs @ model.sheaf_learner.linear1.weight.T).tanh()
            if maps == "bundle":
                gate = (pairs @ model.edge_weight_learner.linear1.weight.T).sigmoid()
                weight = gate * gate[[EDGES.t().tolist().index([j, i]) for i, j in EDGES.t().tolist()]]
                learned = weight[:, :, None] * orthogonal_matrices(params, D, "householder")
            else:
                learned = params.diag_embed() if maps == "diagonal" else params.view(-1, D, D)
            laplacian = by_definition(learned)
        moved = laplacian @ torch.kron(torch.eye(N), left) @ x.flatten(0, 1) @ right.T
        x = x + 0.5 * F.elu(-moved).view_as(x)
    torch.testing.assert_close(model.diffuse(start, LINKS), x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_autocast_leaves_the_integration_in_single_precision(shared):
    """In bfloat16 steps of the default tolerance would shrink without end."""
    model, x = network(ContinuousSheafDiffusion, shared_sheaf=shared), torch.randn(N, D, 4)
    expected = model.diffuse(x, LINKS)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.diffuse(x, LINKS), expected)
        rounded = model.diffuse(x.bfloat16(), LINKS)
        loss = model(torch.randn(N, F_IN), EDGES)[:, 0].float().sum()
    torch.testing.assert_close(rounded, expected, rtol=0, atol=0.05)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("maps", ["diagonal", "bundle", "general"])
@pytest.mark.parametrize("method", METHODS)
def test_continuous_networks_train(maps, method):
    model = network(ContinuousSheafDiffusion, maps=maps, method=method, step_size=0.5, low_pass=True, atol=1e-4).train()
    model(torch.randn(N, F_IN), EDGES)[:, 0].sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_the_default_tolerance_can_be_met_in_single_precision():
    model, x = network(ContinuousSheafDiffusion), torch.randn(N, F_IN)
    exact = network(ContinuousSheafDiffusion).double()(x.double(), EDGES)
    torch.testing.assert_close(model(x, EDGES).double(), exact, rtol=0, atol=1e-5)


def test_no_time_is_no_diffusion():
    model, x = network(ContinuousSheafDiffusion, time=0.0), torch.randn(N, F_IN)
    torch.testing.assert_close(model(x, EDGES), model.lin2(F.elu(model.lin1(x))).log_softmax(1))


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_methods_of_even_steps_have_their_order(method, order):
    """dx/dt = x^2 from x(0) = 1/2 is at 1 at t = 1."""
    errors = [
        abs(Integration(method, step_size=h)(lambda x: x * x, torch.tensor(0.5).double(), 1.0).item() - 1)
        for h in (0.1, 0.05)
    ]
    assert 0.8 * 2**order < errors[0] / errors[1] < 1.3 * 2**order
    uneven = Integration(method, step_size=0.3)(lambda x: x * x, torch.tensor(0.5).double(), 1.0)
    assert abs(uneven.item() - 1) < 0.2


def test_chosen_steps_keep_the_tolerance_and_carry_gradients():
    for atol in (1e-4, 1e-8):
        start = torch.tensor(0.5).double().requires_grad_()
        end = Integration(atol=atol, rtol=0.0)(lambda x: x * x, start, 1.0)
        assert abs(end.item() - 1) < 20 * atol
        end.backward()
        torch.testing.assert_close(start.grad.item(), 4.0, rtol=0, atol=200 * atol)  # x(1) = x0 / (1 - x0)


def test_an_equation_that_needs_too_many_steps_is_given_up_with_advice():
    with pytest.raises(StepsExceeded, match="raise max_steps"):
        Integration(max_steps=20)(lambda x: -1e6 * x, torch.ones(1), 1.0)
    with pytest.raises(StepsExceeded, match=r"100 steps of 0\.01"):
        Integration("euler", step_size=0.01, max_steps=50)(lambda x: x, torch.ones(1), 1.0)


def test_what_is_not_finite_comes_through_and_a_step_into_it_is_tried_shorter():
    assert Integration()(lambda x: x * float("nan"), torch.ones(3), 1.0).isnan().all()
    beyond = Integration(atol=1e3)(lambda x: torch.where(x > 2.8, torch.nan, x), torch.ones(1).double(), 1.0)
    assert beyond.isfinite().all()


def test_sparse_features_give_the_same_answer_and_gradients():
    x = F.threshold(torch.rand(N, F_IN), 0.5, 0)
    dense, sparse = network(), network()
    loss = torch.randn(N, C)
    (dense(x, EDGES) * loss).sum().backward()
    (sparse(compressed(x), EDGES) * loss).sum().backward()
    for ours, expected in zip(sparse.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad)


@pytest.mark.parametrize("maps", ["diagonal", "general"])
def test_networks_with_other_maps_train(maps):
    model = network(maps=maps, low_pass=True, second_linear=True).train()
    model(torch.randn(N, F_IN), EDGES)[:, 0].sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []


def test_general_maps_compile_whole_with_their_own_gradient():
    torch.compiler.reset()
    model, x = network(maps="general", num_layers=1), torch.randn(N, F_IN)
    (expected,) = torch.autograd.grad(model(x, EDGES)[:, 0].sum(), [model.sheaf_learners[0].linear1.weight])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    (found,) = torch.autograd.grad(compiled(x, EDGES)[:, 0].sum(), [model.sheaf_learners[0].linear1.weight])
    torch.testing.assert_close(found, expected)
    torch.compiler.reset()


def test_continuous_networks_of_even_steps_are_exported_and_the_others_say_why_not():
    x = torch.randn(N, F_IN)
    even = network(ContinuousSheafDiffusion, maps="diagonal", method="euler")
    torch.testing.assert_close(torch.export.export(even, (x, EDGES)).module()(x, EDGES), even(x, EDGES))
    with pytest.raises(Exception, match=r"dopri5 chooses its steps .* one of euler, midpoint, rk4"):
        torch.export.export(network(ContinuousSheafDiffusion), (x, EDGES))


def test_multiply_accumulates_are_counted():
    """Features, maps and weights of nodes, both mixing layers, blocks times signals, classes."""
    model, edges, nodes, f = network(num_layers=1), 16, N, 4
    count = count_macs(model, (torch.randn(N, F_IN), EDGES))
    learned = 2 * nodes * D * f * (3 + 1)
    expected = nodes * F_IN * D * f + learned + nodes * (D * D * f + D * f * f) + edges * D * D * f + nodes * D * f * C
    assert not count.uncounted
    assert expected <= count.total <= 1.2 * expected


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("neural_sheaf_texas", 105_153),
        ("neural_sheaf_wisconsin", 278_113),
        ("neural_sheaf_cornell", 138_577),
        ("neural_sheaf_chameleon", 410_395),
        ("neural_sheaf_squirrel", 295_017),
    ],
)
def test_the_papers_configurations(name, parameters):
    model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert create_model(name, num_layers=1).num_layers == 1


@pytest.mark.parametrize("name", ["neural_sheaf_ode", "neural_sheaf_ode_diag", "neural_sheaf_ode_general"])
def test_continuous_networks_have_names(name):
    model = create_model(name, in_channels=F_IN, out_channels=C, method="rk4").eval()
    assert model(torch.randn(N, F_IN), EDGES).exp().sum(1).sub(1).abs().max() < 1e-5


# --- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"maps": "bundle", "stalk_dim": 1}, "need stalk_dim 2 or more, got 1"),
        ({"maps": "diagonal", "stalk_dim": 0}, "need stalk_dim 1 or more"),
        ({"maps": "diagonal", "orthogonal": "cayley"}, "orthogonal is for maps=bundle"),
        ({"maps": "general", "edge_weights": True}, "edge_weights is for maps=bundle"),
        ({"normalization": "degree"}, "always normalised"),
        ({"orthogonal": "euler", "stalk_dim": 4}, "dimension 2 or 3, got 4"),
        ({"dropout": 1.0}, r"dropout is a rate .* got 1\.0"),
        ({"hidden_channels": 0}, "at least 1, got 0"),
        ({"num_layers": 0}, "at least 1, got 0"),
    ],
)
def test_what_cannot_be_built_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DiscreteSheafDiffusion(F_IN, C, **{"hidden_channels": 4, **options})


@pytest.mark.parametrize(
    ("options", "valid"),
    [
        ({"maps": "diag"}, "diagonal"),
        ({"orthogonal": "housholder"}, "householder"),
        ({"map_activation": "tan"}, "tanh"),
        ({"normalization": "sheaves"}, "sheaf"),
    ],
)
def test_unknown_names_get_the_nearest(options, valid):
    with pytest.raises(UnknownName, match=valid):
        DiscreteSheafDiffusion(F_IN, C, **options)


@pytest.mark.parametrize("options", [{"time": -1.0}, {"atol": 0.0}, {"max_steps": 0}, {"step_size": -1.0}])
def test_continuous_networks_refuse_impossible_integrations(options):
    with pytest.raises(ValueError, match=r"negative|above 0"):
        ContinuousSheafDiffusion(F_IN, C, **options)
    with pytest.raises(UnknownName, match="dopri5"):
        ContinuousSheafDiffusion(F_IN, C, method="dopri")


def test_a_missing_direction_is_named():
    kept = [k for k, edge in enumerate(EDGES.t().tolist()) if edge != [4, 2]]
    with pytest.raises(ShapeError, match=r"the edge \(2, 4\) is given 1 times, \(4, 2\) 0 times"):
        network()(torch.randn(N, F_IN), EDGES[:, kept])


def test_released_weights_and_unknown_arguments_are_refused():
    with pytest.raises(CallError, match="none were released"):
        create_model("neural_sheaf_texas", pretrained=True)
    with pytest.raises(CallError, match="layers"):
        create_model("neural_sheaf", layers=3)
