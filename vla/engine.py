"""The encode as graphs of fixed shape: images to embeddings, and embeddings to pooled features of each view.

Two graphs, so that the time of tower and language model stays visible. Each is run plainly, compiled (`torch.compile`,
one graph), or captured as a CUDA graph; all give the same numbers. A graph belongs to a number of views, their sizes
and a padded row length, so a new instruction fits the one that is there unless its text is much longer; then one encode
is slow, and `captures` says so. Prefixes of the last few instructions are kept.

Letters: V views, M image tokens of a view, Q feature tokens of a view, D width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import nn

from vla.preprocess import patches, resize
from vla.prompt import ROW_MULTIPLE, Prompt
from vla.qwen import Prefix, QwenBackbone

CompileMode = Literal["eager", "default", "max-autotune"]
Tensors = tuple[torch.Tensor, ...]
Function = Callable[..., Tensors]
REMEMBERED_PREFIXES = 8
GRAPH_ROW_MULTIPLE = 128  # 64 image tokens leave 64 for the text: a longer instruction than people say
REMEMBERED_GRAPHS = 16  # of vision and language together; each holds memory of its own
_WARM_UPS = 3  # before a capture, on a stream of their own, as CUDA graphs ask


class Engine:
    """One backbone and its pooling, run as asked. One thread calls it."""

    def __init__(
        self, backbone: QwenBackbone, pool: nn.Module, *, compile_mode: CompileMode = "eager", cuda_graph: bool = False
    ) -> None:
        if cuda_graph and backbone.device.type != "cuda":
            raise ValueError(f"cuda_graph needs a CUDA GPU, the device is '{backbone.device}': set it to false")
        self.backbone = backbone.freeze()
        self.pool = pool.eval()
        self.captures = 0
        if compile_mode != "eager":  # torch allows 8 shapes of one function, and then refuses
            limits: Any = torch._dynamo.config
            limits.recompile_limit = max(limits.recompile_limit, 64)
        self._compile_mode, self._cuda_graph = compile_mode, cuda_graph
        self._graphs: OrderedDict[tuple, Function] = OrderedDict()
        self._prefixes: OrderedDict[Prompt, Prefix] = OrderedDict()

    @property
    def row_multiple(self) -> int:
        """To what rows are padded: far enough on a GPU that hardly any instruction needs a graph of its own.

        Padding costs attention alone, which is next to nothing there; on a CPU it is not.
        """
        return GRAPH_ROW_MULTIPLE if self.backbone.device.type == "cuda" else ROW_MULTIPLE

    def forget(self) -> None:
        """Gives back what graphs and prefixes hold; they are made again when they are needed."""
        self._graphs.clear()
        self._prefixes.clear()

    def prefix(self, prompt: Prompt) -> tuple[Prefix, bool]:
        """Keys and values of this prompt's text, and whether they had to be computed."""
        known = self._prefixes.get(prompt)
        if known is None:
            self._prefixes[prompt] = self.backbone.prefill(prompt)
            if len(self._prefixes) > REMEMBERED_PREFIXES:
                self._prefixes.popitem(last=False)
        self._prefixes.move_to_end(prompt)
        return self._prefixes[prompt], known is None

    def vision(self, images: Sequence[Sequence[torch.Tensor]], prompt: Prompt) -> Tensors:
        """(views, M, D) embeddings of each of `prompt.groups`, from its (views, H, W, 3) uint8 images in row order."""
        sizes = tuple(group.size for group in prompt.groups)
        shapes = tuple(tuple(tuple(part.shape) for part in parts) for parts in images)

        def see(*flat: torch.Tensor) -> Tensors:
            parts, embedded = iter(flat), []
            for size, group in zip(sizes, shapes, strict=True):
                views = [patches(resize(next(parts), *size)) for _ in group]
                embedded.append(self.backbone.vision(torch.cat(views) if len(views) > 1 else views[0], size))
            return tuple(embedded)

        for size in sizes:
            self.backbone.tables(size)  # made outside of any graph
        flat = tuple(part for parts in images for part in parts)
        return self._graph(("vision", sizes, shapes), see, flat, kept=0)(*flat)

    def pooled(self, embedded: Tensors, prompt: Prompt, prefix: Prefix) -> torch.Tensor:
        """(V, Q, D) float32 pooled features in the prompt's order of views."""
        counts = tuple((part.shape[0], part.shape[1]) for part in embedded)
        views, order = prefix.views, prompt.view_order

        def read(*flat: torch.Tensor) -> Tensors:
            hidden = self.backbone.language_hidden(
                flat[: len(counts)], Prefix.from_tensors(flat[len(counts) + 1 :], views)
            )
            parts = hidden.float().split([rows * tokens for rows, tokens in counts])
            groups = [self.pool(part.unflatten(0, shape)) for part, shape in zip(parts, counts, strict=True)]
            return (torch.cat(groups)[flat[len(counts)]] if len(groups) > 1 else groups[0],)

        inputs = (*embedded, order, *prefix.tensors)
        key = ("language", counts, len(prefix.keys[0]))
        return self._graph(key, read, inputs, kept=1 + len(prefix.tensors))(*inputs)[0]

    def _graph(self, key: tuple, function: Function, inputs: Tensors, kept: int) -> Function:
        """How to run this function at these shapes. The last `kept` inputs change seldom, and then as new tensors."""
        found = self._graphs.get(key)
        if found is None:
            mode = {"default": None, "max-autotune": "max-autotune-no-cudagraphs"}
            found = function
            if self._compile_mode != "eager":
                found = torch.compile(function, fullgraph=True, dynamic=False, mode=mode[self._compile_mode])
                found(*inputs)  # compiles
            if self._cuda_graph:
                found = Captured(found, inputs, kept)
            if found is not function:
                self.captures += 1
            self._graphs[key] = found
            if len(self._graphs) > REMEMBERED_GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        return found


class Captured:
    """A function of fixed shapes as one CUDA graph. Its outputs are overwritten by its next call."""

    def __init__(self, function: Function, inputs: Tensors, kept: int) -> None:
        self._inputs = tuple(tensor.clone() for tensor in inputs)
        self._first_kept = len(inputs) - kept
        self._held: list[torch.Tensor] = list(inputs[self._first_kept :])
        device = inputs[0].device
        aside = torch.cuda.Stream(device)
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                function(*self._inputs)
        torch.cuda.current_stream(device).wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._outputs = function(*self._inputs)

    def __call__(self, *inputs: torch.Tensor) -> Tensors:
        for index, (mine, given) in enumerate(zip(self._inputs, inputs, strict=True)):
            place = index - self._first_kept
            if place >= 0 and self._held[place] is given:
                continue
            mine.copy_(given, non_blocking=True)
            if place >= 0:
                self._held[place] = given  # held, so that its identity is given to no other tensor
        self._graph.replay()
        return self._outputs
