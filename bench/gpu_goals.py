"""The goals of GPU kernels, figure by figure, and what is expected of each on an H200 and an H100.

A prediction starts from what an H200 measured (results/h200), where it measured the case. An H100
has the same multiprocessors at the same clock and 70 % of the bandwidth: the part of a time that
waits for memory (`memory`, a share from 0 to 1 that each line states) grows by the ratio of the
bandwidths.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bench.gpu_tables import cases, sets
from bench.opbench import OpBench

RESULTS = Path(__file__).parent / "results"

Rows = Mapping[str, Mapping[str, Any]]
"""The rows of one parameter set by provider."""


class Card(NamedTuple):
    bandwidth: float  # bytes a second of a triad: R
    peak: float  # operations a second of a square bfloat16 product


CARDS = {"H200": Card(4.26e12, 795e12), "H100": Card(3.0e12, 770e12)}
"""The H200 as measured; the H100 by 90 % of its 3.35 TB/s: the same chip, with less power."""


class Line(NamedTuple):
    """One figure of a goal.

    Attributes:
        goal: its number in the goals, "H1".
        what: the figure, in words.
        case: of the bench, with the parameters that pick the set.
        params: those that differ from other sets of the case.
        value: rows of that set to the figure.
        sense: ">=" or "<=", with `bound`: what is to be reached.
        predict: card's name to the figure that is expected.
        why: where the prediction comes from.
    """

    goal: str
    what: str
    case: str
    params: Mapping[str, Any]
    value: Callable[[Rows], float]
    sense: str
    bound: float
    predict: Callable[[str], float]
    why: str


DATA, PROFILE = "data", "profile"
"""Stages of ci/gpu.sh that are no cases: a run from images, by its metrics; ncu's counters."""


# the figures


def _ratio(over: str, under: str = "ours") -> Callable[[Rows], float]:
    return lambda rows: rows[over]["gpu_p50"] / rows[under]["gpu_p50"]


def _memory(over: str) -> Callable[[Rows], float]:
    return lambda rows: rows[over]["extra_bytes"] / rows["ours"]["extra_bytes"]


def _beyond_gradient(rows: Rows) -> float:
    """Of the path loss at its headline shape, over the prediction's bytes."""
    return rows["ours"]["extra_bytes"] / (2 * 256 * 4 * 3 * 224**2) - 1


def _of_r(rows: Rows) -> float:
    return rows["ours"]["of_triad"]


def _host(rows: Rows) -> float:
    return 1e3 * rows["ours"]["host_p50"]


def _host_ratio(over: str) -> Callable[[Rows], float]:
    return lambda rows: rows[over]["host_p50"] / rows["ours"]["host_p50"]


def _beyond_inputs(rows: Rows) -> float:
    """The memory of a call over the two views that it is given."""
    row = rows["ours"]
    return row["extra_bytes"] / (2 * row["params"]["N"] * row["params"]["D"] * 2)


def _launches(rows: Rows) -> float:
    return rows["ours"]["launches"]


def _of_peak(rows: Rows) -> float:
    return rows["ours"]["gflops"] / rows["bf16 product"]["gflops"]


def _rate(rows: Rows) -> float:
    """Images a second."""
    row = rows["ours, compiled"]
    return 1e3 * row["params"]["B"] / row["gpu_p50"]


def _added(rows: Rows) -> float:
    """Per cent that TIR adds to its base's step."""
    return 100 * (rows["ours, with TIR"]["gpu_p50"] / rows["base"]["gpu_p50"] - 1)


def _behind_best(rows: Rows) -> float:
    peers = [name for name in ("SDPA", "FlashAttention-3", "xformers") if name in rows]
    return rows["ours (auto)"]["gpu_p50"] / min(rows[name]["gpu_p50"] for name in peers)


# what is expected of them


