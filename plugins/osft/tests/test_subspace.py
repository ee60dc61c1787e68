"""The mathematics against explicit singular value decompositions in float64."""

from types import SimpleNamespace

import pytest
import torch
from hub_osft.coordinates import FastReparametrization, Part, _form_exactly_, form_
from hub_osft.layers import OsftExperts, OsftLinear
from hub_osft.subspace import decompose, num_free, oriented, project_, project_exactly, pull_to_base_, split, steps
from transformers.pytorch_utils import Conv1D

from hub.protection.pull import Pull, low_rank_plus_diagonal

SHAPES = [(96, 64), (64, 64), (40, 72)]


def matrix(shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    """Random, with a spectrum that falls by four orders of magnitude as those of trained matrices do; float32 holds it."""
    generator = torch.Generator().manual_seed(seed)
    u, s, v = torch.linalg.svd(torch.randn(shape, generator=generator, dtype=torch.float64), full_matrices=False)
    return ((u * torch.logspace(1, -3, len(s), dtype=torch.float64)) @ v).float().double()


def high_spaces(weight: torch.Tensor, free: int) -> tuple[torch.Tensor, torch.Tensor]:
    """U_h and V_h of a weight, by LAPACK's decomposition."""
    u, _, v = torch.linalg.svd(weight.double(), full_matrices=False)
    kept = min(weight.shape) - free
    return u[:, :kept], v[:kept].mT


def projector(columns: torch.Tensor) -> torch.Tensor:
    return columns @ columns.mT


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ratio", [0.02, 0.25, 0.9])
def test_the_split_is_that_of_an_explicit_decomposition(shape, ratio):
    left = shape[0] < shape[1]
    a = oriented(matrix(shape), left)
    free = num_free(ratio, min(shape))
    space = split(a, free)
    u, v = high_spaces(a, free)
    assert space.free.shape == (a.shape[1], free)
    identity = torch.eye(a.shape[1], dtype=torch.float64)
    assert (projector(space.free) - (identity - projector(v))).abs().max() < 1e-8
    assert (projector(space.protected) - projector(u)).abs().max() < 1e-8


@pytest.mark.parametrize("smallest", [1e-3, 1e-9, 0.0])
def test_a_decomposition_has_orthonormal_sides_however_small_a_singular_value_is(smallest):
    u, s, v = torch.linalg.svd(matrix((96, 64)), full_matrices=False)
    s[-1] = smallest * s[0]
    a = (u * s) @ v
    left, scale, right = decompose(a)
    identity = torch.eye(64, dtype=torch.float64)
    assert (left.mT @ left - identity).abs().max() < 1e-7
    assert (right.mT @ right - identity).abs().max() < 1e-10
    assert ((left * scale) @ right.mT - a).norm() < 1e-12 * a.norm()
    assert (scale - s.sort(descending=True)[0]).abs().max() < 1e-7 * s[0]


@pytest.mark.parametrize(("ratio", "size", "free"), [(1.0, 64, 64), (0.25, 64, 16), (0.3, 5, 2), (0.5, 5, 3), (0.01, 64, 1)])
def test_the_ratio_goes_to_the_nearest_number_of_directions_and_at_least_one(ratio, size, free):
    assert num_free(ratio, size) == free


@pytest.mark.parametrize("shape", SHAPES[:2])
@pytest.mark.parametrize("corner", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_projections_are_those_of_explicit_projectors(shape, corner, dtype):
    a, free = matrix(shape), 16
    u, v = high_spaces(a, free)
    space = split(a, free)
    change = torch.randn(shape[0], shape[1] if corner else free)
    rest = projector(u) @ change.double()
    expected = change - (rest @ projector(v) if corner else rest)
    found = change.clone()
    project_(found, space.protected.to(dtype), space.free.float() if corner else None)
    # U_h itself is rounded to the type, the change is not.
    assert (found - expected).norm() < {torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype] * expected.norm()
    exact = project_exactly(found, a, space.free.float(), corner)
    forbidden = u.mT @ exact @ v if corner else u.mT @ exact
    assert forbidden.norm() < 1e-6 * exact.norm()


def test_directions_without_singular_value_are_kept_on_the_right_side_only():
    a = matrix((96, 64))
    u, s, v = torch.linalg.svd(a, full_matrices=False)
    s[20:] = 0
    a = (u * s) @ v
    space = split(a, 16)
    assert torch.isfinite(space.protected).all()
    assert (projector(space.protected) - projector(u[:, :20])).abs().max() < 1e-8
    change = project_exactly(torch.randn(96, 16), a, space.free)
    assert (u[:, :20].mT @ change).norm() < 1e-6 * change.norm()


def layer_of(shape: tuple[int, int], conv1d: bool, left: bool, corner: bool, ratio: float, dtype: torch.dtype):
    """A layer with coordinates, and what keeps them in order."""
    weight = matrix(shape).to(dtype)
    plain = Conv1D(shape[1], shape[0]) if conv1d else torch.nn.Linear(shape[1], shape[0], bias=True)
    plain.weight = torch.nn.Parameter(weight, requires_grad=False)
    plain.bias = torch.nn.Parameter(torch.randn(shape[1] if conv1d else shape[0], dtype=dtype))
    a = oriented(weight, left)
    space = split(a, num_free(ratio, a.shape[1]))
    free = None if space.free is None else space.free.float()
    whole = free is None or corner
    if not whole:
        free = free * steps(space.scale).float()
    layer = OsftLinear(plain, torch.zeros(a.shape if whole else (len(a), free.shape[1])), None if whole else free, left, conv1d)
    kept = None if space.protected is None else space.protected.to(dtype)
    coordinates = FastReparametrization(
        [Part(layer, "weight", layer.osft_coordinates, free, kept, left, corner, kept is not None)]
    )
    coordinates.placed()
    return layer, coordinates


@pytest.mark.parametrize("conv1d", [False, True])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_gradients_are_those_of_finite_differences(conv1d, left, whole):
    shape = (5, 7) if left else (7, 5)
    layer, _ = layer_of(shape, conv1d, left, whole, 0.4, torch.float64)
    layer.double()
    x = torch.randn(3, shape[0] if conv1d else shape[1], dtype=torch.float64)
    weights = torch.randn(3, shape[1] if conv1d else shape[0], dtype=torch.float64)
    base = layer.weight.detach().clone()

    def loss(coordinates: torch.Tensor) -> torch.Tensor:
        change = coordinates if layer.osft_free is None else coordinates @ layer.osft_free.mT
        layer.weight.data.copy_(base + oriented(change, left))
        return (layer(x).tanh() * weights).sum()

    start = torch.randn_like(layer.osft_coordinates) * 0.1
    loss(start).backward()
    found, step = layer.osft_coordinates.grad, 1e-6
    for place in range(start.numel()):
        aside = torch.zeros_like(start)
        aside.view(-1)[place] = step
        slope = (loss(start + aside) - loss(start - aside)) / (2 * step)
        assert found.view(-1)[place].item() == pytest.approx(slope.item(), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("corner", [False, True])
def test_after_100_steps_of_adamw_nothing_has_moved_in_the_kept_directions(shape, corner):
    left, free = shape[0] < shape[1], 16
    layer, coordinates = layer_of(shape, False, left, corner, free / min(shape), torch.float32)
    first = layer.weight.detach().clone()
    optimizer = torch.optim.AdamW([layer.osft_coordinates], lr=1e-2, weight_decay=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        (layer(torch.randn(8, shape[1])) - torch.randn(8, shape[0])).square().mean().backward()
        coordinates.project_gradients()
        before = layer.osft_coordinates.detach().clone()
        optimizer.step()
        step = (layer.osft_coordinates.detach() - before).double()
        coordinates.follow(optimizer)
    u, v = high_spaces(first, free)
    change = layer.weight.double() - first.double()
    layer.double()
    coordinates.parts[0].base = coordinates.parts[0].base.double()
    with coordinates.exact():
        exact = layer.weight - first.double()
    assert change.norm() > 0.1
    for delta, bound in ((exact, 1e-6), (change, 1e-5)):
        if corner:
            assert (u.mT @ delta @ v).norm() < bound * delta.norm()
        else:
            assert (u.mT @ delta).norm() < bound * delta.norm()
            assert (delta @ v).norm() < bound * delta.norm()
    if not corner:
        # The optimizer alone leaves the subspace with every step, though its gradients lie in it.
        assert ((v if left else u).mT @ step).norm() > 1e-2 * step.norm()


def test_a_projection_in_bfloat16_leaves_a_change_alone_that_is_free_already():
    kept = split(matrix((96, 64)), 16).protected.to(torch.bfloat16)
    exact = torch.linalg.qr(kept.double())[0]  # of U_h as it is rounded
    change = torch.randn(96, 16, dtype=torch.float64)
    free = (change - projector(exact) @ change).float()
    found = free.clone()
    project_(found, kept)
    assert (found - free).norm() < 2e-5 * free.norm()


@pytest.mark.parametrize("corner", [False, True])
def test_weight_decay_draws_the_free_part_to_zero_and_leaves_the_kept_part(corner):
    layer, coordinates = layer_of((96, 64), False, False, corner, 0.25, torch.float32)
    if corner:  # a base weight must not be rounded as U_h is in half precision
        coordinates._stacks[0].protected = coordinates._stacks[0].protected.bfloat16()
    first = layer.weight.detach().double()
    first = first.clone()
    optimizer = torch.optim.SGD([layer.osft_coordinates], lr=0.1, weight_decay=0.5)
    for _ in range(10):
        layer.osft_coordinates.grad = torch.zeros_like(layer.osft_coordinates)
        optimizer.step()
        coordinates.follow(optimizer)
    low = first @ projector(torch.nn.functional.normalize(coordinates.parts[0].free.double(), dim=0))
    expected = first - low + 0.95**10 * low
    assert (layer.weight - expected).norm() < 1e-6 * first.norm()


def test_a_change_is_drawn_back_by_the_penalty_on_what_is_answered_to_protected_inputs():
    inputs, first = matrix((96, 64), seed=1), matrix((40, 64))
    energy, q = torch.linalg.eigh(inputs.mT @ inputs)
    z, rate, strength = matrix((40, 64), seed=2), 0.1, 0.3
    drawn = z.clone().requires_grad_()
    with torch.no_grad():
        pull_to_base_(drawn, strength * energy, rate)
    # The proximal step is the least of the penalty and the distance gone, in the weights' own coordinates.
    change = drawn @ q.mT
    penalty = strength / 2 * (inputs @ (first + change).mT - inputs @ first.mT).square().sum()
    (penalty + (drawn - z).square().sum() / (2 * rate)).backward()
    assert drawn.grad.norm() < 1e-10 * z.norm()
    assert (drawn - z).norm() > 0.1 * z.norm()


@pytest.mark.parametrize("strength", [0.0, 3.0, 1e5])
def test_the_pull_of_a_wide_input_is_that_of_its_whole_covariance_if_this_is_low_rank_and_diagonal(strength):
    top = torch.linalg.qr(matrix((64, 64), seed=3))[0][:, :5]
    energy, rest = torch.tensor([0.0, 0.1, 2.0, 30.0, 4000.0]).double(), torch.rand(64).double() + 0.01
    covariance = (top * energy) @ top.mT + rest.diag()
    z = matrix((40, 64), seed=2)
    # The proximal step on the whole covariance, solved without any identity.
    expected = torch.linalg.solve(torch.eye(64, dtype=torch.float64) + 0.1 * strength * covariance, z.mT).mT
    found = z.clone()
    Pull(top, strength * energy, strength * rest).pull_(found, 0.1)
    assert (found - expected).norm() < 1e-10 * z.norm()
    single = z.float()
    Pull(top.float(), (strength * energy).float(), (strength * rest).float()).pull_(single, 0.1)
    assert (single.double() - expected).norm() < 1e-4 * expected.norm() + 1e-7 * z.norm()


@pytest.mark.parametrize("spread", [1e0, 1e12])
def test_a_pull_is_computed_in_float32_whatever_the_energies_are(spread):
    inputs = matrix((300, 96), seed=5) @ torch.diag(torch.logspace(0, 4, 96, dtype=torch.float64))
    top, energy, rest = low_rank_plus_diagonal((spread * inputs.mT @ inputs).float(), 96)
    penalty = ((top.double() * energy) @ top.double().mT) + rest.double().diag()
    z = matrix((20, 96), seed=6)
    expected = torch.linalg.solve(torch.eye(96, dtype=torch.float64) + 0.1 * penalty, z.mT).mT
    found = z.float()
    Pull(top, energy, rest).pull_(found, 0.1)
    error = found.double() - expected
    assert error.norm() < 1e-3 * z.norm()
    assert (error @ penalty @ error.mT).trace() < 1e-6 * (z @ penalty @ z.mT).trace()


def test_the_largest_directions_of_a_wide_input_are_those_of_a_decomposition_and_no_channel_gains_energy():
    inputs = matrix((300, 96), seed=5)
    covariance = inputs.mT @ inputs
    top, energy, rest = low_rank_plus_diagonal(covariance, 8)
    values, vectors = torch.linalg.eigh(covariance)
    torch.testing.assert_close(energy, values[-8:], rtol=1e-6, atol=0)
    torch.testing.assert_close(projector(top), projector(vectors[:, -8:]), rtol=0, atol=1e-5)
    torch.testing.assert_close(((top * energy) @ top.mT).diagonal() + rest, covariance.diagonal())
    assert rest.min() >= 0


def test_base_weights_in_cpu_memory_take_nothing_of_a_gpu_and_the_weights_are_the_same():
    layer, plain = layer_of((96, 64), False, False, False, 0.25, torch.float32)
    offloaded = FastReparametrization(plain.parts, offload=True)
    begun = layer.weight.detach().clone()
    offloaded.placed()
    (part,) = offloaded.parts
    assert part.base.data_ptr() != layer.weight.data_ptr()
    sizes = [dict((name, size) for name, size, _ in one.memory())["base weights"] for one in (plain, offloaded)]
    assert sizes == [begun.nbytes, 0]
    with torch.no_grad():
        part.coordinates.fill_(0.1)
    offloaded.loaded()
    assert torch.allclose(layer.weight, begun + part.coordinates @ part.q.mT, atol=1e-6)


@pytest.mark.parametrize("shape", [(96, 64), (40, 72)])
@pytest.mark.parametrize("whole", [False, True])
def test_each_rank_forms_the_rows_that_it_holds(shape, whole, monkeypatch):
    left = shape[0] < shape[1]
    layer, coordinates = layer_of(shape, False, left, whole, 0.25, torch.float32)
    part = coordinates.parts[0]
    with torch.no_grad():
        part.coordinates.copy_(torch.randn_like(part.coordinates))
    coordinates.loaded()
    formed, base, plain = layer.weight.detach().clone(), part.base, part.weight
    for begin, end in ((0, 15), (15, shape[0])):
        shard = torch.zeros(end - begin, shape[1])
        region = SimpleNamespace(offsets=(begin, 0), end=(end, shape[1]))
        with monkeypatch.context() as patch, torch.no_grad():  # as if both were sharded
            patch.setattr("hub_osft.coordinates.local_region", lambda tensor, region=region: region)
            patch.setattr(
                "hub_osft.coordinates.local_tensor",
                lambda t, shard=shard, rows=slice(begin, end): shard if t is plain else base[rows] if t is base else t,
            )
            form_(part)
            torch.testing.assert_close(shard, formed[begin:end])
            _form_exactly_(part, "it")
        with coordinates.exact():
            torch.testing.assert_close(shard, layer.weight[begin:end].detach())


def test_the_optimizer_moves_a_free_direction_the_more_the_larger_its_singular_value():
    layer, coordinates = layer_of((96, 64), False, False, False, 0.25, torch.float32)
    first = layer.weight.detach().clone().double()
    optimizer = torch.optim.AdamW([layer.osft_coordinates], lr=1e-3, weight_decay=0.0)
    layer.osft_coordinates.grad = torch.randn_like(layer.osft_coordinates)
    coordinates.project_gradients()
    optimizer.step()
    coordinates.follow(optimizer)
    values, right = torch.linalg.svd(first)[1:]
    moved = ((layer.weight.double() - first) @ right.mT).norm(dim=0)
    assert moved[:48].max() < 1e-4 * moved[48:].min()
    share = moved[48:] / values[48:]
    # What of the step leads out of the subspace is taken back, a little more or less in each direction.
    assert (share / share.mean() - 1).abs().max() < 0.15
    assert moved[48:].max() > 1.5 * moved[48:].min()


def test_steps_are_one_on_the_mean_and_nothing_stands_still():
    scale = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-9, 2.0]], dtype=torch.float64)
    mean = 12.5**0.5
    expected = torch.tensor([[3 / mean, 4 / mean], [1.0, 1.0], [0.1, 2**0.5]], dtype=torch.float64)
    torch.testing.assert_close(steps(scale), expected)


@pytest.mark.parametrize("rate", [1e-6, 1e-3])
def test_a_bfloat16_weight_is_one_rounding_from_the_exact_one_after_any_number_of_steps(rate):
    layer, coordinates = layer_of((96, 64), False, False, False, 0.25, torch.bfloat16)
    part = coordinates.parts[0]
    first = layer.weight.detach().double()
    first = first.clone()
    optimizer = torch.optim.AdamW([layer.osft_coordinates], lr=rate, weight_decay=0.0)
    for _ in range(200):
        layer.osft_coordinates.grad = torch.randn_like(layer.osft_coordinates) + 0.5
        optimizer.step()
        coordinates.follow(optimizer)
    used = layer.weight.detach().clone()
    with coordinates.exact():
        stored = layer.weight.detach().clone()
    assert torch.equal(layer.weight, used)
    u, _ = high_spaces(first, part.free.shape[1])
    z = part.coordinates.detach().double()
    exact = first + (z - u @ (u.mT @ z)) @ part.free.double().mT
    assert (z.abs() > 50 * rate).any()
    error = (stored.double() - exact) / (torch.finfo(torch.bfloat16).eps * exact.abs())
    assert (error.abs() <= 1).all()
    assert error.mean().abs() < 3 / error.numel() ** 0.5, "it is not rounded in one direction"
    assert (stored != first).any()


def test_experts_get_directions_and_gradients_of_their_own():
    class Experts(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = torch.nn.Parameter(torch.stack([matrix((24, 16), seed) for seed in range(3)]), requires_grad=False)

        def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
            return torch.stack([x @ expert.mT * scale for expert in self.up])

    inner = Experts()
    spaces = [split(one, 4) for one in inner.up]
    free = torch.stack([space.free for space in spaces])
    kept = torch.stack([space.protected for space in spaces])
    experts = OsftExperts(inner)
    experts.add("up", torch.zeros(3, 24, 4, dtype=torch.float64), free, left=False)
    trained = experts.osft_coordinates_up
    coordinates = FastReparametrization([Part(inner, "up", trained, free, kept, False, False, True)])
    coordinates.placed()
    x = torch.randn(5, 16, dtype=torch.float64)
    experts(x, scale=2.0).square().sum().backward()
    for number in range(3):
        dense = inner.up[number].clone().requires_grad_()
        (x @ dense.mT * 2).square().sum().backward()
        assert torch.allclose(trained.grad[number], dense.grad @ free[number])
    optimizer = torch.optim.AdamW([trained], lr=1e-2, weight_decay=0.1)
    first = inner.up.clone()
    optimizer.step()
    coordinates.follow(optimizer)
    for number in range(3):
        change = inner.up[number] - first[number]
        u, v = high_spaces(first[number], 4)
        assert change.norm() > 1e-3
        assert (u.mT @ change).norm() + (change @ v).norm() < 1e-9
