from raylingvo.monitor.summary import format_summary

RESULT = {
    "run": "ab12",
    "experiment": "image.digits.LeNet5",
    "status": "finished",
    "stop_reason": "max_steps",
    "step": 2000,
    "train": {"step": 2000, "loss": 0.0123, "accuracy": 0.9975},
    "eval": {"test": {"step": 2000, "accuracy": 0.9812, "num_preds": 360.0}},
    "decode": {"test": {"step": 1990, "correct_top1": 0.9812}},
    "steps_per_second": 11.64,
    "examples_per_second": 2980.11,
    "first_step_seconds": 3.21,
    "logdir": "runs/a",
}


def test_a_line_for_each_part():
    assert format_summary(RESULT).splitlines() == [
        "image.digits.LeNet5 (run ab12): finished at step 2000 (max_steps)",
        "  train @ 2000        accuracy 0.9975  loss 0.0123",
        "  eval test @ 2000    accuracy 0.9812  num_preds 360",
        "  decode test @ 1990  correct_top1 0.9812",
        "  speed               11.6 steps/s, 2980 examples/s, first step after 3.2 s",
        "  logdir              runs/a",
    ]


def test_what_did_not_happen_is_left_out():
    nothing = dict.fromkeys(("stop_reason", "steps_per_second", "examples_per_second", "first_step_seconds", "logdir"))
    result = {**RESULT, **nothing, "status": "failed", "step": 0, "train": {}, "eval": {}, "decode": {}}
    assert format_summary(result) == "image.digits.LeNet5 (run ab12): failed at step 0"
