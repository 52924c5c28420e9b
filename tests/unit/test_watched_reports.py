"""A watched model in a history, on the page, in a comparison of two nights, and as an issue to send."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from opconform.harness.model.graph import Difference, WholeGraph
from opconform.harness.search.result import Result, model_result
from opconform.harness.search.settings import Settings
from opconform.harness.search.watched import Watched
from opconform.reports.compare import compare
from opconform.reports.history import recorders
from opconform.reports.html.data import report_of
from opconform.reports.html.page import html
from opconform.reports.repro.piece import write_piece_issue
from opconform.reports.run import Run
from opconform.reports.states import states_of
from tests.unit.test_watched_nodes import wrong_model

DEVICES = {"ggml:Vulkan0": {"description": "llvmpipe", "versions": {"build": "b8121"}}}


def right_model() -> Watched:
    whole = WholeGraph(2, 0, Difference(0.0, 0.1, 4.0, "row 0 of the prompt"))
    found = wrong_model()
    return replace(found, nodes=found.nodes[:2], cases=(), whole=whole, together=(), piece="")


def recorded(folder: Path, *models: tuple[str, Watched]) -> Path:
    path = folder / "history.sqlite"
    pairs = [(name, found.target) for name, found in models]
    run = Run(Settings(history=str(path), report_dir=str(folder)), "search", DEVICES, pairs)
    for recorder in recorders(run):
        for name, found in models:
            recorder.watched(model_result(found, name))
        recorder.close()
    return path


@pytest.mark.parametrize("found", [wrong_model(), right_model()], ids=["wrong", "right"])
def test_a_watched_model_comes_back_from_json_as_it_was(found: Watched) -> None:
    result = model_result(found, "watch kimi-linear")
    text = json.dumps(result.to_json(), allow_nan=False)
    again = Result.from_json(json.loads(text))
    assert again == result
    assert again.kind == ("" if found.right else "WRONG")
    assert again.tally.executed == found.judged + 1 + len(found.together)


def test_what_is_no_state_of_a_node_is_refused() -> None:
    plain = model_result(wrong_model(), "watch x").to_json()
    plain["watched"]["nodes"][0]["state"] = "splendid"
    with pytest.raises(
        ValueError, match=r"nodes\[0\]\.state is 'splendid'; it must be one of right, wrong, not judged"
    ):
        Result.from_json(plain)


def test_the_page_shows_the_models_with_their_nodes_and_the_wrong_piece(tmp_path: Path) -> None:
    path = recorded(tmp_path, ("watch kimi-linear", wrong_model()), ("watch llama", right_model()))
    page = html(report_of(path))
    assert "<strong>1 of 2 pairs</strong> of op and device fails" in page
    assert '<a class="state failed" href="#model-1">FAILED</a>' in page
    assert '<a class="state passed" href="#model-2">passed</a>' in page
    assert 'id="model-1" aria-labelledby' in page
    assert 'id="model-2" class="right"' in page
    assert "its run did not live to say more" not in page
    assert "nodes 20..21 of layer 1: SIGMOID SCALE" in page
    assert "← lies over ffn_moe_logits-1" in page
    assert page.count('class="b-failed"') >= 2  # the wrong node, and the node that lies over what is still read
    assert "<title>#11 MUL_MAT mul_mat-0: wrong, 3 of 560 elements differ</title>" in page
    assert "opconform replay out/pieces/piece-sigmoid-scale-1.json --backend ggml:Vulkan0 --ggml-lib lib" in page


def test_a_model_that_a_night_gets_wrong_and_the_one_before_got_right_is_a_regression(tmp_path: Path) -> None:
    for night in ("old", "new"):
        (tmp_path / night).mkdir()
    old = states_of(recorded(tmp_path / "old", ("watch kimi-linear", right_model())))
    new = states_of(recorded(tmp_path / "new", ("watch kimi-linear", wrong_model())))
    assert [(change.what, change.regression) for change in compare(old, new)] == [("new failure", True)]
    assert not any(change.regression for change in compare(new, old))


def test_the_issue_of_a_wrong_piece_has_what_a_maintainer_needs(tmp_path: Path) -> None:
    piece, model = (str(tmp_path / name) for name in ("piece-sigmoid-scale-1.json", "my-model.gguf"))
    found = replace(wrong_model(), piece=piece, again=f"{model} --tokens 7")
    path = write_piece_issue(found)
    assert path is not None
    text = path.read_text(encoding="utf-8")
    assert text.splitlines()[0].startswith("# ggml:Vulkan0 (b8121): SIGMOID … SCALE give other results in one go")
    assert "GGML_VK_DISABLE_FUSION=1" in text
    assert "the output of SCALE lies over ffn" in text
    assert "opconform replay piece-sigmoid-scale-1.json --backend ggml:Vulkan0\n" in text
    assert "opconform watch my-model.gguf --tokens 7 --backend ggml:Vulkan0\n" in text
    assert str(tmp_path) not in text
    assert write_piece_issue(right_model()) is None
