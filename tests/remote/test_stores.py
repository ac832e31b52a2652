"""What is asked of a store or a web server, beside one on loopback that misbehaves: bytes written as they come, waits, and who is let in."""

import itertools
import time
from contextlib import nullcontext
from email.utils import formatdate
from types import SimpleNamespace

import numpy as np
import pytest

from mpp.base.errors import DataError
from mpp.data import origins
from mpp.data.origins import origin_of
from mpp.remote import body, retries, s3, stores, urls
from mpp.remote.retries import Refused
from tests.object_store import ObjectStore

pytest.importorskip("boto3")
pytest.importorskip("requests")

BODY = np.random.default_rng(0).bytes(3_000_000)
KEY = "photos/train/0.tar"


@pytest.fixture
def store(tmp_path, monkeypatch):
    (tmp_path / "photos" / "train").mkdir(parents=True)
    (tmp_path / KEY).write_bytes(BODY)
    for name, value in {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(s3, "_clients", {})
    monkeypatch.setattr(retries, "PATIENCE", retries.Patience(connect_seconds=2, read_seconds=2, waits=(0, 0)))
    with ObjectStore(tmp_path) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        yield store


@pytest.fixture(params=["s3", "http"])
def origin(request, store):
    return origin_of("s3://photos/train" if request.param == "s3" else f"{store.endpoint}/photos/train")


@pytest.fixture
def waited(monkeypatch):
    """Seconds that were slept between two tries."""
    slept = list[float]()
    monkeypatch.setattr(retries, "time", SimpleNamespace(sleep=slept.append, time=time.time))
    return slept


class File:
    """What a range is written to."""

    def __init__(self) -> None:
        self.at, self.data = list[int](), bytearray(len(BODY) + 1)

    def __call__(self, data: bytes, at: int) -> None:
        self.at.append(at)
        self.data[at : at + len(data)] = data


@pytest.mark.parametrize(("start", "end"), [(0, len(BODY)), (0, 1), (5, 2_500_000), (2_999_999, 3_000_000), (1_000_000, 9_000_000)])
def test_a_range_is_written_in_parts_to_its_place(origin, start, end):
    file = File()
    assert origin.fetch("0.tar", start, end, file) == len(BODY[start:end])
    assert file.data[start:end].rstrip(b"\0") == BODY[start:end].rstrip(b"\0")
    assert file.at == list(range(start, min(end, len(BODY)), body.PART))


def test_of_a_small_file_no_more_is_taken_than_any_has(origin, monkeypatch):
    monkeypatch.setattr(origins, "MOST_SMALL", len(BODY))
    assert origin.small("0.tar") == BODY
    monkeypatch.setattr(origins, "MOST_SMALL", 1000)
    with pytest.raises(Refused, match=r"^is larger than 1 kB$"):
        origin.small("0.tar")


def test_after_a_cut_it_is_written_from_its_start_again(origin, store):
    fault = store.faults.cut(KEY, at=0.7)
    file = File()
    assert origin.fetch("0.tar", 10, len(BODY), file) == len(BODY) - 10
    assert fault.met and file.at.count(10) == 2
    assert file.data[10 : len(BODY)] == BODY[10:]


def test_what_is_read_after_a_cut_holds_nothing_of_the_answer_before(store, monkeypatch):
    fault = store.faults.cut(KEY, at=0.7)
    assert stores.store_for("s3").read(KEY, 10, len(BODY)) == BODY[10:]
    assert fault.met

    def shorter_at_the_second_time(self, path, start, end, write):
        write(b"old ", start)
        write(b"end", start + 4)
        write(b"new", start)
        return 3

    monkeypatch.setattr(s3.S3Store, "fetch", shorter_at_the_second_time)
    assert stores.store_for("s3").read(KEY, 10, 100) == b"new"


def test_a_server_that_ignores_a_range_is_used_where_it_says_so(store):
    store.faults.whole(KEY)
    file = File()
    assert origin_of(f"{store.endpoint}/photos/train").fetch("0.tar", 100, 2_000_000, file) == 1_999_900
    assert file.data[100:2_000_000] == BODY[100:2_000_000] and not any(file.data[:100]) and not any(file.data[2_000_000:])
    with pytest.raises(DataError, match=r"s3://photos/train/0.tar: sends 3000000 bytes where 1999900 were asked for, still so"):
        origin_of("s3://photos/train").fetch("0.tar", 100, 2_000_000, File())


def test_a_server_that_drips_is_given_up_though_each_byte_is_in_time(origin, store, monkeypatch):
    store.faults.drip(KEY, 600_000, times=None)
    monkeypatch.setattr(retries, "PATIENCE", retries.Patience(read_seconds=5, whole_seconds=0.3, waits=()))
    with pytest.raises(DataError, match=r"0\.tar: took more than 0\.3 s for one answer"):
        origin.fetch("0.tar", 0, len(BODY), File())


def test_an_answer_whose_headers_creep_is_left_and_asked_for_again(origin, store, monkeypatch):
    monkeypatch.setattr(retries, "PATIENCE", retries.Patience(connect_seconds=0.2, read_seconds=0.4, waits=(0,)))
    fault = store.faults.creep(KEY, 3)
    file = File()
    assert origin.fetch("0.tar", 10, 2000, file) == 1990 and fault.met == 1
    assert file.data[10:2000] == BODY[10:2000]
    store.faults.creep(KEY, 3, times=None)
    with pytest.raises(retries.InTroubleError, match=r"0\.tar: took more than 1 s to begin an answer, still so after several tries"):
        origin.fetch("0.tar", 10, 2000, File())


def test_what_is_raised_in_a_thread_that_is_waited_for_is_raised_here():
    with pytest.raises(KeyError, match="told"):
        retries.in_time(lambda: {}["told"], 5)
    assert retries.in_time(lambda: 7, 5) == 7


def test_an_answer_in_chunks_is_as_long_as_its_range(origin, store):
    store.faults.chunked(KEY)
    file = File()
    assert origin.fetch("0.tar", 100, 2_000_000, file) == 1_999_900 and file.data[100:2_000_000] == BODY[100:2_000_000]
    found = stores.store_for("s3").info(KEY)
    assert found.size == len(BODY) and stores.store_for("s3").read_listed(found) == BODY


def test_a_web_server_need_not_say_of_how_many_bytes_a_range_is(store):
    store.faults.starred(KEY)
    web, file = origin_of(f"{store.endpoint}/photos/train"), File()
    assert web.fetch("0.tar", 100, 2_000_000, file) == 1_999_900 and file.data[100:2_000_000] == BODY[100:2_000_000]
    assert web.sizes(["0.tar"]) is None


def test_bytes_that_a_web_server_has_packed_are_refused_as_that(store):
    store.faults.packed("photos/train/*")
    web = origin_of(f"{store.endpoint}/photos/train")
    for ask in (lambda: web.fetch("0.tar", 0, 100, File()), lambda: web.small("0.tar")):
        with pytest.raises(Refused, match="comes packed by gzip, though it is asked for as it is"):
            ask()


def test_a_listing_whose_pages_come_again_ends(store, tmp_path, monkeypatch):
    for number in range(4):
        (tmp_path / "photos" / "train" / f"{number}.tar").write_bytes(b"x")
    monkeypatch.setattr(stores, "PAGE", 2)
    found = stores.store_for("s3").items("photos/train")
    assert [info.path[-5:] for info in found] == ["0.tar", "1.tar", "2.tar", "3.tar"]
    store.faults.again("photos/train/")
    with pytest.raises(
        DataError, match=r"s3://photos/train: its listing gives the page that ends with train/1\.tar again and again, still so"
    ):
        list(itertools.islice(stores.store_for("s3").items("photos/train"), 20))


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (400, "ExpiredToken", r"0\.tar: no valid credentials \(ExpiredToken\); set AWS_ACCESS_KEY_ID"),
        (403, "InvalidAccessKeyId", r"0\.tar: no valid credentials \(InvalidAccessKeyId\); set AWS_ACCESS_KEY_ID"),
        (
            403,
            "RequestTimeTooSkewed",
            r"0\.tar: the clock of this machine differs too much from the store's \(RequestTimeTooSkewed\); set it",
        ),
        (403, "AccessDenied", r"may not be read or written with these credentials \(403\)"),
        (301, "PermanentRedirect", r"lies elsewhere \(301, PermanentRedirect\): set AWS_DEFAULT_REGION"),
        (400, "AuthorizationHeaderMalformed", r"lies elsewhere \(400, AuthorizationHeaderMalformed\): set AWS_DEFAULT_REGION"),
    ],
)
@pytest.mark.parametrize("ask", ["head", "get"])
def test_what_a_store_says_is_told_also_where_it_was_asked_by_head_whose_answers_have_no_words(store, status, code, said, ask):
    store.faults.status(KEY, status, code=code, methods=("GET", "HEAD"), times=None)
    origin = origin_of("s3://photos/train")
    with pytest.raises((DataError, Refused), match=said):
        origin.small("0.tar") if ask == "head" else origin.fetch("0.tar", 0, 10, File())


