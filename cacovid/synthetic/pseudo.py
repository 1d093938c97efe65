"""Static pseudo-videos from any folder of images with captions.

The first stage of SCORE's curriculum (arXiv 2603.26365; ALGORITHMS 2.3): several images, each held
for a few frames; their captions, joined, are the one target.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from cacovid.errors import InvalidInputError, MissingDependencyError, VideoReadError

#: Endings that are taken for images.
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
CAPTIONS = "captions.json"


@dataclass(frozen=True)
class CaptionedImage:
    """An image file with what is to be said of it.

    Args:
        path: The file.
        caption: Its caption.
    """

    path: Path
    caption: str


@dataclass(frozen=True)
class PseudoVideo:
    """Images, each held for some frames.

    Args:
        images: In order.
        frames_per_image: How long each is held.
    """

    images: tuple[CaptionedImage, ...]
    frames_per_image: int = 4

    @property
    def caption(self) -> str:
        """The captions as sentences, one after another.

        >>> PseudoVideo((CaptionedImage(Path("a"), "A cat"), CaptionedImage(Path("b"), "Why?"))
        ... ).caption
        'A cat. Why?'
        """
        sentences = (image.caption.strip() for image in self.images)
        return " ".join(s if s.endswith((".", "!", "?")) else f"{s}." for s in sentences)

    @property
    def key(self) -> str:
        """The same for pseudo-videos of the same images."""
        paths = ",".join(str(image.path) for image in self.images)
        return f"images/{self.frames_per_image}/{paths}"

    def frames(self) -> np.ndarray:
        """uint8 `[images * frames_per_image, H, W, 3]`, of the first image's size.

        The others are scaled to fit, with black borders where their shape differs.

        Raises:
            VideoReadError: if an image cannot be read.
            MissingDependencyError: without pillow.
        """
        try:
            from PIL import Image, ImageOps
        except ImportError as error:
            raise MissingDependencyError(
                "pseudo-videos from images need pillow; install cacovid[models]"
            ) from error
        stills = []
        size: tuple[int, int] | None = None
        for image in self.images:
            try:
                with Image.open(image.path) as opened:
                    picture = ImageOps.exif_transpose(opened).convert("RGB")
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                raise VideoReadError(f"the image {image.path} cannot be read: {error}") from error
            size = size or picture.size
            stills.append(np.asarray(ImageOps.pad(picture, size)))
        return np.repeat(np.stack(stills), self.frames_per_image, axis=0)


def read_captioned_images(folder: str | PathLike[str]) -> list[CaptionedImage]:
    """The images of a folder that have captions, by name.

    Captions stand in `captions.json` (an object of captions by file name, or a list of objects with
    `image` or `file_name`, and `caption`), or in `NAME.txt` beside `NAME.jpg`.

    Args:
        folder: The folder.

    Raises:
        InvalidInputError: if it is no folder, its captions cannot be read, or none has an image.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InvalidInputError(f"there is no folder of images {str(folder)!r}")
    listed = root / CAPTIONS
    if listed.is_file():
        captions = _listed_captions(listed)
    else:
        captions = {}
        for path in root.iterdir():
            text = path.with_suffix(".txt")
            if path.suffix.lower() in IMAGE_ENDINGS and text.is_file():
                captions[path.name] = text.read_text(encoding="utf-8-sig")
    found = [
        CaptionedImage(root / name, " ".join(caption.split()))
        for name, caption in sorted(captions.items())
        if caption.strip() and (root / name).is_file()
    ]
    if not found:
        raise InvalidInputError(
            f"{root} holds no image with a caption; expected {CAPTIONS} with captions by file "
            f"name, or NAME.txt beside NAME.jpg"
        )
    return found


def make_pseudo_videos(
    images: Sequence[CaptionedImage],
    count: int,
    *,
    images_per_video: int = 4,
    frames_per_image: int = 4,
    seed: int = 0,
) -> list[PseudoVideo]:
    """Pseudo-videos of images drawn at random; each image is used once before any is used again.

    Args:
        images: What there is.
        count: How many videos.
        images_per_video: Images of a video, all different.
        frames_per_image: How long each is held.
        seed: Of the draw.

    Raises:
        InvalidInputError: for fewer images than a video has, or numbers below 1.

    >>> images = [CaptionedImage(Path(f"{n}.png"), f"picture {n}") for n in range(5)]
    >>> made = make_pseudo_videos(images, 3, images_per_video=2)
    >>> [len(set(video.images)) for video in made]
    [2, 2, 2]
    """
    for name, value in (
        ("count", count),
        ("images_per_video", images_per_video),
        ("frames_per_image", frames_per_image),
    ):
        if value < 1:
            raise InvalidInputError(f"{name} is {value}; expected at least 1")
    if len(images) < images_per_video:
        raise InvalidInputError(
            f"there are {len(images)} captioned images; expected at least images_per_video, "
            f"{images_per_video}"
        )
    rng = np.random.default_rng([seed, 29])
    made: list[PseudoVideo] = []
    left: list[int] = []
    for _ in range(count):
        if len(left) < images_per_video:
            left = rng.permutation(len(images)).tolist()
        chosen, left = left[:images_per_video], left[images_per_video:]
        made.append(PseudoVideo(tuple(images[i] for i in chosen), frames_per_image))
    return made


def _listed_captions(path: Path) -> dict[str, str]:
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path} cannot be read as JSON: {error}") from error
    if isinstance(data, Sequence) and not isinstance(data, str):
        rows = [row for row in data if isinstance(row, Mapping)]
        data = {row.get("image", row.get("file_name")): row.get("caption") for row in rows}
    wrong = not isinstance(data, Mapping) or any(
        not isinstance(name, str) or not isinstance(caption, str) for name, caption in data.items()
    )
    if wrong:
        raise InvalidInputError(
            f"{path} holds no captions; expected an object of captions by file name, or a list of "
            f"objects with image and caption"
        )
    return dict(data)
