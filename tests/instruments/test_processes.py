import os
import signal
import time

import _described
import pytest
import torch

from torchstone.errors import CallError, WorkError
from torchstone.instruments.processes import ProcessDied, TimeOut, in_process

pytestmark = pytest.mark.usefixtures("warm_processes")


def test_the_result_comes_back():
    assert torch.equal(in_process(torch.arange, 3), torch.arange(3))


def test_tensors_go_in_without_sharing_their_memory():
    x = torch.arange(3)
    assert in_process(torch.sum, x) == 3
    assert not x.is_shared()


def test_what_a_function_tells_arrives_in_order():
    told = []
    assert in_process(_described.tell_numbers, 3, on_message=told.append) == "done"
    assert told == [0, 1, 2]


def test_a_wrong_call_stays_a_wrong_call():
    with pytest.raises(CallError) as caught:
        in_process(_described.raise_call_error)
    assert str(caught.value) == "this cannot work"


def test_an_unforeseen_error_becomes_one_line_with_its_traceback_as_a_note():
    with pytest.raises(WorkError) as caught:
        in_process(_described.raise_value_error)
    assert str(caught.value) == "ValueError: first line"
    assert "raise_value_error" in caught.value.__notes__[0]


def test_a_killed_process_is_reported():
    with pytest.raises(ProcessDied, match="killed, most likely because memory ran out"):
        in_process(_described.Deadly(), None)


def test_another_end_is_reported_with_its_exit_code():
    with pytest.raises(ProcessDied, match="exit code 3"):
        in_process(os._exit, 3)
    with pytest.raises(ProcessDied, match="SIGABRT"):
        in_process(os.abort)


def test_a_process_that_takes_too_long_is_ended():
    with pytest.raises(TimeOut, match=r"longer than 0\.1 s"):
        in_process(time.sleep, 60, timeout=0.1)


def test_a_child_does_not_import_the_script_that_started_it():
    assert in_process(_described.main_module_file) is None


def test_what_cannot_be_imported_there_is_refused():
    with pytest.raises(CallError, match="must be importable"):
        in_process(lambda: None)


def test_a_process_dies_with_its_parent():
    """The grandchild holds the pipe's other end as well: the parent's death is noticed when the grandchild is gone."""
    numbers = []

    def kill_the_parent(number: int) -> None:
        numbers.append(number)
        if len(numbers) == 2:
            os.kill(numbers[0], signal.SIGKILL)

    try:
        with pytest.raises(ProcessDied):
            in_process(_described.start_a_child, on_message=kill_the_parent, timeout=60)
    except TimeOut:
        os.kill(numbers[1], signal.SIGKILL)
        raise
