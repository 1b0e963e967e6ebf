"""`fastequi.load`: the encoder of a run or a file as one module, with how its images are made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from fastequi.data.channels import DTYPE, RGB
from fastequi.evaluate.encoders import load_encoder
from fastequi.export.transform import ImageTransform
from fastequi.models.vit import Tokens, VisionTransformer
from fastequi.weights.architecture import UNSTATED, Asked, Stated


class PretrainedEncoder(nn.Module):
    """A ViT with the normalisation of its images, from :func:`load`.

    Attributes:
        network: the ViT; its state dict has timm's names.
        name: of the run, checkpoint or file.
        in_chans: C, channels of the images.
        channels, value_range: of these images, as `data.channels` and `data.value_range` of the
            run that it is from.
        mean, std: of the normalisation, of values in 0..1, one for each channel.
        image_size: height and width in pixels that it is made for; it takes other multiples of the
            patch size as well, for which its positions are interpolated.
        patch_size: side of a patch in pixels.
        embed_dim: channels of its tokens.
        num_prefix_tokens: class and register tokens before those of the patches.
        transform: makes its input of an image or a batch (:class:`ImageTransform`).
    """

    def __init__(
        self,
        network: VisionTransformer,
        name: str,
        mean: Sequence[float],
        std: Sequence[float],
        channels: str = RGB,
        value_range: str = DTYPE,
    ) -> None:
        super().__init__()
        self.network, self.name, self.in_chans = network, name, network.in_chans
        self.mean, self.std = tuple(mean), tuple(std)
        self.channels, self.value_range = channels, value_range
        self.image_size, self.patch_size = network.img_size, network.patch_size
        self.embed_dim, self.num_prefix_tokens = network.embed_dim, network.num_prefix_tokens
        self.transform = ImageTransform(network.img_size, mean, std, channels, value_range)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [B, C, H, W] to tokens [B, num_prefix_tokens + L, embed_dim].

        The class token is first, then registers, then patches, row by row.
        """
        return self.network(images)

    def forward_features(self, images: Tensor) -> Tokens:
        """The tokens of normalised images [B, C, H, W] by name: cls, registers, patch."""
        return self.network.forward_features(images)

    def extra_repr(self) -> str:
        more = f", channels={self.channels!r}" if self.channels != RGB else ""
        size = f"image_size={self.image_size}"
        return f"{self.name!r}, {size}, mean={self.mean}, std={self.std}{more}"


_ASKED = Asked(
    *("checkpoint", "stated=Stated(num_heads=...)", "Stated(img_size=...)"),
    *("Stated(network=...)", "Stated(channels=...)"),
)


def load(checkpoint: str | Path, stated: Stated = UNSTATED) -> PretrainedEncoder:
    """The encoder of a run, a checkpoint, a file or a folder of weights of any known layout.

    Of a run it is what evaluations use: its EMA if it keeps one, the teacher where there is one. It
    is on the CPU, in eval mode, without a classifier; all of its weights take gradients. What a run
    has beyond its encoder (z_equi, decoders) is in `fastequi.evaluate.encoders.load_encoder`.

    Args:
        checkpoint: a run's folder, a checkpoint's, a *.safetensors, *.pth, *.pt or *.bin file, or a
            folder with one.
        stated: what the tensors of a file do not say, `fastequi.weights.architecture.Stated`.

    Raises:
        FileNotFoundError: no such file, or a run without a checkpoint.
        ValueError: what is there is not what was expected, or is no ViT.
        FloatingPointError: its features are not finite.
    """
    found = load_encoder(str(checkpoint), "cpu", stated, asked=_ASKED)
    if not isinstance(found.network, VisionTransformer):
        kind = "a function's" if found.network is None else type(found.network).__name__
        raise ValueError(
            f"CHECKPOINT: expected a ViT, got {kind} ({checkpoint}); "
            f"fastequi.evaluate.encoders.load_encoder gives the features of others"
        )
    network = found.network.requires_grad_(True)
    network.head = nn.Identity()
    images = found.mean, found.std, found.channels, found.value_range
    return PretrainedEncoder(network, found.name, *images).eval()
