"""Class tokens, registers, positions and what else an encoder may be asked for."""

from tests.mutations import Plant, Row

KINDS = "tests/model/test_encoder_kinds.py"
FOLDER = "tests/interop/test_encoder_folder.py"
MASKED = f"{KINDS}::test_rotary_at_the_kept_places_is_full_attention_under_a_mask_that_hides_the_others"
ROWS = [
    Plant("rotations are those of the first places", "mpp.model.encoder:gather_rotations", "lambda rotations, index: rotations[..., : index.shape[1], :]", MASKED),
    Plant(
        "rotations by head are laid out by image first", "mpp.model.tokens:gather_rotations", "lambda rotations, index: real(rotations, index) if rotations.ndim == 2 "
        "else rotations[..., index[:1].expand_as(index), :].transpose(1, 2)", MASKED,
    ),
    Row(
        "every block has the first block's rotations", "mpp/model/encoder.py", "rotations[number] if self.vit.rope_mixed", "rotations[0] if self.vit.rope_mixed", MASKED,
    ),
    Row("rotary positions are left out", "mpp/model/encoder.py", "            if rotations is None:\n", "            if True:\n", MASKED),
    Plant(
        "positions are added twice", "mpp.model.encoder:Encoder._positioned",
        "lambda self, embeddings: (lambda tokens, rotations: (tokens if self.vit.pos_embed is None else tokens + self.vit.pos_embed, rotations))(*real(self, embeddings))",
        f"{KINDS}::test_each_class_token_has_a_vector_and_a_place_of_its_own_added_once",
    ),
    Row(
        "class tokens have no place of their own", "mpp/model/encoder.py", 'arguments["no_embed_class"] = False', 'arguments["no_embed_class"] = True',
        f"{KINDS}::test_each_class_token_has_a_vector_and_a_place_of_its_own_added_once",
    ),
    Row(
        "registers are pooled as class tokens", "mpp/transfer/extractors.py", "class_feature(tokens, self.backbone.class_tokens)", "class_feature(tokens, self.backbone.prefix)",
        f"{KINDS}::test_the_class_feature_is_the_mean_of_the_class_tokens_and_registers_are_in_no_feature",
    ),
    Plant(
        "MAE's probe looks at the first class token", "mpp.transfer.probes.mae:class_feature", "lambda tokens, class_tokens: tokens[:, 0]",
        f"{KINDS}::test_the_class_feature_is_the_mean_of_the_class_tokens_and_registers_are_in_no_feature",
    ),
    Plant(
        "a fine-tuned model looks at the first class token", "mpp.model.classifier:class_feature", "lambda tokens, class_tokens: tokens[:, 0]",
        f"{KINDS}::test_a_fine_tuned_model_pools_all_class_tokens_and_timm_opens_it",
    ),
    Row(
        "timm's own pooling stands for several class tokens", "mpp/model/classifier.py", '"token" if backbone.class_tokens == 1 else ""', '"token"',
        f"{KINDS}::test_a_fine_tuned_model_pools_all_class_tokens_and_timm_opens_it",
    ),
    Row(
        "a constant rule drops the attention's path alone", "mpp/model/encoder.py", "block.drop_path1, block.drop_path2 = DropPath(config.drop_path), DropPath(config.drop_path)",
        "block.drop_path1 = DropPath(config.drop_path)", f"{KINDS}::test_stochastic_depth_rises_in_a_line_or_is_the_same_in_every_block",
    ),
    Row(
        "stochastic depth is always in a line", "mpp/model/encoder.py", 'if config.drop_path_rule == "constant" and', "if False and",
        f"{KINDS}::test_stochastic_depth_rises_in_a_line_or_is_the_same_in_every_block",
    ),
    Row(
        "the scales of an architecture that has them stay", "mpp/model/encoder.py", "config.layer_scale or (1.0 if known.eva else 0.0)", "config.layer_scale or None",
        f"{KINDS}::test_layer_scale_and_the_norm_of_queries_and_keys_are_there_as_said",
    ),
    Row(
        "scales that stand for none are learned", "mpp/model/encoder.py", 'in ("gamma_1", "gamma_2"):', "in ():",
        f"{KINDS}::test_layer_scale_and_the_norm_of_queries_and_keys_are_there_as_said",
    ),
    Row(
        "rotary frequencies miss the far edge", "mpp/model/architecture.py", "(side / (side - 1) if side > 1 else 1.0)", "1.0",
        f"{KINDS}::test_rotary_frequencies_are_turns_from_edge_to_edge_in_a_geometric_row",
    ),
    Row(
        "the lowest rotary frequency is not met", "mpp/model/architecture.py", "(highest / lowest) ** (count / (count - 1))", "(highest / lowest)",
        f"{KINDS}::test_rotary_frequencies_are_turns_from_edge_to_edge_in_a_geometric_row",
    ),
    Row(
        "learned positions are taken for rotary ones", "mpp/model/architecture.py", "    if known.rotary:\n", "    if False:\n",
        f"{KINDS}::test_positions_that_an_architecture_cannot_take_are_refused_in_a_line",
    ),
    Row(
        "an architecture's registers are forgotten beside class tokens", "mpp/model/encoder.py", "(known.registers if config.registers is None else config.registers)", "(config.registers or 0)",
        f"{KINDS}::test_registers_are_the_architectures_unless_said_and_class_tokens_come_before_them",
    ),
    Row(
        "weights that timm's first attention lends are not named", "mpp/model/encoder.py", "return own + rotary + fused", "return own + rotary",
        f"{KINDS}::test_parameters_that_are_used_outside_their_own_modules_pass_are_named",
    ),
    Row(
        "what is from before class tokens were counted cannot be read", "mpp/config/sections.py", 'if not isinstance(tree, dict) or "class_token" not in tree:', "if True:",
        f"{FOLDER}::test_folders_and_commits_from_when_there_was_one_class_token_or_none_are_read_as_they_were",
    ),
    Plant(
        "a run is compared with its config as it was written", "mpp.train.run_folder:_as_of_today",
        "lambda config, then: {section: then.get(section) for section in config.that_changes_results()}",
        f"{FOLDER}::test_folders_and_commits_from_when_there_was_one_class_token_or_none_are_read_as_they_were",
    ),
    Row(
        "an encoder without a class token once gets one", "mpp/config/sections.py", '"class_tokens": int(has)', '"class_tokens": 1',
        f"{FOLDER}::test_folders_and_commits_from_when_there_was_one_class_token_or_none_are_read_as_they_were",
    ),
    Row(
        "the digest takes registers for class tokens", "mpp/interop/loaded_encoder.py", "json.dumps(layers, sort_keys=True) + several +", "json.dumps(layers, sort_keys=True) +",
        f"{FOLDER}::test_class_tokens_are_told_from_registers_of_the_same_weights",
    ),
    Row(
        "an export forgets how many class tokens there are", "mpp/mains/export.py", ', "class_tokens": class_tokens_of(net)}', "}",
        "tests/interop/test_certificate.py::test_several_class_tokens_and_rotary_positions_go_out_with_what_pools_them",
    ),
    Row(
        "the class tokens of a fine-tuned model are not read", "mpp/interop/foreign_encoder.py", 'note_class_tokens(net, ours.get("class_tokens"))', "note_class_tokens(net, None)",
        f"{FOLDER}::test_a_fine_tuned_encoder_keeps_its_class_tokens",
    ),
    Row(
        "several class tokens are called registers of a ViTModel", "mpp/interop/to_transformers.py", "if (count := class_tokens_of(net)) > 1:", "if (count := 1) > 1:",
        "tests/interop/test_certificate.py::test_what_a_target_cannot_express_is_refused_before_anything_is_written",
    ),
]  # fmt: skip
