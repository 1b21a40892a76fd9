"""Collect statistics of each layer, and yield them while the layer is in memory.

Every fifth calibration window is held out. The held-out windows are used to test compensations,
which change output projections to make up for removed units (heads, neurons or experts). With
structure=search, these windows are also used to measure the effect of pruning a single block, which
is the attention or the MLP of a layer. The tokens of held-out windows are called held-out tokens.
The tokens of all other windows are called fitting tokens. A co-moment of two channels is their
covariance times the number of tokens.

Legend: N: windows · T: tokens in a window.
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
    """The calibration windows, and the statistics of every layer of the dense model.

    The covariances of all layers together are too large to store. So the covariances of a layer are
    computed when the windows go through this layer, and are freed before the next layer runs. For
    each stage of a run that needs covariances, the windows go through the model again.
    """

    model: PlacedModel
    # calibration windows, whose mask is true for the tokens that statistics are computed from;
    # empty if no windows are needed
    windows: Batch
    batch_size: int  # number of windows in a forward pass
    # statistics of each layer, without covariances; empty if no statistics are needed
    layers: list[LayerStatistics]
    # for each window, the index of the calibration text from which the window was cut; None if
    # there is only one text
    text_N: Tensor | None = None
    # Mask of the tokens in answers, which is true for all tokens of texts without answers. In texts
    # with answers, structure=search measures the effect of pruning on the predictions of these
    # tokens. None has the same effect as a mask that is true for all tokens.
    judged_NT: Tensor | None = None

    def observe(
        self, work: WorkFolder = NOT_KEPT, gradients: bool = False
    ) -> list[LayerStatistics]:
        """Run the model once on each window, and collect the statistics without covariances.

        work: the working directory, from which an interrupted calibration resumes if the layers are
            read from files one after another. A model in memory runs all layers in one forward
            pass, so its calibration cannot resume.
        gradients: whether to add to the statistics the first-order effect that removing each unit
            (a KV head with its query heads, a neuron, or an expert) has on the loss. To compute
            this effect, another forward pass and a backward pass are run on each window. The whole
            model must be on one device.

        Raises:
            ValueError: activations or gradients are not finite (the message names the first block
                with such values), the disk is too small for hidden states, or `gradients` is true
                and the weights cannot have gradients.
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
        """Yield the index and the statistics of each layer while the layer is in memory.

        The statistics are None if there are no calibration windows.

        stage: the name of the pass, for the progress bar.
        covariance: whether to run the windows through the layers and collect co-moments. If false,
            the statistics in `layers` are yielded.
        work: the working directory, from which an interrupted pass over the layers resumes.
        changing: whether the caller changes the weights of the layers.
        separate_held_out: whether to collect separate co-moments of fitting and of held-out tokens,
            in `Statistics.parts`. A compensation needs separate co-moments. Scores need only the
            co-moments of all tokens together, which take half as much memory.

        Raises:
            ValueError: activations are not finite (the message names their block), or the disk is
                too small for hidden states.
        """
        walk = Walk(self.model, f"{stage}, layer by layer", work, changing)
        return self.along(walk, covariance, separate_held_out)

    def along(self, walk: Walk, covariance: bool, separate_held_out: bool = True) -> Visits:
        """Do the same as `visit` with the caller's own pass over the layers.

        During this pass, the caller may run the layers on other hidden states, too.

        walk: the pass over the layers, which the caller has created.
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
        """Yield the index and the statistics of each layer, while the caller changes the layers.

        The caller changes each layer while the layer is in memory. The next layer then gets the
        outputs of the changed layer as its inputs.

        covariance: whether to collect co-moments, separately for fitting and held-out tokens.
        """
        walk = Walk(self.model, "prune, layer by layer", work, changing=True)
        streams = self._enter(walk, separate_held_out=covariance)
        for i in walk:
            yield i, _observe(self.model, i, streams, covariance, advance=False)
            for stream in streams:
                stream.advance(i, self.model.layers[i])

    def _enter(self, walk: Walk, separate_held_out: bool) -> list[Stream]:
        """Return one or two streams with the hidden states of this process's windows.

        A stream begins with the hidden states before the first layer. If there are two streams, the
        first has the fitting windows, and the second has the held-out windows.
        """
        if not separate_held_out:
            return [walk.enter("windows", self._batches(self.windows))]
        fitting, held_out = split_windows(self.windows)
        return [
            walk.enter("fitting", self._batches(fitting)),
            walk.enter("held out", self._batches(held_out)),
        ]

    def _batches(self, windows: Batch) -> list[Batch]:
        """Return the windows that this process runs, in batches. The list may be empty."""
        share = torch.tensor(ranks.own_share(range(len(windows))), dtype=torch.long)
        return windows[share].split(self.batch_size)


# This function is decorated with no_grad instead of the generators that call it, because a
# decorated generator would keep the yielded covariances in memory.
@torch.no_grad()
def _observe(
    model: PlacedModel, i: int, streams: Sequence[Stream], covariance: bool, advance: bool = True
) -> LayerStatistics:
    """Run layer i on the streams of hidden states, and return the statistics of the layer.

    If there are two streams, the second has the held-out windows, and `Statistics.parts` has the
    separate statistics of both streams.

    advance: whether to replace the hidden states of the streams with the outputs of the layer.
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
    # Return freed memory to the operating system. The caller may need this memory to factorise
    # covariances.
    give_back_freed()
    return layer_statistics(*recorders)
