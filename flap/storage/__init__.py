"""Read and write the files of runs.

The files are artefacts (stored results of stages, such as calibration), the file status.json, and
the files in the working directories from which interrupted runs resume. This package also has
functions to read and write JSON, to read YAML, and to lock files.
"""

from flap.storage.artefacts import VERSION, Artefact, Key, Kind, Label, Store, as_json, digest
from flap.storage.atomic_files import cache_root, write_text
from flap.storage.cache import Cache
from flap.storage.json_files import load_json, parse_json, read_json, read_yaml, to_json
from flap.storage.status import read_state, write_status
from flap.storage.work_folder import NOT_KEPT, Notes, WorkFolder, results_of_steps

__all__ = [
    "NOT_KEPT",
    "VERSION",
    "Artefact",
    "Cache",
    "Key",
    "Kind",
    "Label",
    "Notes",
    "Store",
    "WorkFolder",
    "as_json",
    "cache_root",
    "digest",
    "load_json",
    "parse_json",
    "read_json",
    "read_state",
    "read_yaml",
    "results_of_steps",
    "to_json",
    "write_status",
    "write_text",
]
