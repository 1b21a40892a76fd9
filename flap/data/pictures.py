"""Pictures with their texts: a folder of image files, each with a .txt of the same name beside it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Picture:
    """An image and its text."""

    name: str
    image: Image.Image
    text: str

    @property
    def sha256(self) -> str:
        """The SHA-256 of the image's pixels and of the text, in hex digits."""
        return hashlib.sha256(self.image.tobytes() + str(self.image.size).encode() + self.text.encode()).hexdigest()


def read_pictures(folder: Path, field: str) -> list[Picture]:
    """Return the pictures of a folder, by name. field: the config key that error messages name.

    Raises:
        ValueError: there is no such folder, it holds no image, or one that cannot be read or has no text.
    """
    files = [path for path in sorted(folder.glob("*")) if path.suffix.lower() in FORMATS]
    if not files:
        wanted = f"a folder of images ({', '.join(FORMATS)}), each with a .txt of the same name"
        raise ValueError(f"{field}={folder}: it holds no image; expected {wanted}")
    return [_read(path, f"{field}={folder}") for path in files]


def _read(path: Path, where: str) -> Picture:
    text = path.with_suffix(".txt")
    try:
        words = text.read_text(encoding="utf-8").strip()
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)  # cameras store how they were held beside the pixels
            picture = Picture(path.name, upright.convert("RGB"), words)
    except FileNotFoundError as error:
        raise ValueError(
            f"{where}: {path.name} has no {text.name} beside it; expected the text of the image"
        ) from error
    except (UnidentifiedImageError, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{where}: {path.name} or its text cannot be read ({type(error).__name__})") from error
    if not words:
        raise ValueError(f"{where}: {text.name} is empty; expected the text of {path.name}")
    return picture
