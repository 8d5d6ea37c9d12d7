"""Gradients of a stack of layers from its last state alone: ``Compose(..., reversible=True)``.

One node of the autograd graph stands for the whole stack. Its backward pass undoes one layer at a
time, so that the activations of one layer at most are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowkit.errors import NotInvertibleError
from flowkit.numerics.compiling import is_traced
from flowkit.numerics.types import Context, Mapped
from flowkit.transforms.base import Transform
from flowkit.transforms.container import apply_all
from flowkit.transforms.coupling import Coupling


def run_reversibly(
    layers: Sequence[Transform], direction: str, x: Tensor, context: Context
) -> Mapped:
    """Apply layers one after the other, and remember no more than both ends.

    Args:
        layers: The layers in the order in which they are applied.
        direction: The method of theirs that is called.
        x: Input of the first.
        context: Read by all, or ``None``.

    Returns:
        The last state, and the sum of the log-determinants.

    Raises:
        NotInvertibleError: If a layer holds an active dropout, and so could not be repeated.
    """
    stack = _Stack(layers, direction, x, context)
    # vmap, grad and jvp trace through the layers themselves.
    saves_graph = torch.is_grad_enabled() and not is_traced()
    inputs = (x, *stack.tensors)
    if not (saves_graph and any(t is not None and t.requires_grad for t in inputs)):
        return stack.run(x, context)
    for layer in layers:
        for part in layer.modules():
            if isinstance(part, nn.modules.dropout._DropoutNd) and part.training and part.p > 0:
                raise NotInvertibleError(
                    f"{layer.label} holds {type(part).__name__}(p={part.p}), which draws anew "
                    "when a reversible Compose repeats the layer in the backward pass; remedy: "
                    "reversible=False, p=0, or eval()"
                )
    return _Reversible.apply(stack, *inputs)


class _Stack:
    """The layers, the tensors that they read, the context first, and where these are held."""

    def __init__(
        self, layers: Sequence[Transform], direction: str, x: Tensor, context: Context
    ) -> None:
        self.layers = layers
        self.direction = direction
        places: dict[int, int] = {}
        # For every tensor held: the dict of parameters or buffers, the name there, the place in
        # ``tensors``, where what is held twice is given once.
        self.slots: list[tuple[dict[str, Any], str, int]] = [
            (held, name, places.setdefault(id(tensor), len(places) + 1))
            for layer in layers
            for module in layer.modules()
            for held in (module._parameters, module._buffers)
            for name, tensor in held.items()
            if tensor is not None
        ]
        own = {place: held[name] for held, name, place in self.slots}
        self.tensors: list[Tensor | None] = [context, *own.values()]
        self.read_by = [
            [0, *(places[id(tensor)] for tensor in (*layer.parameters(), *layer.buffers()))]
            for layer in layers
        ]
        kind = x.device.type
        # Autocast as it was in the forward pass: a repeated layer has to give the same numbers.
        # Weights that are cast here are not kept: others would then read them without gradients.
        self.autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            self.autocast = partial(torch.autocast, kind, dtype, cache_enabled=False)

    @contextmanager
    def lent(self, tensors: Sequence[Tensor | None]) -> Iterator[None]:
        """Give the layers other tensors for a while."""
        before = [held[name] for held, name, _ in self.slots]
        try:
            for held, name, place in self.slots:
                held[name] = tensors[place]
            yield
        finally:
            for (held, name, _), tensor in zip(self.slots, before, strict=True):
                held[name] = tensor

    def run(self, x: Tensor, context: Context) -> Mapped:
        """The plain pass."""
        return apply_all(self.layers, self.direction, x, context)


class _Reversible(torch.autograd.Function):
    """The whole stack as one node, a function of data, context, parameters and buffers."""

    @staticmethod
    def forward(ctx: Any, stack: _Stack, x: Tensor, *tensors: Tensor | None) -> Mapped:
        with stack.autocast():
            z, log_det = stack.run(x, tensors[0])
        ctx.stack = stack
        ctx.set_materialize_grads(False)  # noqa: FBT003
        ctx.save_for_backward(x, z, *tensors)
        return z, log_det

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        # Under create_graph=True the gradients need a graph of their own.
        graph = torch.is_grad_enabled()
        differentiate = _plainly if graph else _layer_by_layer
        with torch.inference_mode(mode=False), torch.set_grad_enabled(graph), ctx.stack.autocast():
            return None, *differentiate(ctx.stack, ctx.saved_tensors, ctx.needs_input_grad, grads)


def _plainly(
    stack: _Stack,
    saved: Sequence[Any],
    needed: Sequence[bool],
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Gradients that can be differentiated again, by way of all activations."""
    x, _, *tensors = saved
    with stack.lent(tensors):
        outputs = stack.run(x, tensors[0])
    inputs = [t for t, need in zip((x, *tensors), needed[1:], strict=True) if need]
    found = iter(_gradients(outputs, inputs, grads, create_graph=True))
    return [next(found) if need else None for need in needed[1:]]


