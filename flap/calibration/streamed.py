"""Collect statistics with one layer in memory at a time. What is finished stays in a folder: a killed run goes on.

Legend: N windows · T tokens a window · D hidden size.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from flap.calibration.cache import read_statistics, write_statistics
from flap.calibration.collect import LayerStatistics, recording
from flap.models import StreamedModel
from flap.models.layerwise import LayerwisePass
from flap.progress import progress


@torch.no_grad()
def collect_streamed(
    model: StreamedModel, tokens_NT: Tensor, batch_size: int, folder: Path, layers_change: bool = False
) -> Iterator[tuple[int, LayerStatistics]]:
    """Yield each layer's statistics while the layer is in memory; those of an earlier start are read from `folder`.

    layers_change: what the caller does to a layer is what the next ones see, so each runs twice.

    Raises:
        ValueError: activations are not finite; names the first such layer. Or the disk has no room for them.
    """
    windows = LayerwisePass(model, tokens_NT.split(batch_size), folder)
    for i in progress(range(len(model.layers)), "calibrate, layer by layer"):
        kept = folder / f"layer-{i}.safetensors"
        with model.layer(i) as layer:
            if i < windows.layers_done:
                yield i, read_statistics(kept, model.device)[0]
                continue
            with recording(model.adapter, range(i, i + 1)) as [recorder]:
                windows.run(i, layer)
            known = recorder.finish()
            yield i, known
            if layers_change:
                windows.run(i, layer)
            write_statistics([known], kept)
            windows.note_done(i + 1)
