"""Calibrating a model: collecting the statistics of each layer, and giving them out while the layer is present.

Legend: N windows · T tokens a window.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flap.data import split_windows
from flap.data.counted import unmarked
from flap.method.calibration.recorder import LayerRecorder, layer_statistics
from flap.method.calibration.statistics import STATISTICS, LayerStatistics
from flap.models import PlacedModel, Stream, Walk
from flap.models.devices import give_back_freed
from flap.storage import NOT_KEPT, Notes, WorkFolder, ranks

Visits = Iterator[tuple[int, LayerStatistics | None]]


@dataclass(frozen=True)
class Calibration:
    """The calibration windows and the statistics of every layer of a model on dense inputs.

    Covariances are too large to store: they are computed while a layer is visited, and each further use takes another
    walk with the windows.
    """

    model: PlacedModel
    tokens_NT: Tensor  # the windows, with marks (`flap.data.counted`); none if nothing needs any
    batch_size: int  # windows at a time
    layers: list[LayerStatistics]  # without covariances; empty if nothing needs them
    text_N: Tensor | None = None  # the number of the text of each window; None: all are from one
    counted: str = "all"  # tokens in statistics: all, or those that are not marked

    def observe(self, work: WorkFolder = NOT_KEPT) -> list[LayerStatistics]:
        """Return the statistics of every layer, without covariances. Each window is run once. work: resume from it.

        Raises:
            ValueError: activations are not finite (names the first such layer), or the disk has no room for them.
        """
        model, work = (
            self.model,
            self.model.if_streamed(work),
        )  # in memory one pass does for all layers
        recorders = [LayerRecorder(model.adapter, i) for i in range(len(model.layers))]
        notes = Notes(STATISTICS, work)
        for i in model.observe(self._own(self.tokens_NT), recorders, work):
            notes.write(i, [layer_statistics(recorders[i])])
        return [notes.read(i)[0] for i in range(len(recorders))]

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
        """Yield what `visit` yields, in a walk of the caller, which may have further streams."""
        if not covariance:
            for i in walk:
                yield i, self.layers[i] if self.layers else None
            return
        streams = self._enter(walk, separate_held_out)
        for i in walk:
            yield i, _observe(self.model, i, streams, covariance)

    def in_sequence(self, covariance: bool, work: WorkFolder = NOT_KEPT) -> Visits:
        """As `visit`, but each layer's inputs are the outputs of the earlier layers as the caller has changed them."""
        walk = Walk(self.model, "prune, layer by layer", work, changing=True)
        streams = self._enter(walk, separate_held_out=covariance)
        for i in walk:
            yield i, _observe(self.model, i, streams, covariance, advance=False)
            for stream in streams:
                stream.advance(i, self.model.layers[i])

    def _enter(self, walk: Walk, separate_held_out: bool) -> list[Stream]:
        """Enter this process's windows into a walk, as one stream or as fitting and held-out ones."""
        if not separate_held_out:
            return [walk.enter("windows", self._own(self.tokens_NT))]
        fitting_NT, held_out_NT = split_windows(self.tokens_NT)
        return [
            walk.enter("fitting", self._own(fitting_NT)),
            walk.enter("held out", self._own(held_out_NT)),
        ]

    def _own(self, tokens_NT: Tensor) -> list[Tensor]:
        """Return the share of this process of some windows, in batches; it may have none."""
        tokens_NT = tokens_NT if self.counted == "answers" else unmarked(tokens_NT)
        own = torch.tensor(ranks.own_share(range(len(tokens_NT))), dtype=torch.long)
        return [batch_NT for batch_NT in tokens_NT[own].split(self.batch_size) if len(batch_NT)]


@torch.no_grad()  # here, not at the generators: there it would keep the yielded covariances in memory
def _observe(
    model: PlacedModel, i: int, streams: Sequence[Stream], covariance: bool, advance: bool = True
) -> LayerStatistics:
    """Run layer i over the streams and return its statistics.

    The co-moments of a second stream, of the held-out windows, are not added to those of the first.
    """
    recorders = []
    for stream in streams:
        with LayerRecorder(model.adapter, i, covariance) as recorder:
            if advance:
                stream.advance(i, model.layers[i])
            else:
                for _ in stream.outputs(i, model.layers[i]):
                    pass
        recorders.append(recorder)
    give_back_freed()  # what running the layer has left, before its covariances are factorised
    return layer_statistics(*recorders)
