"""A model in files, of which only the config is read so far, and how its weights are read."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from flap.models.architecture import auto_class
from flap.models.devices import free_bytes
from flap.models.from_pretrained import read_model


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model: all that a placement needs to open it. In a dry run the weights may not be there."""

    path: str  # the directory, or a hub id
    config: PreTrainedConfig
    device: torch.device  # runs the model; in a dry run it may be one that this machine does not have
    requested_dtype: str = "auto"  # the name of a type of torch; auto: that of the files
    trust_remote_code: bool = False
    offload: Path = Path()  # the folder for weights that placement=auto offloads to disk
    keep_dense: bool = False  # the same weights will be opened again, and may stay in memory
    name: str = ""  # model.path, as the user gave it; empty: a checkpoint that this program has written

    @property
    def dtype(self) -> torch.dtype:
        dtype = self.config.dtype if self.requested_dtype == "auto" else getattr(torch, self.requested_dtype)
        return dtype if isinstance(dtype, torch.dtype) else torch.float32

    def skeleton(self) -> PreTrainedModel:
        with torch.device("meta"):
            model = auto_class(self.config).from_config(self.config, trust_remote_code=self.trust_remote_code)
        return cast(PreTrainedModel, model)

    @cached_property
    def num_bytes(self) -> int:
        return int(sum(parameter.numel() for parameter in self.skeleton().parameters()) * self.dtype.itemsize)

    @cached_property
    def kept_dense(self) -> PreTrainedModel | None:
        """The dense model, kept in memory to be used again; None if nobody will, or if there is too little room.

        Needed is three times its size: for the dense model, a pruned copy, and the working memory of a run.
        """
        return self.on_device() if self.keep_dense and 3 * self.num_bytes <= free_bytes(self.device) else None

    def on_device(self) -> PreTrainedModel:
        """Load the whole model on its device, without a copy of it on the host."""
        return self.read(**({} if self.device.type == "cpu" else {"device_map": {"": self.device}}))

    def read(self, **placing: Any) -> PreTrainedModel:
        """Load the weights. placing: options of transformers' `from_pretrained` that say where to."""
        options = {"dtype": self.requested_dtype, "trust_remote_code": self.trust_remote_code}
        try:
            return read_model(self.path, **options, **placing)
        except ValueError as error:
            raise ValueError(f"model.path={error}" if self.name else str(error)) from error
