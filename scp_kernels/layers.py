"""Layers that apply one matrix to each pixel's channels, and Φ as the paper writes it: a sequence of five of them."""

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

PointwiseLayer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
"""What applies one matrix to each pixel's channels: a linear layer, or a convolution that is found to be 1×1."""


def is_pointwise(layer: nn.Module) -> bool:
    """Whether a layer applies one matrix to each pixel's channels and keeps the grid.

    ``nn.Linear`` does, and so does a 1×1 convolution of stride 1 without groups and padding.
    """
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        padded = not isinstance(layer.padding, str) and any(layer.padding)
        return {*layer.kernel_size, *layer.stride, layer.groups} == {1} and not padded
    return isinstance(layer, nn.Linear)


def pointwise_layers(phi: nn.Sequential) -> tuple[PointwiseLayer, PointwiseLayer, PointwiseLayer]:
    """Φ's three layers, without the ReLUs between them."""
    first, _, second, _, third = phi
    return cast("tuple[PointwiseLayer, PointwiseLayer, PointwiseLayer]", (first, second, third))


def weight_and_bias(layer: nn.Module) -> tuple[Tensor, Any]:
    """A layer's parameters, the bias None if it has none; those that its own hooks compute, as for a call of it."""
    parameters = layer._parameters
    weight = parameters.get("weight")
    if weight is None or "bias" not in parameters:
        # Pruning and the old weight_norm and spectral_norm compute a plain attribute in a hook of the layer.
        for hook in layer._forward_pre_hooks.values():
            if hook(layer, ()) is not None:
                raise RuntimeError(f"{layer}: expected hooks that leave the layer's input alone, got {hook}")
        return cast("Tensor", layer.weight), layer.bias
    return weight, parameters["bias"]


def check_layers(phi: nn.Module, anchored: bool = False) -> None:
    """Check that ``phi`` is (layer, ReLU, layer, ReLU, layer) with fitting widths, the last anchored or with a bias."""
    names = [type(layer).__name__ for layer in phi] if isinstance(phi, nn.Sequential) else type(phi).__name__
    if not isinstance(phi, nn.Sequential) or len(phi) != 5 or not all(isinstance(phi[k], nn.ReLU) for k in (1, 3)):
        raise ValueError(f"phi: expected Sequential(layer, ReLU, layer, ReLU, layer), got {names}")
    inputs = None
    for k, layer in zip((0, 2, 4), pointwise_layers(phi), strict=True):
        check_layer(f"phi[{k}]", layer)
        if (layer.bias is None) != (anchored and k == 4):
            bias = "no bias, as anchored" if anchored and k == 4 else "a bias"
            raise ValueError(f"phi[{k}]: expected a layer with {bias}, got {layer}")
        columns = layer.weight.shape[1]
        if inputs is None and (columns % 2 or columns < 4):
            raise ValueError(f"phi[0]: expected 2K position channels for K position axes, from 4 on, got {layer}")
        if inputs not in (None, columns):
            raise ValueError(f"phi[{k}]: expected {inputs} inputs, got {layer}")
        inputs = layer.weight.shape[0]


def check_layer(name: str, layer: nn.Module) -> None:
    """Check that a layer applies one matrix to each pixel's channels."""
    if not is_pointwise(layer):
        raise ValueError(f"{name}: expected nn.Linear or a 1×1 convolution, got {layer}")


def match_linear_and_convolution(module: nn.Module, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
    """Let a checkpoint of 1×1 convolutions load into linear layers, and the other way round."""
    parameters: Mapping[str, Tensor] = dict(module.named_parameters())
    for name in ("phi.0.weight", "phi.2.weight", "phi.4.weight", "residual.weight"):
        key = prefix + name
        saved, parameter = state_dict.get(key), parameters.get(name)
        if saved is None or parameter is None or saved.ndim == parameter.ndim:
            continue
        if saved.shape[:2] == parameter.shape[:2] and saved.numel() == parameter.numel():
            state_dict[key] = saved.reshape(parameter.shape)
