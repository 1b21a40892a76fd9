"""What a run will take: an estimate from config and shapes, before a weight or a text is read.

Images are read, because only the model's processor knows how many tokens an image is.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flap.calibration.images import FIELD, Images, check_sees_images, read_images
from flap.calibration.read_windows import check_context
from flap.config import FlapConfig
from flap.data import SELF, parse
from flap.estimation import (
    Estimate,
    Place,
    Room,
    Texts,
    Training,
    Work,
    check_fits,
    estimate_run,
    lines,
)
from flap.evaluation.perplexity import LOGITS_BYTES, Perplexity
from flap.models import Architecture, Given, ModelAdapter, Source, adapt, find_architecture
from flap.models.devices import ROOM_TO_RUN
from flap.models.families import sees_images
from flap.models.locate import processor_files
from flap.models.quantised import is_quantised
from flap.models.shapes import Shapes, shapes_of
from flap.recovery import HELD_OUT, Recovery, bytes_to_train, trained_parameters
from flap.runs.checks import check_budget, check_trainable
from flap.runs.choices import Choices, choose
from flap.storage import cache_root, to_json, write_text

GGUF_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 1.0625}  # of one parameter


@dataclass(frozen=True)
class Forecast:
    """The estimate of a run, and the room that this machine has for it."""

    estimate: Estimate
    shapes: Shapes
    work: Work
    place: Place
    room: Room

    @classmethod
    def of(
        cls,
        config: FlapConfig,
        choices: Choices,
        model: Architecture | Source | Given,
        adapter: ModelAdapter,
        ratio: float,
        target: Path,
        images: Images | None = None,
        left: Path | None = None,
    ) -> "Forecast":
        """Return the forecast of a run. adapter: of the model's skeleton. ratio: the share that is removed at least.

        target: the folder of the checkpoint. left: that of this run's working files.
        """
        shapes = shapes_of(adapter)
        room = Room.here(model.device, cache_root(config.cache_dir), target, left)
        place = _place(config, choices, model, shapes, room.one_disk)
        in_memory = ROOM_TO_RUN * shapes.parameters * place.itemsize <= room.device
        training = _training(choices.recovery, adapter, ratio, model)
        work = _work(config, choices, in_memory, ratio, training, images)
        return cls(estimate_run(shapes, work, place), shapes, work, place, room)

    def check(self) -> None:
        """Check that the run fits into the memory and onto the disk that are free.

        Raises:
            ValueError: it surely does not; says what it takes and what is free.
        """
        check_fits(self.estimate, self.work, self.place, self.room)

    def lines(self) -> list[str]:
        """Return the estimate as text, one line a stage; at the end, whether the run would be refused."""
        try:
            self.check()
        except ValueError as error:
            return [*lines(self.estimate, self.room), f"would be refused: {error}"]
        return lines(self.estimate, self.room)

    def save(self, path: Path) -> None:
        """Write estimate.json: all numbers of the stages, and what is free."""
        write_text(path, to_json({**asdict(self.estimate), "free_bytes": asdict(self.room)}, indent=1) + "\n")


def forecast(config: FlapConfig, run_dir: Path = Path()) -> Forecast:
    """Return what a run of this config will take. Of the model it needs the config, and for images the processor.

    What an interrupted start of this run has left is not known without its texts, and counts as used.

    Raises:
        ValueError: bad input, as far as it can be seen from that; names the field.
    """
    choices, model = choose(config), find_architecture(config.model, config.trust_remote_code)
    images = None
    if choices.need_windows:
        check_context("calibration", config.calibration.lengths, model.max_length)
        images = _images(config, model)
    adapter = adapt(model.skeleton(), choices.structure.experts)
    budget = check_budget(adapter, choices, config, model)
    if choices.recovery is not None:
        check_trainable(choices.recovery, model, adapter)
    target = Path(config.checkpoint.dir or run_dir)
    return Forecast.of(config, choices, model, adapter, budget.ratio, target, images)


def _images(config: FlapConfig, model: Architecture) -> Images | None:
    """Return the image windows, if the model's processor is there to make them."""
    folder, path = config.calibration.images, config.model.path
    check_sees_images(folder, model.config)
    if folder is None or not Path(path).is_dir() or not processor_files(path):
        return None
    return read_images(folder, model.config, path, model.max_length, config.trust_remote_code)


