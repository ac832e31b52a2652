"""Bugs that the tests of schedules, branches and the teacher's clock must find."""

from tests.mutations import Plant, Row

SCHEDULE, TEACHER, COURSE, OPTIM = (f"tests/train/test_{name}.py::test_" for name in ("schedule", "teacher", "course", "optim"))
BRANCHES, TAUGHT = "tests/pipeline/test_branches.py::test_", "tests/pipeline/test_teacher.py::test_"
ROWS: list[Plant | Row] = [
    # Learning rate.
    Row(
        "warm-up begins at nothing", "mpp/train/schedule.py", "optim.start_lr, optim.warmup_samples", "0.0, optim.warmup_samples",
        SCHEDULE + "ijepas_rates_are_those_of_torchs_own_schedulers",
    ),
    Row(
        "the cut cosine is stretched over the whole run", "mpp/train/schedule.py", "optim.cosine_share * min(1.0, (done - warmup) / rest)",
        "min(1.0, (done - warmup) / (optim.total_samples / optim.cosine_share - began - warmup))",
        SCHEDULE + "capis_cosine_is_cut_at_its_share_of_what_follows_warm_up",
    ),
    Row(
        "a cool-down begins half-way down", "mpp/train/schedule.py", "since / optim.cooldown_samples)", "(since + optim.cooldown_samples) / optim.total_samples)",
        SCHEDULE + "a_linear_cool_down_is_torchs_and_the_trunk_before_it_has_the_peak_to_the_bit",
    ),
    Row(
        "the root is of what is left", "mpp/train/schedule.py", "(1 - (cooled if optim.cooldown_shape == \"linear\" else math.sqrt(cooled)))",
        "(1 - cooled if optim.cooldown_shape == \"linear\" else math.sqrt(1 - cooled))",
        SCHEDULE + "a_cool_down_is_one_less_the_root_of_what_is_done_by_default",
    ),
    Plant(
        "where a cool-down begins is counted from the end of the warm-up", "mpp.train.schedule:stable_until",
        "lambda optim: real(optim) and real(optim) - optim['warmup_samples']", SCHEDULE + "a_trunk_does_not_know_where_it_ends",
    ),
    Row(
        "the note on a small rate looks at the rate before scaling", "mpp/train/schedule.py", "peak >= SMALL_RATE", "optim.base_lr >= SMALL_RATE",
        SCHEDULE + "the_peak_is_said_with_how_it_came_about_and_a_small_batch_is_told",
    ),
    # Weight decay.
    Row(
        "the decay waits for the end of warm-up", "mpp/train/schedule.py", "else (began, optim.total_samples)", "else (began + optim.warmup_samples, optim.total_samples)",
        SCHEDULE + "ijepas_weight_decay_rises_by_half_a_cosine_over_the_run",
    ),
    Row(
        "the decay's own samples begin again with each cycle", "mpp/train/schedule.py", "(0, optim.weight_decay_samples)", "(began, began + optim.weight_decay_samples)",
        SCHEDULE + "weight_decay_is_torchs_cosine_over_samples_of_its_own_where_they_are_given_and_else_constant",
    ),
    Row(
        "a scheduled decay reaches biases and tokens", "mpp/train/engine.py", " * group.get(\"decay_scale\", 1.0)", "",
        TAUGHT + "at_every_stage_each_weight_decays_and_moves_by_its_own_factors_of_the_steps_decay_and_rate",
    ),
    Row(
        "under ZeRO the inner optimiser keeps its first decay", "mpp/train/engine.py", "            if weight_decay is not None:",
        "            if weight_decay is not None and not self.stage:",
        TAUGHT + "at_every_stage_each_weight_decays_and_moves_by_its_own_factors_of_the_steps_decay_and_rate",
    ),
    Plant(
        "norms' biases decay with their scales", "mpp.train.optim:is_scale_of_norm", "lambda name: 'norm' in name",
        OPTIM + "norms_may_decay_a_little_and_the_patch_embedding_may_learn_more_slowly",
    ),
    Row(
        "the patch embedding's bias learns at full rate", "mpp/train/optim.py", "if PATCH_EMBEDDING in name.split(\".\") else", "if PATCH_EMBEDDING in name.split(\".\") and parameter.ndim > 1 else",
        OPTIM + "norms_may_decay_a_little_and_the_patch_embedding_may_learn_more_slowly",
    ),
    # The teacher's clock.
    Row(
        "the teacher's clock is a step ahead of the rate's", "mpp/train/teacher.py", "seen = (step - 1) * batch", "seen = step * batch",
        TEACHER + "the_decay_of_every_step_is_that_of_the_authors_formula",
    ),
    Row(
        "half a cosine of the decay begins steeply", "mpp/recipe/teacher.py", "(1 - math.cos(math.pi * share)) / 2", "math.sin(math.pi * share / 2)",
        TEACHER + "the_decay_of_every_step_is_that_of_the_authors_formula",
    ),
    Row(
        "the decay's whole run begins at the first sample ever", "mpp/recipe/teacher.py", "(began, total_samples) if", "(0, total_samples) if",
        TEACHER + "over_the_whole_run_means_over_the_whole_cycle_of_an_extension",
    ),
    Row(
        "the teacher moves with every micro-batch", "mpp/mains/pretrain.py", "            step.backward(loss.mean() + own)\n",
        "            step.backward(loss.mean() + own)\n            if teacher:\n                teacher.update(engine, step.number)\n",
        TAUGHT + "every_stage_world_and_accumulation_has_the_same_losses_and_moves_the_teacher_once_a_step",
    ),
    Plant(
        "the teacher that is handed on is the encoder", "mpp.interop.encoder_folder:PREFIXES", "{name: real['encoder'] for name in real}",
        TAUGHT + "the_teacher_is_handed_on_beside_it_and_exported_on_request",
    ),
    # Branches.
    Row(
        "a branch begins with a teacher of its own", "mpp/train/run.py", "restore(commit, engine, world, average, prime",
        "restore(commit, engine, world, None if self.trunk else average, prime",
        BRANCHES + "a_branch_is_the_run_that_was_asked_for_its_end_at_first_to_the_bit",
    ),
    Row(
        "a branch sees the samples of the beginning", "mpp/mains/pretrain.py", "peers.rank, peers.size, run.first_step, run.total_steps, passed=passed)",
        "peers.rank, peers.size, 0 if run.trunk else run.first_step, run.total_steps, passed=passed)",
        BRANCHES + "no_sample_is_seen_twice_and_none_is_lost_at_the_border",
    ),
    Row(
        "a branch's rate begins a cycle of its own", "mpp/train/branch.py", "tuple(commit.record.get(\"extended_at\", ()))", "(commit.samples_seen,)",
        BRANCHES + "a_branch_that_ends_as_its_trunk_is_the_trunk_continued_to_the_bit",
    ),
    Row(
        "commits of a resumed branch forget the trunk", "mpp/train/resume.py", ", changes, commit.record.get(\"branched_from\"))", ", changes)",
        COURSE + "a_branch_says_where_it_began_and_keeps_what_the_trunk_had",
    ),
    Row(
        "where branches leave is pruned", "mpp/train/commit.py", " or commit.record.get(\"kept\")", "", COURSE + "commits_that_are_kept_for_good_are_not_pruned",
    ),
    Row(
        "any key of optim may differ in a branch", "mpp/train/run_folder.py", "(trunk and key in ENDS)", "(trunk and key.startswith(\"optim.\"))",
        COURSE + "what_is_no_branch_is_refused_by_name",
    ),
    Plant(
        "a branch leaves a cool-down", "mpp.train.branch:stable_until", "lambda optim: real(optim) and optim['total_samples']", COURSE + "what_is_no_branch_is_refused_by_name",
    ),
    Plant(
        "a run that has cooled down is extended in a cycle", "mpp.train.resume:refuse_cooled", "lambda commit: None",
        COURSE + "a_run_that_has_cooled_down_is_trained_on_from_before",
    ),
    Plant(
        "a trunk that is made longer begins a cycle", "mpp.train.resume:of_trunk", "lambda commit, config: False",
        COURSE + "a_trunk_is_asked_for_another_end_at_any_time_and_begins_no_cycle",
    ),
    Plant(
        "a damaged trunk is believed", "mpp.train.run:agreed_trunk", "lambda asked, commit, world: commit",
        BRANCHES + "a_damaged_commit_of_a_trunk_is_refused_and_nothing_is_written",
    ),
]  # fmt: skip
