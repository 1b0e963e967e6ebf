"""ViTs written out in plain PyTorch on state dicts, under the names that others give them."""

import math

import torch
import torch.nn.functional as F


def tensors(dim=32, depth=2, grid=(4, 4), patch=8, prefix=("cls_token",), embedded=True, ls=False):
    """A state dict as timm's VisionTransformer writes it, drawn wide enough that heads matter."""
    torch.manual_seed(0)
    shapes = {
        "pos_embed": (1, grid[0] * grid[1] + len(prefix) * embedded, dim),
        "patch_embed.proj.weight": (dim, 3, patch, patch),
        "patch_embed.proj.bias": (dim,),
        "norm.weight": (dim,),
        "norm.bias": (dim,),
        **dict.fromkeys(prefix, (1, 1, dim)),
    }
    for i in range(depth):
        layers = {"attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim)}
        layers |= {"mlp.fc1": (4 * dim, dim), "mlp.fc2": (dim, 4 * dim)}
        for name, shape in layers.items():
            shapes[f"blocks.{i}.{name}.weight"] = shape
            shapes[f"blocks.{i}.{name}.bias"] = shape[:1]
        for norm in ("norm1", "norm2"):
            shapes[f"blocks.{i}.{norm}.weight"] = shapes[f"blocks.{i}.{norm}.bias"] = (dim,)
        if ls:
            shapes |= dict.fromkeys((f"blocks.{i}.ls1.gamma", f"blocks.{i}.ls2.gamma"), (dim,))
    return {
        name: torch.randn(shape) * (2 / shape[-1] ** 0.5 if "qkv.weight" in name else 0.3)
        for name, shape in shapes.items()
    }


def forward(state, images, heads, prefix=("cls_token",)):
    """timm's forward_features, line by line."""
    weight = state["patch_embed.proj.weight"]
    x = F.conv2d(images, weight, state["patch_embed.proj.bias"], stride=weight.shape[-1])
    x = x.flatten(2).transpose(1, 2)
    first = [state[name].expand(len(x), -1, -1) for name in prefix]
    if state["pos_embed"].shape[1] == x.shape[1]:
        x = torch.cat([*first, x + state["pos_embed"]], 1)
    else:
        x = torch.cat([*first, x], 1) + state["pos_embed"]
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    for i in range(depth):
        of = {n.removeprefix(f"blocks.{i}."): t for n, t in state.items()}

        def norm(x, name, of=of):
            return F.layer_norm(x, x.shape[-1:], of[f"{name}.weight"], of[f"{name}.bias"], 1e-6)

        def linear(x, name, of=of):
            return F.linear(x, of[f"{name}.weight"], of.get(f"{name}.bias"))

        qkv = linear(norm(x, "norm1"), "attn.qkv").unflatten(-1, (3, heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v
        x = x + of.get("ls1.gamma", 1) * linear(mixed.transpose(1, 2).flatten(2), "attn.proj")
        hidden = F.gelu(linear(norm(x, "norm2"), "mlp.fc1"))
        x = x + of.get("ls2.gamma", 1) * linear(hidden, "mlp.fc2")
    return F.layer_norm(x, x.shape[-1:], state["norm.weight"], state["norm.bias"], 1e-6)


def linear(of, x, name):
    """A layer of a block, whose tensors `of` holds."""
    return F.linear(x, of[f"{name}.weight"], of.get(f"{name}.bias"))


def normed(of, x, name, eps):
    return F.layer_norm(x, x.shape[-1:], of[f"{name}.weight"], of[f"{name}.bias"], eps)


def blocks(state):
    """The tensors of each block, also of blocks in chunks (blocks.0.3.norm1.weight)."""
    found = {}
    for name, tensor in state.items():
        if name.startswith("blocks."):
            *numbers, rest = _split(name.removeprefix("blocks."))
            found.setdefault(int(numbers[-1]), {})[rest] = tensor
    return [found[i] for i in sorted(found)]


def _split(name):
    head, _, rest = name.partition(".")
    second, _, tail = rest.partition(".")
    return (head, second, tail) if second.isdigit() else (head, rest)


def embedded(state, images):
    weight = state["patch_embed.proj.weight"]
    x = F.conv2d(images, weight, state["patch_embed.proj.bias"], stride=weight.shape[-1])
    return x.flatten(2).transpose(1, 2)


def attended(qkv, heads, turn=None):
    """Softmax attention of [B, N, 3 D]; `turn` is applied to queries and keys [B, H, N, D / H]."""
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    if turn is not None:
        q, k = turn(q), turn(k)
    mixed = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v
    return mixed.transpose(1, 2).flatten(2)


def gated(of, x):
    """SwiGLU: of w12, w3 (DINOv2) or w1, w2, w3 (DINOv3)."""
    gate, up = (
        linear(of, x, "mlp.w12").chunk(2, -1)
        if "mlp.w12.weight" in of
        else (
            linear(of, x, "mlp.w1"),
            linear(of, x, "mlp.w2"),
        )
    )
    return linear(of, F.silu(gate) * up, "mlp.w3")


def mlp(of, x):
    if "mlp.w3.weight" in of:
        return gated(of, x)
    return linear(of, F.gelu(linear(of, x, "mlp.fc1")), "mlp.fc2")


def dinov2(state, images, heads):
    """DINOv2: positions of class token and patches are added before registers are put between."""
    x = embedded(state, images)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], 1) + state["pos_embed"]
    if "register_tokens" in state:
        between = state["register_tokens"].expand(len(x), -1, -1)
        x = torch.cat([x[:, :1], between, x[:, 1:]], 1)
    for of in blocks(state):
        mixed = attended(linear(of, normed(of, x, "norm1", 1e-6), "attn.qkv"), heads)
        x = x + of["ls1.gamma"] * linear(of, mixed, "attn.proj")
        x = x + of["ls2.gamma"] * mlp(of, normed(of, x, "norm2", 1e-6))
    return normed(state, x, "norm", 1e-6)


def dinov3(state, images, heads, theta=100.0):
    """DINOv3: queries and keys of patches are turned; the bias of keys is masked."""
    x = embedded(state, images)
    side = math.isqrt(x.shape[1])
    prefix = [state[name] for name in ("cls_token", "storage_tokens") if name in state]
    x = torch.cat([*(token.expand(len(x), -1, -1) for token in prefix), x], 1)
    dim = x.shape[-1] // heads
    places = (torch.arange(side) + 0.5) / side * 2 - 1
    rows, columns = torch.meshgrid(places, places, indexing="ij")
    periods = torch.tensor([theta ** (4 * j / dim) for j in range(dim // 4)])
    angles = torch.cat([p.flatten()[:, None] / periods for p in (rows, columns)], 1) * 2 * math.pi
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)

    def turn(q):
        still, moved = q[:, :, : -side * side], q[:, :, -side * side :]
        half = dim // 2
        rotated = torch.cat([-moved[..., half:], moved[..., :half]], -1)
        return torch.cat([still, moved * cos + rotated * sin], 2)

    for of in blocks(state):
        bias = of["attn.qkv.bias"] * of["attn.qkv.bias_mask"]
        qkv = F.linear(normed(of, x, "norm1", 1e-5), of["attn.qkv.weight"], bias)
        x = x + of["ls1.gamma"] * linear(of, attended(qkv, heads, turn), "attn.proj")
        x = x + of["ls2.gamma"] * mlp(of, normed(of, x, "norm2", 1e-5))
    return normed(state, x, "norm", 1e-5)
