"""What every exported network shares: pixels of RGB images in, maps and predictions out.

Shapes: B images, H x W pixels of the input, which the file has for good.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

Size = tuple[int, int]  # height and width in pixels
Arrays = Mapping[str, np.ndarray]
IMAGE, VALID_SIZE = 'image', 'valid_size'  # inputs of a file
# Whether the channels change their order, in MMEngine, MMSegmentation 1.2 and MMPretrain.
CONVERSIONS = ('_channel_conversion', 'channel_conversion', 'to_rgb')


class Normalize(nn.Module):
    """Do what the data preprocessor of a library does, from RGB images.

    Args:
        preprocessor: Of the model; MMEngine's ImgDataPreprocessor, MMSegmentation's or
            MMPretrain's.
        size: Of the images.
    """

    def __init__(self, preprocessor: nn.Module, size: Size) -> None:
        super().__init__()
        # All libraries read images as BGR, so that a network gets RGB where the channels change.
        self.takes_rgb = any(getattr(preprocessor, name, False) for name in CONVERSIONS)
        scales = preprocessor._enable_normalize
        mean = preprocessor.mean if scales else torch.zeros(3, 1, 1)
        std = preprocessor.std if scales else torch.ones(3, 1, 1)
        pad_value = getattr(preprocessor, 'pad_value', getattr(preprocessor, 'pad_val', 0))
        self.pad_value = float(pad_value)
        self.register_buffer('mean', mean.clone())
        self.register_buffer('std', std.clone())
        self.register_buffer('rows', torch.arange(size[0])[:, None])
        self.register_buffer('columns', torch.arange(size[1]))

    def forward(self, image: Tensor, valid_size: Tensor | None = None) -> Tensor:
        """Return what the network takes, float [B, 3, H, W].

        Args:
            image: RGB, uint8 [B, 3, H, W].
            valid_size: Height and width of each image, [B, 2]; what lies beyond is padding.
        """
        x = image.float()
        x = x if self.takes_rgb else x.flip(1)
        x = (x - self.mean) / self.std
        if valid_size is None:
            return x
        height, width = valid_size[:, :, None, None, None].unbind(1)
        return x.masked_fill((self.rows >= height) | (self.columns >= width), self.pad_value)


class ExportedNetwork(nn.Module):
    """A model in the form in which it is exported, beside the library's own way to predict.

    Subclasses say what :meth:`compute_maps` and :meth:`decode` do.

    Args:
        model: Of one of the libraries, in eval mode.
        preprocessor: Its data preprocessor.
        size: Of the input.
        classes: Their names.

    Raises:
        ValueError: If the model, or the size, cannot be exported; the message says why.
    """

    task: str
    # Names of the predictions; a network without any has its maps as outputs.
    outputs: tuple[str, ...] = ()
    # Whether images are fitted into the input and padded; others have its size.
    is_padded = False
    # How an image comes to the size of the input, for people.
    resize = ''

    def __init__(
        self,
        model: nn.Module,
        preprocessor: nn.Module,
        size: Size,
        classes: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        divisor = getattr(preprocessor, 'pad_size_divisor', 1)
        if any(length % divisor for length in size):
            raise ValueError(
                f'--size {size[0]}x{size[1]} must be multiples of {divisor}, to which the data '
                'preprocessor of the config pads images'
            )
        self.model, self.preprocessor, self.size = model, preprocessor, size
        self.classes = None if classes is None else [*map(str, classes)]
        self.normalize = Normalize(preprocessor, size)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return (IMAGE, VALID_SIZE) if self.is_padded else (IMAGE,)

    def forward(self, image: Tensor, valid_size: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the predictions, by ``outputs``, and behind them the maps.

        Args:
            image: RGB, uint8 [B, 3, H, W].
            valid_size: Height and width of each image, int64 [B, 2]; what lies beyond, to the right
                and below, is padding.
        """
        maps = self.compute_maps(self.normalize(image, valid_size))
        return (*self.decode(maps, valid_size), *maps)

    def compute_maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return what the layers of the model compute from a normalised image."""
        raise NotImplementedError

    def decode(self, maps: tuple[Tensor, ...], valid_size: Tensor | None) -> tuple[Tensor, ...]:
        """Return predictions, by ``outputs``."""
        return ()

    def name_maps(self, maps: Sequence[Tensor]) -> tuple[str, ...]:
        """Name what :meth:`compute_maps` returned."""
        return tuple(f'map_{i}' for i in range(len(maps)))

    def predict(self, x: Tensor, valid_size: Size) -> dict[str, Tensor]:
        """Predict for one normalised image in the library's own way, by ``outputs``."""
        return {}

    def library_input(self, pixels: np.ndarray) -> Tensor:
        """Normalise an image by the library's own preprocessor and pad it, [1, 3, H, W].

        Args:
            pixels: RGB, uint8 [3, height, width], at most of the input's size.
        """
        image = torch.from_numpy(np.ascontiguousarray(pixels[::-1]))
        sample = BaseDataElement(metainfo=dict(img_shape=tuple(image.shape[1:])))
        data = dict(inputs=[image], data_samples=[sample])
        x = self.preprocessor(data, False)['inputs']
        missing = [a - b for a, b in zip(self.size, x.shape[2:], strict=True)]
        return F.pad(x, (0, missing[1], 0, missing[0]), value=self.normalize.pad_value)

    def add_prediction(self, sample: object, found: Arrays, valid_size: Size) -> None:
        """Write what a file found in an image into a data sample of the library."""
        raise NotImplementedError
