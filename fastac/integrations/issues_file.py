"""The file that a callback writes the ranking to when training ends; what goes into it is checked before it begins."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastac.extras import require
from fastac.frames import check_frame_path, write_frame
from fastac.integrations.cleansing import Cleansing
from fastac.issues.checks import (
    ClassNames,
    check_range,
    class_count,
    ignored_labels,
    integer_vector,
    listed_names,
)

__all__ = ["IssuesFile"]


@dataclass(frozen=True, eq=False)
class IssuesFile:
    """path: .csv or .parquet, absolute; None where nothing is to be written. labels: (N,) int64, None likewise.
    class_names: K names, or None."""

    path: Path | None
    labels: np.ndarray | None
    class_names: list[str] | None

    @classmethod
    def checked(
        cls,
        path: str | os.PathLike[str] | None,
        labels: Any,
        class_names: ClassNames | None,
        *,
        num_samples: int,
        num_classes: int,
        ignore_index: int,
    ) -> IssuesFile:
        """ValueError for what find_label_issues would refuse when training has ended. Makes the file's folder."""
        file = None if path is None else check_frame_path(path).absolute()
        if file is not None:
            require("pandas", "report")
            if labels is None:
                raise ValueError(f"issues was {str(path)!r}, but labels are missing: the ranking needs them")
            if file.is_dir():
                raise ValueError(f"issues was {str(path)!r}, which is a folder; it should be a file")
        if labels is not None:
            labels = integer_vector("labels", labels, num_samples)
            check_range("labels", labels, num_classes, ignored_labels(labels, ignore_index))
        names = None if class_names is None else listed_names(class_names)
        class_count(num_classes, names)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
        return cls(file, labels, names)

    def write(self, cleansing: Cleansing) -> None:
        """Rank the labels and write them, if a path was given."""
        if self.path is not None:
            write_frame(cleansing.issues(self.labels, class_names=self.class_names), self.path)
