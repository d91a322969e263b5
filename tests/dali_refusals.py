"""Three epochs over a folder with a JPEG that DALI refuses. test_data_dali.py starts it, as OpenCV, which DALI asks
last, reads its limits once. argv: an empty folder. Prints what happened, as JSON."""

import io
import json
import sys
from pathlib import Path

import torch
from PIL import Image
from test_data_dali import levels, load, loader, write_folder

from fastac.data import Loader

REFUSED = 8


def many_scans(path: Path) -> bytes:
    """The image as a progressive JPEG, its first scan there 300 times more: DALI's decoder takes 256, Pillow any."""
    buffer = io.BytesIO()
    Image.open(path).convert("RGB").save(buffer, "JPEG", progressive=True)
    jpeg = buffer.getvalue()
    start = jpeg.index(b"\xff\xda")
    end = min(jpeg.index(marker, start + 2) for marker in (b"\xff\xc4", b"\xff\xda"))
    return jpeg[:start] + 300 * jpeg[start:end] + jpeg[start:]


def main() -> None:
    root = write_folder(Path(sys.argv[1]), 20)
    samples = load(root)
    path = samples.images.path(REFUSED)
    path.write_bytes(many_scans(path))
    options = {"batch_size": 4, "augment": "imagenet"}
    ours, theirs = loader(samples, **options), loader(samples, Loader, **options)
    forgetful = loader(samples, **options)
    forgetful._remember = lambda refused: None
    built, build = [], ours._build
    ours._build = lambda: built.append(None) or build()
    for epoch in range(3):
        batches = list(ours.epoch(epoch))
        by_pillow = list(zip(batches, theirs.epoch(epoch), strict=True))
        by_failing = list(zip(batches, forgetful.epoch(epoch), strict=True))
        seen = {
            "ids": sorted(i for b in batches for i in b.index.tolist()),
            "built": len(built),
            "refused": sorted(ours._reader.refused),
            "levels": max(levels(a.images, b.images, ours).max().item() for a, b in by_pillow),
            "same": all(
                torch.equal(a.images, b.images) and torch.equal(a.index, b.index) for a, b in by_failing
            ),
        }
        print(json.dumps(seen))


if __name__ == "__main__":
    main()
