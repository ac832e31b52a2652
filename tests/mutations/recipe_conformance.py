"""Bugs that the first losses, and the program that measures recipes against their papers, must show.

Most are planted into what is measured: a measure that reads the config instead would not see them.
"""

from tests.mutations import Plant, Row

HEADS, HERE = "tests/recipe/test_heads.py::test_", "tests/test_conformance.py::test_"
SMALL, TRAINED = HERE + "a_small_recipe_is_as_its_paper_says", HERE + "what_training_asks_at_each_step_is_as_the_paper_says"
ROWS: list[Plant | Row] = [
    Row(
        "a linear head begins as Xavier has it", "mpp/recipe/decoders/linear.py", "nn.init.normal_(self.head.weight, std=head_std)", "pass",
        HEADS + "a_target_of_classes_begins_at_the_logarithm_of_their_number",
    ),
    Row(
        "a linear head begins at the variance in place of the deviation", "mpp/recipe/decoders/linear.py", "std=head_std)", "std=head_std**2)",
        HEADS + "weights_begin_at_the_deviation_asked_for_and_biases_at_zero",
    ),
    # What the program measures.
    Plant(
        "one patch too few is hidden", "mpp.recipe.corruptions.base:CorruptionSection.hidden",
        "lambda self, patches, ratio: real(self, patches, ratio) - 1", SMALL + "[cifar_mpp]",
    ),
    Plant(
        "shares of kinds are rounded down", "mpp.recipe.corruptions.replace:ReplaceCorruption.parts",
        "lambda self, hidden: (int(hidden * self.mask), int(hidden * self.swap), hidden - int(hidden * self.mask) - int(hidden * self.swap))", SMALL + "[cifar_mpp]",
    ),
    Plant(
        "a swapped patch shows the one behind it", "mpp.recipe.masking:below_of", "lambda bits, bound: real(bits, bound) * 0", SMALL + "[cifar_mpp]",
    ),
    Plant(
        "the loss is over the visible patches", "mpp.recipe.masking:Masking.draw_all", "lambda self, draws: (lambda m: m._replace(predicted=m.visible))(real(self, draws))",
        SMALL + "[cifar_mpp]",
    ),
    Plant(
        "[mask] is not shown", "mpp.recipe.corruptions.replace:ReplaceCorruption.embeddings", "lambda self, embeddings, masks, mask_token: embeddings",
        SMALL + "[cifar_mpp]",
    ),
    Plant(
        "dropped patches are those that are to be seen", "mpp.recipe.corruptions.drop:DropCorruption.places", "lambda self, masks: masks.predicted", SMALL + "[cifar_mae]",
    ),
    Plant(
        "a linear decoder reads the patch behind the predicted one", "mpp.recipe.decoders.linear:Linear.forward",
        "lambda self, tokens, places, predicted: real(self, tokens, places, (predicted + 1) % (tokens.shape[1] - self.prefix))", SMALL + "[cifar_mpp]",
    ),
    Plant(
        "goals are those of the patch behind the predicted one", "mpp.recipe.targets.base:PatchTarget.__call__",
        "lambda self, images, masks, teacher=None: real(self, images, masks._replace(predicted=(masks.predicted + 1) % masks.kind.shape[1]))", SMALL + "[cifar_mpp]",
    ),
    Plant(
        "colours are binned after they are doubled", "mpp.recipe.targets.colors:color_class", "lambda colors, bits: real(colors * 2, bits)", SMALL + "[cifar_grid]",
    ),
    Row(
        "patches are normalised with the biased variance", "mpp/recipe/targets/pixels.py", "unbiased=True", "unbiased=False", SMALL + "[cifar_mae]",
    ),
    Row(
        "warm-up ends a hundredth early", "mpp/train/schedule.py", "return start + (peak - start) * done / warmup", "return min(peak, start + (peak - start) * done / warmup * 1.01)",
        TRAINED + "[mpp_b16]",
    ),
    Plant(
        "learning rates are scaled by the batch where they are not to be", "mpp.config.sections:OptimConfig.peak_rate", "lambda self, batch: self.base_lr * batch / 256",
        TRAINED + "[mpp_b16]",
    ),
    Plant("tokens and positions decay", "mpp.train.optim:spares", "lambda name, parameter: parameter.ndim < 2", TRAINED + "[mpp_b16]"),
    Plant("weight decay stays where it began", "mpp.train.schedule:weight_decay", "lambda samples, optim, began=0: optim.weight_decay", TRAINED + "[ijepa_b16]"),
    Plant("the teacher's average is a step ahead", "mpp.train.average:WeightAverage.update", "lambda self, engine, step: real(self, engine, step + 10000)", TRAINED + "[ijepa_b16]"),
    Plant("views are flipped whatever the config says", "mpp.data.augment:Augment.draw", "lambda self, draws: __import__('dataclasses').replace(real(self, draws), pose=1)", TRAINED + "[ijepa_b16]"),
    Plant("a claim of flips does not see turns", "mpp.claims.training:flipped", "lambda subject: [real(subject)[0], 0.0]", "tests/test_conformance.py::test_a_changed_schedule_differs_where_it_was_changed"),
    Plant(
        "grey keeps a part of the colour", "mpp.recipe.corruptions.grey:GreyCorruption.pixels", "lambda self, images, *rest: (images + real(self, images, *rest)) / 2",
        SMALL + "[cifar_ab]",
    ),
    Plant("one turn in four is left out", "mpp.recipe.masks.turn:below_of", "lambda bits, bound: real(bits, bound - 1)", SMALL + "[cifar_rotation]"),
    Plant("a pooled head reads one patch", "mpp.recipe.decoders.pooled:Pooled.forward", "lambda self, tokens, places, predicted: real(self, tokens[:, : self.prefix + 1], places, predicted)", SMALL + "[cifar_rotation]"),
    Plant("the other way round is told", "mpp.recipe.targets.rotation:Rotation.__call__", "lambda self, *given: (4 - real(self, *given)) % 4", SMALL + "[cifar_rotation]"),
    # And how it compares and ends.
    Row("whatever differs, the program ends with 0", "mpp/mains/conformance.py", "return 0 if all(report.conforms for report in reports) else 1", "return 0", HERE + "the_program_says_what_differs_and_ends_with_1"),
    Row(
        "a declared deviation may be any", "mpp/claims/claim.py", "elif claim.ours is not None and agrees(claim, claim.ours, found):", "elif claim.ours is not None:",
        HERE + "a_deviation_is_declared_with_its_value_and_its_reason_or_stands_in_the_head_of_the_yaml",
    ),
    Row(
        "what is left out need not be said", "mpp/claims/claim.py", "elif claim.left_out in subject.header:", "elif True:",
        HERE + "a_deviation_is_declared_with_its_value_and_its_reason_or_stands_in_the_head_of_the_yaml",
    ),
    Row("the rest of several numbers is not compared", "mpp/claims/claim.py", "len(says) == len(found) and all(", "len(says) == len(found) and any(", HERE + "a_claim_agrees_with_what_is_as_near_as_it_says"),
]  # fmt: skip
