"""The object store of the tests, seen through clients that know nothing of it: boto3, requests."""

import hashlib
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.object_store import ObjectStore

boto3 = pytest.importorskip("boto3")
requests = pytest.importorskip("requests")

from boto3.s3.transfer import TransferConfig  # noqa: E402
from botocore.config import Config  # noqa: E402
from botocore.exceptions import ClientError, EndpointConnectionError  # noqa: E402

BODY = np.random.default_rng(0).bytes(300_000)


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "served"
    (folder / "photos" / "train").mkdir(parents=True)
    for number in range(5):
        (folder / "photos" / "train" / f"{number}.tar").write_bytes(BODY[number:])
    (folder / "photos" / "train" / "manifest.json").write_bytes(b"{}")
    (folder / "photos" / "a b&c+ü.txt").write_bytes(b"text")
    with ObjectStore(folder) as store:
        yield store


def client(store, key="one"):
    config = Config(retries={"total_max_attempts": 1}, read_timeout=5, connect_timeout=5, s3={"addressing_style": "path"})
    return boto3.client(
        "s3", endpoint_url=store.endpoint, aws_access_key_id=key, aws_secret_access_key="x", region_name="us-east-1", config=config
    )


@pytest.fixture
def s3(store):
    return client(store)


def keys_of(s3, prefix=""):
    """In photos, with their sizes."""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="photos", Prefix=prefix)
    return {entry["Key"]: entry["Size"] for page in pages for entry in page.get("Contents", [])}


def missing(s3, key, bucket="photos"):
    with pytest.raises(ClientError, match="404"):
        s3.head_object(Bucket=bucket, Key=key)
    return True


def url(store, key="photos/train/0.tar"):
    return f"{store.endpoint}/{key}"


# ---------------------------------------------------------------- a store like others


def test_two_clients_read_the_same_bytes_whole_and_in_part(store, s3):
    assert s3.get_object(Bucket="photos", Key="train/3.tar")["Body"].read() == BODY[3:]
    assert requests.get(url(store, "photos/train/3.tar"), timeout=5).content == BODY[3:]
    for start, stop in ((0, 1), (10, 200_000), (299_990, 400_000)):
        part = s3.get_object(Bucket="photos", Key="train/0.tar", Range=f"bytes={start}-{stop - 1}")
        assert part["Body"].read() == BODY[start:stop]
        assert part["ContentRange"] == f"bytes {start}-{min(stop, len(BODY)) - 1}/{len(BODY)}"
    assert requests.get(url(store), headers={"Range": "bytes=-7"}, timeout=5).content == BODY[-7:]
    assert requests.get(url(store), headers={"Range": "bytes=299999-"}, timeout=5).content == BODY[299_999:]
    assert requests.get(url(store), headers={"Range": "bytes=300000-"}, timeout=5).status_code == 416


def test_a_head_tells_size_and_md5(store, s3):
    head = s3.head_object(Bucket="photos", Key="train/1.tar")
    assert head["ContentLength"] == len(BODY) - 1
    assert head["ETag"].strip('"') == hashlib.md5(BODY[1:]).hexdigest()
    assert missing(s3, "train/9.tar") and missing(s3, "train/9.tar", bucket="nowhere")


def test_an_object_is_given_only_where_its_tag_is_the_one_asked_for(store, s3):
    tag = hashlib.md5(BODY).hexdigest()
    assert s3.get_object(Bucket="photos", Key="train/0.tar", IfMatch=tag)["ETag"] == f'"{tag}"'
    with pytest.raises(ClientError, match="PreconditionFailed"):
        s3.get_object(Bucket="photos", Key="train/1.tar", IfMatch=tag)
    assert requests.get(url(store), headers={"If-None-Match": f'"{tag}"'}, timeout=5).status_code == 304


def test_a_listing_comes_in_pages_and_by_folders(store, s3):
    pages = list(s3.get_paginator("list_objects_v2").paginate(Bucket="photos", PaginationConfig={"PageSize": 2}))
    keys = [entry["Key"] for page in pages for entry in page["Contents"]]
    assert keys == ["a b&c+ü.txt", *(f"train/{number}.tar" for number in range(5)), "train/manifest.json"]
    assert [page["KeyCount"] for page in pages] == [2, 2, 2, 1]
    pages = list(s3.get_paginator("list_objects_v2").paginate(Bucket="photos", Delimiter="/", PaginationConfig={"PageSize": 1}))
    assert [entry["Key"] for page in pages for entry in page.get("Contents", [])] == ["a b&c+ü.txt"]
    assert [group["Prefix"] for page in pages for group in page.get("CommonPrefixes", [])] == ["train/"]
    assert list(keys_of(s3)) == keys
    assert keys_of(s3, "train/4")["train/4.tar"] == len(BODY) - 4
    after = s3.list_objects_v2(Bucket="photos", StartAfter="train/3.tar")["Contents"]
    assert [entry["Key"] for entry in after] == ["train/4.tar", "train/manifest.json"]


