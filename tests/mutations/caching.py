"""Bugs that the tests of shards in a cache must find: order of need, room, faults of stores and machines."""

from tests.mutations import Row

CACHE, ROOM = "tests/data/test_shard_cache.py::", "tests/data/test_cache_room.py::"
KEEPER, FOLDER = "mpp/data/keeper.py", "mpp/data/cache_folder.py"

ROWS = [
    Row(
        "shards are fetched in the order of their names",
        KEEPER,
        "heapq.nsmallest(TRIED, missing, key=lambda each: (self._urgency(each), each))",
        "heapq.nsmallest(TRIED, missing)",
        CACHE + "test_shards_come_in_the_order_of_need_before_anybody_asks",
    ),
    Row(
        "a plan forgets no use that has passed",
        "mpp/data/fetch_plan.py",
        "                self.uses[shard].popleft()\n",
        "",
        ROOM + "test_a_plan_knows_when_each_shard_is_needed_next",
    ),
    Row(
        "the shard needed next makes way",
        FOLDER,
        "later.sort(key=lambda pair: (-pair[0], pair[1].touched))",
        "later.sort(key=lambda pair: (pair[0], pair[1].touched))",
        CACHE + "test_the_shard_that_makes_way_is_the_one_needed_last",
    ),
    Row(
        "the limit is that of the disk",
        FOLDER,
        "here = lambda: min(self.limit - used, self.free())",
        "here = lambda: self.free()",
        CACHE + "test_a_cache_smaller_than_the_set_holds_what_is_needed_next_and_each_shard_is_fetched_once_an_epoch",
    ),
    Row(
        "what another job is about to read makes way",
        FOLDER,
        "if not each.part and each.shard not in claimed]",
        "if not each.part]",
        ROOM + "test_what_another_job_is_about_to_read_makes_no_way",
    ),
    Row(
        "two jobs fetch one shard at the same time",
        FOLDER,
        "                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)\n            except BlockingIOError:\n                os.close(handle)",
        "                pass\n            except BlockingIOError:\n                os.close(handle)",
        CACHE + "test_two_jobs_with_one_cache_fetch_each_shard_once_between_them",
    ),
    Row(
        "a shard's sha256 is not looked at",
        KEEPER,
        "if error is None and shard.name not in kept.odd and found != entry.sha256:",
        "if False:",
        CACHE + "test_what_has_its_name_in_the_cache_is_what_the_manifest_says",
    ),
    Row(
        "an object that was found missing once is given up",
        KEEPER,
        "failure.final = failure.times > RENEWED",
        "failure.final = True",
        CACHE + "test_a_store_that_misbehaves_for_a_while_changes_nothing[loses-and-finds-an-object-s3]",
    ),
    Row(
        "credentials are looked for once",
        KEEPER,
        '            if "credentials" in words:\n                origin.renew()\n',
        "",
        CACHE + "test_credentials_that_are_rotated_are_looked_for_anew",
    ),
    Row(
        "a copy that rots counts as the store's fault",
        "mpp/data/shards.py",
        "            if self.cached is None:\n                raise",
        "            raise",
        CACHE + "test_a_copy_that_rots_in_the_cache_is_fetched_anew",
    ),
    Row(
        "bytes that are not the manifest's stop a run",
        KEEPER,
        "            if shard in self.again:\n",
        "            if False:\n",
        CACHE + "test_bytes_that_are_not_the_manifests_also_when_fetched_again_are_judged_sample_by_sample_as_on_a_disk",
    ),
    Row(
        "sizes in the store are believed",
        KEEPER,
        "        faults = self._wrong_sizes(kept)\n",
        "        faults: dict[str, int] = {}\n",
        CACHE + "test_a_set_that_is_not_whole_is_refused_when_it_is_opened[s3-lost-shard]",
    ),
    Row(
        "the parts of killed jobs take room for good",
        FOLDER,
        "            path.unlink(missing_ok=True)\n        return True",
        "            pass\n        return True",
        ROOM + "test_the_part_that_a_killed_job_left_takes_no_room_and_one_that_is_being_fetched_stays",
    ),
    Row(
        "the keeper outlives its job",
        KEEPER,
        "        while os.getppid() == parent:\n",
        "        while True:\n",
        CACHE + "test_the_keeper_ends_with_its_job_and_takes_its_socket_with_it",
    ),
    Row(
        "a keeper stops when it is asked to",
        KEEPER,
        "        signal.signal(number, signal.SIG_IGN)  # a request",
        "        pass  # a request",
        CACHE + "test_a_request_to_stop_that_reaches_all_processes_leaves_the_keeper_at_work",
    ),
    Row(
        "more is in hand than the cache holds",
        "mpp/data/in_hand.py",
        "    if found.bytes <= limit:\n",
        "    if True:\n",
        ROOM + "test_what_is_refused_does_not_fit_and_what_is_named_instead_does",
    ),
    Row(
        "an address may carry a key",
        "mpp/data/origins.py",
        "    if shown(where) != where:\n",
        "    if False:\n",
        CACHE + "test_an_address_with_a_key_in_it_is_refused_and_not_told",
    ),
    Row(
        "files stay open behind the cache's back",
        "mpp/data/shards.py",
        "            self._file.cache_clear()  # a file that is open takes room after it has made way for others\n",
        "",
        CACHE + "test_a_shard_that_made_way_takes_no_room_any_more",
    ),
]
