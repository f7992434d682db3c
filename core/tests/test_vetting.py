"""Every event of a stream is looked at on its way, wherever the chunks were cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.dialects import OPENAI
from headrace.vetting import BadEvent, Vetting

TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
OTHER = b'data: {"choices":[{"index":1,"delta":{},"finish_reason":"length"}]}\n\n'
DONE = b"data: [DONE]\n\n"
COMMENT = b": still there\n\n"
NAMED = b'event: message\r\ndata: {"choices":[]}\r\n\r\n'
GOOD = [TOKEN, COMMENT, NAMED, b'data: {"choices":null}\n\n', b'data: "text"\n\n', FINISH, DONE]
BAD = [
    b'data: {"error":{"message":"boom"},"choices":null}\n\n',
    b'data: {"choices":[{"ind\n\n',
    b"data: nonsense}\n\n",
    b'data: {"error":{"message":"boom","code":500}}\n\n',
]


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(stream) + 1) for place in places})
    return [stream[start:end] for start, end in zip([0, *ends], [*ends, len(stream)], strict=True)]


@given(st.lists(st.sampled_from(GOOD)), st.lists(st.integers(0, 2000)), st.binary(max_size=20))
def test_what_is_shown_is_what_came_in_whole_events(events: list[bytes], places: list[int], half: bytes) -> None:
    vetting = Vetting()
    half = half.replace(b"\n", b"").replace(b"\r", b"")
    whole = b"".join(events)
    shown = b""
    for chunk in cut(whole + half, places):
        shown += vetting.look(chunk)
        assert whole.startswith(shown)
        assert not shown or shown.endswith((b"\n\n", b"\r\n\r\n"))
    assert shown == whole
    assert vetting.rest() in (half, b"")


@pytest.mark.parametrize(
    ("half", "rest"),
    [(b"data: [DONE]", b"data: [DONE]"), (FINISH.rstrip(), FINISH.rstrip()), (FINISH[:30], b""), (b": hm", b": hm")],
)
def test_what_was_held_back_is_shown_at_a_good_end_if_it_is_an_event(half: bytes, rest: bytes) -> None:
    vetting = Vetting()
    assert vetting.look(TOKEN + half) == TOKEN
    assert vetting.rest() == rest


@given(st.lists(st.sampled_from(GOOD)), st.sampled_from(BAD), st.lists(st.integers(0, 2000)))
def test_a_bad_event_is_found_and_all_that_came_before_it_is_shown(
    events: list[bytes], bad: bytes, places: list[int]
) -> None:
    vetting, shown = Vetting(), b""
    with pytest.raises(BadEvent) as raised:
        for chunk in cut(b"".join(events) + bad, places):
            shown += vetting.look(chunk)
    assert shown + raised.value.before == b"".join(events)


@pytest.mark.parametrize(
    ("answers", "events", "finished"),
    [(1, [TOKEN], False), (1, [FINISH], True), (2, [FINISH, FINISH], False), (2, [FINISH, OTHER], True)],
)
def test_a_stream_is_finished_when_all_its_answers_are(answers: int, events: list[bytes], finished: bool) -> None:
    vetting = Vetting(answers)
    for event in events:
        vetting.look(event)
    assert vetting.finished is finished


def test_an_event_without_end_is_not_kept_for_ever() -> None:
    vetting = Vetting()
    shown = sum(len(vetting.look(b"x" * 65_536)) for _ in range(40))
    assert shown > 38 * 65_536 - 1_048_576


def test_an_answer_that_the_backend_aborted_is_not_at_its_end() -> None:
    event = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"abort"}]}\n\n'
    for data in (event, b": a comment\n\n" + event):
        with pytest.raises(BadEvent, match="failed before"):
            Vetting().look(data)


@pytest.mark.parametrize("after", [b"", DONE, TOKEN + DONE])
def test_a_stream_whose_end_is_an_aborted_answer_is_not_complete(after: bytes) -> None:
    aborted = b'data: {"choices":[{"index":0,"delta":{},"finish_reason" : "abort"}]}\n\n'
    assert not OPENAI.is_complete(TOKEN + aborted + after)
    assert OPENAI.is_complete(TOKEN + aborted.replace(b"abort", b"aborted") + after)
