"""The bench refuses wrong answers, times in turns, and writes what it measured."""

import ast
import importlib.util
import json
import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from bench import isa, opbench
from bench.__main__ import main
from bench.cases.geometry import rotations, theta
from bench.memory import peak_extra_bytes
from bench.opbench import OpBench, Provider, measure
from bench.options import chosen, parse, sets_of
from bench.registry import all_cases
from bench.report import markdown

ROOT = Path(__file__).parent.parent


def of(value):
    return lambda inputs, mode: lambda: {"out": inputs["x"] * value}


def broken(inputs, mode):
    raise ValueError("no kernel for these shapes")


def missing(inputs, mode):
    raise opbench.Unavailable("no such package")


CASE = OpBench(
    name="double",
    device="cpu",
    title="twice",
    inputs=lambda n: {"x": torch.ones(n)},
    providers={
        "base": Provider(of(2)),
        "wrong": Provider(of(2.1)),
        "missing": Provider(missing),
        "broken": Provider(broken),
        "ours": Provider(of(2)),
    },
    answer=lambda inputs, mode: {"out": 2 * inputs["x"].double()},
    bytes_moved=lambda params, mode: 8 * params["n"],
    formula="read and written",
    flops=lambda params, mode: params["n"],
    floor=lambda inputs, mode: inputs["x"].clone,
    sweep=({"n": 1000},),
)


def test_a_wrong_answer_is_not_timed(monkeypatch):
    monkeypatch.setattr(opbench, "FLUSH_BYTES", 1024)
    rows = {row.provider: row for row in measure(CASE, {"n": 1000}, "fwd", 3)}
    assert "WRONG RESULT" in rows["wrong"].refused
    assert rows["wrong"].p50 is None
    assert rows["missing"].refused == "no such package"
    assert rows["broken"].refused == "FAILED: ValueError: no kernel for these shapes"
    assert rows["base"].speedup == 1
    assert 0 < rows["ours"].p20 <= rows["ours"].p50 <= rows["ours"].p80
    assert rows["ours"].gbps == pytest.approx(8000 / rows["ours"].p50 / 1e6)
    assert rows["floor"].partial
    assert rows["triad"].of_triad == 1
    assert rows["ours"].of_triad == pytest.approx(rows["ours"].gbps / rows["triad"].gbps)


def test_a_provider_can_be_left_out_and_that_is_said(monkeypatch):
    monkeypatch.setattr(opbench, "FLUSH_BYTES", 1024)
    rows = {row.provider: row for row in measure(CASE, {"n": 1000}, "fwd", 3, without=["base"])}
    assert rows["base"].refused == "left out (--without)"
    assert rows["ours"].speedup == 1  # the first one that was timed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--without", "eager", "eagr"],
            "--without: expected some of 'compile', 'eager', 'lightly', 'ours', got 'eagr', "
            "did you mean 'eager'?",
        ),
        (
            ["--set", "n=64"],
            "--set: expected parameters of vicreg_cpu, which are N, D, dtype, got n, "
            "did you mean 'N'?",
        ),
        (["--set", "N=abc"], "--set N: expected an integer >= 1, got abc"),
        (["--set", "N=0"], "--set N: expected an integer >= 1, got 0"),
        (["vicreg_cp"], "--case: no case 'vicreg_cp', did you mean 'vicreg_cpu'?"),
    ],
)
def test_what_the_chosen_cases_do_not_have_is_refused_before_any_is_timed(words, message, capsys):
    with pytest.raises(SystemExit) as refused:
        main(["--case", "vicreg_cpu", *words])
    assert str(refused.value).startswith(message)
    assert capsys.readouterr().out == ""


def test_a_parameter_of_one_of_the_chosen_cases_changes_that_one(capsys):
    """Values are of the type that the case's own have: family=45 is a word."""
    known = {case.name: case for case in all_cases()}
    options = parse(["--headline", "--set", "B=2", "family=45", "N=64"], "bench", "")
    cases = chosen(known, ["warp_cpu", "vicreg_cpu"], options)
    first, second = (next(sets_of(case, options)) for case in cases)
    assert (first["B"], first["family"], second["N"]) == (2, "45", 64)
    assert second == {**known["vicreg_cpu"].sweep[0], "N": 64}
    said = capsys.readouterr().err
    assert "--set B: no parameter of vicreg_cpu\n" in said
    assert "--set N: no parameter of warp_cpu\n" in said


def test_the_list_names_the_providers(capsys):
    assert main(["--list"]) == 0
    assert "providers: 'eager', 'compile', 'ours'\n" in capsys.readouterr().out


def test_providers_take_turns(monkeypatch):
    monkeypatch.setattr(opbench, "FLUSH_BYTES", 1024)
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    times = opbench.interleaved(calls, "cpu", 4)
    assert order == list("abc") * 6  # two rounds do not count
    assert all(len(wall) == 4 and not gpu and not host for wall, gpu, host in times.values())