def test_what_is_put_is_there_until_it_is_deleted(store, s3, tmp_path):
    s3.put_object(Bucket="photos", Key="new/x y.bin", Body=BODY)
    assert s3.get_object(Bucket="photos", Key="new/x y.bin")["Body"].read() == BODY == (store.folder / "photos/new/x y.bin").read_bytes()
    with pytest.raises(ClientError, match="PreconditionFailed"):
        s3.put_object(Bucket="photos", Key="new/x y.bin", Body=b"", IfNoneMatch="*")
    s3.put_object(Bucket="photos", Key="new/2", Body=b"two")
    s3.delete_object(Bucket="photos", Key="new/x y.bin")
    assert keys_of(s3, "new") == {"new/2": 3}
    s3.delete_objects(Bucket="photos", Delete={"Objects": [{"Key": "new/2"}, {"Key": "train/0.tar"}]})
    assert not (store.folder / "photos/train/0.tar").exists() and missing(s3, "new/2")
    s3.create_bucket(Bucket="others")
    assert [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]] == ["others", "photos"]


def test_an_upload_in_parts_appears_whole_and_with_the_tag_that_s3_gives_it(store, s3, tmp_path):
    large = BODY * 50
    (tmp_path / "large").write_bytes(large)
    s3.upload_file(str(tmp_path / "large"), "photos", "large", Config=TransferConfig(multipart_chunksize=6 << 20))
    assert (store.folder / "photos/large").read_bytes() == large
    parts = [hashlib.md5(large[start : start + (6 << 20)]).digest() for start in range(0, len(large), 6 << 20)]
    assert s3.head_object(Bucket="photos", Key="large")["ETag"] == f'"{hashlib.md5(b"".join(parts)).hexdigest()}-{len(parts)}"'
    upload = s3.create_multipart_upload(Bucket="photos", Key="never")["UploadId"]
    s3.upload_part(Bucket="photos", Key="never", UploadId=upload, PartNumber=1, Body=b"x")
    assert missing(s3, "never")
    s3.abort_multipart_upload(Bucket="photos", Key="never", UploadId=upload)
    with pytest.raises(ClientError, match="NoSuchUpload"):
        s3.upload_part(Bucket="photos", Key="never", UploadId=upload, PartNumber=1, Body=b"x")


def test_a_store_that_is_read_only_refuses_to_be_written(store, s3):
    store.writable = False
    with pytest.raises(ClientError, match="AccessDenied"):
        s3.put_object(Bucket="photos", Key="new", Body=b"x")
    with pytest.raises(ClientError, match="AccessDenied"):
        s3.delete_object(Bucket="photos", Key="train/0.tar")
    assert s3.get_object(Bucket="photos", Key="train/0.tar")["Body"].read() == BODY


@pytest.mark.parametrize("key", ["photos/../../secret", "photos/%2e%2e/%2e%2e/secret", ".uploads/x", "photos//etc/passwd"])
def test_no_key_leads_out_of_the_folder(store, key):
    (store.folder.parent / "secret").write_bytes(b"secret")
    (store.folder / ".uploads").mkdir(exist_ok=True)
    (store.folder / ".uploads" / "x").write_bytes(b"secret")
    session = requests.Session()
    request = requests.Request("GET", store.endpoint).prepare()
    request.url = f"{store.endpoint}/{key}"  # as it is written
    assert session.send(request, timeout=5).status_code in (400, 404)


def test_keys_are_asked_for_and_may_change(store):
    store.credentials = {"one"}
    old, new = client(store), client(store, "two")
    assert old.head_object(Bucket="photos", Key="train/0.tar")
    with pytest.raises(ClientError, match="InvalidAccessKeyId"):
        new.get_object(Bucket="photos", Key="train/0.tar")
    assert requests.get(url(store), timeout=5).status_code == 403
    store.rotate("two")
    with pytest.raises(ClientError, match="ExpiredToken"):
        old.get_object(Bucket="photos", Key="train/0.tar")
    assert new.get_object(Bucket="photos", Key="train/0.tar")["Body"].read() == BODY


# ---------------------------------------------------------------- and how it misbehaves


def test_a_cut_body_ends_early_once_and_the_next_is_whole(store):
    cut = store.faults.cut("photos/train/*.tar", at=0.25)
    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        requests.get(url(store), timeout=5)
    assert requests.get(url(store), timeout=5).content == BODY
    assert cut.met == 1 and store.sent()["photos/train/0.tar"] == len(BODY) // 4 + len(BODY)
    assert store.fetched("photos/train/*") == {"photos/train/0.tar": 2}