def test_an_answer_that_leads_in_a_circle_or_makes_no_sense_is_told_as_that(monkeypatch):
    def raises(error):
        def call(**_):
            raise error

        return lambda: SimpleNamespace(get_object=call)

    monkeypatch.setattr(retries, "PATIENCE", retries.Patience(waits=()))
    monkeypatch.setattr(s3, "client", raises(RecursionError("maximum recursion depth exceeded")))
    with pytest.raises(Refused, match="is redirected again and again"):
        origin_of("s3://photos/train").fetch("0.tar", 0, 10, File())
    monkeypatch.setattr(s3, "client", raises(ValueError("invalid literal for int() with base 10: 'twelve'")))
    with pytest.raises(DataError, match=r"s3://photos/train/0\.tar: its answer makes no sense \(invalid literal .*'twelve'\)"):
        origin_of("s3://photos/train").fetch("0.tar", 0, 10, File())


def test_a_store_that_answers_no_head_tells_its_sizes_by_get(store):
    store.faults.status(KEY, 405, code="MethodNotAllowed", methods=("HEAD",), times=None)
    assert stores.store_for("s3").info(KEY).size == len(BODY)


def test_a_server_that_nobody_reaches_is_told_from_one_in_trouble(origin, store, monkeypatch):
    store.faults.status(KEY, 503, times=None)
    with pytest.raises(retries.InTroubleError, match=r"0\.tar: the server answers 503"):
        origin.fetch("0.tar", 0, 10, File())
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3.S3Store("s3").forget()
    for nowhere, said in (
        ("http://127.0.0.1:9/photos", r"cannot be reached \(Connection refused\)"),
        ("s3://photos", "Could not connect to the endpoint"),
    ):
        with pytest.raises(DataError, match=rf"0\.tar: .*{said}") as raised:
            origin_of(nowhere).fetch("0.tar", 0, 10, File())
        assert type(raised.value) is DataError


