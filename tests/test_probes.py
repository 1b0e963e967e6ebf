import math
from dataclasses import replace

import pytest
import torch

from fastequi.evaluate.probes import (
    Fit,
    cosine_probe,
    mlp_probe,
    pooled_r2,
    r2,
    ridge_probe,
    standardise,
    token_cosines,
    token_probe,
)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_r2_agrees_with_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    target = torch.randn(200, 3, generator=rng())
    pred = target + torch.randn(200, 3, generator=rng(1)) * torch.tensor([0.1, 0.7, 2.0])
    expected = metrics.r2_score(target.numpy(), pred.numpy(), multioutput="raw_values")
    assert r2(pred, target).tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    flat = metrics.r2_score(target.flatten().numpy(), pred.flatten().numpy())
    assert pooled_r2(pred, target) == pytest.approx(flat, rel=1e-4)
    assert r2(target.mean(0).expand_as(target), target).abs().max() < 1e-5


def test_ridge_agrees_with_scikit_learn():
    linear = pytest.importorskip("sklearn.linear_model")
    x = torch.randn(300, 6, generator=rng())
    y = x @ torch.randn(6, 2, generator=rng(1)) + 3 + 0.5 * torch.randn(300, 2, generator=rng(2))
    mean, scale = x.mean(0), x.std(0) + 1e-6
    model = linear.Ridge(alpha=10.0).fit(((x - mean) / scale).numpy(), y.numpy())
    expected = torch.from_numpy(model.predict(((x[:50] - mean) / scale).numpy()))
    ours = ridge_probe(x, y, x[:50], penalties=[10.0])
    torch.testing.assert_close(ours.double(), expected.double(), rtol=1e-4, atol=1e-4)


def test_ridge_chooses_its_penalty_on_held_out_pairs():
    x = torch.randn(60, 50, generator=rng())  # almost as many features as pairs
    y = x[:, :1] + 2.0 * torch.randn(60, 1, generator=rng(1))
    test = torch.randn(400, 50, generator=rng(2))
    chosen = ridge_probe(x, y, test)
    weakest = ridge_probe(x, y, test, penalties=[1e-6])
    assert r2(chosen, test[:, :1]).item() > r2(weakest, test[:, :1]).item()


def test_the_token_probe_reads_what_the_mean_token_hides():
    x = torch.randn(3000, 4, 5, generator=rng())
    y = torch.stack([x[:, 0, 0] - x[:, 2, 0], (x[:, 1, 1] * x[:, 3, 1]).tanh()], 1)
    fit = Fit(epochs=20, batch=64, seeds=2)
    tokens = r2(token_probe(x[:2500], y[:2500], x[2500:], fit), y[2500:])
    assert tokens.shape == (2, 2)
    assert tokens[:, 0].min() > 0.95
    pooled = r2(
        mlp_probe(x[:2500].mean(1), y[:2500], x[2500:].mean(1), replace(fit, width=64)), y[2500:]
    )
    assert pooled.max() < 0.3


def test_each_seed_learns_as_if_alone():
    x, y = torch.randn(300, 5, generator=rng()), torch.randn(300, 2, generator=rng(1))
    three = mlp_probe(x, y, x[:40], Fit(epochs=3, batch=64, seeds=3, width=16))
    assert not torch.allclose(three[0], three[1], atol=0.05)
    first = _second_alone(x, y, x[:40], Fit(epochs=3, batch=64))
    torch.testing.assert_close(three[1], first, rtol=1e-3, atol=1e-4)


