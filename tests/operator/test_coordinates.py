"""Positions as a picture: coordinate channels give what the affine map gives that they were made with."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from scp_kernels import BackendUnavailable, FusedSCP, affine_of_coordinates, scp
from scp_kernels.coordinates import COORDINATES_AS, check_coordinates, read_affine
from tests.support.agreement import slices_of_a_volume
from tests.support.augmentation import Augmented, chains, picture_of, with_validity
from tests.support.backend_names import BACKENDS, COMPILED_BACKENDS, device_of
from tests.support.heads import make_head
from tests.support.problems import by_definition, make_inputs
from tests.support.strategies import shapes
from tests.support.tolerances import LOGITS, relative_error

# Of positions in the extent. Float32 has 6e-8 of a coordinate; interpolations in a chain add their own rounding.
FLOAT32_COORDINATES = 2e-6
EXTENT = torch.tensor([20.0, 40.0, 50.0])


def read(coordinates: Tensor, extent: Tensor, axes: int, coordinates_as: str = "affine") -> tuple[Tensor, Tensor]:
    features = torch.empty(coordinates.shape[0], 1, *coordinates.shape[2:], device=coordinates.device)
    p, valid, extent = check_coordinates(features, coordinates, coordinates_as, None, None, extent, axes)
    return read_affine(p, valid, extent, tuple(coordinates.shape[2:]), coordinates_as)


def head_of(backend: str = "auto", axes: int = 3, dims: int = 2) -> FusedSCP:
    return make_head(backend, 3, spatial_dims=dims, position_dims=axes, bias=True)


@settings(max_examples=60, deadline=None)
@given(
    shape=shapes((40, 40), (9, 9, 12)),
    extra=st.integers(0, 2),
    keep=st.floats(0.05, 1),
    seed=st.integers(0, 10**6),
)
def test_the_map_is_read_off(shape, extra, keep, seed):
    """Whatever stands where validity is not 1."""
    axes = len(shape) + extra
    maps = slices_of_a_volume(2, len(shape), axes, seed)
    g = torch.Generator().manual_seed(seed)
    exact = picture_of(maps["affine"], shape, torch.float64)
    valid = torch.rand(2, 1, *shape, generator=g) < keep
    garbage = torch.rand(exact.shape, generator=g, dtype=torch.float64)
    garbage[garbage < 0.2] = torch.nan
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, FLOAT32_COORDINATES)):
        coordinates = with_validity(torch.where(valid, exact, garbage * 1e4).to(dtype), valid)
        affine, is_affine = read(coordinates, maps["extent"], axes)
        assert is_affine.all() and affine.isfinite().all()
        error = (picture_of(affine, shape, torch.float64) - exact).abs()
        scale = exact.abs().amax(dim=(0, *range(2, exact.ndim)), keepdim=True).clamp(min=30)
        assert torch.where(valid, error / scale, 0.0).max() <= bound


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(30, 37), (18, 21, 16)], ids=str)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), seed=st.integers(0, 100))
def test_a_chain_of_operations_gives_the_logits_of_the_composed_map(shape, dtype, data, seed):
    dims, extent = len(shape), EXTENT
    steps, affine = data.draw(chains(dims)), slices_of_a_volume(1, dims, seed=seed)["affine"]
    a = Augmented(with_validity(picture_of(affine, shape, dtype)), torch.eye(dims + 1, dtype=torch.float64))
    features = Augmented(make_inputs(shape, batch=1).features.to(dtype), a.matrix)
    for step in steps:
        a, features = step(a), step(features)
    valid = (a.picture[:, -1:] - 1).abs() <= 1e-5
    assume(valid.sum() >= 50)
    if dims == 3:  # borders that were repeated are a larger part of a volume: less than half is to be off the map
        exact = picture_of(affine @ a.matrix, a.shape, torch.float64)
        off = (a.picture[:, :-1] - exact).abs().amax(1, keepdim=True)
        assume((valid & (off <= 1e-4 * extent.min())).sum() >= 2 / 3 * valid.sum())
    head = head_of(dims=dims).to(dtype)
    with torch.no_grad():
        logits = head(features.picture, coordinates=a.picture, extent=extent)
        expected = head(features.picture, affine=affine @ a.matrix, extent=extent)
    # Where positions differ by a share of the extent, weights do by no more than some ten of it. Float64 is no better:
    # a border pixel whose validity is within 1e-5 of 1 counts as valid.
    assert relative_error(logits * valid, expected * valid) <= LOGITS[dtype] + 10 * FLOAT32_COORDINATES


def elastic(shape: tuple[int, int] = (30, 37), batch: int = 2) -> Tensor:
    """Coordinates that a smooth deformation has moved by a pixel or two."""
    exact = picture_of(slices_of_a_volume(batch)["affine"], shape)
    g = torch.Generator().manual_seed(0)
    bumps = functional.interpolate(torch.randn(batch, 3, 5, 5, generator=g), shape, mode="bicubic")
    return exact + bumps


def test_what_is_not_affine_is_refused_with_both_ways_out():
    head, features = head_of(), make_inputs((30, 37)).features
    mixed = torch.cat([picture_of(slices_of_a_volume(1)["affine"], (30, 37)), elastic(batch=1)])
    with pytest.raises(ValueError, match=r"in samples \[1\] .*coordinates_as='pixelwise'.*'least_squares'"):
        head(features, coordinates=mixed, extent=EXTENT)
    nearest = functional.interpolate(picture_of(slices_of_a_volume(2)["affine"], (15, 19)), (30, 37))
    with pytest.raises(ValueError, match=r"nearest-neighbour"):
        head(features, coordinates=nearest, extent=EXTENT)


@pytest.mark.parametrize("backend", COMPILED_BACKENDS)
def test_where_nobody_can_be_told_the_logits_are_nan(backend):
    """In the sample alone that is not affine."""
    head, features = head_of(backend), make_inputs((30, 37)).features.to(device_of(backend))
    mixed = torch.cat([picture_of(slices_of_a_volume(1)["affine"], (30, 37)), elastic(batch=1)]).to(features)
    arguments = {"coordinates": mixed, "extent": EXTENT.to(features)}
    compiled = torch.compile(head, fullgraph=True)(features, **arguments)
    program = torch.export.export(head, (features,), arguments)
    for logits in (compiled, program.module()(features, **arguments)):
        assert logits[0].isfinite().all() and logits[1].isnan().all()


def test_coordinates_after_maps_of_other_sizes():
    """torch.compile then takes the sizes of features for symbols and those of the coordinates for numbers."""
    torch._dynamo.reset()
    head, affine = head_of(), slices_of_a_volume(1)["affine"]
    compiled = torch.compile(head, fullgraph=True, backend="eager")
    for shape in ((20, 21), (24, 25)):
        compiled(make_inputs(shape).features, affine=affine[0], extent=EXTENT)
    features = make_inputs((30, 37)).features
    logits = compiled(features, coordinates=picture_of(affine, (30, 37)), extent=EXTENT)
    assert relative_error(logits, head(features, affine=affine[0], extent=EXTENT)) <= LOGITS[torch.float32]


@pytest.mark.parametrize("position", ["pixels", "centered"])
def test_pixelwise_is_the_definition_at_each_pixel(position):
    inputs = make_inputs((6, 7), dtype=torch.float64, position_dims=3)
    coordinates = elastic((6, 7)).double()
    logits = scp(
        inputs.features, inputs.phi, inputs.residual, coordinates=coordinates, extent=EXTENT,
        coordinates_as="pixelwise", position=position,
    )  # fmt: skip
    for b, i, j in np.ndindex(2, 6, 7):
        one = replace(inputs, features=inputs.features[b : b + 1, :, i : i + 1, j : j + 1])
        affine = np.concatenate([np.zeros((3, 2)), coordinates[b, :, i, j].numpy()[:, None]], 1)
        expected = by_definition(one, affine=affine, extent=EXTENT.numpy(), position=position)
        assert abs(logits[b, 0, i, j] - expected.item()) <= 1e-10 * max(1, abs(expected.item()))


def test_pixelwise_is_plain_pytorch_and_says_so():
    head, features = head_of(), make_inputs((30, 37)).features
    affine = slices_of_a_volume(2)["affine"]
    coordinates = picture_of(affine, (30, 37), torch.float64)
    expected = head(features, affine=affine, extent=EXTENT)
    logits = head(features, coordinates=coordinates, extent=EXTENT, coordinates_as="pixelwise")
    assert relative_error(logits, expected) <= LOGITS[torch.float32]
    head.backend = "cpu"
    with pytest.raises(BackendUnavailable, match="'pixelwise' is evaluated by the reference alone"):
        head(features, coordinates=coordinates, extent=EXTENT, coordinates_as="pixelwise")


def test_pixelwise_has_finite_gradients_beside_padding():
    head, features = head_of(), make_inputs((30, 37)).features
    valid = torch.zeros(1, 1, 30, 37)
    valid[..., 5:20, 3:] = 1
    coordinates = with_validity(elastic().where(valid == 1, torch.nan), valid)
    logits = head(features, coordinates=coordinates, extent=EXTENT, coordinates_as="pixelwise")
    logits.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_least_squares_by_name():
    coordinates = elastic()
    affine, _ = read(coordinates, EXTENT, 3, "least_squares")
    i, j = np.mgrid[:30, :37]
    design = np.stack([i, j, np.ones_like(i)], -1).reshape(-1, 3)
    for b in range(2):
        best = np.linalg.lstsq(design, coordinates[b].double().numpy().reshape(3, -1).T, rcond=None)[0].T
        assert relative_error(affine[b], torch.from_numpy(best)) <= 1e-9
    head, features = head_of(), make_inputs((30, 37)).features
    logits = head(features, coordinates=coordinates, extent=EXTENT, coordinates_as="least_squares")
    assert torch.equal(logits, head(features, affine=affine, extent=EXTENT))


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2), (1, 1, 5), (1, 4, 1)], ids=str)
def test_maps_that_are_a_pixel_wide(shape):
    axes = len(shape) + 1
    maps = slices_of_a_volume(2, len(shape), axes)
    head, features = head_of(axes=axes, dims=len(shape)), make_inputs(shape).features
    logits = head(features, coordinates=picture_of(maps["affine"], shape), extent=maps["extent"])
    assert relative_error(logits, head(features, **maps)) <= 10 * FLOAT32_COORDINATES


def test_one_line_of_valid_pixels():
    """The slope across it is nobody's: positions on the line are right, and all are finite."""
    maps = slices_of_a_volume(2)
    exact = picture_of(maps["affine"], (12, 12), torch.float64)
    for line in (torch.eye(12), torch.eye(12)[4].expand(12, 12), torch.eye(12)[4].expand(12, 12).T):
        affine, is_affine = read(with_validity(exact * line, line), maps["extent"], 3)
        assert is_affine.all() and affine.abs().max() < 1e3
        assert torch.where(line == 1, picture_of(affine, (12, 12), torch.float64) - exact, 0.0).abs().max() <= 1e-9


