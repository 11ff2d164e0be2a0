"""Argument checks: every error names the argument, what was expected and what came, before anything runs."""

import functools
import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn

from scp_kernels.positions import POSITIONS, origin_affine, position_dtype

_NAMES = ("features", "w1", "b1", "w2", "b2", "w3", "b3", "residual", "bias")
_OPTIONAL = ("residual", "bias")

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

ArrayLike = Tensor | Sequence[Any]
_SEQUENCES = (Sequence, nn.ParameterList)  # a tuple: PyTorch 2.8 does not trace the union of the two


def check_features(features: Any) -> None:
    """Check that X is a tensor whose elements lie in memory, one for each index."""
    if not isinstance(features, Tensor):
        raise TypeError(f"features: expected a tensor, got {type(features).__name__}")
    if features.is_nested or features.layout is not torch.strided:
        kind = "a nested tensor" if features.is_nested else f"layout {features.layout}"
        raise TypeError(f"features: expected a dense tensor, got {kind}")


def as_size(name: str, value: SupportsIndex) -> int:
    """A number of channels, classes or hidden units: whatever can index a list, from 1 on."""
    try:
        size = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {value!r}") from None
    if size < 1:
        raise ValueError(f"{name}: expected at least 1, got {size}")
    return size


def as_position_dims(position_dims: SupportsIndex | None, spatial_dims: int) -> int:
    """K, at least as many as there are spatial axes; None: as many."""
    if position_dims is None:
        return spatial_dims
    size = as_size("position_dims", position_dims)
    if size < spatial_dims:
        raise ValueError(f"position_dims: expected at least spatial_dims={spatial_dims}, got {size}")
    return size


def check_dtype(name: str, dtype: torch.dtype) -> None:
    if dtype not in FLOATS:
        raise TypeError(f"{name}: expected float64, float32, float16 or bfloat16, got {dtype}")


