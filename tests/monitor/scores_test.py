from raylingvo.monitor.scores import write_score


def test_sorted_lines_of_eight_digits(tmp_path):
    path = write_score(tmp_path, 205, {"loss": 1 / 3, "accuracy": 0.9415, "num_preds": 360.0, "tiny": 1.5e-9})
    assert path == tmp_path / "score-00000205.txt"
    assert path.read_text() == "accuracy: 0.9415\nloss: 0.33333333\nnum_preds: 360\ntiny: 1.5e-09\n"


def test_writing_again_replaces(tmp_path):
    write_score(tmp_path, 1, {"loss": 1.0})
    path = write_score(tmp_path, 1, {"loss": 2.0})
    assert path.read_text() == "loss: 2\n"
    assert list(tmp_path.iterdir()) == [path]