@pytest.mark.parametrize("way", COORDINATES_AS)
@pytest.mark.parametrize("shape", [(0, 7), (6, 0), (0, 0), (3, 0, 4)], ids=str)
def test_maps_without_pixels(shape, way):
    """As without coordinates: logits without pixels, and gradients of zero."""
    axes = len(shape) + 1
    maps = slices_of_a_volume(2, len(shape), axes)
    head, features = head_of(axes=axes, dims=len(shape)), make_inputs(shape).features.requires_grad_()
    coordinates = with_validity(picture_of(maps["affine"], shape))
    logits = head(features, coordinates=coordinates, extent=maps["extent"], coordinates_as=way)
    assert logits.shape == (2, 2, *shape)
    for gradient in torch.autograd.grad(logits.sum(), [features, *head.parameters()]):
        assert not gradient.any()
    affine, is_affine = read(coordinates, maps["extent"], axes, "affine")
    middle = torch.cat([torch.zeros(2, axes, len(shape)), maps["extent"][:, :, None] / 2], 2)
    assert torch.equal(affine, middle) and is_affine.all()


def test_no_samples():
    coordinates = torch.zeros(0, 3, 6, 7)
    assert affine_of_coordinates(coordinates, EXTENT).shape == (0, 3, 3)
    assert head_of()(coordinates, coordinates=coordinates, extent=EXTENT).shape == (0, 2, 6, 7)