def check_tensors(
    features: Tensor, phi: Sequence[Tensor], residual: Tensor | None, bias: Tensor | None
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Check X and the parameters; return Φ and w_r with their weights as matrices."""
    check_features(features)
    # What a module passes is a tuple; asking for abstract classes takes longer.
    if (type(phi) is not tuple and not isinstance(phi, _SEQUENCES)) or len(phi) != 6:
        raise ValueError(f"phi: expected the six tensors (w1, b1, w2, b2, w3, b3), got {_describe(phi)}")
    tensors = (features, *phi, residual, bias)
    for name, tensor in zip(_NAMES, tensors, strict=True):
        if not isinstance(tensor, Tensor) and not (tensor is None and name in _OPTIONAL):
            raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    described = tuple([None if t is None else (t.shape, t.dtype, t.device) for t in tensors])
    # Remembered, where sizes are plain numbers: a network asks the same question at every step.
    symbolic = type(features) is not Tensor or torch.compiler.is_compiling()
    num_classes = (_check_described if symbolic else _check_described_once)(described)
    if residual is None:
        residual = features.new_zeros((num_classes, features.shape[1]), dtype=phi[0].dtype)
    matrices = [t.flatten(1) if t.ndim > 2 else t for t in (*phi, residual)]
    return tuple(matrices[:-1]), matrices[-1]


def _check_described(described: tuple[Any, ...]) -> int:
    """Check shapes, dtypes and devices, in the order of ``_NAMES``; return the number of classes."""
    shapes, dtypes, devices = (
        {name: d[k] for name, d in zip(_NAMES, described, strict=True) if d is not None} for k in range(3)
    )
    for name, dtype in dtypes.items():
        check_dtype(name, dtype)
    features, device = list(shapes.pop("features")), devices["features"]
    if len(features) not in (4, 5):
        raise ValueError(f"features: expected [B, C, H, W] or [B, C, D, H, W], got shape {features}")
    dims, channels = len(features) - 2, features[1]
    if channels == 0:
        raise ValueError("features: expected at least one channel, got none")
    for name in shapes:
        if dtypes[name] != dtypes["w1"]:
            raise TypeError(
                f"{name}: expected {dtypes['w1']} as w1 has (all parameters share a dtype), got {dtypes[name]}"
            )
        if devices[name] != device:
            raise ValueError(f"{name}: expected on {device} as features are, got on {devices[name]}")
    for name in ("w1", "w2", "w3", "residual"):
        if name not in shapes:
            continue
        rows_and_columns, ones = shapes[name][:2], shapes[name][2:]
        if len(rows_and_columns) < 2 or any(size != 1 for size in ones):
            raise ValueError(
                f"{name}: expected the weight of a linear layer or of a 1×1 convolution, got shape {list(shapes[name])}"
            )
        shapes[name] = rows_and_columns

    h1, h2, outputs = (shapes[name][0] for name in ("w1", "w2", "w3"))
    for name, width in (("w1", h1), ("w2", h2)):
        if width == 0:
            raise ValueError(f"{name}: expected at least one hidden unit, got none")
    if outputs == 0 or outputs % channels:
        raise ValueError(
            f"w3: expected N·C rows for features of C = {channels} channels (N = number of classes), got {outputs}"
        )
    num_classes = outputs // channels
    columns = shapes["w1"][1]
    if columns % 2 or columns < 2 * dims:
        raise ValueError(
            f"w1: expected shape {[h1, 2 * dims]} for features {features}, or two columns for each of more than {dims} "
            f"position axes, got {list(shapes['w1'])}"
        )
    expected = {
        "w1": (h1, columns), "b1": (h1,), "w2": (h2, h1), "b2": (h2,), "w3": (outputs, h2), "b3": (outputs,),
        "residual": (num_classes, channels), "bias": (num_classes,),
    }  # fmt: skip
    for name, shape in shapes.items():
        if tuple(shape) != expected[name]:
            raise ValueError(
                f"{name}: expected shape {list(expected[name])} for features {features}, got {list(shape)}"
            )
    return num_classes


_check_described_once = functools.lru_cache(maxsize=256)(_check_described)


def check_position(
    features: Tensor, origin: Any, affine: Any, extent: Any, position: str, position_dims: int
) -> tuple[Tensor | None, Tensor | None]:
    """Check the position map; return affine and extent as float64 tensors on the features' device, None if default.

    A default there is only for as many position axes as the map has.
    """
    if position not in POSITIONS:
        raise ValueError(f"position: expected one of {POSITIONS}, got {position!r}")
    check_alone(origin, affine)
    dims = features.ndim - 2
    if position_dims > dims:
        _check_no_default(origin, affine, extent, position_dims, dims)
    if origin is not None:
        affine = origin_affine(_position("origin", origin, features, (position_dims,)), dims)
    elif affine is not None:
        affine = _position("affine", affine, features, (position_dims, dims + 1))
    if extent is not None:
        extent = check_extent(extent, features, position_dims)
    return affine, extent


def _check_no_default(origin: Any, affine: Any, extent: Any, position_dims: int, dims: int) -> None:
    """Check that everything is said that a map of ``dims`` axes does not say about ``position_dims`` of them."""
    why = f"positions have {position_dims} axes (position_dims, half of w1's columns) and features {dims} spatial ones"
    if origin is None and affine is None:
        raise ValueError(
            f"affine, origin: expected one of the two, since {why}: affine {[position_dims, dims + 1]} maps an index "
            f"(…, 1) of the map to its position; origin {[position_dims]} is that of its first pixel, where the last "
            f"{dims} axes run with the map's own; got neither"
        )
    if extent is None:
        raise ValueError(
            f"extent: expected {[position_dims]} sizes of the space that positions lie in, since {why}; got none"
        )


def check_extent(extent: Any, features: Tensor, position_dims: int) -> Tensor:
    """``extent`` as a tensor ``[K]`` or ``[B, K]`` on the features' device."""
    return _position("extent", extent, features, (position_dims,))


def check_alone(origin: Any, affine: Any) -> None:
    """Check that at most one of the two is given."""
    if origin is not None and affine is not None:
        raise ValueError("origin, affine: expected at most one of the two (origin is the shorthand for a plain crop)")


def check_without_map(origin: Any, affine: Any) -> None:
    """Check that neither is given beside coordinate channels."""
    if origin is not None or affine is not None:
        raise ValueError("coordinates: expected neither origin nor affine beside them, which say the same")


def _position(name: str, value: Any, features: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``value`` as a tensor of ``shape``, or of ``[B, *shape]``: one per sample."""
    tensor = position_tensor(name, value, features.device, shape)
    # By the number of axes first: comparing a batch size with something else would fix it in an exported graph.
    expected = shape if tensor.ndim == len(shape) else (features.shape[0], *shape)
    if tensor.ndim != len(expected) or tuple(tensor.shape) != expected:
        raise ValueError(
            f"{name}: expected shape {list(shape)}, or {[features.shape[0], *shape]} for one per sample, "
            f"got {_shape(tensor)}"
        )
    return tensor


def position_tensor(name: str, value: Any, device: torch.device, shape: tuple[int, ...] | None = None) -> Tensor:
    """``origin``, ``affine`` or ``extent`` on ``device``; values given as numbers are checked.

    A tensor's are not looked at, which on a GPU would wait for it.
    """
    dtype = position_dtype(device)
    if isinstance(value, Tensor):
        if value.requires_grad:
            raise ValueError(f"{name}: positions are not differentiable, got a tensor that requires grad")
        if value.dtype not in POSITION_FLOATS:
            _check_position_dtype(name, value.dtype)
        if value.is_meta and device.type != "meta":
            raise ValueError(f"{name}: expected on {device} as features are, got on {value.device}")
        return value.to(device=device, dtype=dtype)
    numbers = value
    if hasattr(value, "tolist"):  # of NumPy
        numbers = value.tolist()
        if getattr(value, "dtype", None) == "float16":
            raise too_few_bits(name, value.dtype)
    flat = _flat(numbers)
    if isinstance(numbers, str) or not all(isinstance(v, _NUMBERS) for v in flat):
        raise _not_numbers(name, value, shape)
    plain = [v for v in flat if not isinstance(v, Tensor)]
    if len(plain) < len(flat):
        for v in flat:
            if isinstance(v, Tensor):
                _check_position_dtype(name, v.dtype)
    if not all(v - v == 0 for v in plain):  # false for an infinity too, and no obstacle to a compiler
        raise ValueError(f"{name}: expected finite numbers, got {value}")
    if name == "extent" and not all(v > 0 for v in plain):
        raise ValueError(f"extent: expected positive sizes in pixels, got {value}")
    try:
        return torch.tensor(numbers, device=device, dtype=dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _not_numbers(name, value, shape) from error


POSITION_FLOATS = (torch.float64, torch.float32)


def _check_position_dtype(name: str, dtype: torch.dtype) -> None:
    if dtype.is_complex or dtype == torch.bool:
        raise TypeError(f"{name}: expected real numbers, got {dtype}")
    if dtype.is_floating_point and dtype not in POSITION_FLOATS:
        raise too_few_bits(name, dtype)


def too_few_bits(name: str, dtype: Any) -> TypeError:
    """What to say of positions in half precision: 224.5 is no number of bfloat16, 2049 none of float16."""
    return TypeError(f"{name}: expected float32 or float64 (fewer bits do not hold a pixel's position), got {dtype}")


_NUMBERS = (int, float, Real, Tensor, torch.SymInt, torch.SymFloat)  # PyTorch 2.8 traces no union


def _not_numbers(name: str, value: Any, shape: tuple[int, ...] | None) -> TypeError:
    of_shape = "" if shape is None else f" of shape {list(shape)}"
    return TypeError(f"{name}: expected numbers{of_shape}, got {value!r}")


def _flat(values: Any) -> list[Any]:
    if isinstance(values, Sequence) and not isinstance(values, str):
        return [v for value in values for v in _flat(value)]
    return [values]


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)


def _describe(value: Any) -> str:
    return f"{len(value)} of them" if isinstance(value, Sequence) else type(value).__name__
