"""A model as one file for other runtimes, checked against this one before it appears."""

from __future__ import annotations

import copy
import inspect
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from timm.layers import AvgPool2dSame, Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F

import fmwiss
from fmwiss.errors import UserError
from fmwiss.files import write_atomically
from fmwiss.foundation.weights import first_line
from fmwiss.inference.extras import require
from fmwiss.inference.model import Model
from fmwiss.models import Segmenter
from fmwiss.reporting.progress import track

Format = Literal["onnx", "torch"]
INPUT, OUTPUT = "images", "logits"
AXES = ("batch", None, "height", "width")
METADATA = "fmwiss.json"
"""The extra file of a torch archive."""
LARGEST_DIFFERENCE = 1e-3
"""Of logits, as a share of the largest of them (or of 1)."""
LEAST_AGREEMENT = 0.999
"""Share of the pixels that must get the same label."""
_LARGEST_PROTOBUF = 2**31 - 1

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how its answers compare with this library's."""

    file: str
    format: Format
    bytes: int
    images: list[list[int]]
    """Shapes of the inputs on which they were compared."""
    largest_difference: float
    """Of logits."""
    largest_logit: float
    agreement: float
    """Share of the pixels with the same label."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


class _Whole(nn.Module):
    """Images in [0, 1] to logits at their own size: normalisation, network and resizing in one graph."""

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.segmenter = segmenter
        # inference mode, which decorates the method, is not for graphs
        self._logits = inspect.unwrap(type(segmenter).predict_logits)

    def forward(self, images: Tensor) -> Tensor:
        return self._logits(self.segmenter, images, images.shape[-2:]).float()


class _SameConvolution(nn.Conv2d):
    """TensorFlow's padding for a stride of 2, of sides whose parity a graph does not know.

    timm computes how much to pad from a quotient, and torch's exporter works for many minutes on what follows from it.
    Here a side of n pixels is first padded by a pixel too many, by two where n is even, and then cut, so that it has
    ``2 * ceil(n / 2)`` pixels and a constant beside, whatever n. (Were nothing cut where n is odd, the exported graph
    would insist on even sides.)
    """

    def forward(self, images: Tensor) -> Tensor:
        (top, bottom), (left, right) = [((side - 3) // 2, (side - 1) // 2) for side in self.kernel_size]
        padded = F.pad(images, (left + 2, right, top + 2, bottom))
        rows, columns = (side + 2 - 2 * ((side + 1) // 2) for side in images.shape[-2:])
        return F.conv2d(
            padded[:, :, rows:, columns:], self.weight, self.bias, self.stride, 0, self.dilation, self.groups
        )


class _SameAveragePool(nn.AvgPool2d):
    """TensorFlow's padding for a stride of 1, which is a constant; timm computes it from the sides nevertheless."""

    def forward(self, images: Tensor) -> Tensor:
        height, width = self.kernel_size  # type: ignore[misc]  # timm's is always a pair
        left, top = (width - 1) // 2, (height - 1) // 2
        padded = F.pad(images, (left, width - 1 - left, top, height - 1 - top))
        return F.avg_pool2d(padded, self.kernel_size, 1, 0, self.ceil_mode, self.count_include_pad)


def _simplify_padding(network: nn.Module) -> None:
    """Let the layers with TensorFlow's padding compute it in a way that can be exported."""
    for module in network.modules():
        if isinstance(module, AvgPool2dSame) and module.stride == (1, 1):
            module.__class__ = _SameAveragePool  # type: ignore[assignment]
        if (
            isinstance(module, Conv2dSame)
            and module.stride == (2, 2)
            and module.dilation == (1, 1)
            and all(side % 2 and side > 1 for side in module.kernel_size)
        ):
            module.__class__ = _SameConvolution  # type: ignore[assignment]


def export(model: Model, path: str | Path, format: Format = "onnx") -> ExportReport:
    """Write a model as ONNX or as a ``torch.export`` archive (``.pt2``) that takes any batch, height and width.

    The input ``images`` is float32 ``(batch, 3, height, width)``, RGB in [0, 1], scaled to the working size if the
    model has one; the normalisation is part of the graph. The output ``logits`` is float32
    ``(batch, labels, height, width)``. Class names, working size and colours are in the metadata (of ONNX its
    ``metadata_props``, of the archive the extra file ``fmwiss.json``).

    Before the file appears it is loaded again and compared with the model on images of several sizes, on the CPU.

    Args:
        model: what to export; on any device.
        path: the file.
        format: ``onnx`` or ``torch``.

    Returns:
        The figures of the comparison.

    Raises:
        UserError: a package is missing, the path ends as the other format's files do, the network cannot be exported,
            or what it became answers differently.
    """
    path = Path(path)
    if format not in ("onnx", "torch"):
        raise UserError(f"format {format}: must be onnx or torch")
    other = next((other for other, suffix in _SUFFIXES.items() if path.suffix.lower() == f".{suffix}"), format)
    if other != format:
        raise UserError(
            f"{path}: ends as a file of format {other}, not of {format}; give format {other} or the ending "
            f".{_SUFFIXES[format]}"
        )
    if path.is_dir():
        example = path / f"model.{_SUFFIXES[format]}"
        raise UserError(f"{path}: is a folder; give the name of a file in it, as in {example}")
    if format == "onnx":
        require("an export to ONNX", "export", "onnx", "onnxscript", "onnxruntime")
    network = _Whole(copy.deepcopy(model.segmenter).cpu().float()).eval()
    exported = copy.deepcopy(network)
    _simplify_padding(exported)
    metadata = _metadata(model)
    reports: list[ExportReport] = []
    with _quiet(), closing(track(("graph", "file", "comparison"), f"exporting {path.name}")) as stages:
        next(stages)
        program = _program(exported)
        next(stages)
        data = _onnx_bytes(program, metadata) if format == "onnx" else _torch_bytes(program, metadata)
        next(stages)

        def write(temporary: Path) -> None:
            temporary.write_bytes(data)
            run = _onnx_run(temporary) if format == "onnx" else _torch_run(temporary)
            reports.append(_compare(network, run, path, format, len(data)))

        write_atomically(path, write)
    return reports[0]


