"""What a run takes, from the config and the shapes of the tensors alone; the refusal of a run that cannot fit."""

import math
import shutil
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

import torch

from flap.config import FlapConfig, gigabytes
from flap.data import HELD_OUT
from flap.method.allocation import Budget
from flap.models import Block, ModelAdapter, ModelSource, adapt, count_parameters, find_model
from flap.models.devices import free_bytes
from flap.models.placement import STREAMS
from flap.models.predictions import LOGITS_BYTES
from flap.runs.choices import Choices, check_budget, choose
from flap.runs.texts import check_prompts_fit, read_texts
from flap.runs.trimming import Trimming, check_trimming, estimate
from flap.storage import cache_root

MARGIN = (
    1.5  # estimates are within this factor of what was measured: only what is beyond it is refused
)
PROCESS_BYTES = 720_000_000  # Python, torch, transformers, this package, a tokenizer and a text
HIDDEN_COPIES, WIDE_COPIES = (
    5,
    3,
)  # activations of a layer that runs: of H, and of its widest channels
HEADINGS = "GB (10^9 bytes)     weights      states  statistics      device        host  cache disk"


@dataclass(frozen=True)
class Needs:
    """What a run takes at a placement, in bytes at their most."""

    weights: float  # on the device at once: the model, or its largest layer
    states: float  # hidden states of the calibration windows, and of the trials of a search
    statistics: float  # of a layer, with the factors made of them
    device: float  # on the device that runs the layers
    host: float  # in the host's memory, with the device's where that is the host's
    disk: float  # below cache_dir
    mapped: float  # of `host`, what is in mapped files, which the system drops when memory is short


@dataclass(frozen=True)
class DryRun:
    """A run as far as it is known without weights and texts; of several processes, the share of one."""

    config: FlapConfig
    choices: Choices
    source: ModelSource
    adapter: ModelAdapter  # of the skeleton
    budget: Budget
    processes: int = 1
    trimming: Trimming | None = None  # how far the vocabulary is trimmed first

    @property
    def removed(self) -> float:
        """The parameters that are removed."""
        return 0.0 if self.config.mask_only else self.budget.ratio * self.budget.total

    @property
    def passes(self) -> int:
        """How often pruning goes over the weights: `weight_passes` of the report."""
        if self.choices.keep_everything(self.budget):
            return 0
        scored = self.config.plan is None
        return 1 if self.choices.in_sequence else 1 + scored + self.choices.read_plain_statistics

    @property
    def tokens(self) -> int:
        """The tokens of the calibration windows of this process; 0 if no choice needs any."""
        windows = self.config.calibration.num_samples if self.choices.need_windows else 0
        return math.ceil(windows * self.config.calibration.seq_len / self.processes)

    def needs(self, placement: str) -> Needs:
        """Return what the run takes at a placement; training, which comes last, is not counted."""
        choices = self.choices
        itemsize = self.source.dtype.itemsize
        total = self.source.num_bytes
        streams = STREAMS[placement]
        searches = choices.search is not None
        shared = self.source.device.type in ("cpu", "mps")
        layers = [
            itemsize * sum(one.numel() for one in layer.parameters())
            for layer in self.adapter.layers
        ]
        weights = max(*layers, total - sum(layers)) if streams else total
        statistics = max(map(self._statistics, range(len(layers))))
        states = self._states(streams)
        logits = LOGITS_BYTES * (2 + itemsize / 4) if choices.evaluators else 0.0
        work = max(statistics + max(layers) * searches, logits) + self._running()
        device = (0 if self.source.loaded else weights) + work
        in_files = states * (streams or (searches and self.config.use_cache))
        pruned = (
            sum(layers) - itemsize * self.removed
        )  # beside the dense layers, which stay mapped on a CPU
        host = PROCESS_BYTES + states + (device + pruned * (not streams)) * shared
        files = in_files + pruned * streams, in_files + weights * shared
        return Needs(weights, states, statistics, device, host, *files)

    def _statistics(self, layer: int) -> float:
        """Return the bytes of a layer's statistics: two sets of co-moments and a factor, or means and variances."""
        sets = factor = 0.0
        for block in self.adapter.blocks(layer):
            (channels, outputs, experts), covariance = _sizes(block), self.choices.need_covariance
            sets += experts * (4 * channels**2 if covariance else 12 * channels)
            one = (
                4 * channels**2 + 12 * channels * outputs
                if covariance
                else 8 * experts * channels * outputs
            )
            factor = max(factor, one)
        return sets + factor

    def _states(self, streams: bool) -> float:
        """Return the bytes of hidden states in a walk, before a layer and after it: 2 · tokens · hidden size."""
        tokens = self.tokens if streams or self.choices.need_covariance else 0
        search = self.choices.search
        if search is not None:
            trials = sum(
                len(removed) for layer in self.budget.layers for removed in search.removals(layer)
            )
            tokens += (1 + math.ceil(trials / self.processes)) * min(
                search.tokens, self.tokens // HELD_OUT
            )
        return 2.0 * tokens * _sizes(self.adapter.attention(0))[1] * self.source.dtype.itemsize

    def _running(self) -> float:
        """Return the bytes of the activations of a batch in a layer."""
        own = self.config.calibration
        layers = range(len(self.adapter.layers))
        width = max(
            _sizes(block)[0] * block.num_chosen for i in layers for block in self.adapter.blocks(i)
        )
        copied = HIDDEN_COPIES * _sizes(self.adapter.attention(0))[1] + WIDE_COPIES * width
        return min(self.tokens, own.batch_size * own.seq_len) * self.source.dtype.itemsize * copied

    def check(self, cache: Path, left: int = 0) -> None:
        """Check that the run may fit into the memory and onto the disk that are free.

        left: bytes below `cache` that an interrupted start of this run has left, which it uses
            again.

        Raises:
            ValueError: it surely does not; says what it takes and what is free.
        """
        placed = f"model.placement={self.source.placement}"
        needs = self.needs(self.source.placement)
        device, host, disk = free(self.source.device, cache)
        less = ["model.placement=stream"] * (not self.source.placed.streams)
        less += ["a smaller calibration.batch_size"] * (self.config.calibration.batch_size > 1)
        less += ["choices without covariances"] * self.choices.need_covariance
        advice = f"take {', or '.join(less) or 'a machine with more memory'}"
        if self.source.device.type == "cuda":
            _check(placed, needs.device, device, f"on {self.source.device}", advice)
        _check(
            placed, needs.host - needs.mapped - PROCESS_BYTES, host, "in the host's memory", advice
        )
        advice = (
            "name a larger disk, fewer calibration windows or, for a search, fewer structure.tokens"
        )
        _check("cache_dir", needs.disk, disk + left, "on its disk", advice)

    def lines(self) -> Iterator[str]:
        """Yield the estimate as text: parameters, passes, and what each placement takes."""
        before = count_parameters(self.adapter.model)
        trimmed = before if self.trimming is None else self.trimming.parameters
        after = trimmed - self.removed
        checkpoint = self.source.num_bytes - (before - after) * self.source.dtype.itemsize
        yield f"parameters: {before:,} before, {round(after):,} after ({checkpoint / 1e9:.2f} GB)"
        if self.trimming is not None:
            yield from self.trimming.lines(self.budget)
        yield f"passes over the weights: {self.passes}"
        rows = {name: astuple(self.needs(name))[:-1] for name in STREAMS}
        rows["free here"] = free(self.source.device, cache_root(self.config.cache_dir))
        yield HEADINGS
        for name, sizes in rows.items():
            chosen = name + " *" * (name == self.source.placement)
            yield f"{chosen:<15}" + "".join(f"{size / 1e9:12.2f}" for size in sizes).rjust(72)


