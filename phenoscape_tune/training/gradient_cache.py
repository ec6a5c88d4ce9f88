"""Contrastive batches larger than memory: the loss sees the whole batch, the network a micro-batch at a time.

GradCache (Gao et al., arXiv 2101.06983, section 3): forward every micro-batch without a graph, keeping projections and
random state; take the loss of the whole batch and its gradient at the projections; forward each micro-batch again with
the same random state and back-propagate that gradient. Costs one more forward pass, and is exact but for layers that
couple the images of a batch: batch norm's statistics are those of a micro-batch.
"""

from __future__ import annotations

import gc
import logging
import os
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from phenoscape_tune import ranks
from phenoscape_tune.config import TrainConfig
from phenoscape_tune.nt_xent import nt_xent
from phenoscape_tune.training.forward_state import ForwardState, RunningStatistics, random_state, set_random_state
from phenoscape_tune.training.memory import OutOfMemory, is_out_of_memory

log = logging.getLogger(__name__)

Autocast = Callable[[], AbstractContextManager[object]]

SMALLEST = 2  # images: batch norm in the projection head needs more than one
OOM_ABOVE = "PHENOSCAPE_TUNE_OOM_ABOVE"


class GradientStep:
    """Called with the views of a batch, puts the gradient of their contrastive loss into an encoder's parameters.

    Args:
        encoder: images (n, C, S, S) to features (n, D) and projections (n, d).
        config: its batch_size, accumulate_grad_batches, micro_batch_size and temperature are read. The loss sees
            batch_size·accumulate_grad_batches images of this rank at once. `auto` starts with batch_size of them and,
            where memory runs out, halves what goes through the network at once for all later steps; the batch stays as
            it is. In a process group every rank would have to halve: there memory that runs out is only told.
        scaler: scales the loss for float16 gradients; the parameters' gradients are then scaled too, until the
            optimiser's step.
        micro_batch: images at once that `auto` starts with, where that is known.

    For tests of what happens out of memory, the environment variable PHENOSCAPE_TUNE_OOM_ABOVE=<images> makes each
    forward pass of more than two views of so many images raise torch.OutOfMemoryError.
    """

    def __init__(
        self,
        encoder: nn.Module,
        config: TrainConfig,
        scaler: torch.amp.GradScaler | None = None,
        micro_batch: int | None = None,
    ) -> None:
        self.encoder, self.scaler = encoder, scaler
        self.network = _on_all_ranks(encoder) if ranks.in_group() else encoder
        self.temperature, self.batch_size = config.temperature, config.step_images
        self.automatic = config.micro_batch_size == "auto"
        start = config.batch_size if micro_batch is None else micro_batch
        size = start if config.micro_batch_size == "auto" else config.micro_batch_size
        self.micro_batch = min(size, self.batch_size)
        self._config = config
        self._recomputes = config.gradient_checkpointing
        self._compiled = config.compile
        # Module.zero_grad looks for them in each step, which takes a host longer than to forget them.
        self._parameters = list(encoder.parameters())
        self._fits = False  # whether a step with this micro-batch has gone well
        if self._compiled:
            encoder.compile()
        if os.environ.get(OOM_ABOVE):
            network = getattr(encoder, "backbone", encoder)
            network.register_forward_pre_hook(_pretend_memory_ends_above(int(os.environ[OOM_ABOVE])))

    @property
    def rows(self) -> int:
        """Views that may go through the network at once: two of each image of a micro-batch."""
        return 2 * self.micro_batch

    def __call__(self, views: Tensor, autocast: Autocast) -> Tensor:
        """The loss of views (2B, C, S, S), detached; the gradients take the place of earlier ones.

        Rows i and i + B are a positive pair; `autocast` is as in `backpropagate`. Raises OutOfMemory where memory does
        not suffice for `micro_batch` images, and they may not or cannot be halved.
        """
        while True:
            # A step that fails half-way leaves no trace, so that a resumed run, which fails anew, equals this one. Once
            # a size has gone well that is not worth a copy a step.
            before = None if self._fits else ForwardState(self.encoder, views.device)
            self._forget_gradients()
            try:
                loss = backpropagate(
                    self.network,
                    views,
                    self.temperature,
                    self.micro_batch,
                    autocast,
                    self._scale_loss,
                    self._recomputes,
                )
            except Exception as error:
                short = is_out_of_memory(error)
                if not short and not (self._compiled and not self._fits):
                    raise
                reason = _told(error)
            else:
                self._fits = True
                return loss
            if short:
                self._halve(reason)
            else:
                self._go_on_uncompiled(reason)
            if before is not None:
                before.restore()

    def _forget_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def _scale_loss(self, loss: Tensor) -> Tensor:
        return loss if self.scaler is None else self.scaler.scale(loss)

    def _go_on_uncompiled(self, reason: str) -> None:
        log.warning("compile: torch.compile failed (%s): the run goes on without it", reason)
        self._compiled = False
        self.encoder._compiled_call_impl = None

    def _halve(self, reason: str) -> None:
        self._forget_gradients()
        _free_memory()
        smaller = self.micro_batch // 2
        if not self.automatic or smaller < SMALLEST or ranks.in_group():
            raise self._out_of_memory(reason)
        log.warning(
            "out of memory: from here on %d images go through the network at once instead of %d; batch_size %d is "
            "unchanged, batch norm's statistics are now of the micro-batch",
            *(smaller, self.micro_batch, self.batch_size),
        )
        self.micro_batch, self._fits = smaller, False

    def _out_of_memory(self, reason: str) -> OutOfMemory:
        return OutOfMemory(
            f"out of memory with batch_size {self.batch_size} and {self.micro_batch} images at a time "
            f"(micro-batch); try {', '.join(self._remedies())} ({reason})"
        )

    def _remedies(self) -> list[str]:
        """The training guide's remedies, with what they come to for this run; those that keep the batch come first."""
        config, half = self._config, self._config.batch_size // 2
        remedies = []
        if self.micro_batch // 2 >= SMALLEST:
            remedies.append(f"micro_batch_size={self.micro_batch // 2}")
        if half >= SMALLEST:
            twice = 2 * config.accumulate_grad_batches
            remedies.append(f"batch_size={half} with accumulate_grad_batches={twice} (the loss sees as many)")
        if config.precision == 32:
            remedies.append("precision=auto")
        if not config.gradient_checkpointing:
            remedies.append("gradient_checkpointing=true")
        if half >= SMALLEST:
            remedies.append(f"batch_size={half}")
        # Memory goes with the area: seven tenths of the side are half of it.
        return [*remedies, f"input_size={max(8, round(0.7 * config.input_size / 8) * 8)} or a smaller backbone"]

    @contextmanager
    def naming_out_of_memory(self) -> Iterator[None]:
        """Within, memory that runs out outside of a step (views, optimizer, evaluation) is raised as OutOfMemory."""
        try:
            yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            told = self._out_of_memory(_told(error))
            _free_memory()
            raise told from None


