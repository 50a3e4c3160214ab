import io
import math

import numpy as np
import pytest
from matplotlib.image import imsave

from raylingvo.monitor.events import EventsFile


def test_scalars_keep_their_names_steps_and_times(tmp_path, read_events):
    events = EventsFile(tmp_path)
    events.write({"step": 5, "time": 12.5, "loss": 0.25, "grad norm/@all": 3.0, "bad": None})
    # On disk before close: a killed process loses nothing.
    version, event = read_events(tmp_path)
    events.close()
    assert version.file_version == "brain.Event:2"
    assert (event.step, event.wall_time) == (5, 12.5)
    values = {value.tag: value.simple_value for value in event.summary.value}
    assert math.isnan(values.pop("bad"))
    assert values == {"loss": 0.25, "grad norm/@all": 3.0}


def test_restart_takes_back_later_steps(tmp_path, shown_by_tensorboard):
    events = EventsFile(tmp_path)
    for step in (1, 2, 3):
        events.write({"step": step, "time": 0.0, "loss": float(step)})
    events.restart(2, 0.0)
    events.close()
    assert shown_by_tensorboard(tmp_path) == {1: {"loss": 1.0}}


def test_files_opened_in_the_same_second_do_not_overwrite_each_other(tmp_path, shown_by_tensorboard):
    for step in (1, 2):
        events = EventsFile(tmp_path)
        events.write({"step": step, "time": 0.0, "loss": 1.0})
        events.close()
    assert shown_by_tensorboard(tmp_path).keys() == {1, 2}


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        EventsFile(tmp_path / "absent")


def test_pictures_are_shown_whole(tmp_path, read_events):
    events = EventsFile(tmp_path)
    events.write_pictures(3, 7.5, {"alignments": (png := a_png(5, 2)), "other": png})
    _, event = read_events(tmp_path)
    events.close()
    assert (event.step, event.wall_time) == (3, 7.5)
    assert [value.tag for value in event.summary.value] == ["alignments", "other"]
    image = event.summary.value[0].image
    assert (image.width, image.height, image.colorspace) == (5, 2, 4)
    assert image.encoded_image_string == png


def a_png(width, height):
    file = io.BytesIO()
    imsave(file, np.zeros((height, width, 4), np.uint8), format="png")
    return file.getvalue()