def test_a_certificate_that_is_not_trusted_is_told_with_what_makes_it_so():
    failed = OSError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate (_ssl.c:1006)")
    with pytest.raises(
        DataError, match=r"https://host/0\.tar: the server's certificate is not trusted here \(self-signed certificate\).*AWS_CA_BUNDLE"
    ):
        retries.meaning("https://host/0.tar", failed)


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_asks_to_wait_is_given_that_time(origin, store, waited, capsys, status):
    store.faults.status(KEY, status, retry_after=20)
    assert origin.fetch("0.tar", 0, 100, File()) == 100
    assert [20 <= seconds <= 25 for seconds in waited] == [True]
    assert str(status) in capsys.readouterr().err


def test_a_download_waits_as_long_as_it_is_asked_to(store, waited, tmp_path):
    url = f"{store.endpoint}/{KEY}"
    expected = urls.stat(url)
    store.faults.status(KEY, 503, retry_after=20)
    urls.download(url, expected, tmp_path / "0.tar", lambda what, total: nullcontext(SimpleNamespace(update=lambda done: None)))
    assert (tmp_path / "0.tar").read_bytes() == BODY
    assert [20 <= seconds <= 25 for seconds in waited] == [True]


def test_no_server_is_waited_for_longer_than_a_minute_or_so(origin, store, waited):
    store.faults.status(KEY, 503, retry_after=7200)
    origin.fetch("0.tar", 0, 100, File())
    assert [60 <= seconds <= 75 for seconds in waited] == [True]


def test_a_time_to_wait_may_be_a_date_and_nonsense_is_none():
    asked = lambda told: retries.asked_wait(retries.Trouble("busy", told))
    assert asked(formatdate(time.time() + 30, usegmt=True)) == pytest.approx(30, abs=2)
    assert asked(formatdate(time.time() - 30, usegmt=True)) == 0
    assert [asked(told) for told in ("", "soon", "-3", "1e9", "Wed, 99 Foo")] == [0] * 5
    assert retries.asked_wait(OSError("no answer")) == 0


def test_public_objects_are_read_without_credentials(store, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"no valid credentials .*for a public bucket AWS_NO_SIGN_REQUEST=YES"):
        origin_of("s3://photos/train").fetch("0.tar", 0, 10, File())
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
    s3.S3Store("s3").forget()
    assert origin_of("s3://photos/train").fetch("0.tar", 0, 10, File()) == 10


def test_a_folder_is_told_from_a_file_and_from_nothing(store):
    find = stores.store_for("s3").info
    assert find(KEY).size == len(BODY) and find("photos/train") is find("photos/train/") is find("photos") is None
    for path, said in (("photos/trai", "is not there"), ("photos/train/0.ta", "is not there"), ("nowhere/x", "there is no such bucket")):
        with pytest.raises(Refused, match=said) as refused:
            find(path)
        assert refused.value.absent


def test_an_archived_object_is_named_as_that(store):
    store.faults.status(KEY, 403, code="InvalidObjectState", times=None)
    with pytest.raises(Refused, match="lies in an archive of its store"):
        origin_of("s3://photos/train").fetch("0.tar", 0, 10, File())


def test_a_wrong_endpoint_is_one_line(monkeypatch):
    monkeypatch.setattr(s3, "_clients", {})
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9")
    with pytest.raises(DataError, match=r"s3://: .*127\.0\.0\.1:9.*; check the variables AWS_\* and ~/\.aws"):
        stores.store_for("s3").info(KEY)