def _work(
    config: FlapConfig,
    choices: Choices,
    in_memory: bool,
    ratio: float,
    training: Training | None,
    images: Images | None,
) -> Work:
    texts, left_out = _texts(config, choices)
    left_out += [FIELD] if choices.need_windows and config.calibration.images and images is None else []
    calibration, longest = config.calibration, max(config.calibration.lengths)
    shortened = (
        calibration.lengths[0] / longest
    )  # windows of several lengths take what as many tokens of the longest do
    return Work(
        choices.metric,
        choices.structure,
        choices.compensation,
        math.ceil(calibration.num_samples * shortened) if choices.need_windows else 0,
        longest,
        max(1, int(calibration.batch_size * shortened)),
        0 if config.mask_only else ratio,
        choices.read_plain_statistics,
        choices.in_sequence,
        config.checkpoint.save,
        GGUF_BYTES[config.checkpoint.gguf_type] if "gguf" in config.checkpoint.formats else 0,
        texts,
        in_memory,
        _own_tokens(config, choices),
        images.tokens if images else (),
        training,
        left_out,
    )


def _own_tokens(config: FlapConfig, choices: Choices) -> int:
    """Return about how many tokens of the windows of calibration and recovery the model writes itself."""
    own, recovery = config.calibration, choices.recovery
    calibration = _own_share(own.dataset) * own.num_samples * own.lengths[0] if choices.need_windows else 0
    trained = _own_share(recovery.dataset) * recovery.tokens if recovery else 0
    return math.ceil(calibration + trained)


def _own_share(dataset: Any) -> float:
    """Return the share of a mixture that the model writes itself."""
    parts = parse(dataset, "dataset")
    return sum(part.weight for part in parts if part.dataset == SELF) / sum(part.weight for part in parts)


def _texts(config: FlapConfig, choices: Choices) -> tuple[Texts | None, list[str]]:
    """Return the texts whose perplexity is measured, and the names of the measurements that are not estimated."""
    texts, left_out = None, []
    for name, evaluator in zip(config.eval or {}, choices.evaluators, strict=True):
        if isinstance(evaluator, Perplexity) and evaluator.max_tokens is not None:
            windows = [max(1, evaluator.max_tokens // length) for length in evaluator.windows]
            tokens = sum(count * length for count, length in zip(windows, evaluator.windows, strict=True))
            count = len(evaluator.datasets)
            batch = max(evaluator.windows) * evaluator.batch_size
            texts = Texts(count * len(windows), count * tokens, batch, LOGITS_BYTES)
        else:
            left_out.append(f"eval.{name}")
    return texts, left_out


def _training(
    recovery: Recovery | None, adapter: ModelAdapter, ratio: float, model: Architecture | Source | Given
) -> Training | None:
    """Return what is trained after compression, and what it takes. adapter, model: the dense model's."""
    if recovery is None:
        return None
    return Training(
        recovery.steps,
        recovery.steps * recovery.tokens_a_step,
        HELD_OUT * recovery.seq_len,
        recovery.steps // recovery.steps_an_evaluation + 3,  # before, at the beginning, and after
        bytes_to_train(recovery, adapter, ratio, model.dtype, model.device),
        trained_parameters(recovery, adapter, ratio),
        recovery.gradient_checkpointing,
        recovery.rank is not None,
        recovery.processes,
    )


def _place(
    config: FlapConfig, choices: Choices, model: Architecture | Source | Given, shapes: Shapes, one_disk: bool
) -> Place:
    stored, loaded = getattr(model.config, "dtype", None), hasattr(model, "model")
    streams = model.placed.streams
    files = streams or (choices.structure.measures and config.use_cache)
    on_device, on_host = (math.inf, math.inf) if loaded else model.placed.limits(model.device)
    changed = is_quantised(model.config) or shapes.has_experts  # those of a layer are stacked
    as_stored = loaded or (model.dtype == stored and not changed)
    # experts are stacked, and a language model beside a vision tower has other names in the files
    links = one_disk and streams and not (shapes.has_experts or sees_images(model.config))
    size = model.dtype.itemsize
    return Place(model.device, model.placement, size, streams, as_stored, files, loaded, links, on_device, on_host)