def test_peak_memory_is_of_the_call_alone():
    def call():
        big = torch.ones(64 << 20, dtype=torch.int8)
        return big[:1].clone()

    peak = peak_extra_bytes(call, "cpu")
    if peak is None:
        pytest.skip("the kernel's high-water mark cannot be reset here")
    assert 64e6 < peak < 90e6
    assert peak_extra_bytes(lambda: None, "cpu") < 8e6


@pytest.mark.parametrize("family", ["mixed", "45", "zoom2", "outside"])
def test_libraries_are_asked_for_the_same_transformation(family):
    """torchvision: source = R(-degrees) / scale · (out - shift), pixels from the centre, y down."""
    matrices = theta(family, 3, 2, "cpu").double()
    degrees, shift, scale = rotations(matrices, 64)
    out = torch.randn(3, 2, 2, dtype=torch.float64)
    x, y = (out - shift).unbind(-1)
    cos, sin = degrees.deg2rad().cos() / scale, degrees.deg2rad().sin() / scale
    theirs = torch.stack([cos * x + sin * y, -sin * x + cos * y], -1)
    ours = (matrices[..., :2] @ out[..., None])[..., 0] + matrices[..., 2] * 32
    torch.testing.assert_close(theirs, ours)


def test_no_two_files_import_each_other():
    """Imports inside functions count: what loads late is a circle, too."""
    below = {}
    for path in (ROOT / "bench").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "bench":
                found = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                below.setdefault(name, set()).update(found)
    for _ in below:
        for found in below.values():
            found |= {far for near in list(found) for far in below.get(near, ())}
    assert not [name for name, found in below.items() if name in found]


ON_CPU = [case for case in all_cases() if case.device == "cpu"]


@pytest.mark.slow(every=7)
@pytest.mark.parametrize("case", ON_CPU, ids=lambda case: case.name)
def test_every_cpu_case_checks_its_providers(case, monkeypatch):
    monkeypatch.setattr(opbench, "FLUSH_BYTES", 1024)
    small = {"B": 2, "K": 2, "size": 64, "N": 37, "D": 8}
    params = {key: small.get(key, value) for key, value in case.sweep[0].items()}
    providers = {n: p for n, p in case.providers.items() if n != "compile"}  # a minute each
    rows = measure(replace(case, providers=providers), params, "fwd", 1)
    ours = [row for row in rows if row.provider.startswith("ours") and row.refused is None]
    assert ours
    assert not [row.refused for row in rows if "WRONG" in (row.refused or "")]


def test_the_command_writes_json_that_the_table_reads(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(opbench, "FLUSH_BYTES", 1024)
    file = tmp_path / "deep" / "warp.json"
    words = ["--case", "attention_cpu", "--headline", "--modes", "fwd", "--samples", "2"]
    words += ["--set", "B=1", "N=5", "--json"]
    assert main([*words, str(file)]) == 0
    measured = json.loads(file.read_text())
    assert measured["machine"]["torch"] == torch.__version__
    assert measured["command"].startswith("python -m bench --case attention_cpu")
    assert {row["params"]["N"] for row in measured["rows"]} == {5}
    assert main(["table", str(file)]) == 0
    printed = capsys.readouterr().out
    assert markdown(measured) in printed
    assert "| ours (auto) |" in printed
    if importlib.util.find_spec("matplotlib"):
        assert main(["plot", str(file), str(tmp_path / "plots")]) == 0
        for name in ("speedup.png", "roofline.png"):
            with Image.open(tmp_path / "plots" / name) as plot:
                assert len(plot.convert("RGB").getcolors(1 << 20)) > 5  # not a blank page


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="AVX2 is of x86 processors")
def test_a_limited_run_is_limited_and_says_so(tmp_path):
    """Of a process that was started without the limit."""
    file = tmp_path / "attention.json"
    words = ["--case", "attention_cpu", "--headline", "--modes", "fwd", "--samples", "1"]
    words += ["--set", "B=1", "N=5", "--isa", "avx2", "--json", str(file)]
    done = subprocess.run(
        [sys.executable, "-m", "bench", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    measured = json.loads(file.read_text())
    assert measured["machine"]["isa"] == "avx2 at most"
    assert measured["command"] == "python -m bench " + " ".join(words)
    assert ", avx2 at most; torch " in markdown(measured)
    asked = (
        "import torch; from fastequi.kernels import native;"
        "print(torch.backends.cpu.get_cpu_capability(), native.instruction_set())"
    )
    env = {**os.environ, **isa.LIMITS["avx2"], "PYTHONPATH": str(ROOT)}
    told = subprocess.run(
        [sys.executable, "-c", asked], env=env, cwd=ROOT, capture_output=True, text=True
    )
    capability, ours = told.stdout.split()
    assert capability in ("AVX2", "DEFAULT")
    assert ours in ("v3", "v2")


def test_the_list_and_bad_names(capsys):
    assert main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(case.name in listed for case in all_cases())
    with pytest.raises(SystemExit, match="no case 'warp_recom'"):
        main(["--case", "warp_recom"])
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="warp_recon needs a CUDA device"):
            main(["--case", "warp_recon"])
