"""Several questions on one video: features kept, tokens chosen anew or beside earlier ones."""

from __future__ import annotations

import pytest
import torch

from cacovid.errors import InvalidInputError
from cacovid.models import SelectionMemory, VideoQA, adapter_for, prune_inputs
from cacovid.models.conversation import shared_prefix
from cacovid.models.further_prompt import FurtherPrompt
from cacovid.models.inputs import video_inputs
from cacovid.types import Grid, Selection

FIRST, SECOND = "what colour is the first thing ?", "which shape is moving now ?"
ASKING = "attention:1:question"


@pytest.fixture
def qa(session_model, processor):
    return VideoQA(session_model, processor, ASKING)


@pytest.fixture
def encoded(session_model, monkeypatch):
    """How often the vision tower ran."""
    calls = []
    inner = adapter_for(session_model).inner_model(session_model)
    original = inner.get_video_features
    monkeypatch.setattr(
        inner, "get_video_features", lambda *a, **k: calls.append(1) or original(*a, **k)
    )
    return calls


def test_a_further_question_is_answered_as_if_it_were_the_first(qa, lab, encoded):
    clip = lab.clip(1, 4)
    talk = qa.conversation(clip, 0.3)
    answers = [talk.ask(question, max_new_tokens=4) for question in (FIRST, SECOND, FIRST)]
    assert len(encoded) == 1
    assert talk.answers == answers
    for answer in answers:
        alone = qa.ask(clip, answer.question, 0.3, max_new_tokens=4)
        assert torch.equal(answer.selection.keep, alone.selection.keep)
        assert torch.equal(answer.scores.token, alone.scores.token)
        assert answer.text == alone.text
        assert list(answer.timings) == list(alone.timings)
    assert not torch.equal(answers[0].selection.keep, answers[1].selection.keep)


def test_the_embedded_model(tmp_path):
    """Trained weights, a real file, a policy: each answer is that of a question alone."""
    from cacovid import synthetic

    scene = synthetic.make_scene("test", 0, 1)
    scene.write(tmp_path / "clip.mp4")
    qa = VideoQA.from_pretrained("tiny", device="cpu")
    talk = qa.conversation(tmp_path / "clip.mp4", 0.1)
    sticky = qa.conversation(tmp_path / "clip.mp4", 0.1, mode="sticky")
    union: set[int] = set()
    for question in scene.questions[:3]:
        alone = qa.ask(tmp_path / "clip.mp4", question.text, 0.1)
        answer = talk.ask(question.text)
        assert answer.text == alone.text
        assert torch.equal(answer.selection.keep, alone.selection.keep)
        union |= set(alone.selection.keep.tolist())
        kept = set(sticky.ask(question.text).selection.keep.tolist())
        assert set(alone.selection.keep.tolist()) <= kept <= union
        assert len(kept) == min(len(union), 2 * 57 + 1)  # 576 tokens: 57 each, 115 at most


def test_methods_inside_the_language_model(qa, lab, encoded):
    clip = lab.clip(5, 4)
    talk = qa.conversation(clip, 0.5, method="fastv:1")
    for question in (FIRST, SECOND):
        answer = talk.ask(question, max_new_tokens=3)
        alone = qa.ask(clip, question, 0.5, method="fastv:1", max_new_tokens=3)
        assert answer.text == alone.text
        assert torch.equal(answer.selection.keep, alone.selection.keep)
    assert len(encoded) == 3  # the conversation once, each question alone once


def test_history_stands_before_the_question(qa, lab, processor, session_model):
    clip = lab.clip(2, 4)
    talk = qa.conversation(clip, 0.5, history=True)
    first = talk.ask(FIRST, max_new_tokens=3)
    second = talk.ask(SECOND, max_new_tokens=3)
    messages = [
        lab.user(FIRST)[0],
        {"role": "assistant", "content": [{"type": "text", "text": first.text}]},
        {"role": "user", "content": [{"type": "text", "text": SECOND}]},
    ]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(text=[prompt], videos=[clip])
    pruned = prune_inputs(
        session_model, inputs, ASKING, 0.5, question=SECOND, tokenizer=processor.tokenizer
    )
    out = session_model.generate(**pruned.inputs, max_new_tokens=3, do_sample=False)
    new = out[0, pruned.inputs["input_ids"].shape[1] :]
    assert second.text == processor.tokenizer.decode(new, skip_special_tokens=True).strip()
    assert torch.equal(second.selection.keep, pruned.selection.keep)


