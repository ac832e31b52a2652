"""The corruption and the loss, end to end on the model: what the encoder sees, and what the loss is about."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpp.base.rng import MASK, Draws
from mpp.config.pretrain import PretrainConfig
from mpp.model.normalise import normalise
from mpp.model.tokens import sincos_positions
from mpp.recipe.corruptions.replace import corrupt
from mpp.recipe.decoders.base import Given
from mpp.recipe.decoders.transformer import Transformer, TransformerDecoder
from mpp.recipe.masking import Masking
from mpp.recipe.model import build_model
from mpp.recipe.places import KEPT, MASKED, SWAPPED, VISIBLE, Masks
from mpp.train.step import images_on_device
from tests.masks import draw

N, P = 16, 8
PAPER = {}
ONLY_MASKED = {"corruption": {"name": "replace", "mask": 1.0, "swap": 0.0, "keep": 0.0}}
DROP = {"corruption": {"name": "drop"}, "decoder": {"name": "transformer", "depth": 1, "width": 32, "heads": 2}}


def recipe(**changes) -> PretrainConfig:
    model = {"arch": "vit_tiny_patch16_224", "image_size": 32, "patch_size": P, "width": 48, "depth": 2, "heads": 3}
    decoder = {"name": "linear", "head_std": 0.02}  # predictions that are all zero would show nothing
    return PretrainConfig.model_validate({"model": model, "mask": {"name": "random", "ratio": 0.625}, "decoder": decoder} | changes)


def model_of(config: PretrainConfig):
    return build_model(config, fused_attention=False).eval()


def masks(config: PretrainConfig, batch: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    masking = Masking(config.model.grid, config.mask, config.corruption)
    drawn = [draw(masking, Draws(seed, MASK, 0, sample)) for sample in range(batch)]
    names = ("kind", "source", "visible", "predicted")
    return {name: torch.from_numpy(np.stack([getattr(mask, name) for mask in drawn])) for name in names}


def pictures(batch: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 3, 32, 32), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def with_other_pixels(images: torch.Tensor, image: int, patch: int) -> torch.Tensor:
    altered = images.clone()
    row, column = divmod(patch, 32 // P)
    altered[image, :, row * P : row * P + P, column * P : column * P + P] = (
        255 - altered[image, :, row * P : row * P + P, column * P : column * P + P]
    )
    return altered


def step(model, images: torch.Tensor, mask: dict[str, torch.Tensor], pose: list[int] | None = None):
    batch = {"image": images, "pose": torch.tensor(pose or [0] * len(images))}
    return model(images_on_device(batch, torch.device("cpu")), **mask)


@torch.no_grad()
def test_the_encoder_sees_the_papers_corruption_of_embeddings():
    config = recipe()
    model, mask, seen = model_of(config), masks(config), []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(pictures().float(), **mask)
    clean = model.encoder.embed(normalise(pictures().float(), config.data.mean, config.data.std))
    for b in range(2):
        for n in range(N):
            kind = mask["kind"][b, n]
            expected = model.mask_token if kind == MASKED else clean[b, mask["source"][b, n]]
            assert torch.equal(seen[0][b, n], expected)
            assert (mask["source"][b, n] == n) == (kind != SWAPPED)
    assert torch.bincount(mask["kind"].flatten(), minlength=4).tolist() == [12, 16, 2, 2]  # of each 10 hidden: 8, 1 and 1
    assert model.mask_token.std() > 0.01
    assert (seen[0] == model.mask_token).all(-1).sum() == 16


@torch.no_grad()
@pytest.mark.parametrize("changes", [ONLY_MASKED, DROP], ids=["masked", "dropped"])
def test_hidden_pixels_cannot_influence_the_predictions_and_visible_ones_do(changes):
    config = recipe(**changes)
    model, mask = model_of(config), masks(config)
    images = pictures()
    predictions, *_ = step(model, images, mask)
    altered = images
    for b in range(2):
        for patch in mask["predicted"][b].tolist():
            altered = with_other_pixels(altered, b, patch)
    assert torch.equal(step(model, altered, mask)[0], predictions)
    for b in range(2):
        seen = step(model, with_other_pixels(images, b, int(mask["visible"][b, 2])), mask)[0]
        assert not torch.equal(seen[b], predictions[b]) and torch.equal(seen[1 - b], predictions[1 - b])


@torch.no_grad()
def test_masked_patches_know_their_place():
    config = recipe(**ONLY_MASKED)
    model, mask = model_of(config), masks(config)
    predictions, *_ = step(model, pictures(), mask)
    first = predictions[0]
    assert all((first[i] - first[j]).abs().max() > 1e-4 for i in range(len(first)) for j in range(i))


@torch.no_grad()
@pytest.mark.parametrize("changes", [PAPER, DROP])
@pytest.mark.parametrize("target", [{"name": "pixels"}, {"name": "color_grid"}])
def test_the_loss_is_about_all_predicted_patches_and_no_other(changes, target):
    config = recipe(target=target, **changes)
    model, mask = model_of(config), masks(config, batch=1)
    model.decoder.head.weight.zero_()  # a constant prediction: only the targets are left in the loss
    images = pictures(1)
    _, loss, *_ = step(model, images, mask)
    assert loss.shape == (1, 10)
    model.decoder.head.bias.normal_(generator=torch.Generator().manual_seed(0))
    _, loss, *_ = step(model, images, mask)
    for patch in range(N):
        _, altered, *_ = step(model, with_other_pixels(images, 0, patch), mask)
        changed = (altered != loss)[0].tolist()
        assert changed == [patch == place for place in mask["predicted"][0].tolist()]


@torch.no_grad()
def test_kept_and_swapped_patches_are_in_the_loss_but_not_in_the_skill():
    config = recipe()
    mask = masks(config)
    _, loss, masked, _ = step(model_of(config), pictures(), mask)
    kinds = mask["kind"].gather(1, mask["predicted"])
    assert loss.shape == (2, 10)
    assert sorted(kinds[0].tolist()) == [MASKED] * 8 + [SWAPPED, KEPT]
    assert torch.equal(masked, (kinds == MASKED).float())
    assert VISIBLE not in kinds


@torch.no_grad()
@pytest.mark.parametrize("target", [{"name": "pixels", "normalise": True}, {"name": "mean_color"}, {"name": "hog"}])
def test_the_target_is_the_clean_flipped_unnormalised_image(target):
    config = recipe(target=target)
    mask = masks(config)
    model = model_of(config)
    prediction, loss, *_ = step(model, pictures(), mask, pose=[1, 0])
    images = pictures().float()
    images[0] = images[0].flip(-1)
    ours = model.target
    assert torch.equal(loss, ours.loss(prediction, ours(images, Masks(**mask))))
    embeddings = corrupt(model.encoder.embed((images / 255 - 0.5) / 0.5), mask["kind"], mask["source"], model.mask_token)
    torch.testing.assert_close(prediction, model.decoder(model.encoder(embeddings), None, mask["predicted"]), atol=1e-6, rtol=1e-5)


def test_images_are_flipped_left_to_right_where_the_batch_says_so():
    images = pictures(3)
    found = images_on_device({"image": images, "pose": torch.tensor([0, 1, 0])}, torch.device("cpu"))
    assert found.dtype == torch.float32
    assert torch.equal(found[[0, 2]], images[[0, 2]].float())
    for column in range(32):
        assert torch.equal(found[1, :, :, column], images[1, :, :, 31 - column].float())


def test_normalisation_is_by_channel_in_0_to_1():
    images = torch.full((1, 3, 2, 2), 51.0)
    found = normalise(images, (0.0, 0.1, 0.2), (0.5, 0.1, 0.2))
    torch.testing.assert_close(found[0, :, 0, 0], torch.tensor([0.4, 1.0, 0.0]), atol=1e-6, rtol=1e-6)


@torch.no_grad()
@settings(max_examples=10)
@given(st.permutations(range(10)), st.integers(0, 100))
def test_each_prediction_is_its_own_patchs(order, seed):
    for config in (recipe(), recipe(**DROP)):
        model, mask = model_of(config), masks(config, seed=seed)
        images = pictures().float()
        other = mask | {"predicted": mask["predicted"][:, list(order)]}
        for reordered, whole in zip(model(images, **other)[:3], model(images, **mask)[:3], strict=True):
            assert torch.equal(reordered, whole[:, list(order)])


@torch.no_grad()
def test_a_linear_decoder_maps_each_predicted_patchs_own_token():
    config = recipe()
    model, mask = model_of(config), masks(config)
    tokens = torch.randn(2, 1 + N, 48)
    found = model.decoder(tokens, None, mask["predicted"])
    for b in range(2):
        for m, place in enumerate(mask["predicted"][b].tolist()):
            torch.testing.assert_close(found[b, m], model.decoder.head(tokens[b, 1 + place]))


def test_the_same_seed_builds_the_same_model_and_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = model_of(recipe(**DROP)).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    again, other = model_of(recipe(**DROP)).state_dict(), model_of(recipe(seed=1, **DROP)).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["decoder.mask_token"], other["decoder.mask_token"])
    assert not torch.equal(first["encoder.vit.blocks.0.attn.qkv.weight"], other["encoder.vit.blocks.0.attn.qkv.weight"])


def test_only_a_replacing_recipe_has_a_mask_token_at_the_encoder():
    assert "mask_token" in dict(model_of(recipe()).named_parameters())
    assert "mask_token" not in dict(model_of(recipe(**DROP)).named_parameters())


@pytest.mark.parametrize("changes", [PAPER, DROP])
def test_every_trainable_parameter_gets_a_gradient(changes):
    config = recipe(**changes)
    model, mask = model_of(config), masks(config)
    _, loss, *_ = step(model, pictures(), mask)
    loss.mean().backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())] == []


@torch.no_grad()
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_each_patch_has_its_own_place_in_the_decoder_and_tokens_before_the_patches_have_none(prefix):
    """prefix: no class token, one, and one with four registers."""
    decoder = Transformer(Given(12, 7, prefix, (2, 3), 1, fused_attention=False), TransformerDecoder(depth=1, width=8, heads=2))
    decoder.blocks = torch.nn.Identity()
    nn_init = torch.Generator().manual_seed(0)
    tokens, visible = torch.randn(2, prefix + 2, 12, generator=nn_init), torch.tensor([[4, 1], [0, 5]])
    found = decoder(tokens, visible, torch.arange(6).expand(2, -1))
    places = sincos_positions(8, (2, 3))
    assert torch.equal(decoder.pos_embed, torch.cat([torch.zeros(prefix, 8), places])[None])
    for b in range(2):
        for n in range(6):
            shown = [i for i, place in enumerate(visible[b].tolist()) if place == n]
            token = decoder.embed(tokens[b, prefix + shown[0]]) if shown else decoder.mask_token[0, 0]
            torch.testing.assert_close(found[b, n], decoder.head(decoder.norm(token + places[n])))


@torch.no_grad()
@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize(("arch", "registers"), [("vit_tiny_patch16_224", 0), ("vit_betwixt_patch16_reg4_gap_256", 4)])
def test_visible_patches_keep_their_own_embedding_and_place_behind_class_token_and_registers(class_token, arch, registers):
    model = {"arch": arch, "image_size": 32, "patch_size": P, "width": 48, "depth": 1, "heads": 3, "class_tokens": int(class_token)}
    encoder = model_of(recipe(model=model, **DROP)).encoder
    encoder.vit.blocks, encoder.vit.norm, before = torch.nn.Sequential(), torch.nn.Identity(), class_token + registers
    assert encoder.prefix == before
    embeddings, visible = torch.randn(2, N, 48, generator=torch.Generator().manual_seed(0)), torch.tensor([[9, 2, 4], [0, 15, 7]])
    tokens, places = encoder(embeddings, visible), encoder.vit.pos_embed[0, -N:]
    assert tokens.shape == (2, before + 3, 48)
    for b, row in enumerate(visible.tolist()):
        for k, n in enumerate(row):
            torch.testing.assert_close(tokens[b, before + k], embeddings[b, n] + places[n])
    assert torch.equal(tokens[0, :before], tokens[1, :before])


@pytest.mark.parametrize("changes", [PAPER, DROP | {"target": {"name": "pixels", "normalise": True}}], ids=["colours", "pixels"])
def test_compiled_it_is_one_graph_with_the_same_loss_and_gradients(changes):
    """As torch.compile sees it up to the code it would write, which takes minutes."""
    config = recipe(**changes)
    model, mask, images = model_of(config), masks(config), pictures().float()
    _, loss, *_ = model(images, **mask)
    loss.mean().backward()
    wanted = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    _, compiled, *_ = torch.compile(model, backend="aot_eager", fullgraph=True)(images, **mask)
    compiled.mean().backward()
    torch.testing.assert_close(compiled, loss)
    for name, parameter in model.named_parameters():
        if name in wanted:
            torch.testing.assert_close(parameter.grad, wanted[name], atol=1e-6, rtol=1e-4)
