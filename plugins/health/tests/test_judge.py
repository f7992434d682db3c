"""What checks and requests make of a condition."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from headrace_health.checks import Found
from headrace_health.config import Rules
from headrace_health.judge import Judge

WELL, FAILED = Found("well"), Found("failed", "it answers 500")
REFUSED_KEY = Found("refused", "it refuses our key")
GONE, LOADING, UNREADY = Found("unreachable", "gone"), Found("starting", "it loads"), Found("unready", "503")
RULES = Rules(interval=10.0, fast_interval=1.0, rise=2, fall=3, failures=5, jitter=0.0)


@pytest.fixture
def judge(target: Any, clock: Any) -> Judge:
    return Judge(target(), RULES, clock)


def after(judge: Judge, *found: Found) -> str:
    """Its condition after these checks."""
    for each in found:
        judge.checked(each)
    return judge.target.state.condition


def test_the_first_check_decides(judge: Judge, target: Any, clock: Any) -> None:
    assert after(judge, WELL) == "up"
    assert after(Judge(target(), RULES, clock), FAILED) == "down"


@pytest.mark.parametrize(("failed", "condition"), [(2, "up"), (3, "down")])
def test_what_is_up_falls_after_so_many_checks_in_a_row(judge: Judge, failed: int, condition: str) -> None:
    assert after(judge, WELL, *[FAILED] * failed) == condition


def test_a_check_between_them_that_goes_well_begins_the_count_anew(judge: Judge) -> None:
    assert after(judge, WELL, FAILED, FAILED, WELL, FAILED, FAILED) == "up"


@pytest.mark.parametrize(("well", "condition"), [(1, "down"), (2, "up")])
def test_what_is_down_rises_after_so_many_checks_in_a_row(judge: Judge, well: int, condition: str) -> None:
    assert after(judge, FAILED, *[WELL] * well) == condition


def test_one_that_fails_between_them_begins_the_count_anew(judge: Judge) -> None:
    assert after(judge, FAILED, WELL, FAILED, WELL) == "down"


def test_the_reason_is_that_of_the_last_check(judge: Judge) -> None:
    after(judge, FAILED, Found("failed", "another"))
    assert judge.target.state.reason == "another"


# --- starting ----------------------------------------------------------------------------------------------------


def test_an_engine_that_says_it_loads_its_model_is_starting(judge: Judge) -> None:
    assert after(judge, LOADING) == "starting"


def test_it_is_up_with_the_first_check_that_goes_well(judge: Judge) -> None:
    assert after(judge, LOADING, WELL) == "up"


def test_an_engine_that_was_started_again_is_starting_at_once(judge: Judge) -> None:
    assert after(judge, WELL, LOADING) == "starting"


def test_what_failed_before_it_was_starting_does_not_count_against_it(judge: Judge) -> None:
    assert after(judge, WELL, FAILED, FAILED, LOADING, FAILED, FAILED) == "starting"


def test_one_that_is_not_ready_is_starting_if_it_has_not_been_up(judge: Judge) -> None:
    assert after(judge, UNREADY) == "starting"


def test_and_fails_if_it_has(judge: Judge) -> None:
    assert after(judge, WELL, UNREADY, UNREADY, UNREADY) == "down"


def test_and_is_starting_again_once_it_was_out_of_reach(judge: Judge) -> None:
    assert after(judge, WELL, GONE, UNREADY) == "starting"


def test_a_closed_door_is_down(judge: Judge) -> None:
    assert after(judge, GONE) == "down"


def test_but_starting_in_the_start_period(target: Any, clock: Any) -> None:
    judge = Judge(target(), Rules(start_period=60.0, fall=1), clock)
    clock.now += 59
    assert after(judge, GONE) == "starting"


def test_and_no_longer_when_that_is_over(target: Any, clock: Any) -> None:
    judge = Judge(target(), Rules(start_period=60.0, fall=1), clock)
    clock.now += 61
    assert after(judge, GONE) == "down"


def test_nor_if_it_has_been_up_before(target: Any, clock: Any) -> None:
    judge = Judge(target(), Rules(start_period=60.0, fall=1), clock)
    assert after(judge, WELL, GONE) == "down"


# --- requests ----------------------------------------------------------------------------------------------------


def test_the_first_request_that_fails_wants_a_check_and_the_second_does_not(judge: Judge) -> None:
    after(judge, WELL)
    assert [judge.request_failed("no"), judge.request_failed("no")] == [True, False]


@pytest.mark.parametrize(("failed", "condition"), [(4, "up"), (5, "down")])
def test_so_many_requests_in_a_row_that_fail_are_enough(judge: Judge, failed: int, condition: str) -> None:
    after(judge, WELL)
    for _ in range(failed):
        judge.request_failed("broke off")
    assert judge.target.state.condition == condition


def test_checks_that_go_well_meanwhile_do_not_excuse_them(judge: Judge) -> None:
    after(judge, WELL)
    for _ in range(5):
        judge.request_failed("broke off")
        if judge.target.state.condition == "up":
            judge.checked(WELL)
    assert judge.target.state.condition == "down"


def test_a_request_between_them_that_goes_well_does(judge: Judge) -> None:
    after(judge, WELL)
    for number in range(9):
        judge.request_succeeded() if number == 4 else judge.request_failed("broke off")
    assert judge.target.state.condition == "up"


def test_requests_that_go_well_count_as_a_rise(judge: Judge) -> None:
    after(judge, FAILED)
    judge.request_succeeded()
    judge.request_succeeded()
    assert judge.target.state.condition == "up"


def test_a_request_and_a_check_count_together(judge: Judge) -> None:
    after(judge, FAILED)
    judge.request_succeeded()
    assert after(judge, WELL) == "up"


def test_a_backend_that_answers_requests_does_not_fall_by_its_checks(judge: Judge) -> None:
    after(judge, WELL)
    for _ in range(9):
        judge.checked(FAILED)
        judge.request_succeeded()
    assert judge.target.state.condition == "up"


def test_a_request_that_began_before_the_condition_changed_says_nothing(judge: Judge) -> None:
    after(judge, FAILED)
    assert judge.concerns(0.0)
    assert not judge.concerns(60.0)


# --- keys --------------------------------------------------------------------------------------------------------


def test_a_key_that_is_refused_takes_it_down_at_once(judge: Judge) -> None:
    assert after(judge, WELL, REFUSED_KEY) == "down"
    assert judge.target.state.reason == "it refuses our key"


def test_it_is_then_checked_at_the_usual_interval_until_it_is_up(judge: Judge) -> None:
    pauses = [judge.pause() for each in (REFUSED_KEY, WELL) if after(judge, each) == "down"]
    assert pauses == [10.0, 10.0]
    assert after(judge, WELL) == "up"


# --- how often ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "seconds"),
    [
        ([WELL], 10.0),
        ([WELL, FAILED], 1.0),
        ([WELL, FAILED, FAILED, FAILED], 10.0),
        ([FAILED, WELL], 1.0),
        ([FAILED, WELL, WELL], 10.0),
        ([LOADING], 1.0),
    ],
)
def test_checks_come_faster_while_the_condition_changes(judge: Judge, found: list[Found], seconds: float) -> None:
    after(judge, *found)
    assert judge.pause() == seconds


def test_what_only_requests_call_down_is_not_brought_up_in_haste(judge: Judge) -> None:
    after(judge, WELL)
    for _ in range(5):
        judge.request_failed("broke off")
    after(judge, WELL)
    assert judge.pause() == 10.0


# --- what is said ------------------------------------------------------------------------------------------------


def test_what_went_wrong_last_is_kept_when_it_is_up_again(judge: Judge) -> None:
    after(judge, WELL, FAILED, WELL)
    assert (judge.target.state.failure, judge.target.state.failed_at > 0) == ("it answers 500", True)


def test_a_model_that_is_not_listed_is_said_and_it_stays_up(target: Any, clock: Any) -> None:
    judge = Judge(target(model="missing"), RULES, clock)
    assert after(judge, Found("well", serves=frozenset(("other",)))) == "up"
    assert "'missing'" in judge.target.state.reason


@pytest.mark.parametrize(
    ("configured", "engine", "odd"),
    [(True, False, False), (None, True, False), (None, False, True), (False, True, True)],
)
def test_unless_it_answers_whatever_model_it_is_asked_for(
    target: Any, clock: Any, configured: bool | None, engine: bool, odd: bool
) -> None:
    judge = Judge(target(model="missing"), Rules(any_model=configured), clock)
    after(judge, Found("well", serves=frozenset(("other",)), any_model=engine))
    assert bool(judge.target.state.reason) is odd


def test_each_change_is_logged_once(judge: Judge, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "headrace.health")
    after(judge, WELL, WELL, FAILED, FAILED, FAILED, FAILED, WELL, WELL)
    assert [(each.levelname, each.getMessage()) for each in caplog.records] == [
        ("INFO", "target gpu is up"),
        ("WARNING", "target gpu is down: it answers 500"),
        ("INFO", "target gpu is up"),
    ]


def test_a_refused_key_is_logged_once_as_an_error(judge: Judge, caplog: pytest.LogCaptureFixture) -> None:
    after(judge, REFUSED_KEY, REFUSED_KEY, REFUSED_KEY)
    assert [each.levelname for each in caplog.records] == ["ERROR"]


def test_a_backend_that_keeps_changing_does_not_fill_the_log(
    target: Any, clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "headrace.health")
    judge = Judge(target(), Rules(rise=1, fall=1), clock)
    for _ in range(500):
        clock.now += 1
        after(judge, WELL, FAILED)
    assert len(caplog.records) == 6
    assert "keeps changing" in caplog.records[-1].getMessage()


def test_and_is_spoken_of_again_once_it_has_settled(target: Any, clock: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "headrace.health")
    judge = Judge(target(), Rules(rise=1, fall=1), clock)
    after(judge, *[WELL, FAILED] * 20)
    caplog.clear()
    clock.now += 121
    after(judge, FAILED, WELL)
    said = [each.getMessage() for each in caplog.records]
    assert said == ["target gpu stays down: it answers 500", "target gpu is up"]
