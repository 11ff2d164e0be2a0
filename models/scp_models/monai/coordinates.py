"""MONAI dictionary transforms that write each voxel's position beside an image, and take it off again."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform
from monai.utils import SpaceKeys, ensure_tuple
from nibabel.orientations import inv_ornt_aff, io_orientation
from numpy.typing import NDArray

from scp_models.data.foreground import CoarseGrid, find_foreground, foreground_box
from scp_models.data.frames import Frame, box_frame, image_frame
from scp_models.data.geometry import LPS_TO_RAS, coordinate_channels, turned_shape
from scp_models.data.subjects import Subject
from scp_models.data.tasks import FOREGROUND, FRAMES, MNI_BOX, SLICE_FRAME, TRANSFORM_ENDINGS
from scp_models.data.transforms import read_transform, transform_path
from scp_models.data.volume_files import volume_stem
from scp_models.notes import note

Data = Mapping[Hashable, Any]


class AddCoordinatesd(MapTransform, InvertibleTransform):
    """Write where each voxel of an image lies, as channels that MONAI's spatial transforms move along with it.

    ``data[name]`` becomes a float32 ``MetaTensor`` ``[K + 1, *spatial]`` on the image's grid: p as fractions of the
    frame's extent, so that 0 and 1 are its borders for every patient and no extent has to travel, and a channel of
    ones, which padding turns into zeros. It belongs behind what makes the whole image (``LoadImaged``,
    ``EnsureChannelFirstd``) and before everything that cuts or moves it; list ``name`` among the ``keys`` of those
    transforms from there on, with ``mode="bilinear"``. ``ConcatItemsd([image, name], image)`` at the end makes the
    input of a :class:`scp_models.networks.PositionedNetwork`; intensities are augmented before that.

    The inverse takes the channels out of the dictionary.

    Args:
        keys: of the image whose affine and foreground count; one.
        frame: what p is measured in, see :mod:`scp_models.data.frames`. ``"foreground"``, the box of the head or body
            in the image's first channel; ``"image"``, the canonical grid of voxels; the path of a transform, in which
            ``{subject}`` stands for the image's file name without its ending and ``{folder}`` for its folder;
            ``"slice"``, the borders of a 2-D image. Or a :class:`scp_models.data.frames.Frame`, or a function that
            gives one for the dictionary.
        name: key of the channels.
        frame_box: lower and upper corner in the template, mm, RAS+, where the frame is a transform.
        max_height: of the foreground's box in mm from its top; 170 is what the task ``wmh`` takes for heads.
        allow_missing_keys: do nothing where there is no image.

    Raises:
        ValueError: other arguments than these; when called, an image of another number of axes.
        TypeError: when called, an image without an affine.
        UserError: when called, a transform that cannot be read.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        frame: str | Frame | Callable[[Data], Frame] = "foreground",
        *,
        name: str = "coordinates",
        frame_box: Sequence[float] = MNI_BOX,
        max_height: float | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise ValueError(f"keys: expected that of one image, got {self.keys}")
        if isinstance(frame, str) and frame not in FRAMES and not frame.lower().endswith(TRANSFORM_ENDINGS):
            raise ValueError(f"frame: expected one of {', '.join(FRAMES)}, or the path of a transform, got {frame!r}")
        self.frame = frame
        self.name = name
        self.frame_box = np.array(frame_box, float).reshape(2, 3)
        self.max_height = max_height

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            if not isinstance(image, MetaTensor):
                raise TypeError(
                    f"{key}: expected a MetaTensor, whose affine says where it lies, got {type(image).__name__}"
                )
            to_fraction = self._to_fraction(result, image)
            coordinates = torch.from_numpy(coordinate_channels(to_fraction, [np.arange(n) for n in image.shape[1:]]))
            result[self.name] = MetaTensor(coordinates.to(image.device), meta={**image.meta, "affine": image.affine})
        return result

    def inverse(self, data: Data) -> dict[Hashable, Any]:
        """The dictionary without the channels."""
        return {key: value for key, value in data.items() if key != self.name}

    def _to_fraction(self, data: Data, image: MetaTensor) -> NDArray[np.float64]:
        """``[K, d + 1]``: index to fractions of the extent."""
        dims = image.ndim - 1
        if dims != (2 if self.frame == SLICE_FRAME else 3):
            expected = "[C, H, W] for the frame 'slice'" if self.frame == SLICE_FRAME else "a volume [C, X, Y, Z]"
            raise ValueError(f"{self.keys[0]}: expected {expected}, got {list(image.shape)}")
        if self.frame == SLICE_FRAME:
            return np.diag([1.0, 1.0, 1.0])[:2] / np.array(image.shape[1:])[:, None]
        affine = np.asarray(image.affine, dtype=np.float64)
        if str(image.meta.get("space")) == str(SpaceKeys.LPS):
            affine = LPS_TO_RAS @ affine
        frame = self._frame(data, image, affine)
        return frame.positions(affine) / frame.extent[:, None]

    def _frame(self, data: Data, image: MetaTensor, affine: NDArray[np.float64]) -> Frame:
        shape = (int(image.shape[1]), int(image.shape[2]), int(image.shape[3]))
        if isinstance(self.frame, Frame):
            return self.frame
        if not isinstance(self.frame, str):
            return self.frame(data)
        if self.frame == "image":
            to_canonical = io_orientation(affine)
            return image_frame(affine @ inv_ornt_aff(to_canonical, shape), turned_shape(shape, to_canonical))
        if self.frame == "foreground":
            grid = CoarseGrid(affine, shape, replace(FOREGROUND, max_height=self.max_height))
            coarse = np.asarray(image[(0, *grid.chosen)], dtype=np.float32)
            box, line = foreground_box(find_foreground(coarse, grid))
            if line is not None:
                note(f"{image.meta.get('filename_or_obj', 'an image')}: {line}")
            return box_frame(box)
        path = Path(str(image.meta.get("filename_or_obj", "")))
        subject = Subject(volume_stem(path), (path,), None)
        to_template = np.linalg.inv(read_transform(transform_path(self.frame, subject))).astype(np.float64)
        return box_frame(self.frame_box, to_template)