def dry_run(config: FlapConfig) -> DryRun:
    """Estimate what a run takes from the configs alone, without reading weights.

    If the model has a tokenizer, prompts that the model is to answer are read and must fit into its
    context. With vocabulary=trim, texts are read as well, to count their tokens.

    Raises:
        ValueError: the config has an error that can be seen so far; names the field.
    """
    choices = choose(config)
    root = cache_root(config.cache_dir)
    source = find_model(config.model, root, config.trust_remote_code, weights=False)
    check_prompts_fit(config, choices, source)
    adapter = adapt(source.skeleton(), choices.experts)
    smaller = adapter
    trimming = None
    if choices.vocabulary is not None:
        check_trimming(choices, source, adapter)
        texts = read_texts(config, choices, source.tokenizer, source.max_length)
        trimming, smaller = estimate(choices, source, adapter, texts)
    budget = check_budget(smaller, choices, config, source)
    return DryRun(config, choices, source, adapter, budget, trimming=trimming)


def free(device: torch.device, cache: Path) -> tuple[int, int, int]:
    """Return the free bytes of the device (of the host, where there is none), of the host, and of the cache's disk."""
    host = torch.device("cpu")
    absent = device.type == "cuda" and not torch.cuda.is_available()
    place = next(one for one in (cache, *cache.absolute().parents) if one.exists())
    return free_bytes(host if absent else device), free_bytes(host), shutil.disk_usage(place).free


def _sizes(block: Block) -> tuple[int, int, int]:
    """Return the input and output channels of an expert's output projection, and the number of experts."""
    return (
        block.columns_UC.numel() // len(block.members),
        int(block.output.weight.shape[0]),
        len(block.members),
    )


def _check(field: str, needed: float, available: int, where: str, advice: str) -> None:
    if needed > MARGIN * available:
        expected = (
            f"{gigabytes(needed)} GB free {where}, and {gigabytes(available)} GB are; {advice}"
        )
        raise ValueError(f"{field}: expected {expected} (dry_run=true shows all placements)")
