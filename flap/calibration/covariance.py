"""Statistics with covariances: collected layer by layer, kept on disk until the plan is known.

Legend: N windows · T tokens a window · I input channels of an output projection.
"""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile

import numpy
import torch
from torch import Tensor

from flap.calibration.collect import LayerStatistics, collect_layerwise
from flap.calibration.statistics import Moments, Statistics
from flap.models import ModelAdapter


class StatisticsOnDisk:
    """Statistics of all layers; walking over them holds the co-moments of one layer at a time.

    Those lie in a nameless file below `folder`, which is gone when this object or the process is.
    """

    def __init__(self, folder: Path, num_bytes: int) -> None:
        """Raises: ValueError: the folder cannot be written, or has no room for `num_bytes`."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = TemporaryFile(dir=folder)  # noqa: SIM115 - open for as long as this object lives
            free = shutil.disk_usage(folder).free
        except OSError as error:
            raise ValueError(f"cache_dir={folder}: covariances need a folder that can be written ({error})") from error
        if free < num_bytes:
            raise ValueError(
                f"cache_dir={folder}: covariances take {num_bytes / 1e9:.1f} GB for as long as the run lasts, and "
                f"{free / 1e9:.1f} GB are free; choose another folder, or compensation=bias"
            )
        self._layers: list[LayerStatistics] = []

    def append(self, layer: LayerStatistics) -> None:
        """The next layer: its co-moments to disk, the rest stays in memory."""
        self._layers.append(replace(layer, attention=self._store(layer.attention), mlp=self._store(layer.mlp)))

    def __iter__(self) -> Iterator[LayerStatistics]:
        self._file.seek(0)
        for layer in self._layers:
            yield replace(layer, attention=self._restore(layer.attention), mlp=self._restore(layer.mlp))

    def _store(self, known: Statistics) -> Statistics:
        assert known.parts is not None
        for part in known.parts:
            assert part.comoment_II is not None
            self._file.write(part.comoment_II.cpu().numpy().data)
        fitting, held_out = known.parts
        return replace(known, parts=(replace(fitting, comoment_II=None), replace(held_out, comoment_II=None)))

    def _restore(self, known: Statistics) -> Statistics:
        assert known.parts is not None
        fitting, held_out = known.parts
        return replace(known, parts=(self._with_comoments(fitting), self._with_comoments(held_out)))

    def _with_comoments(self, part: Moments) -> Moments:
        array_II = numpy.empty((len(part.mean_I), len(part.mean_I)), dtype=numpy.float32)
        self._file.readinto(array_II.data)
        return replace(part, comoment_II=torch.from_numpy(array_II).to(part.mean_I.device))


def collect_covariances(adapter: ModelAdapter, tokens_NT: Tensor, batch_size: int, folder: Path) -> StatisticsOnDisk:
    """Statistics with covariances of every layer on dense inputs: each layer runs once, one layer's are in memory.

    Raises:
        ValueError: activations are not finite, or `folder` has no room.
    """
    widths = [block.output.in_features for i in range(len(adapter.layers)) for block in adapter.blocks(i)]
    kept = StatisticsOnDisk(folder, sum(2 * 4 * width**2 for width in widths))
    for _, layer in collect_layerwise(adapter, tokens_NT, batch_size, covariance=True, layers_change=False):
        kept.append(layer)
        del layer  # or it would be held while the next one is collected
    return kept
