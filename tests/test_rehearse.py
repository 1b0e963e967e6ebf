"""The GPU cases without a GPU: what they launch, and what would be wrong with it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from bench import predict, rehearse

ROOT = Path(__file__).parent.parent


def rehearsed(tmp_path, *options):
    """The document of `python -m bench.rehearse`; Triton's interpreter, which tests use, off."""
    file = tmp_path / "rehearsed.json"
    run = subprocess.run(
        [sys.executable, "-m", "bench.rehearse", *options, "--json", file],
        env={key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert file.is_file(), run.stderr[-3000:]
    found = json.loads(file.read_text())
    assert run.returncode == bool(found["failed"]), run.stdout[-3000:]
    return found


@pytest.mark.slow
def test_a_case_launches_its_kernels_at_its_real_shape(tmp_path):
    found = rehearsed(
        tmp_path, "--case", "warp_recon", "--headline", "--modes", "fwdbwd", "--without",
        "ours, a pass per step", "ours, packed RGBX",
    )  # fmt: skip
    assert not found["failed"]
    by_name = {variant["kernel"]: variant for variant in found["variants"]}
    assert by_name.keys() == {"warp_recon_packed_kernel", "rescale_kernel"}
    loss = by_name["warp_recon_packed_kernel"]
    assert loss["grid"] == [256 * 4 * 14, 1, 1]  # of 1,024 targets, fourteen parts each
    assert loss["elements"] == 256 * 4 * 3 * 224 * 224
    assert {"PATCH=16", "GRAD=True"} <= set(loss["constants"].split(", "))
    assert 32 <= loss["registers"] <= 255
    assert loss["stack"] == loss["spills"] == 0


@pytest.mark.slow
def test_steps_of_whole_methods_are_rehearsed(tmp_path):
    found = rehearsed(tmp_path, "--case", "tir_overhead", "--headline", "--modes", "fwdbwd")
    assert not found["failed"]
    kernels = {variant["kernel"] for variant in found["variants"]}
    assert {"warp_packed_kernel", "warp_recon_packed_kernel", "vicreg_columns_kernel"} <= kernels


GOOD = rehearse.Variant("k", "", 80, 0, 0, 1024, 128, grid=(14_336, 1, 1), elements=2**31 - 1)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"stack": 8}, "spills: 8 bytes of stack"),
        ({"spills": 2}, "2 instructions"),
        ({"shared": 232_449}, "232449 bytes of shared memory, 232448 are there"),
        ({"registers": 255, "threads": 512}, "255 registers of 512 threads do not fit"),
        ({"grid": (1, 65_536, 1)}, "65536 programs along y, at most 65535"),
        ({"grid": (2**31, 1, 1)}, "programs along x"),
        ({"elements": 2**31}, "a tensor of 2147483648 elements"),
    ],
)
def test_what_a_gpu_would_refuse_is_said(changed, said):
    assert GOOD.faults() == []
    (fault,) = rehearse.Variant(**{**vars(GOOD), **changed}).faults()
    assert said in fault


def test_predictions_are_what_their_rules_give():
    assert json.loads(predict.PREDICTED.read_text()) == predict.document()


def test_every_goal_of_a_gpu_is_predicted():
    assert {line.goal for line in predict.LINES} == {f"H{i}" for i in range(1, 16)} - {"H7"}


def test_a_run_is_read_as_its_files_say():
    """Figures of the H200 as bench/results/README.md has them."""
    folder = ROOT / "bench" / "results" / "h200"
    found = {
        (line.goal, line.what, line.case): predict.value_in(folder, line) for line in predict.LINES
    }
    assert found["H1", "of R", "warp_recon"] == pytest.approx(0.61, abs=0.005)
    assert found["H1", "eager / ours", "warp_recon"] == pytest.approx(33.2, abs=0.05)
    assert found["H4", "host, µs", "warp_recon"] == pytest.approx(640, abs=5)
    assert found["H13", "TIR on VICReg, %", "tir_overhead"] == pytest.approx(27.8, abs=0.05)
    assert found["H12", "ViT-S/16, images a second", "encoder_step"] == pytest.approx(9716, abs=1)
    assert found["H14", "not waiting for images", "data"] is None
    assert found["H11", "of R", "rot90_batch"] is None


def test_reads_of_the_images_are_what_ncu_counted_less_the_prediction(tmp_path):
    """Of eight steps of 256 images in bfloat16: 16 bytes of prediction for each of an image's."""
    (line,) = (line for line in predict.LINES if line.case == predict.PROFILE)
    assert predict.value_in(tmp_path, line) is None
    source = 256 * 3 * 224**2
    head = '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"'
    row = f'"0","warp_recon_packed_kernel","dram__bytes_read.sum","byte","{17.1 * source:,.0f}"'
    file = tmp_path / "ncu_eight.csv"
    file.write_text(f"==PROF== Connected\n warp_recon fwdbwd\n{head}\n{row}\n")
    assert predict.value_in(tmp_path, line) == pytest.approx(1.1)
    file.write_text("==ERROR== no counters\n")
    assert predict.value_in(tmp_path, line) is None


def test_waiting_for_images_is_read_from_a_runs_second_half(tmp_path):
    waits = [0.9, 0.8, 0.1, 0.3]
    lines = [json.dumps({"step": 10 * i, "data_wait": wait}) for i, wait in enumerate(waits)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n")
    (line,) = (line for line in predict.LINES if line.goal == "H14")
    assert predict.value_in(tmp_path, line) == pytest.approx(0.8)
