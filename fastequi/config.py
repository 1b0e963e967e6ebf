"""A run's settings: frozen dataclasses, one per section of the command line.

Every field is `--section.field value` on the command line and a key in a run's config.json.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from fastequi import config_json, limits, paths
from fastequi.data.config import DataConfig
from fastequi.runtime.devices import expect_name, use_device


@dataclass(frozen=True)
class ModelConfig:
    """The encoder: a ViT by name; what is None is as usual for that name.

    RotNet also takes "nin" and "alexnet"; of these settings they read `num_blocks` alone. A name
    with a colon is a network of another package (`fastequi.models.foreign_names`): "timm:NAME",
    "torchvision:NAME", "hf:FOLDER" or "package.module:function"; all but `attention`, which the
    decoder reads, must then stay as it is, since the name says the rest.
    """

    # vit_tiny, vit_small, vit_base, vit_large, vit_so150m, vit_giant, vit_huge_plus; nin, alexnet
    # (rotnet); timm:NAME, torchvision:NAME, hf:FOLDER, package.module:function
    name: str = "vit_small"
    num_blocks: int = 4  # blocks of nin, 3 to 5
    patch_size: int = 16  # pixels
    embed_dim: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    # None: swiglu in vit_giant and vit_huge_plus, else gelu
    mlp: Literal["gelu", "swiglu"] | None = None
    # MLP's width over embed_dim, of which swiglu takes two thirds; None: 4, but 2.572 in vit_so150m
    # and 6 in vit_huge_plus
    mlp_ratio: float | None = None
    mlp_hidden: int | None = None  # MLP's exact width, instead of mlp_ratio
    qkv_bias: bool = True  # of queries, keys and values
    norm_eps: float = 1e-6  # epsilon of all norms
    final_norm: bool = True  # else tokens are the last block's, not normalised
    pos: Literal["learned", "rope"] = "learned"  # position embedding, or DINOv3's rotary positions
    embed_class: bool = True  # learned: class token and registers have positions too
    rope_theta: float = 100.0  # rope: periods grow from 1 towards it; an image's side is 2
    rope_rescale: float = 1.0  # rope: coordinates are scaled in training by up to this (DINOv3: 2)
    rope_jitter: float = 1.0  # rope: the same, along each axis by itself
    rope_shift: float = 0.0  # rope: and shifted by up to this
    drop_path: float = 0.0  # stochastic depth rate of the last block, growing linearly from 0
    layer_scale: float | None = None  # initial value of LayerScale; None: no LayerScale
    reg_tokens: int = 0  # register tokens
    class_token: bool = True
    checkpoint_activations: bool = False  # recompute blocks in the backward: less memory, slower
    attention: Literal["auto", "flash3", "xformers", "sdpa"] = "auto"

    @property
    def is_vit(self) -> bool:
        """Whether it is a ViT of this library."""
        return self.name.startswith("vit_") and not self.is_foreign

    @property
    def is_foreign(self) -> bool:
        """Whether it is a network of another package."""
        return ":" in self.name


@dataclass(frozen=True)
class InitConfig:
    """Weights that the encoder starts from, and its teacher's where there is one
    (`fastequi.weights`); the model's settings have to be theirs."""

    path: str = ""  # file or folder; --init says it and takes the model's settings from there
    sha256: str = ""  # of the file; another one is refused. A run keeps it here
    network: Literal["teacher", "student"] | None = None  # of a file with both; None: the teacher
    # height and width in pixels that positions are for, if they are not square and nothing says so
    img_size: tuple[int, ...] = ()
    patch_size: int | None = None  # resize the patch embedding to this (FlexiViT's pseudo-inverse)
    # which of the weights' input channels are kept, from 0: one for each of data.channels, in their
    # order; one may come twice
    channels: tuple[int, ...] = ()


