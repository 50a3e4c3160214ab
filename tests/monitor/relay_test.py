import threading

from raylingvo.monitor import relay
from raylingvo.monitor.relay import Relay

SECONDS = 60


def test_who_comes_late_gets_what_there_is(status):
    view = Relay()
    view.event("one")
    view.update(status)
    view.event("two")
    late = view.news(0, SECONDS)
    assert (late["events"], late["status"], late["begun"], late["ended"]) == (["one", "two"], status, False, None)
    assert view.news(late["number"], 0.0)["events"] == []
    view.begin()
    assert view.news(late["number"], SECONDS)["begun"]


def test_only_the_last_events_are_kept():
    view = Relay()
    for i in range(relay._EVENTS + 1):
        view.event(str(i))
    events = view.news(0, SECONDS)["events"]
    assert (len(events), events[0]) == (relay._EVENTS, "1")


def test_who_asks_without_having_seen_anything_is_not_kept_waiting():
    assert Relay().news(-1, SECONDS)["number"] == 0


def test_who_waits_is_woken_by_what_is_new(status):
    view = Relay()
    heard = []
    waiting = threading.Thread(target=lambda: heard.append(view.news(0, SECONDS)))
    waiting.start()
    view.update(status)
    waiting.join(SECONDS)
    assert heard[0]["status"] == status


def test_the_end_waits_for_those_who_follow_and_not_for_those_who_looked_once():
    view = Relay(["first"])
    view.news(-1, SECONDS)
    view.news(-1, SECONDS, "second")
    ending = threading.Thread(target=lambda: view.end("over"))
    ending.start()
    for follower in ("first", "second"):
        assert view.news(0, SECONDS, follower)["ended"] == "over"
        assert ending.is_alive()
        view.leave(follower)
    ending.join(SECONDS)
    assert not ending.is_alive()


def test_the_end_does_not_wait_for_ever(monkeypatch):
    monkeypatch.setattr(relay, "_FAREWELL_SECONDS", 0.0)
    view = Relay(["who has died"])
    view.end("over")
    assert view.news(0, SECONDS)["ended"] == "over"
