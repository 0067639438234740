"""Pictures: a row of pixels is a step, and the grey of each pixel in it a feature."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from seqclf.data.readers.rows import Journal, RowError, printable, reason_of

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif")
_FORMATS = ("PNG", "JPEG", "BMP", "GIF")  # Pillow reads others with the help of other programs.
_GREY = ("L", "I;16", "I;16B", "I;16L", "I")  # of 8, 16 and 32 bits


def read_image(path: Path, name: str, journal: Journal) -> np.ndarray:
    """Return the greys [H, W] of a picture as the file has them. Raises OSError and RowError."""
    import PIL.Image

    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about details such as a palette's transparency
        # Pillow warns of pictures so large that they may be made to fill the memory.
        warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
        try:
            with PIL.Image.open(file, formats=_FORMATS) as image:
                num_frames = getattr(image, "n_frames", 1)
                grey = _to_grey(image, journal) if num_frames == 1 else None
        except PIL.UnidentifiedImageError:
            raise RowError(f"{name}: no {', '.join(_FORMATS)} that can be read") from None
        except Exception as error:  # a broken file makes Pillow raise many kinds
            reason = printable(reason_of(error))
            raise RowError(f"{name}: not a picture that can be read: {reason}") from None
    if grey is None:
        raise RowError(f"{name}: {num_frames} pictures in a file; save one alone")
    return grey


def _to_grey(image: Image, journal: Journal) -> np.ndarray:
    """Return a picture's greys, and note what is lost."""
    import PIL.Image
    import PIL.ImageOps

    # Pillow has no colours of 16 bits, and takes the upper 8 without a word.
    if image.mode not in _GREY and _is_deep(image):
        journal.note("16-bit colours of pictures lose their lower 8 bits")
    image.load()
    # A camera that is held upright says so beside the pixels.
    if image.getexif().get(0x0112, 1) != 1:
        journal.note("pictures are turned upright, as their EXIF data say")
        image = PIL.ImageOps.exif_transpose(image)
    if image.has_transparency_data and image.mode.startswith("I"):
        journal.note("the transparency of 16-bit pictures is left aside")
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            journal.note("transparent pixels of pictures become white")
        white = PIL.Image.new("RGBA", image.size, "white")
        image = PIL.Image.alpha_composite(white, image).convert("RGB")
    if image.mode == "1":
        image = image.convert("L")
    if image.mode == "P":
        image = image.convert("RGB")
    if image.mode not in _GREY:
        colours = image.convert("RGB")
        red, green, blue = colours.split()
        if red.tobytes() != green.tobytes() or red.tobytes() != blue.tobytes():
            journal.note("colours of pictures become grey")
        image = colours.convert("L")
    return np.asarray(image)


def _is_deep(image: Image) -> bool:
    """Whether the file of a picture, not yet loaded, has 16 bits for each colour."""
    return any("16" in str(tile[3]) for tile in getattr(image, "tile", ()))
