"""How the findings of many processes become one."""

import pytest

from mpp.base.errors import ConfigError, disk_fault
from mpp.checks.finding import Finding, amount, attempt, merged, status

OK, WEAK, BROKEN = (
    Finding("cores", "ok", "4 cores", figure=4.0),
    Finding("cores", "warning", "1 core", "ask for more"),
    Finding("cores", "FAILED", "no core", "ask for some"),
)
CALLED = lambda rank: f"rank {rank} (host n{rank // 2})"


def of(*findings: Finding) -> list[list[dict]]:
    return [[each.as_dict()] for each in findings]


def test_what_is_the_same_everywhere_is_told_once_and_the_least_where_figures_differ():
    assert merged(of(OK, OK, OK), CALLED) == [OK]
    less = Finding("cores", "ok", "2 cores", figure=2.0)
    (told,) = merged(of(OK, OK, less, OK), CALLED)
    assert (told.verdict, told.found, told.ranks) == ("ok", "2 cores (the least of 4, rank 2 (host n1))", ())


def test_ranks_that_differ_are_named_and_the_worst_comes_first():
    told = merged(of(OK, WEAK, BROKEN, BROKEN), CALLED)
    assert [each.verdict for each in told] == ["FAILED", "warning", "ok"]
    assert told[0].found == "rank 2 (host n1), rank 3 (host n1): no core" and told[0].ranks == (2, 3)
    assert told[1].found == "rank 1 (host n0): 1 core" and told[1].fix == "ask for more"
    assert told[2].found == "rank 0 (host n0): 4 cores"
    assert status(told) == 1 and status(told[1:]) == 0


def test_of_many_different_faults_some_are_told_and_the_others_counted():
    told = merged(of(*(Finding("cores", "FAILED", f"fault {number}", "mend it") for number in range(20))), CALLED)
    assert len(told) == 9 and told[-1].found.startswith("12 further findings of this kind, the first: rank 8 (host n4): fault 8")


def test_a_check_that_only_some_ranks_have_is_theirs():
    (told,) = merged([[], [OK.as_dict()]], CALLED)
    assert told.found == "rank 1 (host n0): 4 cores"


def test_of_an_error_the_words_behind_the_last_semicolon_are_the_fix():
    def refuse() -> None:
        raise ConfigError("a=1; b=2 do not fit; set a=2")

    assert attempt("batch", refuse) == Finding("batch", "FAILED", "a=1; b=2 do not fit", "set a=2")
    full = OSError(28, "No space left on device", "/there/file")

    def write() -> None:
        raise full

    found = attempt("disk", write)
    assert (found.verdict, found.fix) == ("FAILED", "make room there") and f"{found.found}: {found.fix}" == disk_fault(full)

    def fault() -> None:
        raise OSError("of the program")

    with pytest.raises(OSError, match="of the program"):
        attempt("disk", fault)


def test_what_is_not_well_has_a_fix_and_what_is_well_has_none():
    for verdict, fix in (("ok", "mend it"), ("warning", ""), ("FAILED", "")):
        with pytest.raises(AssertionError):
            Finding("a", verdict, "b", fix)


def test_amounts_have_three_digits_at_least():
    assert [amount(value) for value in (3003.4, 100.0, 99.96, 4.936, 0.01234)] == ["3,003", "100", "100", "4.94", "0.0123"]
