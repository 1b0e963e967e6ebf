"""Evaluation of encoders of other channels than RGB."""

import io
import json
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fastequi import paths
from fastequi.build import build
from fastequi.cli.dryrun import synthetic
from fastequi.cli.main import main
from fastequi.config import Config, DataConfig
from fastequi.data.labelled import labelled_sets
from fastequi.data.sources.image_sets import open_source
from fastequi.data.sources.kinds import Kind
from fastequi.evaluate import rotnet
from fastequi.evaluate import tasks as cut
from fastequi.evaluate.classification import evaluate_classes
from fastequi.evaluate.embed import embeddings
from fastequi.evaluate.encoder import Encoder
from fastequi.evaluate.encoders import (
    expect_the_same_images,
    load_encoder,
    of_method,
    random_init,
)
from fastequi.evaluate.equivariance import evaluate_equivariance
from fastequi.evaluate.geometry.name_lists import by_stem
from fastequi.evaluate.geometry.reading import Reading
from fastequi.evaluate.online import online_probes
from fastequi.evaluate.pairs import collect_pairs
from fastequi.evaluate.photo_windows import images_for, photometric_for, values_of
from fastequi.evaluate.photometric import Photometric
from fastequi.evaluate.predicted_images import predictions
from fastequi.evaluate.probes import Fit
from fastequi.evaluate.reconstruction import evaluate_reconstruction
from fastequi.evaluate.tasks import Budget, Windows, for_encoder, score_tasks, tasks
from fastequi.functional.normalise import denormalise
from fastequi.methods.rotnet import RotNet
from tests.support import science
from tests.support.channels import ONE_OR_FIVE, SEVERAL, several
from tests.support.configs import config_of, run_folder
from tests.support.science import values

CPU = torch.device("cpu")


def run_of(channels: int, **path) -> Config:
    return several(config_of("tir_vicreg_vits16"), channels, **path)


@pytest.mark.parametrize("channels", SEVERAL)
def test_a_run_of_other_channels_is_an_encoder_of_them(channels, tmp_path):
    config = run_of(channels)
    encoder = load_encoder(str(run_folder(tmp_path / "run", config)), "cpu")
    assert encoder.in_chans == channels
    assert (encoder.channels, encoder.value_range) == (config.data.channels, "dtype")
    images = torch.randn(2, channels, 32, 32)
    found = encoder.features(images)["patch"]
    assert not torch.equal(found, random_init(encoder).features(images + 1)["patch"])
    with pytest.raises(ValueError, match=rf"images: expected \[B, {channels}, H, W\], got \[2, 3"):
        encoder.features(torch.randn(2, 3, 32, 32))


def test_what_reads_rgb_alone_says_so(tmp_path, capsys):
    run = str(run_folder(tmp_path / "run", run_of(2)))
    with pytest.raises(ValueError, match="--data: grey images of 8 bits, but the encoder takes"):
        evaluate_classes("knn", run, data="digits", out=tmp_path / "knn.json")
    for evaluate in (evaluate_equivariance, evaluate_reconstruction):
        message = "--data: expected images with channels 0,1, as run takes; the embedded"
        with pytest.raises(ValueError, match=message):
            evaluate(run, out=tmp_path / "f.json")
    with pytest.raises(SystemExit):
        main(["eval", "position", run])
    said = "--data: expected images with channels 0,1, as the encoder takes; the embedded photo"
    assert said in capsys.readouterr().err


def labelled(folder, channels, depth="uint16"):
    """Two classes, told apart by the last channel alone."""
    contents = {}
    for i in range(40):
        image = values(channels, depth, i, (32, 32))
        image[..., -1] //= 1 + 3 * (i % 2)
        contents[f"{'ab'[i % 2]}/{i:02}.tif"] = science.plain_tiff(image)
    for name in "ab":
        (folder / name).mkdir(parents=True)
    return science.write(folder, contents)


