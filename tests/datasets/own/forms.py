"""One small data set in all the forms that people keep theirs in."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (64, 96)  # height and width
CLASSES = ('cat', 'dog', 'owl')
COUNTS = {'train': 4, 'val': 2}


def boxes_of(number):
    """Return class and box (left, top, width, height) of the objects of an image."""
    return [
        (CLASSES[number % 3], (4 + number, 6, 30, 40)),
        (CLASSES[(number + 1) % 3], (50, 10 + number, 40, 36)),
    ]


def picture(number):
    """Return an image of noise with a bright square for each object, as no other number has it."""
    pixels = np.random.RandomState(number).randint(0, 90, (*SIZE, 3), dtype=np.uint8)
    for name, (left, top, width, height) in boxes_of(number):
        pixels[top : top + height, left : left + width, CLASSES.index(name)] = 255
    return Image.fromarray(pixels)


def labels(number):
    """Return the label image: 0 for what is behind, then the classes."""
    pixels = np.zeros(SIZE, np.uint8)
    for name, (left, top, width, height) in boxes_of(number):
        pixels[top : top + height, left : left + width] = CLASSES.index(name) + 1
    return Image.fromarray(pixels)


def numbers():
    """Yield part and number of each image."""
    start = 1
    for part, count in COUNTS.items():
        yield from ((part, number) for number in range(start, start + count))
        start += count


def save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def voc_xml(name, boxes):
    objects = ''.join(
        f'<object><name>{label}</name><difficult>0</difficult><bndbox><xmin>{x}</xmin>'
        f'<ymin>{y}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>'
        for label, (x, y, w, h) in boxes
    )
    return (
        f'<annotation><filename>{name}</filename><size><width>{SIZE[1]}</width>'
        f'<height>{SIZE[0]}</height><depth>3</depth></size>{objects}</annotation>'
    )


def write_voc(root):
    for part, number in numbers():
        save(picture(number), root / f'JPEGImages/{number}.jpg')
        xml = root / f'Annotations/{number}.xml'
        xml.parent.mkdir(exist_ok=True)
        xml.write_text(voc_xml(f'{number}.jpg', boxes_of(number)))
        listed = root / f'ImageSets/Main/{part}.txt'
        listed.parent.mkdir(parents=True, exist_ok=True)
        with listed.open('a') as file:
            file.write(f'{number}\n')


def yolo_line(name, box):
    left, top, width, height = box
    shares = (left + width / 2) / SIZE[1], (top + height / 2) / SIZE[0]
    shares = (*shares, width / SIZE[1], height / SIZE[0])
    return f'{CLASSES.index(name)} ' + ' '.join(f'{share:.6f}' for share in shares)


def write_yolo(root):
    for part, number in numbers():
        save(picture(number), root / f'images/{part}/{number}.jpg')
        text = root / f'labels/{part}/{number}.txt'
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text('\n'.join(yolo_line(*box) for box in boxes_of(number)))
    names = ''.join(f'  {index}: {name}\n' for index, name in enumerate(CLASSES))
    (root / 'data.yaml').write_text(f'train: images/train\nval: images/val\nnames:\n{names}')


def write_coco(root, masks=True):
    for part in COUNTS:
        images, annotations = [], []
        for number in (number for other, number in numbers() if other == part):
            save(picture(number), root / f'{part}/{number}.jpg')
            images.append(dict(id=number, file_name=f'{number}.jpg', height=SIZE[0], width=SIZE[1]))
            for name, (x, y, w, h) in boxes_of(number):
                one = dict(id=len(annotations) + 1, image_id=number, bbox=[x, y, w, h], area=w * h)
                one |= dict(category_id=CLASSES.index(name) + 1, iscrowd=0)
                if masks:
                    one['segmentation'] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
                annotations.append(one)
        categories = [dict(id=index, name=name) for index, name in enumerate(CLASSES, 1)]
        content = dict(images=images, annotations=annotations, categories=categories)
        path = root / f'annotations/instances_{part}.json'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))


def write_masks(root):
    for part, number in numbers():
        save(picture(number), root / f'images/{part}/{number}.png')
        save(labels(number), root / f'masks/{part}/{number}.png')
    (root / 'classes.txt').write_text('\n'.join(('ground', *CLASSES)))


def write_folders(root):
    for part, number in numbers():
        # Two images of each class, so that one can be held out.
        for index, name in enumerate(CLASSES):
            save(picture(10 * number + index), root / f'{part}/{name}/{number}.png')


WRITERS = dict(
    voc=write_voc, yolo=write_yolo, coco=write_coco, masks=write_masks, folders=write_folders
)


def write(kind, root):
    """Write the data set in one form and return its folder."""
    root = Path(root)
    WRITERS[kind](root)
    return root
