import json

import pytest
import torch

from fastequi import choices
from fastequi.models import attention_choice
from fastequi.models.attention import attention, available_backends


def reference(q, k, v):
    """softmax(q kᵀ / √D) v in float64."""
    q, k, v = (t.double().transpose(1, 2) for t in (q, k, v))
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2)


def tensors(n, dim=64, heads=2, b=2, device="cpu", dtype=torch.float32):
    g = torch.Generator().manual_seed(n)
    return [torch.randn(b, n, heads, dim, generator=g).to(device, dtype) for _ in range(3)]


@pytest.mark.parametrize("n", [1, 37, 197, 201, 257, 261])
def test_odd_lengths_agree_with_float64_in_value_and_gradient(n, device):
    leaves = [t.requires_grad_() for t in tensors(n, device=device)]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    out, expected = attention(*leaves), reference(*exact)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(device)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    for leaf, ref in zip(leaves, exact, strict=True):
        torch.testing.assert_close(leaf.grad.double(), ref.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("n", [37, 197, 201, 257, 261])
@pytest.mark.parametrize("backend", ["flash3", "xformers", "sdpa", "auto"])
def test_half_precision_backends_agree_on_a_gpu(n, backend, device):
    if backend != "auto" and not available_backends()[backend][0]:
        pytest.skip(available_backends()[backend][1])
    leaves = [t.requires_grad_() for t in tensors(n, device=device, dtype=torch.bfloat16)]
    out = attention(*leaves, backend=backend)
    torch.testing.assert_close(out.double(), reference(*leaves), rtol=2e-2, atol=2e-2)


def test_no_image_sees_another(device):
    q, k, v = tensors(197, b=3, device=device)
    before = attention(q, k, v)
    q2, k2, v2 = (t.clone() for t in (q, k, v))
    for t in (q2, k2, v2):
        t[1] = 100.0
    after = attention(q2, k2, v2)
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[2], before[2])
    assert not torch.equal(after[1], before[1])


def test_keys_may_have_another_length(device):
    q, _, _ = tensors(5, device=device)
    _, k, v = tensors(9, device=device)
    torch.testing.assert_close(
        attention(q, k, v).double(), reference(q, k, v), rtol=1e-4, atol=1e-5
    )


def test_a_backend_that_cannot_run_says_why():
    with pytest.raises(RuntimeError, match="'xformers' cannot run here: it needs a CUDA device"):
        attention(*tensors(4), backend="xformers")
    with pytest.raises(ValueError, match="did you mean 'xformers'"):
        attention(*tensors(4), backend="xformer")
    q, k, v = tensors(4)
    with pytest.raises(ValueError, match=r"q, k, v: expected \[B, N, H, D\]"):
        attention(q, k[:, :, :1], v)


def test_doctor_gets_a_reason_for_each_backend():
    found = available_backends()
    assert found["sdpa"][0]
    assert all(reason for _, reason in found.values())


def test_compiles_to_one_graph(device):
    torch._dynamo.reset()
    q, k, v = tensors(17, device=device)
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k, v), attention(q, k, v))


def slow(q, k, v):
    return attention(q.double(), k.double(), v.double(), backend="sdpa").to(q.dtype)


def quick(q, k, v):
    return q + k + v


def test_the_fastest_is_measured_once_and_read_back(tmp_path, monkeypatch, caplog):
    """Real timings, of two functions that differ by far."""
    monkeypatch.setenv("FASTEQUI_CACHE", str(tmp_path))
    monkeypatch.setattr(choices, "_known", {})
    rest = ((4, 64, 64, 2, 32), torch.float32, torch.device("cpu"), True, "torch1")
    before = torch.get_rng_state()
    with caplog.at_level("INFO"):
        assert attention_choice.fastest({"slow": slow, "quick": quick}, *rest) == "quick"
    assert torch.equal(torch.get_rng_state(), before)  # a run's random numbers are its own
    assert "quick" in caplog.text
    (file,) = tmp_path.glob("attention-*.json")
    assert json.loads(file.read_text()) == {"N=64 M=64 H=2 D=32 torch.float32 fwdbwd": "quick"}
    # another process reads it, though the names now stand for the opposite
    monkeypatch.setattr(choices, "_known", {})
    assert attention_choice.fastest({"slow": quick, "quick": slow}, *rest) == "quick"
    # but not where the choice is gone, the file is garbage, or the versions are others
    monkeypatch.setattr(choices, "_known", {})
    third = {"slow": slow, "third": quick}
    assert attention_choice.fastest(third, *rest) == "third"
    file.write_text("{")
    monkeypatch.setattr(choices, "_known", {})
    assert attention_choice.fastest({"slow": quick, "quick": slow}, *rest) == "slow"
    other = (*rest[:-1], "torch2")
    assert attention_choice.fastest({"slow": slow, "quick": quick}, *other) == "quick"
    assert len(list(tmp_path.glob("attention-*.json"))) == 2


def test_processes_that_measure_at_once_take_the_first_ones_choice(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTEQUI_CACHE", str(tmp_path))
    rest = ((4, 64, 64, 2, 32), torch.float32, torch.device("cpu"), True, "torch1")
    real = attention_choice._times

    def meanwhile(*args):
        file = choices.file_of("attention", rest[2], rest[4])
        key = "N=64 M=64 H=2 D=32 torch.float32 fwdbwd"
        file.write_text(json.dumps({key: "slow", "another shape": "quick"}))
        return real(*args)

    monkeypatch.setattr(choices, "_known", {})
    monkeypatch.setattr(attention_choice, "_times", meanwhile)
    assert attention_choice.fastest({"slow": slow, "quick": quick}, *rest) == "slow"
    (file,) = tmp_path.glob("attention-*.json")
    assert len(json.loads(file.read_text())) == 2


def test_a_folder_that_cannot_be_written_is_said(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTEQUI_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(choices, "_known", {})
    rest = ((1, 4, 4, 1, 8), torch.float32, torch.device("cpu"), False, "torch1")
    assert attention_choice.fastest({"slow": slow, "quick": quick}, *rest) in ("slow", "quick")
    assert "choices of attention are not kept" in caplog.text
