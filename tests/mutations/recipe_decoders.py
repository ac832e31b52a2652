"""Bugs that the tests of decoders must find."""

from tests.mutations import Plant, Row

SELF, CROSS = "tests/recipe/test_decoders.py::test_", "tests/recipe/test_decoders_cross_attention.py::test_"
TRANSFORMER, PREDICTOR = "mpp/recipe/decoders/transformer.py", "mpp/recipe/decoders/cross_attention.py"
BY_HAND = CROSS + "predictions_are_those_of_each_query_alone_by_hand"
BLOCK_MASK = SELF + "mask_tokens_at_predicted_places_are_one_attention_with_a_block_mask_over_context_and_own_group"
ROWS: list[Plant | Row] = [
    # The transformer.
    Row(
        "mask tokens of all target blocks see each other", TRANSFORMER, 'given.groups if config.tokens == "predicted" else None',
        '1 if config.tokens == "predicted" else None',
        SELF + "a_group_sees_nothing_of_another_and_its_own_order_does_not_matter",
    ),
    Row(
        "a decoder is not told of the mask's target blocks", "mpp/recipe/model.py", "config.mask.groups, fused_attention", "1, fused_attention",
        SELF + "target_blocks_of_a_mask_are_kept_apart_in_the_whole_model",
    ),
    Row(
        "contexts are repeated in another order than the groups of a sample", TRANSFORMER, "seen.repeat_interleave(groups, dim=0)", "seen.repeat(groups, 1, 1)",
        BLOCK_MASK,
    ),
    Row(
        "the context has the positions of the first places", TRANSFORMER, "where[self.prefix + places]]",
        "at[:, self.prefix : self.prefix + places.shape[1]]]", BLOCK_MASK,
    ),
    Row(
        "mask tokens do not know their place", TRANSFORMER, "self.mask_token + where[self.prefix + predicted]",
        "self.mask_token + where[self.prefix + 0 * predicted]", BLOCK_MASK,
    ),
    Row(
        "the context's own tokens are the answers", TRANSFORMER, "together[:, seen.shape[1] :]", "together[:, : asked // groups]", BLOCK_MASK,
    ),
    Plant(
        "class tokens share one learned position", "mpp.recipe.decoders.transformer:add_positions",
        "lambda decoder, *words: (real(decoder, *words), decoder.pos_embed.data[:, : decoder.prefix].zero_())",
        SELF + "learned_positions_are_of_class_tokens_too_and_learn_without_decay",
    ),
    Plant(
        "learned positions do not learn", "mpp.recipe.decoders.transformer:add_positions",
        "lambda decoder, *words: (real(decoder, *words), decoder.pos_embed.requires_grad_(False))",
        SELF + "gradients_reach_every_parameter_of_a_transformer",
    ),
    Plant(
        "learned positions decay", "mpp.train.optim:TOKENS", "tuple(name for name in real if name != 'pos_embed')",
        SELF + "learned_positions_are_of_class_tokens_too_and_learn_without_decay",
    ),
    Row(
        "rotary positions are given heads that they cannot turn", "mpp/recipe/decoders/base.py", '"rotary": (4 * heads,', '"rotary": (heads,',
        SELF + "a_width_that_heads_or_positions_cannot_share_is_refused_with_one_that_fits",
    ),
    # The cross-attention predictor.
    Row(
        "queries see each other", PREDICTOR, "q = self.q(asked)", "q = self.q(asked + 0.01 * asked.mean(1, keepdim=True))",
        CROSS + "a_prediction_is_its_own_places_and_no_matter_of_who_else_is_asked_or_of_the_order_of_what_is_seen",
    ),
    Row(
        "class tokens and registers are not read", PREDICTOR, "asked = block(asked, memory, turn)",
        "asked = block(asked, memory[:, memory.shape[1] - places.shape[1] :], turn)", BY_HAND,
    ),
    Plant("keys and values are exchanged", "mpp.recipe.decoders.cross_attention:F.scaled_dot_product_attention", "lambda q, k, v: real(q, v, k)", BY_HAND),
    Row("plain attention is not scaled", PREDICTOR, "q * q.shape[-1] ** -0.5 @", "q @", BY_HAND),
    Row("every block reads the first block's sum", PREDICTOR, "return [norm(each) for norm, each in zip(self.norms, sums, strict=True)]",
        "return [norm(sums[0]) for norm in self.norms]", BY_HAND),
    Row("the blocks' sums share one norm", PREDICTOR, "return [norm(each) for norm, each", "return [self.norms[0](each) for norm, each", BY_HAND),
    Row("what enters the encoder's first block is not read", PREDICTOR, "torch.stack(maps, dim=-1)", "torch.stack([maps[1], *maps[1:]], dim=-1)", BY_HAND),
    Row(
        "the sums begin as Xavier's", PREDICTOR, "            self.mixture.initialise()", "            pass",
        CROSS + "weights_of_the_mixture_begin_as_the_papers_and_stochastic_depth_is_the_same_in_every_block",
    ),
    Plant(
        "a decoder that reads blocks is given the last tokens", "mpp.model.encoder:Encoder.blocks",
        "lambda self, embeddings, visible=None, last=None: [self.norm(each) for each in real(self, embeddings, visible, last)] if last is None "
        "else real(self, embeddings, visible, last)",
        CROSS + "a_decoder_that_reads_blocks_is_given_what_enters_the_first_and_what_leaves_each",
    ),
    Row(
        "stochastic depth is never on", PREDICTOR, "partial(DropPath, config.drop_path)", "partial(DropPath, 0.0)",
        CROSS + "weights_of_the_mixture_begin_as_the_papers_and_stochastic_depth_is_the_same_in_every_block",
    ),
    Row(
        "the first block's answers are the last one's", PREDICTOR, "self._through(self.blocks[:1], tokens", "self._through(self.blocks, tokens",
        CROSS + "the_first_block_answers_at_any_place_seen_or_not",
    ),
    # Rotary positions.
    Row("keys are not turned", PREDICTOR, "q, k = rotate(q, turn[0]), rotate(k, turn[1])", "q = rotate(q, turn[0])", BY_HAND),
    Row(
        "keys lie at the first places", PREDICTOR, "self.patches[places]", "self.patches[: places.shape[1]].expand(len(places), -1, -1)", BY_HAND,
    ),
    Row("registers lie along the edge of the whole image", PREDICTOR, "within(seen, self.edge)", "self.edge.expand(len(seen), -1, -1)", BY_HAND),
    Plant(
        "a pair's numbers are turned by angles of two axes", "mpp.model.rotary:rotate",
        "lambda heads, turn: torch.cat([heads.chunk(2, -1)[0] * turn[0] - heads.chunk(2, -1)[1] * turn[1], "
        "heads.chunk(2, -1)[1] * turn[0].flip(-1) + heads.chunk(2, -1)[0] * turn[1].flip(-1)], -1)",
        CROSS + "products_of_turned_queries_and_keys_depend_on_how_far_apart_they_are_alone",
    ),
    Row(
        "frequencies stop short of the lowest", "mpp/model/rotary.py", "-torch.linspace(0, 1, width // 4, device=coordinates.device)",
        "-(torch.arange(width // 4, device=coordinates.device) / (width // 4))", BY_HAND,
    ),
    Row(
        "coordinates are the middles of patches", "mpp/model/rotary.py", "torch.linspace(0, 1, side) for side", "(torch.arange(side) + 0.5) / side for side",
        CROSS + "coordinates_run_from_0_to_1_and_registers_lie_along_the_edge_of_the_box_that_is_seen",
    ),
    Row(
        "turning is rounded by autocast", "mpp/model/rotary.py", "heads.float().chunk(2, dim=-1)", "heads.chunk(2, dim=-1)\n    cosine, sine = cosine.to(heads.dtype), sine.to(heads.dtype)",
        CROSS + "turning_is_float32_under_autocast_and_rounded_once",
    ),
]  # fmt: skip