def test_sticky_keeps_the_union_within_its_budget(qa, lab, encoded):
    clip, questions = lab.clip(7, 4), (FIRST, "count red objects then")
    talk = qa.conversation(clip, 0.2, mode="sticky", max_retention=0.23)
    first, second = (talk.ask(question, max_new_tokens=1) for question in questions)
    fresh = [set(qa.ask(clip, q, 0.2, max_new_tokens=1).selection.keep.tolist())
             for q in questions]  # fmt: skip
    assert set(first.selection.keep.tolist()) == fresh[0]
    kept = set(second.selection.keep.tolist())
    assert fresh[1] <= kept <= fresh[0] | fresh[1]
    # Of 36 tokens 7 of each question, 8 at most; the two questions differ in more than one.
    assert len(fresh[0] | fresh[1]) > 8
    assert len(kept) == second.tokens["kept"] == 8
    assert len(encoded) == 3  # the conversation once, each question alone once


def test_valid_keys_and_values(qa, lab, session_model):
    """What two prompts share gives the same keys and values; what follows does not."""
    clip = lab.clip(4, 4)
    talk = qa.conversation(clip, 0.4)
    caches, prompts = [], []
    for question in (FIRST, SECOND):
        answer = talk.ask(question, max_new_tokens=1)
        inputs = video_inputs(session_model, qa.processor, clip, question)
        pruned = prune_inputs(
            session_model, inputs, ASKING, 0.4, question=question, tokenizer=qa.processor.tokenizer
        )
        prompts.append(pruned.inputs)
        with torch.no_grad():
            out = session_model(**pruned.forward_inputs, use_cache=True)
        caches.append(out.past_key_values.layers[-1].keys[0])
    shared = answer.shared_prefix
    assert shared == shared_prefix(*prompts)
    # The two tokens before the video, and not the whole of it.
    assert 2 <= shared < len(answer.selection.keep)
    assert torch.equal(caches[0][:, :shared], caches[1][:, :shared])
    assert not torch.allclose(caches[0][:, shared], caches[1][:, shared])
    # The same question again: everything is shared. One more token of text: up to that place.
    assert talk.ask(SECOND, max_new_tokens=1).shared_prefix == prompts[1]["input_ids"].shape[1]


def _select(keep, grid, counts=None):
    return Selection(torch.tensor(keep), grid, counts or (len(keep),))


def test_memory_forgets_what_was_selected_longest_ago():
    grid = Grid([(1, 2, 5), (1, 1, 4)])
    memory = SelectionMemory([0.5, 0.5])
    assert memory.merge(_select([0, 4, 9, 10], grid, (3, 1))).counts == (3, 1)
    # 0, 4, 9 and 1, 2: five fit.
    assert memory.merge(_select([1, 2, 11], grid, (2, 1))).keep.tolist() == [0, 1, 2, 4, 9, 10, 11]
    # 7 is new; of those of the first question the highest goes. 10 goes for 13.
    third = memory.merge(_select([2, 7, 13], grid, (2, 1)))
    assert third.keep.tolist() == [0, 1, 2, 4, 7, 11, 13]
    assert third.counts == (5, 2)
    assert memory.kept is third
    assert memory.questions == 3
    # 9 does not come back although 0 and 4 are as old.
    assert memory.merge(_select([2, 7, 13], grid, (2, 1))).keep.tolist() == third.keep.tolist()


def test_memory_against_a_plain_statement():
    grid, generator = Grid([(3, 4, 5)]), torch.Generator().manual_seed(0)
    memory, turns = SelectionMemory(0.35), []
    for _ in range(12):
        keep = torch.randperm(60, generator=generator)[:7].sort().values
        turns.append(set(keep.tolist()))
        got = memory.merge(Selection(keep, grid, (7,))).keep.tolist()
        latest = {token: number for number, turn in enumerate(turns) for token in turn}
        ranked = sorted(latest, key=lambda token: (-latest[token], token))
        assert got == sorted(ranked[:21])


