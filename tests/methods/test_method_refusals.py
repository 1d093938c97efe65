"""Features, questions and extras that methods refuse to choose by."""

from __future__ import annotations

import pytest
import torch

from cacovid import methods
from cacovid.errors import InvalidInputError

READS_FEATURES = [
    "cdpruner", "divprune", "dpc_knn", "evs", "fastvid", "holitom", "prunevid", "vidcom2",
    "visionzip",
]  # fmt: skip


@pytest.mark.parametrize("name", READS_FEATURES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_features_that_are_no_numbers_are_refused(name, value, make):
    prompt = make.random_prompt([(4, 3, 4), (2, 3, 2)], [1, 2])
    prompt.embeds[prompt.video_index[50], 3] = value
    with pytest.raises(InvalidInputError, match="NaN"):
        methods.get(name)(prompt, 0.3)


@pytest.mark.parametrize("name", ["fewer_frames", "random", "uniform"])
def test_controls_do_not_look_at_the_features(name, make):
    prompt = make.random_prompt([(4, 3, 4)], [1])
    expected = methods.get(name)(prompt, 0.3).keep
    prompt.embeds.fill_(torch.nan)
    assert torch.equal(methods.get(name)(prompt, 0.3).keep, expected)


def test_questions_that_are_no_numbers_are_refused_where_they_are_read(make):
    prompt = make.random_prompt([(4, 3, 4)], [1])
    expected = methods.get("divprune")(prompt, 0.3).keep
    prompt.embeds[prompt.question_index[1]] = torch.nan
    with pytest.raises(InvalidInputError, match="embedding of question token 1 has NaN"):
        methods.get("cdpruner")(prompt, 0.3)
    assert torch.equal(methods.get("divprune")(prompt, 0.3).keep, expected)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("visionzip", "vision_attention"),
        ("visionzip", "vision_keys"),
        ("holitom", "vision_attention"),
        ("fastvid", "vision_pooling_attention"),
    ],
)
def test_extras_that_do_not_fit_are_refused(name, key, make):
    prompt = make.random_prompt([(4, 3, 4), (2, 3, 2)], [1, 2])
    prompt.extras["vision_pooling_attention"] = prompt.extras["vision_attention"].clone()
    method, right = methods.get(name), prompt.extras[key]
    assert len(method(prompt, 0.3).keep) == 17
    for wrong in (right[:-1], right[None], right.tolist()):
        prompt.extras[key] = wrong
        with pytest.raises(InvalidInputError, match=rf"extras\['{key}'\] is .*60 video tokens"):
            method(prompt, 0.3)
    prompt.extras[key] = right.clone()
    prompt.extras[key][7] = torch.nan
    with pytest.raises(InvalidInputError, match=rf"'{key}'\] for video token 7 has NaN"):
        method(prompt, 0.3)
