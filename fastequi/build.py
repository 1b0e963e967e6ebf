"""Builds the method of a config, freshly initialised, and its optimiser."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from fastequi.config import Config, ModelConfig
from fastequi.data.views.batch import Views
from fastequi.methods.anchor import Anchor
from fastequi.methods.base import Base
from fastequi.methods.dino import Branch, Schedule, SelfDistillation
from fastequi.methods.distillation import Distillation, TermWeights
from fastequi.methods.gtsa import GTSA, Mapper, Weights
from fastequi.methods.joint import JointEmbedding
from fastequi.methods.method import Method
from fastequi.methods.rotnet import ANGLES, RotNet, linear_classifier
from fastequi.methods.simclr import SimCLRCriterion
from fastequi.methods.tir import TIR, Decoder
from fastequi.methods.vicreg import VICRegCriterion
from fastequi.models import lora, vit
from fastequi.models.alexnet import AlexNet, AlexNetClassifier
from fastequi.models.block_decoder import BlockDecoder
from fastequi.models.decoder import PathDecoder, PixelShuffleDecoder
from fastequi.models.encoder import TokenEncoder
from fastequi.models.foreign import ForeignEncoder
from fastequi.models.foreign_names import create
from fastequi.models.heads import DINOHead, EquiHead, SplitHead
from fastequi.models.maps import MapPredictor, MapProjector, RotationHead
from fastequi.models.nin import NetworkInNetwork
from fastequi.optim import adamw, muon, sgd

Network = TypeVar("Network", bound=nn.Module)


def build(config: Config) -> Method:
    """The method of a config, freshly initialised from torch's generator."""
    return {"tir": build_tir, "gtsa": build_gtsa, "rotnet": build_rotnet}[config.method](config)


def build_gtsa(config: Config) -> GTSA:
    """GTSA; see :func:`build`."""
    gtsa = config.gtsa
    encoder = _adapted(build_token_encoder(config.model, *_images(config)), config)
    _expect_grids(config, encoder, least=2)
    return GTSA(
        Mapper(encoder, MapProjector(encoder.embed_dim, gtsa.dim)),
        MapPredictor(gtsa.dim),
        RotationHead(encoder.embed_dim, gtsa.rotation_dims),
        views_of(config),
        (gtsa.bins, gtsa.local_bins),
        Weights(
            gtsa.correspondence_weight,
            gtsa.rotation_weight,
            gtsa.correspondence_from,
            gtsa.momentum,
        ),
        _anchor(config, encoder),
    )


def build_rotnet(config: Config) -> RotNet:
    """Rotation prediction; see :func:`build`."""
    encoder = _adapted(build_network(config.model, *_images(config)), config)
    classifier: nn.Module
    if isinstance(encoder, AlexNet):
        classifier = AlexNetClassifier(len(ANGLES))
    elif isinstance(encoder, NetworkInNetwork):
        classifier = linear_classifier(encoder.embed_dim)
    else:
        classifier = nn.Linear(encoder.embed_dim, len(ANGLES))
    return RotNet(encoder, classifier, views_of(config), config.rotnet.all_rotations)


def build_tir(config: Config) -> TIR:
    """TIR, or its base alone; see :func:`build`."""
    tir = config.tir
    encoder = _adapted(build_token_encoder(config.model, *_images(config)), config)
    _expect_grids(config, encoder)
    views = views_of(config)
    decoder = None
    if tir.num_steps and tir.equi_dim and tir.recon_weight:
        decoder = build_decoder(config, encoder.patch_size)
    base = build_base(config, encoder)
    weights = tir.recon_weight, tir.mask_outside
    path = config.path.build(config.data.in_chans)
    return TIR(base, decoder, path, views, *weights, _anchor(config, encoder))