def backpropagate(
    encoder: nn.Module,
    views: Tensor,
    temperature: float,
    micro_batch: int,
    autocast: Autocast,
    scale: Callable[[Tensor], Tensor] = lambda loss: loss,
    recomputes: bool = False,
) -> Tensor:
    """Add the gradient of the whole batch's NT-Xent to the encoder's parameters; returns the loss, detached.

    Args:
        encoder: images (n, C, S, S) to features (n, D) and projections (n, d).
        views: (2B, C, S, S), view 1 of B images, then view 2.
        temperature: of `nt_xent`, which also gathers the other ranks' projections, once.
        micro_batch: images whose two views may go through the network at once; from B on, all do.
        autocast: makes the context of a forward pass; asked for anew for each, because weights that autocast caches
            without a graph would be of no use to the next.
        scale: multiplies the loss before its gradient is taken; the loss that is returned is the unscaled one.
        recomputes: whether layers are checkpointed, so that the backward pass runs them again.

    Random layers draw the same numbers in both passes. Batch norm's running statistics take one step towards the mean
    of the micro-batches' statistics; what the second pass or the backward pass runs again adds nothing to them.
    """
    chunks = split_rows(len(views) // 2, micro_batch)
    if len(chunks) == 1:
        with autocast():
            _, z = encoder(views)  # (2B, d)
        loss = nt_xent(z, temperature)
        with RunningStatistics(encoder).unmoved() if recomputes else nullcontext():
            scale(loss).backward()
        return loss.detach()
    states, parts, statistics = [], [], RunningStatistics(encoder)
    for rows in chunks:
        states.append(random_state(views.device))
        with statistics.unmoved():
            with torch.no_grad(), autocast():
                parts.append(encoder(_dense(views[rows]))[1])
            statistics.add_part()
    statistics.move()
    z = parts[0].new_empty(len(views), parts[0].shape[1])  # (2B, d)
    for rows, part in zip(chunks, parts, strict=True):
        z[rows] = part
    loss = nt_xent(z.requires_grad_(), temperature)
    (gradient,) = torch.autograd.grad(scale(loss), z)  # (2B, d)
    for number, (rows, state) in enumerate(zip(chunks, states, strict=True), start=1):
        set_random_state(state, views.device)
        # The ranks exchange gradients once, with the last part.
        apart = encoder.no_sync() if isinstance(encoder, DistributedDataParallel) and number < len(chunks) else None
        with apart or nullcontext(), statistics.unmoved():
            with autocast():
                _, part = encoder(_dense(views[rows]))
            part.backward(gradient[rows])
    return loss.detach()


def _dense(part: Tensor) -> Tensor:
    # Every n-th row has other strides: a compiled network would be compiled anew.
    return part if part.is_contiguous() or part.is_contiguous(memory_format=torch.channels_last) else part.clone()


def _on_all_ranks(encoder: nn.Module) -> DistributedDataParallel:
    with warnings.catch_warnings():
        # torch 2.15 renames the key; the new name is not known to 2.11.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        # Running statistics are averaged once an epoch, not replaced by the first rank's at every step.
        return DistributedDataParallel(encoder, broadcast_buffers=False)


def split_rows(batch: int, micro_batch: int) -> list[slice]:
    """The rows of 2·batch views that go through the network together, at most 2·micro_batch each, sizes balanced.

    One part where everything fits; else neighbours of view 1, then of view 2 every n-th. So two views of an image are
    never in one part, and few images of one part of view 1 are together in one of view 2: where positives share batch
    norm's statistics, these give them away without anything learned (MoCo, arXiv 1911.05722, section 3.3).
    """
    if micro_batch >= batch:
        return [slice(0, 2 * batch)]
    n = -(-batch // (2 * micro_batch))  # parts a view, rounded up
    first = [slice(batch * k // n, batch * (k + 1) // n) for k in range(n)]
    return first + [slice(batch + k, 2 * batch, n) for k in range(n)]


def _told(error: BaseException) -> str:
    """The first line of an exception's text; lets go of the tensors that its traceback holds."""
    traceback.clear_frames(error.__traceback__)
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:200]


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _pretend_memory_ends_above(images: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def check(network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs[0]) > 2 * images:
            raise torch.OutOfMemoryError(f"{OOM_ABOVE}={images}: {len(inputs[0])} views are too many")

    return check
