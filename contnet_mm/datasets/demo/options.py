"""What a user may choose about the demo data set."""

from __future__ import annotations

from dataclasses import dataclass

from contnet_mm.utils.checks import check_integer, check_integers

MIN_SIDE = 64
# A smaller '1' covers fewer than the 100 pixels that Cityscapes' evaluator demands.
MIN_DIGIT_HEIGHT = 24
# A square digit turned by 15 degrees is this much taller than it was upright.
ROTATED_GROWTH = 1.3
# Random placing without overlap stalls long before the picture is full.
MAX_COVERED = 0.4


@dataclass(frozen=True)
class DemoOptions:
    """Settings of the demo data set; equal settings give byte-identical files.

    Args:
        num_train: Number of images to train on.
        num_val: Number of held-out images.
        size: Height and width of each image in pixels.
        digits: Fewest and most digits per image.
        digit_height: Smallest and largest height in pixels of an upright digit.
        seed: Seed of everything random.

    Raises:
        ValueError: If a value is out of range or the digits cannot fit on an image.
        TypeError: If a value is not an integer, or a pair is not two of them.
    """

    num_train: int = 1500
    num_val: int = 100
    size: tuple[int, int] = (112, 224)
    digits: tuple[int, int] = (3, 7)
    digit_height: tuple[int, int] = (24, 60)
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every value, alone and against the others."""
        for name, low in (('num_train', 1), ('num_val', 1), ('seed', 0)):
            check_integer(name, getattr(self, name), low)
        for name, low in (('size', MIN_SIDE), ('digits', 1), ('digit_height', MIN_DIGIT_HEIGHT)):
            # As tuples, so that options from lists are equal to those from tuples.
            pair = check_integers(name, getattr(self, name), low, length=2)
            object.__setattr__(self, name, pair)
            if name != 'size' and pair[0] > pair[1]:
                raise ValueError(f'{name} must be given as (smallest, largest), got {pair}')
        tallest = int(min(self.size) / ROTATED_GROWTH)
        if self.digit_height[1] > tallest:
            raise ValueError(
                f'digit_height {self.digit_height} does not fit on images of size {self.size}: '
                f'the largest may be {tallest} pixels'
            )
        most = int(MAX_COVERED * self.size[0] * self.size[1] / self.digit_height[0] ** 2)
        if self.digits[1] > most:
            raise ValueError(
                f'digits {self.digits} is more than fits on images of size {self.size}: '
                f'at most {most} digits of {self.digit_height[0]} pixels do'
            )

    def num_images(self, part: str) -> int:
        """Return the number of images of a part, 'train' or 'val'."""
        return {'train': self.num_train, 'val': self.num_val}[part]
