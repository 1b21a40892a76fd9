"""Calibrate a model: collect statistics of each layer and yield them while the layer is present.

Legend: N windows · T tokens a window.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flap.data import Batch, split_windows
from flap.method.calibration.gradients import add_effects
from flap.method.calibration.recorder import LayerRecorder, layer_statistics
from flap.method.calibration.statistics import STATISTICS, LayerStatistics
from flap.models import PlacedModel, Stream, Walk
from flap.models.devices import give_back_freed
from flap.runtime import ranks
from flap.storage import NOT_KEPT, Notes, WorkFolder

Visits = Iterator[tuple[int, LayerStatistics | None]]


@dataclass(frozen=True)
class Calibration:
    """The calibration windows and the statistics of every layer of a model on dense inputs.

    Covariances are too large to store. They are computed while a layer is visited, so each further
    use takes another walk with the windows.
    """

    model: PlacedModel
    # the mask marks the tokens that enter the statistics; empty if no choice needs windows
    windows: Batch
    batch_size: int  # windows per forward pass
    layers: list[LayerStatistics]  # without covariances; empty if nothing needs statistics
    text_N: Tensor | None = None  # the number of each window's text; None if all are from one text
    # the tokens by which trials of pruned models are judged; None if all are
    judged_NT: Tensor | None = None

    def observe(
        self, work: WorkFolder = NOT_KEPT, gradients: bool = False
    ) -> list[LayerStatistics]:
        """Collect the statistics of every layer, without covariances. Each window is run once.

        work: a streamed model resumes from this folder. For a model in memory, one forward pass
            serves all layers, so there is nothing to resume.
        gradients: also run each window forwards and backwards, for the first-order effect of each
            unit. The whole model must be on one device.

        Raises:
            ValueError: activations or gradients are not finite (names the first such layer), or the
                disk has no room for hidden states.
        """
        model = self.model
        work = model.if_streamed(work)
        recorders = [LayerRecorder(model.adapter, i) for i in range(len(model.layers))]
        recordings = [recorder.recording for recorder in recorders]
        notes = Notes(STATISTICS, work)
        for i in model.observe(self._batches(self.windows), recordings, work):
            notes.write(i, [layer_statistics(recorders[i])])
        layers = [notes.read(i)[0] for i in range(len(recorders))]
        if not gradients:
            return layers
        return add_effects(layers, model, self._batches(self.windows))

    def visit(
        self,
        stage: str,
        covariance: bool,
        work: WorkFolder = NOT_KEPT,
        changing: bool = False,
        separate_held_out: bool = True,
    ) -> Visits:
        """Yield the index and the statistics of each layer while it is present.

        The statistics are None if there are no calibration windows.

        work: an interrupted walk resumes from this folder.
        changing: the caller changes the layers.
        separate_held_out: collect the co-moments of held-out windows separately, which
            `Statistics.parts` then holds. Fits need this. Scores do not, and the co-moments of
            all windows together take half of the memory.

        Raises:
            ValueError: activations are not finite; names the block.
        """
        walk = Walk(self.model, f"{stage}, layer by layer", work, changing)
        return self.along(walk, covariance, separate_held_out)

    def along(self, walk: Walk, covariance: bool, separate_held_out: bool = True) -> Visits:
        """Yield the same as `visit`, in a walk that the caller has begun.

        The walk may have further streams.
        """
        if not covariance:
            for i in walk:
                statistics = self.layers[i] if self.layers else None
                yield i, statistics
            return

        streams = self._enter(walk, separate_held_out)
        for i in walk:
            yield i, _observe(self.model, i, streams, covariance)

    def in_sequence(self, covariance: bool, work: WorkFolder = NOT_KEPT) -> Visits:
        """Yield the same as `visit`, on the inputs that a layer has after the earlier ones changed.

        The caller changes a layer while it is present. The next layers then see its new outputs.
        """
        walk = Walk(self.model, "prune, layer by layer", work, changing=True)
        streams = self._enter(walk, separate_held_out=covariance)
        for i in walk:
            yield i, _observe(self.model, i, streams, covariance, advance=False)
            for stream in streams:
                stream.advance(i, self.model.layers[i])

    def _enter(self, walk: Walk, separate_held_out: bool) -> list[Stream]:
        """Enter the windows of this process into a walk, as one or two streams.

        If there are two, the first has the fitting windows, and the second the held-out windows.
        """
        if not separate_held_out:
            return [walk.enter("windows", self._batches(self.windows))]
        fitting, held_out = split_windows(self.windows)
        return [
            walk.enter("fitting", self._batches(fitting)),
            walk.enter("held out", self._batches(held_out)),
        ]

    def _batches(self, windows: Batch) -> list[Batch]:
        """Return this process's share of some windows, in batches. The share may be empty."""
        share = torch.tensor(ranks.own_share(range(len(windows))), dtype=torch.long)
        return windows[share].split(self.batch_size)


@torch.no_grad()  # not around the generators, which would keep the yielded covariances in memory
def _observe(
    model: PlacedModel, i: int, streams: Sequence[Stream], covariance: bool, advance: bool = True
) -> LayerStatistics:
    """Run layer i over the streams and return its statistics.

    If there is a second stream, it has the held-out windows, and its co-moments stay separate.

    advance: replace the hidden states of the streams by the outputs of the layer.
    """
    recorders = []
    for stream in streams:
        recorder = LayerRecorder(model.adapter, i, covariance)
        if advance:
            stream.advance(i, model.layers[i], recorder.recording)
        else:
            for _ in stream.outputs(i, model.layers[i], recorder.recording):
                pass
        recorders.append(recorder)
    give_back_freed()  # memory that running the layer has freed; factorising covariances needs it
    return layer_statistics(*recorders)