def _second_alone(x, y, x_test, fit):
    """The second network alone, in nn.Linear, Adam and a plain loop."""
    (x, x_test), sizes = standardise(x, x_test), [(5, 16), (16, 16), (16, 2)]
    generator = rng(fit.seed)
    layers = []
    for dim, out in sizes:
        linear = torch.nn.Linear(dim, out)
        weight = 2 * torch.rand(3, dim, out, generator=generator) - 1
        bias = 2 * torch.rand(3, 1, out, generator=generator) - 1
        linear.weight.data, linear.bias.data = weight[1].T * dim**-0.5, bias[1, 0] * dim**-0.5
        layers += [linear, torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    adam = torch.optim.Adam(model.parameters(), fit.lr, weight_decay=1e-4)
    order, steps, step = rng(fit.seed), fit.epochs * 5, 0
    for _ in range(fit.epochs):
        for pick in torch.randperm(len(x), generator=order).split(fit.batch):
            adam.param_groups[0]["lr"] = fit.lr * (1 - step / steps)
            adam.zero_grad()
            torch.nn.functional.mse_loss(model(x[pick]), y[pick]).backward()
            adam.step()
            step += 1
    return model(x_test).detach()


@pytest.mark.slow
def test_bfloat16_reads_what_float32_reads():
    x = torch.randn(2500, 3, generator=rng())
    y = (x[:, :1] * x[:, 1:2]).tanh()
    scores = [
        r2(mlp_probe(x[:2000], y[:2000], x[2000:], Fit(20, 64, dtype=dtype, width=128)), y[2000:])
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert (scores[0].mean() - scores[1].mean()).abs() < 0.03


@pytest.mark.slow
def test_the_mlp_learns_a_nonlinear_target_that_ridge_cannot():
    x = torch.randn(2500, 3, generator=rng())
    y = (x[:, :1] * x[:, 1:2]).tanh()
    fit = Fit(epochs=20, batch=64)
    assert (
        r2(mlp_probe(x[:2000], y[:2000], x[2000:], replace(fit, width=128)), y[2000:]).min() > 0.8
    )
    assert r2(ridge_probe(x[:2000], y[:2000], x[2000:]), y[2000:]) < 0.1


def test_probes_repeat_and_leave_the_global_generator_alone():
    x, y = torch.randn(200, 4, 3, generator=rng()), torch.randn(200, 2, generator=rng(1))
    before = torch.get_rng_state()
    first = token_probe(x, y, x[:9], Fit(epochs=2, seed=5))
    assert torch.equal(first, token_probe(x, y, x[:9], Fit(epochs=2, seed=5)))
    assert not torch.equal(first, token_probe(x, y, x[:9], Fit(epochs=2, seed=6)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("probe", [ridge_probe, mlp_probe, token_probe])
def test_bad_features_are_refused(probe):
    x, y = torch.randn(10, 2, 3), torch.randn(10, 1)
    with pytest.raises(ValueError, match="x_test: expected finite"):
        probe(x, y, torch.full((1, 2, 3), math.nan))
    with pytest.raises(ValueError, match="N > 1"):
        probe(x[:0], y[:0], x)
    with pytest.raises(ValueError, match="expected"):
        probe(x, y[:5], x)


def test_a_channel_that_training_never_saw_change_is_not_blown_up():
    x, y = torch.randn(1000, 5, generator=rng()), torch.randn(1000, 1, generator=rng(1))
    y = x[:, :1] + 0.1 * y
    x[:, 4] = 0
    x_test = x[:200].clone()
    x_test[:5, 4] = 0.01
    for probe in (mlp_probe, ridge_probe):
        options = (Fit(epochs=5, seeds=1),) if probe is mlp_probe else ()
        assert r2(probe(x, y, x_test, *options), y[:200]).min() > 0.9


def cosines_by_hand(x, x_test, side):
    """One pair, place and channel at a time, in float64."""
    halves = [
        [t.double() for t in tokens.chunk(2, -1)] if side is None else _averaged(tokens, side)
        for tokens in (x, x_test)
    ]
    known = torch.stack(halves[0])
    common = known.mean((0, 1))
    scale = (known - common).square().mean((0, 1, 2)).sqrt()
    scale[scale < 1e-6] = 1.0
    found = []
    for first, second in halves:
        a, b = (first - common) / scale, (second - common) / scale
        rows = [
            [(u @ v / (u.norm() * v.norm()).clamp(min=1e-12)).item() for u in one for v in other]
            for one, other in zip(a, b, strict=True)
        ]
        found.append(torch.tensor(rows, dtype=torch.float64))
    return found


def _averaged(tokens, side):
    maps = tokens.double().transpose(1, 2).unflatten(2, (2 * side, 2 * side))
    mean = maps.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2)).flatten(2).transpose(1, 2)
    return mean.chunk(2, -1)


@pytest.mark.parametrize(("places", "side"), [(5, None), (16, None), (256, 8)])
def test_cosines_of_tokens_are_those_of_every_pair_of_places(places, side):
    x = torch.randn(300 if side is None else 5, places, 6, generator=rng()) + 3
    x[..., 2] = 7.0  # a constant channel of the first image
    x[..., 5] = 7.0  # and of the second
    test = torch.randn(4, places, 6, generator=rng(1)) + 3
    test[..., 2::3] = 7.0
    ours = token_cosines(x, test)
    for found, wanted in zip(ours, cosines_by_hand(x, test, side), strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=5e-4)
    assert ours[0].shape[1] == min(places, 64) ** 2


def test_places_that_are_no_square_are_averaged_too():
    x, test = (torch.randn(n, 200, 4, generator=rng(n)) for n in (9, 3))
    assert [t.shape for t in token_cosines(x, test)] == [(9, 64 * 64), (3, 64 * 64)]


def test_the_probe_of_cosines_reads_where_things_went_from_few_pairs():
    """Tokens of noise, turned around by 0..5 places: nothing tells how but which are alike."""
    shift = torch.randint(6, (900,), generator=rng(1))
    first = torch.randn(900, 6, 16, generator=rng())
    second = torch.stack([f.roll(int(s), 0) for f, s in zip(first, shift, strict=True)])
    second += 0.3 * torch.randn(900, 6, 16, generator=rng(2))
    x, y = torch.cat([first, second], -1), shift[:, None].float()
    fit = Fit(epochs=10, batch=32, width=64, seeds=1)
    by_cosines = r2(cosine_probe(x[:400], y[:400], x[400:], fit), y[400:])
    by_tokens = r2(token_probe(x[:400], y[:400], x[400:], fit), y[400:])
    assert by_cosines.min() > 0.9
    assert by_tokens.max() < 0.3
    with pytest.raises(ValueError, match="x_test: expected finite values"):
        cosine_probe(x[:400], y[:400], x[400:] * math.nan, fit)


def test_a_constant_channel_counts_for_nothing_whatever_its_size():
    x = torch.randn(300, 16, 16, generator=rng())
    test = torch.randn(5, 16, 16, generator=rng(1))
    found = []
    for constant in (0.0, 33.3, 5000.1):
        x[..., 0] = x[..., 8] = test[..., 0] = test[..., 8] = constant
        found.append(token_cosines(x, test)[1])
        assert standardise(x, test)[1][..., 0].abs().max() < 1e-2
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=2e-3)


@pytest.mark.parametrize("shape", [(9, 4), (9, 4, 5), (9, 4, 1)])
def test_what_are_no_tokens_of_two_images_is_said(shape):
    x = torch.randn(shape)
    with pytest.raises(ValueError, match=r"x: expected tokens of two images \[N, L, 2 D\], got"):
        cosine_probe(x, torch.randn(9, 1), x)


@pytest.mark.parametrize(("places", "kept"), [(64, 64), (65, 64), (80, 64), (81, 64), (63, 63)])
def test_at_most_64_places_are_compared(places, kept):
    x = torch.randn(6, places, 4, generator=rng())
    assert token_cosines(x, x)[0].shape == (6, kept**2)
