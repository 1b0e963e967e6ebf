"""A run's settings: frozen dataclasses, one per section of the command line.

Every field is `--section.field value` on the command line and a key in a run's config.json.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from fastequi import limits, paths
from fastequi.data.views.augment import ViewConfig
from fastequi.runtime.devices import expect_name, use_device


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
    """Student and teacher of DINO, iBOT and DINOv2 (methods.dino); times are shares."""

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
    # of the multiplications (autocast): fp16 scales the loss; auto takes what is fast there
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    accumulate: int = 1  # batches per optimiser step
    compile: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"  # of several processes: all weights on each, or parts
    average_momentum: float = 0.0  # of the weight average that evaluation uses; 0: none
    log_every: int = 20
    max_skipped: int = 20  # steps in a row with a loss or gradient not finite that end a run
    checkpoint_every: int = 2000  # steps; 0: none
    checkpoint_minutes: float = 10.0  # as well, since the one before; 0: none
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
        """What training multiplies in; None: float32, without autocast."""
        if self.precision == "auto":
            return fast_dtype(device)
        return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]

    def fit_dtype(self, device: torch.device) -> torch.dtype:
        """What probes are fitted in: as training, but for float16, since they scale no loss."""
        dtype = self.autocast_dtype(device)
        return torch.float32 if dtype in (None, torch.float16) else dtype


def fast_dtype(device: torch.device) -> torch.dtype | None:
    """The type that a device multiplies matrices fastest in; None: float32.

    bfloat16 on GPUs of compute capability 8.0 and above, float16 on older ones, and bfloat16 on
    CPUs with instructions for it: emulated on others it is slower than float32.
    """
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if native else torch.float16
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # older PyTorch
        return None
    flags = torch.cpu.get_capabilities()
    return torch.bfloat16 if flags.get("avx512_bf16") or flags.get("amx_bf16") else None


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
        expect_name("train.device", self.train.device)
        limits.check(self)

    def peak_lr(self) -> float:
        ratio = self.data.batch_size * self.train.accumulate / self.optim.reference
        return self.optim.lr * (ratio if self.optim.scaling == "linear" else ratio**0.5)

    def total_steps(self, steps_per_epoch: int) -> int:
        return max(self.train.epochs * steps_per_epoch // self.train.accumulate, 1)

    def to_json(self, recipe: str = "") -> str:
        """A run's config.json: the settings, and which recipe they began as."""
        named = {"recipe": recipe} if recipe else {}
        return json.dumps({**named, **dataclasses.asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Config:
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError(f"expected a JSON object, got {text.strip()[:80]!r}")
        return _from_dict(cls, {name: found[name] for name in found if name != "recipe"})


def recipe_of(text: str) -> str:
    """The recipe that a config.json names; "" if it names none."""
    return str(json.loads(text).get("recipe", ""))


# What a run keeps from its beginning: what its weights are made for, or its place in the data is
# counted by. Of some only whether they are 0.
_KEPT: dict[str, Callable[[Any], Any]] = {
    name: lambda value: value
    for name in (
        *("system", "optim.kind", "data.image_size", "data.samples_per_decode", "data.repeat"),
        *("model.name", "model.num_blocks", "model.patch_size", "model.embed_dim", "model.depth"),
        *("model.num_heads", "model.mlp_ratio", "model.layer_scale", "model.reg_tokens"),
        *("model.class_token", "method.base", "method.num_steps", "method.dim", "method.equi_dim"),
        *("method.decoder", "method.decoder_width", "method.decoder_convs", "method.expander"),
        *("method.projector", "distill.prototypes", "distill.hidden_dim", "distill.bottleneck_dim"),
        *("gtsa.dim", "gtsa.turn_dims"),
    )
} | dict.fromkeys(("method.recon_weight", "data.mask_share", "train.average_momentum"), bool)


def changes(begun: Config, config: Config) -> dict[str, tuple[Any, Any]]:
    """What a run that goes on with `config` changes: {"section.field": (before, from now on)}.

    Raises:
        ValueError: something that a run keeps from its beginning.
    """
    before, after = (_flat(dataclasses.asdict(one)) for one in (begun, config))
    found = {name: (before[name], after[name]) for name in after if before[name] != after[name]}
    for name, (old, new) in found.items():
        if name in _KEPT and _KEPT[name](old) != _KEPT[name](new):
            raise ValueError(f"{name}: expected {old}, as the run began, with --resume, got {new}")
    return found


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        inside = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{name}.") if inside else {f"{prefix}{name}": value}
    return flat


def _from_dict(cls: type, values: dict[str, Any]) -> Any:
    """A dataclass from plain JSON: nested sections by their defaults' types, lists as tuples."""
    unknown = set(values) - {f.name for f in dataclasses.fields(cls)}
    if unknown:
        raise ValueError(f"{cls.__name__}: unknown fields {sorted(unknown)}")
    given: dict[str, Any] = {}
    defaults, hints = cls(), typing.get_type_hints(cls)
    for name, value in values.items():
        current = getattr(defaults, name)
        if dataclasses.is_dataclass(current) and isinstance(value, dict):
            given[name] = _from_dict(type(current), value)
        else:
            _expect_type(f"{cls.__name__}.{name}", value, hints[name])
            given[name] = tuple(value) if isinstance(value, list) else value
    return cls(**given)


def _expect_type(name: str, value: object, hint: Any) -> None:
    """Refuses JSON that cannot be of a field's type."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    allowed: set[type] = set()
    for one in typing.get_args(hint) if union else (hint,):
        origin, args = typing.get_origin(one), typing.get_args(one)
        if origin is tuple and isinstance(value, list):
            for item in value:
                _expect_type(f"{name}[]", item, args[0])
        if origin is tuple:
            allowed |= {list, str} if args[0] is str else {list}  # text: one of them
        elif origin is Literal:
            allowed |= {type(arg) for arg in args}
        else:
            allowed |= {int, float} if one is float else {one}
    if type(value) not in allowed:
        words = " or ".join(word for kind, word in _JSON.items() if kind in allowed)
        raise ValueError(f"{name}: expected {words or 'an object'}, got {json.dumps(value)[:80]}")


_JSON = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    list: "a list",
    type(None): "null",
}