def slower(card: str, memory: float) -> float:
    """How many times as long as on an H200 a call takes whose share `memory` waits for memory."""
    return 1 + memory * (CARDS["H200"].bandwidth / CARDS[card].bandwidth - 1)


@functools.cache
def _h200() -> list[Rows]:
    return list(sets(RESULTS / "h200"))


def on_h200(case: str, params: Mapping[str, Any], value: Callable[[Rows], float]) -> float:
    """A figure as the H200 measured it."""
    for rows in _h200():
        first = next(iter(rows.values()))
        if first["case"] == case and params.items() <= first["params"].items():
            return value(rows)
    raise KeyError(f"{case} {params}: not measured on the H200")


def _flops(case: str, **params: Any) -> float:
    """Of the first set of a case with these parameters."""
    found: OpBench = cases()[case]
    return found.flops({**found.sweep[0], **params}, "fwdbwd")


def _vit_base(card: str) -> float:
    """From ViT-S: products twice as wide reach 1.3 times its share of the peak; .4 is memory."""
    small = on_h200("encoder_step", SMALL, _rate) * _flops("encoder_step", **SMALL, B=1)
    share = 1.3 * small / CARDS["H200"].peak
    return share * CARDS[card].peak / _flops("encoder_step", **BASE, B=1) / slower(card, 0.4)


def _nt_xent_share(card: str) -> float:
    """The two kernels alone, which took 911 µs at N=8192, and 16 times that at N=32768."""
    return _flops("nt_xent", N=32768) / (16 * 911e-6) / CARDS["H200"].peak


HEAD: Mapping[str, Any] = {"B": 256, "K": 4, "dtype": "bfloat16", "family": "mixed"}
FEW: Mapping[str, Any] = {**HEAD, "B": 8}
EIGHT: Mapping[str, Any] = {**HEAD, "K": 8}
LOGITS, TOKENS = {"S": 10, "dtype": "bfloat16"}, {"R": 6272}
CROPS, TURNED = {"B": 64}, {"B": 192}
SMALL, BASE = {"model": "vit_small"}, {"model": "vit_base"}
AS_MEASURED = "the kernels as they were measured"


def _as_measured(
    goal: str,
    what: str,
    case: str,
    params: Mapping[str, Any],
    value: Callable[[Rows], float],
    wanted: tuple[str, float],
    grows: tuple[float, float] = (0.0, 0.0),
    why: str = AS_MEASURED,
    faster: float = 1.0,
) -> Line:
    """What the H200 measured; `grows`: the memory's share of what is above and below a ratio;
    `faster`: how many times, by what was rewritten since."""

    def predict(card: str) -> float:
        measured = faster * on_h200(case, params, value)
        return measured * slower(card, grows[0]) / slower(card, grows[1])

    return Line(goal, what, case, params, value, *wanted, predict, why)


def _of_r_as_measured(
    goal: str,
    case: str,
    params: Mapping[str, Any],
    wanted: float,
    memory: float,
    why: str,
    faster: float = 1.0,
) -> Line:
    """A share of R, of a call whose share `memory` waits for memory."""

    def predict(card: str) -> float:
        less = CARDS["H200"].bandwidth / CARDS[card].bandwidth
        return faster * on_h200(case, params, _of_r) * less / slower(card, memory)

    return Line(goal, "of R", case, params, _of_r, ">=", wanted, predict, why)


