"""An inferer that mirrors its windows."""

from collections.abc import Callable, Sequence
from typing import Any

from monai.inferers import SlidingWindowInferer
from torch import Tensor

from scp_models.networks.mirroring import average_over_mirrors


class MirroringSlidingWindowInferer(SlidingWindowInferer):
    """MONAI's sliding windows with mirroring as test-time augmentation.

    Logits of a window are the mean over the window mirrored along every subset of ``mirror_axes``, mirrored back.
    Coordinate channels are mirrored with the picture, so a :class:`scp_models.networks.PositionedNetwork` knows where
    it is in each of them.

    Args:
        roi_size, sw_batch_size, options: as in MONAI's ``SlidingWindowInferer``.
        mirror_axes: spatial axes, 0 the first.

    Raises:
        ValueError: ``with_coord`` or a ``condition``, which would have to be mirrored too and are not.
    """

    def __init__(
        self, roi_size: Sequence[int] | int, sw_batch_size: int = 1, *, mirror_axes: Sequence[int], **options: Any
    ) -> None:
        super().__init__(roi_size, sw_batch_size, **options)
        if self.with_coord:
            raise ValueError("with_coord: expected False, mirrored windows have other coordinates than those given")
        self.mirror_axes = tuple(mirror_axes)

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """As MONAI's, with ``network`` called 2ⁿ times for n axes."""
        if kwargs.get("condition") is not None:
            raise ValueError("condition: expected none, it would not be mirrored with the windows")

        def mirrored(windows: Tensor, *args: Any, **kwargs: Any) -> Any:
            return average_over_mirrors(lambda w, _: network(w, *args, **kwargs), windows, self.mirror_axes)

        return super().__call__(inputs, mirrored, *args, **kwargs)
