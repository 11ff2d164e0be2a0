"""``FusedSCP``: parameters, initialisation, state_dict."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scp_kernels import reference
from scp_kernels.anchor import at_least_float, bias_of_anchored, match_anchor
from scp_kernels.checks import (
    ArrayLike,
    as_position_dims,
    as_size,
    check_dtype,
    check_features,
    check_position,
    check_tensors,
)
from scp_kernels.context import HeadState, current_placement, placement_for_replica
from scp_kernels.dispatch import check_name
from scp_kernels.functional import scp
from scp_kernels.layers import (
    PointwiseLayer,
    check_layer,
    check_layers,
    match_linear_and_convolution,
    pointwise_layers,
    weight_and_bias,
)
from scp_kernels.phi_scale import describe_scale, enlarge_phi, initial_scale, match_phi_scale
from scp_kernels.placement import Placement
from scp_kernels.positions import POSITIONS
from scp_kernels.problem import Problem


class FusedSCP(nn.Module):
    """Spatially covariant pixel-aligned classifier: a segmentation head with its own weights at every pixel.

    In the place of a last 1×1 convolution: ``Y_ij = (Φ(S_ij) + w_r)ᵀ X_ij (+ β)`` (paper, eqs. 5, 12, 13), where
    ``S_ij = (i, j, H − i, W − j)`` is the pixel's distance to the borders and Φ a small ReLU network. With
    ``position_dims`` above ``spatial_dims``, positions have more axes than the map: those of a slice in a volume.

    The defaults are the paper's plain form. For training, ``position="centered", zero_init=True, bias=True`` is
    recommended, and ``anchored=True``: the head then starts as the plain 1×1 classifier ``w_r`` on well-scaled
    positions, and stays it at their centre. With ``phi_scale="adam"`` (or ``"sgd"``) its weights move about as fast as
    that classifier's.

    Args:
        in_channels: C, channels of the features.
        num_classes: N, channels of the logits.
        hidden_channels: widths of Φ's hidden layers, one number or ``(h₁, h₂)``; None: ``8·C``.
        spatial_dims: d, 2 for ``[B, C, H, W]``, 3 for ``[B, C, D, H, W]``.
        position_dims: K ≥ d, axes of positions; None: d. With more than d of them every call says where its map lies
            (``affine`` or ``origin``) and the ``extent``.
        position: ``"pixels"`` (eq. 5) or ``"centered"`` (``2·S/extent − 1``).
        zero_init: zero Φ's last layer, so that W starts at 0 and the head as the plain classifier.
        anchored: W is ``Φ(S) − Φ(S₀)``, of which S₀ is the centre of the extent: w_r is the classifier there, and Φ
            what differs elsewhere. Φ's last layer has no bias then. The same functions in another parametrisation, in
            which no step of the optimizer on Φ moves W everywhere (docs/training.md). For centered positions.
        phi_scale: s: W is ``s·Φ(S)``, with Φ's hidden features initialised ``1/√s`` times larger, so that W begins as
            with s = 1 and only the optimizer's steps on it become smaller. A power of two from (0, 1], or the name of
            the optimizer: ``"adam"`` (and its kin) or ``"sgd"``, for which s falls with the hidden widths so that the
            step on W does not grow with them (docs/training.md). 1 is the paper's form.
        bias: add β ``[N]`` to the logits.
        bias_init: β's initial value, one number or one per class; the log-odds of a rare class keep it from flooding.
        backend: ``"auto"`` or a name of :func:`scp_kernels.available_backends`.
        device, dtype: of the parameters.

    Attributes:
        phi: ``nn.Sequential(Linear, ReLU, Linear, ReLU, Linear)``; output ``n·C + c``, times s, is ``W[n, c]``.
        phi_scale: s, a buffer, or None for 1. It is part of the state_dict then; one without it means 1.
        residual: w_r, ``nn.Linear(C, N, bias=False)``, or None where :meth:`from_layers` was given none.
        bias: β, a parameter ``[N]``, or None.
        placement: a :class:`scp_kernels.Placement` that stands in for position arguments which a call does not give, or
            None. It is no part of the state_dict, nor of copies and pickles. All threads see it; :func:`positioned` is
            for one call, and stands before it.

    Φ's layers are read, never called. Old reparametrisations (``torch.nn.utils.prune``, ``weight_norm``,
    ``spectral_norm``) are applied at each call; other hooks of these layers see nothing.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int = 1,
        hidden_channels: int | tuple[int, int] | None = None,
        *,
        spatial_dims: int = 2,
        position_dims: int | None = None,
        position: str = "pixels",
        zero_init: bool = False,
        anchored: bool = False,
        phi_scale: float | str = 1.0,
        bias: bool = False,
        bias_init: float | Sequence[float] = 0.0,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        in_channels, num_classes = as_size("in_channels", in_channels), as_size("num_classes", num_classes)
        h1, h2 = _widths(8 * in_channels if hidden_channels is None else hidden_channels)
        if dtype is not None:
            check_dtype("dtype", dtype)
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims: expected 2 or 3, got {spatial_dims}")
        position_dims = as_position_dims(position_dims, spatial_dims)
        _check_anchored(anchored, position)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        phi = nn.Sequential(
            nn.Linear(2 * position_dims, h1, **factory),
            nn.ReLU(),
            nn.Linear(h1, h2, **factory),
            nn.ReLU(),
            nn.Linear(h2, num_classes * in_channels, bias=not anchored, **factory),
        )
        residual = nn.Linear(in_channels, num_classes, bias=False, **factory)
        beta = nn.Parameter(torch.empty(num_classes, **factory)) if bias else None
        self._adopt(phi, residual, beta, in_channels, num_classes, spatial_dims, position, backend)
        self.zero_init = zero_init
        self.bias_init = bias_init
        self._phi_scale_init = initial_scale(phi_scale, self.hidden_channels)
        if phi_scale != 1:
            self.phi_scale = torch.empty((), **factory)
        self._initialise_scale_last_layer_and_bias()

    phi: nn.Sequential
    residual: PointwiseLayer | None
    bias: nn.Parameter | None
    bias_init: float | Sequence[float]
    phi_scale: Tensor | None
    placement: Placement | None = None

    def _adopt(
        self,
        phi: nn.Sequential,
        residual: PointwiseLayer | None,
        bias: nn.Parameter | None,
        in_channels: int,
        num_classes: int,
        spatial_dims: int,
        position: str,
        backend: str,
    ) -> None:
        self.phi = phi
        self.residual = residual
        self.register_parameter("bias", bias)
        self.register_buffer("phi_scale", None)
        self.in_channels = in_channels
        self.num_classes = num_classes
        first, second, _ = pointwise_layers(phi)
        self.hidden_channels = (first.weight.shape[0], second.weight.shape[0])
        self.spatial_dims = spatial_dims
        self.position_dims = first.weight.shape[1] // 2
        self.position = position
        self.backend = backend
        self.placement = None
        self.position_state = HeadState()
        self.zero_init = False
        self.bias_init = 0.0
        self._phi_scale_init = 1.0
        self.register_load_state_dict_pre_hook(match_phi_scale)
        self.register_load_state_dict_pre_hook(match_anchor)
        self.register_load_state_dict_pre_hook(match_linear_and_convolution)
        # Wrong names raise at construction, not at the first batch.
        if position not in POSITIONS:
            raise ValueError(f"position: expected one of {POSITIONS}, got {position!r}")
        check_name(backend)

    @property
    def anchored(self) -> bool:
        """Whether W is zero at the centre: Φ's last layer has no bias of its own then."""
        third = pointwise_layers(self.phi)[2]
        return "bias" in third._parameters and third._parameters["bias"] is None

    @classmethod
    def from_layers(
        cls,
        phi: nn.Sequential,
        residual: PointwiseLayer | None = None,
        *,
        in_channels: int | None = None,
        spatial_dims: int | None = None,
        position: str = "pixels",
        anchored: bool = False,
        backend: str = "auto",
    ) -> "FusedSCP":
        """A head that shares the weights of ordinary layers, the way the paper's Φ is usually written.

        Args:
            phi: ``Sequential(layer, ReLU, layer, ReLU, layer)`` of ``nn.Linear`` or 1×1 convolutions with biases, from
                2K position channels to N·C: 4 in 2-D, 6 in 3-D, or 6 of a 2-D map in a volume. The module itself
                becomes ``head.phi``.
            residual: ``nn.Linear`` or 1×1 convolution from C to N without bias, or None for no residual. The module
                itself becomes ``head.residual``.
            in_channels: C; needed only where ``residual`` is None and N > 1 (None then means N = 1).
            spatial_dims: d, 2 or 3; None: K, which is to be 2 or 3 then. A 2-D head with 3 position axes has to say 2.
            position, backend: as in the constructor.
            anchored: as there; the last layer has no bias then.

        Raises:
            ValueError: a structure other than this, naming what was found.
        """
        check_layers(phi, anchored)
        _check_anchored(anchored, position)
        spatial_dims = _spatial_dims(spatial_dims, phi)
        outputs = pointwise_layers(phi)[2].weight.shape[0]
        if residual is not None:
            check_layer("residual", residual)
            if getattr(residual, "bias", None) is not None:
                raise ValueError("residual: expected no bias (β is FusedSCP's own parameter), got a layer with one")
            num_classes, channels = residual.weight.shape[:2]
            if in_channels not in (None, channels):
                raise ValueError(f"in_channels: expected {channels} as residual has, got {in_channels}")
        else:
            channels = outputs if in_channels is None else as_size("in_channels", in_channels)
            num_classes = outputs // channels
        if num_classes * channels != outputs:
            raise ValueError(f"phi: expected N·C = {num_classes}·{channels} outputs of its last layer, got {outputs}")
        head = cls.__new__(cls)
        nn.Module.__init__(head)
        head._adopt(phi, residual, None, channels, num_classes, spatial_dims, position, backend)
        return head

    def reset_parameters(self) -> None:
        """Initialise all parameters again, as the constructor does."""
        for layer in (*pointwise_layers(self.phi), self.residual):
            if layer is not None:
                layer.reset_parameters()
        self._initialise_scale_last_layer_and_bias()

    @torch.no_grad()
    def _initialise_scale_last_layer_and_bias(self) -> None:
        if self.phi_scale is not None:
            self.phi_scale.fill_(self._phi_scale_init)
            enlarge_phi(self.phi, 1 / self._phi_scale_init)
        if self.zero_init:
            for parameter in self.phi[4].parameters():
                parameter.zero_()
        if self.bias is not None:
            values = torch.as_tensor(self.bias_init, dtype=self.bias.dtype, device=self.bias.device)
            if values.shape not in ((), self.bias.shape):
                raise ValueError(f"bias_init: expected a number or {self.num_classes} of them, got {self.bias_init}")
            self.bias.copy_(values.expand_as(self.bias))

    @torch.no_grad()
    def fold_(self) -> "FusedSCP":
        """Write ``phi_scale`` and an anchored Φ's bias into Φ's last layer, in place.

        The logits are the same, bit for bit. Only in half precision the bias is rounded: fold in float32.

        Afterwards ``head.phi`` is Φ itself, for use outside of this class. For training to go on as before, scale and
        anchor are to stay.

        Raises:
            RuntimeError: the last layer is pruned or reparametrised.
        """
        if self.phi_scale is None and not self.anchored:
            return self
        layer = pointwise_layers(self.phi)[2]
        if set(dict(layer.named_parameters())) != ({"weight"} if self.anchored else {"weight", "bias"}):
            raise RuntimeError(f"phi[4]: expected plain parameters to fold into, got {layer}")
        bias = self._phi_tensors()[-1]
        if self.phi_scale is not None:
            for parameter in layer.parameters():
                parameter.mul_(self.phi_scale)
            self.phi_scale = None
        if self.anchored:
            layer.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=layer.weight.requires_grad)
        return self

    def _phi_tensors(self) -> tuple[Tensor, ...]:
        first, _, second, _, third = self.phi._modules.values()
        w1, b1 = weight_and_bias(first)
        w2, b2 = weight_and_bias(second)
        w3, b3 = weight_and_bias(third)
        if b3 is None:
            w1, b1, w2, b2, w3 = map(at_least_float, (w1, b1, w2, b2, w3))
        scale = self._buffers["phi_scale"]
        if scale is not None:
            w3, b3 = w3 * scale, None if b3 is None else b3 * scale
        return w1, b1, w2, b2, w3, bias_of_anchored(b1, w2, b2, w3) if b3 is None else b3

    def _residual_tensor(self) -> Tensor | None:
        residual = self.residual
        if residual is None:
            return None
        weight = weight_and_bias(residual)[0]
        return at_least_float(weight) if self.anchored else weight

    def _bias_tensor(self) -> Tensor | None:
        return at_least_float(self.bias) if self.bias is not None and self.anchored else self.bias

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("placement", "position_state")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # Pickles of versions without them.
        self._buffers.setdefault("phi_scale", None)
        self.__dict__.setdefault("_phi_scale_init", 1.0)
        self.__dict__.setdefault("position_dims", self.spatial_dims)
        self.placement = None
        self.position_state = HeadState()

    def _replicate_for_data_parallel(self) -> "FusedSCP":
        replica = super()._replicate_for_data_parallel()
        replica.placement = placement_for_replica(self.position_state, self.placement)
        return replica

    def forward(
        self,
        features: Tensor,
        *,
        origin: ArrayLike | None = None,
        affine: ArrayLike | None = None,
        extent: ArrayLike | None = None,
        coordinates: Tensor | None = None,
        coordinates_as: str = "affine",
    ) -> Tensor:
        """Logits ``[B, N, *spatial]`` of features ``[B, C, *spatial]``; arguments and errors as in :func:`scp`.

        ``origin`` without ``extent`` places the map in a full image of the map's own size: for a crop, give both. With
        more position axes than spatial ones, ``extent`` has no default, nor has ``affine``.
        """
        if not isinstance(features, Tensor):
            check_features(features)  # which raises; scp asks the rest of it
        if features.ndim - 2 != self.spatial_dims:
            raise ValueError(
                f"features: expected {self.spatial_dims + 2} axes for spatial_dims={self.spatial_dims}, "
                f"got shape {list(features.shape)}"
            )
        if features.shape[1] != self.in_channels:
            raise ValueError(f"features: expected {self.in_channels} channels, got shape {list(features.shape)}")
        placement = current_placement(self.position_state, self.placement)
        if placement is not None:
            if coordinates is None:
                origin, affine, extent = placement.resolve(features, origin, affine, extent)
            elif extent is None:
                extent = placement.extent_of_space()
        return scp(
            features,
            self._phi_tensors(),
            self._residual_tensor(),
            self._bias_tensor(),
            origin=origin,
            affine=affine,
            extent=extent,
            coordinates=coordinates,
            coordinates_as=coordinates_as,
            position=self.position,
            backend=self.backend,
        )

    def weight_field(
        self,
        spatial_shape: Iterable[int],
        *,
        origin: ArrayLike | None = None,
        affine: ArrayLike | None = None,
        extent: ArrayLike | None = None,
    ) -> Tensor:
        """``W + w_r`` at every pixel, ``[N, C, *spatial_shape]``: for plots, and differentiable.

        This is the tensor that the operator spares its users; its memory is N·C·H·W numbers. Position arguments as in
        :func:`scp`, shared ones only.
        """
        shape = tuple(spatial_shape)
        phi = self._phi_tensors()
        features = phi[0].new_empty((1, self.in_channels, *shape), dtype=weight_and_bias(self.phi[0])[0].dtype)
        if len(shape) != self.spatial_dims:
            raise ValueError(f"spatial_shape: expected {self.spatial_dims} sizes, got {shape}")
        phi, residual = check_tensors(features, phi, self._residual_tensor(), self._bias_tensor())
        affine, extent = check_position(features, origin, affine, extent, self.position, self.position_dims)
        dtype = torch.promote_types(features.dtype, torch.float32)  # as in forward
        with reference.without_autocast(features.device):
            s = reference.positions(shape, affine=affine, extent=extent, position=self.position, device=features.device)
            field = reference.weight_field(s.to(dtype), [t.to(dtype) for t in phi], residual.to(dtype))
        return field[0].to(features.dtype).unflatten(-1, shape)

    def macs(self, spatial_shape: Iterable[int], batch: int = 1) -> int:
        """Nominal multiply-adds of a forward at one position map, where Φ is evaluated once per pixel.

        Args:
            spatial_shape, batch: of the features ``[batch, C, *spatial_shape]``.
        """
        weight = self._phi_tensors()[0]
        problem = Problem(
            batch=batch,
            channels=self.in_channels,
            num_classes=self.num_classes,
            hidden=self.hidden_channels,
            spatial_shape=tuple(spatial_shape),
            groups=1,
            dtype=weight.dtype,
            compute_dtype=weight.dtype,
            device=weight.device,
            extra_position_dims=self.position_dims - self.spatial_dims,
        )
        return problem.phi_macs + problem.product_macs

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.num_classes}, hidden_channels={self.hidden_channels}, "
            f"spatial_dims={self.spatial_dims}, position_dims={self.position_dims}, position={self.position!r}, "
            f"anchored={self.anchored}, phi_scale={describe_scale(self.phi_scale)}, bias={self.bias is not None}, "
            f"backend={self.backend!r}"
        )


def _widths(hidden_channels: int | Sequence[int]) -> tuple[int, int]:
    """h₁ and h₂, of one width or two."""
    widths = hidden_channels if isinstance(hidden_channels, Sequence | torch.Tensor) else (hidden_channels,) * 2
    if isinstance(hidden_channels, str) or len(widths) != 2:
        raise ValueError(f"hidden_channels: expected one width or two, got {hidden_channels!r}")
    h1, h2 = (as_size("hidden_channels", width) for width in widths)
    return h1, h2


def _check_anchored(anchored: bool, position: str) -> None:
    if anchored and position != "centered":
        raise ValueError(f"anchored: expected position='centered', whose centre is 0, got {position!r}")


def _spatial_dims(spatial_dims: int | None, phi: nn.Sequential) -> int:
    """d of a head that is made of ``phi``'s layers: what was asked for, or as many as there are position axes."""
    position_dims = pointwise_layers(phi)[0].weight.shape[1] // 2
    dims = position_dims if spatial_dims is None else spatial_dims
    if dims not in (2, 3) or dims > position_dims:
        raise ValueError(
            f"spatial_dims: expected 2 or 3, and no more than the {position_dims} position axes of phi[0], "
            f"got {spatial_dims}"
        )
    return dims
