"""What the command says when it is done."""

from __future__ import annotations

from contnet_mm.datasets.check.issues import describe
from contnet_mm.swap.task import library_of
from contnet_mm.swap.text.command import list_changes

from .make import Made, Request

NUM_NAMES = 10


def summarise(made: Made, request: Request) -> str:
    """Return what was read, what changed and why, what is worth knowing, and what comes next."""
    parts = ', '.join(
        f'{role} {len(part.samples)} ({part.name})' for role, part in made.chosen.items()
    )
    names = ', '.join(made.data.classes[:NUM_NAMES])
    if len(made.data.classes) > NUM_NAMES:
        names += f' and {len(made.data.classes) - NUM_NAMES} more'
    lines = [
        f'{request.root}: {made.data.layout}; images: {parts}',
        f'{len(made.data.classes)} classes: {names}',
        '',
        list_changes(made.base, made.swap),
        *(describe(note) for note in made.notes),
        f'verified: {made.what_ran}',
    ]
    if made.folder:
        lines.append(f'converted: {made.folder}')
    library = library_of(made.base)
    lines += [f'written: {request.out}', f'next: mim train {library} {request.out}']
    return '\n'.join(lines) + '\n'
