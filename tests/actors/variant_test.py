"""Other settings of a task are taken only with the same weights, and what they give has a folder of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import toy

from raylingvo.actors.variant import Variant, override_task
from raylingvo.errors import RequestError

EXPERIMENT = toy.experiment()


def test_the_task_alone_is_changed() -> None:
    changed = override_task(EXPERIMENT, {"task.dropout": "0.1"})
    assert changed.task == toy.Regression(dropout=0.1)
    assert changed.train == EXPERIMENT.train
    assert override_task(EXPERIMENT, {}) is EXPERIMENT


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "train.max_steps",
            "3",
            r"^decode --set changes settings of the task only, keys below task\. \(got train\.max_st",
        ),
        ("task", "{class: toy.Regression}", r"keys below task\. \(got task\)$"),
        ("*.dropout", "0", r"keys below task\. \(got \*\.dropout\)$"),
        ("task.dropuot", "0", r"^unknown key task\.dropuot \(got '0'\); did you mean task\.dropout"),
        ("task.dropout", "much", r"^task\.dropout: expected a finite float \(got 'much'\)$"),
        (
            "task.dtype",
            "bfloat16",
            r"^--set task\.dtype=bfloat16 is of a model with other weights: hidden/bias would be bfloat16\[6\], "
            r"in the run it is float32\[6\]$",
        ),
        ("task.statistics", "false", r"seen would be missing, in the run it is float32\[4\]$"),
    ],
)
def test_what_is_refused(key: str, value: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        override_task(EXPERIMENT, {key: value})


@pytest.mark.parametrize(
    ("averaged", "overrides", "name", "text"),
    [
        ((20, 40), {}, "average-20+40", " (average of 20, 40)"),
        ((), {"task.beam": "4", "task.alpha": "0.6"}, "alpha=0.6,beam=4", ""),
        ((20, 40), {"task.a.beam": "4"}, "average-20+40,a.beam=4", " (average of 20, 40)"),
        ((), {"task.prefix": "../é x"}, "prefix=..___x-", ""),
        ((), {"task.prefix": ".. _ x"}, "prefix=..___x-", ""),
        (tuple(range(100, 200)), {}, "average-" + "+".join(map(str, range(100, 123))) + "+-", None),  # 100 characters
    ],
)
def test_folders(
    tmp_path: Path, averaged: tuple[int, ...], overrides: dict[str, str], name: str, text: str | None
) -> None:
    variant = Variant(averaged=averaged, overrides=overrides)
    folder = variant.folder(tmp_path)
    assert folder.parent == tmp_path / "variants"
    assert folder.name.startswith(name)
    assert text is None or str(variant) == text
    recorded = json.loads((folder / "variant.json").read_text())
    assert recorded == variant.fields()
    assert (recorded.get("average", []), recorded.get("set", {})) == (list(averaged), overrides)
    assert variant.folder(tmp_path) == folder


def test_variants_whose_names_read_alike_have_different_folders(tmp_path: Path) -> None:
    folders = {Variant(overrides={"task.prefix": prefix}).folder(tmp_path) for prefix in ("a b", "a_b", "a/b")}
    assert len(folders) == 3


def test_a_checkpoint_as_it_is_belongs_to_the_run(tmp_path: Path) -> None:
    assert Variant().folder(tmp_path) == tmp_path
    assert (str(Variant()), Variant().fields(), list(tmp_path.iterdir())) == ("", {}, [])
