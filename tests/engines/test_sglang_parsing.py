"""Requests of SGLang as the installed package itself reads them: items, places, hashes, positions.

Runs where sglang is installed: `make test-engines`.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch

from cacovid.engines import sglang as requests
from tests.engines.test_sglang import QWEN, case, pruned_of  # noqa: F401
from tests.models.families import QUESTIONS, VIDEO, Request

if importlib.util.find_spec("sglang") is None:
    pytest.skip("sglang is not installed; make test-engines installs it", allow_module_level=True)


@pytest.fixture
def reader(case):  # noqa: F811
    """SGLang's processor of the model, without the server it belongs to."""
    from sglang.srt.multimodal.processors.base_processor import MultimodalSpecialTokens
    from sglang.srt.multimodal.processors.qwen_vl import QwenVLImageProcessor

    _, tokenizer, model = case
    reader = object.__new__(QwenVLImageProcessor)
    reader.hf_config, reader.model_type = model.config, model.config.model_type
    reader._processor = tokenizer
    reader._tokenizer = tokenizer
    # Its constructor asks a running server for these; features by processor's names we have none.
    reader.ATTR_NAME_TO_MODALITY, reader.FEATURE_NAMES = {}, ()
    reader.use_cuda_ipc, reader.mm_feature_transport = False, "cpu"
    reader.mm_tokens = MultimodalSpecialTokens(
        video_token=VIDEO, video_token_id=model.config.video_token_id,
        image_token_id=model.config.image_token_id,
    )  # fmt: skip
    return reader


def read(reader, request):
    """Items, ids and the item's own values, as a request's tokenizer process makes them."""
    from sglang.srt.multimodal.processors.base_processor import BaseMultiModalProcessorOutput

    output = BaseMultiModalProcessorOutput(
        input_text="", input_ids=request["input_ids"], videos=request["video_data"]
    )
    return reader.process_and_combine_mm_data(output, reader.mm_tokens)


def embeddings(items, prefix, length):
    """What the engine puts in for `length` tokens after `prefix` computed ones."""
    from sglang.srt.managers.mm_schedule import _get_precomputed_embedding

    offsets = [offset for item in items for offset in item.offsets]
    return _get_precomputed_embedding(items, [0, len(items)], [prefix], [length], [offsets])


def test_the_engine_reads_every_kept_token(case, reader):  # noqa: F811
    request = requests.prepare(pruned_of(case, Request(QUESTIONS[0], (0, 1))), case[2])
    reader.validate_mm_data(video_data=request["video_data"])
    assert reader._all_mm_data_is_preprocessed(request["video_data"])
    items, ids, values = read(reader, request)
    assert ids.tolist() == request["input_ids"]
    assert all(item.is_video() and item.is_valid() for item in items)
    video = case[2].config.video_token_id
    places = [i for item in items for a, b in item.offsets for i in range(a, b + 1)]
    assert places == [i for i, token in enumerate(request["input_ids"]) if token == video]
    rows = request["video_data"][0]["precomputed_embeddings"]
    assert torch.equal(embeddings(items, 0, len(ids)), rows)
    positions, delta = reader._get_precomputed_mrope_from_output(values)
    assert torch.equal(positions, request["video_data"][0]["mrope_positions"])
    assert torch.equal(delta, request["video_data"][0]["mrope_position_delta"])


def test_chunked_prefill_reads_them_in_order(case, reader):  # noqa: F811
    request = requests.prepare(pruned_of(case, Request(QUESTIONS[0], (0, 1))), case[2])
    items, ids, _ = read(reader, request)
    chunks = [embeddings(items, i, min(7, len(ids) - i)) for i in range(0, len(ids), 7)]
    rows = request["video_data"][0]["precomputed_embeddings"]
    assert torch.equal(torch.cat([chunk for chunk in chunks if chunk is not None]), rows)


def test_the_prefix_cache_knows_questions_apart(case, reader):  # noqa: F811
    """Equal requests have equal hashes; two questions on a video, whose tokens differ, do not."""
    hashes = []
    for question in (QUESTIONS[0], QUESTIONS[1], QUESTIONS[0]):
        items, _, _ = read(reader, requests.prepare(pruned_of(case, Request(question)), case[2]))
        hashes.append([(item.hash, item.pad_value) for item in items])
    assert None not in {value for item in hashes[0] for value in item}
    assert hashes[0] == hashes[2]
    assert hashes[0] != hashes[1]


def test_the_call(case):  # noqa: F811
    """One request and several, as `Engine.generate` takes them apart."""
    import inspect

    from sglang.srt.entrypoints.engine import Engine
    from sglang.srt.managers.io_struct import GenerateReqInput

    request = requests.prepare(pruned_of(case, Request(QUESTIONS[0])), case[2])
    assert set(request) <= set(inspect.signature(Engine.generate).parameters)
    one = GenerateReqInput(**request, sampling_params={"max_new_tokens": 1})
    one.normalize_batch_and_arguments()
    assert one.is_single and one.video_data == request["video_data"]
    two = GenerateReqInput(**requests.together([request, request]), sampling_params={})
    two.normalize_batch_and_arguments()
    assert two.batch_size == 2
    assert two[1].input_ids == request["input_ids"]
    assert two[1].video_data == request["video_data"]
