"""Visit the decoder layers of a model one after the other (`Walk`).

A walk carries any number of streams (`Stream`) from layer to layer. A stream consists of the hidden
states of some windows. Each layer replaces these hidden states with its outputs. The placement of a
model says where its weights are, for example on one device or on disk.

Legend: N: windows (token sequences) · T: tokens per window · P: positions of a batch · D: hidden
size.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain

from torch import Tensor, nn

from flap.data import Batch
from flap.models.forward import Call, enter
from flap.models.hidden_files import HiddenFiles
from flap.models.placed_model import PlacedModel, Recording, unrecorded
from flap.runtime import ranks
from flap.runtime.progress import progress
from flap.storage import NOT_KEPT, WorkFolder
from flap.storage.work_folder import notes_are_whole

Shape = tuple[int, ...]  # the shape of a batch of windows


@dataclass(eq=False)
class Stream:
    """The hidden states of windows at the input of one layer, in batches, on the host.

    The outputs of a layer never overwrite its inputs. Therefore, a copy of a stream (`fork`) can
    share the hidden states of the stream, and needs no memory until the copy advances to the next
    layer.
    """

    walk: "Walk"
    batches: list[Tensor]
    calls: list[list[Call]]  # for each batch, the arguments of every layer
    file: str | None  # name of the file with the hidden states; None if they are in memory
    # for each batch, mask_P of the positions to record; None if all positions are recorded
    masks: Sequence[Tensor | None]

    def outputs(
        self, index: int, layer: nn.Module, recording: Recording = unrecorded
    ) -> Iterator[Tensor]:
        """Yield the output of the layer for each batch. The stream keeps its hidden states.

        recording: called with the mask of each batch. The context manager that it returns is open
            while the layer runs.
        """
        for batch_NTD, calls, mask_P in zip(self.batches, self.calls, self.masks, strict=True):
            with recording(mask_P):
                # clone the inputs, because a clone has the usual memory alignment, so that torch
                # uses the same kernels whether the inputs are memory-mapped or not
                output_NTD = calls[index](layer, batch_NTD.clone())
            yield output_NTD

    def advance(self, index: int, layer: nn.Module, recording: Recording = unrecorded) -> None:
        """Run the layer, and use its output for each batch as the new hidden states.

        The old hidden states are not overwritten. For `recording`, see `outputs`.
        """
        files = self.walk.files
        buffers = None
        if files is not None and self.batches:
            buffers, self.file = files.new(
                [tuple(one_NTD.shape) for one_NTD in self.batches], self.batches[0].dtype
            )
        for b, output_NTD in enumerate(self.outputs(index, layer, recording)):
            self.batches[b] = output_NTD.cpu() if buffers is None else buffers[b].copy_(output_NTD)

    def fork(self) -> "Stream":
        return Stream(self.walk, list(self.batches), self.calls, self.file, self.masks)


class Walk:
    """One visit to every decoder layer of a model at any placement (`PlacedModel`).

    Iteration yields the index of each layer while the weights of the layer are on the device. If
    there is a working directory, hidden states are in memory-mapped files, and a journal contains
    the number of finished layers (`HiddenFiles`). A killed walk then resumes after the last layer
    in the journal. The files stay in the page cache while the host has free memory.

    streams: a dict from names to the streams that this walk carries.

    Raises:
        ValueError: the disk is too small for the hidden states.
    """

    def __init__(
        self,
        model: PlacedModel,
        stage: str,
        work: WorkFolder = NOT_KEPT,
        changing: bool = False,
        single_process: bool = False,
    ) -> None:
        """Start a walk, or resume it from its working directory.

        All processes visit the same layer at the same time, each with streams of its own windows.

        changing: whether the caller changes the layers. If so, a resumed walk discards the changes
            to the layers that the interrupted walk has not finished.
        single_process: whether only this process visits the layers. If so, it does not wait for
            other processes.
        """
        if changing:
            # a walk that changes a model in memory cannot resume, because the changes are lost
            work = model.if_streamed(work)
        self.model = model
        self.stage = stage
        self.processes = ranks.alone if single_process else nullcontext
        self.streams: dict[str, Stream] = {}
        with self.processes():
            self.files = None if work.path is None else HiddenFiles(ranks.own_folder(work.path))
            done = [0] if self.files is None else ranks.gather(self.files.layers_done)
            # if the processes were killed while they updated their journals, the journals may
            # contain different numbers of finished layers; the walk then starts at the first layer
            self.layers_done = done[0] if len(set(done)) == 1 else 0
            if self.layers_done and work.path is not None:
                whole = ranks.on_first(partial(notes_are_whole, work.path, self.layers_done))
                if not whole:
                    self.layers_done = 0
        if changing:
            model.resume_changes(self.layers_done)

    def __iter__(self) -> Iterator[int]:
        self.model.passes += 1
        for i in progress(range(self.layers_done, len(self.model.layers)), self.stage):
            with self.model.layer(i):
                yield i
            self.layers_done = i + 1
            if self.files is not None:
                files = {
                    name: stream.file
                    for name, stream in self.streams.items()
                    if stream.file is not None
                }
                with self.processes():
                    if ranks.on_first(self.files.is_due):
                        self.files.record(self.layers_done, files, ranks.barrier)
                self.files.remove_others(files)
        # Streams and walk refer to each other. Break this cycle, which would keep the files mapped
        # until garbage collection.
        self.streams = {}

    def enter(self, name: str, batches: Sequence[Batch]) -> Stream:
        """Create a stream of the windows in `batches` at the input of the first layer.

        In a resumed walk, the stream is at the input of the layer at which the walk resumes.
        """
        if not batches:  # if there are fewer batches than processes, some processes have none
            self.streams[name] = Stream(self, [], [], None, [])
            return self.streams[name]
        batches_NT = [batch.tokens_NT for batch in batches]
        resumed = self.files is not None and self.layers_done > 0
        windows = batches_NT
        # a resumed walk reads the hidden states from files, and needs only the arguments of the
        # layers, for which one batch of each shape is enough
        if resumed:
            windows = list({batch_NT.shape: batch_NT for batch_NT in batches_NT}.values())
        # the arguments of the layers; the key is the shape of a batch, or the index of a batch if
        # the arguments depend on its tokens
        calls: dict[Shape | int, list[Call]] = {}
        with self.model.ends():
            hidden = self._hidden(windows, calls)
            first_NTD = next(hidden)
            shapes = [(*batch_NT.shape, first_NTD.shape[-1]) for batch_NT in batches_NT]
            if self.files is None:
                states = [batch_NTD.cpu() for batch_NTD in chain([first_NTD], hidden)]
                file = None
            elif resumed:
                file = self.files.recorded[name]
                states = self.files.mapped(file, shapes, first_NTD.dtype)
                for _ in hidden:
                    pass
            else:
                states, file = self.files.new(shapes, first_NTD.dtype)
                for state_NTD, batch_NTD in zip(states, chain([first_NTD], hidden), strict=True):
                    state_NTD.copy_(batch_NTD)
        of_batches = [
            calls.get(b) or calls[batch_NT.shape] for b, batch_NT in enumerate(batches_NT)
        ]
        masks = [batch.mask_P for batch in batches]
        self.streams[name] = Stream(self, states, of_batches, file, masks)
        return self.streams[name]

    def replace(self, before: Iterable[str], after: Mapping[str, Stream]) -> None:
        """Remove streams from the walk, and add new streams, such as forks of removed streams.

        before: the names of the streams to remove.
        after: a dict from names to the streams to add.
        """
        for name in before:
            del self.streams[name]
        self.streams |= after

    def restored(self, name: str, like: Stream) -> Stream:
        """Return the stream with this name, as an interrupted walk has left it.

        Its hidden states are in the file that the walk's journal (`HiddenFiles`) names.

        like: a stream whose batches have the same shapes as the batches of the returned stream.
        """
        assert self.files is not None
        file = self.files.recorded[name]
        shapes = [tuple(batch_NTD.shape) for batch_NTD in like.batches]
        states = self.files.mapped(file, shapes, like.batches[0].dtype)
        self.streams[name] = Stream(self, states, like.calls, file, like.masks)
        return self.streams[name]

    def _hidden(
        self, windows: Iterable[Tensor], calls: dict[Shape | int, list[Call]]
    ) -> Iterator[Tensor]:
        """Yield the hidden states of each batch at the input of the first layer.

        Also store the arguments of all layers in `calls`.
        """
        for b, batch_NT in enumerate(windows):
            batch_NTD, of_layers = enter(self.model.adapter, batch_NT.to(self.model.device))
            calls.setdefault(b if self.model.adapter.reads_tokens else batch_NT.shape, of_layers)
            yield batch_NTD
