"""`eval all`: what runs, what refuses, and the page of figures."""

import json
from pathlib import Path

import pytest

pytest.importorskip("nvidia.dali")

from fastequi.cli import evaluations
from fastequi.cli.all_evaluations import _OPTION, every
from fastequi.cli.main import main
from fastequi.evaluate.geometry.kinds import DATA, KINDS
from fastequi.evaluate.results import KINDS as WRITTEN
from fastequi.evaluate.results import read
from tests.support.configs import run_folder, small_demo
from tests.support.made_up import knn, of_geometry


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_folder(tmp_path_factory.mktemp("all") / "run", small_demo())


def writing(document, calls):
    """An evaluation that leaves a file and remembers how it was called."""

    def evaluation(words):
        calls.append(words)
        print("a whole table")
        file = words[words.index("--out") + 1]
        with open(file, "w") as handle:
            json.dump(document, handle)

    return evaluation


def refusing(words):
    raise ValueError("--data: expected at least 2 classes, got 1")


def test_every_evaluation_says_what_data_it_takes():
    assert DATA.keys() == KINDS.keys()
    assert evaluations.DATA.keys() == evaluations.KINDS.keys() - {"all"}
    assert set(evaluations.DATA.values()) <= _OPTION.keys()


def test_every_evaluation_is_a_command_and_in_the_readme():
    readme = (Path(__file__).parents[1] / "fastequi" / "evaluate" / "README.md").read_text()
    assert set(WRITTEN) == evaluations.KINDS.keys()
    for kind in evaluations.KINDS:
        assert f"`fastequi eval {kind} " in readme
        assert kind == "all" or callable(getattr(evaluations, kind, None)), kind


def test_what_the_data_allows_runs_and_a_refusal_is_no_end(run, tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(evaluations, "match", writing(of_geometry("match", "run"), calls))
    monkeypatch.setattr(evaluations, "knn", writing(knn("run"), calls))
    monkeypatch.setattr(evaluations, "linear", refusing)
    monkeypatch.setattr(evaluations, "position", refusing)
    out = tmp_path / "all.json"
    for name in ("classes", "more"):
        (tmp_path / name).mkdir()
    labelled = [str(tmp_path / name) for name in ("classes", "more")]
    given = ["--labelled", *labelled, "--against", str(run), "--device", "cpu"]
    kinds = ["--kinds", "match", "knn", "linear", "position"]
    main(["eval", "all", str(run), *given, *kinds, "--out", str(out)])
    common = [str(run), "--device", "cpu", "--out"]
    assert calls == [
        [*common, str(tmp_path / "eval_match.json"), "--against", str(run)],
        [*common, str(tmp_path / "eval_knn.json"), "--data", *labelled,
         "--against", str(run)],
    ]  # fmt: skip
    saved = json.loads(out.read_text())
    assert read(saved).kind == "all"
    assert saved["encoder"] == "run"
    match, knn_figure = saved["figures"]
    assert match == {
        "kind": "match",
        "what": "recall, 1 patch, se2",
        "figure": "0.600",
        "beside": "patch, 95 % 0.500 to 0.700; strongest baseline 0.400",
        "file": "eval_match.json",
    }
    assert knn_figure["what"] == "accuracy"
    why = "--data: expected at least 2 classes, got 1"
    assert saved["refused"] == {"linear": why, "position": why}
    printed = capsys.readouterr().out
    assert "a whole table" not in printed
    assert (tmp_path / "all.txt").read_text().count("a whole table") == 2
    assert f"linear refused: {why}" in printed
    assert "0.600" in printed


def test_what_lacks_data_is_named_and_nothing_at_all_is_an_error(
    run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(evaluations, "match", writing(of_geometry("match", "run"), []))
    words = ["eval", "all", str(run), "--out", str(tmp_path / "all.json"), "--kinds"]
    main([*words, "match", "knn"])
    assert json.loads((tmp_path / "all.json").read_text())["without_data"] == {"knn": "--labelled"}
    assert "knn did not run: it needs --labelled" in capsys.readouterr().out
    monkeypatch.setattr(evaluations, "match", refusing)
    with pytest.raises(SystemExit):
        main([*words, "match", "knn"])
    said = capsys.readouterr().err
    assert "no evaluation ran; match: --data: expected at least 2" in said
    assert "knn needs --labelled" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--kinds", "mtach"], "--kinds: expected some of equivariance"),
        (["--kinds", "match", "--labelled", "x"], "--labelled: none of match takes it"),
        (["--kinds"], "--kinds: expected one evaluation or more, got none"),
        (["--kinds", "match", "match"], "--kinds: expected each once, got match match"),
        *(
            ([option, "nowhere"], f"{option}: expected a path that exists, got 'nowhere'")
            for option in ("--data", "--labelled", "--masks", "--depth", "--clips")
        ),
        (["--data", "no-{0..3}.tar"], "--data: shards: no-0.tar does not exist"),
        (["--against", "nowhere"], "--against: nowhere does not exist"),
        (["--out", "eval_clusters.json"], "in which eval clusters leaves its own figures"),
        (["--out", "y.txt"], "--out: expected a JSON file, got y.txt, in which the text"),
        (["--out", "taken.json"], "--out: taken.txt cannot be written"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(
    run, tmp_path, monkeypatch, words, said, capsys
):
    monkeypatch.chdir(tmp_path)
    for kind in evaluations.KINDS:
        monkeypatch.setattr(evaluations, kind, refusing, raising=False)
    (tmp_path / "taken.txt").mkdir()
    with pytest.raises(SystemExit):
        main(["eval", "all", str(run), *words])
    found = capsys.readouterr().err
    assert said in found
    assert found.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["taken.txt"]


@pytest.mark.slow  # what the others test, with real evaluations at their defaults
def test_real_evaluations_on_the_embedded_photographs(run, capsys):
    main(["eval", "all", str(run), "--kinds", "layers", "position", "reconstruct", "rotnet"])
    saved = json.loads((run / "eval_all.json").read_text())
    assert [row["kind"] for row in saved["figures"]] == ["layers", "position", "reconstruct"]
    assert saved["without_data"] == {"rotnet": "--labelled"}
    assert "run, headline figures" in capsys.readouterr().out


def test_what_is_finished_is_kept_and_said_when_it_is_stopped(run, tmp_path, monkeypatch, capsys):
    def stopped(words):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluations, "match", writing(of_geometry("match", "run"), []))
    monkeypatch.setattr(evaluations, "knn", stopped)
    (tmp_path / "classes").mkdir()
    kinds = ["--kinds", "match", "knn", "layers", "--labelled", str(tmp_path / "classes")]
    out = tmp_path / "all.json"
    with pytest.raises(KeyboardInterrupt):  # which the process then ends with
        every([str(run), *kinds, "--device", "cpu", "--out", str(out)])
    said = capsys.readouterr().err
    assert f"finished: match; their files are in {tmp_path}" in said
    assert "The others: --kinds knn layers" in said
    assert "a whole table" in out.with_suffix(".txt").read_text()
    assert not out.exists()