def test_wrong_conversations(qa, lab):
    clip = lab.clip(1)
    for settings, message in (
        ({"mode": "stick"}, "mode is 'stick'"),
        ({"max_retention": 0.5}, "with mode='fresh'"),
        ({"mode": "sticky", "max_retention": 0.1}, "below the retention 0.2"),
        ({"mode": "sticky", "max_retention": 1.5}, "retention is 1.5"),
        ({"method": "nothing"}, "unknown method"),
        ({"method": "fastv", "mode": "sticky"}, "prunes inside the language model"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            qa.conversation(clip, 0.2, **settings)
    with pytest.raises(InvalidInputError, match="retention is 0"):
        qa.conversation(clip, 0)
    with pytest.raises(InvalidInputError, match="question is empty"):
        qa.conversation(clip, 0.2).ask(" ")


def test_wrong_merges():
    grid = Grid([(1, 1, 8)])
    memory = SelectionMemory(0.5)
    merged = Selection(torch.tensor([0]), grid, (1,), torch.zeros(1, 4))
    with pytest.raises(InvalidInputError, match="merged tokens"):
        memory.merge(merged)
    with pytest.raises(InvalidInputError, match=r"allows \(4,\)"):
        memory.merge(_select([0, 1, 2, 3, 4], grid))
    memory.merge(_select([0], grid))
    with pytest.raises(InvalidInputError, match="other videos"):
        memory.merge(_select([0], Grid([(1, 1, 9)])))


class TestFurtherPrompt:
    """The processor's own result, without its frames."""

    def test_it_is_what_the_processor_makes(self, processor, lab):
        clip = lab.clip(1, 5)
        texts = [
            processor.apply_chat_template(lab.user(q), add_generation_prompt=True)
            for q in (FIRST, SECOND, "")
        ]
        first = dict(processor(text=[texts[0]], videos=[clip]))
        # What Qwen's processors return besides: token types, the grid.
        is_video = first["input_ids"] == processor.video_token_id
        first["mm_token_type_ids"] = 2 * is_video.long()
        first["video_grid_thw"] = torch.tensor([[5, 6, 6]])
        further = FurtherPrompt(processor.tokenizer, texts[0], first)
        for text in texts:
            made, wanted = further(text), processor(text=[text], videos=[clip])
            assert "pixel_values_videos" not in made
            assert torch.equal(made["input_ids"], wanted["input_ids"])
            assert torch.equal(made["attention_mask"], wanted["attention_mask"])
            types = 2 * (wanted["input_ids"] == processor.video_token_id).long()
            assert torch.equal(made["mm_token_type_ids"], types)
            assert made["video_grid_thw"] is first["video_grid_thw"]

    def test_text_between_the_placeholders(self, tokenizer):
        """As Qwen3-VL writes a video: timestamps between its frames."""
        first = "user what <video> is this ?"
        full = "user what then <video> <video> now <video> <video> is this ?"
        ids = tokenizer([full], return_tensors="pt")["input_ids"]
        further = FurtherPrompt(tokenizer, first, {"input_ids": ids})
        made = further("user what <video> are you ?")["input_ids"]
        wanted = "user what then <video> <video> now <video> <video> are you ?"
        assert made.tolist() == tokenizer([wanted])["input_ids"]

    def test_another_beginning(self, tokenizer):
        ids = tokenizer(["what <video> <video> is"], return_tensors="pt")["input_ids"]
        further = FurtherPrompt(tokenizer, "what <video> is", {"input_ids": ids})
        with pytest.raises(InvalidInputError, match="begins otherwise"):
            further("which <video> is")
        with pytest.raises(InvalidInputError, match=r"\[1, W\]"):
            FurtherPrompt(tokenizer, "what <video> is", {"input_ids": ids.repeat(2, 1)})