@pytest.mark.parametrize("fill", [0.0, torch.nan])
def test_a_sample_without_valid_pixels_lies_in_the_middle(fill):
    head, features = head_of(), make_inputs((6, 7)).features
    coordinates = with_validity(picture_of(slices_of_a_volume(2)["affine"], (6, 7)))
    coordinates[1] = fill
    logits = head(features, coordinates=coordinates, extent=EXTENT)
    assert logits.isfinite().all()
    alone = head(features[:1], coordinates=coordinates[:1], extent=EXTENT)
    assert torch.equal(logits[:1], alone)
    affine, is_affine = read(coordinates, EXTENT, 3)
    assert is_affine.all()
    assert torch.equal(affine[1], torch.cat([torch.zeros(3, 2), EXTENT[:, None] / 2], 1).double())


def test_one_picture_for_all_samples_is_one_map():
    head, features = head_of(), make_inputs((30, 37), batch=3).features
    affine = slices_of_a_volume(1)["affine"]
    coordinates = picture_of(affine, (30, 37), torch.float64)
    logits = head(features, coordinates=coordinates, extent=EXTENT)
    assert relative_error(logits, head(features, affine=affine[0], extent=EXTENT)) <= LOGITS[torch.float32]
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        head(features, coordinates=coordinates, extent=EXTENT)
    assert counter.get_flop_counts()["Global"][torch.ops.scp_kernels.scp_forward] == 2 * head.macs((30, 37), 3)


