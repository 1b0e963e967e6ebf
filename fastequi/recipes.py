"""The recipes: functions that return the config of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fastequi.config import (
    AnchorConfig,
    Config,
    DistillConfig,
    ModelConfig,
    OptimConfig,
    PathConfig,
    TIRConfig,
    TrainConfig,
)
from fastequi.data.config import Augment, DataConfig, local_crop, vicreg_second


def tir_vicreg_vits16() -> Config:
    """TIR on VICReg with ViT-S/16, SE(2) path, as in the paper (800 epochs, batch 2048)."""
    # SIE's form of VICReg, which the paper builds on, weighs its terms 10/10/1
    return Config(tir=TIRConfig(inv_weight=10.0, var_weight=10.0, cov_weight=1.0))


def vicreg_vits16() -> Config:
    """VICReg alone with ViT-S/16, weights 25/25/1; the second view is not transformed."""
    return _alone(Config())


def tir_simclr_vits16() -> Config:
    """TIR on SimCLR with ViT-S/16, SE(2) path; what the paper leaves open is as for VICReg."""
    return Config(tir=TIRConfig("simclr"))


def simclr_vits16() -> Config:
    """SimCLR alone with ViT-S/16; the second view is not transformed."""
    return _alone(tir_simclr_vits16())


def tir_dino_vits16() -> Config:
    """TIR on DINO with ViT-S/16; not in the paper: channels are split as with iBOT."""
    return Config(
        model=ModelConfig(drop_path=0.1),
        data=_multi_crop((0.25, 1.0), (0.05, 0.25)),
        tir=TIRConfig("dino", dim=65536, equi_dim=2048),
        optim=_DINO_OPTIM,
    )


def dino_vits16() -> Config:
    """DINO alone with ViT-S/16: 2x224 + 8x96, 65,536 prototypes, 800 epochs of batch 1024."""
    return _alone(tir_dino_vits16())


def tir_ibot_vits16() -> Config:
    """TIR on iBOT with ViT-S/16: 8192 channels of which 2048 equivariant, 800 epochs."""
    return Config(
        model=ModelConfig(drop_path=0.1),
        data=replace(_multi_crop((0.25, 1.0), (0.05, 0.25)), mask_share=0.5),
        tir=TIRConfig("ibot", dim=8192, equi_dim=2048),
        optim=_DINO_OPTIM,
    )


def ibot_vits16() -> Config:
    """iBOT alone with ViT-S/16: block masks on half the views, shared head, 8192 prototypes."""
    return _alone(tir_ibot_vits16())


def tir_ibot_vitl16() -> Config:
    """TIR on iBOT with ViT-L/16, 250 epochs."""
    config = tir_ibot_vits16()
    return replace(
        config,
        model=replace(config.model, name="vit_large"),
        data=replace(_multi_crop((0.32, 1.0), (0.05, 0.32)), mask_share=0.5),
        distill=DistillConfig(temp_warmup=30 / 250, freeze=1 / 250),
        optim=replace(_DINO_OPTIM, warmup=10 / 250),
        train=TrainConfig(epochs=250),
    )


def ibot_vitl16() -> Config:
    """iBOT alone with ViT-L/16, 250 epochs."""
    return _alone(tir_ibot_vitl16())


def tir_dinov2_vitl16() -> Config:
    """TIR on DINOv2 with ViT-L/16: hidden 2048 of which 512 equivariant, 100 epochs."""
    return Config(
        model=ModelConfig("vit_large", drop_path=0.3, layer_scale=1e-5),
        data=replace(_multi_crop((0.32, 1.0), (0.05, 0.32)), batch_size=2048, mask_share=0.5),
        tir=TIRConfig("dinov2", dim=2048, equi_dim=512),
        distill=DistillConfig(momentum=0.992, temp_warmup=0.3, freeze=0.01),
        optim=OptimConfig(
            lr=4e-3,
            base_batch=1024,
            scaling="sqrt",
            final_lr=1e-6,
            warmup=0.1,
            weight_decay=0.04,
            final_weight_decay=0.4,
            layer_decay=0.9,
            patch_embed_lr=0.2,
        ),
        train=TrainConfig(epochs=100),
    )


def dinov2_vitl16() -> Config:
    """DINOv2 alone with ViT-L/16: untied heads, Sinkhorn-Knopp teacher, KoLeo, LayerScale."""
    return _alone(tir_dinov2_vitl16())


def tir_post_vits14() -> Config:
    """TIR on DINOv2 that goes on from DINOv2's ViT-S/14: --init WEIGHTS, heads are fresh.

    Crops, KoLeo and prototypes are DINOv2's (ssl_default_config.yaml, local crops of its training
    configs: 98 px); no stochastic depth, as in the distillation that made these weights (Oquab et
    al., TMLR 2024, section 5). Safeguards: see `_POST_OPTIM` and `_post`.
    """
    crops = replace(_multi_crop((0.32, 1.0), (0.05, 0.32)), local_crop_size=98)
    return _post(
        Config(
            model=ModelConfig(patch_size=14, layer_scale=1e-5),
            data=replace(crops, mask_share=0.5),
            tir=TIRConfig("dinov2", dim=2048, equi_dim=512),
            distill=DistillConfig(temp_warmup=0.3, freeze=0.01),
            optim=_POST_OPTIM,
        )
    )


def tir_post_vitb16() -> Config:
    """TIR on iBOT that goes on from iBOT's or DINO's ViT-B/16: --init WEIGHTS, heads are fresh.

    Crops and drop path are iBOT's for ViT-B/16 (its README: global crops from 0.32 of the area);
    channels are split as in `tir_ibot_vits16`. Safeguards: see `_POST_OPTIM` and `_post`.
    """
    return _post(
        Config(
            model=ModelConfig("vit_base", drop_path=0.1),
            data=replace(_multi_crop((0.32, 1.0), (0.05, 0.32)), mask_share=0.5),
            tir=TIRConfig("ibot", dim=8192, equi_dim=2048),
            distill=DistillConfig(temp_warmup=0.3, freeze=0.01),
            optim=replace(_POST_OPTIM, clip_per_tensor=True),
        )
    )


# Heads learn at a usual rate; the encoder at 1.5e-5 for 1,024 images, which is the 3e-5 for 4,096
# of DINOv3's Gram stage (dinov3_vit7b16_gram_anchor.yaml) by its square root rule, with DINOv2's
# layer decay and factor for patches. It is frozen for a tenth of the run, DINOv2's warm-up.
_POST_OPTIM = OptimConfig(
    lr=1e-3,
    base_batch=1024,
    scaling="sqrt",
    final_lr=1e-6,
    warmup=0.05,
    weight_decay=0.04,
    layer_decay=0.9,
    patch_embed_lr=0.2,
    encoder_lr=0.015,
    freeze_encoder=0.1,
)


def _post(config: Config) -> Config:
    """The safeguards of a run that goes on from weights, beside its rates.

    The teacher begins as the weights and follows at DINOv3's momentum for such a stage, 0.999; an
    online probe of R² on the run's own images, which needs no labels, ends a run that loses more
    than 0.05 of it, five times what two probes of one network differ by.
    """
    return replace(
        config,
        distill=replace(config.distill, momentum=0.999),
        anchor=AnchorConfig("cosine"),
        train=TrainConfig(epochs=30, r2_every=500, stop_if_worse=0.05),
    )


_DINO_OPTIM = OptimConfig(
    lr=5e-4,
    final_lr=1e-6,
    warmup=10 / 800,
    weight_decay=0.04,
    final_weight_decay=0.4,
    clip_per_tensor=True,
)


def _multi_crop(area: tuple[float, float], local: tuple[float, float]) -> DataConfig:
    """Two views of 224 px and eight local crops of 96 px; ranges of their windows' area."""
    first, second = Augment(area=area), replace(vicreg_second(), area=area)
    return DataConfig(
        a1=first, a2=second, local_crops=8, a3=replace(local_crop(), area=local), batch_size=1024
    )


