"""Reading Pascal VOC: an XML file per image, and lists of names for the parts.

By hand: globox, the one light library, would save the twenty lines that read one file; it reads no
lists of parts, stops at the first bad file, and lets XML define entities.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from contnet_mm.datasets.check.files import list_files
from contnet_mm.datasets.check.issues import Report
from contnet_mm.datasets.check.parts import IMAGE_SUFFIXES

from .data import UNDIVIDED, Box, OwnData, Part, Sample, read_lines, role_of
from .images import measure

IMAGE_FOLDERS = ('JPEGImages', 'images', 'Images')
FIX = 'export the file again, or delete it and its image; --repair leaves its image out'


def find(root: Path) -> bool:
    """Return whether a folder holds Pascal VOC's XML."""
    return next(_annotations(list_files(root)), None) is not None


def read(root: Path, report: Report) -> OwnData:
    """Read a folder of Pascal VOC XML.

    Boxes are taken as they are written, (xmin, ymin) to (xmax, ymax), as MMDetection's XMLDataset
    does. Parts are those in ``ImageSets/Main``, or the folders that the files lie in.

    Args:
        root: The folder.
        report: Gets what is wrong.
    """
    files = list_files(root)
    lists = {
        path.stem: path
        for path in sorted((root / 'ImageSets' / 'Main').glob('*.txt'))
        if role_of(path.stem)
    }
    samples: dict[str, Sample] = {}
    folders: dict[str, str] = {}
    broken, incomplete = [], []
    by_name = _images_by_name(files)
    for name in _annotations(files):
        path = root / name
        try:
            tree = parse_xml(path.read_bytes())
            sample, wrong = _read_sample(root, PurePosixPath(name), tree, by_name)
        except ValueError as error:
            broken.append(f'{name}: {error}')
            continue
        incomplete += wrong
        stem = path.stem if lists else name
        samples[stem] = sample
        folders[stem] = next((word for word in Path(name).parts[:-1] if role_of(word)), UNDIVIDED)
    report.add('unreadable', 'annotations cannot be read', broken, FIX)
    report.add('fields', 'objects have no name, or no box of four numbers', incomplete, FIX)
    if lists:
        parts = _parts_by_lists(lists, samples, report)
    else:
        names = {name: [] for name in sorted({*folders.values()})}
        for stem, folder in folders.items():
            names[folder].append(samples[stem])
        parts = {name: Part(name, tuple(some)) for name, some in names.items()}
    classes = sorted({box.name for sample in samples.values() for box in sample.boxes})
    return OwnData('Pascal VOC XML', tuple(classes), parts, report)


def parse_xml(content: bytes) -> Element:
    """Parse XML, whatever its encoding, and refuse the declarations that can define entities.

    Raises:
        ValueError: If it is no XML, or has a document type declaration.
    """
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = _refuse
    try:
        parser.Parse(content, True)
        return builder.close()
    except (expat.ExpatError, LookupError) as error:  # LookupError: an encoding unknown to Python
        raise ValueError(f'no XML: {error}') from error


def _refuse(*_: object) -> None:
    raise ValueError('has a document type declaration, which could define entities without end')


def _annotations(files: dict[str, int]):
    return (name for name in files if name.lower().endswith('.xml'))


def _images_by_name(files: dict[str, int]) -> dict[str, list[str]]:
    """Return the images by the stem of their names."""
    found: dict[str, list[str]] = {}
    for name in files:
        if name.lower().endswith(IMAGE_SUFFIXES):
            found.setdefault(PurePosixPath(name).stem, []).append(name)
    return found


def _read_sample(
    root: Path, name: PurePosixPath, tree: Element, by_name: dict[str, list[str]]
) -> tuple[Sample, list[str]]:
    """Return the sample of one XML file, and the objects of it that cannot be read."""
    if tree.tag != 'annotation':
        raise ValueError(f'its root is <{tree.tag[:40]}>, must be <annotation>')
    # Labelling tools write the name of the file as it was when it was labelled.
    given = PurePosixPath((tree.findtext('filename') or '').strip().replace('\\', '/')).name
    found = by_name.get(name.stem) or by_name.get(PurePosixPath(given).stem) or []
    near = [path for path in found if PurePosixPath(path).parent == name.parent]
    usual = [path for path in found if PurePosixPath(path).parent.name in IMAGE_FOLDERS]
    guess = str(name.parent / (given or f'{name.stem}.jpg'))
    image = root / next(iter(near or usual or found), guess)
    boxes, wrong = [], []
    for number, item in enumerate(tree.iter('object'), 1):
        label = (item.findtext('name') or '').strip()
        try:
            corners = [
                float(item.findtext(f'bndbox/{key}', ''))
                for key in ('xmin', 'ymin', 'xmax', 'ymax')
            ]
            if not label or not all(abs(value) < 1e9 for value in corners):
                raise ValueError
        except ValueError:
            wrong.append(f'{name}: object {number} ({label or "no name"})')
            continue
        left, top, right, bottom = corners
        difficult = (item.findtext('difficult') or '').strip() == '1'
        boxes.append(Box(label, (left, top, right - left, bottom - top), ignored=difficult))
    return Sample(image, tuple(boxes), _size(tree) or measure(image)), wrong


def _size(tree: Element) -> tuple[int, int] | None:
    try:
        height, width = (
            int(float(tree.findtext(f'size/{key}', ''))) for key in ('height', 'width')
        )
    except (ValueError, OverflowError):
        return None
    return (height, width) if height > 0 and width > 0 else None


def _parts_by_lists(
    lists: dict[str, Path], samples: dict[str, Sample], report: Report
) -> dict[str, Part]:
    parts, listed = {}, set()
    for name, path in lists.items():
        # A second column, where there is one, tells whether a class is there.
        words = [line.split()[0] for line in read_lines(path) if line.strip()]
        stems = list(dict.fromkeys(words))
        missing = [f'{stem} in {path}' for stem in stems if stem not in samples]
        fix = f'bring the XML files, or take the names out of {path}; --repair does the latter'
        report.add('missing-label', 'listed images have no annotation', missing, fix)
        parts[name] = Part(name, tuple(samples[stem] for stem in stems if stem in samples))
        listed |= {*stems}
    unused = [stem for stem in samples if stem not in listed]
    report.add('unlisted-image', 'annotations are in no list of ImageSets/Main', unused)
    return parts
