"""Positions with more axes than the map: 2-D maps in a volume, on every backend that this machine runs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from scp_kernels import FusedSCP, pixel_positions, scp, scp_reference
from scp_kernels.backends import cpu
from scp_kernels.positions import origin_affine
from tests.support.agreement import VOLUME_MAPS, agree, slices_of_a_volume
from tests.support.backend_names import BACKENDS, device_of
from tests.support.cpu_settings import needs_cpu
from tests.support.heads import make_head
from tests.support.problems import away_from_kinks, by_definition, evaluate, make_inputs
from tests.support.strategies import shapes, widths
from tests.support.tolerances import LOGITS, relative_error

EXTENT = torch.tensor([20.0, 24.0, 30.0])


def dtypes_of(backend):
    return [torch.float32, torch.float16, torch.bfloat16] + [torch.float64] * (backend != "triton")


@pytest.mark.parametrize("name", VOLUME_MAPS)
def test_the_reference_is_the_definition(name):
    inputs = make_inputs((4, 5), batch=3, dtype=torch.float64, position_dims=3)
    options = dict(VOLUME_MAPS[name])
    logits = scp(*inputs_of(inputs), backend="reference", **options)
    assert torch.equal(scp_reference(*inputs_of(inputs), **options), logits)
    if (origin := options.pop("origin", None)) is not None:
        options["affine"] = origin_affine(origin.double(), 2)
    assert relative_error(logits, torch.from_numpy(by_definition(inputs, **options))) <= LOGITS[torch.float64]


def inputs_of(inputs):
    return inputs.features, inputs.phi, inputs.residual, inputs.bias


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", VOLUME_MAPS)
def test_slices_of_a_volume(name, backend):
    options = {k: v.to(device_of(backend)) if torch.is_tensor(v) else v for k, v in VOLUME_MAPS[name].items()}
    for dtype in dtypes_of(backend):
        inputs = make_inputs(
            (37, 41), batch=3, channels=5, hidden=(40, 24), classes=2, bias=True, dtype=dtype, position_dims=3
        )
        inputs = away_from_kinks(inputs, **VOLUME_MAPS[name])
        agree(inputs.to(device_of(backend)), backend, **options)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=40, deadline=None)
@given(
    shape=shapes((30, 40), (7, 9, 12)),
    extra=st.integers(0, 3),
    batch=st.integers(1, 4),
    hidden=widths(40),
    position=st.sampled_from(["pixels", "centered"]),
    per_sample=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_any_number_of_axes(backend, shape, extra, batch, hidden, position, per_sample, seed):
    dtype = torch.float32 if backend == "triton" else torch.float64
    inputs = make_inputs(
        shape, batch=batch, hidden=hidden, classes=2, dtype=dtype, seed=seed, position_dims=len(shape) + extra
    )
    maps = slices_of_a_volume(batch, len(shape), len(shape) + extra, seed)
    if not per_sample:
        maps = {name: values[0] for name, values in maps.items()}
    maps = {name: values.to(device_of(backend)) for name, values in maps.items()}
    agree(inputs.to(device_of(backend)), backend, position=position, **maps)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck_and_double_backward(backend):
    if backend == "triton":
        pytest.skip("float64 is not among its dtypes")
    inputs = make_inputs((5, 6), batch=2, channels=2, hidden=(6, 5), bias=True, dtype=torch.float64, position_dims=3)
    leaves = [t.clone().requires_grad_() for t in inputs.to(device_of(backend)).tensors]
    maps = {name: values.to(device_of(backend)) for name, values in slices_of_a_volume(2).items()}

    def function(x, w1, b1, w2, b2, w3, b3, residual, bias):
        return scp(x, (w1, b1, w2, b2, w3, b3), residual, bias, position="centered", backend=backend, **maps)

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_vmap_over_slices(backend):
    head = head_of(backend)
    features = make_inputs((6, 7), batch=3).features.to(device_of(backend))
    origins = torch.tensor([[0.0, 1, 2], [7, 0, 0], [19, 3, 1]]).to(device_of(backend))
    extent = EXTENT.to(device_of(backend))
    together = head(features, origin=origins, extent=extent)
    mapped = torch.func.vmap(lambda x, o: head(x[None], origin=o, extent=extent)[0])(features, origins)
    assert relative_error(mapped, together) <= LOGITS[torch.float32]


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_and_exported(backend):
    head = head_of(backend)
    features = make_inputs((6, 7), batch=2).features.to(device_of(backend))
    affine, extent = (t.to(device_of(backend)) for t in slices_of_a_volume(2).values())
    expected = head(features, affine=affine, extent=extent)
    compiled = torch.compile(head, fullgraph=True)(features, affine=affine, extent=extent)
    assert relative_error(compiled, expected) <= LOGITS[torch.float32]
    program = torch.export.export(head, (features,), {"affine": affine, "extent": extent})
    assert relative_error(program.module()(features, affine=affine, extent=extent), expected) <= LOGITS[torch.float32]


def test_onnx(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    head, features = head_of("auto").eval(), make_inputs((6, 7), batch=2).features
    maps = slices_of_a_volume(2)
    program = torch.onnx.export(head, (features,), kwargs=maps, dynamo=True, verbose=False)
    program.save(tmp_path / "head.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "head.onnx", providers=["CPUExecutionProvider"])
    values = [features.numpy(), *(values.numpy() for values in maps.values())]
    names = [argument.name for argument in session.get_inputs()]
    (logits,) = session.run(None, dict(zip(names, values, strict=True)))
    assert relative_error(torch.as_tensor(logits), head(features, **maps)) <= LOGITS[torch.float32]


def head_of(backend="reference", **options):
    return make_head(backend, 3, position_dims=3, bias=True, **options)


def test_a_slice_of_a_volume_gives_the_volumes_logits():
    """A 2-D map at origin (k, i₀, j₀) sees the positions of the 3-D map that it is a part of."""
    volume = make_inputs((6, 9, 8), channels=3, dtype=torch.float64)
    logits = scp(*inputs_of(volume))
    patch = scp(volume.features[:, :, 4, 2:7, 3:], *inputs_of(volume)[1:], origin=(4, 2, 3), extent=(6, 9, 8))
    assert relative_error(patch, logits[:, :, 4, 2:7, 3:]) <= LOGITS[torch.float64]


def test_the_weight_field_and_the_operator_agree():
    head = head_of()
    features = make_inputs((6, 7)).features
    maps = {"origin": (3, 1, 2), "extent": (20, 24, 30)}
    field = head.weight_field((6, 7), **maps)
    logits = torch.einsum("nchw,bchw->bnhw", field, features) + head.bias[:, None, None]
    assert relative_error(logits, head(features, **maps)) <= LOGITS[torch.float32]


def test_positions_of_every_pixel():
    image = torch.zeros(2, 1, 4, 5)
    s = pixel_positions(image, origin=(7, 2, 1), extent=(20, 24, 30), position_dims=3)
    assert s.shape == (1, 6, 4, 5)
    assert s[0, :, 3, 2].tolist() == [7, 5, 3, 13, 19, 27]
    with pytest.raises(ValueError, match="affine, origin: expected one of the two"):
        pixel_positions(image, position_dims=3)


def test_a_pickle_of_a_head_without_the_attribute():
    """Of a version in which positions had the axes of the map."""
    for dims in (2, 3):
        head, shape = FusedSCP(3, 2, 16, spatial_dims=dims), (6, 7, 5)[:dims]
        state = head.__getstate__()
        del state["position_dims"]
        older = FusedSCP.__new__(FusedSCP)
        older.__setstate__(state)
        assert older.position_dims == dims and repr(older) == repr(head)
        assert torch.equal(older.weight_field(shape), head.weight_field(shape))
        assert older.macs(shape) == head.macs(shape)


def test_nominal_counts():
    head = head_of()
    # Φ: 6·16 + 16·16 + 16·(2·3) per pixel, and the product with the features.
    assert head.macs((4, 5), batch=3) == 20 * (6 * 16 + 16 * 16 + 16 * 6) + 3 * 20 * 6
    assert "spatial_dims=2, position_dims=3" in repr(head)


def test_the_gradients_of_equal_coefficients_are_each_maps_own():
    """Where the weights of layer 1 are 0, maps share W, but not what their positions do to its gradient."""
    inputs = make_inputs((6, 7), batch=2, dtype=torch.float64, position_dims=3)
    inputs.phi[0].zero_()
    agree(inputs, "auto", **slices_of_a_volume(2))


@needs_cpu
def test_equal_maps_share_their_evaluation_and_others_do_not():
    """Of four samples the third lies where the first does; the last differs from the second in the third axis alone."""
    inputs = make_inputs((37, 41), batch=4, channels=5, hidden=(40, 24), dtype=torch.float64, position_dims=3)
    origin = torch.tensor([[7.0, 3, 4], [8, 3, 4], [7, 3, 4], [8, 3, 4]])
    extent = torch.tensor([[20.0, 64, 48]] * 3 + [[20.0, 64, 47]])
    evaluate(scp, inputs, origin=origin, extent=extent, backend="cpu")
    assert cpu.last_report().position_maps == 3
    agree(inputs, "cpu", origin=origin, extent=extent)


def plain_layers(columns, layer=nn.Linear):
    arguments = {} if layer is nn.Linear else {"kernel_size": 1}
    sizes = [(columns, 8), (8, 8), (8, 3)]
    first, second, third = (layer(*size, **arguments) for size in sizes)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)


def test_from_layers_has_the_axes_of_its_first_layer():
    head = FusedSCP.from_layers(plain_layers(6), spatial_dims=2)
    assert (head.spatial_dims, head.position_dims) == (2, 3)
    maps = {"origin": (3, 1, 2), "extent": (20, 24, 30)}
    assert head(torch.zeros(1, 3, 4, 5), **maps).shape == (1, 1, 4, 5)
    for columns, dims in ((4, 2), (6, 3)):
        head = FusedSCP.from_layers(plain_layers(columns, nn.Conv2d))
        assert (head.spatial_dims, head.position_dims) == (dims, dims)
    assert FusedSCP.from_layers(plain_layers(8), spatial_dims=3).position_dims == 4
    with pytest.raises(
        ValueError, match=r"spatial_dims: expected 2 or 3, and no more than the 4 position axes .* None"
    ):
        FusedSCP.from_layers(plain_layers(8))
    with pytest.raises(
        ValueError, match=r"spatial_dims: expected 2 or 3, and no more than the 2 position axes .* got 3"
    ):
        FusedSCP.from_layers(plain_layers(4), spatial_dims=3)


def test_fewer_position_axes_than_spatial_ones_are_refused():
    for dims, axes in ((2, 1), (3, 2)):
        with pytest.raises(ValueError, match=f"position_dims: expected at least spatial_dims={dims}, got {axes}"):
            FusedSCP(3, spatial_dims=dims, position_dims=axes)
    with pytest.raises(TypeError, match="position_dims: expected an integer"):
        FusedSCP(3, position_dims="z")


def test_checkpoints_say_the_axes_by_their_shapes():
    head, other = head_of(), head_of(device="cpu")
    other.reset_parameters()
    other.load_state_dict(head.state_dict())
    maps = {"origin": (3, 1, 2), "extent": (20, 24, 30)}
    features = make_inputs((6, 7)).features
    assert torch.equal(head(features, **maps), other(features, **maps))
    with pytest.raises(RuntimeError, match=r"phi\.0\.weight"):
        FusedSCP(3, 2, 16, bias=True).load_state_dict(head.state_dict())
