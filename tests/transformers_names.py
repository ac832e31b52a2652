"""Our weights under the names of transformers, of its versions 5 and 4."""

from collections.abc import Mapping

from torch import Tensor


def of_block(weights: Mapping[str, Tensor], block: str, layer: str, kind: str) -> Tensor:
    """Of timm's `block`, such as "encoder.vit.blocks.0", what transformers calls `layer`; kind: weight or bias."""
    for i, projection in enumerate([("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")]):
        if layer.endswith(projection):
            return weights[f"{block}.attn.qkv.{kind}"].chunk(3)[i]
    for endings, own in [
        (("o_proj", "attention.output.dense"), "attn.proj"),
        (("layernorm_before",), "norm1"),
        (("layernorm_after",), "norm2"),
        (("fc1", "intermediate.dense"), "mlp.fc1"),
        (("fc2", "output.dense"), "mlp.fc2"),
    ]:
        if layer.endswith(endings):
            return weights[f"{block}.{own}.{kind}"]
    raise KeyError(layer)
