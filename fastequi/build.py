"""From a config to its method, freshly initialised."""

from __future__ import annotations

from torch import nn

from fastequi.config import Config, ModelConfig
from fastequi.data.views.batch import Views
from fastequi.methods.base import Base
from fastequi.methods.dino import Branch, Schedule, SelfDistillation
from fastequi.methods.gtsa import GTSA, Mapper, Weights
from fastequi.methods.joint import JointEmbedding
from fastequi.methods.method import Method
from fastequi.methods.rotnet import ANGLES, RotNet, linear_classifier
from fastequi.methods.simclr import SimCLRCriterion
from fastequi.methods.tir import TIR
from fastequi.methods.vicreg import VICRegCriterion
from fastequi.models import vit
from fastequi.models.alexnet import AlexNet, AlexNetClassifier
from fastequi.models.decoder import PathDecoder, PixelShuffleDecoder
from fastequi.models.heads import DINOHead, SplitHead
from fastequi.models.maps import MapPredictor, MapProjector, TurnHead
from fastequi.models.nin import NetworkInNetwork


def build(config: Config) -> Method:
    """The method of a config, freshly initialised from torch's generator."""
    return {"tir": build_tir, "gtsa": build_gtsa, "rotnet": build_rotnet}[config.system](config)


def build_gtsa(config: Config) -> GTSA:
    """Crops that agree, turned as they are; see :func:`build`."""
    gtsa = config.gtsa
    encoder = build_encoder(config.model, config.data.image_size)
    return GTSA(
        Mapper(encoder, MapProjector(encoder.embed_dim, gtsa.dim)),
        MapPredictor(gtsa.dim),
        TurnHead(encoder.embed_dim, gtsa.turn_dims),
        views_of(config),
        (gtsa.bins, gtsa.local_bins),
        Weights(
            gtsa.correspondence_weight,
            gtsa.rotation_weight,
            gtsa.correspondence_from,
            gtsa.momentum,
        ),
    )


def build_rotnet(config: Config) -> RotNet:
    """Rotation prediction; see :func:`build`."""
    encoder = build_network(config.model, config.data.image_size)
    classifier: nn.Module
    if isinstance(encoder, AlexNet):
        classifier = AlexNetClassifier(len(ANGLES))
    elif isinstance(encoder, NetworkInNetwork):
        classifier = linear_classifier(encoder.embed_dim)
    else:
        classifier = nn.Linear(encoder.embed_dim, len(ANGLES))
    return RotNet(encoder, classifier, views_of(config), config.rotnet.all_turns)


def build_tir(config: Config) -> TIR:
    """TIR and its bases; see :func:`build`."""
    model, data, method = config.model, config.data, config.method
    encoder = build_encoder(model, data.image_size)
    views = views_of(config)
    decoder = None
    if method.num_steps and method.equi_dim and method.recon_weight:
        kind = PathDecoder if method.decoder == "patch" else PixelShuffleDecoder
        decoder = kind(
            2 * method.equi_dim,
            model.patch_size,
            num_steps=method.num_steps,
            width=method.decoder_width,
            num_convs=method.decoder_convs,
        )
    base = build_base(config, encoder)
    return TIR(base, decoder, config.path.build(), views, method.recon_weight, method.mask_outside)


def build_base(config: Config, encoder: vit.VisionTransformer) -> Base:
    """What TIR is added to, around its encoder."""
    method, distill = config.method, config.distill
    invariant = method.dim - method.equi_dim
    if method.base in ("vicreg", "simclr"):
        head = SplitHead(encoder.embed_dim, method.dim, method.equi_dim)
        if method.base == "simclr":
            simclr = SimCLRCriterion(invariant, method.projector, method.temperature)
            return JointEmbedding(encoder, head, simclr)
        weights = method.inv_weight, method.var_weight, method.cov_weight
        return JointEmbedding(encoder, head, VICRegCriterion(invariant, method.expander, *weights))
    second = method.base == "dinov2"
    sizes = distill.hidden_dim, distill.bottleneck_dim
    if second:
        sizes = method.dim, distill.bottleneck_dim
        class_head = DINOHead(encoder.embed_dim, distill.prototypes, *sizes)
        patch_head = DINOHead(
            encoder.embed_dim, distill.prototypes, *sizes, method.equi_dim, "hidden"
        )
    else:
        class_head = patch_head = DINOHead(encoder.embed_dim, invariant, *sizes, method.equi_dim)
    times = "momentum", "teacher_temp", "first_teacher_temp", "temp_warmup", "freeze"
    return SelfDistillation(
        Branch(encoder, class_head, patch_head),
        Schedule(**{name: getattr(distill, name) for name in times}),
        targets="sinkhorn" if second else "softmax",
        masked=method.base != "dino",
        patch_weight=distill.patch_weight,
        koleo_weight=distill.koleo_weight if second else 0.0,
        student_temp=distill.student_temp,
        center_momentum=distill.center_momentum,
        chunked=distill.chunked,
    )


def views_of(config: Config) -> Views:
    """Geometry and normalisation of a config's images."""
    data = config.data
    padding_mode = config.method.padding_mode
    return Views(data.image_size, data.source_size, data.mean, data.std, padding_mode)


def build_network(
    model: ModelConfig, image_size: int
) -> vit.VisionTransformer | NetworkInNetwork | AlexNet:
    """The network a config names: a convolutional one or a ViT."""
    if model.name == "nin":
        return NetworkInNetwork(model.num_blocks)
    return AlexNet() if model.name == "alexnet" else build_encoder(model, image_size)


def build_encoder(model: ModelConfig, image_size: int) -> vit.VisionTransformer:
    """The ViT a config names, with its size changed where the config says so."""
    size = {
        name: value
        for name in ("embed_dim", "depth", "num_heads")
        if (value := getattr(model, name)) is not None
    }
    return vit.create(
        model.name,
        img_size=image_size,
        patch_size=model.patch_size,
        mlp_ratio=model.mlp_ratio,
        drop_path=model.drop_path,
        init_values=model.layer_scale,
        reg_tokens=model.reg_tokens,
        class_token=model.class_token,
        checkpoint_activations=model.checkpoint_activations,
        attention=model.attention,
        **size,
    )
