"""Estimate the memory, disk space and time of a run from its config, without reading weights.

A run is refused if its estimate is clearly above the free memory or disk space. The placement of a
model (`model.placement`) says whether the weights are on one device, are spread over devices, or
are read layer by layer ("stream"). A search (structure=search) makes trial prunings: each of them
prunes one block, which is the attention or the MLP of a layer.
"""

import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from itertools import chain
from pathlib import Path

import torch

from flap.config import FlapConfig, gigabytes, one_line
from flap.data import HELD_OUT
from flap.method.allocation import Budget
from flap.models import ModelAdapter, ModelSource, adapt, count_parameters, find_model
from flap.models.devices import free_bytes
from flap.models.placement import STREAMS
from flap.models.predictions import LOGITS_BYTES
from flap.runs.choices import Choices, choose
from flap.runs.layer_speed import layer_speed, why_not_measured
from flap.runs.pruning_work import PruningWork, block_sizes, pruning_work
from flap.runs.texts import check_prompts_fit, read_texts
from flap.runs.time_needed import time_needed
from flap.runs.trimming import Trimming, budget_after_trimming
from flap.storage import Cache, cache_root
from flap.storage.atomic_files import free_space

# Estimates are assumed to be wrong by at most this factor. So a run is refused only if its estimate
# is more than MARGIN times the free memory or disk space.
MARGIN = 1.5
# Host memory of a process that has imported torch, transformers and flap, and has loaded a
# tokenizer and a text.
PROCESS_BYTES = 720_000_000
# While a layer runs, its activations take as much memory per token as HIDDEN_COPIES hidden states
# and WIDE_COPIES inputs of the widest output projection.
HIDDEN_COPIES = 5
WIDE_COPIES = 3
# For a backward pass, each layer stores as much per token as KEPT_HIDDEN hidden states and
# KEPT_WIDE inputs of its widest output projection.
KEPT_HIDDEN = 14
KEPT_WIDE = 4
# A backward pass stores this many float32 tensors of the shape of the logits: the logits, the
# log-probabilities, and a gradient for each of these two tensors.
LOGITS_COPIES = 4
HEADINGS = "GB (10^9 bytes)     weights      states  statistics      device        host  cache disk"


@dataclass(frozen=True)
class Needs:
    """The peak memory and disk space of a run in bytes, for one `model.placement`."""

    # The weights that are on the device at the same time. With model.placement=stream, these are
    # either the weights of the largest layer or all weights outside the layers, whichever take
    # more memory. With any other placement, these are all weights.
    weights: float
    # the stored hidden states of the calibration windows, for the dense model and for the trial
    # prunings of a search
    states: float
    # the calibration statistics of one layer, and the matrices that are computed from them
    statistics: float
    device: float  # memory of the device that runs the layers
    host: float  # memory of the host; includes `device` if the device is cpu or mps
    disk: float  # disk space that the run needs below cache_dir
    # the part of `host` that is in memory-mapped files, which the operating system can drop
    mapped: float


