"""Bugs that the tests of encoders read from elsewhere and exported must find."""

from tests.mutations import Plant, Row

FOREIGN, CERTIFICATE, CONTINUED, SIZES = (
    "tests/interop/test_foreign_encoder.py",
    "tests/interop/test_certificate.py",
    "tests/interop/test_start_from.py",
    "tests/interop/test_start_from_sizes.py",
)
BACKBONE = "tests/model/test_backbone.py"

ROWS = [
    # The way in.
    Row(
        "query and key change places", "mpp/interop/foreign_names.py", "torch.cat([thirds[i] for i in range(3)])", "torch.cat([thirds[i] for i in (1, 0, 2)])",
        f"{FOREIGN}::test_a_folder_of_transformers_gives_the_tokens_of_that_library",
    ),
    Plant(
        "the norms of a foreign encoder keep timm's constant", "mpp.interop.foreign_encoder:set_norm_eps", "lambda net, eps: net",
        f"{FOREIGN}::test_a_folder_of_transformers_gives_the_tokens_of_that_library",
    ),
    Row(
        "heads are assumed though the config says them", "mpp/interop/foreign_names.py", "heads = heads or (int(table", "heads = (int(table",
        f"{FOREIGN}::test_a_folder_of_transformers_gives_the_tokens_of_that_library",
    ),
    Row(
        "a tensor that nobody knows is passed over", "mpp/interop/foreign_encoder.py", "if unknown or missing or other:", "if missing or other:",
        f"{FOREIGN}::test_a_tensor_too_many_too_few_or_of_another_shape_is_named",
    ),
    Row(
        "a checkpoint is unpickled whole", "mpp/interop/weight_files.py", '"cpu", weights_only=True)', '"cpu", weights_only=False)',
        f"{FOREIGN}::test_nothing_in_a_file_is_executed",
    ),
    Row(
        "of a run with choices of its own nobody says what can be read", "mpp/train/commit.py", "if handed.is_dir() else", "if False else",
        "tests/interop/test_encoder_folder.py::test_a_run_with_choices_that_are_not_known_here_says_what_is_read_without_them",
    ),
    Plant(
        "args beside weights are refused", "mpp.interop.weight_files:HARMLESS", "[]",
        f"{FOREIGN}::test_checkpoints_that_keep_the_words_of_their_training_are_read",
    ),
    Row(
        "every torch.load of the process takes what weights of others may have beside them", "mpp/interop/weight_files.py",
        "with torch.serialization.safe_globals(HARMLESS):", "if torch.serialization.add_safe_globals(HARMLESS) is None:",
        f"{FOREIGN}::test_checkpoints_that_keep_the_words_of_their_training_are_read",
    ),
    Row(
        "what lies beside weights is not named", "mpp/interop/weight_files.py", 'r"GLOBAL ([\\w.]+)"', 'r"GLOBAL: ([\\w.]+)"',
        f"{FOREIGN}::test_what_else_lies_beside_weights_is_named_with_the_way_to_leave_it_out",
    ),
    Plant(
        "whatever has no teacher gives its encoder for one", "mpp.interop.read_encoder:has_teacher", "lambda commit: True",
        f"{FOREIGN}::test_only_a_run_that_learns_from_a_teacher_has_one",
    ),
    Row(
        "other heads of a published decoder are taken in silence", "mpp/interop/start_from.py", '"heads" not in theirs and blocks', "False and blocks",
        f"{CONTINUED}::test_heads_of_a_decoder_that_a_file_does_not_say_are_told_where_published_ones_have_others",
    ),
    Row(
        "SimMIM's shared relative positions are left out", "mpp/interop/foreign_names.py",
        '"use_shared_rel_pos_bias": "rel_pos_bias.relative_position_bias_table" in tables', '"use_shared_rel_pos_bias": False',
        f"{FOREIGN}::test_relative_positions_layer_scale_and_separate_biases",
    ),
    Row(
        "what was left out is not said", "mpp/interop/foreign_encoder.py", "    if found.dropped:\n", "    if False:\n",
        f"{FOREIGN}::test_what_is_assumed_and_left_out_is_said",
    ),
    Plant(
        "the digest does not know heads", "mpp.interop.loaded_encoder:FUNCTION", 'tuple(set(real) - {"num_heads", "head_dim", "scale"})', f"{FOREIGN}::test_the_digest_is_of_the_encoder_and_not_of_its_file",
    ),
    Plant(
        "the digest depends on the dropping of paths", "mpp.interop.loaded_encoder:NO_FUNCTION", 'tuple(set(real) - {"DropPath"})',
        f"{FOREIGN}::test_the_digest_is_of_the_encoder_and_not_of_its_file",
    ),
    Row(
        "a fresh twin draws from torch's global generator", "mpp/interop/foreign_encoder.py", "with torch.random.fork_rng(devices=[]):", "if True:",
        f"{FOREIGN}::test_timm_by_name_with_random_weights_and_with_a_file",
    ),
    # The way on.
    Row(
        'pretraining goes on with a fresh decoder', 'mpp/interop/start_from.py',
        'return {f"decoder.{name}": tensor for name, tensor in loaded.decoder.items()}',
        'return {}',
        f"{CONTINUED}::test_the_first_loss_is_the_oracles",
    ),
    Row(
        'pretraining goes on with other heads', 'mpp/interop/same_model.py',
        'if (a := _heads(theirs)) != (b := _heads(ours)):',
        'if False:',
        f"{CONTINUED}::test_another_architecture_is_refused",
    ),
    Row(
        'pretraining goes on with other heads of the decoder', 'mpp/interop/start_from.py', 'if "heads" in other and blocks:', 'if False:',
        f"{CONTINUED}::test_another_architecture_is_refused {SIZES}::test_a_decoder_with_other_heads_is_refused_and_one_of_another_shape_begins_afresh_and_is_said",
    ),
    Plant(
        'pretraining goes on with another activation', 'mpp.interop.same_model:_kinds', 'lambda net: {}',
        f"{SIZES}::test_weights_that_would_fit_and_compute_something_else_are_refused",
    ),
    Row(
        'words that change nothing are asked for', 'mpp/interop/same_model.py', 'if _builds(theirs, model, {"arch": name, **fewer}):', 'if False:',
        f"{SIZES}::test_another_model_is_refused_with_all_the_words_that_make_it_the_same",
    ),
    Row(
        'the words are for the architecture of the config alone', 'mpp/interop/same_model.py', 'dict.fromkeys((model.arch, arch))', '(model.arch,)',
        f"{SIZES}::test_another_model_is_refused_with_all_the_words_that_make_it_the_same",
    ),
    Row(
        "a decoder's learned positions begin afresh at another size", 'mpp/interop/start_from.py', 'if places is not None and old != new', 'if False',
        f"{SIZES}::test_at_another_image_size_learned_positions_are_those_that_timm_interpolates",
    ),
    Plant(
        "a decoder's positions are interpolated without the filter", 'mpp.model.tokens:resized_positions',
        'lambda positions, old, new: __import__("timm").layers.resample_abs_pos_embed(positions, list(new), list(old), positions.shape[1] - old[0] * old[1], "bilinear")',
        f"{SIZES}::test_at_another_image_size_learned_positions_are_those_that_timm_interpolates",
    ),
    Row(
        "positions of another kind of decoder are taken", 'mpp/interop/start_from.py', ' and was.decoder.name == config.decoder.name', '',
        f"{SIZES}::test_a_decoder_of_another_kind_keeps_its_own_positions",
    ),
    Row(
        'a patch embedding is resampled unsaid', 'mpp/interop/start_from.py', 'if patch != new_patch:', 'if False:',
        f"{SIZES}::test_at_another_patch_size_the_embedding_is_the_one_that_timm_resamples_and_the_head_begins_afresh",
    ),
    Row(
        'fixed positions are held beside those of the new grid', 'mpp/interop/start_from.py',
        'wanted = parameter if name != PLACES else _fixed_positions(positions, grid)', 'wanted = parameter',
        f"{SIZES}::test_fixed_positions_are_the_new_runs_own_and_learned_ones_that_they_replace_are_said",
    ),
    Row(
        'a run begins at random where weights were asked for', 'mpp/interop/start_from.py', 'source.endswith(f"@{RANDOM}")', 'False',
        f"{SIZES}::test_what_is_no_plain_vision_transformer_and_what_has_no_weights_is_refused",
    ),
    Plant(
        'the norm behind the pooling is not the final one', 'mpp.interop.start_from:with_final_norm', 'lambda net: net',
        f"{SIZES}::test_a_norm_behind_the_pooling_is_the_final_one_and_a_pooling_by_attention_is_left_out_and_said",
    ),
    Row(
        'the words for the normalisation are its mean twice', 'mpp/interop/start_from.py', '_listed(loaded.std)', '_listed(loaded.mean)',
        f"{SIZES}::test_the_words_that_go_on_with_the_normalisation_of_the_weights_are_said_and_do_so",
    ),
    Plant(
        'a ViT-H has heads of 64', 'mpp.interop.foreign_names:WIDER_HEADS', '{}',
        f"{FOREIGN}::test_a_file_of_a_published_size_has_the_heads_of_that_size",
    ),
    Plant(
        'each try for the hub is told', 'mpp.interop.foreign_encoder:_hub_at_work', '__import__("contextlib").nullcontext',
        f"{FOREIGN}::test_the_hub_is_announced_once_its_retries_are_silent_and_the_first_cause_of_its_failure_is_said",
    ),
    Row(
        'learned positions are replaced unsaid', 'mpp/interop/start_from.py',
        'if not torch.allclose(found.float(), wanted, atol=1e-3):',
        'if False:',
        f"{CONTINUED}::test_positions_that_do_not_fit_are_not_left_out_unsaid",
    ),
    # The way out.
    Plant(
        "the norms of ViTModel get its default constant", "mpp.interop.to_transformers:_vit_config",
        'lambda encoder: {key: value for key, value in real(encoder).items() if key != "layer_norm_eps"}',
        f"{CERTIFICATE}::test_each_certificate_says_what_it_is_of",
    ),
    Plant(
        "ViTModel's pooler is drawn at random", "mpp.interop.to_transformers:vit_files",
        'lambda encoder: (real(encoder)[0], {name: tensor for name, tensor in real(encoder)[1].items() if not name.startswith("pooler")})', f"{CERTIFICATE}::test_a_process_without_mpp_opens_all_of_them_to_equal_tokens",
    ),
    Plant(
        "images are squeezed into a square", "mpp.interop.preprocessing:transformers_preprocessing",
        'lambda side, mean, std: real(side, mean, std) | {"size": {"height": side, "width": side}}',
        f"{CERTIFICATE}::test_a_process_without_mpp_opens_all_of_them_to_equal_tokens",
    ),
    Plant(
        "what ViTModel cannot express is left out", "mpp.interop.to_transformers:EXPRESSIBLE", 're.compile(".*")',
        f"{CERTIFICATE}::test_what_a_target_cannot_express_is_refused_before_anything_is_written",
    ),
    # The certificate.
    Row(
        "files are not compared with their hashes", "mpp/interop/certificate.py", " or sha256_of(file) != sha256:", ":",
        f"{CERTIFICATE}::test_one_flipped_bit_in_any_file_is_found",
    ),
    Row(
        "the encoder inside is not compared", "mpp/interop/certificate.py", "if encoder.digest != digest or", "if",
        f"{CERTIFICATE}::test_another_encoder_under_matching_hashes_is_found",
    ),
    Plant(
        "any difference is certified", "mpp.interop.certificate:_within", "lambda off, bound, folder: None",
        f"{CERTIFICATE}::test_a_library_that_computes_something_else_is_found",
    ),
    Row(
        "the decoder's predictions are not measured", "mpp/interop/certificate.py", "if predicted is not None:", "if False:",
        f"{CERTIFICATE}::test_predictions_of_another_decoder_are_found",
    ),
    Row(
        "an old certificate stays beside new files", "mpp/mains/export.py", "        (folder / CERTIFICATE).unlink(missing_ok=True)  # it is of what was there before\n", "",
        f"{CERTIFICATE}::test_a_kill_between_two_files_leaves_no_certificate",
    ),
    Row(
        "a stage network with blocks is taken for a transformer", "mpp/model/backbone.py", "            and len(set(widths)) == 1\n            and len(widths) == len(blocks)\n", "",
        f"{BACKBONE}::test_stages_of_others_are_feature_maps_as_tokens",
    ),
    Plant(
        "a norm behind the pooling is forgotten", "mpp.model.backbone:Backbone.final_norm", "lambda self: self.net.norm",
        f"{BACKBONE}::test_any_timm_model_gives_every_layer",
    ),
]  # fmt: skip