@dataclass(frozen=True)
class PathConfig:
    """The transformation path; only its family's ranges are used (by default the paper's)."""

    family: Literal["se2", "rotation", "translation", "color", "gain", "blur"] = "se2"
    degrees: float = 45.0  # rotation: half-range
    pixels: float = 10.0  # translation: half-range in pixels of a 224 px view
    brightness: float = 0.4  # color: factor 1 ± this
    contrast: float = 0.4  # color: factor 1 ± this
    saturation: float = 0.4  # color: factor 1 ± this
    hue: float = 0.1  # color: half-range, 1 is 360 degrees
    gain: float = 0.4  # gain: each channel times a factor 1 ± this
    offset: float = 0.1  # gain: plus a number, ± this, of values in 0..1
    sigma_low: float = 0.1  # blur: smallest sigma in pixels
    sigma_high: float = 2.0  # blur: largest sigma in pixels
    # of transformed views: how they continue beyond the edge of the source image
    padding_mode: Literal["zeros", "border", "reflection"] = "zeros"

    def build(self, channels: int = 3) -> paths.Path:
        """The path, of images of so many channels."""
        match self.family:
            case "se2":
                return paths.SE2(self.degrees, self.pixels)
            case "rotation":
                return paths.Rotation(self.degrees)
            case "translation":
                return paths.Translation(self.pixels)
            case "color":
                return paths.Color(self.brightness, self.contrast, self.saturation, self.hue)
            case "gain":
                return paths.Gain(channels, self.gain, self.offset)
            case "blur":
                return paths.Blur(self.sigma_low, self.sigma_high)
        raise ValueError(f"path.family: unknown {self.family!r}")


@dataclass(frozen=True)
class TIRConfig:
    """TIR, transformed-image reconstruction, added to a base method (`fastequi.methods.tir`).

    With num_steps=0, equi_dim=0 or recon_weight=0 the base is trained alone.
    """

    base: Literal["vicreg", "simclr", "dino", "ibot", "dinov2", "distillation"] = "vicreg"
    num_steps: int = 2  # K, reconstructed images between the two views
    recon_weight: float = 1.0  # lambda, weight of the reconstruction loss
    # channels split into z_inv and z_equi: of the token head (vicreg, simclr), of the head's last
    # layer (dino, ibot; z_inv are the prototypes' logits), of the head's hidden layer (dinov2)
    dim: int = 512
    equi_dim: int = 256  # how many of them are z_equi
    # share of the encoder's blocks after which z_equi is taken; below 1 by a layer of its own
    equi_layer: float = 1.0
    mask_outside: bool = False  # leave out target pixels that lie outside the source image
    # patch: convolutions on the token grid; blocks: transformer blocks, then a linear layer
    decoder: Literal["patch", "blocks", "pixel_shuffle"] = "patch"
    decoder_width: int = 256  # channels of the convolutions or blocks
    decoder_convs: int = 4  # patch, pixel_shuffle
    decoder_depth: int = 2  # transformer blocks, of the encoder's mlp_ratio, else 4 (blocks)
    decoder_heads: int = 4  # attention heads (blocks)
    decoder_shared: bool = True  # one trunk of blocks for all steps; else one each (blocks)
    # pixels by which what a token predicts reaches beyond its patch, at most half a patch, where
    # the last layer is linear (blocks, and patch without convolutions): neighbours' are added up,
    # so no edges of patches show after some training
    decoder_overlap: int = 0
    expander: tuple[int, ...] = (8192, 8192, 8192)  # layer widths (vicreg)
    inv_weight: float = 25.0  # vicreg
    var_weight: float = 25.0  # vicreg
    cov_weight: float = 1.0  # vicreg
    projector: tuple[int, ...] = (2048, 128)  # layer widths (simclr)
    temperature: float = 0.1  # simclr


@dataclass(frozen=True)
class TeacherConfig:
    """The frozen teacher of tir.base=distillation (`fastequi.methods.distillation`)."""

    path: str = ""  # file or folder of a ViT's weights, in any layout that --init reads
    sha256: str = ""  # of the file; another one is refused. A run keeps it here
    network: Literal["teacher", "student"] | None = None  # of a file with both; None: the teacher
    num_heads: int | None = None  # where nothing else says them
    img_size: tuple[int, ...] = ()  # height and width in pixels that its positions are for, as well
    embed_dim: int | None = None  # channels of its tokens; None: as its weights have
    class_token: bool | None = None  # None: as its weights have
    cosine: float = 0.9  # weight of 1 - cosine
    smooth_l1: float = 0.1  # weight of the smooth L1 distance
    cls_weight: float = 1.0  # of the class token's terms
    patch_weight: float = 1.0  # of the patch tokens' terms


