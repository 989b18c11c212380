"""What the readers ask images, without decoding them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from contnet_mm.datasets.check.files import EXIF_ORIENTATION


def measure(path: Path) -> tuple[int, int]:
    """Return height and width in pixels, turned by EXIF as OpenCV turns it; (0, 0) of no image."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(EXIF_ORIENTATION, 1) >= 5
    except Exception:  # damage can make a decoder fail in any way; the check of images reports it
        return (0, 0)
    return (width, height) if turned else (height, width)
