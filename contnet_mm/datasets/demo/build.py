"""Puts the demo data set on disk, all of it or nothing."""

from __future__ import annotations

import json
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict
from itertools import repeat
from pathlib import Path

from .cityscapes import open_cityscapes, write_cityscapes
from .coco import open_coco, write_coco
from .imagenet import write_crops
from .options import DemoOptions
from .scenes import Scene, SceneMaker
from .sources import NUM_CLASSES, PARTS, find_photographs

SETTINGS_NAME = 'settings.json'
GENERATOR = 'contnet_mm.demo'
# Raise whenever equal options give other files than before.
VERSION = 2
MANY = 64  # scenes: from here on other processes are worth their start


def make_demo_data(
    out: str | Path,
    options: DemoOptions,
    overwrite: bool = False,
    on_image: Callable[[], object] = lambda: None,
) -> bool:
    """Make the data set in COCO's, Cityscapes' and ImageNet's layout.

    Everything is made in a hidden folder beside ``out`` and renamed when complete.

    Args:
        out: Folder to make; gets ``coco/``, ``cityscapes/``, ``imagenet/`` and
            ``settings.json``.
        options: The settings.
        overwrite: Whether to replace a data set, made with whatever settings.
        on_image: Called after each image.

    Returns:
        Whether anything was made; False if ``out`` already holds this very data set and not
        ``overwrite``.

    Raises:
        ValueError: If ``out`` holds something else, or another data set and not ``overwrite``.
    """
    out = Path(out).resolve()
    # All that decides on the content of the files; as text, where tuples are lists.
    content = {'generator': GENERATOR, 'version': VERSION, 'photographs': list(find_photographs())}
    settings = json.dumps(content | asdict(options), sort_keys=True) + '\n'
    if _is_kept(out, json.loads(settings), overwrite):
        return False
    unfinished, replaced = (
        out.with_name(f'.{out.name}.{state}') for state in ('unfinished', 'replaced')
    )
    for left_over in (unfinished, replaced):
        shutil.rmtree(left_over, ignore_errors=True)
    try:
        _write_all(unfinished, options, on_image)
        (unfinished / SETTINGS_NAME).write_text(settings)
        if out.exists():
            out.rename(replaced)
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)
    return True


def _is_kept(out: Path, settings: dict, overwrite: bool) -> bool:
    """Tell whether a data set stays; refuse folders that hold anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        present = json.loads((out / SETTINGS_NAME).read_text())
    except (OSError, ValueError):
        present = None
    if not isinstance(present, dict) or present.get('generator') != GENERATOR:
        raise ValueError(
            f'{out} exists and is no demo data set (no valid {SETTINGS_NAME} in it): '
            'it is left as it is, choose another folder'
        )
    differences = [
        f'{key} is {present.get(key)}, asked for {settings.get(key)}'
        for key in sorted(settings.keys() | present.keys())
        if present.get(key) != settings.get(key)
    ]
    if differences and not overwrite:
        raise ValueError(
            f'{out} was made with other settings ({"; ".join(differences)}): '
            'pass --overwrite to replace it or choose another folder'
        )
    return not (differences or overwrite)


def _start_worker(options: DemoOptions) -> None:
    global _maker
    _maker = SceneMaker(options)


def _make_scene(part: str, index: int) -> Scene:
    return _maker.make(part, index)


def _make_scenes(options: DemoOptions, part: str) -> Iterator[Scene]:
    """Make the scenes of a part in order, many of them in other processes."""
    number = options.num_images(part)
    if number < MANY:
        _start_worker(options)
        yield from map(_make_scene, repeat(part), range(number))
        return
    with ProcessPoolExecutor(initializer=_start_worker, initargs=(options,)) as pool:
        ahead: deque[Future[Scene]] = deque()
        for index in range(number):
            ahead.append(pool.submit(_make_scene, part, index))
            if len(ahead) == MANY:  # a scene takes half a megabyte
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _write_all(root: Path, options: DemoOptions, on_image: Callable[[], object]) -> None:
    for part in PARTS:
        coco = open_coco(root / 'coco', part)
        cityscapes = open_cityscapes(root / 'cityscapes', part)
        crops = root / 'imagenet' / part
        for label in range(NUM_CLASSES):  # even where no digit of it is written
            (crops / str(label)).mkdir(parents=True)
        for scene in _make_scenes(options, part):
            write_crops(scene, crops, first=len(coco.annotations) + 1)
            write_coco(scene, root / 'coco' / part, coco)
            write_cityscapes(scene, root / 'cityscapes', part, cityscapes)
            on_image()
        coco.write()
        cityscapes.write()