@dataclass(frozen=True)
class DistillConfig:
    """Student and teacher of DINO, iBOT and DINOv2; times are shares of the training."""

    prototypes: int = 65536  # dinov2; dino and ibot have tir.dim - tir.equi_dim
    hidden_dim: int = 2048  # hidden width of the heads (dino, ibot); dinov2 takes tir.dim
    bottleneck_dim: int = 256
    student_temp: float = 0.1
    teacher_temp: float = 0.07  # after the warm-up
    first_teacher_temp: float = 0.04  # at the start of the warm-up
    temp_warmup: float = 0.0375  # length of the temperature's warm-up
    momentum: float = 0.996  # of the teacher's weights at the start; a cosine raises it to 1
    center_momentum: float = 0.9
    freeze: float = 0.00125  # time during which the prototypes are frozen
    patch_weight: float = 1.0  # of the loss of masked patches (ibot, dinov2)
    koleo_weight: float = 0.1  # of the KoLeo loss (dinov2)
    # compute prototype layer and loss together: less memory for two more matrix products
    chunked: bool = False


@dataclass(frozen=True)
class RotNetConfig:
    """Rotation prediction (`fastequi.methods.rotnet`)."""

    all_rotations: bool = True  # each image in all four rotations; else in one, drawn at random


@dataclass(frozen=True)
class GTSAConfig:
    """Equal features of rotated crops where they overlap (`fastequi.methods.gtsa`)."""

    dim: int = 768  # channels of the compared feature maps
    bins: int = 10  # RoIAlign bins along a side, between global crops
    local_bins: int = 4  # RoIAlign bins along a side, between a local and a global crop
    rotation_dims: tuple[int, ...] = (768, 768, 128)  # hidden widths of the rotation head
    correspondence_weight: float = 0.5
    rotation_weight: float = 0.5
    correspondence_from: float = 0.1  # share of the training after which correspondence counts
    momentum: float = 0.996  # of the teacher's weights at the start; a cosine raises it to 1


