"""What the README shows is what runs."""

import json
import re
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench/results"
README = (ROOT / "README.md").read_text()
TABLES = (RESULTS / "README.md").read_text()
ALL = {path: path.read_text() for path in ROOT.glob("**/README.md") if ".venv" not in path.parts}


def read(name):
    return json.loads((RESULTS / name).read_text())


def test_the_drop_in_loss_is_eight_lines_that_work():
    code = re.search(r"## One fused loss in your own code\n\n```python\n(.*?)```", README, re.S)[1]
    assert len(code.strip().splitlines()) <= 8
    scope: dict[str, object] = {}
    exec(code, scope)
    grad = scope["pred"].grad
    assert grad.shape == (4, 2, 196, 768)
    assert grad.isfinite().all()
    assert torch.count_nonzero(grad) > 0.99 * grad.numel()


def test_every_recipe_and_variable_is_listed():
    from fastequi.recipes import RECIPES

    for name in RECIPES:
        assert f"`{name}`" in README
    root = Path(__file__).parent.parent
    files = [*root.glob("fastequi/**/*.py"), *root.glob("kernels/*.py")]
    read = set().union(
        *(re.findall(r'"((?:FASTEQUI|TRITON|GOMP)_\w+)"', f.read_text()) for f in files)
    )
    assert read
    for name in read:
        assert f"`{name}" in README, name


def test_the_speed_table_is_the_measured_one():
    from bench.report import markdown

    results = Path(__file__).parent.parent / "bench/results"
    for suffix, isa in (("", None), ("_avx2", "avx2 at most")):
        measured = json.loads((results / f"cpu{suffix}.json").read_text())
        assert measured["machine"].get("isa") == isa
        assert markdown(measured, "warp_recon_cpu fwdbwd").strip() in README
        fresh = json.loads((results / f"cpu_fresh_memory{suffix}.json").read_text())
        eager, ours = (
            next(row["p50"] for row in fresh["rows"] if row["provider"] == name)
            for name in ("eager", "ours")
        )
        words = f"{eager:.0f} ms and ours {ours:.1f}, {eager / ours:.1f} times less"
        assert f"{words} ([cpu_fresh_memory{suffix}.json]" in " ".join(README.split())


def test_every_cpu_timing_is_there_without_avx512_too():
    results = Path(__file__).parent.parent / "bench/results"
    timed = [file for file in results.glob("*.json") if '"provider"' in file.read_text()]
    plain = {file.name for file in timed if not file.stem.endswith("_avx2")}
    assert {file.stem.removesuffix("_avx2") + ".json" for file in timed} == plain
    for name in plain:
        limited = json.loads((results / name.replace(".json", "_avx2.json")).read_text())
        assert limited["machine"]["isa"] == "avx2 at most", name
        assert "isa" not in json.loads((results / name).read_text())["machine"], name


def test_the_recipes_table_is_the_measured_one():
    from bench.recipes import ALL, markdown

    root = Path(__file__).parent.parent
    measured = json.loads((root / "bench/results/recipes_cpu.json").read_text())
    assert markdown(measured) in README
    assert [row["recipe"] for row in measured["rows"]] == ALL


def test_gtsas_tables_are_the_measured_ones():
    from bench import recipes, report

    results = Path(__file__).parent.parent / "bench/results"
    assert recipes.markdown(json.loads((results / "gtsa_cpu.json").read_text())) in README
    losses = json.loads((results / "gtsa_losses_cpu.json").read_text())
    for case in ("crop_align_cpu", "correspondence_cpu"):
        rows = report.markdown(losses, f"{case} fwdbwd").strip().splitlines()
        assert "\n".join(line for line in rows if line.startswith("|")) in README


def quoted(name):
    """A file of results, and what the README says of it: with the same commit and command."""
    measured = json.loads((Path(__file__).parent.parent / "bench/results" / name).read_text())
    section = README.partition(f"<!-- figures: bench/results/{name} -->")[2]
    section = re.split(r"<!--|^## ", section, flags=re.M)[0]
    assert f"commit {measured['commit']}; [{name}]" in " ".join(section.split())
    assert measured["command"] in section
    return measured, section


