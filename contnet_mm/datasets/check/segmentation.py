"""Checks of images with label images beside them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .files import ImageInfo, list_files, note_colours, open_images, read_list
from .issues import Report
from .parts import Part

# Cityscapes counts its labels to 33; 19 of them are trained on, under numbers of their own.
LAST_LABEL_ID = 33
LABEL_MODES = ('1', 'L', 'P', 'I', 'I;16')


@dataclass(frozen=True, kw_only=True)
class SegmentationPart(Part):
    """Images with label images beside them, as MMSegmentation's BaseSegDataset reads them.

    ``ann_file`` is a text file with one name without suffix per line; without it all images
    are read.

    Args:
        label_dir: Folder of the label images, with the same folders inside.
        num_classes: Labels 0 to num_classes - 1 are allowed, and ``ignored``; None: any.
        image_suffix: End of an image's name.
        label_suffix: What stands there in the name of its labels.
        ignored: Label of pixels that do not count.
        reduce_zero_label: Whether 0 does not count either, and the classes start at 1.
    """

    label_dir: Path
    num_classes: int | None
    image_suffix: str
    label_suffix: str
    ignored: int = 255
    reduce_zero_label: bool = False

    def count_classes(self) -> int | None:
        """Return the number of classes, None if it is not known."""
        return self.num_classes

    def check(self, report: Report) -> None:
        """Add all that is wrong to a report."""
        fix = self.fix
        for folder, command in ((self.image_dir, fix.images), (self.label_dir, fix.ground_truth)):
            report.add('layout', 'folder is missing', [] if folder.is_dir() else [folder], command)
        files, label_files = list_files(self.image_dir), list_files(self.label_dir)
        # Names of images and of their labels.
        stems = self._stems(report, files)
        pairs = {stem + self.image_suffix: stem + self.label_suffix for stem in stems}
        if not stems and not report.issues:  # which tell why
            what = f'no images *{self.image_suffix} are read from {self.image_dir}'
            report.add_one('empty', what, fix.images)
        what = f'images are in {self.image_dir}'
        report.compare('count', what, len(stems), self.num_images, fix.images)
        missing = [label for label in pairs.values() if label not in label_files]
        what = f'images have no label image in {self.label_dir}'
        report.add('missing-label', what, missing, fix.labels)
        report.add(
            'missing-image',
            'label images have no image',
            [
                name
                for name in label_files
                if name.endswith(self.label_suffix)
                and name.removesuffix(self.label_suffix) + self.image_suffix not in files
            ],
            fix.images if self.ann_file is None else '',
        )
        pairs = {
            name: label for name, label in pairs.items() if name in files and label in label_files
        }
        images = open_images(report, 'images', self.image_dir, list(pairs), files, fix.images)
        note_colours(report, images)
        names, what = list(pairs.values()), 'label images'
        labels = open_images(
            report, what, self.label_dir, names, label_files, fix.labels, values=True
        )
        self._check_labels(report, labels)
        wrong = [
            f'{name}: {image.size}, its labels {labels[pairs[name]].size}'
            for name, image in images.items()
            if pairs[name] in labels and labels[pairs[name]].size != image.size
        ]
        report.add('size', 'images and their labels differ in height and width', wrong, fix.labels)

    def _stems(self, report: Report, files: dict[str, int]) -> list[str]:
        """Return the names without suffix of the images that are read."""
        suffix = self.image_suffix
        if self.ann_file is None:
            return [name.removesuffix(suffix) for name in files if name.endswith(suffix)]
        lines = read_list(report, 'list of names', self.ann_file, self.fix.annotations)
        stems = [line.strip() for line in lines if line.strip()]
        missing = [stem for stem in stems if stem + suffix not in files]
        report.add('missing-image', 'listed images are missing', missing, self.fix.images)
        return stems

    def _check_labels(self, report: Report, labels: dict[str, ImageInfo]) -> None:
        fix = self.fix.labels
        colours = [f'{n}: {i.mode}' for n, i in labels.items() if i.mode not in LABEL_MODES]
        what = 'label images are pictures in colour, not one number per pixel'
        report.add('label-mode', what, colours, fix)
        if self.num_classes is None:
            what = 'label values are not checked: the data set names no classes'
            report.add_one('label-values', what)
            return
        last = self.num_classes - 1 + self.reduce_zero_label
        allowed = {*range(last + 1), self.ignored}
        strange = {
            name: sorted(image.values - allowed)
            for name, image in labels.items()
            if image.mode in LABEL_MODES and image.values - allowed
        }
        present = {value for values in strange.values() for value in values}
        what = (
            f'label images hold values other than 0 to {last} and {self.ignored} '
            f'({", ".join(map(str, sorted(present)))})'
        )
        if present <= set(range(LAST_LABEL_ID + 1)):
            if self.label_suffix.endswith('labelTrainIds.png'):
                what += ': they hold labelIds where labelTrainIds belong'
            elif self.label_suffix.endswith('labelIds.png'):
                what += ': labelTrainIds are to be read'
                fix = f"say seg_map_suffix='_gtFine_labelTrainIds.png'; they are made by: {fix}"
        examples = [f'{name}: {values}' for name, values in strange.items()]
        report.add('label-values', what, examples, fix)