class SplitCoordinatesd(MapTransform, InvertibleTransform):
    """Take coordinate channels off an image that :class:`AddCoordinatesd` and ``ConcatItemsd`` gave them to.

    For what should see the image alone: pictures, files, a network that is told positions in another way. A
    :class:`scp_models.networks.PositionedNetwork` does it itself. The inverse puts them back.

    Args:
        keys: of images ``[C + K + 1, *spatial]``.
        position_dims: K.
        name: where the channels go; with several images a template with ``{key}``; None: nowhere.
        allow_missing_keys: do nothing where there is no image.
    """

    def __init__(
        self,
        keys: KeysCollection,
        position_dims: int,
        *,
        name: str | None = "coordinates",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if name is not None and len(ensure_tuple(self.keys)) > 1 and "{key}" not in name:
            raise ValueError(f"name: expected a template with {{key}} for the keys {self.keys}, got {name!r}")
        self.position_dims = position_dims
        self.name = name

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            image_channels = len(result[key]) - self.position_dims - 1
            if image_channels < 1:
                raise ValueError(
                    f"{key}: expected channels of its own and {self.position_dims + 1} of positions, "
                    f"got {list(result[key].shape)}"
                )
            if self.name is not None:
                result[self.name.format(key=key)] = result[key][image_channels:]
            result[key] = result[key][:image_channels]
        return result

    def inverse(self, data: Data) -> dict[Hashable, Any]:
        """With the channels behind those of the image again, where they were kept."""
        result = dict(data)
        for key in self.key_iterator(result):
            if self.name is not None and (coordinates := result.pop(self.name.format(key=key), None)) is not None:
                result[key] = torch.cat([result[key], coordinates])
        return result
