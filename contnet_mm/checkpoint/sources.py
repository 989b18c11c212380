"""Where the weights of the paper's authors can be had, and the names that files get here."""

from __future__ import annotations

from pathlib import Path

# Of the authors, from the README of their repository; fetched by gdown.
OFFICIAL_FOLDER = 'https://drive.google.com/drive/folders/1ZXu--Bis3LTYLjf2pkmDtZH0TjuWWamO'
# People's code names checkpoint_M.pth; nobody has told the names of the others.
OFFICIAL_NAME = 'checkpoint_{}.pth'
# Copies of a third party. It reports a top-1 of 80.2 % for M and 81.8 % for B.
_RELEASE = 'https://github.com/okotaku/timmextension/releases/download/w_contnet/'
MIRROR = {'M': _RELEASE + 'contnet_m.pth', 'B': _RELEASE + 'contnet_b.pth'}

FOLDER = 'checkpoints'  # as the configs name it, relative to where the command runs
CONVERTED = {letters: f'contnet-{letters.lower()}_in1k.pth' for letters in ('Ti', 'S', 'M', 'B')}

NO_LICENCE = (
    'These weights carry no licence: neither their authors nor the mirror say that you may use or '
    'share them. contnet_mm does not host them; whether you fetch them is your decision.'
)


def ways_to_get(checkpoint: str | Path) -> str:
    """Return how to get a checkpoint of this name: fetch it, or train it."""
    letters = _find_letters(checkpoint)
    name = f'contnet-{letters.lower() if letters else "ARCH"}_8xb64-strong_in1k'
    return (
        f'`{fetch_command(checkpoint)}` fetches and converts the official weights, which carry no '
        f'licence; `mim train mmpretrain configs/contnet/{name}.py` trains them, and '
        f'`cp work_dirs/{name}/epoch_200.pth {checkpoint}` puts them in place'
    )


def fetch_command(checkpoint: str | Path) -> str:
    """Return the command that fetches a checkpoint of this name, or that fetches any."""
    path, letters = Path(checkpoint), _find_letters(checkpoint)
    command = f'python -m contnet_mm fetch_weights {letters or "ARCH"}'
    if letters and path.parent != Path(FOLDER):
        command += f' --folder {path.parent}'
    return command


def _find_letters(checkpoint: str | Path) -> str | None:
    name = Path(checkpoint).name
    return next((letters for letters, known in CONVERTED.items() if known == name), None)
