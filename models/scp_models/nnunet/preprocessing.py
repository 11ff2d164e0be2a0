"""Coordinate channels for nnU-Net's predictor, which asks the plans' configuration for a preprocessor."""

from functools import partial
from typing import Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from numpy.typing import NDArray

from scp_models.nnunet.dataset import PositionedArray, find_positions


class PositionedPreprocessor:
    """The planned preprocessor, with coordinate channels behind the image's."""

    def __init__(self, frame: str, preprocessor_class: Any, verbose: bool = True) -> None:
        self.frame = frame
        self.preprocessor = preprocessor_class(verbose=verbose)

    def run_case(self, image_files: Any, seg_file: Any, plans_manager: PlansManager, *args: Any, **kwargs: Any) -> Any:
        """As nnU-Net's: image, segmentation and properties of a case's files."""
        return self._with_positions(
            plans_manager, *self.preprocessor.run_case(image_files, seg_file, plans_manager, *args, **kwargs)
        )

    def run_case_npy(
        self, data: Any, seg: Any, properties: Any, plans_manager: PlansManager, *args: Any, **kwargs: Any
    ) -> Any:
        """As nnU-Net's: of arrays."""
        return self._with_positions(
            plans_manager, *self.preprocessor.run_case_npy(data, seg, properties, plans_manager, *args, **kwargs)
        )

    def _with_positions(
        self, plans_manager: PlansManager, data: NDArray[np.floating], seg: Any, properties: dict[str, Any]
    ) -> tuple[NDArray[np.floating], Any, dict[str, Any]]:
        affine = find_positions(data, seg, properties, plans_manager.transpose_forward, self.frame)
        return PositionedArray(data, affine)[:], seg, properties


class PositionedConfiguration(ConfigurationManager):  # type: ignore[misc]
    """A configuration whose preprocessor gives positions.

    nnU-Net looks for the preprocessor that its plans name below its own package only, in processes of their own too.
    What it does hand to all of them is the configuration, as an object: so the object knows.
    """

    position_frame: str

    @classmethod
    def adopt(cls, configuration: ConfigurationManager, frame: str) -> None:
        """Make one of a configuration that nnU-Net holds already, in place."""
        configuration.__class__ = cls
        configuration.position_frame = frame

    @property
    def preprocessor_class(self) -> Any:
        """Called as a class is."""
        return partial(PositionedPreprocessor, self.position_frame, super().preprocessor_class)
