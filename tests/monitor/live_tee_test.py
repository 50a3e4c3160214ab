import io

from raylingvo.monitor.live_plain import PlainView
from raylingvo.monitor.live_tee import TeeView


def test_all_views_show_the_same_from_when_they_are_there(status):
    first, second = io.StringIO(), io.StringIO()
    view = TeeView(PlainView(first))
    with view:
        view.event("before")
        view.add(PlainView(second))
        view.update(status)
        status["trainer"]["step"] += 1
        view.update(status)
    assert first.getvalue() == "before\n" + second.getvalue()
    assert f"step {status['trainer']['step']}/" in second.getvalue().splitlines()[-1]  # by close
