"""Steering against edits made by hand in double precision, with plain hooks of PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lm_cases import ARCHITECTURES, VOCAB, WIDTH, llama, n_hooks, one_line, tiny
from saeforest import steer
from saeforest.errors import InputError
from saeforest.interventions import Edit, Where, ablate, add, clamp, scale, set_to
from saeforest.interventions.side_by_side import side_by_side
from saeforest.interventions.steer import Part
from saeforest.lm import LanguageModel
from saeforest.saes import SAE, HSAEConfig, TopKConfig, TreeConfig, build

BLOCK = 1
SITE = f"blocks.{BLOCK}.hook_resid_post"
CONFIGS = [
    TopKConfig(layer_sizes=(40,), k_per_layer=(6,), normalize_activations="none"),
    TreeConfig(layer_sizes=(6, 12, 22), k_per_layer=(3, 3, 3)),
]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    lm = tiny(llama)
    lm.model.double()
    return lm


def make_sae(config: Any, site: str = SITE, seed: int = 1, **options: Any) -> SAE:
    sae = build(config, WIDTH, seed=seed, **options).double().requires_grad_(False)
    torch.nn.init.normal_(sae.b_dec, std=0.1)
    sae.metadata = {"hook_name": site}
    return sae


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda config: config.architecture)
def sae(request: pytest.FixtureRequest) -> SAE:
    return make_sae(request.param)


@pytest.fixture(scope="module")
def tree() -> SAE:
    return make_sae(CONFIGS[1])


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(3, VOCAB, (2, 7), generator=torch.Generator().manual_seed(1))


def logits_by_hand(
    lm: LanguageModel, ids: Tensor, change: Callable[[Tensor, Tensor, Tensor], Tensor], sae: SAE, error: bool
) -> Tensor:
    """Logits with dense codes changed by a function of row, position and code, through a plain hook."""
    block = lm.model.get_submodule(f"model.layers.{BLOCK}")

    def replace(_module: Any, _args: Any, output: Any) -> Any:
        x = output if isinstance(output, Tensor) else output[0]
        new = x.clone()
        for row in range(x.shape[0]):
            for place in range(1, x.shape[1]):
                u = x[row, place]
                code, stats = sae.encode_with_stats(u)
                dense = code.dense(sae.d_sae)
                after = change(torch.tensor(row), torch.tensor(place), dense.clone())
                part = sae.W_dec if sae.cumulative else sae.W_dec * sae.in_reconstruction[:, None]
                old_hat = (dense @ part + sae.b_dec) * stats.std + stats.mean
                new_hat = (after @ part + sae.b_dec) * stats.std + stats.mean
                new[row, place] = u + new_hat - old_hat if error else new_hat
        return new if isinstance(output, Tensor) else (new, *output[1:])

    with block.register_forward_hook(replace):
        return lm.model(input_ids=ids, use_cache=False).logits


def frequent(lm: LanguageModel, sae: SAE, ids: Tensor) -> int:
    return int(sae.encode(lm.activations(ids, SITE)).dense(sae.d_sae).sum((0, 1)).argmax())


@pytest.mark.parametrize("error", [True, False])
@pytest.mark.parametrize("kind", ["scale", "set", "add", "clamp"])
def test_logits_against_a_hook_by_hand(
    lm: LanguageModel, sae: SAE, ids: Tensor, kind: str, error: bool
) -> None:
    f = frequent(lm, sae, ids)
    edits: dict[str, tuple[Edit, Callable[[Tensor], Tensor]]] = {
        "scale": (scale(f, 3.0), lambda v: 3 * v),
        "set": (set_to(f, 2.5), lambda v: torch.full_like(v, 2.5)),
        "add": (add(f, -0.5), lambda v: v - 0.5),
        "clamp": (clamp(f, 0.2, 0.6), lambda v: v.clamp(0.2, 0.6)),
    }
    edit, new_value = edits[kind]

    def change(_row: Tensor, _place: Tensor, dense: Tensor) -> Tensor:
        dense[f] = new_value(dense[f])
        return dense

    with steer(lm, sae, edit, error=error) as done:
        found = lm.logits(ids)
    torch.testing.assert_close(found, logits_by_hand(lm, ids, change, sae, error), rtol=0, atol=1e-9)
    assert not torch.allclose(found, lm.logits(ids))
    assert done.read == 12
    assert 0 < done.changed <= 12
    assert n_hooks(lm) == 0


def test_what_changes_nothing_changes_no_bit(lm: LanguageModel, sae: SAE, ids: Tensor) -> None:
    code = sae.encode(lm.activations(ids, SITE)[:, 1:])
    silent = next(f for f in range(sae.d_sae) if not code.dense(sae.d_sae)[..., f].any())
    clean, text = lm.logits(ids), lm.generate(ids, 5)
    for edit in (scale(silent, 7.0), ablate(silent)):
        with steer(lm, sae, edit) as done:
            assert torch.equal(lm.logits(ids), clean)
        assert (done.read, done.changed) == (12, 0)
    for edit in (scale(range(sae.d_sae), 1.0), add(range(sae.d_sae), 0.0)):
        with steer(lm, sae, edit) as done:
            assert torch.equal(lm.logits(ids), clean)
            assert torch.equal(lm.generate(ids, 5), text)
        assert done.read > 12
        assert done.changed == 0
    # In a model of fewer bits than the SAE, too.
    small, single = tiny(llama), make_sae(CONFIGS[1]).float()
    small.model.bfloat16()
    with steer(small, single, scale(range(single.d_sae), 1.0)):
        steered = small.logits(ids)
    assert torch.equal(steered, small.logits(ids))


def test_positions(lm: LanguageModel, tree: SAE, ids: Tensor) -> None:
    """The change at the site is at the positions that were asked for, and nowhere else."""
    ids[1, 3] = lm.eos_id
    f = frequent(lm, tree, ids)

    def moved(at: Any) -> list[list[int]]:
        seen: list[Tensor] = []
        with steer(lm, tree, set_to(f, 50.0), at=at), lm.hooked({SITE: lambda x: seen.append(x)}):
            lm.logits(ids)
        changed = (seen[0] != lm.activations(ids, SITE)).any(-1)
        return [row.nonzero().flatten().tolist() for row in changed]

    assert moved("all") == moved("prompt") == [[1, 2, 3, 4, 5, 6], [1, 2, 4, 5, 6]]
    assert moved("completion") == [[], []]
    assert moved(slice(2, 5)) == [[2, 3, 4], [2, 4]]
    assert moved(slice(1, None, 2)) == [[1, 3, 5], [1, 5]]
    assert moved([0, 4, 99]) == [[4], [4]]
    assert moved(Where([0, 3], exclude_first=False, exclude_special=False)) == [[0, 3], [0, 3]]
    norms = lm.activations(ids, SITE).norm(dim=-1)
    limit = float(norms.median())
    expected = [(row <= limit).nonzero().flatten().tolist() for row in norms]
    assert moved(Where(exclude_first=False, exclude_special=False, max_norm=limit)) == expected


@pytest.mark.parametrize("make", ARCHITECTURES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("use_cache", [True, False])
def test_prompt_and_completion_while_text_is_generated(make: Any, use_cache: bool) -> None:
    """By the position at which a hook saw each token, whatever the cache holds; so also two generations in a row."""
    lm = tiny(make)
    sae = make_sae(CONFIGS[0]).float()
    direction = sae.W_dec[3].detach()
    compared = 0
    for start, n_new in ((3, 4), (1, 3)):
        ids = torch.randint(3, VOCAB, (2, start), generator=torch.Generator().manual_seed(2))
        parts: list[tuple[Part, range]] = [
            ("prompt", range(1, start)),
            ("completion", range(max(start, 1), 99)),
            ("all", range(1, 99)),
        ]
        for at, steered in parts:

            def by_hand(text: Tensor, steered: range = steered) -> Tensor:
                mask = torch.tensor([place in steered for place in range(text.shape[1])])

                def hook(x: Tensor) -> Tensor:
                    new = x.clone()
                    value = sae.encode(x).dense(sae.d_sae)[..., 3:4]
                    new[:, mask] = (x + (30.0 - value) * direction)[:, mask]
                    return new

                return lm.logits(text, {SITE: hook})[:, -1].argmax(-1)

            text = ids
            for _ in range(n_new):
                text = torch.cat([text, by_hand(text)[:, None]], 1)
            with steer(lm, sae, set_to(3, 30.0), at=Where(at, exclude_special=False)):
                found = lm.generate(ids, n_new, use_cache=use_cache)
            for row, expected in zip(found.tolist(), text[:, start:].tolist(), strict=True):
                ends = [i for i, token in enumerate(expected) if token in lm.end_ids]
                n = min([*ends, len(expected) - 1]) + 1
                assert row[:n] == expected[:n], (at, start)
                compared += n
    assert compared > 20


def test_several_saes_at_several_sites(lm: LanguageModel, ids: Tensor) -> None:
    later = "blocks.2.hook_resid_pre"
    first, second = make_sae(CONFIGS[0]), make_sae(CONFIGS[0], later, seed=2)
    at_first = lm.activations(ids, SITE)
    with steer(lm, first, set_to(1, 3.0)), steer(lm, second, set_to(2, -2.0)):
        both = lm.logits(ids)

    def by_hand(sae: SAE, f: int, value: float) -> Callable[[Tensor], Tensor]:
        def hook(x: Tensor) -> Tensor:
            change = (value - sae.encode(x).dense(sae.d_sae)[..., f : f + 1]) * sae.W_dec[f]
            change[:, 0] = 0
            return x + change

        return hook

    x = by_hand(first, 1, 3.0)(at_first)
    expected = lm.logits(ids, {later: lambda _: by_hand(second, 2, -2.0)(x)})
    torch.testing.assert_close(both, expected, rtol=0, atol=1e-9)


def test_a_gate_stays_closed_unless_told_otherwise(lm: LanguageModel, tree: SAE, ids: Tensor) -> None:
    """A parent that is silenced takes the active features below it along."""
    dense = tree.encode(lm.activations(ids, SITE)).dense(tree.d_sae)
    fires = (dense[:, 1:] > 0).sum((0, 1))
    parent = next(p for p in range(tree.d_sae) if any(fires[c] for c in tree.forest.children(p)))
    family = list(tree.forest.subtree(parent))

    def logits(edit: Edit, **options: Any) -> Tensor:
        with steer(lm, tree, edit, **options):
            return lm.logits(ids)

    assert torch.equal(logits(ablate(parent)), logits(ablate(family)))
    alone = logits(ablate(parent), closed=False)
    assert not torch.allclose(alone, logits(ablate(parent)))
    flat = make_sae(CONFIGS[0])
    assert not flat.gated


def test_a_lower_level_of_an_hsae_needs_the_error_term(lm: LanguageModel, ids: Tensor) -> None:
    sae = make_sae(HSAEConfig(layer_sizes=(8, 16), k_per_layer=(3, 3), normalize_activations="none"))
    x = lm.activations(ids, SITE)
    seen: list[Tensor] = []
    with steer(lm, sae, add(2, 1.5)), lm.hooked({SITE: lambda x: seen.append(x)}):
        lm.logits(ids)
    std = sae.encode_with_stats(x)[1].std
    torch.testing.assert_close(seen[0][:, 1:], (x + 1.5 * std * sae.W_dec[2])[:, 1:], rtol=0, atol=1e-9)
    with pytest.raises(InputError) as info, steer(lm, sae, add(2, 1.5), error=False):
        pass
    one_line(info, "feature 2: takes no part in the reconstruction", "error=True")


def test_a_transcoder_writes_to_its_target(lm: LanguageModel, ids: Tensor) -> None:
    source, target = f"blocks.{BLOCK}.ln2.hook_normalized", f"blocks.{BLOCK}.hook_mlp_out"
    config = TreeConfig(
        layer_sizes=(6, 12), k_per_layer=(3, 3), normalize_activations="none", normalize_target="none"
    )
    sae = make_sae(config, source, d_out=WIDTH)
    sae.metadata["hook_name_out"] = target
    x, y = lm.activations(ids, source), lm.activations(ids, target)
    value = sae.encode(x).dense(sae.d_sae)[..., 4:5]
    change = (2.0 - value) * sae.W_dec[4]
    change[:, 0] = 0
    with steer(lm, sae, set_to(4, 2.0)):
        found = lm.logits(ids)
    torch.testing.assert_close(found, lm.logits(ids, {target: lambda _: y + change}), rtol=0, atol=1e-9)
    with steer(lm, sae, set_to(4, 2.0), error=False):
        found = lm.logits(ids)
    whole = sae(x) + change
    whole[:, 0] = y[:, 0]
    torch.testing.assert_close(found, lm.logits(ids, {target: lambda _: whole}), rtol=0, atol=1e-9)


def test_an_sae_without_metadata_needs_its_site(lm: LanguageModel, ids: Tensor) -> None:
    sae = make_sae(CONFIGS[0])
    with steer(lm, sae, set_to(1, 2.0)):
        expected = lm.logits(ids)
    sae.metadata = {}
    with steer(lm, sae, set_to(1, 2.0), site=SITE):
        assert torch.equal(lm.logits(ids), expected)
    with pytest.raises(InputError, match="site: "), steer(lm, sae, set_to(1, 2.0)):
        pass


@pytest.mark.parametrize(
    ("edits", "options", "part"),
    [
        (scale(40, 2.0), {}, "feature 40: expected 0 to 39"),
        ([], {}, "edits: expected edits"),
        (["scale"], {}, "edits: expected edits, such as saeforest.interventions.scale(3, 2.0), not str"),
        (scale(1, 2.0), {"at": [1, "x"]}, "at = "),
        (scale(1, 2.0), {"at": "middle"}, "at = 'middle'"),
        (scale(1, 2.0), {"at": slice(-3, None)}, "the end of a text is not known"),
        (scale(1, 2.0), {"site": "blocks.9.hook_resid_post"}, "blocks.9"),
        (scale(1, 2.0), {"site": "blocks.0.hook_resid_post"}, "was trained on site"),
    ],
)
def test_what_steering_refuses(lm: LanguageModel, tree: SAE, edits: Any, options: Any, part: str) -> None:
    with pytest.raises(InputError) as info, steer(lm, tree, edits, **options):
        pass
    one_line(info, part)


def test_side_by_side(lm: LanguageModel, tree: SAE) -> None:
    prompt = "the cat sat on a"
    ids = torch.tensor([lm.tokenizer(prompt)["input_ids"]])
    found = side_by_side(lm, tree, [set_to(3, 20.0)], prompt, n_tokens=6, shown=4)
    assert found.clean == lm.generate(prompt, 6)
    with steer(lm, tree, set_to(3, 20.0)):
        assert found.steered == lm.generate(prompt, 6)
        after = lm.logits(ids)[0, -1].softmax(-1)
    assert found.steered != found.clean
    before = lm.logits(ids)[0, -1].softmax(-1)
    assert found.kl == pytest.approx(float((before * (before / after).log()).sum()), abs=1e-5)
    order = (after - before).abs().argsort(descending=True)[:4].tolist()
    assert [(n.token, n.clean, n.steered) for n in found.next] == [
        (
            lm.tokenizer.decode([i]),
            pytest.approx(float(before[i]), abs=1e-6),
            pytest.approx(float(after[i]), abs=1e-6),
        )
        for i in order
    ]
    assert (found.read, found.changed) == (4, 4)
    same = side_by_side(lm, tree, [scale(3, 1.0)], prompt, n_tokens=6)
    assert (same.kl, same.changed, same.steered) == (0, 0, same.clean)
    drawn = [
        side_by_side(lm, tree, [scale(3, 1.0)], prompt, n_tokens=6, temperature=3.0, seed=s)
        for s in (1, 1, 2)
    ]
    assert drawn[0].clean == drawn[0].steered == drawn[1].clean
    assert drawn[2].clean != drawn[0].clean
    with pytest.raises(InputError, match="prompt: expected some text"):
        side_by_side(lm, tree, [scale(3, 1.0)], "")