def build_decoder(config: Config, patch_size: int) -> Decoder:
    """The decoders of the images between two views, of patches of the encoder's size."""
    model, tir = config.model, config.tir
    most = patch_size // 2
    if tir.decoder_overlap > most:
        raise ValueError(
            f"tir.decoder_overlap: expected 0 .. {most}, half of patches of {patch_size} px, "
            f"got {tir.decoder_overlap}"
        )
    sizes = 2 * tir.equi_dim, patch_size, tir.num_steps, tir.decoder_width
    if tir.decoder == "blocks":
        return BlockDecoder(
            *sizes,
            depth=tir.decoder_depth,
            num_heads=tir.decoder_heads,
            mlp_ratio=4.0 if model.mlp_ratio is None else model.mlp_ratio,
            in_chans=config.data.in_chans,
            shared=tir.decoder_shared,
            overlap=tir.decoder_overlap,
            attention=model.attention,
        )
    rest: dict[str, Any] = {"num_convs": tir.decoder_convs, "in_chans": config.data.in_chans}
    if tir.decoder == "patch":
        return PathDecoder(*sizes, **rest, overlap=tir.decoder_overlap)
    return PixelShuffleDecoder(*sizes, **rest)


def build_base(config: Config, encoder: TokenEncoder) -> Base:
    """The base method around an encoder."""
    tir, distill = config.tir, config.distill
    invariant, equi_dim, early = tir.dim - tir.equi_dim, tir.equi_dim, None
    depth = len(encoder.blocks) if isinstance(encoder, vit.VisionTransformer) else 1
    block = max(round(tir.equi_layer * depth), 1)
    if equi_dim and block < depth:
        early, equi_dim = EquiHead(encoder.embed_dim, equi_dim, block), 0
    if tir.base in ("vicreg", "simclr"):
        head = SplitHead(encoder.embed_dim, invariant + equi_dim, equi_dim)
        if tir.base == "simclr":
            simclr = SimCLRCriterion(invariant, tir.projector, tir.temperature)
            return JointEmbedding(encoder, head, simclr, early)
        weights = tir.inv_weight, tir.var_weight, tir.cov_weight
        vicreg = VICRegCriterion(invariant, tir.expander, *weights)
        return JointEmbedding(encoder, head, vicreg, early)
    if tir.base == "distillation":
        return _distillation(config, encoder, block)
    second = tir.base == "dinov2"
    sizes = distill.hidden_dim, distill.bottleneck_dim
    if second:
        sizes = tir.dim, distill.bottleneck_dim
        class_head = DINOHead(encoder.embed_dim, distill.prototypes, *sizes)
        patch_head = DINOHead(encoder.embed_dim, distill.prototypes, *sizes, equi_dim, "hidden")
    else:
        class_head = patch_head = DINOHead(encoder.embed_dim, invariant, *sizes, equi_dim)
    times = "momentum", "teacher_temp", "first_teacher_temp", "temp_warmup", "freeze"
    return SelfDistillation(
        Branch(encoder, class_head, patch_head, early),
        Schedule(**{name: getattr(distill, name) for name in times}),
        targets="sinkhorn" if second else "softmax",
        masked=tir.base != "dino",
        patch_weight=distill.patch_weight,
        koleo_weight=distill.koleo_weight if second else 0.0,
        student_temp=distill.student_temp,
        center_momentum=distill.center_momentum,
        chunked=distill.chunked,
    )


def _distillation(config: Config, encoder: TokenEncoder, block: int) -> Distillation:
    teacher, equi_dim = config.teacher, config.tir.equi_dim
    if teacher.embed_dim is None:
        raise ValueError("teacher.embed_dim: expected the teacher's channels, got None")
    weights = teacher.cosine, teacher.smooth_l1, teacher.cls_weight, teacher.patch_weight
    return Distillation(
        encoder,
        teacher.embed_dim,
        class_tokens=bool(teacher.class_token and encoder.has_class_token and teacher.cls_weight),
        weights=TermWeights(*weights),
        equi_head=EquiHead(encoder.embed_dim, equi_dim, block) if equi_dim else None,
    )


def views_of(config: Config) -> Views:
    """Geometry and normalisation of a config's images.

    Raises:
        ValueError: the normalisation is not one of its channels: that comes from a scan.
    """
    data = config.data
    for name in ("mean", "std"):
        values, channels = getattr(data, name), data.in_chans
        if len(values) != channels:
            raise ValueError(
                f"data.{name}: expected {channels} values, one for each of data.channels="
                f"{data.channels}, got {values}"
            )
    return Views(data.image_size, data.source_size, data.mean, data.std, config.path.padding_mode)


