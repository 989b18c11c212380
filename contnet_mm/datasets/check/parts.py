"""What is expected of a data set: one object for each part that a data loader reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .fixes import Mending

# As MMPretrain's CustomDataset and ImageNet have them.
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif')


@dataclass(frozen=True)
class DetectionPart:
    """Images with annotations in one COCO file, as MMDetection's CocoDataset reads them.

    Args:
        name: The part, such as 'train'.
        image_dir: Folder that the file names in the annotations start from.
        ann_file: The annotations.
        mending: The commands that bring it in order.
        classes: Names that the data set class looks for; None if not known.
        classes_note: Why they are not known.
        num_images: Number of images; None if not known.
        masks: Whether masks are read.
        labelled: Whether annotations are needed.
        instance_maps: Whether the Cityscapes evaluator reads ``*_gtFine_instanceIds.png``.
        metric_ann_file: The annotations that the evaluator reads.
    """

    name: str
    image_dir: Path
    ann_file: Path
    mending: Mending
    classes: tuple[str, ...] | None = None
    classes_note: str = ''
    num_images: int | None = None
    masks: bool = True
    labelled: bool = True
    instance_maps: bool = False
    metric_ann_file: Path | None = None


@dataclass(frozen=True)
class SegmentationPart:
    """Images with label images beside them, as MMSegmentation's BaseSegDataset reads them.

    Args:
        name: The part, such as 'train'.
        image_dir: Folder of the images.
        label_dir: Folder of the label images, with the same folders inside.
        num_classes: Labels 0 to num_classes - 1 are allowed, and ``ignored``; None: any.
        mending: The commands that bring it in order.
        image_suffix: End of an image's name.
        label_suffix: What stands there in the name of its labels.
        num_images: Number of images; None if not known.
        ann_file: A text file with one name without suffix per line; None: all images are read.
        ignored: Label of pixels that do not count.
    """

    name: str
    image_dir: Path
    label_dir: Path
    num_classes: int | None
    mending: Mending
    image_suffix: str = '_leftImg8bit.png'
    label_suffix: str = '_gtFine_labelTrainIds.png'
    num_images: int | None = None
    ann_file: Path | None = None
    ignored: int = 255


@dataclass(frozen=True)
class ClassificationPart:
    """Images in a folder per class, or with a list of labels, as MMPretrain reads them.

    Args:
        name: The part, such as 'train'.
        image_dir: Folder of the images.
        mending: The commands that bring it in order.
        ann_file: A text file with a path and a label per line; None: folders are classes.
        num_classes: Number of classes; None if not known.
        classes: Names that a config gives to the folders, in its order.
        num_images: Number of images; None if not known.
        suffixes: Ends of names, in small letters, of the files that are read.
        may_be_empty: Whether a class may have no images.
        wordnet_order: Whether labels count the sorted folder names, as ImageNet's do.
    """

    name: str
    image_dir: Path
    mending: Mending
    ann_file: Path | None = None
    num_classes: int | None = None
    classes: tuple[str, ...] | None = None
    num_images: int | None = None
    suffixes: tuple[str, ...] = IMAGE_SUFFIXES
    may_be_empty: bool = False
    wordnet_order: bool = False


Part = DetectionPart | SegmentationPart | ClassificationPart
