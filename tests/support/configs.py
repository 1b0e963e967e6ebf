"""Small configurations, and runs that they give."""

import math
from dataclasses import replace

import torch

from bench import recipes
from fastequi.build import build, build_optimizer
from fastequi.data.views_choice import chosen
from fastequi.recipes import RECIPES
from fastequi.runtime import checkpoint


def gtsa(**data):
    config = recipes.scaled(RECIPES["gtsa_vits16"](), 8)
    return replace(
        config,
        model=replace(config.model, embed_dim=16, depth=1, num_heads=1, drop_path=0.0),
        data=replace(config.data, **{"local_crops": 2, **data}),
        gtsa=replace(config.gtsa, dim=12, bins=3, local_bins=2, rotation_dims=(16, 8)),
    )


def spoiled(monkeypatch, steps, what="loss"):
    """Lets the batches of some steps (from 1) end in NaN; counts them."""
    from fastequi import loop

    plain, count = loop.Loop._forward, [0]

    def forward(self, batch):
        count[0] += 1
        if count[0] not in steps:
            return plain(self, batch)
        if what == "input":  # through the whole network, its buffers too
            return plain(self, replace(batch, v1=batch.v1 * math.nan))
        out = plain(self, batch)
        if what == "gradient":
            return {**out, "loss": out["loss"] + (out["loss"] * 0).sqrt()}
        return {**out, "loss": out["loss"] * math.nan}

    monkeypatch.setattr(loop.Loop, "_forward", forward)


def config_of(name, **train):
    config = gtsa() if name == "gtsa_vits16" else recipes.scaled(RECIPES[name](), 8)
    config = replace(config, model=replace(config.model, embed_dim=48, depth=1, num_heads=1))
    options = {"epochs": 1, "log_every": 1, "checkpoint_every": 1, "keep_checkpoints": 9, **train}
    return replace(config, train=replace(config.train, tensorboard=False, **options))


def with_views_of_this_machine(config):
    """As a run that begins here keeps it."""
    views = chosen(config.data, torch.device("cpu"))
    return replace(config, data=replace(config.data, views=views))


def tensors(folder, name):
    from safetensors.torch import load_file

    return load_file(folder / f"{name}.safetensors")


def run_folder(folder, config):
    """A run that has not learned anything."""
    torch.manual_seed(0)
    method = build(config)
    taken = checkpoint.snapshot(
        1, model=method, optimizer=build_optimizer(method, config), state={}
    )
    checkpoint.write(folder / "checkpoints", taken)
    (folder / "config.json").write_text(config.to_json())
    return folder


def small_demo(**method):
    config = RECIPES["demo"]()
    return replace(
        config,
        model=replace(config.model, embed_dim=32, depth=1, num_heads=2),
        tir=replace(config.tir, dim=16, equi_dim=8, decoder_width=8, decoder_heads=1, **method),
    )