def _layer_by_layer(
    stack: _Stack,
    saved: Sequence[Any],
    needed: Sequence[bool],
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Gradients from the last state: undo a layer, repeat it with a graph, drop the graph."""
    x, z, *tensors = saved
    _, x_needed, *tensors_needed = needed
    leaves: list[Any] = [
        None if t is None else t.detach().requires_grad_(need)
        for t, need in zip(tensors, tensors_needed, strict=True)
    ]
    wanted = [[i for i in places if tensors_needed[i]] for places in stack.read_by]
    # Nothing before the first layer with a gradient to find has to be undone.
    first = 0 if x_needed else next(i for i, places in enumerate(wanted) if places)
    sums: list[Tensor | None] = [None] * len(tensors)
    grad_z, grad_log_det = grads
    with stack.lent(leaves):
        for i in reversed(range(first, len(stack.layers))):
            step = _repeat(
                stack.layers[i],
                stack.direction,
                z,
                leaves[0],
                known=x if i == 0 else None,
                differentiate=i > first or x_needed,
            )
            inputs = [leaves[place] for place in wanted[i]]
            inputs += step.parts if step.parts[0].requires_grad else ()
            found = list(_gradients(step.outputs, inputs, (grad_z, grad_log_det)))
            for place in wanted[i]:
                sums[place] = _plus(sums[place], found.pop(0))
            if found:
                grad_z = step.join_gradients(found)
            z = step.join(*(part.detach() for part in step.parts))
            # The graph has to be gone before the next layer is undone.
            del step, inputs, found
    return [grad_z if x_needed else None, *sums]


class _Step(NamedTuple):
    """A layer's input in parts, how to join them, and what the layer makes of them."""

    parts: tuple[Tensor, ...]
    join: Callable[..., Tensor]
    outputs: tuple[Tensor, Tensor]

    def join_gradients(self, gradients: Sequence[Tensor | None]) -> Tensor | None:
        """The gradient of the input from those of its parts, of which any may be missing."""
        if all(gradient is None for gradient in gradients):
            return None
        pairs = zip(self.parts, gradients, strict=True)
        return self.join(*(torch.zeros_like(p) if g is None else g for p, g in pairs))


def _repeat(
    layer: Transform,
    direction: str,
    z: Tensor,
    context: Context,
    known: Tensor | None,
    *,
    differentiate: bool,
) -> _Step:
    """Undo a layer that gave ``z`` unless its input is known, and repeat it with a graph."""
    if known is None and type(layer) is Coupling:
        return _repeat_coupling(layer, direction, z, context, differentiate=differentiate)
    back = "forward" if direction == "inverse" else "inverse"
    value = apply_all([layer], back, z, context)[0] if known is None else known
    value = value.detach().requires_grad_(differentiate)
    with torch.enable_grad():
        return _Step((value,), lambda part: part, apply_all([layer], direction, value, context))


def _repeat_coupling(
    layer: Coupling, direction: str, z: Tensor, context: Context, *, differentiate: bool
) -> _Step:
    """The same for a coupling: what the conditioner reads is unchanged, so it runs once."""
    scalar = layer.scalar
    backwards = direction == "inverse"
    apply = scalar.inverse if backwards else scalar.forward
    undo = scalar.forward if backwards else scalar.inverse
    read, transformed = layer.split(z)
    read = read.detach().requires_grad_(differentiate)
    with torch.enable_grad():
        params = layer.parameters_from(read, context)
    value = undo(transformed, params.detach())[0].detach().requires_grad_(differentiate)
    with torch.enable_grad():
        new, log_slope = apply(value, params)
        outputs = layer.merge(read, new), layer.log_det(log_slope)
    return _Step((read, value), layer.merge, outputs)


def _plus(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    return more if total is None else total if more is None else total + more


def _gradients(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    *,
    create_graph: bool = False,
) -> Sequence[Tensor | None]:
    """``torch.autograd.grad`` where outputs may be constants, or not have been used."""
    pairs = [
        (output, grad.sum_to_size(output.shape))
        for output, grad in zip(outputs, grads, strict=True)
        if grad is not None and output.requires_grad
    ]
    if not pairs or not inputs:
        return [None] * len(inputs)
    moving, weights = zip(*pairs, strict=True)
    return torch.autograd.grad(
        moving, inputs, weights, allow_unused=True, create_graph=create_graph
    )
