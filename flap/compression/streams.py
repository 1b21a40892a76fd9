"""The calibration windows on their way through the dense and the pruned model at once.

Legend: N windows · T tokens a window · D hidden size · I input, O output channels of a projection · K some of I.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from flap.calibration import Moments, enter_windows, finite, merge, moments
from flap.models import Block, ModelAdapter


class Streams:
    """Hidden states in front of the same layer of both models, which are one up to the first layer that changes.

    They wait on the host, in batches: those to fit on, then those held out.
    """

    def __init__(self, adapter: ModelAdapter, tokens_NT: Tensor, batch_size: int) -> None:
        (fitting, held_out), self._calls = enter_windows(adapter, tokens_NT, batch_size, apart=True)
        self._num_fitting = len(fitting)
        self.dense = self.pruned = [*fitting, *held_out]

    @property
    def are_apart(self) -> bool:
        return self.pruned is not self.dense

    def part(self) -> None:
        """From here on they differ."""
        if not self.are_apart:
            self.pruned = [batch_NTD.clone() for batch_NTD in self.dense]

    def advance(self, i: int, layer: nn.Module, batches: list[Tensor]) -> None:
        """What the layer puts out takes the place of what it gets."""
        for batch_NTD in batches:
            batch_NTD.copy_(self.run(i, layer, batch_NTD))

    def targets(self, i: int, dense: nn.Module, outputs: list[Any]) -> list[Iterable[Tensor]]:
        """What each of these projections should put out, batch by batch: what it does in the dense layer.

        To be walked over in turn. The first walk takes the dense stream through the layer; what is walked over after it
        waits on the host.
        """
        put_out: dict[nn.Module, Tensor] = {}
        for output in outputs:  # of a copy, which nothing else runs: the hooks may stay
            output.register_forward_hook(lambda module, _, y_NTO: put_out.update({module: y_NTO}))
        later: list[list[Tensor]] = [[] for _ in outputs[1:]]

        def first() -> Iterator[Tensor]:
            for batch_NTD in self.dense:
                batch_NTD.copy_(self.run(i, dense, batch_NTD))
                for waiting, output in zip(later, outputs[1:], strict=True):
                    waiting.append(put_out[output].cpu())
                yield put_out[outputs[0]]

        return [first(), *later]

    def run(self, i: int, layer: nn.Module, batch_NTD: Tensor) -> Tensor:
        """What a layer in this place puts out."""
        return self._calls[len(batch_NTD)][i](layer, batch_NTD)

    def up_to(self, output: nn.Module, i: int, layer: nn.Module, batch_NTD: Tensor) -> tuple[Tensor, Tensor]:
        """What flows into and out of this projection; the layer is run no further."""
        hook = output.register_forward_hook(_stop)
        try:
            self.run(i, layer, batch_NTD)
        except _Reached as reached:
            x_NTI, y_NTO = reached.args
            return x_NTI, y_NTO
        finally:
            hook.remove()
        raise AssertionError(f"layer {i} does not run its output projection")

    def residuals(
        self, i: int, layer: nn.Module, block: Block, inputs_K: Tensor, targets: Iterable[Tensor]
    ) -> tuple[Moments, Moments]:
        """Moments of x_K and target_O - y_O side by side in the pruned stream, of the tokens to fit on and the others.

        Raises: ValueError: activations are not finite.
        """
        parts: dict[bool, Moments] = {}
        for b, (batch_NTD, target_NTO) in enumerate(zip(self.pruned, targets, strict=True)):
            x_NTI, y_NTO = self.up_to(block.output, i, layer, batch_NTD)
            residual_NTO = target_NTO.to(y_NTO.device).float() - y_NTO.float()
            joint = torch.cat([x_NTI[..., inputs_K.to(x_NTI.device)].float(), residual_NTO], dim=-1)
            seen, held_out = moments(joint, covariance=len(inputs_K) > 0), b >= self._num_fitting
            parts[held_out] = merge(parts[held_out], seen) if held_out in parts else seen
        return finite(parts[False], block.name), finite(parts[True], block.name)


class _Reached(Exception):  # noqa: N818 - no error: it ends a forward pass early
    """Carries input and output of the projection that was waited for."""


def _stop(module: nn.Module, args: tuple[Tensor, ...], y_NTO: Tensor) -> NoReturn:
    raise _Reached(args[0], y_NTO)