def test_a_fault_strikes_the_requests_it_is_planted_for_and_no_other(store, s3):
    fault = store.faults.status("photos/train/[01].tar", 404, skip=1, times=2)

    def asked(key):
        return requests.get(url(store, f"photos/train/{key}.tar"), timeout=5).status_code

    assert [asked(0) for _ in range(4)] == [200, 404, 404, 200]
    assert [asked(2) for _ in range(4)] == [200] * 4
    assert [asked(1) for _ in range(2)] == [200, 404]
    assert requests.head(url(store), timeout=5).status_code == 200
    assert fault.met == 3
    store.faults.clear()
    store.faults.status("photos/*", 503, skip=1, together=True)
    assert [asked(0), asked(2), asked(0)] == [200, 503, 200]


def test_faults_by_chance_are_the_same_each_time_and_as_many_as_they_should_be(store):
    session = requests.Session()

    def statuses():
        store.faults.clear()
        store.faults.status("*", 503, chance=0.3, seed=5, times=None)
        return [session.head(url(store), timeout=5).status_code for _ in range(3)] + [
            session.get(url(store), timeout=5).status_code for _ in range(200)
        ]

    first = statuses()
    assert first[:3] == [200] * 3 and 35 <= first.count(503) <= 85  # 60 expected, 4 deviations
    assert statuses() == first


def test_many_connections_at_once_under_every_fault_lose_no_count_and_mix_no_bytes(store):
    plant = store.faults
    plant.cut("*", chance=0.1, times=None)
    plant.status("*", 503, chance=0.1, times=None)
    plant.length("*", -3, chance=0.1, times=None)
    plant.stall("*", 0.01, chance=0.1, times=None)
    plant.flip("*", at=0.999, chance=0.1, times=None)
    kinds = Counter()

    def ask(number):
        key = number % 5
        right = BODY[key:]
        try:
            answer = requests.get(url(store, f"photos/train/{key}.tar"), timeout=5)
        except requests.RequestException:
            return "cut"
        if answer.status_code == 503:
            return "refused"
        flipped = [place for place in range(len(right) - 400, len(right)) if answer.content[place : place + 1] != right[place : place + 1]]
        assert answer.content[: len(right) - 400] == right[: len(right) - 400]
        return "right" if not flipped else "short" if len(answer.content) < len(right) else "flipped" if len(flipped) == 1 else "wrong"

    with ThreadPoolExecutor(16) as pool:
        kinds.update(pool.map(ask, range(300)))
    cut, refused, short, stalled, flipped = (fault.met for fault in plant._planted)
    assert kinds == {"cut": cut, "refused": refused, "short": short, "flipped": flipped, "right": 300 - cut - refused - short - flipped}
    assert min(cut, refused, short, stalled, flipped) > 5 and store.requests("*", "GET") == 300


def test_a_stall_lets_half_through_and_then_nothing_for_a_while(store):
    store.faults.stall("*", seconds=0.5)
    got = []
    with pytest.raises(requests.ConnectionError), requests.get(url(store), stream=True, timeout=0.1) as answer:
        got += answer.iter_content(1000)
    assert 0 < len(b"".join(got)) <= len(BODY) // 2
    store.faults.clear()
    store.faults.late("*", seconds=0.5)
    with pytest.raises(requests.ReadTimeout):
        requests.get(url(store, "photos/train/1.tar"), timeout=0.1)
    store.faults.clear()
    store.faults.stall("*", seconds=0.05)
    assert requests.get(url(store), timeout=5).content == BODY


def test_a_length_may_be_a_lie(store, s3):
    store.faults.length("*/0.tar", 5)
    with pytest.raises(requests.RequestException):
        requests.get(url(store), timeout=5)
    store.faults.length("*/1.tar", -5)
    assert requests.get(url(store, "photos/train/1.tar"), timeout=5).content == BODY[1:-5]
    assert requests.get(url(store, "photos/train/1.tar"), timeout=5).content == BODY[1:]


def test_a_size_may_be_a_lie_in_a_head_and_in_a_listing(store, s3):
    store.faults.size("photos/train/2.tar", 100)
    sizes = {entry["Key"]: entry["Size"] for entry in s3.list_objects_v2(Bucket="photos")["Contents"]}
    assert (sizes["train/2.tar"], sizes["train/1.tar"]) == (len(BODY) - 2 + 100, len(BODY) - 1)
    assert s3.head_object(Bucket="photos", Key="train/2.tar")["ContentLength"] == len(BODY) - 2 + 100
    assert s3.get_object(Bucket="photos", Key="train/2.tar")["Body"].read() == BODY[2:]


