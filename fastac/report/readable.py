"""Images for a page or a sheet, of which some may be gone by the time that it is made."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from fastac.data.decode import UnreadableImageError

__all__ = ["ReadableImages"]

_LOGGER = logging.getLogger("fastac")


class ReadableImages:
    """Images by sample id, None where one's file cannot be read: what is made of many should not fail for it.

    image: by id the pixels (H, W, C) uint8; raises UnreadableImageError or OSError, the only ones that are taken here.
    """

    def __init__(self, image: Callable[[int], np.ndarray]):
        self._image = image
        self.problems: list[str] = []
        """What each image that could not be read said of it, with its path."""

    def __call__(self, index: int) -> np.ndarray | None:
        try:
            return self._image(index)
        except (UnreadableImageError, OSError) as error:
            self.problems.append(str(error))
            return None

    def warn(self, where: str) -> None:
        """Log once how many images are missing and why the first one is. where: the page that shows "no image"."""
        if self.problems:
            count = len(self.problems)
            what = "1 image that" if count == 1 else f"{count} images that"
            first = self.problems[0] if count == 1 else f"first {self.problems[0]}"
            _LOGGER.warning('%s has "no image" for %s cannot be read: %s', where, what, first)
