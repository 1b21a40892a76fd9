"""A run makes the same plan and tensors on any device, at any placement and in several processes.

A placement says where the weights are: "device" (in memory), "auto" (partly on disk) or "stream"
(on disk, with one layer in memory at a time). Each case runs once in the CPU's memory in one
process, and then in each of the setups in PLACES.

At every placement on the CPU in one process, all results are equal bit for bit. On another device
or in several processes, the plans are equal, and tensors may differ by ROUNDING, relative to the
largest element of a tensor. Other kernels and other orders of summation have changed elements by
at most 3e-6 (relative). A wrong head or neuron, or a missing bias, changes them by more than 1e-2.

The simulated second device (tests/helpers/second_device.py) refuses the operations that a GPU
refuses.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import cache
from importlib import import_module
from itertools import cycle, product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from flap.models import find_model
from flap.pipeline import run
from flap.results import Report
from tests.cases import random_model
from tests.helpers.ranks import in_ranks
from tests.helpers.runs import composed, tensors_of, tiny
from tests.models.families.every import EVERY

ROUNDING = 1e-4
LONG = pytest.mark.long
THOROUGH = pytest.mark.thorough
# For each model family, the last of its tiny configs, which differs most from LLaMA.
FAMILIES = {
    family.__name__.removeprefix("Test"): list(family.configs.values())[-1] for family in EVERY
}


class Place(NamedTuple):
    """A setup: the placement, the device and the number of processes of a run.

    With placement "auto", the tests put about half of the model on disk.
    """

    placement: str = "device"
    device: str = "cpu"
    processes: int = 1

    @property
    def exact(self) -> bool:
        """Whether the run computes all sums in the same order as one process on the CPU."""
        return self.device == "cpu" and self.processes == 1

    def __str__(self) -> str:
        return f"{self.placement}-{self.device}-{self.processes}"


AUTO = Place("auto")
STREAM = Place("stream")
SECOND = Place(device="second")
SECOND_STREAM = Place("stream", "second")
TWO = Place(processes=2)
TWO_STREAM = Place("stream", processes=2)
THREE = Place("stream", processes=3)
PLACES = [AUTO, STREAM, SECOND, SECOND_STREAM, TWO, TWO_STREAM, THREE, Place("device", "second", 2)]
COUNT = torch.cuda.device_count()
GPUS = [Place("device", "cuda", size) for size in {1, COUNT} if COUNT]

# The runs have 19 windows, which two or three processes cannot divide evenly. Every fifth window,
# beginning with the first, is held out from fits. So 4 windows are held out, which three processes
# cannot divide evenly either.
# The levels are the shares of a layer's KV heads or neurons that the search tries to remove. The
# largest level is three quarters, because the removal of one quarter changes a tiny model hardly
# more than rounding does.
SEARCH = "method=flap_plus structure.levels=[0.125,0.25,0.5,0.75]"
FITS = "metric=OBS compensation=linear"
# Each case consists of a model, the options of a run, and a list with some of the setups in PLACES.
# `make test` runs the first case of each model in QUICK, in the first setup of the case's list.
# `make checks` runs each case in all setups of its list, and in every third of the other setups in
# PLACES.
CASES: list[tuple[str, str, list[Place]]] = [
    ("Llama", SEARCH, [TWO_STREAM]),
    ("GPT2", SEARCH, [STREAM]),
    ("Mixtral", SEARCH, [AUTO, SECOND]),
    ("Qwen3Next", SEARCH, []),
    ("Llama", FITS, [AUTO, STREAM]),
    ("Qwen3Moe", FITS, [TWO]),
    ("Gemma4", FITS, []),
    ("Mixtral", "structure.experts=true metric=REAP", [STREAM]),
    ("Llama", "method=wanda_sp", [SECOND]),
    ("Llama", f"method=wanda_sp {FITS} calibration.num_samples=3", []),
    ("Llama", "method=mag_sp", [STREAM]),
    ("Llama", "structure=UL-UM round_to=8 structure.min_heads=2", [STREAM]),
    ("Llama", "metric=random structure=UL-MM", []),
    ("Llama", "structure.scale=relative metric.square_attention=false", []),
    ("Llama", "mask_only=true", [AUTO]),
    ("Llama", "ratio=0", [AUTO]),
    ("Llama", "ratio=null target.bytes=60e3", [STREAM]),
    ("Qwen2-bfloat16", "", [STREAM]),
    ("Qwen3Next", "", [STREAM]),
    # These families differ from LLaMA in the form of their weights, or in how transformers calls
    # their layers.
    ("Olmo2", "", [AUTO]),
    ("Falcon", "", [STREAM]),
    ("GptOss", "", [AUTO]),
    ("FalconH1", "", [STREAM]),
    ("Phi3", "", [SECOND]),
    ("OPT", "", [STREAM]),
]
QUICK = ("Llama", "Mixtral", "Qwen2-bfloat16", "OPT")
# In runs with these options, the model generates the calibration text. Generation needs a key-value
# cache, which the second device does not support.
OWN_TEXT = "calibration.dataset=self calibration.num_samples=40"
ANSWERS = (
    "calibration.dataset=repeat-passages calibration.answers=self calibration.count=answers "
    "calibration.max_new_tokens=8 calibration.num_samples=20 calibration.seq_len=24"
)


def goes(model: str, place: Place) -> bool:
    """Return whether a model is tested in a setup.

    GPT-2 is tested only in setups with `Place.exact`: in its search, two heads or neurons are
    nearly equally important, so another order of sums can change the plan. Falcon is not tested on
    the second device, because torch cannot run Falcon's attention on a device that is simulated in
    Python.
    """
    return place.exact if model == "GPT2" else place.device != "second" or model != "Falcon"


def rows() -> Iterator[Any]:
    """Yield all test cases. A test case consists of a model, options and a setup."""
    rare = cycle([LONG, THOROUGH, THOROUGH])
    quick = set(QUICK)
    for model, choices, checked in CASES:
        for place in (place for place in PLACES if goes(model, place)):
            marks: Any = next(rare) if place not in checked else LONG
            if model in quick and place in checked[:1]:
                quick.remove(model)
                marks = ()
            yield pytest.param(model, choices, place, id=f"{model}-{choices}-{place}", marks=marks)
        for place in GPUS if "bfloat16" not in model else ():
            yield pytest.param(
                model, choices, place, id=f"{model}-{choices}-{place}", marks=pytest.mark.gpu
            )
    for choices, place in (*product((OWN_TEXT, ANSWERS), (TWO, THREE)), (ANSWERS, STREAM)):
        yield pytest.param(
            "Llama", choices, place, id=f"Llama-{choices.partition(' ')[0]}-{place}", marks=LONG
        )
    others = product(sorted(FAMILIES.keys() - {model for model, *_ in CASES}), (AUTO, STREAM))
    for (model, place), marks in zip(others, cycle([LONG, THOROUGH, THOROUGH, LONG]), strict=False):
        yield pytest.param(model, "", place, id=f"{model}-{place}", marks=marks)


def run_at(place: Place, arguments: list[str], folder: Path) -> None:
    """Do a run in this process, which may be one of several processes of the run."""
    options = [f"model.placement={place.placement}", f"cache_dir={folder / 'cache'}"]
    if place.device == "cuda":
        # The run uses float32, because products in bfloat16 would differ from those on the CPU.
        options += [
            "model.device=cuda",
            "model.dtype=float32",
        ]
    config = composed(*arguments, *options)
    source = None
    if place.device == "second":
        # The import registers the simulated device with torch for the rest of the process.
        device = import_module("tests.helpers.second_device").DEVICE
        source = replace(find_model(config.model, folder / "cache", False), device=device)
    run(config, folder / "run", source=source)


@pytest.fixture(scope="module")
def inputs(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast, text_file: Path
) -> Callable[[str], list[str]]:
    """Return a function that saves a model in several shards, and returns arguments of a run."""
    root = tmp_path_factory.mktemp("models")
    of_text = (
        f"[{text_file}] eval.divergence.seq_len=16 eval.divergence.max_tokens=96 "
        "eval.perplexity.max_tokens=96"
    )

    @cache
    def made(name: str) -> list[str]:
        family, _, dtype = name.partition("-")
        model = random_model(FAMILIES[family])
        (model.to(torch.bfloat16) if dtype else model).save_pretrained(
            root / name, max_shard_size="40KB"
        )
        tokenizer.save_pretrained(root / name)
        assert len(list((root / name).glob("*.safetensors"))) > 1
        evaluated = f"eval=[perplexity,divergence] eval.divergence.datasets={of_text}".split()
        return [
            *tiny(root / name, text_file),
            "calibration.num_samples=19",
            "calibration.batch_size=3",
            *evaluated,
        ]

    return made


@pytest.fixture(scope="module")
def in_memory(
    inputs: Callable[[str], list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Path]:
    """Return a function that does a run in the CPU's memory, and returns the run's folder."""

    @cache
    def made(model: str, choices: str) -> Path:
        folder = tmp_path_factory.mktemp("in-memory")
        run_at(Place(), [*inputs(model), "ratio=0.4", *choices.split()], folder)
        return folder / "run"

    return made


@pytest.mark.parametrize(("model", "choices", "place"), rows())
def test_the_result_is_that_of_one_process_in_memory(
    model: str,
    choices: str,
    place: Place,
    inputs: Callable[[str], list[str]],
    in_memory: Callable[[str, str], Path],
    tmp_path: Path,
) -> None:
    expected = in_memory(model, choices)
    arguments = [*inputs(model), "ratio=0.4", *choices.split()]
    _, _, model_dir = arguments[0].partition("=")
    size = sum(file.stat().st_size for file in Path(model_dir).glob("*.safetensors"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flap.models.placement.spread.free_bytes", lambda device: size * 6 // 10)
        if place.processes == 1:
            run_at(place, arguments, tmp_path)
        else:
            codes = in_ranks(place.processes, run_at, place, arguments, tmp_path)
            assert codes == [0] * place.processes

    assert_same_run(tmp_path / "run", expected, place.exact)
    report = Report.load(tmp_path / "run" / "report.json")
    devices = {"cpu", "disk"} if place.placement == "auto" else set()
    assert set(report.device_map.values()) == devices
    processes = place.processes if place.processes > 1 else 0
    assert len(report.processes) == processes


def assert_same_run(found: Path, expected: Path, exact: bool) -> None:
    """Check that the folders of two runs contain the same results.

    exact: whether tensors and measured results must be equal bit for bit.
    """
    for name in ("plan.json", "checkpoint/config.json", "checkpoint/generation_config.json"):
        assert (found / name).read_text() == (expected / name).read_text(), name
    tensors = tensors_of(found)
    wanted = tensors_of(expected)
    assert tensors.keys() == wanted.keys()
    for name, tensor in wanted.items():
        largest = 0.0 if exact else ROUNDING * max(tensor.abs().max().item(), 1e-6)
        torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=largest)
    one, other = (asdict(Report.load(folder / "report.json")) for folder in (found, expected))
    for field in ("parameters", "ratio", "target", "layers", "layers_before"):
        assert one[field] == other[field], field
    for field in ("evaluation", "difference_stderr", "repairs"):
        numbers = flat(one[field])
        others = flat(other[field])
        # Some of these results are small differences between large values, so they need a tolerance
        # larger than ROUNDING.
        assert numbers == others or (
            not exact and numbers == pytest.approx(others, rel=10 * ROUNDING, abs=1e-6)
        ), field


def flat(values: Any, name: str = "") -> dict[str, Any]:
    """Flatten nested dicts and lists to one dict from paths to values, and replace None by -1."""
    if isinstance(values, dict | list):
        items = values.items() if isinstance(values, dict) else enumerate(values)
        return {
            path: number
            for key, value in items
            for path, number in flat(value, f"{name}/{key}").items()
        }
    return {name: -1 if values is None else values}