BAD = [
    ({"coordinates": [[0.0]]}, TypeError, r"coordinates: expected a tensor, got list"),
    ({"coordinates": torch.zeros(2, 3, 6, 7).half()}, TypeError, r"coordinates: expected float32 or float64.*float16"),
    ({"coordinates": torch.zeros(2, 2, 6, 7)}, ValueError, r"\[2, 3, 6, 7\], or \[2, 4, 6, 7\] .* got \[2, 2, 6, 7\]"),
    ({"coordinates": torch.zeros(2, 3, 6, 8)}, ValueError, r"coordinates: expected shape .* got \[2, 3, 6, 8\]"),
    ({"coordinates": torch.zeros(2, 3, 6, 7, requires_grad=True)}, ValueError, r"positions are not differentiable"),
    ({"affine": torch.zeros(3, 3)}, ValueError, r"coordinates: expected neither origin nor affine"),
    ({"origin": (0, 0, 0)}, ValueError, r"coordinates: expected neither origin nor affine"),
    ({"extent": None}, ValueError, r"extent: expected \[3\] sizes of the space .* got none"),
    ({"extent": (6, 7)}, ValueError, r"extent: expected shape \[3\]"),
    ({"coordinates_as": "elastic"}, ValueError, r"coordinates_as: expected one of .* got 'elastic'"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD, ids=range(len(BAD)))
def test_refusals_name_the_argument(changes, error, message):
    arguments = {"coordinates": torch.zeros(2, 3, 6, 7), "extent": (20, 6, 7), **changes}
    with pytest.raises(error, match=message):
        head_of()(make_inputs((6, 7)).features, **arguments)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_flow_into_everything_else(backend):
    head, features = head_of(backend), make_inputs((30, 37)).features.to(device_of(backend)).requires_grad_()
    affine = slices_of_a_volume(2)["affine"]
    coordinates, extent = picture_of(affine, (30, 37)).to(features.device), EXTENT.to(features.device)
    leaves = [features, *head.parameters()]
    loss = head(features, coordinates=coordinates, extent=extent).square().sum()
    stated = head(features, affine=affine.to(features.device), extent=extent).square().sum()
    for gradient, expected in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(stated, leaves), strict=True):
        assert relative_error(gradient, expected) <= 1e-4


@pytest.mark.parametrize("backend", COMPILED_BACKENDS)
def test_exported_with_dynamic_sizes(backend):
    head = head_of(backend).eval()
    device = device_of(backend)

    def arguments(batch, *shape):
        coordinates = with_validity(picture_of(slices_of_a_volume(batch)["affine"], shape))
        return make_inputs(shape, batch=batch).features.to(device), coordinates.to(device), EXTENT.to(device)

    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = head

        def forward(self, features, coordinates, extent):
            return self.head(features, coordinates=coordinates, extent=extent)

    sizes = {0: torch.export.Dim("b"), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    dynamic = {"features": sizes, "coordinates": sizes, "extent": None}
    program = torch.export.export(Wrapped(), arguments(2, 30, 37), dynamic_shapes=dynamic)
    compiled = torch.compile(Wrapped(), fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((2, 30, 37), (3, 17, 64)):
        expected = Wrapped()(*arguments(*size))
        assert relative_error(program.module()(*arguments(*size)), expected) <= LOGITS[torch.float32]
        assert relative_error(compiled(*arguments(*size)), expected) <= LOGITS[torch.float32]


def test_onnx(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    head, features = head_of().eval(), make_inputs((30, 37)).features
    arguments = {"coordinates": with_validity(picture_of(slices_of_a_volume(2)["affine"], (30, 37))), "extent": EXTENT}
    program = torch.onnx.export(head, (features,), kwargs=arguments, dynamo=True, verbose=False)
    program.save(tmp_path / "head.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "head.onnx", providers=["CPUExecutionProvider"])
    values = [features.numpy(), *(value.numpy() for value in arguments.values())]
    names = [argument.name for argument in session.get_inputs()]
    (logits,) = session.run(None, dict(zip(names, values, strict=True)))
    assert relative_error(torch.as_tensor(logits), head(features, **arguments)) <= LOGITS[torch.float32]


def test_vmap():
    head, features = head_of(), make_inputs((12, 13), batch=3).features
    coordinates = picture_of(slices_of_a_volume(3)["affine"], (12, 13))
    together = head(features, coordinates=coordinates, extent=EXTENT)
    mapped = torch.func.vmap(lambda x, c: head(x[None], coordinates=c[None], extent=EXTENT)[0])(features, coordinates)
    assert relative_error(mapped, together) <= LOGITS[torch.float32]


def test_nothing_is_read_on_the_host():
    """On a device whose tensors have no values, reading one would fail."""
    with torch.device("meta"):
        coordinates, extent = torch.empty(2, 4, 30, 37), torch.empty(3)
        affine, is_affine = read(coordinates, extent, 3)
        head, features = FusedSCP(3, position_dims=3, position="centered"), torch.empty(2, 3, 30, 37)
        logits = head(features, coordinates=coordinates, extent=extent)
    assert affine.is_meta and affine.shape == (2, 3, 3) and is_affine.shape == (2,)
    assert logits.is_meta and logits.shape == (2, 1, 30, 37)