def test_what_each_path_teaches_is_as_measured():
    from bench.equivariance import tables

    measured, section = quoted("equivariance_cpu.json")
    assert sum(block in section for block in tables(measured).split("\n\n")) == 2


def test_the_curve_over_pairs_is_the_measured_one():
    from bench.probe_pairs import curve

    measured, section = quoted("probe_pairs_cpu.json")
    shown = [line for line in section.splitlines() if line.startswith("| ")]
    assert len(shown) == 9
    assert set(shown) <= set(curve(measured).splitlines())


def test_the_table_of_black_borders_is_the_measured_one():
    measured, section = quoted("zero_fill_cpu.json")
    shown = [
        line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")
    ]
    names = {
        "the turned image alone": "transformed image alone",
        "TIR se2 K=2, patch": "TIR_se2_K=2, patch",
    }
    assert len(shown) == 7  # a head, a line, five rows
    for name, *cells in shown[2:]:
        found = []
        for kind in ("zero_fill", "border_free"):
            for task, report in measured[kind]["tasks"].items():
                rows = {s["features"]: s for s in report["scores"] if s["probe"] == "token"}
                row = rows[names.get(name, name)]
                beyond = ".." in task
                found.append(f"{row['error'][0]:.1f}°" if beyond else f"{row['r2'][0]:.2f}")
        assert cells == found


def test_the_rotnet_table_is_the_measured_one():
    root = Path(__file__).parent.parent
    measured = json.loads((root / "bench/results/rotnet_fmnist_cpu.json").read_text())
    assert f"test images: {measured['rotation_accuracy']['all']:.3f}" in README
    for row in measured["classes"]:
        name = ", ".join(filter(None, (row["network"], row["block"])))
        (line,) = (line for line in README.splitlines() if line.startswith(f"| {name} |"))
        whole = {"linear": 2, "non-linear": 3, "convolutional": 4}
        place = {0: whole[row["probe"]], 50: 5, 10: 6}[row["per_class"]]
        assert line.split("|")[place].strip() == f"{row['accuracy']:.3f}"


def test_the_soaks_figures_are_the_measured_ones():
    root = Path(__file__).parent.parent
    soak = json.loads((root / "bench/results/soak_cpu.json").read_text())
    counts = {
        name: sum(n for kind, n in soak["kills"].items() if kind.startswith(name))
        for name in ("SIGKILL", "SIGTERM")
    }
    words = " ".join(README.split())
    assert f"Killed {sum(counts.values())} times" in words
    for name, count in counts.items():
        assert f"{name} {count} times" in words
    assert f"a run of {soak['steps']:,} steps" in words
    assert f"{soak['starts_beside_an_earlier_one']} times started again while" in words
    assert f"commit {soak['commit']}, {soak['seconds'] / 60:.0f} minutes" in words
    assert soak["weights_equal"]
    assert not soak["temporary_files"]
    assert not soak["shared_memory"]


def test_the_demos_table_is_the_measured_one():
    root = Path(__file__).parent.parent
    measured = json.loads((root / "bench/results/demo-cpu/equivariance.json").read_text())
    assert (root / "bench/results/demo-cpu/reconstructions.png").is_file()
    shown = {}
    for line in README.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if len(cells) == 8 and ".." in cells[3]:
            shown[cells[0], cells[1]] = (cells[2], cells[4], cells[5])
    rows = {
        (s["features"], s["probe"]): tuple(f"{v:.2f}" for v in s["r2"])
        for s in measured["scores"]
        if not s["probe"].startswith("ridge")
    }
    assert shown == rows
    for value in measured["psnr"].values():
        assert f"{value:.2f} dB" in README
    assert measured["machine"]["cpu"] in README
