"""Bugs of the tests' own object store: one that is kinder or ruder than it says would prove nothing."""

from tests.mutations import Row

STORE = "tests/test_object_store.py::test_"
FILE = "tests/object_store.py"

ROWS = [
    Row(
        "a range has a byte too many",
        FILE,
        "stop = min(size, int(last) + 1) if first and last else size",
        "stop = min(size, int(last) + 2) if first and last else size",
        STORE + "two_clients_read_the_same_bytes_whole_and_in_part",
    ),
    Row(
        "a page of a listing loses the key that it ends before",
        FILE,
        "            if count == most:\n                more = True\n                break\n            count, last = count + 1, name\n",
        "            count, last = count + 1, name\n            if count > most:\n                more = True\n                break\n",
        STORE + "a_listing_comes_in_pages_and_by_folders",
    ),
    Row(
        "a fault strikes for ever",
        FILE,
        "(self.times is None or self.asked[counted] <= self.skip + self.times)",
        "True",
        STORE + "a_fault_strikes_the_requests_it_is_planted_for_and_no_other",
    ),
    Row(
        "a cut is no cut: the connection ends behind the last byte",
        FILE,
        "            half = start + int((stop - start) * fault.at)\n",
        '            half = start + int((stop - start) * fault.at) if what == "stall" else stop\n',
        STORE + "a_cut_body_ends_early_once_and_the_next_is_whole",
    ),
    Row(
        "the rate is each connection's own",
        FILE,
        "        rate = self.server.store._rate\n        while start < stop:",
        "        rate = Rate(self.server.store._rate.bytes_per_second)\n        while start < stop:",
        STORE + "all_connections_share_one_rate_and_each_answer_waits",
    ),
    Row(
        "an expired key is let in",
        FILE,
        "        self.credentials = set(credentials)\n\n    def refuse",
        "        self.credentials = self.expired | set(credentials)\n        self.expired = set()\n\n    def refuse",
        STORE + "keys_are_asked_for_and_may_change",
    ),
    Row(
        "a key leads out of the folder",
        FILE,
        'if any(part in ("", ".", "..", UPLOADS) for part in parts)',
        'if any(part in ("", UPLOADS) for part in parts)',
        STORE + "no_key_leads_out_of_the_folder",
    ),
    Row(
        "bytes are counted once they have arrived",
        FILE,
        "            self.given.sent += most\n            count = os.sendfile",
        "            count = os.sendfile",
        STORE + "a_cut_body_ends_early_once_and_the_next_is_whole",
    ),
]
