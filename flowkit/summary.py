"""A flow in words: its layers as a table, in a few lines, and as HTML for notebooks."""

from __future__ import annotations

import html

from torch import nn

from flowkit.density import Density
from flowkit.pushforward import Pushforward
from flowkit.transforms import Transform
from flowkit.transforms.compose import layers_in_order


def layer_name(module: nn.Module) -> str:
    """The name of a layer or base, with its scalar map.

    Example:
        >>> from flowkit.transforms import Elementwise
        >>> layer_name(Elementwise(2))
        'Elementwise(features=2) of RationalQuadraticSpline'
    """
    name = module.label if isinstance(module, Transform) else type(module).__name__
    scalar = getattr(module, "scalar", None)
    return name if scalar is None else f"{name} of {type(scalar).__name__}"


def layer_sizes(flow: Pushforward) -> list[tuple[str, int]]:
    """Names and numbers of parameters of the embedding, all layers and the base."""
    rows = [] if flow.embedding is None else [(layer_name(flow.embedding), flow.embedding)]
    for layer, inverted in layers_in_order(flow.transform):
        rows.append((layer_name(layer) + (", inverted" if inverted else ""), layer))
    rows.append((layer_name(flow.base), flow.base))
    return [(name, sum(p.numel() for p in part.parameters())) for name, part in rows]


def as_table(flow: Density) -> str:
    """One line per layer with its number of parameters."""
    rows = flow._layer_sizes()
    rows.append(("total parameters", sum(p.numel() for p in flow.parameters())))
    width = max(28, *(len(name) for name, _ in rows))
    return "\n".join(f"{name:<{width}}{count:>8,}" for name, count in rows)


def as_text(flow: Density) -> str:
    """Event, context and number of parameters, then the layers; those that repeat only once."""
    lines = _repeats([name for name, _ in flow._layer_sizes()])
    return "\n  ".join([f"{type(flow).__name__}: {_facts(flow)}", *lines])


def as_html(flow: Density) -> str:
    """The same as a table."""
    body = "".join(
        f"<tr><td style='text-align:left'>{html.escape(name)}</td><td>{count:,}</td></tr>"
        for name, count in flow._layer_sizes()
    )
    head = f"<b>{type(flow).__name__}</b>: {html.escape(_facts(flow))}"
    return f"{head}<table><tr><th>layer</th><th>parameters</th></tr>{body}</table>"


def _facts(flow: Density) -> str:
    size = flow.context_size
    context = f"context {'*' if size is None else size}" if flow.needs_context else "no context"
    kind = str(flow.dtype).removeprefix("torch.")
    count = sum(p.numel() for p in flow.parameters())
    return f"events {flow.event_shape}, {context}, {kind}, {count:,} parameters"


def _repeats(names: list[str]) -> list[str]:
    """Lines of names, a group that repeats written once.

    Example:
        >>> _repeats(["Log", "A", "B", "A", "B", "Normal"])
        ['Log', '2 x [A, B]', 'Normal']
    """
    lines, place = [], 0
    while place < len(names):
        best, length = 1, 1
        for size in range(1, (len(names) - place) // 2 + 1):
            group, count = names[place : place + size], 1
            while names[place + count * size : place + (count + 1) * size] == group:
                count += 1
            if count > 1 and count * size > best * length:
                best, length = count, size
        group = names[place : place + length]
        lines.append(group[0] if best == 1 else f"{best} x [{', '.join(group)}]")
        place += best * length
    return lines
