"""Both policies: golden vectors, folding, packing, gradients, storage."""

import json

import pytest
import torch
from safetensors.torch import load_file

from cacovid import (
    CrossAttentionConfig,
    CrossAttentionPolicy,
    Grid,
    Prompt,
    SelfAttentionConfig,
    SelfAttentionPolicy,
    load_policy,
)
from cacovid.errors import InvalidInputError, UnsupportedModelError, WrongBaseModelError
from cacovid.policies.decoder_layer import full_rotation
from cacovid.train.packing import pack_prompts, split_scores

GRIDS = [(3, 2, 3), (1, 4, 4), (4, 1, 2)]


def prompt_of(size, questions=5, width=32, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    tokens = size[0] * size[1] * size[2]
    total = 2 + tokens + 1 + questions + 3
    return Prompt(
        embeds=torch.randn(total, width, generator=generator, dtype=dtype),
        position_ids=torch.arange(total),
        video_index=torch.arange(2, 2 + tokens),
        question_index=torch.arange(3 + tokens, 3 + tokens + questions),
        grid=Grid([size]),
    )


def small(kind, **settings):
    torch.manual_seed(0)
    if kind == "self":
        config = SelfAttentionConfig(
            hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
            **settings,
        )  # fmt: skip
        return SelfAttentionPolicy(config)
    return CrossAttentionPolicy(CrossAttentionConfig(hidden_size=32, **settings))


VARIANTS = [
    {},
    {"slots": 0},
    {"slots": 0, "inter_frame": True, "score_bound": 200.0},
    {"slots": 0, "inter_frame": True, "head_size": 4},  # keys of 7 words are not folded
    {"inter_frame": True, "heads": 1, "head_size": 16, "token_features": 16},
]


def randomised(policy):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in policy.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.5)
    return policy


