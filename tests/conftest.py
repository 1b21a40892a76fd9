import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import tests.helpers.pixel  # noqa: F401 - this import replaces the function that draws layers.png
from flap.models import CheckpointSource, hidden_files
from flap.models.gguf_file import PACKAGED, dequantised, find_gguf
from flap.pipeline import run
from flap.results import Report
from flap.storage.atomic_files import cache_root
from tests.cases import VOCAB, tiny_model
from tests.helpers.runs import composed, tiny

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "sat",
    "ran",
    "on",
    "under",
    "mat",
    "tree",
    "and",
    "then",
    "it",
    "was",
    "red",
    "blue",
    "old",
    "new",
]

# The tests of inference engines (tests/engines) need a separate environment, in which
# `make engines` runs these tests.
collect_ignore = ["engines"]

# Start the slowest test files first. Otherwise, one test process might still run a long file at the
# end, while all other processes are idle.
LONGEST = (
    "test_parity",
    "test_faults",
    "test_same_result",
    "test_packaged",
    "test_graph",
    "test_slurm",
    "test_launchers",
    "test_families",
    "test_mixtures",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--thorough", action="store_true", help="also what is done in part without it: see the mark"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("thorough"):
        config.hook.pytest_deselected(
            items=[item for item in items if item.get_closest_marker("thorough")]
        )
        items[:] = [item for item in items if not item.get_closest_marker("thorough")]

    def turn(item: pytest.Item) -> int:
        return LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST)

    items.sort(key=turn)


DEVICES: list[Any] = ["second"]
if torch.cuda.is_available():
    DEVICES.append(pytest.param("cuda", marks=pytest.mark.gpu))
if torch.backends.mps.is_available():
    DEVICES.append("mps")


@pytest.fixture(scope="session", params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Return a device other than the CPU: a GPU, or the device that second_device.py simulates.

    A test with this fixture runs once on each device.
    """
    if request.param != "second":
        return torch.device(request.param, 0)
    # The import registers the simulated device with torch for the rest of the process.
    return import_module("tests.helpers.second_device").DEVICE


@pytest.fixture
def every_layer_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make flap record its progress after every layer, so that tests can interrupt it at any layer.

    Without this fixture, flap records its progress at most every ten seconds.
    """
    monkeypatch.setattr(hidden_files, "SECONDS_BETWEEN_RECORDS", 0.0)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Let flap use a new cache folder, so that the tests reuse no results of earlier code.

    Only GGUF files from installed packages (PACKAGED) are dequantised in the usual cache folder, so
    that this happens only once, and not in every test session. Tests write nothing else to the
    usual cache folder.
    """
    folder = tmp_path_factory.mktemp("cache")
    (folder / "models").mkdir()
    for name in PACKAGED:
        gguf = find_gguf(name)
        if gguf:
            converted, _ = dequantised(name, gguf, cache_root(None))
            (folder / "models" / converted.name).symlink_to(converted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLAP_CACHE_DIR", str(folder))
        yield folder


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose vocabulary has VOCAB entries: special tokens and whole words."""
    vocab = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    for word in [*WORDS, *(f"w{i}" for i in range(VOCAB))]:
        if len(vocab) < VOCAB:
            vocab[word] = len(vocab)
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece(prefix="##")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
    )


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a text of three thousand words, all from the vocabulary of the fixture `tokenizer`."""
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(0, len(WORDS), (3000,), generator=generator).tolist()
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(" ".join(WORDS[i] for i in picks))
    return path


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Save a tiny LLaMA with grouped-query attention, and its tokenizer, to a local directory."""
    path = tmp_path_factory.mktemp("model") / "tiny-llama"
    tiny_model("llama-gqa").save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def base(model_dir: Path, text_file: Path) -> list[str]:
    """Return arguments for a run on the tiny model and text, which takes one or two seconds."""
    return tiny(model_dir, text_file)


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if it loads the weights of a model."""

    def fail(*arguments: Any, **options: Any) -> None:
        pytest.fail("the weights were loaded")

    monkeypatch.setattr(CheckpointSource, "open", fail)
    monkeypatch.setattr(CheckpointSource, "read", fail)


@pytest.fixture(scope="session")
def run_tiny(base: list[str]) -> Callable[..., Report]:
    """Return a function that takes a folder and overrides, and runs flap on the tiny model."""
    inputs = [
        *base,
        "model.device=cpu",
        "calibration.num_samples=6",
        "eval.perplexity.max_tokens=320",
        "ratio=0.4",
        "run_name=tiny",
    ]

    return lambda folder, *overrides: run(composed(*inputs, *overrides), folder)


@pytest.fixture
def quick_flap(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function like the fixture `flap`, but faster.

    Instead of starting Python, the function forks a process that has already imported all modules.
    """
    return partial(import_module("tests.helpers.forked").command_line, tmp_path)


@pytest.fixture
def flap(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that starts `python -m flap` with given arguments in an empty folder."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "flap", *arguments],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run