def _alone(config: Config) -> Config:
    """The base of a recipe: no reconstruction, the second view not transformed."""
    return replace(
        config,
        tir=replace(config.tir, num_steps=0, equi_dim=0),
        path=_STILL,
    )


def tir_distill_vits16() -> Config:
    """TIR beside a frozen public teacher's tokens, ViT-S/16: --teacher.path FILE_OR_FOLDER."""
    # batch, rate, warm-up and drop path are DeiT's (Touvron et al., ICML 2021); not tuned for this
    return Config(
        model=ModelConfig(drop_path=0.1),
        data=DataConfig(batch_size=1024),
        tir=TIRConfig("distillation", dim=256, equi_dim=256),
        optim=OptimConfig(lr=1e-3, base_batch=1024, final_lr=1e-5, warmup=0.05),
        train=TrainConfig(epochs=100),
    )


def distill_vits16() -> Config:
    """A frozen public teacher's tokens alone, ViT-S/16: --teacher.path FILE_OR_FOLDER."""
    return _alone(tir_distill_vits16())


def gtsa_vits16() -> Config:
    """GTSA with ViT-S/16: 2x224 + 8x96 crops, randomly rotated, 100 epochs of batch 256.

    The encoder has a class token, whose output is dropped, as in the authors' code.
    """
    # batch and drop path are DINO's: the paper does not state them
    crop = Augment(area=(0.3, 1.0), flip=0.0, hue=0.2, saturation=0.8, blur=0.2)
    crop = replace(crop, brightness=0.8, contrast=0.8)
    return Config(
        "gtsa",
        model=ModelConfig(drop_path=0.1),
        data=DataConfig(
            a1=crop,
            a2=crop,
            local_crops=8,
            local_crop_size=96,
            a3=replace(crop, area=(0.1, 0.3)),
            rotations=True,
            overlap=(0.02, 0.01),
            batch_size=256,
        ),
        path=_STILL,
        optim=replace(_DINO_OPTIM, warmup=0.1),
        train=TrainConfig(epochs=100),
    )


