"""`python -m fastac.data.index FOLDER`: index files for the WebDataset and TFRecord shards in a folder, and below it.

An index beside each shard spares looking it through whenever a data set is loaded: NAME.idx for NAME.tar, NAME.idx for
any TFRecord file NAME, in the formats of DALI's wds2idx and tfrecord2idx, for DALI's own readers as well.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fastac.data.shards import index_places
from fastac.data.tfrecord import TFRECORD, record_index_text, scan_tfrecord
from fastac.data.webdataset import WEBDATASET, index_text, scan_tar

__all__ = ["main", "write_index"]


def main(argv: Sequence[str] | None = None) -> int:
    """Write the index files and say how many. Exit status 2: a user's error."""
    parser = argparse.ArgumentParser(
        prog="python -m fastac.data.index",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where the shards are")
    folder = parser.parse_args(argv).folder
    try:
        shards = _shards(folder)
        for shard in shards:
            write_index(shard)
    except (ValueError, OSError) as error:
        print(f"fastac.data.index: error: {error}", file=sys.stderr)
        return 2
    print(f"{folder}: {len(shards)} index files written")
    return 0


def write_index(shard: Path) -> Path:
    """Write the index of a shard beside it, whole or not at all. Raises ValueError for what is no shard, or has a
    member that the format can't hold."""
    if WEBDATASET.is_shard(shard.name):
        text, path = index_text(scan_tar(shard)), index_places(shard)[0]
    else:
        text, path = record_index_text(scan_tfrecord(shard)), index_places(shard)[1]
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, path)
    return path


def _shards(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    found = [
        Path(parent, name)
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if not name.startswith(".") and (WEBDATASET.is_shard(name) or TFRECORD.is_shard(name))
    ]
    if not found:
        raise ValueError(f"{folder} has no shards: *.tar, *.tfrecord, *-00000-of-01024")
    return sorted(found)


if __name__ == "__main__":
    sys.exit(main())