def test_an_object_may_be_replaced_between_two_ranges(store, s3):
    store.faults.tag("photos/train/0.tar", skip=1)
    first, second, third = (s3.get_object(Bucket="photos", Key="train/0.tar", Range="bytes=0-9")["ETag"] for _ in range(3))
    assert first == third != second


def test_a_bit_flips_in_one_answer_and_in_the_range_that_holds_it(store):
    store.faults.flip("*", at=0.5, times=3)
    got = requests.get(url(store), timeout=5).content
    place = len(BODY) // 2
    assert got[:place] == BODY[:place] and got[place + 1 :] == BODY[place + 1 :] and got[place] == BODY[place] ^ 1
    part = requests.get(url(store), headers={"Range": f"bytes={place}-{place}"}, timeout=5).content
    assert part == bytes([BODY[place] ^ 1])
    assert requests.get(url(store), headers={"Range": "bytes=0-99"}, timeout=5).content == BODY[:100]
    assert requests.get(url(store), timeout=5).content == BODY


@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (404, "NoSuchKey"), (429, "TooManyRequests"), (503, "SlowDown")])
def test_an_error_is_told_in_s3s_words(store, s3, status, code):
    store.faults.status("photos/train/0.tar", status, retry_after=7)
    with pytest.raises(ClientError, match=code) as error:
        s3.get_object(Bucket="photos", Key="train/0.tar")
    said = error.value.response["ResponseMetadata"]
    assert said["HTTPStatusCode"] == status and said["HTTPHeaders"]["retry-after"] == "7"


def test_faults_of_writing_and_of_listings(store, s3):
    store.faults.status("photos/new", 503, methods=("PUT",))
    with pytest.raises(ClientError, match="SlowDown"):
        s3.put_object(Bucket="photos", Key="new", Body=BODY)
    s3.put_object(Bucket="photos", Key="new", Body=BODY)
    store.faults.status("photos/train*", 503, methods=("LIST",))
    with pytest.raises(ClientError, match="SlowDown"):
        s3.list_objects_v2(Bucket="photos", Prefix="train/")
    assert s3.list_objects_v2(Bucket="photos", Prefix="train/")["KeyCount"] == 6


def test_an_object_that_vanishes_is_in_no_listing(store, s3):
    store.faults.vanish("photos/train/2.tar")
    with pytest.raises(ClientError, match="NoSuchKey"):
        s3.get_object(Bucket="photos", Key="train/2.tar")
    assert "train/2.tar" not in keys_of(s3) and missing(s3, "train/2.tar")


def test_a_server_without_ranges_sends_everything(store):
    store.faults.whole("*")
    answer = requests.get(url(store), headers={"Range": "bytes=5-9"}, timeout=5)
    assert answer.status_code == 200 and answer.content == BODY


def test_connections_are_refused_for_a_while(store, s3):
    assert s3.get_object(Bucket="photos", Key="train/0.tar")["Body"].read() == BODY
    back = store.refuse(0.3)
    with pytest.raises(EndpointConnectionError):
        s3.get_object(Bucket="photos", Key="train/0.tar")
    back.join()
    assert s3.get_object(Bucket="photos", Key="train/0.tar")["Body"].read() == BODY


def test_a_body_drips(store):
    store.faults.drip("*", bytes_per_second=1_500_000)
    began = time.monotonic()
    assert requests.get(url(store), timeout=5).content == BODY
    assert time.monotonic() - began >= 0.15  # 0.2 s: no server sends faster than it is told


# ---------------------------------------------------------------- how much, how fast


def test_all_connections_share_one_rate_and_each_answer_waits(store):
    store.rate, store.latency = 4e6, 0.05
    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        bodies = list(pool.map(lambda number: requests.get(url(store, f"photos/train/{number}.tar"), timeout=5).content, range(4)))
    seconds = time.monotonic() - began
    assert [len(body) for body in bodies] == [len(BODY) - number for number in range(4)]
    assert seconds >= 4 * len(BODY) / 4e6 + 0.05 - 0.03  # never faster; how much slower is the machine's affair


def test_the_log_tells_who_asked_for_what(store, s3):
    s3.get_object(Bucket="photos", Key="train/0.tar", Range="bytes=0-9")["Body"].read()
    s3.get_object(Bucket="photos", Key="train/1.tar")["Body"].read()
    keys_of(s3, "train/")
    assert store.fetched("photos/train/*") == {"photos/train/0.tar": 1, "photos/train/1.tar": 1}
    assert store.sent() == {"photos/train/0.tar": 10, "photos/train/1.tar": len(BODY) - 1}
    assert store.requests("photos/train/*", "LIST") >= 1
    told = requests.get(f"{store.endpoint}/-/", timeout=5).json()
    assert told["sent"] == store.sent() and told["requests"]["GET"] == 2
    requests.delete(f"{store.endpoint}/-/", timeout=5)
    assert not store.fetched() and not store.requests()