def _path_loss() -> tuple[Line, ...]:
    case = "warp_recon"
    alone = _ratio("ours", "ours, a pass per step")
    return (
        _as_measured("H1", "eager / ours", case, HEAD, _ratio("eager"), (">=", 12), (0.9, 0.2)),
        _as_measured("H1", "compile / ours", case, HEAD, _ratio("compile"), (">=", 3), (0.5, 0.2)),
        _as_measured("H1", "kornia / ours", case, HEAD, _ratio("kornia"), (">=", 15), (0.8, 0.2)),
        _of_r_as_measured(
            *("H1", case, HEAD, 0.75, 0.2),
            "251 µs on an H200, the L1 cache's data pipe busy for most of them, on either card",
        ),
        _as_measured("H2", "eager's memory / ours", case, HEAD, _memory("eager"), (">=", 10)),
        _as_measured("H2", "compile's memory / ours", case, HEAD, _memory("compile"), (">=", 4)),
        _as_measured(
            *("H2", "beyond the gradient / the prediction", case, HEAD, _beyond_gradient),
            ("<=", 0.01),
        ),
        _as_measured("H3", "eight steps / eight passes", case, EIGHT, alone, ("<=", 0.93)),
        Line(
            *("H3", "reads of the images at eight steps", PROFILE, {}, lambda rows: 0.0, "<=", 1.2),
            *(lambda card: 1.1, "an image's steps run side by side and share the L2 cache"),
        ),
        Line(
            *("H4", "host, µs", case, FEW, _host, "<=", 35),
            lambda card: 0.58 * on_h200(case, FEW, _host),
            "checks once for each signature, and known launches, since",
        ),
        *(
            _as_measured(
                *("H4", f"{peer}'s host / ours", case, FEW, _host_ratio(peer), (">=", times)),
                why="as above",
                faster=1 / 0.58,
            )
            for peer, times in (("torchvision", 2), ("kornia", 3))
        ),
        _as_measured(
            *("H4", "launches", case, FEW, _launches, ("<=", 2)),
            why="the loss; PyTorch fills the incoming gradient; a rescale by it",
        ),
    )


_VIEWS = "in parts, 101 µs for 128: rows' numbers, then the columns of all views of an image"
_BY_VIEWS = 1.2
_CROPS = "a third of 971 µs, which one program a multiprocessor took, and 297 µs of the maps'"


def _losses() -> tuple[Line, ...]:
    eager = _ratio("eager")
    return (
        _as_measured(
            *("H6", "eager / ours", "dino", LOGITS, eager, (">=", 8), (0.8, 0.7), _VIEWS, _BY_VIEWS)
        ),
        _as_measured(
            *("H6", "compile / ours", "dino", LOGITS, _ratio("compile"), (">=", 2.5), (0.6, 0.7)),
            *(_VIEWS, _BY_VIEWS),
        ),
        _of_r_as_measured("H6", "dino", LOGITS, 0.8, 0.7, _VIEWS, _BY_VIEWS),
        _of_r_as_measured("H6", "ibot", TOKENS, 0.8, 0.6, AS_MEASURED),
        Line(
            *("H11", "of R", "rot90_batch", TURNED, _of_r, ">=", 0.8, lambda card: 0.7),
            "not measured yet: whole lines are written, images transposed in shared memory",
        ),
        Line(
            *("H11", "eager / ours", "rot90_batch", TURNED, eager, ">=", 6, lambda card: 8.0),
            "not measured yet: eager passes the batch six times, in float32",
        ),
        _as_measured(
            *("H10", "eager / ours", "crop_align", CROPS, eager, (">=", 6), (0.5, 0.1), _CROPS, 2.0)
        ),
        _of_r_as_measured("H10", "crop_align", CROPS, 0.7, 0.1, _CROPS, 2.0),
        Line(
            *("H10", "eager / ours", "correspondence", CROPS, eager, ">=", 6, lambda card: 3.0),
            "not measured yet: bound by products, which eager makes in float32",
        ),
    )