@pytest.mark.parametrize("kind", ["knn", "linear"])
def test_classes_of_images_with_other_channels(tmp_path, kind):
    data = labelled(tmp_path / "set", 5)
    run = str(run_folder(tmp_path / "run", run_of(5)))
    rows = evaluate_classes(kind, run, data=data, out=tmp_path / "found.json", seeds=1)
    assert {row.encoder for row in rows} == {None, "random init", "run"}
    assert max(row.accuracy for row in rows if row.encoder is None) > 0.9  # raw, all five channels
    (train, test) = labelled_sets(data, values=values_of(run_of(5).data))
    (images, pixels, *_), *_ = test.batches(32, torch.device("cpu"))
    assert (images.dtype, images.shape) == (torch.uint16, (8, 5, 32, 32))
    assert pixels.shape == (8, 5 * 32 * 32)
    assert 0 <= pixels.min() < pixels.max() <= 1
    wanted = values(5, "uint16", int(train.source.names[0][-6:-4]), (32, 32))
    wanted[..., -1] //= 1 + 3 * int(train.labels[0])
    (images, *_), *_ = train.batches(32, torch.device("cpu"))
    np.testing.assert_array_equal(images[0].permute(1, 2, 0).numpy(), wanted)
    other = str(run_folder(tmp_path / "other", run_of(2)))
    said = (
        "--against: expected an encoder of the same images as run, which takes data.channels="
        "0,1,2,3,4 and data.value_range=dtype, got other, which takes data.channels=0,1 and "
        "data.value_range=dtype"
    )
    with pytest.raises(ValueError, match=said):
        evaluate_classes(kind, run, data=data, against=[other], out=tmp_path / "f.json")


def test_digits_are_one_channel_for_an_encoder_of_one():
    one = DataConfig(channels="0", mean=(0.5,), std=(0.5,))
    train, _ = labelled_sets("digits", values=one)
    (images, *_), *_ = train.batches(16, torch.device("cpu"))
    grey, *_ = next(labelled_sets("digits")[0].batches(16, torch.device("cpu")))
    assert images.shape == (250, 1, 16, 16)
    assert torch.equal(images.expand(-1, 3, -1, -1), grey)


def test_labelled_images_during_training_have_the_channels_of_the_run(tmp_path):
    data = labelled(tmp_path / "set", 5)
    config = run_of(5)
    train = replace(config.train, knn_every=5, knn_data=(str(data),))
    config = replace(config, train=train)
    (probe,) = online_probes(config, None)
    encoder = load_encoder(str(run_folder(tmp_path / "run", run_of(5))), "cpu")
    assert 0 <= probe.measure(encoder)["knn_k20"] <= 1


def test_photometric_change_of_other_channels_is_a_gain_and_an_offset_of_each():
    change = Photometric(blur=0.0, noise=0.0, rgb=False, gain=0.2, offset=0.05)
    images = torch.rand(4, 5, 8, 8) * 0.5 + 0.25
    found = change.change(images, torch.Generator().manual_seed(0))
    x, y = images.flatten(2), found.flatten(2)
    fitted = [torch.linalg.lstsq(torch.stack([a, torch.ones_like(a)], 1), b[:, None])
              for a, b in zip(x.flatten(0, 1), y.flatten(0, 1), strict=True)]  # fmt: skip
    gains = torch.stack([fit.solution[0, 0] for fit in fitted])
    offsets = torch.stack([fit.solution[1, 0] for fit in fitted])
    rebuilt = images * gains.view(4, 5, 1, 1) + offsets.view(4, 5, 1, 1)
    torch.testing.assert_close(found, rebuilt, atol=1e-5, rtol=0)
    assert 0.05 < (gains - 1).abs().max() <= 0.2
    assert 0.01 < offsets.abs().max() <= 0.05
    assert gains.unique().numel() == 20


def test_colour_is_gain_where_images_are_not_rgb():
    def features(images):
        return {"patch": images.flatten(2)}

    about = {"name": "mine", "features": features, "names": ("patch",), "image_size": 16}
    five = Encoder(**about, mean=(0.5,) * 5, std=(0.5,) * 5)
    assert five.channels == "0,1,2,3,4"
    found = for_encoder(tasks(photometric=("se2",)), five)
    assert list(found) == ["rotation", "translation", "se2", "gain", "blur", "se2, photometric"]
    assert found["gain"].path == paths.Gain(channels=5)
    assert not found["se2, photometric"].photometric.rgb
    same = tasks(photometric=("se2",))
    assert for_encoder(same, Encoder(**about)) == same
    assert values_of(five).channels == "0,1,2,3,4"


def test_deep_colours_have_the_tasks_of_colours():
    about = {"name": "mine", "features": lambda x: {}, "names": ("patch",), "image_size": 16}
    deep = Encoder(**about, channels="0,1,2", colors=True)
    chosen = tasks(photometric=("se2",))
    assert for_encoder(chosen, deep) == chosen
    assert photometric_for(deep).rgb
    bands = Encoder(**about, channels="0,1,2")
    assert "gain" in for_encoder(chosen, bands)
    assert not photometric_for(bands).rgb


