"""Bugs of looking inside an encoder."""

from tests.mutations import Plant, Row

ATTENTION = "tests/monitor/test_attention.py::test_"
WEIGHTS = "tests/monitor/test_insides.py::test_"
MAPS = "tests/model/test_attention_maps.py::test_"
PROGRAM = "tests/test_inside.py::test_"
LOOKS = "tests/transfer/test_encoder_looks.py::test_"
NUMBERS = PROGRAM + "of_our_own_encoders_the_numbers_are_those_of_timms_extractor_and_plain_sums"
LOOPS = ATTENTION + "distance_entropy_and_share_of_prefix_tokens_are_those_of_plain_loops"
ROWS: list[Plant | Row] = [
    Plant(
        "the class token is a patch", "mpp.monitor.attention:over_patches", "lambda attention, prefix: real(attention, max(0, prefix - 1))",
        NUMBERS,
    ),
    Row(
        "what is left of a row is not made whole", "mpp/monitor/attention.py", "kept / whole.clamp_min(torch.finfo(torch.float32).tiny), kept)", "kept, kept)",
        LOOPS,
    ),
    Row(
        "patches are square", "mpp/monitor/attention.py", "count, side in zip(grid, cell, strict=True)", "count, side in zip(grid, cell[:1] * 2, strict=True)",
        ATTENTION + "attention_to_a_neighbour_goes_one_patch_in_its_direction",
    ),
    Row(
        "distances are squared", "mpp/monitor/attention.py", "self._between = torch.cdist(where, where)", "self._between = torch.cdist(where, where) ** 2",
        LOOPS,
    ),
    Row(
        "entropy in bits", "mpp/monitor/attention.py", "torch.special.entr(shares).sum(-1)", "torch.special.entr(shares).sum(-1) / 0.6931",
        ATTENTION + "looking_everywhere_alike_has_the_mean_distance_of_two_patches_and_all_of_the_entropy",
    ),
    Row(
        "rows that give nothing to a patch count as near", "mpp/monitor/attention.py", "Spread(distance / counted, entropy / counted,", "Spread(distance / queries, entropy / queries,",
        ATTENTION + "a_head_that_gives_all_to_the_class_token_has_no_distance_and_one_row_of_it_does_not_count",
    ),
    Row(
        "a later batch takes the place of the earlier ones", "mpp/monitor/attention.py", "sums if self._sums is None else self._sums + sums", "sums",
        LOOPS,
    ),
    Row(
        "rollout from the last block to the first", "mpp/monitor/attention.py", "else own @ self._mixed", "else self._mixed @ own",
        ATTENTION + "rollout_averages_heads_goes_from_the_first_block_to_the_last_and_keeps_rows_whole",
    ),
    Row(
        "rollout without the residual connection", "mpp/monitor/attention.py", "(heads + torch.eye(heads.shape[-1], device=heads.device)) / 2", "heads",
        ATTENTION + "rollout_of_two_blocks_is_the_product_worked_by_hand",
    ),
    Row(
        "registers are asked as class tokens are", "mpp/monitor/attention.py", "attention[..., :class_tokens, :] if class_tokens", "attention[..., :prefix, :] if class_tokens",
        ATTENTION + "maps_ask_the_class_tokens_or_all_patches_and_show_patches_alone",
    ),
    Row(
        "windows of several images pass as all patches", "mpp/monitor/attention_by_layer.py", " or (not layer.window and len(attention) != images)", "",
        ATTENTION + "only_probabilities_between_known_places_are_told",
    ),
    Plant(
        "whatever weighs the values is called attention", "mpp.model.attention_maps:are_probabilities", "lambda attention: True",
        MAPS + "attention_between_channels_counts_as_none_and_differences_are_no_probabilities",
    ),
    Row(
        "fused kernels stay off", "mpp/model/attention_maps.py", "            each.fused_attn = fused\n", "            pass\n",
        MAPS + "watching_changes_nothing_of_the_output_and_is_forgotten",
    ),
    Row(
        "hooks stay", "mpp/model/attention_maps.py", "            hook.remove()\n", "            pass\n",
        MAPS + "watching_changes_nothing_of_the_output_and_is_forgotten",
    ),
    Row(
        "tokens of a window are as large as those of the first stage", "mpp/monitor/attention_by_layer.py", "cell = (float(layer.reduction or 1),) * 2", "cell = (4.0,) * 2",
        PROGRAM + "attention_inside_of_windows_is_as_far_as_windows_reach",
    ),
    Row(
        "filters are not centred", "mpp/monitor/insides.py", "    flat = flat - flat.mean(0)\n    return", "    return",
        WEIGHTS + "principal_filters_are_scikit_learns_up_to_their_sign",
    ),
    Row(
        "a component's sign is left to chance", "mpp/monitor/insides.py", "torch.where(largest < 0, -1, 1)", "torch.ones_like(largest)",
        WEIGHTS + "principal_filters_are_scikit_learns_up_to_their_sign",
    ),
    Row(
        "grey filters forget what colours are divided by", "mpp/monitor/insides.py", "(weight / torch.tensor(grey, dtype=torch.float64, device=weight.device)[:, None, None]).sum(1)", "weight.sum(1)",
        WEIGHTS + "on_grey_images_filters_are_what_they_do_to_grey",
    ),
    Row(
        "the class token's position is the first patch's", "mpp/monitor/insides.py", "    return flat[-patches:]\n", "    return flat[:patches]\n",
        WEIGHTS + "absolute_positions_are_those_of_the_patches",
    ),
    Row(
        "a rotary kernel of the sines alone", "mpp/monitor/insides.py", "turns @ turns.transpose(-1, -2) / (turns.shape[-1] // 2)",
        "turns[..., : turns.shape[-1] // 2] @ turns[..., : turns.shape[-1] // 2].transpose(-1, -2) / (turns.shape[-1] // 4)",
        WEIGHTS + "a_rotary_kernel_is_what_turning_leaves_of_the_product_of_equal_vectors",
    ),
    Row(
        "offsets the wrong way round", "mpp/monitor/insides.py", ".reshape(-1, rows, columns).flip(1, 2)", ".reshape(-1, rows, columns)",
        WEIGHTS + "a_relative_bias_is_what_attention_adds_for_a_key_at_that_offset",
    ),
    Row(
        "later tokens are centred on nothing", "mpp/monitor/insides.py", "        flat = flat - self._about\n", "        flat = flat - self._about * (self.count == 0)\n",
        WEIGHTS + "components_of_patch_tokens_are_scikit_learns_however_they_come",
    ),
    Row(
        "the drawn images are other ones", "mpp/mains/inside.py", "pixels(crops.shown[first : first + batch])", "pixels(crops.data.ids[first : first + batch])",
        NUMBERS,
    ),
    Row(
        "pictures of another encoder stay", "mpp/mains/inside.py", "            (out / name).unlink(missing_ok=True)\n", "            pass\n",
        PROGRAM + "a_picture_that_another_encoder_left_behind_goes",
    ),
    Row(
        "looks are at images that are trained on", "mpp/transfer/encoder_looks.py",
        "ids = chosen.asked[places]", "ids = chosen.bank[places]", LOOKS + "figures_are_those_of_timms_extractor_on_images_that_are_held_out",
    ),
    Row(
        "processes that are not needed look, too", "mpp/transfer/encoder_looks.py", "(world.first or everywhere) and len", "len",
        LOOKS + "one_process_looks_unless_the_weights_are_shared_out_and_then_all_make_the_same_passes",
    ),
    Row(
        "a process with fewer images calls the encoder less often", "mpp/transfer/while_training.py", "range(self._calls - -(-len(self.crops) // BATCH))", "range(0)",
        "tests/transfer/test_while_training.py::test_all_processes_call_the_encoder_as_often_however_their_shares_differ",
    ),
    Row(
        "the highest heads are cut in half", "mpp/transfer/inside_plots.py", "ylim=(0, 1.04 * axes.get_ylim()[1])", "ylim=(0, None)",
        "tests/test_inside.py::test_no_head_lies_on_the_edge_of_its_panel",
    ),
]  # fmt: skip