def _products() -> tuple[Line, ...]:
    layer, stored = "linear_warp_recon", _ratio("linear, compiled loss")
    ours = 1.29  # ms: products .71, the loss .34, copies .12, sums by bias .09, small ones .03

    def over_stored(card: str) -> float:
        theirs = on_h200(layer, {}, lambda rows: rows["linear, compiled loss"]["gpu_p50"])
        return theirs * slower(card, 0.6) / (ours * slower(card, 0.3))

    def over_products(card: str) -> float:
        bare = on_h200(layer, {}, lambda rows: rows["floor"]["gpu_p50"])
        return ours * slower(card, 0.3) / bare

    def larger(card: str) -> float:
        return 1.2 * on_h200("nt_xent", {"N": 8192}, _ratio("eager")) * slower(card, 0.8)

    why = "products .71 ms, the loss .34, copies .12 in this layout, sums .12"
    return (
        Line(*("H5", "linear, compiled loss / ours", layer, {}, stored, ">=", 2, over_stored), why),
        Line(
            *("H5", "ours / its products", layer, {}, _ratio("ours", "floor"), "<=", 1.25),
            *(over_products, why),
        ),
        Line(
            *("H8", "eager / ours", "nt_xent", {"N": 16384}, _ratio("eager"), ">=", 2, larger),
            "both grow by N² from N=8192; ours loses its fixed part",
        ),
        Line(
            *("H8", "of the bf16 peak", "nt_xent", {"N": 32768}, _of_peak, ">=", 0.45),
            *(_nt_xent_share, "exponentials between the products; see _nt_xent_share"),
        ),
        Line(
            *("H8", "memory / the views", "nt_xent", {"N": 32768}, _beyond_inputs, "<=", 16),
            lambda card: on_h200("nt_xent", {"N": 8192}, _beyond_inputs),
            "grows as N, as the views do",
        ),
        Line(
            *("H9", "ours / its products", "vicreg", {"N": 2048}, _ratio("ours", "floor")),
            *("<=", 1.15, lambda card: 1.1),
            "5.76 ms on an H200 for 2.7e11 operations in float32, of which most are products",
        ),
        _as_measured(
            *("H9", "eager / ours", "vicreg", {"N": 2048}, _ratio("eager"), (">=", 3), (0.3, 0.2))
        ),
    )


def _steps() -> tuple[Line, ...]:
    vicreg = {"base": "vicreg_vits16"}
    return (
        _as_measured(
            *("H12", "ViT-S/16, images a second", "encoder_step", SMALL, _rate, (">=", 10_500)),
            (0.0, 0.5),
            "norms, GELU and AdamW wait for memory: half of the step",
        ),
        Line(
            *("H12", "ViT-B/16, images a second", "encoder_step", BASE, _rate, ">=", 3_700),
            *(_vit_base, "from ViT-S; see _vit_base"),
        ),
        Line(
            *("H13", "TIR on VICReg, %", "tir_overhead", vicreg, _added, "<=", 3),
            *(lambda card: 14.0, "28 less 8.7 of 43.5 ms: its decoders' steps convolve apart"),
        ),
        *(
            Line(
                *("H13", f"TIR on {name}, %", "tir_overhead", {"base": recipe}, _added, "<=", 2),
                *(lambda card: 16.0, "iBOT: 28 less 8.7 of 77 ms, as for VICReg"),
            )
            for name, recipe in (("DINO", "dino_vits16"), ("iBOT", "ibot_vits16"))
        ),
        Line(
            *("H13", "TIR on DINOv2, %", "tir_overhead", {"base": "dinov2_vitl16"}, _added),
            *("<=", 2, lambda card: 2.0),
            "1.8 % more operations than ViT-L/16's own, of which ViT-S has 22 %",
        ),
        Line(
            *("H14", "not waiting for images", DATA, {}, lambda rows: 0.0, ">=", 0.97),
            *(lambda card: 0.97, "not measured yet: nvJPEG decodes more images than a step takes"),
        ),
        *(
            Line(
                *(
                    "H15",
                    f"ours / the fastest, {n} tokens",
                    "attention",
                    {"N": n},
                    _behind_best,
                    "<=",
                    1.03,
                ),
                *(lambda card: 1.0, "what was fastest once is taken"),
            )
            for n in (197, 201, 257, 261, 37)
        ),
    )


LINES = (*_path_loss(), *_losses(), *_products(), *_steps())