class Noise:
    """A loader of noise in 16 bits, in the place of one that reads files."""

    def __init__(self, config, path, seed):
        self.config, self.path, self.seed = config, path, seed

    def photographs_of(self, ids):
        return ids

    def __iter__(self):
        for i in range(3):
            batch = synthetic(self.config, 16, CPU)
            draws = cut.Draws.of(self.seed, i, batch.sample_ids.numpy())
            params = self.path.sample(draws, self.config.data.image_size)
            yield replace(batch, path=params, sample_ids=batch.sample_ids + 16 * i)


@pytest.mark.parametrize("channels", ONE_OR_FIVE)
def test_the_table_of_transformations_is_of_every_channel(channels):
    config = run_of(channels)
    config = replace(config, data=replace(config.data, source_size=48))
    encoder = of_method(build(config), config)
    views = cut.views_of(config)
    windows = Windows(views, lambda _, path, seed: nullcontext(Noise(config, path, seed)))
    budget = Budget(train_pairs=32, test_pairs=16, fit=Fit(epochs=1, seeds=1))
    chosen = tasks(("se2", "color", "blur"), photometric=("se2",))
    options = {"budget": budget, "windows": windows}
    found = score_tasks({"run": encoder}, None, None, chosen, **options)
    assert list(found) == ["se2", "gain", "blur", "se2, photometric"]
    assert len(found["gain"].names) == 2 * channels
    assert {score.features for score in found["gain"].scores} >= {"pixel statistics", "z_equi"}
    table = found["gain"].table()
    heads = [column.header for column in table.columns]
    if channels == 1:
        assert heads[2:] == ["gain0", "95 %", "offset0", "mean", "pooled", "|Δgain0|"]
    else:  # too many to stand beside each other
        assert heads[2:] == ["gain0", "95 %", "mean", "pooled", "|Δgain0|"]
        assert str(table.title).endswith("the mean is over 10 parameters")
    three = Encoder(name="rgb", features=encoder.features, names=("patch",), image_size=32)
    with pytest.raises(ValueError, match="encoders: expected the same channels, rgb has rgb, run"):
        score_tasks({"run": encoder, "rgb": three}, None, None, chosen, **options)


def test_encoders_of_one_table_take_the_same_channels(tmp_path):
    """Told before anything is read."""
    five, two = (str(run_folder(tmp_path / str(n), run_of(n))) for n in (5, 2))
    message = r"--against: .* as 5, which takes data.channels=0,1,2,3,4 .*, got 2, .*channels=0,1 "
    with pytest.raises(ValueError, match=message):
        evaluate_equivariance(five, against=(two,), data=str(tmp_path))


def test_pairs_of_sixteen_bits_are_those_of_eight():
    config = run_of(2)
    views, path = cut.views_of(config), paths.SE2()
    eight = synthetic(config, 4, CPU)
    eight = replace(eight, u=torch.randint(256, eight.u.shape, dtype=torch.uint8))
    sixteen = replace(eight, u=(eight.u.int() * 257).to(torch.uint16))
    pairs = [collect_pairs([batch], path, views, 4) for batch in (eight, sixteen)]
    torch.testing.assert_close(pairs[0].after, pairs[1].after, atol=2e-3, rtol=0)
    unit = denormalise(pairs[0].before.float(), views.mean, views.std)
    expected = eight.u.float() / 255
    torch.testing.assert_close(unit, expected, atol=2e-3, rtol=0)


def test_predicted_images_of_other_channels_have_their_errors():
    config = run_of(5)
    method = build(config).eval()
    found = predictions(method, [synthetic(config, 4, CPU)], 4)
    plain = json.dumps(replace(found).__dict__, default=str)
    assert "nan" not in plain


def test_files_of_another_depth_than_the_run_s_are_not_taken_with_a_range(tmp_path):
    """A range is in the files' own numbers: 8 bits read as 0..4095 would be nearly black."""
    config = run_of(5)
    of_files = {"file_channels": 5, "file_depth": "uint16"}
    ranged = replace(config, data=replace(config.data, value_range="0:4095", **of_files))
    run = str(run_folder(tmp_path / "run", ranged))
    eight = labelled(tmp_path / "set", 5, "uint8")
    with pytest.raises(ValueError, match=r"5 channels of uint8, expected uint16 as the run's"):
        evaluate_classes("knn", run, data=eight, out=tmp_path / "f.json")
    plain = replace(config, data=replace(config.data, **of_files))
    assert values_of(plain.data).file_depth == ""  # of a type's own range any depth is taken


