"""Keep hidden states in memory-mapped files, from which an interrupted `Walk` resumes.

A `Walk` visits the layers of a model one after the other. The files stay in the page cache as long
as the host has free memory.
"""

import json
import logging
import math
import os
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from uuid import uuid4

import numpy
import torch
from torch import Tensor

from flap.config import gigabytes, one_line
from flap.storage import load_json
from flap.storage.atomic_files import sync, write_text

log = logging.getLogger(__name__)

JOURNAL = "journal.json"
# Minimum seconds between two updates of journal.json (`HiddenFiles`). An interruption loses the
# work since the last update. More frequent updates would be slow, because syncing the files and
# computing their checksums can take longer than running a layer of a small model.
SECONDS_BETWEEN_RECORDS = 10.0
Shapes = Sequence[tuple[int, ...]]


class HiddenFiles:
    """The files with the hidden states of a `Walk` over the layers of a model, in one folder.

    The file journal.json (the journal) contains the number of finished layers, and the names of the
    files with the hidden states after these layers. There is one file for each `Stream`, which
    consists of the hidden states of some windows.

    layers_done: the number of layers that an interrupted walk has finished. The number is 0 for a
        new walk, or if files are damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.layers_done, self.recorded = self._read()
        self._last_record = time.monotonic()

    def new(self, shapes: Shapes, dtype: torch.dtype) -> tuple[list[Tensor], str]:
        """Allocate a file for tensors of these shapes. Return the tensors and the file's name.

        Raises:
            ValueError: the disk is too small.
        """
        file = f"hidden-{uuid4().hex}"
        num_bytes = sum(map(math.prod, shapes)) * dtype.itemsize
        path = self.folder / file
        try:
            with path.open("wb") as opened:
                # Allocate all of the file on the disk now. Otherwise, writing to the mapped file on
                # a full disk would kill the process (SIGBUS).
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(opened.fileno(), 0, num_bytes)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise ValueError(
                f"cache_dir: hidden states of {gigabytes(num_bytes)} GB cannot be written to "
                f"{self.folder} ({one_line(error)}); name a larger disk, or take fewer windows"
            ) from error
        return self.mapped(file, shapes, dtype), file

    def mapped(self, file: str, shapes: Shapes, dtype: torch.dtype) -> list[Tensor]:
        sizes = [math.prod(shape) for shape in shapes]
        flat: Tensor = torch.from_file(
            str(self.folder / file), shared=True, size=sum(sizes), dtype=dtype
        )
        return [part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]

    def is_due(self) -> bool:
        """Return whether SECONDS_BETWEEN_RECORDS have passed since the journal's last update."""
        return time.monotonic() - self._last_record >= SECONDS_BETWEEN_RECORDS

    def record(self, layers_done: int, files: Mapping[str, str], wait: Callable[[], None]) -> None:
        """Write the number of finished layers, and the file of each stream, into the journal.

        The files of the streams are synced to disk first.

        files: a dict from the name of each `Stream` of the walk to the file with its hidden states.
        wait: a function that waits until all processes have reached the same layer.
        """
        self.recorded = dict(files)
        contents = {name: {"file": file, **self._contents(file)} for name, file in files.items()}
        wait()
        write_text(
            self.folder / JOURNAL, json.dumps({"layers_done": layers_done, "files": contents})
        )
        self._last_record = time.monotonic()

    def remove_others(self, files: Mapping[str, str]) -> None:
        """Remove all files with hidden states, except those in the journal and in `files`."""
        for path in self.folder.glob("hidden-*"):
            if path.name not in {*self.recorded.values(), *files.values()}:
                path.unlink()

    def _read(self) -> tuple[int, dict[str, str]]:
        """Read the journal. Return the number of finished layers, and the file of each stream.

        Return 0 and no files if the journal is missing or damaged, or if a file with hidden states
        is damaged.
        """
        if not (self.folder / JOURNAL).is_file():
            return 0, {}
        try:
            journal = load_json(self.folder / JOURNAL)
            entries = dict(journal["files"])
            for entry in entries.values():
                if self._contents(entry["file"]) != {
                    "bytes": entry["bytes"],
                    "crc32": entry["crc32"],
                }:
                    raise ValueError(f"{entry['file']} is not what was recorded")
            return int(journal["layers_done"]), {
                name: entry["file"] for name, entry in entries.items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning(
                "%s: cannot be resumed (%s); the walk starts from the beginning",
                self.folder,
                one_line(error),
            )
            return 0, {}

    def _contents(self, file: str) -> dict[str, int]:
        """Sync a file to disk, and return its size and its checksum."""
        sync(self.folder / file)
        mapped = numpy.memmap(self.folder / file, mode="r")
        return {"bytes": len(mapped), "crc32": zlib.crc32(mapped.data)}
