"""Bugs that the first losses, and the program that measures recipes against their papers, must show."""

from tests.mutations import Plant, Row

HEADS = "tests/recipe/test_heads.py::test_"
ROWS: list[Plant | Row] = [
    Row(
        "a linear head begins as Xavier has it", "mpp/recipe/decoders/linear.py", "nn.init.normal_(self.head.weight, std=head_std)", "pass",
        HEADS + "a_target_of_classes_begins_at_the_logarithm_of_their_number",
    ),
    Row(
        "a linear head begins at the variance in place of the deviation", "mpp/recipe/decoders/linear.py", "std=head_std)", "std=head_std**2)",
        HEADS + "weights_begin_at_the_deviation_asked_for_and_biases_at_zero",
    ),
]  # fmt: skip
