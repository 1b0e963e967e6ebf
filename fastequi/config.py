"""A run's settings: frozen dataclasses, one per section of the command line.

Every field is `--section.field value` on the command line and a key in a run's config.json.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from fastequi import paths
from fastequi.data.augment import ViewConfig
from fastequi.devices import expect_name, use_device


@dataclass(frozen=True)
class ModelConfig:
    """The encoder: a ViT by name, its size changed where embed_dim, depth, num_heads are set.

    RotNet also takes "nin" and "alexnet", of which only `num_blocks` is read.
    """

    name: Literal["vit_tiny", "vit_small", "vit_base", "vit_large", "nin", "alexnet"] = "vit_small"
    num_blocks: int = 4  # of nin
    patch_size: int = 16
    embed_dim: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    layer_scale: float | None = None  # initial value; None leaves LayerScale out
    reg_tokens: int = 0
    class_token: bool = True
    checkpoint_activations: bool = False
    attention: Literal["auto", "flash3", "xformers", "sdpa"] = "auto"


@dataclass(frozen=True)
class PathConfig:
    """The transformation path; only the ranges of its family are used (the paper's by default)."""

    family: Literal["se2", "rotation", "translation", "color", "blur"] = "se2"
    degrees: float = 45.0
    pixels: float = 10.0  # of a 224 px view
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1  # turns
    sigma_low: float = 0.1  # pixels
    sigma_high: float = 2.0

    def build(self) -> paths.Path:
        match self.family:
            case "se2":
                return paths.SE2(self.degrees, self.pixels)
            case "rotation":
                return paths.Rotation(self.degrees)
            case "translation":
                return paths.Translation(self.pixels)
            case "color":
                return paths.Color(self.brightness, self.contrast, self.saturation, self.hue)
            case "blur":
                return paths.Blur(self.sigma_low, self.sigma_high)
        raise ValueError(f"path.family: unknown {self.family!r}")


@dataclass(frozen=True)
class TIRConfig:
    """Transformed-image reconstruction beside a base (methods.tir and its neighbours).

    Without steps or without equivariant channels it is the base alone.
    """

    base: Literal["vicreg", "simclr", "dino", "ibot", "dinov2"] = "vicreg"
    num_steps: int = 2  # K intermediate images
    recon_weight: float = 1.0  # lambda
    # channels that are split: of the token head (VICReg, SimCLR), of the head's last layer (DINO,
    # iBOT: the others are prototypes), of its hidden layer (DINOv2)
    dim: int = 512
    equi_dim: int = 256  # of which z_equi
    padding_mode: Literal["zeros", "border", "reflection"] = "zeros"
    mask_outside: bool = False
    decoder: Literal["patch", "pixel_shuffle"] = "patch"
    decoder_width: int = 256
    decoder_convs: int = 4
    expander: tuple[int, ...] = (8192, 8192, 8192)
    inv_weight: float = 25.0
    var_weight: float = 25.0
    cov_weight: float = 1.0
    projector: tuple[int, ...] = (2048, 128)  # SimCLR's
    temperature: float = 0.1  # SimCLR's


@dataclass(frozen=True)
class DistillConfig:
    """Student and teacher of DINO, iBOT and DINOv2 (methods.distillation); times are shares."""

    prototypes: int = 65536  # DINOv2's; DINO and iBOT have method.dim - method.equi_dim
    hidden_dim: int = 2048  # of the heads; DINOv2's is method.dim
    bottleneck_dim: int = 256
    student_temp: float = 0.1
    teacher_temp: float = 0.07
    first_teacher_temp: float = 0.04
    temp_warmup: float = 0.0375  # share of the training
    momentum: float = 0.996  # of the teacher's weights, by a cosine to 1
    center_momentum: float = 0.9
    freeze: float = 0.00125  # share of the training in which prototypes do not learn
    patch_weight: float = 1.0  # iBOT's loss on masked patches
    koleo_weight: float = 0.1  # DINOv2's
    chunked: bool = False  # prototype layer and loss in one: less memory, two more products


@dataclass(frozen=True)
class RotNetConfig:
    """Rotation prediction (methods.rotnet)."""

    all_turns: bool = True  # every image in all four turns; else one turn each, at random


@dataclass(frozen=True)
class GTSAConfig:
    """Crops that agree, turned as they are (methods.gtsa)."""

    dim: int = 768  # channels of the maps that are compared
    bins: int = 10  # along a side of what two global crops share
    local_bins: int = 4  # ... a local and a global crop
    turn_dims: tuple[int, ...] = (768, 768, 128)  # hidden layers of the head that tells the turn
    correspondence_weight: float = 0.5
    rotation_weight: float = 0.5
    correspondence_from: float = 0.1  # share of the training until which it does not count
    momentum: float = 0.996  # of the teacher's weights, by a cosine to 1


@dataclass(frozen=True)
class OptimConfig:
    """AdamW or SGD; the rate by a warm-up cosine or in steps.

    `lr` is for a batch of `reference` and scales with the batch.
    """

    kind: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-4
    reference: int = 256
    scaling: Literal["linear", "sqrt"] = "linear"
    final_lr: float = 0.0
    warmup: float = 0.0125  # share of the training
    weight_decay: float = 0.05
    final_weight_decay: float | None = None  # by a cosine; None: it stays
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9  # of sgd, Nesterov's
    milestones: tuple[float, ...] = ()  # shares of the training after which the rate falls ...
    factor: float = 0.2  # ... to this share of itself, instead of by a cosine
    clip: float = 3.0  # gradient norm; 0 leaves it alone
    clip_per_tensor: bool = False  # each parameter's own norm, as DINO and iBOT have it
    layer_decay: float = 1.0  # of the rate, per block of the encoder from the last one down
    patch_embed_lr: float = 1.0  # times the rate


@dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    epochs: int = 800
    minutes: float = 0.0  # a wall-time budget instead of epochs
    seed: int = 0
    device: str = "auto"  # cpu, cuda or cuda:1; auto: a GPU where there is one
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 autocast where it is fast
    accumulate: int = 1  # batches per optimiser step
    compile: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"  # of several processes: all weights on each, or parts
    average_momentum: float = 0.0  # of the weight average that evaluation uses; 0: none
    log_every: int = 20
    max_skipped: int = 20  # steps in a row with a loss or gradient not finite that end a run
    checkpoint_every: int = 2000
    keep_checkpoints: int = 3
    save_later: bool = False  # checkpoints are written by a thread, from a copy in memory
    tensorboard: bool = True
    knn_every: int = 0  # steps between looks at the classes that neighbours tell; 0: none
    knn_data: tuple[str, ...] = ()  # whose: as --data of eval knn, folders, shards, "digits"
    r2_every: int = 0  # steps between looks at what the features tell of SE(2); 0: none

    def __post_init__(self) -> None:
        if isinstance(self.knn_data, str):  # one place; older runs' config.json too
            object.__setattr__(self, "knn_data", (self.knn_data,) if self.knn_data else ())

    def resolved_device(self) -> str:
        return str(use_device(self.device, "train.device"))

    def autocast_dtype(self, device: torch.device) -> torch.dtype | None:
        """bfloat16 if asked for, or by "auto" on a GPU or a CPU that multiplies it natively."""
        bf16 = self.precision == "bf16" or (self.precision == "auto" and has_fast_bf16(device))
        return torch.bfloat16 if bf16 else None


def has_fast_bf16(device: torch.device) -> bool:
    """Whether matrices multiply faster in bfloat16: on GPUs, and on CPUs with instructions for it.

    Emulated on other CPUs it is slower than float32, so torch's own flags decide there.
    """
    if device.type != "cpu":
        return device.type == "cuda"
    if not hasattr(torch.cpu, "get_capabilities"):  # older PyTorch
        return False
    flags = torch.cpu.get_capabilities()
    return bool(flags.get("avx512_bf16") or flags.get("amx_bf16"))


@dataclass(frozen=True)
class Config:
    """A whole run; recipes return one, the command line changes its fields."""

    system: Literal["tir", "gtsa", "rotnet"] = "tir"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: ViewConfig = field(default_factory=ViewConfig)
    path: PathConfig = field(default_factory=PathConfig)
    method: TIRConfig = field(default_factory=TIRConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    gtsa: GTSAConfig = field(default_factory=GTSAConfig)
    rotnet: RotNetConfig = field(default_factory=RotNetConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        """Refuses what would fail later, after work was done."""
        data, method, train = self.data, self.method, self.train
        vit = self.model.name.startswith("vit_")
        _expect(
            not vit or data.image_size % self.model.patch_size == 0,
            "model.patch_size",
            f"a divisor of data.image_size={data.image_size}",
            self.model.patch_size,
        )
        _expect(
            vit or self.system == "rotnet",
            "model.name",
            f"a ViT for system={self.system}",
            self.model.name,
        )
        _expect(
            self.system != "rotnet" or data.source_size == data.image_size,
            "data.source_size",
            f"data.image_size={data.image_size} for system=rotnet, whose turns need no margin",
            data.source_size,
        )
        _expect(method.num_steps >= 0, "method.num_steps", "K >= 0", method.num_steps)
        _expect(
            0 <= method.equi_dim <= method.dim,
            "method.equi_dim",
            f"0 .. method.dim={method.dim}",
            method.equi_dim,
        )
        _expect(
            self.path.family != "blur" or data.source_size == data.image_size,
            "data.source_size",
            f"data.image_size={data.image_size} for the blur path, which needs no margin",
            data.source_size,
        )
        _expect(method.recon_weight >= 0, "method.recon_weight", ">= 0", method.recon_weight)
        _expect(len(method.expander) >= 1, "method.expander", "at least one width", method.expander)
        if self.system == "gtsa":
            self._check_gtsa()
        else:
            _expect(not data.overlaps, "data.turns", f"no for system={self.system}", True)
            self._check_distillation()
        expect_name("train.device", train.device)
        _expect(train.accumulate >= 1, "train.accumulate", ">= 1", train.accumulate)
        _expect(train.log_every >= 1, "train.log_every", ">= 1", train.log_every)
        _expect(train.max_skipped >= 1, "train.max_skipped", ">= 1", train.max_skipped)
        _expect(
            train.keep_checkpoints >= 1, "train.keep_checkpoints", ">= 1", train.keep_checkpoints
        )
        _expect(train.minutes >= 0, "train.minutes", ">= 0", train.minutes)
        _expect(train.minutes > 0 or train.epochs >= 1, "train.epochs", ">= 1", train.epochs)
        _expect(
            0 <= train.average_momentum < 1,
            "train.average_momentum",
            "0 <= momentum < 1",
            train.average_momentum,
        )
        for name in ("knn_every", "r2_every"):
            _expect(getattr(train, name) >= 0, f"train.{name}", ">= 0", getattr(train, name))
        _expect(
            not train.knn_every or bool(train.knn_data),
            "train.knn_data",
            "labelled images for train.knn_every",
            train.knn_data or repr(""),
        )
        _expect(
            train.parallel == "ddp" or self.optim.kind == "adamw",
            "optim.kind",
            "adamw for train.parallel=fsdp (PyTorch's fused SGD knows no parts)",
            self.optim.kind,
        )
        for name in ("knn_every", "r2_every", "save_later"):
            _expect(
                train.parallel == "ddp" or not getattr(train, name),
                f"train.{name}",
                "none for train.parallel=fsdp, whose weights lie in parts",
                getattr(train, name),
            )
        _expect(self.optim.lr > 0, "optim.lr", "> 0", self.optim.lr)
        _expect(0 <= self.optim.warmup < 1, "optim.warmup", "0 <= share < 1", self.optim.warmup)
        falling = all(0 < share < 1 for share in self.optim.milestones)
        _expect(
            falling and sorted(self.optim.milestones) == list(self.optim.milestones),
            "optim.milestones",
            "increasing shares between 0 and 1",
            self.optim.milestones,
        )
        _expect(0 < self.optim.factor <= 1, "optim.factor", "0 < factor <= 1", self.optim.factor)
        _expect(0 <= self.optim.momentum < 1, "optim.momentum", "0 .. 1", self.optim.momentum)
        _expect(self.optim.reference >= 1, "optim.reference", ">= 1", self.optim.reference)
        for name in ("layer_decay", "patch_embed_lr"):
            value = getattr(self.optim, name)
            _expect(0 < value <= 1, f"optim.{name}", "0 < factor <= 1", value)

    def _check_gtsa(self) -> None:
        data, gtsa = self.data, self.gtsa
        _expect(data.turns, "data.turns", "true for system=gtsa", data.turns)
        _expect(
            data.source_size == data.image_size,
            "data.source_size",
            f"data.image_size={data.image_size} for system=gtsa, whose turns need no margin",
            data.source_size,
        )
        _expect(
            data.crops == 0 or data.crop_size % self.model.patch_size == 0,
            "model.patch_size",
            f"a divisor of data.crop_size={data.crop_size}",
            self.model.patch_size,
        )
        _expect(data.mask_share == 0, "data.mask_share", "0 for system=gtsa", data.mask_share)
        for name in ("dim", "bins", "local_bins"):
            _expect(getattr(gtsa, name) >= 1, f"gtsa.{name}", ">= 1", getattr(gtsa, name))
        for name in ("correspondence_weight", "rotation_weight"):
            _expect(getattr(gtsa, name) >= 0, f"gtsa.{name}", ">= 0", getattr(gtsa, name))
        for name in ("correspondence_from", "momentum"):
            _expect(0 <= getattr(gtsa, name) <= 1, f"gtsa.{name}", "0 .. 1", getattr(gtsa, name))

    def _check_distillation(self) -> None:
        base, data, distill = self.method.base, self.data, self.distill
        patches, teaches = base in ("ibot", "dinov2"), base in ("dino", "ibot", "dinov2")
        _expect(
            patches == (data.mask_share > 0),
            "data.mask_share",
            f"{'> 0' if patches else '0'} for method.base={base}",
            data.mask_share,
        )
        _expect(teaches or data.crops == 0, "data.crops", f"0 for method.base={base}", data.crops)
        if not teaches:
            return
        _expect(self.model.class_token, "model.class_token", f"true for method.base={base}", False)
        _expect(
            data.crop_size % self.model.patch_size == 0,
            "model.patch_size",
            f"a divisor of data.crop_size={data.crop_size}",
            self.model.patch_size,
        )
        _expect(
            self.method.equi_dim < self.method.dim,
            "method.equi_dim",
            f"less than method.dim={self.method.dim}, the others are for method.base={base}",
            self.method.equi_dim,
        )
        for name in ("student_temp", "teacher_temp", "first_teacher_temp"):
            _expect(getattr(distill, name) > 0, f"distill.{name}", "> 0", getattr(distill, name))
        for name in ("temp_warmup", "momentum", "center_momentum", "freeze"):
            value = getattr(distill, name)
            _expect(0 <= value <= 1, f"distill.{name}", "0 .. 1", value)
        for name in ("prototypes", "hidden_dim", "bottleneck_dim"):
            _expect(getattr(distill, name) >= 1, f"distill.{name}", ">= 1", getattr(distill, name))

    def peak_lr(self) -> float:
        ratio = self.data.batch_size * self.train.accumulate / self.optim.reference
        return self.optim.lr * (ratio if self.optim.scaling == "linear" else ratio**0.5)

    def total_steps(self, steps_per_epoch: int) -> int:
        return max(self.train.epochs * steps_per_epoch // self.train.accumulate, 1)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Config:
        return _from_dict(cls, json.loads(text))


def _expect(holds: bool, name: str, expected: str, came: object) -> None:
    if not holds:
        raise ValueError(f"{name}: expected {expected}, got {came}")


def _from_dict(cls: type, values: dict[str, Any]) -> Any:
    """A dataclass from plain JSON: nested sections by their defaults' types, lists as tuples."""
    unknown = set(values) - {f.name for f in dataclasses.fields(cls)}
    if unknown:
        raise ValueError(f"{cls.__name__}: unknown fields {sorted(unknown)}")
    given: dict[str, Any] = {}
    defaults = cls()
    for name, value in values.items():
        current = getattr(defaults, name)
        if dataclasses.is_dataclass(current) and isinstance(value, dict):
            given[name] = _from_dict(type(current), value)
        else:
            given[name] = tuple(value) if isinstance(value, list) else value
    return cls(**given)