@pytest.mark.parametrize("of_run", ["uint8", "uint16"])
def test_files_of_eight_and_sixteen_bits_are_embedded_alike(tmp_path, of_run):
    """Whatever the run's are: each is taken by the largest value of its own type."""
    config = run_of(1)
    files = replace(config.data, file_channels=1, file_depth=of_run)
    run = str(run_folder(tmp_path / "run", replace(config, data=files)))
    encoder = load_encoder(run, "cpu")
    contents = {}
    for i in range(6):
        eight = values(1, "uint8", i, (32, 32))
        contents[f"{i}a.png"] = science.png(eight)
        contents[f"{i}b.png"] = science.png(eight.astype(np.uint16) * 257)
    folder = science.write(tmp_path / "mixed", contents)
    source = open_source(folder, wanted=images_for(encoder))
    assert list(source.names) == sorted(contents)
    found, files = embeddings(encoder, source, names=("patch",))
    assert files == sorted(contents)
    each = found["patch"]
    for part in "ab":  # 8 bits alone, then 16 alone
        some = {name: content for name, content in contents.items() if part in name}
        alone = open_source(science.write(tmp_path / part, some), wanted=images_for(encoder))
        (again,) = embeddings(encoder, alone, names=("patch",))[0].values()
        assert torch.pdist(again).min() > 0.03
        for features in (each[::2], each[1::2]):
            torch.testing.assert_close(again, features, atol=3e-3, rtol=0)


def test_files_with_other_channels_than_the_run_s_are_not_taken(tmp_path):
    """The first three of five bands are not red, green and blue."""
    config = run_of(3)
    config = replace(config, data=replace(config.data, file_channels=3))
    run = str(run_folder(tmp_path / "run", config))
    data = labelled(tmp_path / "set", 5)
    with pytest.raises(
        ValueError, match=r"40 of 40 .*\(5 channels of uint16, expected 3 channels as"
    ):
        evaluate_classes("knn", run, data=data, out=tmp_path / "f.json")
    assert values_of(load_encoder(run, "cpu")).file_channels == 3
    assert values_of(config.data).file_channels == 3


@pytest.mark.parametrize("name", ["rotnet_vits16", "rotnet_nin_32"])
def test_rotations_of_other_channels_are_those_of_the_run(name, tmp_path, monkeypatch):
    """The images are read with the run's channels and range, as its own accuracy was measured."""
    for probe in ("linear_classes", "nonlinear_classes", "conv_classes"):  # which take minutes
        monkeypatch.setattr(rotnet, probe, lambda x, y, x_test, *_, **__: y[:1].expand(len(x_test)))
    data = labelled(tmp_path / "set", 5)
    config = several(config_of(name), 5, "1000:60000")
    taken = replace(config.data, channels="3,1", mean=(0.4, 0.5), std=(0.3, 0.2))
    config = replace(config, data=taken)
    run = run_folder(tmp_path / "run", config)
    rows = rotnet.evaluate_rotnet(str(run), data=data, out=tmp_path / "found.json")
    assert {row.encoder for row in rows} == {None, "random init", "run"}
    found = json.loads((tmp_path / "found.json").read_text())["rotation_accuracy"]
    assert [row["encoder"] for row in found] == [None, "run"]
    _, test = labelled_sets(data, values=values_of(config.data))
    names = [test.source.names[i] for i in range(len(test))]
    arrays = [values(5, "uint16", int(each[-6:-4]), (32, 32))[..., [3, 1]] for each in names]
    unit = (torch.from_numpy(np.stack(arrays).astype(np.float32)) - 1000) / 59000
    whole = (unit.clamp(0, 1) * 65535).round().int().to(torch.uint16).permute(0, 3, 1, 2)
    method = load_encoder(str(run), "cpu").method
    assert isinstance(method, RotNet)
    expected = rotnet.rotation_score("run", method, whole)
    assert found[1]["by_rotation"] == pytest.approx(expected.by_rotation, abs=1e-6)
    other = run_folder(tmp_path / "other", several(config_of(name), 2))
    with pytest.raises(ValueError, match="--against: expected an encoder of the same images"):
        rotnet.evaluate_rotnet(str(run), data=data, against=[str(other)], out=tmp_path / "f.json")


