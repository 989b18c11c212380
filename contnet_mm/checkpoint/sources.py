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


def fetch_command(checkpoint: str | Path) -> str:
    """Return the command that fetches a checkpoint of this name, or that fetches any."""
    path = Path(checkpoint)
    letters = next((key for key, name in CONVERTED.items() if name == path.name), None)
    command = f'python -m contnet_mm fetch_weights {letters or "ARCH"}'
    if letters and path.parent != Path(FOLDER):
        command += f' --folder {path.parent}'
    return command