@pytest.mark.parametrize("case", [0, 1])
def test_golden_policy(golden_folder, case):
    tensors = {
        name.removeprefix(f"{case}/"): value
        for name, value in load_file(golden_folder / "policy_shared.safetensors").items()
        if name.startswith(f"{case}/")
    }
    settings = json.loads((golden_folder / "shared.json").read_text())["policy"][case]
    grid = settings.pop("grid_thw")
    settings.pop("i")
    policy = SelfAttentionPolicy(SelfAttentionConfig(**settings))
    weights = {k.removeprefix("weights/"): v for k, v in tensors.items() if "weights/" in k}
    assert any(name.startswith("mode_selection") for name in weights)
    policy.load_weights(weights, "the golden file")
    video = tensors["video_mask"][0].nonzero().flatten()
    text = (~tensors["video_mask"][0]).nonzero().flatten()
    prompt = Prompt(
        tensors["inputs_embeds"][0], tensors["position_ids"][0], video, text, Grid([grid])
    )
    with torch.no_grad():
        token, frame = policy.head_logits(prompt)
        scores = policy(prompt)
    for got, name in ((token, "token_logits"), (frame, "frame_logits")):
        torch.testing.assert_close(got, tensors[name], rtol=1e-4, atol=1e-5)
    expected = tensors["token_logits"][:, 1] - tensors["token_logits"][:, 0]
    torch.testing.assert_close(scores.token, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", VARIANTS)
@pytest.mark.parametrize("questions", [0, 1, 7])
def test_folded_equals_plain(settings, questions):
    policy = randomised(small("cross", **settings)).double()
    prompt = prompt_of((3, 2, 3), questions)
    plain = policy.plain(prompt)
    with torch.no_grad():
        folded = policy(prompt)
    for a, b in ((plain.token, folded.token), (plain.frame, folded.frame)):
        assert a.dtype == torch.float64 and float(b.std()) > 1e-3
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_keys_are_folded_while_that_makes_no_more_columns():
    policy = small("cross", slots=0, head_size=4, heads=2)
    features = policy.features.out_features
    for words, folded in ((0, True), (3, True), (4, False), (9, False)):
        fold = policy.fold(torch.randn(words, 32))
        slots = 1 + words  # the null token is one
        assert (fold.keys is None) == folded
        assert fold.columns.shape[1] == 2 * min(slots, 4) + features
        assert fold.values.shape[0] == 2 * slots
    for wish in (True, False):
        assert (policy.fold(torch.randn(5, 32), fold_keys=wish).keys is None) == wish


@pytest.mark.parametrize("settings", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision_give_scores_in_float32(settings, dtype):
    policy = randomised(small("cross", **settings))
    prompt = prompt_of((3, 2, 3), dtype=torch.float32)
    expected = policy.plain(prompt)
    policy.to(dtype)
    plain = policy.plain(prompt)
    with torch.no_grad():
        fold = policy.fold(prompt.question_embeds)
        folded = policy(prompt)
    folded_weights = (fold.columns, fold.values, *fold.token, *fold.frame)
    assert {weight.dtype for weight in folded_weights} == {torch.float32}
    for of in ("token", "frame"):
        own = getattr(expected, of).detach()
        for scores in (plain, folded):
            got = getattr(scores, of).detach()
            assert got.dtype == torch.float32
            assert not torch.equal(got, got.to(dtype).float())
            assert float((got - own).abs().max()) < 0.2 * float(own.abs().max())


@pytest.mark.parametrize("slots", [0, 4])
def test_autocast_changes_nothing_without_a_gradient(slots):
    policy = small("cross", slots=slots)
    prompt = prompt_of((3, 2, 3), dtype=torch.float32)
    with torch.no_grad():
        expected = policy(prompt)
        with torch.autocast("cpu", torch.bfloat16):
            scores = policy(prompt)
    assert torch.equal(scores.token, expected.token)
    assert torch.equal(scores.frame, expected.frame)


@pytest.mark.parametrize(("kind", "slots"), [("cross", 0), ("cross", 4), ("self", None)])
def test_heads_compute_in_float32_under_autocast(kind, slots):
    policy = small(kind, **({} if slots is None else {"slots": slots}))
    prompt = prompt_of((3, 2, 3), dtype=torch.float32)
    expected = policy(prompt)
    with torch.autocast("cpu", torch.bfloat16):
        scores = policy(prompt)
    for got, wanted in ((scores.token, expected.token), (scores.frame, expected.frame)):
        assert got.dtype == torch.float32 and not torch.equal(got, got.bfloat16().float())
        # Not equal: what comes before the heads was multiplied in bfloat16.
        assert not torch.equal(got, wanted)
        torch.testing.assert_close(got, wanted, rtol=0.0, atol=0.1 * float(wanted.detach().std()))
    (scores.token.sum() + scores.frame.sum()).backward()
    used = {name: p.grad for name, p in policy.named_parameters() if "mode_selection" not in name}
    assert all(grad is not None and grad.dtype == torch.float32 for grad in used.values())


def test_the_score_is_the_formula_written_out():
    policy = randomised(small("cross")).double()
    c = policy.config
    prompt = prompt_of((3, 2, 3))
    w = dict(policy.named_parameters())

    def rms(rows, weight):
        return rows / (rows.square().mean(-1, keepdim=True) + c.rms_norm_eps).sqrt() * weight

    x = rms(prompt.video_embeds, w["video_norm.weight"])
    z = rms(prompt.question_embeds, w["question_norm.weight"])
    slots = w["latents"].clone()
    mixed = torch.zeros_like(slots)
    for head in range(4):
        part = slice(32 * head, 32 * head + 32)
        q = w["latents"] @ w["slot_query.weight"][part].T
        k, v = z @ w["slot_key.weight"][part].T, z @ w["slot_value.weight"][part].T
        mixed[:, part] = torch.softmax(q @ k.T / 32**0.5, -1) @ v
    slots = slots + mixed @ w["slot_output.weight"].T
    joined = []
    for head in range(2):
        part = slice(64 * head, 64 * head + 64)
        q, k = x @ w["query.weight"][part].T, slots @ w["key.weight"][part].T
        joined.append(torch.softmax(q @ k.T / 8, -1) @ (slots @ w["value.weight"][part].T))
    u = x @ w["features.weight"].T + torch.cat(joined, 1) @ w["output.weight"].T

    def head(u, name):
        silu = torch.nn.functional.silu
        h = silu(u + w[f"{name}.bias"])
        h = silu(h @ w[f"{name}.hidden.weight"].T + w[f"{name}.hidden.bias"])
        return (h @ w[f"{name}.score.weight"].T + w[f"{name}.score.bias"])[:, 0]

    scores = policy.plain(prompt)
    torch.testing.assert_close(scores.token, head(u[:, :32], "token_head"))
    mean = u[:, 32:].view(3, 6, 32).mean(1)
    torch.testing.assert_close(scores.frame, head(mean, "frame_head"))


@pytest.mark.parametrize("kind", ["self", "cross"])
def test_a_pack_equals_one_by_one(kind):
    policy = randomised(small(kind)).double()
    prompts = [prompt_of(size, 3 + i, seed=i) for i, size in enumerate(GRIDS)]
    with torch.no_grad():
        together = split_scores(policy(pack_prompts(prompts)), prompts)
        for prompt, packed in zip(prompts, together, strict=True):
            alone = policy(prompt)
            torch.testing.assert_close(packed.token, alone.token, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(packed.frame, alone.frame, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["self", "cross"])
def test_the_question_matters(kind):
    policy = randomised(small(kind)).double()
    prompt = prompt_of((3, 2, 3))
    changed = prompt.embeds.clone()
    changed[prompt.question_index[0]] += 1.0
    other = Prompt(
        changed, prompt.position_ids, prompt.video_index, prompt.question_index, prompt.grid
    )
    with torch.no_grad():
        assert not torch.allclose(policy(prompt).token, policy(other).token)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("self", {}), ("cross", {}), ("cross", {"slots": 0, "inter_frame": True})],
)
def test_gradients_reach_every_weight(kind, settings):
    policy = small(kind, **settings)
    scores = policy(prompt_of((3, 2, 3), dtype=torch.float32))
    (scores.token.square().sum() + scores.frame.square().sum()).backward()
    without = [n for n, p in policy.named_parameters() if p.grad is None or not p.grad.any()]
    # A bias of the keys moves all logits of a query alike.
    assert without in ([], ["layers.0.self_attn.k_proj.bias"])


def test_half_precision_prompts_are_scored_in_single_precision():
    policy = small("cross").eval()
    prompt = prompt_of((3, 2, 3), dtype=torch.bfloat16)
    assert policy(prompt).token.dtype == torch.float32


@pytest.mark.parametrize("kind", ["self", "cross"])
def test_stored_and_read_back(kind, tmp_path):
    policy = randomised(small(kind, base_model="owner/base", policy_share=0.8)).eval()
    policy.save_pretrained(tmp_path / "new" / "policy")
    again = load_policy(tmp_path / "new" / "policy", base_model="owner/base", hidden_size=32)
    assert type(again) is type(policy) and again.config == policy.config and not again.training
    prompt = prompt_of((3, 2, 3), dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(again(prompt).token, policy(prompt).token)
    assert sorted(p.name for p in (tmp_path / "new" / "policy").iterdir()) == [
        "config.json", "model.safetensors",
    ]  # fmt: skip
    same = type(policy).from_pretrained(tmp_path / "new" / "policy")
    assert torch.equal(same(prompt).token, policy(prompt).token)
    other = CrossAttentionPolicy if kind == "self" else SelfAttentionPolicy
    with pytest.raises(InvalidInputError, match=r"use cacovid\.load_policy"):
        other.from_pretrained(tmp_path / "new" / "policy")


def test_a_failed_write_leaves_the_old_policy(tmp_path, monkeypatch):
    policy = randomised(small("cross")).eval()
    policy.save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()

    def broken(weights, path):
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("cacovid.policies.storage.save_file", broken)
    with pytest.raises(OSError, match="no space"):
        small("cross").save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_wrong_base_models_are_refused(tmp_path):
    small("cross", base_model="owner/base").save_pretrained(tmp_path)
    with pytest.raises(WrongBaseModelError, match=r"owner/base.*owner/other"):
        load_policy(tmp_path, base_model="owner/other")
    with pytest.raises(WrongBaseModelError, match=r"hidden size 32.*hidden size 64"):
        load_policy(tmp_path, hidden_size=64)
    with pytest.raises(WrongBaseModelError, match="; the model has hidden size 64"):
        load_policy(tmp_path, hidden_size=64)
    with pytest.raises(WrongBaseModelError, match=r"hidden size 8; .* hidden size 32"):
        small("cross").eval()(prompt_of((3, 2, 3), width=8))
    with pytest.raises(WrongBaseModelError, match=r"hidden size 8; .* hidden size 32"):
        small("self").eval()(prompt_of((3, 2, 3), width=8))
    with pytest.raises(WrongBaseModelError, match=r"question has hidden size 8; .* size 32"):
        small("cross").fold(torch.zeros(5, 8))
    with pytest.raises(InvalidInputError, match=r"question has shape \(32,\); expected \[L, D\]"):
        small("cross").fold(torch.zeros(32))


def test_names_and_keywords_that_are_none(tmp_path):
    small("cross").save_pretrained(tmp_path)
    with pytest.raises(InvalidInputError, match=r"'hiden_size' is no .*mean 'hidden_size'"):
        load_policy(tmp_path, hiden_size=999)
    with pytest.raises(InvalidInputError, match=r"'revison' .*did you mean 'revision'"):
        CrossAttentionPolicy.from_pretrained(tmp_path, revison="main")
    assert load_policy(tmp_path, revision="main").config.hidden_size == 32
    with pytest.raises(InvalidInputError, match=r"config\.json' is a file; expected a policy's"):
        load_policy(tmp_path / "config.json")
    for name in (None, "", 7):
        with pytest.raises(InvalidInputError, match=f"by the name {name!r}; expected a policy's"):
            load_policy(name)


def test_damaged_folders(tmp_path):
    with pytest.raises(InvalidInputError, match="no policy directory"):
        load_policy(tmp_path / "absent" / "deep" / "er")
    with pytest.raises(InvalidInputError, match=r"has no config\.json"):
        load_policy(tmp_path)
    small("cross").save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole, settings = weights.read_bytes(), json.loads(config.read_text())
    weights.write_bytes(whole[:-100])
    with pytest.raises(InvalidInputError, match="no whole safetensors file"):
        load_policy(tmp_path)
    weights.write_bytes(whole)
    for change, message in (
        ({"policy_type": "llava"}, "policy_type 'llava'; expected one of cross_attention"),
        ({"colour": 1}, "colour, which CrossAttentionConfig does not know"),
        ({"slots": 8}, r"latents of .* is \(32, 128\); the configuration says \(8, 128\)"),
        ({"inter_frame": True}, r"missing difference\.weight"),
        ({"heads": 0}, "heads is 0"),
        ({"policy_share": 2}, "policy_share is 2"),
        ({"max_frame_ratio": 0}, "max_frame_ratio is 0; expected a number above 0"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps is -1.0"),
        ({"slots": -1}, "slots is -1"),
        ({"slot_heads": 3}, "slot_width is 128 and slot_heads 3; expected a multiple"),
        ({"slots": "many"}, "slots is 'many'"),
        ({"policy_share": "half"}, "config.json does not make a CrossAttentionConfig"),
    ):
        config.write_text(json.dumps({**settings, **change}))
        with pytest.raises(InvalidInputError, match=message):
            load_policy(tmp_path)
    del settings["hidden_size"]
    config.write_text(json.dumps(settings))
    with pytest.raises(InvalidInputError, match="hidden_size"):
        load_policy(tmp_path)
    config.write_text("{")
    with pytest.raises(InvalidInputError, match="is not JSON"):
        load_policy(tmp_path)


def test_a_layer_starts_as_the_language_models_own():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=20, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 5e4},
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    policy = SelfAttentionPolicy.from_language_model(model, base_model="owner/base")
    layer = model.model.layers[0]
    assert policy.config.rope_theta == 5e4 and policy.config.base_model == "owner/base"
    for name, value in layer.state_dict().items():
        assert torch.equal(policy.layers[0].state_dict()[name], value)
    # The same layer without its causal mask gives the same rows.
    embeds = torch.randn(9, 32)
    rotation = model.model.rotary_emb(embeds[None], torch.arange(9)[None])
    with torch.no_grad():
        rows = layer(
            embeds[None], attention_mask=torch.zeros(1, 1, 9, 9), position_embeddings=rotation
        )
        ours = policy.layers[0](embeds, (rotation[0][0], rotation[1][0]))
    torch.testing.assert_close(ours, rows.view(9, 32), rtol=1e-5, atol=1e-5)
    config.hidden_act = "gelu"
    with pytest.raises(UnsupportedModelError, match=r"activation 'gelu'.*'silu'"):
        SelfAttentionPolicy.from_language_model(model)
    config.hidden_act = "silu"
    config.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e4}
    with pytest.raises(UnsupportedModelError, match=r"rotary embedding 'linear'.*'default'"):
        SelfAttentionPolicy.from_language_model(model)
    config.rope_parameters = {"rope_type": "default", "rope_theta": 5e4}
    with pytest.raises(UnsupportedModelError, match="no decoder layer"):
        model.model.layers = torch.nn.ModuleList()
        SelfAttentionPolicy.from_language_model(model)


@pytest.mark.parametrize("name", ["qwen2", "qwen2_5_vl", "qwen3_vl"])
def test_a_layer_starts_with_exchanged_roles(name):
    """A token attends to another as the other attends to it in the language model's layer."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from tests.models import families

    if name == "qwen2":
        config = Qwen2Config(
            vocab_size=20, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
            num_attention_heads=4, num_key_value_heads=2,
        )  # fmt: skip
        model = Qwen2ForCausalLM(config)
    else:
        model = getattr(families, name)(families.make_tokenizer())
    for parameter in model.parameters():  # biases and norms start at 0 and 1
        torch.nn.init.normal_(parameter, std=0.3)
    plain = SelfAttentionPolicy.from_language_model(model)
    policy = SelfAttentionPolicy.from_language_model(model, exchange_roles=True)
    own, given = policy.config, plain.config
    assert own.num_key_value_heads == own.num_attention_heads == given.num_attention_heads
    assert given.num_key_value_heads < given.num_attention_heads

    hidden = torch.randn(7, own.hidden_size)
    positions = torch.arange(7) * 3
    if own.mrope_section is not None:
        positions = torch.stack((positions, positions + 1, 2 * positions))

    def logits_and_values(one):
        cosine, sine = full_rotation(positions, one.config, hidden.dtype)
        kept = {}
        attention = one.layers[0].self_attn

        def watch(q, k, v, **_):
            groups = q.shape[-3] // k.shape[-3]
            kept["logits"] = q @ k.repeat_interleave(groups, -3).transpose(-1, -2)
            kept["values"] = v.repeat_interleave(groups, -3)
            return torch.zeros_like(q)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("cacovid.policies.decoder_layer.F.scaled_dot_product_attention", watch)
            attention(hidden, (cosine, sine))
        return kept["logits"], kept["values"]

    with torch.no_grad():
        logits, values = logits_and_values(plain)
        exchanged, same_values = logits_and_values(policy)
    torch.testing.assert_close(exchanged, logits.transpose(-1, -2), rtol=1e-4, atol=1e-4)
    assert torch.equal(same_values, values)
    for name, value in plain.layers[0].state_dict().items():
        if "self_attn.o_proj" in name or "mlp" in name or "layernorm" in name:
            assert torch.equal(policy.layers[0].state_dict()[name], value)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_layer_starts_as_that_of_a_model_with_three_axes(name, tmp_path):
    """Weights, M-RoPE, biases or norms of heads: the layer gives the model's own rows."""
    from tests.models import families

    model = getattr(families, name)(families.make_tokenizer())
    policy = SelfAttentionPolicy.from_language_model(model, base_model="owner/base")
    decoder = model.model.language_model
    layer, config = decoder.layers[0], policy.config
    third = name == "qwen3_vl"
    assert (config.qkv_bias, config.qk_norm, config.mrope_interleaved) == (not third, third, third)
    assert config.mrope_section == (2, 1, 1)
    given, own = layer.state_dict(), policy.layers[0].state_dict()
    assert set(given) == set(own) and all(torch.equal(given[n], own[n]) for n in given)
    embeds = torch.randn(9, 32, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([range(9), [3, 5, 1, 8, 2, 0, 7, 7, 4], [0, 6, 6, 2, 9, 1, 5, 3, 8]])
    rotation = decoder.rotary_emb(embeds[None], positions[:, None])
    with torch.no_grad():
        rows = layer(
            embeds[None], attention_mask=torch.zeros(1, 1, 9, 9), position_embeddings=rotation
        )
        rows = rows[0] if isinstance(rows, tuple) else rows
        cosine, sine = full_rotation(positions, config, torch.float32)
        ours = policy.layers[0](embeds, (cosine, sine))
    torch.testing.assert_close(ours, rows.view(9, 32), rtol=1e-5, atol=1e-5)
    # An axis matters, and what is stored is the same policy.
    turned = full_rotation(positions[[0, 2, 1]], config, torch.float32)
    assert not torch.allclose(turned[0], cosine)
    policy.save_pretrained(tmp_path)
    stored = load_policy(tmp_path)
    assert stored.config == config
    # One axis of positions counts for all.
    same = full_rotation(positions[0], config, torch.float32)
    thrice = full_rotation(positions[:1].expand(3, -1), config, torch.float32)
    assert torch.equal(same[0], thrice[0])


def test_axes_that_do_not_fit_the_head_are_refused():
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    with pytest.raises(InvalidInputError, match=r"mrope_section is \(2, 1\); expected .* 4 in all"):
        SelfAttentionConfig(**sizes, intermediate_size=48, mrope_section=[2, 1])


def test_positions_of_several_axes_are_refused():
    prompt = prompt_of((3, 2, 3), dtype=torch.float32)
    same = prompt.position_ids.expand(3, -1)
    policy = small("self").eval()
    again = Prompt(prompt.embeds, same, prompt.video_index, prompt.question_index, prompt.grid)
    assert torch.equal(policy(prompt).token, policy(again).token)
    differ = same + torch.tensor([0, 1, 2])[:, None]
    other = Prompt(prompt.embeds, differ, prompt.video_index, prompt.question_index, prompt.grid)
    with pytest.raises(InvalidInputError, match="differ between axes"):
        policy(other)


def test_heads_that_cannot_be_turned_are_refused():
    sizes = {"hidden_size": 48, "num_key_value_heads": 1, "intermediate_size": 8}
    with pytest.raises(InvalidInputError, match="3 wide; expected an even width"):
        SelfAttentionConfig(num_attention_heads=16, **sizes)
    with pytest.raises(InvalidInputError, match="expected a multiple"):
        SelfAttentionConfig(num_attention_heads=3, **{**sizes, "num_key_value_heads": 2})


@pytest.mark.parametrize("by", ["push", "save"])
def test_an_upload_holds_a_policy_that_can_be_read(tmp_path, monkeypatch, by):
    # The Hub cannot be reached from a test: its client is replaced, all else is the real thing.
    policy, seen = randomised(small("cross", base_model="owner/base")).eval(), []

    class Client:
        def __init__(self, token=None):
            self.token = token

        def create_repo(self, repo_id, private=None, exist_ok=False):
            seen.append(private)
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, repo_id, folder_path, **_):
            seen.append(load_policy(folder_path, base_model="owner/base"))
            return f"https://hub/{repo_id}"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Client)
    if by == "push":
        address = policy.push_to_hub("owner/policy", private=True)
    else:
        address = policy.save_pretrained(
            tmp_path / "here", push_to_hub=True, repo_id="owner/policy", private=True
        )
        assert load_policy(tmp_path / "here").config == policy.config
    assert address == "https://hub/owner/policy" and seen[0] is True
    prompt = prompt_of((3, 2, 3), dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(seen[1](prompt).token, policy(prompt).token)


def test_upload_arguments_without_an_upload_are_refused(tmp_path):
    with pytest.raises(InvalidInputError, match=r"private, repo_id, .* expected push_to_hub=True"):
        small("cross").save_pretrained(tmp_path, repo_id="owner/policy", private=True)
    assert not list(tmp_path.iterdir())


def test_without_slots_a_token_starts_with_attention_to_the_word_it_is_like():
    torch.manual_seed(0)
    policy = CrossAttentionPolicy(CrossAttentionConfig(hidden_size=256, slots=0))
    words = torch.randn(12, 256)
    with torch.no_grad():
        key = policy.key(policy.read_question(words)).unflatten(1, (2, 64)).transpose(0, 1)
        query = policy.query(policy.video_norm(3.0 * words)).unflatten(1, (2, 64)).transpose(0, 1)
        logits = query @ key.transpose(1, 2) / 8  # [heads, tokens, null and words]
    assert logits.argmax(dim=-1).equal(torch.arange(1, 13).expand(2, -1))
    assert torch.softmax(logits, dim=-1).amax(dim=-1).min() > 0.8