def tiles(folder, count=12):
    """Stripes of 16 px told apart by the last of five channels alone, below a quarter of 16 bits;
    masks and depths say the same."""
    for i in range(count):
        image = values(5, "uint16", i, (64, 96)) // 4
        stripes = np.tile((np.arange(96) // 16 + i) % 2, (64, 1))
        image[..., -1] = 4000 + 8000 * stripes
        part = folder / ("train" if i < count - 3 else "val")
        for name, content in (
            (f"images/{i:02}.tif", science.plain_tiff(image)),
            (f"masks/{i:02}.png", science.png(stripes[..., None].astype(np.uint8))),
            (
                f"depth/{i:02}.png",
                science.png((1000 + 2000 * stripes[..., None]).astype(np.uint16)),
            ),
        ):
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            (part / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("segment", ["--steps", "20"]),
        ("clusters", []),
        pytest.param("depth", ["--steps", "30", "--bins", "8"], marks=pytest.mark.slow),
    ],
)
def test_pixels_of_images_with_other_channels_are_known_by_them(kind, options, tmp_path, capsys):
    data = tiles(tmp_path / "set")
    run = str(run_folder(tmp_path / "run", several(config_of("tir_vicreg_vits16"), 5, "0:16000")))
    out = tmp_path / "found.json"
    places = ["--data", str(data), "--out", str(out), "--cache", str(tmp_path / "cache")]
    main(["eval", kind, run, "--device", "cpu", *places, *options])
    capsys.readouterr()
    for table in json.loads(out.read_text())["tables"].values():
        first = {f"{row['encoder']} {row['features']}": row["values"][0] for row in table["scores"]}
        assert len(first) == 7
        better = 1 if table["figures"][0]["better"] == "higher" else -1
        assert better * (first["None raw patches"] - first["None position only"]) > 0.2


def test_an_image_beside_a_mask_is_read_as_its_encoder_takes_it(tmp_path):
    config = several(config_of("tir_vicreg_vits16"), 5, "0:16000")
    taken = replace(config.data, channels="4,0", mean=(0.5,) * 2, std=(0.2,) * 2)
    known = replace(taken, file_channels=5, file_depth="uint16")
    read, of_files = (
        Reading.of({"run": load_encoder(str(run_folder(tmp_path / name, run)), "cpu")})
        for name, run in (
            ("run", replace(config, data=taken)),
            ("known", replace(config, data=known)),
        )
    )
    image = values(5, "uint16")
    expected = np.clip(image[..., [4, 0]] / 16000, 0, 1)
    contents = {
        "plain.tif": science.plain_tiff(image),
        "planes.tif": science.tiff_of(image),
        "array.npy": science.npy(image),
        "pages.tif": pages_of(image),
        "eight.npy": science.npy(values(5, "uint8")),
        "six.tif": science.plain_tiff(values(6, "uint16")),
        "four.tif": science.plain_tiff(values(4, "uint16")),
        "cut.tif": science.plain_tiff(image)[:-100],
    }
    folder = science.write(tmp_path / "files", contents)
    for name in list(contents)[:4]:
        assert read.is_image(name)
        assert read.size_of(folder / name) == (20, 26)
        found = read(folder / name).permute(1, 2, 0).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert read(folder / "eight.npy").max() < 0.02  # in the files' own numbers
    for reading, name, said in (
        (
            of_files,
            "eight.npy",
            r"\(5 channels of uint8, expected uint16 as the run's, as data.value",
        ),
        (of_files, "six.tif", r"\(6 channels of uint16, expected 5 channels as the run's\)"),
        (read, "four.tif", r"\(4 channels of uint16, no channel 4\)"),
        (read, "cut.tif", r"cut.tif: expected an image \("),
        (read, "none.tif", "none.tif: expected an image, there is no such file"),
        (Reading(), "six.tif", r"takes \(6 channels of uint16, of which no RGB is made; --data.ch"),
    ):
        with pytest.raises(ValueError, match=said):
            reading.size_of(folder / name)
    assert not Reading().is_image("array.npy")
    assert Reading.of({}) == Reading()


def two_channels(**about):
    return Encoder(
        name="two", features=lambda x: {"patch": x.flatten(2).mT}, names=("patch",), patch_size=8,
        image_size=32, mean=(0.5,) * 2, std=(0.5,) * 2, device=CPU, **about,
    )  # fmt: skip


def test_what_is_read_is_cut_off_before_anything_is_resized(tmp_path):
    """Of floats 0..1 by default, as of a run."""
    np.save(tmp_path / "a.npy", np.linspace(-3, 9, 128, dtype=np.float32).reshape(8, 8, 2))
    found = Reading.of({"two": two_channels()})(tmp_path / "a.npy")
    assert (found.min(), found.max()) == (0, 1)
    found = Reading.of({"two": two_channels(value_range="-3:9")})(tmp_path / "a.npy")
    torch.testing.assert_close(found[0, 0, 0], torch.tensor(0.0))
    torch.testing.assert_close(found[1, 7, 7], torch.tensor(1.0))
    with pytest.raises(ValueError, match="CHECKPOINT: expected value_range in numbers"):
        Reading.of({"two": two_channels(value_range="percentiles")})


def test_images_beside_truth_are_of_one_kind(tmp_path):
    kinds = {"a": (2, "uint16"), "b": (2, "uint16"), "c": (2, "uint8"), "d": (5, "uint16")}
    files = {name: tmp_path / f"{name}.npy" for name in kinds}
    for name, kind in kinds.items():
        np.save(files[name], values(*kind))
    read = Reading.of({"two": two_channels()})
    assert len(read.sizes_of(files[name] for name in "abc")) == 3
    in_numbers = Reading.of({"two": two_channels(value_range="0:4095")})
    for reading, names, said in (
        (read, "abd", r"d.npy: expected an image of one kind with a.npy, .*got 5 channels of uint"),
        (in_numbers, "abc", r"c.npy: expected an image of one kind with a.npy, .* of uint8"),
    ):
        with pytest.raises(ValueError, match=said):
            reading.sizes_of(files[name] for name in names)


def test_what_rgb_does_not_keep_of_images_beside_truth_is_told_once(tmp_path, caplog):
    """Images of 16 bits, or of four channels; a folder named like an image is none."""
    names = [tmp_path / f"{i}.png" for i in range(4)]
    for file, mode in zip(names, ("I;16", "I;16", "RGBA", "L"), strict=True):
        Image.new(mode, (8, 8)).save(file)
    (tmp_path / "4.png").mkdir()
    assert list(by_stem(tmp_path.iterdir(), ".png")) == ["0", "1", "2", "3"]
    read = Reading()
    for _ in range(2):
        read.sizes_of(names)
    assert [record.getMessage() for record in caplog.records] == [
        f"{file} and the like: images of {kind} are made 8-bit RGB, which the encoder takes"
        for file, kind in (
            (names[0], Kind(1, "uint16")),
            (names[2], Kind(4, "uint8", True)),
        )
    ]


def test_of_several_pages_beside_truth_the_first_is_told(tmp_path, caplog):
    file = tmp_path / "stack.tif"
    file.write_bytes(pages_of(values(3, "uint8")))
    assert Reading().sizes_of([file])
    assert f"{file} and the like: of files with several pages the first is the image" in caplog.text


def test_rgb_whose_channels_lie_apart_is_read_as_by_runs(tmp_path):
    tifffile = pytest.importorskip("tifffile", reason="fastequi[tiff] is not installed")
    image = values(3, "uint16")
    for planar, array in (("contig", image), ("separate", np.moveaxis(image, -1, 0))):
        file = tmp_path / f"{planar}.tif"
        tifffile.imwrite(file, array, photometric="rgb", planarconfig=planar)
        found = Reading()(file).permute(1, 2, 0).numpy()
        assert np.abs(found - image / 257.0).max() <= 1


def pages_of(image):
    """A channel on each page of a TIFF."""
    tifffile = pytest.importorskip("tifffile", reason="fastequi[tiff] is not installed")
    file = io.BytesIO()
    planes = np.ascontiguousarray(np.moveaxis(image, -1, 0))
    tifffile.imwrite(file, planes, photometric="minisblack", metadata=None)
    return file.getvalue()


def test_ranges_with_blanks_are_the_same_images():
    def of(name, value_range):
        return Encoder(
            name=name,
            features=lambda images: {"patch": images},
            names=("patch",),
            image_size=32,
            mean=(0.5, 0.5),
            std=(0.5, 0.5),
            channels=" 0, 1",
            value_range=value_range,
        )

    run, other = of("run", "0:4095,1:9"), of("other", "0 : 4095, 1:9")
    assert other.value_range == "0:4095,1:9"
    assert other.channels == "0,1"
    expect_the_same_images(run, {"other": other})
    with pytest.raises(ValueError, match="--against: expected an encoder of the same images"):
        expect_the_same_images(run, {"other": of("other", "0:9")})
