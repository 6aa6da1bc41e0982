"""FLOPs and memory of full-size experiments, from their own training steps on torch's "meta" device.

Tensors there have shapes and no contents, so that neither weights nor photographs are needed. What is run is each
method's real ``training_step`` on a batch of the experiment's size, and backward, and the real frozen models and
locators on one photograph. Measured are

- an iteration of step 0, and of the step after it: of every phase that it has (a warm-up, a locator's training);
- a photograph of pseudo-masking or saliency, of a locator's masks, and of validation;

and from those follow the experiment's sums, by its epochs and the numbers of photographs of the published splits.

FLOPs are those of convolutions and matrix products (``torch.utils.flop_counter``; a multiplication and an addition are
two). Everything else, such as batch norm, losses and resizing, is bound by memory and counts as nothing.

Memory is the largest sum of live tensors during an iteration: every storage counts from the operation that makes it
until nobody holds it; parameters, gradients, the optimizer's state and the batch are in it. ``bf16`` casts what CUDA's
autocast casts: the inputs of convolutions and matrix products. What an allocator and cuDNN's workspaces add does not
show.

Hours are computed, not measured: FLOPs by ``--peak`` and ``--utilisation``, on eight GPUs with ``--scaling`` as well.

    python benchmarks/flops.py [EXPERIMENT.yaml]... [--suite NAME]... [--out FLOPS.json]
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch
from weakref import finalize

import open_clip
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from fmwiss.bench.suite import PseudoMaskGroup, Row, find_suite, load_suite, resolve
from fmwiss.config import Config, OptimizationConfig, SSConfig, WILSONConfig, load_config
from fmwiss.data.batches import Batch
from fmwiss.data.coco_stuff import COCO_TO_VOC_CLASSES
from fmwiss.data.protocols import NAMED_SPLITS, Protocol
from fmwiss.data.voc import VOC_CLASSES
from fmwiss.files import write_atomically
from fmwiss.foundation.clip import Clip
from fmwiss.foundation.images import frozen
from fmwiss.foundation.self_supervised import TimmViT, load_self_supervised
from fmwiss.methods import FMWISS, SDR, Method, PixelMethod, Supervised, build_method, method_class
from fmwiss.methods.guidance import Guidance
from fmwiss.methods.offline import Locator
from fmwiss.methods.pixel import DistillingMethod, Surveying
from fmwiss.models import Segmenter
from fmwiss.pseudo_masks import working_size
from fmwiss.training.loop import build_optimizer

VOC, COCO_TO_VOC = Path("configs/voc/10-10-overlap"), Path("configs/coco-to-voc")
PHOTOGRAPH = (375, 500)
"""Height and width of most of VOC's photographs."""

PHOTOGRAPHS = {
    ("15-5", "disjoint"): (8_437, 2_145),
    ("15-5", "overlap"): (9_568, 2_145),
    ("10-10", "disjoint"): (3_706, 6_876),
    ("10-10", "overlap"): (6_139, 6_876),
    ("coco-to-voc", "disjoint"): (23_274, 10_582),
}
"""Training photographs of step 0 and of step 1, as published."""
ALL_OF_VOC = 10_582
VALIDATION = {"val": 1_449, "coco-val": 5_000, "voc-val": 1_449}


# ------------------------------------------------------------------------------------------------------- measuring


class LiveTensors(TorchDispatchMode):
    """Bytes of the storages that are alive, and the most that there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def hold(self, tensor: Tensor) -> None:
        """Count a tensor's storage until it is gone; views and in-place results share one."""
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self.hold, result)
        return result


