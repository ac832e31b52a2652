from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from mpp.train.run import Step


@given(st.integers(1, 60), st.integers(1, 60))
def test_what_is_done_every_so_many_samples_is_due_in_the_step_that_reaches_each_multiple(batch, every):
    steps = [SimpleNamespace(run=SimpleNamespace(global_batch=batch), samples_seen=batch * number) for number in range(1, 40)]
    due = [step.samples_seen for step in steps if Step.crosses(step, every)]
    reached = {-(-multiple // batch) * batch for multiple in range(every, batch * 39 + 1, every)}
    assert due == sorted(reached)
    assert not any(Step.crosses(step, None) for step in steps)