@dataclass(frozen=True)
class AnchorConfig:
    """A loss that holds patch features where the run began (`fastequi.methods.anchor`)."""

    kind: Literal["none", "cosine", "gram"] = "none"
    weight: float = 1.0


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, Muon or SGD; the learning rate follows a warm-up and a cosine, or steps.

    `lr` is for a batch of `base_batch` images and is scaled with the batch. Muon is for the
    matrices of transformer blocks, with AdamW for all else.
    """

    kind: Literal["adamw", "muon", "sgd"] = "adamw"
    lr: float = 1e-4
    base_batch: int = 256
    scaling: Literal["linear", "sqrt"] = "linear"  # of lr with batch size / base_batch
    final_lr: float = 0.0
    warmup: float = 0.0125  # share of the training
    weight_decay: float = 0.05
    final_weight_decay: float | None = None  # reached by a cosine; None: constant
    betas: tuple[float, float] = (0.9, 0.999)  # adamw, and beside muon
    momentum: float = 0.9  # sgd, Nesterov
    muon_momentum: float = 0.95  # muon, Nesterov
    muon_encoder: bool = True  # muon for the encoder's blocks as well as for the decoder's
    muon_lr: float = 1.0  # factor on lr for what muon updates
    milestones: tuple[float, ...] = ()  # shares of the training; if set, lr falls in steps there
    factor: float = 0.2  # of lr at each milestone
    clip: float = 3.0  # largest gradient norm; 0: no clipping
    clip_per_tensor: bool = False  # clip each parameter's norm by itself, as DINO and iBOT do
    layer_decay: float = 1.0  # of lr, per encoder block from the last one down
    patch_embed_lr: float = 1.0  # factor on lr for the patch embedding
    encoder_lr: float = 1.0  # factor on lr for all of the encoder, beside heads and decoders
    # share of the training during which heads and decoders learn and the encoder does not; its rate
    # then has a warm-up of its own
    freeze_encoder: float = 0.0
    # of the encoder's weights learn only adapters of this rank in its blocks (fastequi.models.lora)
    lora_rank: int = 0  # 0: no adapters, the weights themselves learn
    lora_alpha: float = 16.0  # an adapter's output counts lora_alpha / lora_rank


@dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    epochs: int = 800
    steps: int = 0  # of the optimiser, instead of epochs; 0: as many as the epochs have
    minutes: float = 0.0  # wall-time budget instead of epochs; 0: none
    seed: int = 0
    device: str = "auto"  # cpu, cuda or cuda:1; auto: a GPU if there is one
    # autocast's type; fp16 uses a loss scale; auto: the fastest type of the device
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    accumulate: int = 1  # batches per optimiser step
    compile: bool = False  # torch.compile
    parallel: Literal["ddp", "fsdp"] = "ddp"  # of several processes; fsdp shards the weights
    ema_momentum: float = 0.0  # of the weight EMA that evaluation uses; 0: no EMA
    log_every: int = 20  # steps
    max_skipped: int = 20  # consecutive steps with non-finite loss or gradient that end the run
    checkpoint_every: int = 2000  # steps; 0: not by steps
    checkpoint_minutes: float = 10.0  # minutes since the last checkpoint; 0: not by time
    keep_checkpoints: int = 3
    async_save: bool = False  # write checkpoints in a thread, from a copy in memory
    tensorboard: bool = True
    knn_every: int = 0  # steps between online kNN probes; 0: none
    knn_data: tuple[str, ...] = ()  # labelled images of these probes, as --data of eval knn
    r2_every: int = 0  # steps between online R2 probes of SE(2) parameters; 0: none
    # end the run at its best checkpoint if the probe's score (kNN's larger accuracy, or without kNN
    # patch tokens' mean R2) falls by more than this below its best; 0: never
    stop_if_worse: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.knn_data, str):  # a single place
            object.__setattr__(self, "knn_data", (self.knn_data,) if self.knn_data else ())

    def resolved_device(self) -> str:
        return str(use_device(self.device, "train.device"))

    def autocast_dtype(self, device: torch.device) -> torch.dtype | None:
        """The type of autocast in training; None: float32, without autocast."""
        if self.precision == "auto":
            return fast_dtype(device)
        return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]

    def fit_dtype(self, device: torch.device) -> torch.dtype:
        """The type that probes are fitted in: as training, but float32 instead of float16."""
        dtype = self.autocast_dtype(device)
        return torch.float32 if dtype in (None, torch.float16) else dtype


def fast_dtype(device: torch.device) -> torch.dtype | None:
    """The type in which a device multiplies matrices fastest; None: float32.

    bfloat16 on GPUs of compute capability 8.0 and above, float16 on older ones, and bfloat16 on
    CPUs with instructions for it; on other CPUs it is emulated and slower than float32.
    """
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if native else torch.float16
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # older PyTorch
        return None
    flags = torch.cpu.get_capabilities()
    if not (flags.get("avx512_bf16") or flags.get("amx_bf16")):
        return None
    # where oneDNN may not use them (ONEDNN_MAX_CPU_ISA) a product takes a hundred times as long
    known = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if known else None


@dataclass(frozen=True)
class Config:
    """A whole run; recipes return one, the command line changes its fields."""

    method: Literal["tir", "gtsa", "rotnet"] = "tir"  # tir: TIR or its base alone
    model: ModelConfig = field(default_factory=ModelConfig)
    init: InitConfig = field(default_factory=InitConfig)
    data: DataConfig = field(default_factory=DataConfig)
    path: PathConfig = field(default_factory=PathConfig)
    tir: TIRConfig = field(default_factory=TIRConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    gtsa: GTSAConfig = field(default_factory=GTSAConfig)
    rotnet: RotNetConfig = field(default_factory=RotNetConfig)
    anchor: AnchorConfig = field(default_factory=AnchorConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        """Refuses settings that would fail later in the run."""
        expect_name("train.device", self.train.device)
        limits.check(self)

    def expect_colors(self) -> None:
        """Raises ValueError where `path.family` is color and the channels are none, if known."""
        limits.expect_colors(self)

    def peak_lr(self) -> float:
        ratio = self.data.batch_size * self.train.accumulate / self.optim.base_batch
        return self.optim.lr * (ratio if self.optim.scaling == "linear" else ratio**0.5)

    def total_steps(self, steps_per_epoch: int) -> int:
        """Length of the schedule in optimiser steps, without train.minutes."""
        by_epochs = self.train.epochs * steps_per_epoch // self.train.accumulate
        return self.train.steps or max(by_epochs, 1)

    def to_json(self, recipe: str = "") -> str:
        """A run's config.json: the settings, and the recipe that they come from."""
        return config_json.written(self, recipe)

    @classmethod
    def from_json(cls, text: str) -> Config:
        """The settings of a run's config.json, also of earlier versions.

        Raises:
            ValueError: it is no JSON, has unknown fields or values of other types, or is of a
                version whose settings had other names.
        """
        return config_json.read(cls, text)