class Autocast(TorchFunctionMode):
    """``torch.autocast`` of CUDA for the meta device, which has none: its list of operations in lower precision."""

    lower = frozenset(
        ("conv2d", "linear", "matmul", "__matmul__", "__rmatmul__", "bmm", "mm", "scaled_dot_product_attention")
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self.lower:
            args, kwargs = tree_map_only(Tensor, _half, (args, kwargs))
        return func(*args, **(kwargs or {}))


def _half(tensor: Tensor) -> Tensor:
    return tensor.bfloat16() if tensor.dtype == torch.float32 else tensor


@dataclass(frozen=True)
class Measured:
    """What an iteration, or one photograph, takes."""

    flops: int
    bytes: int = 0


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    with FlopCounterMode(display=False) as counter:
        yield counter


def iteration(method: Method, options: OptimizationConfig, batch: Batch, epoch: int, half: bool) -> Measured:
    """One iteration of an epoch, not the first one: forward and backward, beside the optimizer's state.

    The update itself has no product, and comes when only parameters, gradients and the state are left.
    """
    method.start_epoch(epoch)
    groups = method.parameter_groups(options.learning_rate, options.head_rate)
    optimizer = build_optimizer(options, groups)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # which makes its state
    optimizer.zero_grad(set_to_none=True)
    state = [value for values in optimizer.state.values() for value in values.values()]
    live = LiveTensors()
    for held in (*method.parameters(), *method.buffers(), *state, *vars(batch).values()):
        if isinstance(held, Tensor):
            live.hold(held)
    with live, counting() as counter:
        with Autocast() if half else nullcontext():
            losses = method.training_step(batch, torch.Generator())
        torch.stack(list(losses.values())).sum().backward()
    method.zero_grad(set_to_none=True)
    return Measured(counter.get_total_flops(), live.peak)


def flops_of(work: Callable[[], object]) -> int:
    """FLOPs of anything that only looks."""
    with counting() as counter, torch.inference_mode():
        work()
    return counter.get_total_flops()


# ----------------------------------------------------------------------------------- what has no meaning on "meta"


def _most_points(self: FMWISS, truth: Guidance, features: Tensor, generator: torch.Generator) -> Tensor:
    """Eq. 7 with as many points as there can be: which of them are drawn depends on contents, which there are none."""
    n = min(self.options.points_per_class * truth.pseudo.shape[1], features.numel() // features.shape[1])
    places = torch.arange(n, device=features.device)
    points = F.normalize(features.permute(0, 2, 3, 1).flatten(0, 2)[places], dim=1)
    return (points @ points.T / self.options.tau).logsumexp(dim=1).mean()


def _sum_of_features(self: Any, features: Tensor, *rest: Any) -> Tensor:
    """SDR's losses on features choose places by contents; they have no convolution and no matrix product."""
    return features.float().sum() * 0.0


@contextmanager
def without_contents(method: Method) -> Iterator[None]:
    """Stand-ins, with the same shapes, for what looks at the contents of tensors."""
    with patch.object(FMWISS, "contrastive_loss", _most_points), patch.object(SDR, "_update", lambda *_: None):
        if isinstance(method, SDR):
            for loss in (method.matching, method.attraction, method.repulsion, method.sparsity):
                loss.forward = _sum_of_features.__get__(loss)  # type: ignore[method-assign]
        yield


# ------------------------------------------------------------------------------------------------------ experiments


@dataclass(frozen=True)
class Phase:
    """Epochs that cost the same."""

    name: str
    epochs: int
    photographs: int
    batch_size: int
    measured: dict[str, Measured]
    """``fp32``; of the phases that hold most also ``bf16`` and, for one of several GPUs' part of a batch, ``bf16
    split``."""

    @property
    def flops(self) -> int:
        """Of all its iterations."""
        batch_size = min(self.batch_size, self.photographs)
        return self.epochs * (self.photographs // batch_size) * self.measured["fp32"].flops


@dataclass(frozen=True)
class Work:
    """What is done once for each of some photographs."""

    name: str
    photographs: int
    each: int

    @property
    def flops(self) -> int:
        return self.photographs * self.each


@dataclass(frozen=True)
class Step:
    """A step of a protocol."""

    phases: tuple[Phase, ...]
    works: tuple[Work, ...]

    @property
    def flops(self) -> int:
        return sum(part.flops for part in (*self.phases, *self.works))

    def memory(self, key: str) -> int:
        """Of its largest phase, in bytes."""
        return max(phase.measured[key].bytes for phase in self.phases if key in phase.measured)

    def as_dict(self) -> dict[str, Any]:
        return {
            "flops": self.flops,
            "phases": [
                {
                    "name": phase.name, "epochs": phase.epochs, "photographs": phase.photographs,
                    "batch_size": phase.batch_size, "flops": phase.flops,
                    "iteration": {key: vars(one) for key, one in phase.measured.items()},
                }
                for phase in self.phases
            ],
            "photographs": [{**vars(work), "flops": work.flops} for work in self.works],
        }


@dataclass
class Meter:
    """Measures experiments; what two have in common is measured once.

    Args:
        gpus: over which a batch is divided, for the memory of each.
        memory: measure it in bf16 and on each of several GPUs, too.
    """

    gpus: int = 8
    memory: bool = True
    _known: dict[str, dict[str, Measured]] = field(default_factory=dict)
    _frozen: dict[str, int] = field(default_factory=dict)

    def base(self, config: Config) -> Step:
        """Step 0."""
        options = config.training.step0
        student = self._student(config)
        count = self._counts(config)[0]

        def build() -> Method:
            with torch.device("meta"):
                return Supervised(self._student(config), options.freeze_batch_norm, options.loss_stride, options.loss)

        measured = self._iterations(config, "step 0", build, options, 0)
        phase = Phase("step 0", options.epochs, count, options.batch_size, measured)
        return Step((phase,), (self._validation(config, student, config.data.val_split),))

    def step(self, config: Config) -> Step:
        """Step 1, from pseudo masks to validation."""
        count, options = self._counts(config)[1], config.training.steps
        method = self._method(config)
        warmup = method.warmup_epochs
        phases, works = [], []
        with torch.device("meta"):
            locator = method.locator()
        if locator is not None:
            phases += self._locator_phases(config, locator, count)
            works.append(self._locating(config, locator, count))
        first = warmup or (getattr(config.method, "localizer_epochs", 0) if self._localizes(config) else 0)
        total = warmup + options.epochs
        for name, epoch, epochs in (("first epochs", 0, first), ("epochs", total - 1, total - first)):
            if epochs:
                measured = self._iterations(config, name, lambda: self._method(config), options, epoch)
                phases.append(Phase(name, epochs, count, options.batch_size, measured))
        if type(method).learns_from_pseudo_masks(config.method) and config.cosegmentation.source == "foundation":
            works.append(Work("pseudo masks", count, self.pseudo_masks(config)))
        elif locator is not None and locator.learns_from_saliency:
            works.append(Work("saliency", count, self._saliency(config)))
        if isinstance(method, DistillingMethod) and isinstance(method, Surveying):
            crop = torch.empty(1, 3, config.data.crop_size, config.data.crop_size, device="meta")
            works.append(Work("survey", count, flops_of(lambda: method.old_model(crop))))
        if isinstance(method, SDR):
            crop = torch.empty(1, 3, config.data.crop_size, config.data.crop_size, device="meta")
            encode = partial(method.old_model.encode, crop)  # type: ignore[operator]
            works.append(Work("prototypes of step 0", self._counts(config)[0], flops_of(encode)))
        every = config.training.validate_every
        times = 1 + ((options.epochs + warmup - 1) // every if every else 0)
        works += [replace(self._validation(config, method.student, config.data.val_split), name="validation")] * times
        works += [self._validation(config, method.student, split) for split in config.data.also]
        return Step(tuple(phases), tuple(works))

    def pseudo_masks(self, config: Config) -> int:
        """FLOPs of a photograph; each class's prompts, read once, are left out."""
        options = config.cosegmentation
        plus = options.plus if options.name == "fmwiss-plus" else None
        vision, patches = self._clip(config), self._vit(config)
        scales = (plus.score_scales, plus.feature_scales) if plus else ((1.0,), (1.0,))
        views = 2 if plus and plus.flip else 1
        total = 0
        for scale in scales[0]:
            image = _photograph(round(options.vision_language.input_size * scale), vision.stride)
            key = f"clip {image.shape} {options.vision_language}"
            total += views * self._once(key, partial(vision.encode, image))
        for scale in scales[1]:
            image = _photograph(round(options.self_supervised.input_size * scale), patches.patch_size)
            look = patches.patch_features if plus else patches.mean_attention
            key = f"vit {bool(plus)} {image.shape} {options.self_supervised}"
            total += views * self._once(key, partial(look, image))
        return total

    # ------------------------------------------------------------------------------------------------------- parts

    def _iterations(
        self, config: Config, name: str, build: Callable[[], Method], options: OptimizationConfig, epoch: int
    ) -> dict[str, Measured]:
        key = json.dumps([name, _shapes_of(config, name == "step 0")])
        if key not in self._known:
            sizes = {"fp32": options.batch_size}
            if self.memory and not name.endswith("first epochs"):  # which hold less
                sizes |= {"bf16": options.batch_size, "bf16 split": max(2, options.batch_size // self.gpus)}
            self._known[key], method = {}, build()
            for precision, size in sizes.items():
                with without_contents(method):
                    batch = _batch(config, size, self._protocol(config), method)
                    half = precision != "fp32"
                    self._known[key][precision] = iteration(method, options, batch, epoch, half)
        return self._known[key]

    def _once(self, key: str, work: Callable[[], object]) -> int:
        if key not in self._frozen:
            self._frozen[key] = flops_of(work)
        return self._frozen[key]

    def _protocol(self, config: Config) -> Protocol:
        known = COCO_TO_VOC_CLASSES if config.data.source.startswith("coco-to-voc") else VOC_CLASSES
        return Protocol.from_config(config.protocol, known)

    def _counts(self, config: Config) -> tuple[int, int]:
        """Training photographs of both steps."""
        split = (config.protocol.steps, config.protocol.setting)
        if split not in PHOTOGRAPHS:
            raise SystemExit(f"the numbers of photographs are known of {', '.join(map(' '.join, PHOTOGRAPHS))} alone")
        first, second = PHOTOGRAPHS[split]  # type: ignore[index]
        kind = method_class(config.method)
        if issubclass(kind, PixelMethod) and kind.joint:
            second = ALL_OF_VOC
        return first, max(1, round(config.data.fraction * second))

    def _student(self, config: Config) -> Segmenter:
        options = config.segmenter.model_copy(update={"pretrained": False})
        with torch.device("meta"):
            return Segmenter.from_config(options, self._protocol(config).new(0), config.data.resize, None)

    def _method(self, config: Config) -> Method:
        student = self._student(config)
        with torch.device("meta"):
            student.add_step(self._protocol(config).new(1), "plain")
            frozen_rates = config.training.steps.freeze_batch_norm
            return build_method(config.method, student, self._student(config).eval(), frozen_rates)

    def _localizes(self, config: Config) -> bool:
        return isinstance(config.method, WILSONConfig) and config.method.pseudo_labels == "localizer"

    def _locator(self, config: Config) -> Locator:
        with torch.device("meta"):
            locator = self._method(config).locator()
        assert locator is not None
        return locator

    def _locator_phases(self, config: Config, locator: Locator, count: int) -> list[Phase]:
        options = locator.options.locator
        first = locator.options.pretraining_epochs if isinstance(locator.options, SSConfig) else 0
        phases = []
        for name, epoch, epochs in (
            ("locator, first epochs", 0, first), ("locator", options.epochs - 1, options.epochs - first)
        ):
            if epochs:
                measured = self._iterations(config, name, lambda: self._locator(config), options, epoch)
                phases.append(Phase(name, epochs, count, options.batch_size, measured))
        return phases

    def _locating(self, config: Config, locator: Locator, count: int) -> Work:
        with torch.device("meta"):
            locator.eval()
            image = torch.empty(1, 3, *PHOTOGRAPH)
            return Work("locating", count, flops_of(lambda: locator.labels(image, [0])))

    def _validation(self, config: Config, model: Segmenter, split: str) -> Work:
        options = config.evaluation
        size = (options.crop_size, options.crop_size) if options.image == "center-crop" else PHOTOGRAPH
        image = torch.empty(1, 3, *size, device="meta")
        key = f"validation {size} {config.segmenter} {len(model.class_names)}"
        return Work(f"validation on {split}", VALIDATION[split], self._once(key, lambda: model.eval()(image)))

    def _saliency(self, config: Config) -> int:
        options, patches = config.cosegmentation.self_supervised, self._vit(config)
        image = _photograph(options.input_size, patches.patch_size)
        return self._once(f"saliency {image.shape} {options}", lambda: patches.patch_features(image))

    def _clip(self, config: Config) -> Clip:
        options = config.cosegmentation.vision_language
        model = open_clip.create_model(options.model, device="meta")
        with torch.device("meta"):
            return frozen(Clip(model, None, options), "meta")

    def _vit(self, config: Config) -> TimmViT:
        options = config.cosegmentation.self_supervised.model_copy(update={"pretrained": False})
        with torch.device("meta"):
            return frozen(load_self_supervised(options), "meta")


def _photograph(longer_side: int, stride: int) -> Tensor:
    return torch.empty(1, 3, *working_size(*PHOTOGRAPH, longer_side, stride), device="meta")


def _shapes_of(config: Config, base: bool) -> dict[str, Any]:
    """What of an experiment decides on the shapes; of numbers that weigh a loss only whether they are zero.

    How many of the classes a step learns only moves outputs from one 1x1 convolution to another, so that 15-5 is taken
    to be 10-10.
    """
    data = {"crop": config.data.crop_size, "segmenter": config.segmenter.model_dump(mode="json")}
    steps = config.protocol.steps
    data |= {"classes": sum(NAMED_SPLITS[steps]) if isinstance(steps, str) else steps}
    if base:
        return {**data, "options": config.training.step0.model_dump(mode="json")}
    weights = {
        key: value > 0 if isinstance(value, float) else value
        for key, value in config.method.model_dump(mode="json").items()
    }
    pasted = config.copy_paste.bank_size > 0
    return {**data, "options": config.training.steps.model_dump(mode="json"), "method": weights, "pasted": pasted}


def _batch(config: Config, size: int, protocol: Protocol, method: Method) -> Batch:
    """A batch with every field that the method may ask for."""
    side, n_new = config.data.crop_size, len(protocol.new(1))
    with torch.device("meta"):
        maps = torch.empty(size, side, side, dtype=torch.long)
        flags = torch.empty(size, side, side, dtype=torch.bool)
        images = torch.empty(size, 3, side, side).to(memory_format=torch.channels_last)
        batch = Batch(ids=("",) * size, image=images, valid=flags)
        if method.supervision == "pixel":
            return replace(batch, mask=maps, replayed=torch.empty(size, dtype=torch.bool))
        tags = torch.empty(size, n_new, dtype=torch.bool)
        batch = replace(batch, tags=tags, saliency=torch.empty(size, side, side, dtype=torch.uint8))
        if not isinstance(method, Locator):
            batch = replace(batch, pseudo=torch.empty(size, n_new, side, side, dtype=torch.bool))
        pastes = method.pastes_instances and config.copy_paste.bank_size > 0
        return replace(batch, pasted=torch.empty_like(maps)) if pastes else batch


# ----------------------------------------------------------------------------------------------------------- output


@dataclass(frozen=True)
class Assumptions:
    """What turns FLOPs into hours."""

    gpu: str
    peak: float
    """FLOPs a second, as its maker states them for dense bf16."""
    utilisation: float
    gpus: int
    scaling: float
    """Share of as many times the speed that several GPUs reach."""

    def hours(self, flops: float, gpus: int = 1) -> float:
        speed = self.peak * self.utilisation * (gpus * self.scaling if gpus > 1 else 1)
        return flops / speed / 3600


@dataclass
class Group:
    """A table of a suite: what is to be run for it alone."""

    name: str
    runs: int
    bases: int
    flops: int


def of_suite(name: str, meter: Meter, seeds: Sequence[int] | None) -> list[Group]:
    """Every group of a suite by itself, and all of it: runs and base models that are the same count once."""
    path = find_suite(name)
    suite = load_suite(path)
    rows = resolve(suite, path)
    return [
        *(_together(group.name, [row for row in rows if row.group is group], meter, seeds) for group in suite.groups),
        _together(f"all of {name}", rows, meter, seeds),
    ]


def _together(name: str, rows: Sequence[Row], meter: Meter, seeds: Sequence[int] | None) -> Group:
    runs: dict[str, int] = {}
    bases: dict[str, int] = {}
    for row in rows:
        config = row.config
        masks = isinstance(row.group, PseudoMaskGroup)
        settings = config.model_dump(mode="json")
        if masks:
            settings = {key: settings[key] for key in ("protocol", "cosegmentation")}
        key = json.dumps([masks, settings])
        base = json.dumps([config.protocol.model_dump(mode="json"), config.training.step0.model_dump(mode="json"),
                           config.segmenter.encoder, config.segmenter.output_stride])
        times = len(seeds or row.seeds)
        if masks:
            runs[key] = times * VALIDATION["val"] * meter.pseudo_masks(config)
            continue
        runs[key] = times * meter.step(config).flops
        bases[base] = times * meter.base(config).flops
    return Group(name, len(runs), len(bases), sum(runs.values()) + sum(bases.values()))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def experiments_head(assumed: Assumptions) -> list[str]:
    """Of the columns that :func:`_row` gives."""
    several = f"{assumed.gpus} GPUs"
    head = ["experiment", "TFLOPs an iteration", "PFLOPs step 0", "PFLOPs step 1", f"hours, {assumed.gpu}"]
    return [*head, f"hours, {several}", "GiB fp32", "GiB bf16", f"GiB bf16, each of {several}"]


def show(name: str, text: str, page: Path | None) -> None:
    """Print a table and put it into the page, between the comments that bear its name."""
    print(f"\n{text}\n")
    if page is None:
        return
    first, last = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(first)
    _, also_found, after = rest.partition(last)
    if not (found and also_found):
        raise SystemExit(f"{page} has no place for the table of {name}: it needs {first.strip()} and {last.strip()}")
    write_atomically(page, lambda path: path.write_text(f"{before}{first}\n{text}\n{last}{after}", encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", type=Path, nargs="*", help="by default every method's on 10-10 and COCO-to-VOC")
    parser.add_argument("--suite", action="append", default=[], help="sums of a suite's tables; repeatable")
    parser.add_argument("--seeds", type=lambda text: [int(word) for word in text.split(",")], help="of suites, as 0,1")
    parser.add_argument("--gpu", default="A100", help="its name, for the table")
    parser.add_argument("--peak", type=float, default=312e12, help="its FLOPs a second, dense bf16")
    parser.add_argument("--utilisation", type=float, default=0.35, help="share of these that training reaches")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--scaling", type=float, default=0.9, help="share of --gpus times the speed that they reach")
    parser.add_argument("--out", type=Path, help="JSON file with every figure")
    parser.add_argument("--page", type=Path, help="Markdown file whose tables are written anew")
    arguments = parser.parse_args()
    assumed = Assumptions(
        arguments.gpu, arguments.peak, arguments.utilisation, arguments.gpus, arguments.scaling
    )
    paths = arguments.experiments
    if not paths and not arguments.suite:
        paths = sorted(VOC.glob("*.yaml"))
        paths += [path for path in sorted(COCO_TO_VOC.glob("*.yaml")) if (VOC / path.name) in paths]
    logging.disable(logging.WARNING)  # that models have random weights
    meter = Meter(gpus=assumed.gpus)
    found: dict[str, Any] = {"torch": torch.__version__, "assumed": vars(assumed), "experiments": {}, "suites": {}}
    rows = []
    for path in paths:
        config = load_config(path, [])
        base, step = meter.base(config), meter.step(config)
        found["experiments"][path.as_posix()] = {"step 0": base.as_dict(), "step 1": step.as_dict()}
        rows.append(_row(path, base, step, assumed))
        print(" | ".join(rows[-1]), flush=True)
    if rows:
        show("experiments", table(experiments_head(assumed), rows), arguments.page)
    meter.memory = False
    sums = []
    for name in arguments.suite:
        groups = of_suite(name, meter, arguments.seeds)
        found["suites"][name] = [
            {**vars(group), "hours": [assumed.hours(group.flops, gpus) for gpus in (1, assumed.gpus)]}
            for group in groups
        ]
        sums += [
            [
                name, group.name, f"{group.runs} + {group.bases}", f"{group.flops / 1e18:.1f}",
                *(f"{assumed.hours(group.flops, gpus):.1f}" for gpus in (1, assumed.gpus)),
            ]
            for group in groups
        ]
    if sums:
        head = ["suite", "table", "runs + base models", "EFLOPs", f"hours, {assumed.gpu}"]
        show("suites", table([*head, f"hours, {assumed.gpus} GPUs"], sums), arguments.page)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


def _row(path: Path, base: Step, step: Step, assumed: Assumptions) -> list[str]:
    last = step.phases[-1].measured["fp32"]
    both = base.flops + step.flops
    memory = [
        f"{max(base.memory(key), step.memory(key)) / 2**30:.1f}" for key in ("fp32", "bf16", "bf16 split")
    ]
    return [
        f"{path.parent.name}/{path.stem}", f"{last.flops / 1e12:.1f}", f"{base.flops / 1e15:.0f}",
        f"{step.flops / 1e15:.0f}", f"{assumed.hours(both):.1f}", f"{assumed.hours(both, assumed.gpus):.1f}", *memory,
    ]


if __name__ == "__main__":
    main()