@dataclass(frozen=True)
class DryRun:
    """The memory, disk space and time that a run needs, estimated from the shapes of its model.

    If the run has several processes, the estimates are for one of these processes.
    """

    choices: Choices
    source: ModelSource
    adapter: ModelAdapter  # gives access to the layers of the model, which is on the meta device
    budget: Budget
    cache: Cache
    processes: int = 1
    # sizes before and after trimming the vocabulary; None if all tokens stay
    trimming: Trimming | None = None

    @property
    def removed(self) -> float:
        """The number of parameters that pruning removes; 0 if weights are only set to zero."""
        return 0.0 if self.choices.mask_only else self.budget.ratio * self.budget.total

    @property
    def passes(self) -> int:
        """The number of passes that pruning makes over all layers.

        Each pass reads the weights of all layers.

        The report contains this number as `weight_passes`.
        """
        if self.choices.keep_everything(self.budget):
            return 0
        if self.choices.in_sequence:
            return 1
        scored = self.choices.given is None
        observed = self.choices.read_plain_statistics + self.choices.need_gradients
        return 1 + scored + observed

    @property
    def tokens(self) -> int:
        """The number of calibration tokens of one process; 0 if no calibration is needed."""
        calibration = self.choices.calibration
        windows = calibration.num_samples if self.choices.need_windows else 0
        return math.ceil(windows * calibration.seq_len / self.processes)

    @property
    def work(self) -> PruningWork:
        """The amount of computation that pruning takes."""
        return pruning_work(self.choices, self.adapter, self.budget, self.tokens)

    def needs(self, placement: str) -> Needs:
        """Return the memory and disk space that the run needs with this `model.placement`.

        The memory for training after compression is not included.
        """
        itemsize = self.source.dtype.itemsize
        total = self.source.num_bytes
        layers = [
            itemsize * sum(one.numel() for one in layer.parameters())
            for layer in self.adapter.layers
        ]
        statistics = max(map(self._statistics, range(len(layers))))
        work = statistics
        if self.choices.search is not None:
            work += max(layers)
        if self.choices.evaluators:
            work = max(work, LOGITS_BYTES * (2 + itemsize / 4))
        work += self._running()
        if self.choices.need_gradients:
            work = max(work, self._gradients())

        streams = STREAMS[placement]
        states = self._states(streams)
        searches = self.choices.search is not None and self.cache.enabled
        mapped = states if streams or searches else 0.0
        disk = mapped
        weights = max(*layers, total - sum(layers)) if streams else total
        device = work if self.source.loaded else weights + work
        host = PROCESS_BYTES + states
        # if the whole model is on the CPU, the weights of the dense layers stay in memory-mapped
        # files, and the weights of the pruned layers take additional memory
        pruned = sum(layers) - itemsize * self.removed
        if streams:
            disk += pruned
        if self.source.device.type in ("cpu", "mps"):  # cpu and mps use the host's memory
            mapped += weights
            host += device if streams else device + pruned
        return Needs(weights, states, statistics, device, host, disk, mapped)

    def _statistics(self, layer: int) -> float:
        """Return the bytes of a layer's statistics, and of the matrices computed from them.

        The metric scores units, and the compensation changes output projections to make up for the
        removed units (heads, neurons or experts). If one of these two needs covariances, the
        statistics of a block are two covariance matrices, which are factorised. Otherwise the
        statistics are means and variances, and the matrices computed from them take 8 bytes for
        each weight of the block's output projection.
        """
        sets = 0.0
        factors = []
        for block in self.adapter.blocks(layer):
            channels, outputs, experts = block_sizes(block)
            if self.choices.need_covariance:
                sets += experts * 4 * channels**2
                factors.append(4 * channels**2 + 12 * channels * outputs)
            else:
                sets += experts * 12 * channels
                factors.append(8 * experts * channels * outputs)
        return sets + max(factors)

    def _states(self, streams: bool) -> float:
        """Return the bytes of all hidden states that are stored while a layer runs.

        The inputs and the outputs of the layer are stored, which are 2 · tokens · hidden size
        values for the dense model, and as many for each trial pruning of a search.
        """
        tokens = self.tokens if streams or self.choices.need_covariance else 0
        search = self.choices.search
        if search is not None:
            removals = chain(*(search.removals(layer) for layer in self.budget.layers))
            trials = math.ceil(sum(map(len, removals)) / self.processes)
            tokens += (1 + trials) * min(search.tokens, self.tokens // HELD_OUT)
        return 2.0 * tokens * self._hidden_size * self.source.dtype.itemsize

    def _running(self) -> float:
        """Return the bytes of the activations while one layer runs on one batch."""
        blocks = chain(*map(self.adapter.blocks, range(len(self.adapter.layers))))
        width = max(block_sizes(block)[0] * block.num_chosen for block in blocks)
        copied = HIDDEN_COPIES * self._hidden_size + WIDE_COPIES * width
        calibration = self.choices.calibration
        tokens = min(self.tokens, calibration.batch_size * calibration.seq_len)
        return tokens * self.source.dtype.itemsize * copied

    def _gradients(self) -> float:
        """Return the bytes that a backward pass takes in addition to the weights.

        A backward pass stores the activations of one batch in all layers. In addition, memory holds
        the gradient of the largest parameter, two float32 tensors that are computed from this
        gradient, and the logits of a chunk of positions with the gradients of these logits.
        """
        itemsize = self.source.dtype.itemsize
        values = 0
        largest = 0
        for i, layer in enumerate(self.adapter.layers):
            width = max(
                block_sizes(block)[0] * block.num_chosen for block in self.adapter.blocks(i)
            )
            values += KEPT_HIDDEN * self._hidden_size + KEPT_WIDE * width
            largest = max(largest, *(one.numel() for one in layer.parameters()))
        calibration = self.choices.calibration
        tokens = min(self.tokens, calibration.batch_size * calibration.seq_len)
        logits = min(LOGITS_BYTES, 4 * tokens * self.adapter.vocab_size)
        return tokens * itemsize * values + (itemsize + 8) * largest + LOGITS_COPIES * logits

    @property
    def _hidden_size(self) -> int:
        return block_sizes(self.adapter.attention(0))[1]

    def check(self, left: int = 0) -> None:
        """Refuse the run if the free memory or disk space is clearly too small.

        left: bytes of the files below cache_dir that remain from an earlier invocation of the run
            that was interrupted. These files are used again, so they need no additional space.

        Raises:
            ValueError: memory or disk space is clearly too small. The message says how much the run
                needs and how much is free.
        """
        source = self.source
        needs = self.needs(source.placement)
        device, host, disk = free(source.device, self.cache.root)
        less = []
        if not source.placed.streams and not self.choices.need_gradients:
            less.append("model.placement=stream")
        if self.choices.calibration.batch_size > 1:
            less.append("a smaller calibration.batch_size")
        if self.choices.need_covariance:
            less.append("choices without covariances")
        advice = f"take {', or '.join(less) or 'a machine with more memory'}"
        field = f"model.placement={source.placement}"
        if source.device.type == "cuda":
            _check(field, needs.device, device, f"on {source.device}", advice)
        of_host = needs.host - needs.mapped - PROCESS_BYTES
        _check(field, of_host, host, "in the host's memory", advice)
        advice = (
            "name a larger disk, fewer calibration windows or, for a search, fewer structure.tokens"
        )
        _check("cache_dir", needs.disk, disk + left, "on its disk", advice)

    def lines(self) -> Iterator[str]:
        """Yield lines with the numbers of parameters and of forward passes, and then a table.

        The table shows the memory and disk space that the run needs with each `model.placement`.
        """
        before = count_parameters(self.adapter.model)
        trimmed = before if self.trimming is None else self.trimming.parameters
        after = trimmed - self.removed
        checkpoint = self.source.num_bytes - (before - after) * self.source.dtype.itemsize
        yield f"parameters: {before:,} before, {round(after):,} after ({checkpoint / 1e9:.2f} GB)"
        if self.trimming is not None:
            yield from self.trimming.lines(self.budget)
        passes = self.work.forward_passes(self.adapter)
        yield f"forward passes over the calibration tokens: {passes:.3g}"
        rows = {name: astuple(self.needs(name))[:-1] for name in STREAMS}
        rows["free here"] = free(self.source.device, self.cache.root)
        yield HEADINGS
        for name, columns_of in rows.items():
            chosen = f"{name} *" if name == self.source.placement else name
            columns = "".join(f"{size / 1e9:12.2f}" for size in columns_of)
            yield f"{chosen:<15}{columns:>72}"

    def time_lines(self) -> Iterator[str]:
        """Yield lines with the estimated time of the run on this machine.

        The speed of the machine is measured by running some layers of the model for a few seconds.
        """
        device = self.source.device
        reason = why_not_measured(device)
        if not reason and self.needs("stream").device > free_bytes(device):
            reason = "a layer of the model does not fit into the free memory"
        if reason:
            yield f"time: not measured ({reason})"
            return

        calibration = self.choices.calibration
        try:
            speed = layer_speed(self.source, calibration.batch_size, calibration.seq_len)
        except Exception as error:  # without the time, the rest of the estimate is still useful
            yield f"time: not measured (a layer does not run alone: {one_line(error, 200)})"
            return
        kept = 1 - self.removed / self.budget.total
        needed = time_needed(self.choices, self.source, self.work, kept)
        yield from needed.lines(speed)


def dry_run(config: FlapConfig) -> DryRun:
    """Estimate the cost of a run from the configs of the run and of the model, without weights.

    If the model has a tokenizer, the prompts that the model will answer are read, to check that
    they fit into the context of the model. With vocabulary=trim, all texts of the run are read,
    because token counts in these texts decide how many tokens stay.

    Raises:
        ValueError: the config has an error that can be found without weights. The message names the
            field.
    """
    choices = choose(config)
    cache = Cache(cache_root(config.cache_dir), config.use_cache)
    source = find_model(config.model, cache.root, config.trust_remote_code, weights=False)
    check_prompts_fit(choices, source)
    adapter = adapt(source.skeleton(), choices.experts)
    texts = {}
    if choices.vocabulary is not None:
        texts = read_texts(choices, source)
    budget, trimming = budget_after_trimming(choices, source, adapter, texts)
    return DryRun(choices, source, adapter, budget, cache, trimming=trimming)


def free(device: torch.device, cache: Path) -> tuple[int, int, int]:
    """Return the free bytes in device memory, in host memory, and on the disk with the cache.

    If CUDA is not available, the host's memory counts as the memory of a CUDA device.
    """
    if device.type == "cuda" and not torch.cuda.is_available():
        device = torch.device("cpu")
    return free_bytes(device), free_bytes(torch.device("cpu")), free_space(cache)


def _check(field: str, needed: float, available: int, where: str, advice: str) -> None:
    if needed > MARGIN * available:
        raise ValueError(
            f"{field}: expected {gigabytes(needed)} GB free {where}, and {gigabytes(available)} GB "
            f"are; {advice} (dry_run=true shows all placements)"
        )
