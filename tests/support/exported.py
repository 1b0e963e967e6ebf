"""Networks that are exported, small and of every kind, and which formats have none of a kind."""

import torch

from fastequi.export.job import FORMATS
from fastequi.export.pretrained import PretrainedEncoder
from fastequi.export.subject import FOLDER, Subject
from fastequi.models.vit import VisionTransformer
from tests.support.peers import drawn

_SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4}
_ROPE = {"pos": "rope", "rope_theta": 50.0}
NETWORKS = {
    "plain": {"mlp_ratio": 2.5},
    "no biases": {"qkv_bias": False, "no_embed_class": True},
    "gains": {"init_values": 1e-5},
    "registers": {"reg_tokens": 3},
    "registers apart": {"reg_tokens": 2, "no_embed_class": True, "init_values": 1e-5},
    "swiglu": {"mlp": "swiglu", "mlp_hidden": 96, "init_values": 1e-5},
    "odd swiglu": {"mlp": "swiglu", "mlp_hidden": 100},
    "rectangle": {"img_size": (24, 48)},
    "no class": {"class_token": False},
    "no norm": {"final_norm": False},
    "epsilon": {"norm_eps": 1e-5},
    "rope": {**_ROPE, "img_size": (24, 48)},
    "rope gains": {**_ROPE, "reg_tokens": 4, "init_values": 1e-5, "norm_eps": 1e-5},
    "rope swiglu": {**_ROPE, "reg_tokens": 1, "mlp": "swiglu", "init_values": 1e-5},
    "rope no biases": {**_ROPE, "reg_tokens": 1, "qkv_bias": False, "init_values": 1e-5},
    "rope no class": {**_ROPE, "class_token": False},
}
OBSTACLES = {  # network, format: what the error says
    ("odd swiglu", "meta"): "hidden channels of SwiGLU are a multiple of 8 there, here 100",
    ("odd swiglu", "hf"): "mlp_ratio of Dinov2Model is an integer, which 100 of 48 channels is not",
    ("rectangle", "meta"): "DINOv2's positions are a square, these are of 24x48 px",
    ("no class", "meta"): "DINOv2 and DINOv3 have a class token",
    ("no class", "hf"): "transformers' ViTs have a class token",
    ("no norm", "meta"): "DINOv2 and DINOv3 have a norm after the last block",
    ("no norm", "hf"): "transformers' ViTs have a norm after the last block",
    ("epsilon", "timm"): "the norms' epsilon of timm's is 1e-06, here it is 1e-05",
    ("epsilon", "meta"): "the norms' epsilon there is 1e-06, here it is 1e-05",
    ("rope no class", "timm"): "timm's DINOv3 has a class token",
    ("rope no class", "meta"): "DINOv2 and DINOv3 have a class token",
    ("rope no class", "hf"): "transformers' ViTs have a class token",
}
MEAN, STD = (0.5, 0.25, 0.375), (0.25, 0.5, 0.125)


def encoder(name):
    """One of the networks, its weights drawn so that every part matters."""
    torch.manual_seed(0)
    network = VisionTransformer(**{**_SMALL, **NETWORKS[name]})
    return PretrainedEncoder(drawn(network), name, MEAN, STD).eval()


def images(found, batch=2):
    return torch.randn(batch, 3, *found.image_size, generator=torch.Generator().manual_seed(1))


def tokens(network, x):
    with torch.no_grad():
        return network(x)


def write(name, to, folder):
    """(the encoder, what was written) of a network in a format, in a folder that is made."""
    folder.mkdir()
    found = encoder(name)
    return found, FORMATS[to].write(Subject.of(found), folder)


def run(written, folder, **names):
    """The names after the code of `Written.code` has run."""
    scope = dict(names)
    with torch.no_grad():
        exec(written.code.replace(FOLDER, str(folder)), scope)
    return scope