_SUFFIXES: dict[Format, str] = {"onnx": "onnx", "torch": "pt2"}


def _program(network: _Whole) -> torch.export.ExportedProgram:
    axes = {axis: torch.export.Dim.DYNAMIC for axis, name in enumerate(AXES) if name}
    example = torch.zeros(2, 3, 96, 128)
    try:
        with torch.no_grad():
            return torch.export.export(network, (example,), dynamic_shapes={INPUT: axes})
    except Exception as error:  # torch's exporter raises many kinds, all of them about the network
        raise UserError(f"this network cannot be exported by torch.export ({first_line(error)})") from error


def _metadata(model: Model) -> dict[str, Any]:
    return {
        "library": f"fmwiss {fmwiss.__version__}",
        "class_names": list(model.class_names),
        "palette": [list(colour) for colour in model.palette.values()],
        "working_size": model.segmenter.architecture.resize,
        "input": "images: float32 (batch, 3, height, width), RGB in [0, 1], not normalised; the shorter side scaled to "
        "working_size (bilinear, antialiased) unless that is null",
        "output": "logits: float32 (batch, labels, height, width); the label is the argmax over axis 1, a label's "
        "probability the sigmoid of its logit",
    }


def _onnx_bytes(program: torch.export.ExportedProgram, metadata: dict[str, Any]) -> bytes:
    import onnx
    from onnx import helper

    try:
        converted = torch.onnx.export(program, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False)
    except Exception as error:  # as above
        raise UserError(f"this network cannot be exported to ONNX ({first_line(error)})") from error
    assert converted is not None  # only the old exporter gives nothing
    proto: onnx.ModelProto = converted.model_proto
    if proto.ByteSize() > _LARGEST_PROTOBUF:
        raise UserError("this network is larger than the 2 GiB that an ONNX file may have; export it with format torch")
    _name_axes(proto)
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    helper.set_model_props(proto, texts)
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString())


def _name_axes(proto: Any) -> None:
    """Give the dynamic axes names that say something."""
    names = {
        axis.dim_param: name
        for axis, name in zip(proto.graph.input[0].type.tensor_type.shape.dim, AXES, strict=True)
        if name
    }
    graph = proto.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in names:
                axis.dim_param = names[axis.dim_param]


def _onnx_run(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run([OUTPUT], {INPUT: images.numpy()})
        return torch.from_numpy(logits)

    return run


def _torch_bytes(program: torch.export.ExportedProgram, metadata: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    try:
        torch.export.save(program, buffer, extra_files={METADATA: json.dumps(metadata)})
    except Exception as error:  # as above
        raise UserError(f"this network cannot be written as a torch archive ({first_line(error)})") from error
    return buffer.getvalue()


def _torch_run(path: Path) -> Run:
    """The archive that was just written, loaded again."""
    with path.open("rb") as file:
        return torch.export.load(io.BytesIO(file.read())).module()


@torch.inference_mode()
def _compare(network: _Whole, run: Run, path: Path, format: Format, size: int) -> ExportReport:
    """Compare answers on images of several shapes, none of them the one that was exported with."""
    side = min(network.segmenter.architecture.resize or 256, 512)
    shapes = [(1, side, side), (2, side, side * 4 // 3 + 1), (1, side * 3 // 2 + 3, side)]
    difference = largest = 0.0
    same = pixels = 0
    for number, (batch, height, width) in enumerate(shapes):
        images = _scenes(batch, height, width, number)
        ours = network(images)
        try:
            theirs = run(images)
        except Exception as error:  # every runtime has kinds of its own
            raise UserError(
                f"{path}: not written: what the model became in {format} fails on images of {height} x {width} pixels "
                f"({first_line(error)})"
            ) from error
        if theirs.shape != ours.shape:
            shapes_differ = f"{tuple(theirs.shape)}, not {tuple(ours.shape)}"
            raise UserError(f"{path}: not written: {format} gives logits of shape {shapes_differ}")
        difference = max(difference, (ours - theirs).abs().max().item())
        largest = max(largest, ours.abs().max().item())
        same += int((ours.argmax(dim=1) == theirs.argmax(dim=1)).sum())
        pixels += ours[:, 0].numel()
    agreement = same / pixels
    if not difference <= LARGEST_DIFFERENCE * max(1.0, largest) or agreement < LEAST_AGREEMENT:  # NaN is refused, too
        raise UserError(
            f"{path}: not written: in {format} the model answers differently (logits by up to {difference:.3g} with "
            f"{largest:.3g} the largest, {100 * agreement:.2f} % of the labels equal)"
        )
    return ExportReport(
        str(path), format, size, [[b, 3, h, w] for b, h, w in shapes], difference, largest, agreement
    )


def _scenes(batch: int, height: int, width: int, seed: int) -> Tensor:
    """Images in [0, 1] with structure at a large and at a small scale, ``(batch, 3, height, width)``."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, 6, 8, generator=generator)
    smooth = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    return (smooth + 0.1 * torch.rand(smooth.shape, generator=generator) - 0.05).clamp(0, 1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's warnings, which are about its own making."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