def rotnet_nin_32() -> Config:
    """RotNet on 32 px images: network in network of four blocks, SGD, batch 128 in 4 rotations."""
    return Config(
        "rotnet",
        model=ModelConfig("nin"),
        data=_single_view(32, 128, Augment(area=(0.75, 1.0), aspect=(1.0, 1.0))),
        path=_STILL,
        optim=OptimConfig(
            "sgd", lr=0.1, base_batch=128, weight_decay=5e-4, milestones=(0.3, 0.6, 0.8), clip=0.0
        ),
        train=TrainConfig(epochs=200),
    )


def rotnet_alexnet_224() -> Config:
    """RotNet on 224 px images: AlexNet with BatchNorm, SGD, batch 192 in 4 rotations, 30 epochs."""
    return Config(
        "rotnet",
        model=ModelConfig("alexnet"),
        data=_single_view(224, 192, Augment(area=(0.6, 1.0), aspect=(1.0, 1.0))),
        path=_STILL,
        optim=OptimConfig(
            "sgd",
            lr=0.01,
            base_batch=192,
            weight_decay=5e-4,
            milestones=(1 / 3, 2 / 3),
            factor=0.1,
            clip=0.0,
        ),
        train=TrainConfig(epochs=30),
    )


def rotnet_vits16() -> Config:
    """RotNet with ViT-S/16 on 224 px images, optimised like the other ViTs."""
    return Config(
        "rotnet",
        model=ModelConfig(drop_path=0.1),
        data=_single_view(224, 256, Augment(area=(0.25, 1.0))),
        path=_STILL,
        optim=_DINO_OPTIM,
        train=TrainConfig(epochs=100),
    )