def _images(config: Config) -> tuple[int, int]:
    """Side in pixels and channels of the images that an encoder takes."""
    return config.data.image_size, config.data.in_chans


def build_network(
    model: ModelConfig, image_size: int, in_chans: int = 3
) -> TokenEncoder | NetworkInNetwork | AlexNet:
    """The network that a config names: RotNet's convolutional ones or any encoder."""
    if model.name == "nin":
        return NetworkInNetwork(model.num_blocks, in_chans)
    if model.name == "alexnet":
        return AlexNet(in_chans)
    return build_token_encoder(model, image_size, in_chans)


def build_token_encoder(model: ModelConfig, image_size: int, in_chans: int = 3) -> TokenEncoder:
    """The encoder that a config names: a ViT or a network of another package."""
    if model.is_foreign:
        return create(model.name, image_size, in_chans)
    return build_encoder(model, image_size, in_chans)


def _expect_grids(config: Config, encoder: TokenEncoder, least: int = 1) -> None:
    """Raises ValueError for images or local crops of which a foreign network gives no grid.

    Args:
        least: cells along a side that the method needs.
    """
    if not isinstance(encoder, ForeignEncoder):  # of a ViT the settings say it
        return
    data = config.data
    for name in ("image_size", *(("local_crop_size",) if data.local_crops else ())):
        side = getattr(data, name)
        instead = "" if name == "image_size" else "; data.local_crops 0 leaves them out"
        try:
            grid = encoder.grid_size(side, side)
        except ValueError as error:
            raise ValueError(f"data.{name}: {error}{instead}") from error
        if min(grid) < least:
            raise ValueError(
                f"data.{name}: expected at least {least * encoder.patch_size} for method="
                f"{config.method}, which compares cells of a grid: {encoder.name} gives "
                f"{grid[0]}x{grid[1]} of {side}x{side} px{instead}, got {side}"
            )


def _anchor(config: Config, encoder: TokenEncoder) -> Anchor | None:
    """The anchor at an encoder's first weights, if the config asks for one."""
    kind, weight = config.anchor.kind, config.anchor.weight
    return None if kind == "none" else Anchor(encoder, kind, weight)


def _adapted(network: Network, config: Config) -> Network:
    """With LoRA's adapters where a run asks for them, which only a ViT's may."""
    if isinstance(network, vit.VisionTransformer):
        try:
            lora.adapt(network, config.optim.lora_rank, config.optim.lora_alpha)
        except ValueError as error:
            raise ValueError(f"optim.lora_{error}") from error
    return network


def build_encoder(model: ModelConfig, image_size: int, in_chans: int = 3) -> vit.VisionTransformer:
    """The ViT that a config names, with the config's changes of its size."""
    own = ("embed_dim", "depth", "num_heads", "mlp", "mlp_ratio", "mlp_hidden")  # of the name
    size = {name: value for name in own if (value := getattr(model, name)) is not None}
    same = (
        *("patch_size", "drop_path", "reg_tokens", "class_token", "checkpoint_activations"),
        *("attention", "qkv_bias", "norm_eps", "final_norm", "pos"),
        *("rope_theta", "rope_rescale", "rope_jitter", "rope_shift"),
    )
    return vit.create(
        model.name,
        img_size=image_size,
        in_chans=in_chans,
        init_values=model.layer_scale,
        no_embed_class=not model.embed_class,
        **{name: getattr(model, name) for name in same},
        **size,
    )


def build_optimizer(method: Method, config: Config) -> torch.optim.Optimizer:
    """The optimiser of a run, at its peak rate."""
    optim, peak = config.optim, config.peak_lr()
    rates: dict[str, Any] = {
        "encoder": method.backbone,
        "layer_decay": optim.layer_decay,
        "patch_embed_lr": optim.patch_embed_lr,
    }
    if optim.kind == "sgd":
        return sgd(method, peak, optim.weight_decay, optim.momentum, **rates)
    if optim.kind == "muon":
        rates |= {"muon_encoder": optim.muon_encoder, "muon_lr": optim.muon_lr}
        momenta = optim.betas, optim.muon_momentum
        return muon(method, peak, optim.weight_decay, *momenta, **rates)
    return adamw(method, peak, optim.weight_decay, optim.betas, **rates)
