"""Bugs in what a run says of its speed, and in what it pays for it, which the tests must find."""

from tests.mutations import Plant, Row

PLAN, COSTS = "tests/test_plan.py::test_", "tests/pipeline/test_zero_costs.py::test_"
NO_WAITING = "tests/pipeline/test_no_waiting.py::test_"
COMPILING = "tests/train/test_compiling.py::test_"
EXCHANGE = "tests/train/test_gradient_exchange.py::test_"
ARITHMETIC, FIGURES = "tests/monitor/test_arithmetic.py::test_", "tests/pipeline/test_speed_figures.py::test_"
GRAPHS = "tests/pipeline/test_cuda_graphs.py::test_memory_that_every_pass_overwrites_changes_no_bit_of_a_run[1-colour]"
ROWS: list[Plant | Row] = [
    Row(
        "DeepSpeed compiles at the first start what no step calls", "mpp/train/engine.py", "        __compatible_ops__[INFERENCE_SUM] = False", "        pass",
        "tests/pipeline/test_first_start.py::test_nothing_is_compiled_whatever_the_processes_and_the_stage[2-3]",
    ),
    Row(
        "gradients stay in the memory of a CUDA graph", "mpp/train/engine.py", "FixedGradients(self._trained) if self._compiled and self._compiled.replays else None", "None",
        GRAPHS,
    ),
    Row(
        "a step that is not compiled has the gradients of CUDA graphs", "mpp/train/compiling.py", "return self.on and self._graphs", "return self._graphs",
        "tests/pipeline/test_cuda_graphs.py::test_a_step_that_is_not_compiled_keeps_no_memory_for_the_gradients_of_cuda_graphs "
        + COMPILING + "what_cannot_be_compiled_runs_as_it_is_written_and_it_is_said_once",
    ),
    Row(
        "gradients of a CUDA graph are added up for ever", "mpp/train/compiling.py", "        torch._foreach_zero_(self._gradients)\n", "", GRAPHS,
    ),
    Row(
        "what a pass gives stays in the memory of a CUDA graph", "mpp/train/compiling.py", "tree_map_only(Tensor, Tensor.clone, replayed())", "replayed()",
        COMPILING + "what_a_pass_has_given_outlives_the_next_replay_of_a_cuda_graph",
    ),
    Row(
        "the hold-out is compiled, and part of a step", "mpp/train/engine.py", "training = self.module.training  #", "training = self.deepspeed.training  #",
        f"{FIGURES}what_is_measured_between_steps_is_no_part_of_their_forward_passes {GRAPHS}",
    ),
    Row(
        "what is computed again comes out otherwise", "mpp/model/recompute.py", "use_reentrant=False, **contexts", "use_reentrant=False, preserve_rng_state=False, **contexts",
        "tests/model/test_recompute.py::test_losses_and_gradients_stay_the_same_to_the_bit[full-cifar_mpp]",
    ),
    Row(
        "selective keeps nothing", "mpp/model/recompute.py", "CheckpointPolicy.MUST_SAVE if operation in DEAR", "CheckpointPolicy.MUST_SAVE if operation is None",
        "tests/model/test_recompute.py::test_fewer_bytes_are_held_the_more_is_computed_again",
    ),
    Row(
        "bytes that are given back are still held", "mpp/monitor/memory.py", "        self.now -= size\n", "        pass\n",
        PLAN + "the_plan_is_that_of_the_card_it_was_measured_on",
    ),
    Row(
        "a plan forgets what is computed again", "mpp/mains/plan.py", "    recompute_blocks(model, config.system.recompute)\n", "",
        PLAN + "less_is_held_where_more_is_computed_again_and_by_bf16_gradients_less_is_sent",
    ),
    Row(
        "a plan forgets the teacher", "mpp/mains/plan.py", "beside = [model.teacher.net] if model.teacher else []", "beside = list[nn.Module]()",
        PLAN + "a_teacher_is_held_beside_the_model",
    ),
    Row(
        "a node sends over one port", "mpp/mains/plan.py", "self.network * self.per_node", "self.network",
        PLAN + "the_exchange_of_a_step_is_that_of_a_ring_over_all_ports_of_a_node",
    ),
    Row(
        "ZeRO 2 sums once a step", "mpp/train/zero_costs.py", '[Sent("all_reduce", accumulation * gradients)', '[Sent("all_reduce", gradients)',
        COSTS + "collectives_and_memory_are_those_of_the_formulas[2-2-2]",
    ),
    Row(
        "DeepSpeed's bucket is as large as it likes", "mpp/train/engine.py", '"reduce_bucket_size": self._bucket(model)', '"reduce_bucket_size": LARGEST_BUCKET',
        COSTS + "collectives_and_memory_are_those_of_the_formulas[3-2-1]",
    ),
    Row(
        "short runs are compiled, too", "mpp/train/compiling.py", "return steps >= COMPILED_STEPS and", "return steps > 0 and",
        COMPILING + "long_runs_are_compiled_and_whoever_says_has_the_last_word",
    ),
    Row(
        "every shape is compiled", "mpp/train/compiling.py", "if self.on and training and batch == self._batch:", "if self.on:",
        COMPILING + "training_batches_of_one_size_are_compiled_and_all_else_runs_as_it_is_written",
    ),
    Row(
        "what cannot be compiled ends the run", "mpp/train/compiling.py", "except torch._dynamo.exc.TorchDynamoException as error:",
        "except ZeroDivisionError as error:", COMPILING + "what_cannot_be_compiled_runs_as_it_is_written_and_it_is_said_once",
    ),
    Row(
        "a run without a compiler dies", "mpp/train/compiling.py", "    except InvalidCxxCompiler:\n", "    except ZeroDivisionError:\n",
        COMPILING + "without_a_compiler_nothing_is_compiled_and_it_is_said_what_is_missing",
    ),
    Row(
        "a target looks at a number on its way", "mpp/recipe/places.py", "corners = (0, side - 1, patches - 1, patches - side)",
        "corners = (0, side - 1, patches - 1, patches - side) if source.sum() > 0 else ()", COMPILING + "every_recipe_is_one_graph_without_a_break[cifar_rotation]",
    ),
    Row(
        "a gradient that is not finite is stepped along", "mpp/train/engine.py", "            self.inner_optimiser.found_inf =", "            self.not_finite =",
        NO_WAITING + "a_gradient_that_is_not_finite_changes_nothing_and_stops_the_run_a_step_later_at_most[0-4]",
    ),
    Row(
        "every step waits to hear what was agreed", "mpp/train/run.py", "            if self.shown or self.commits:\n                self._heed(self)",
        "            if True:\n                self._heed(self)", NO_WAITING + "two_processes_hear_of_each_other_a_step_later",
    ),
    Row(
        "nobody hears of the step before", "mpp/train/run.py", "            if before:\n                self._heed(before)\n", "",
        NO_WAITING + "a_gradient_that_is_not_finite_changes_nothing_and_stops_the_run_a_step_later_at_most[0-4]",
    ),
    Row(
        "DeepSpeed's timer waits for the device", "mpp/train/engine.py", '"timers": {"throughput": {"enabled": False}},', "",
        NO_WAITING + "pretraining_looks_at_no_number_between_the_steps_that_log[MAE]",
    ),
    Row(
        "threads spin as long as libgomp likes", "mpp/base/interrupts.py", 'os.environ["GOMP_SPINCOUNT"] = str(SPINS)', "pass",
        "tests/test_programs.py::test_threads_that_wait_for_each_other_do_not_spin_for_long_unless_the_user_says_so",
    ),
    Row(
        "a GPU's time counts as waiting, too", "mpp/train/speed.py", "            waited = min(waited, idle)\n", "",
        "tests/train/test_run.py::test_what_a_gpu_does_in_the_meantime_is_no_waiting",
    ),
    Row(
        "one process gathers its gradients, too", "mpp/train/engine.py", "self.deepspeed.enable_backward_allreduce = False", "pass",
        FIGURES + "gradients_are_gathered_once_a_step_and_of_one_process_never",
    ),
    Row(
        "two processes keep their gradients to themselves", "mpp/train/engine.py", "        elif self._exchange:\n", "        elif False:\n",
        FIGURES + "gradients_are_gathered_once_a_step_and_of_one_process_never",
    ),
    Row(
        "gradients are sums", "mpp/train/gradient_exchange.py", "flat.mul_(1 / self._processes)", "flat",
        EXCHANGE + "behind_the_backward_pass_gradients_are_the_average_over_processes_and_each_bucket_is_sent_once",
    ),
    Row(
        "each micro-batch's gradients are sent", "mpp/train/gradient_exchange.py", "        if not self._expecting:\n            return\n", "",
        EXCHANGE + "micro_batches_before_the_last_send_nothing_and_count",
    ),
    Row(
        "buckets are sent as they come", "mpp/train/gradient_exchange.py",
        "not self._missing[len(self._under_way)]:", "not self._missing[number]:",
        EXCHANGE + "what_a_step_did_not_use_is_zero_and_does_not_change_the_order_in_which_buckets_are_sent",
    ),
    Row(
        "the first layers lie in the first bucket", "mpp/train/gradient_exchange.py", "list(reversed(parameters))", "list(parameters)",
        EXCHANGE + "of_every_kind_of_recipe_all_but_the_first_layers_gradients_are_sent_during_the_backward_pass",
    ),
    Row(
        "float32 is sent whatever is asked", "mpp/train/gradient_exchange.py", ".to(self._sent_as)", "",
        EXCHANGE + "bf16_is_what_is_sent_and_float32_what_comes_of_it",
    ),
    Row(
        "on one process a step leaves out what it did not use", "mpp/train/engine.py", "parameter.grad = torch.zeros_like(parameter)", "pass",
        "tests/pipeline/test_clusters_run.py::test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit_its_clusters_too",
    ),
    Row(
        "what fused attention computes twice is counted twice", "mpp/monitor/arithmetic.py", "return 2 * sdpa_flop_count", "return 2.5 * sdpa_flop_count",
        ARITHMETIC + "every_token_is_encoded_and_half_of_them_are_predicted",
    ),
    Row(
        "counting counts on", "mpp/monitor/arithmetic.py", "        buffer.copy_(value)\n", "        pass\n",
        ARITHMETIC + "counting_leaves_no_trace",
    ),
    Row(
        "constants of a count stay", "mpp/model/normalise.py", "if isinstance(made, FakeTensor):", "if False:",
        ARITHMETIC + "counting_leaves_no_trace",
    ),
    Row(
        "each process is held against its own limit", "mpp/train/speed.py", "        dist.all_reduce(own)\n", "",
        FIGURES + "images_a_second_are_held_against_the_matrix_products_of_all_processes",
    ),
    Row(
        "a resumed run counts its empty step", "mpp/train/speed.py", "        phases.look()  # the empty", "        pass  # the empty",
        FIGURES + "a_resumed_run_does_not_count_the_step_that_creates_its_optimisers_state",
    ),
    Row(
        "a multiply-add counts once in the machine's rate", "mpp/monitor/arithmetic.py", "return 2 * side**3 / best", "return side**3 / best",
        ARITHMETIC + "a_machine_that_takes_a_second_for_a_product_has_its_operations_a_second",
    ),
    Row(
        "times of phases are never cleared", "mpp/monitor/phases.py", "        self._seconds.clear()\n", "",
        "tests/monitor/test_phases.py::test_seconds_are_summed_by_phase_and_cleared_when_looked_at",
    ),
    Row(
        "in fp32 a CPU multiplies plain matrices", "mpp/model/tokens.py", 'device == "cuda" or precision == "fp32"', 'device == "cuda"',
        "tests/train/test_speed_options.py::test_attention_is_the_faster_one_by_precision_and_device_unless_somebody_asks",
    ),
]  # fmt: skip
