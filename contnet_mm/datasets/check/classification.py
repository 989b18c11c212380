"""Checks of images in a folder per class, or with a list of labels."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from .files import is_file, list_files, note_colours, open_images, read_list
from .fixes import UNPACK_CLASSES, quote
from .issues import Report
from .parts import IMAGE_SUFFIXES, Part


@dataclass(frozen=True, kw_only=True)
class ClassificationPart(Part):
    """Images in a folder per class, or with a list of labels, as MMPretrain reads them.

    ``ann_file`` is a text file with a path and a label per line; without it folders are classes.

    Args:
        num_classes: Number of classes; None if not known.
        classes: Names that a config gives to the folders, in its order.
        suffixes: Ends of names, in small letters, of the files that are read.
        may_be_empty: Whether a class may have no images.
        wordnet_order: Whether labels count the sorted folder names, as ImageNet's do.
    """

    num_classes: int | None = None
    classes: tuple[str, ...] | None = None
    suffixes: tuple[str, ...] = IMAGE_SUFFIXES
    may_be_empty: bool = False
    wordnet_order: bool = False

    def count_classes(self) -> int | None:
        """Return the number of classes, None if it is not known."""
        return self.num_classes or len(self.class_folders()) or None

    def check(self, report: Report) -> None:
        """Add all that is wrong to a report."""
        fix = self.fix.images
        if not self.image_dir.is_dir():
            report.add('layout', 'folder of images is missing', [self.image_dir], fix)
            return
        files = list_files(self.image_dir)
        found = [name for name in files if name.lower().endswith(self.suffixes)]
        if self.ann_file is not None:
            names = self._check_list(report, files, found)
        else:
            names = self._check_folders(report, files, found)
        if not names and not report.issues:  # which tell why
            what = f'no images are read from {self.ann_file or self.image_dir}'
            report.add_one('empty', what, fix)
        what = f'images are in {self.ann_file or self.image_dir}'
        report.compare('count', what, len(names), self.num_images, fix)
        note_colours(report, open_images(report, 'images', self.image_dir, names, files, fix))

    def class_folders(self) -> list[str]:
        """Return the folders that MMPretrain takes for classes, hidden ones too, in its order."""
        if self.ann_file is not None or not self.image_dir.is_dir():
            return []
        return sorted(entry.name for entry in os.scandir(self.image_dir) if entry.is_dir())

    def _check_folders(self, report: Report, files: dict[str, int], found: list[str]) -> list[str]:
        """Check folders of classes; return the images in them."""
        loose = [name for name in found if '/' not in name]
        names = [name for name in found if '/' in name]
        if loose and not names:
            what = 'images lie in no folder of a class, and there is no list of labels'
            report.add('flat', what, loose, self.fix.annotations)
            return names
        what = 'images lie in no folder of a class: they are not read'
        report.add('loose-image', what, loose, 'move them into the folder of their class')
        archives = [name for name in files if '/' not in name and name.endswith('.tar')]
        fix = UNPACK_CLASSES.format(folder=quote(self.image_dir))
        report.add('packed', 'classes are not unpacked', archives, fix)
        folders = self.class_folders()
        hidden = [name for name in folders if name.startswith(('.', '__'))]
        fix = f'rm -r {" ".join(quote(self.image_dir / name) for name in hidden)}'
        report.add('strange-folder', 'folders of other programs count as classes', hidden, fix)
        classes = [name for name in folders if name not in hidden]
        filled = {name.split('/')[0] for name in names}
        empty = [name for name in classes if name not in filled]
        fix = '' if self.may_be_empty else self.fix.images
        report.add('empty-class', 'folders of classes hold no images', empty, fix)
        what = f'folders of classes are in {self.image_dir}'
        report.compare('classes', what, len(classes), self.num_classes, self.fix.images)
        # Labels count the sorted folders, whatever order a config gives their names.
        if self.classes is not None and set(classes) == set(self.classes):
            pairs = zip(classes, self.classes, strict=False)
            wrong = [f'folder {have}, class {want}' for have, want in pairs if have != want]
            fix = f'say metainfo=dict(classes={tuple(classes)!r}) in the config'
            report.add('class-order', 'classes stand in another order', wrong, fix)
        return names

    def _check_list(self, report: Report, files: dict[str, int], found: list[str]) -> list[str]:
        """Check a list of labels; return the images in it."""
        labels = self._read_labels(report)
        missing = [n for n in labels if n not in files and not is_file(self.image_dir / n)]
        fix = self.fix.images
        folders = replace(self, ann_file=None).class_folders()
        if folders and all('/' not in name for name in labels):
            # The list is for images in one folder; without it the folders tell the classes.
            path = quote(self.ann_file)
            fix = f'mv {path} {path}.unused'
        report.add('missing-image', f'images listed in {self.ann_file} are missing', missing, fix)
        if len(missing) < len(labels):
            spare = {name for name in found if name not in labels}
            if spare and self.others:
                spare -= {name for path in self.others for name in _listed(path)}
            what = f'images are not listed in {self.ann_file}'
            # A list of one's own may leave images out.
            fix = self.fix.annotations if self.wordnet_order else ''
            report.add('unlisted-image', what, sorted(spare), fix)
        self._check_labels(report, labels)
        return list(labels)

    def _read_labels(self, report: Report) -> dict[str, int]:
        """Return the labels of the list by the names of the images."""
        path, fix = self.ann_file, self.fix.annotations
        labels: dict[str, int] = {}
        wrong, doubled = [], []
        for number, line in enumerate(read_list(report, 'list of labels', path, fix), 1):
            name, _, label = line.strip().rpartition(' ')
            if not name or not label.isdigit():
                wrong.append(f'line {number}: {line!r}')
            elif name in labels:
                doubled.append(f'line {number}: {name}')
            else:
                labels[name] = int(label)
        report.add('list', f'lines of {path} are no path and label', wrong, fix)
        report.add('doubled', f'images stand twice in {path}', doubled, fix)
        return labels

    def _check_labels(self, report: Report, labels: dict[str, int]) -> None:
        fix = self.fix.annotations
        if self.num_classes is not None and labels:
            strange = [f'{n}: {label}' for n, label in labels.items() if label >= self.num_classes]
            what = f'labels are not within 0 to {self.num_classes - 1}'
            report.add('label-values', what, strange, fix)
            absent = sorted(set(range(self.num_classes)) - set(labels.values()))
            needed = self.wordnet_order or 'train' in self.name
            report.add('empty-class', 'labels occur nowhere', absent, fix if needed else '')
        by_folder = defaultdict(set)
        for name, label in labels.items():
            if '/' in name:
                by_folder[name.split('/')[0]].add(label)
        mixed = [f'{name}: {sorted(some)}' for name, some in by_folder.items() if len(some) > 1]
        # Elsewhere than in ImageNet folders need not be classes.
        fix_mixed = fix if self.wordnet_order else ''
        report.add('label-values', 'folders have images of several labels', mixed, fix_mixed)
        if self.wordnet_order and not mixed:
            wrong = [
                f'{name}: {min(by_folder[name])}, expected {index}'
                for index, name in enumerate(sorted(by_folder))
                if by_folder[name] != {index}
            ]
            what = 'folders have another label than their position in the order of names'
            report.add('class-order', what, wrong, fix)


def _listed(path: Path) -> list[str]:
    """Return the images in a list of labels; its faults are reported where it is checked."""
    lines = read_list(Report('', False), 'list of labels', path, '')
    return [line.strip().rpartition(' ')[0] for line in lines]