_STILL = PathConfig("se2", degrees=0.0, pixels=0.0)


def _single_view(size: int, batch: int, crop: Augment) -> DataConfig:
    """One randomly flipped crop of every image; v1 is the same window, at little cost."""
    return DataConfig(
        image_size=size,
        source_size=size,
        batch_size=batch,
        shared_crop=True,
        a1=Augment.none(),
        a2=replace(crop.plain(), flip=0.5),
    )


def demo() -> Config:
    """TIR on VICReg with a small ViT on 32 px windows: minutes on two CPU cores."""
    windows = Augment(
        side=(48 / 256, 77 / 256),  # 1 to 1.6 source pixels of a photograph scaled to 256
        flip=0.5,
        jitter=1.0,
        brightness=0.3,
        contrast=0.3,
        saturation=0.3,
        hue=0.05,
        gray=0.0,
        blur=0.0,
    )
    return Config(
        model=ModelConfig(
            "vit_tiny",
            patch_size=8,
            embed_dim=128,
            depth=4,
            num_heads=2,
            mlp_ratio=2.0,  # a third more steps than with 4 in the same time, and a higher R²
            class_token=False,
        ),
        data=DataConfig(
            image_size=32,
            source_size=48,  # 48/32 > √2: a rotated view has no empty corner
            batch_size=64,
            shared_crop=True,
            samples_per_decode=8,
            repeat=64,
            num_threads=1,
            a1=windows,
            a2=windows,
        ),
        path=PathConfig("se2", degrees=45.0, pixels=21.0, padding_mode="reflection"),  # 3 px of 32
        tir=TIRConfig(
            dim=288,
            equi_dim=192,
            # chosen on a validation part: bench/results/demo-cpu/decoders.json
            decoder="blocks",
            decoder_width=192,  # as many as a patch has values; 96 reconstructed worse
            decoder_depth=1,
            decoder_heads=6,
            decoder_overlap=2,  # of 8: no edges of patches show; demo-cpu/overlap.json
            expander=(512, 512),
            # VICReg's proportions, a hundredth of its weights
            inv_weight=0.25,
            var_weight=0.25,
            cov_weight=0.01,
        ),
        # chosen on a validation part as well: demo-cpu/muon.json
        optim=OptimConfig("muon", muon_encoder=False, muon_lr=4.0, lr=4e-3, warmup=0.03),
        train=TrainConfig(minutes=3.0, log_every=20, checkpoint_every=0),
    )


RECIPES: dict[str, Callable[[], Config]] = {
    "tir_vicreg_vits16": tir_vicreg_vits16,
    "vicreg_vits16": vicreg_vits16,
    "tir_simclr_vits16": tir_simclr_vits16,
    "simclr_vits16": simclr_vits16,
    "tir_dino_vits16": tir_dino_vits16,
    "dino_vits16": dino_vits16,
    "tir_ibot_vits16": tir_ibot_vits16,
    "ibot_vits16": ibot_vits16,
    "tir_ibot_vitl16": tir_ibot_vitl16,
    "ibot_vitl16": ibot_vitl16,
    "tir_dinov2_vitl16": tir_dinov2_vitl16,
    "dinov2_vitl16": dinov2_vitl16,
    "tir_distill_vits16": tir_distill_vits16,
    "distill_vits16": distill_vits16,
    "tir_post_vits14": tir_post_vits14,
    "tir_post_vitb16": tir_post_vitb16,
    "gtsa_vits16": gtsa_vits16,
    "rotnet_nin_32": rotnet_nin_32,
    "rotnet_alexnet_224": rotnet_alexnet_224,
    "rotnet_vits16": rotnet_vits16,
    "demo": demo,
}

FROM_WEIGHTS = ("tir_post_vits14", "tir_post_vitb16")
"""Recipes that make no sense without --init."""
