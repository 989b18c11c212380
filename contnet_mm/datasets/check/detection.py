"""Checks of images with annotations in one COCO file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .annotations import Entries, check_annotations, read_coco_file
from .files import ImageInfo, is_file, list_files, note_colours, open_images
from .issues import Report
from .parts import IMAGE_SUFFIXES, Part

# Of 16 bits: Pillow's name for that differs between versions.
INSTANCE_MODES = ('I', 'I;16', 'I;16B')


@dataclass(frozen=True, kw_only=True)
class DetectionPart(Part):
    """Images with annotations in one COCO file, as MMDetection's CocoDataset reads them.

    Args:
        classes: Names that the data set class looks for; None if not known.
        classes_note: Why they are not known.
        masks: Whether masks are read.
        labelled: Whether annotations are needed.
        instance_maps: Whether the Cityscapes evaluator reads ``*_gtFine_instanceIds.png``.
        metric_ann_file: The annotations that the evaluator reads.
    """

    ann_file: Path
    classes: tuple[str, ...] | None = None
    classes_note: str = ''
    masks: bool = True
    labelled: bool = True
    instance_maps: bool = False
    metric_ann_file: Path | None = None

    def count_classes(self) -> int | None:
        """Return the number of classes, None if it is not known."""
        return None if self.classes is None else len(self.classes)

    def check(self, report: Report) -> None:
        """Add all that is wrong to a report."""
        is_there = self.image_dir.is_dir()
        if not is_there:
            report.add('layout', 'folder of images is missing', [self.image_dir], self.fix.images)
        metric = self.metric_ann_file
        if metric is not None and metric.resolve() != self.ann_file.resolve():
            what = f'the evaluator reads {metric}, the data loader {self.ann_file}'
            report.add_one('metric', what, 'name the same ann_file in both')
        files = list_files(self.image_dir)
        fix = self.fix.annotations
        content = read_coco_file(report, self.ann_file, fix, self.labelled)
        entries = {image['file_name']: image for image in content['images']}
        if entries:
            self._check_categories(report, [entry['name'] for entry in content['categories']])
            what = f'images are listed in {self.ann_file}'
            report.compare('count', what, len(content['images']), self.num_images, fix)
            if is_there:
                self._check_names(report, entries, files)
            check_annotations(report, content, fix, self.masks)
            self._check_occurrence(report, content)
        names = list(entries) or [n for n in files if n.lower().endswith(IMAGE_SUFFIXES)]
        images = open_images(report, 'images', self.image_dir, names, files, self.fix.images)
        note_colours(report, images)
        wrong = _wrong_sizes(images, entries)
        what = 'images have another height and width than their annotations'
        report.add('size', what, wrong, f'{self.fix.images}; or: {fix}')
        if self.instance_maps:
            self._check_instance_maps(report, {name: entries.get(name, {}) for name in names})

    def _check_categories(self, report: Report, names: list[str]) -> None:
        if self.classes is None:
            report.add_one('classes', f'class names are not checked: {self.classes_note}')
            return
        fix = f"say metainfo=dict(classes={tuple(names)!r}) in the data set's config, or: "
        fix += self.fix.annotations
        # Labels count the categories of the file that are classes: a missing one shifts others.
        absent = [name for name in self.classes if name not in names]
        report.add('classes', f'classes are in no category of {self.ann_file}', absent, fix)
        inside = [name for name in names if name in self.classes]
        if not absent:
            pairs = zip(inside, self.classes, strict=False)
            wrong = [f'{have!r} where {want!r} is expected' for have, want in pairs if have != want]
            what = 'categories stand in another order than the classes'
            report.add('class-order', what, wrong, fix)
        unread = [name for name in names if name not in self.classes]
        report.add('classes', 'categories are no classes: their annotations are left out', unread)

    def _check_occurrence(self, report: Report, content: Entries) -> None:
        used = {annotation['category_id'] for annotation in content['annotations']}
        filled = {entry['name'] for entry in content['categories'] if entry['id'] in used}
        there = {entry['name'] for entry in content['categories']} & {*(self.classes or ())}
        if used:  # that there are no annotations at all is reported
            what = 'classes have no annotation'
            report.add('empty-class', what, [n for n in self.classes or () if n in there - filled])

    def _check_names(self, report: Report, entries: dict[str, dict], files: dict[str, int]) -> None:
        # A name may lead out of the folder and still be right.
        missing = [n for n in entries if n not in files and not is_file(self.image_dir / n)]
        report.add('missing-image', 'listed images are missing', missing, self.fix.images)
        spare = [n for n in files if n.lower().endswith(IMAGE_SUFFIXES) and n not in entries]
        if spare and self.others:
            elsewhere = {name for path in self.others for name in _listed(path)}
            spare = [name for name in spare if name not in elsewhere]
        # Only of a data set whose counts are known is it known that a folder holds one part.
        known = self.num_images is not None
        fix = f'{self.fix.annotations}; or move them away' if known else ''
        report.add('unlisted-image', 'images are in no annotation', spare, fix)

    def _check_instance_maps(self, report: Report, entries: dict[str, dict]) -> None:
        folder, fix = instance_map(self.image_dir), self.fix.ground_truth
        files = list_files(folder)
        entries = {
            instance_map(self.image_dir / name).relative_to(folder).as_posix(): entry
            for name, entry in entries.items()
        }
        missing = [name for name in entries if name not in files]
        report.add('missing-instances', 'instance maps are missing', missing, fix)
        maps = open_images(report, 'instance maps', folder, list(entries), files, fix)
        modes = {name: image.mode for name, image in maps.items()}
        wrong = [f'{n}: {m}, not 16 bits' for n, m in modes.items() if m not in INSTANCE_MODES]
        what = 'instance maps are of another kind or size'
        report.add('instance-values', what, [*wrong, *_wrong_sizes(maps, entries)], fix)


def instance_map(image: Path) -> Path:
    """Return where MMDetection's Cityscapes evaluator looks for the instances of an image."""
    path = str(image).replace('leftImg8bit.png', 'gtFine_instanceIds.png')
    return Path(path.replace('leftImg8bit', 'gtFine'))


def _listed(path: Path) -> list[str]:
    """Return the images in a COCO file; what is wrong with it is reported where it is checked."""
    return [
        one['file_name'] for one in read_coco_file(Report('', False), path, '', False)['images']
    ]


def _wrong_sizes(images: dict[str, ImageInfo], entries: dict[str, dict]) -> list[str]:
    """Return the images whose height and width differ from those of their entries."""
    annotated = {
        name: (entry['height'], entry['width']) for name, entry in entries.items() if entry
    }
    return [
        f'{name}: {image.size}, annotated {annotated[name]}'
        for name, image in images.items()
        if annotated.get(name, image.size) != image.size
    ]
