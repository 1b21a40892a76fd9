"""Reading back what W&B recorded offline. Its own Python reader is gone, so the log's framing is undone here."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record


class Recorded:
    """One W&B run as its run-*.wandb file holds it."""

    def __init__(self, path: Path) -> None:
        self.folder = path.parent
        self.of: dict[str, list[Any]] = {}
        for record in finished_records(path):
            kind = record.WhichOneof("record_type")
            self.of.setdefault(kind, []).append(getattr(record, kind))
        self.run = self.of["run"][0]
        self.config = unpack(self.run.config.update)
        self.summary = {name: value for one in self.of["summary"] for name, value in unpack(one.update).items()}
        self.history = [unpack(one.item) for one in self.of.get("history", [])]
        # by the first word of their names: report, dense, model
        self.artifacts = {one.name.partition("-")[0]: one for one in self.of.get("artifact", [])}
        self.exit_code = self.of["exit"][0].exit_code

    def series(self, name: str) -> list[Any]:
        return [row[name] for row in self.history if name in row]

    def table(self, name: str) -> dict[str, Any]:
        [path] = self.series(f"{name}.path")
        return json.loads((self.folder / "files" / path).read_text())


def finished_records(path: Path) -> list[Record]:
    """All records; W&B's own process may write the last ones a moment after the run has finished."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        records = list(read_records(path))
        if records and records[-1].WhichOneof("record_type") == "exit":
            return records
        time.sleep(0.02)
    raise AssertionError(f"{path} does not end")


def read_records(path: Path) -> Iterator[Record]:
    """W&B's transaction log: a LevelDB log after a header of 7 bytes, in blocks of 32 KiB."""
    data, at, whole = path.read_bytes(), 7, b""
    assert data.startswith(b":W&B") or not data
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            yield Record.FromString(whole)
            whole = b""


def unpack(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def recorded(run_dir: Path) -> Recorded:
    """The only offline run of a folder."""
    [path] = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    return Recorded(path)
