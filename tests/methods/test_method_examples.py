"""Each method on an example that is worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from cacovid import methods, reference
from cacovid.errors import InvalidInputError


def line(values, make, size=None, question=((1.0,),)):
    """A prompt of one video whose tokens are numbers or short rows."""
    rows = torch.tensor(values)
    if rows.dim() == 1:
        rows = rows[:, None]
    size = size or (1, 1, len(rows))
    words = torch.tensor(question)
    return make.pack([rows.view(*size, -1)], [words.expand(len(words), rows.shape[-1])])


def turned(degrees, lengths):
    """Rows of two numbers at angles to the first axis."""
    radians = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    rows = torch.stack((radians.cos(), radians.sin()), dim=1)
    return (rows * torch.tensor(lengths, dtype=torch.float64)[:, None]).float().tolist()


def test_fewer_frames(make):
    prompt = make.pack([torch.zeros(5, 2, 2, 3)], [torch.zeros(1, 3)])
    # 7 tokens of 5 frames of 4: the first frame, and of the last one positions round(j * 3 / 2).
    assert methods.get("fewer_frames")(prompt, 0.35).keep.tolist() == [0, 1, 2, 3, 16, 18, 19]
    # Frames round(j * 4 / 2): 0, 2, 4.
    assert methods.get("fewer_frames")(prompt, 0.6).keep.tolist() == [*range(4), *range(8, 12),
                                                                     *range(16, 20)]  # fmt: skip


def test_evs(make):
    a, b = [1.0, 0.0], [0.0, 2.0]
    # The second place turns by a right angle in frame 1, the first place in frame 2.
    prompt = line([a, b, a, a, b, a], make, (3, 1, 2))
    method = methods.get("evs")
    scores = method.scores(prompt).token
    assert scores.tolist() == [math.inf, math.inf, 0.0, 1.0, 1.0, 0.0]
    # The first frame, then the earlier of the equal changes.
    assert method(prompt, 0.5).keep.tolist() == [0, 1, 3]
    assert method(prompt, 0.67).keep.tolist() == [0, 1, 3, 4]


def test_evs_spends_less_than_a_frame_on_even_places_of_the_first(make):
    prompt = line([[1.0]] * 18, make, (2, 3, 3))
    # round(j * 8 / 2) of the first frame.
    assert methods.get("evs")(prompt, 3 / 18).keep.tolist() == [0, 4, 8]


def still_prompt(make, repeats=8, scenes=1):
    """Frames of 36 random tokens, each shown several times."""
    generator = torch.Generator().manual_seed(0)
    video = torch.randn(scenes, 6, 6, 896, generator=generator).repeat_interleave(repeats, dim=0)
    return make.pack([video], [torch.zeros(1, 896)])


def test_evs_sees_no_change_in_still_frames(make):
    prompt, method = still_prompt(make), methods.get("evs")
    assert method.scores(prompt).token[36:].unique().tolist() == [0.0]
    assert method(prompt, 0.2).keep.tolist() == list(range(57))


def test_evs_tells_apart_changes_below_the_rounding_of_a_cosine(make):
    video = torch.ones(2, 1, 3, 64)
    video[1, 0, 1, :32] += 1e-4
    video[1, 0, 2, :32] += 1e-5
    changes = methods.get("evs").scores(make.pack([video], [torch.zeros(1, 64)])).token[3:]
    # cos^2 = 1 - (d / 2)^2 to first order: half the share of the variance.
    assert changes[0] == 0.0
    assert changes[1:].tolist() == pytest.approx([1e-8 / 8, 1e-10 / 8], rel=0.02)


def test_divprune(make):
    rows = turned([0, 10, 90, 180, 185], [1, 5, 2, 1, 3])
    prompt = line(rows, make)
    # Nearest others are at 10, 10, 80, 5 and 5 degrees: 90 comes first. From it 90, 80, 90 and 95:
    # then 185, then 0 (90 from 90), then 10 (10 from 0; 180 is 5 from 185).
    method = methods.get("divprune")
    assert method(prompt, 0.2).keep.tolist() == [2]
    assert method(prompt, 0.4).keep.tolist() == [2, 4]
    assert method(prompt, 0.6).keep.tolist() == [0, 2, 4]
    assert method(prompt, 0.8).keep.tolist() == [0, 1, 2, 4]


def test_divprune_begins_with_the_loneliest_also_where_it_is_zero(make):
    # Cosines below 1/2 from the row of zeros, at distance 1/2; of the others, 10 degrees apart, the
    # nearest are far nearer.
    rows = [*turned([0, 10, 20, 30], [1, 5, 2, 1]), [0.0, 0.0], [0.0, 0.0]]
    method = methods.get("divprune")
    prompt = line(rows[:5], make)
    assert method(prompt, 0.2).keep.tolist() == [4]
    assert 4 in method(prompt, 0.4).keep.tolist() and 4 in method(prompt, 0.8).keep.tolist()
    # Two of them are copies, and as lonely as no other is.
    assert 4 not in method(line(rows, make), 1 / 6).keep.tolist()


def test_dpc_knn(make):
    prompt = line([0.0, 1.0, 2.0, 10.0, 11.0, 30.0], make)
    method = methods.get("dpc_knn:3")
    # Smallest three squared distances, the own 0 among them: 0+1+4, 0+1+1, 0+1+4, 0+1+64, 0+1+81,
    # 0+361+400. Nothing is denser than 1, so that it gets the largest distance, 30.
    spread = [5, 2, 5, 65, 82, 761]
    apart = [1, 30, 1, 8, 1, 19]
    expected = [math.log(d) - s / 3 for d, s in zip(apart, spread, strict=True)]
    assert method.scores(prompt).token.tolist() == pytest.approx(expected, rel=1e-6)
    assert method(prompt, 2 / 6).keep.tolist() == [0, 1]
    assert method(prompt, 4 / 6).keep.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("scenes", [1, 2, 4])
def test_dpc_knn_chooses_as_the_reference_where_frames_repeat(make, scenes):
    prompt = still_prompt(make, 8 // scenes, scenes)
    for k in (28, 57, 144):
        expected = reference.density_peaks(prompt.video_embeds, k)
        kept = methods.get("dpc_knn")(prompt, k / 288).keep
        assert kept.tolist() == expected.tolist()


@pytest.mark.parametrize("scale", [1.0, 50.0, 1e3])
def test_dpc_knn_chooses_as_the_reference_where_densities_are_beyond_float64(make, scale):
    video = torch.randn(6, 3, 3, 16, generator=torch.Generator().manual_seed(5)) * scale
    prompt = make.pack([video], [torch.zeros(1, 16)])
    for k in (3, 5, 20):
        expected = reference.density_peaks(prompt.video_embeds, k)
        assert methods.get("dpc_knn")(prompt, k / 54).keep.tolist() == expected.tolist()


def test_vidcom2(make):
    # Channel 1 varies least; on it alone rows of length 1 are +1 or -1.
    rows = [[9.0, 1.0], [-8.0, 2.0], [5.0, -1.0], [7.0, 1.0]]
    prompt = line(rows, make, (2, 1, 2))
    # Signs + + | - +. Mean of the video 1/2, of the frames 1 and 0.
    scores = methods.get("vidcom2").scores(prompt)

    def kernels(squared):
        return sum(math.exp(-squared / (2 * a)) for a in (1 / 8, 1 / 4, 1 / 2, 1, 2))

    near, far = kernels(0.25), kernels(2.25)
    expected = [-(near + kernels(0)), -(near + kernels(0)), -(far + kernels(1)),
                -(near + kernels(1))]  # fmt: skip
    assert scores.token.tolist() == pytest.approx(expected, rel=1e-6)
    assert scores.frame is not None
    assert scores.frame.tolist() == pytest.approx([-near, -(far + near) / 2], rel=1e-6)
    # u differs by far more than 0.01: p = (0, 1). Of 2 tokens a frame at r = 1/2 the quotas are
    # round(2 * 0.25) = 0, raised to 1, and round(2 * 0.75) = 2, half to even: one token too many.
    # The kept one with the highest S is the first.
    assert methods.get("vidcom2")(prompt, 0.5).keep.tolist() == [2, 3]
    assert methods.get("vidcom2")(prompt, 0.75).keep.tolist() == [0, 2, 3]


def test_cdpruner(make):
    rows = [[1.0, 0.0], [2.0, 0.0], [0.6, 0.8], [0.0, 1.0]]
    prompt = line(rows, make, question=[[3.0, 0.0], [1.0, 0.0]])
    # Relevance 1, 1, 0.6, 0. Gains 1, 1, 0.36, 0; after the first token 0, 0, 0.36 - 0.36^2, 0.
    method = methods.get("cdpruner")
    assert method(prompt, 0.25).keep.tolist() == [0]
    assert method(prompt, 0.5).keep.tolist() == [0, 2]
    # Two dimensions are used up: the most relevant one that is left.
    assert method(prompt, 0.75).keep.tolist() == [0, 1, 2]


def test_cdpruner_takes_the_first_of_copies(make):
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        frame = torch.randn(1, 5, 7, 129, generator=generator)
        question = torch.randn(3, 129, generator=generator)
        prompt = make.pack([frame.expand(6, -1, -1, -1)], [question])
        kept = methods.get("cdpruner")(prompt, 12 / 210).keep
        assert len(kept) == 12 and int(kept.max()) < 35


def test_cdpruner_takes_each_videos_own_question(make):
    video = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.8, 0.6]]).view(1, 2, 2, 2)
    questions = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])]
    prompt = make.pack([video, video], questions)
    assert methods.get("cdpruner")(prompt, 0.25).keep.tolist() == [0, 5]


def still_and_turning(make):
    """Four frames of two places: one does not turn, the other turns to and fro."""
    a, b, c = [1.0, 0.0], [3.0, 0.0], [0.0, 1.0]
    return line([a, c, b, a, a, c, b, a], make, (4, 1, 2))


def test_prunevid_averages_what_is_still_and_tops_up(make):
    prompt = still_and_turning(make)
    method = methods.get("prunevid")
    # One segment. The second place: 2 of 6 pairs are alike, the mean cosine is 1/3.
    selection = method(prompt, 5 / 8)
    assert selection.keep.tolist() == [0, 1, 3, 5, 7]
    assert selection.embeds.tolist() == [[2.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    # One more: an averaged one as it is. One less: the last of five equal values is cut.
    more = method(prompt, 6 / 8)
    assert more.keep.tolist() == [0, 1, 2, 3, 5, 7]
    assert more.embeds[:3].tolist() == [[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]]
    assert method(prompt, 4 / 8).keep.tolist() == [0, 1, 3, 5]


def test_prunevid_clusters_sets_above_fourteen(make):
    near = [1.0, -1.0, 0.0, 3.0, -3.0, 6.0, -6.0, 10.0, -19.0]
    far = [1001.0, 999.0, 1003.0, 1000.0, 997.0, 1006.0, 994.0]
    prompt = line([*near, *far], make, (1, 4, 4))
    # Of 7 neighbours: 0 and 1000 have the least spread, 0+1+1+9+9+36+36 = 92 each, so that none
    # is denser and both are at the largest distance. Means of the clusters: -9/9 and 1000.
    selection = methods.get("prunevid")(prompt, 2 / 16)
    assert selection.keep.tolist() == [2, 12]
    assert selection.embeds.flatten().tolist() == [-1.0, 1000.0]


@pytest.mark.parametrize("retention", [0.5, 0.9])
def test_prunevid_keeps_the_only_still_token_of_a_segment(make, retention):
    video = torch.randn(8, 6, 6, 32, generator=torch.Generator().manual_seed(0))
    video[:, 2, 3] = video[0, 2, 3]
    # Alone in its set, place 15 has no separation; the sets' shares leave room for it.
    selection = methods.get("prunevid")(make.pack([video], [torch.zeros(1, 32)]), retention)
    at = selection.keep.tolist().index(15)
    torch.testing.assert_close(selection.embeds[at], video[0, 2, 3])


def test_holitom(make):
    a, b, c, d = [1.0, 0.0], [3.0, 0.0], [0.0, 1.0], [0.0, 4.0]
    prompt = line([a, c, b, d, a, a], make, (3, 1, 2))
    # Still: both places from frame 0 to 1, the first from 1 to 2. Frames 0-1 save 2 tokens, 0-2
    # save 2 as well: the last frame stays alone. Averages at tokens 0 and 1.
    attention = torch.tensor([0.5, 0.4, 0.9, 0.9, 0.1, 0.2])
    prompt.extras["vision_attention"] = attention
    method = methods.get("holitom")
    selection = method(prompt, 0.5)
    assert selection.keep.tolist() == [0, 1, 5]
    assert selection.embeds.tolist() == [[2.0, 0.0], [0.0, 2.5], [1.0, 0.0]]
    # Beyond both: the averaged-away token of the most attention (the first of two), as it is.
    more = method(prompt, 5 / 6)
    assert more.keep.tolist() == [0, 1, 2, 4, 5]
    assert more.embeds[2].tolist() == b
    # Below the averages: the better one.
    assert method(prompt, 1 / 6).keep.tolist() == [0]


def test_fastvid(make):
    rows = [[10.0, 0.0], [0.0, 1.0], [0.0, 2.0], [0.0, 3.0], [0.0, 4.0]]
    prompt = line(rows, make, (1, 1, 5))
    # One salient token (68 from the mean (2, 2); the others 5, 4, 5, 8) and one anchor: of the four
    # others the inner two are densest (0+1+1+4), both at the largest distance, the first is taken.
    # 1, 3 and 4 merge into it: 0.6 * 2 + 0.4 * (1 + 3 + 4) / 3.
    selection = methods.get("fastvid")(prompt, 2 / 5)
    assert selection.keep.tolist() == [0, 2]
    assert selection.embeds.flatten().tolist() == pytest.approx([10.0, 0.0, 0.0, 1.2 + 3.2 / 3])
    # Attention of the pooling head goes before the distance: 3 is salient. Of 0, 1, 2 and 4 (all
    # four are neighbours) 2 has the least spread, 104+1+0+4; 1 has 101+0+1+9.
    prompt.extras["vision_pooling_attention"] = torch.tensor([0.1, 0.2, 0.3, 0.9, 0.4])
    assert methods.get("fastvid")(prompt, 2 / 5).keep.tolist() == [2, 3]


def test_fastvid_makes_anchors_of_others_alone(make):
    salient = [[1.0, 2.1], [1.0, 2.2], [1.0, 2.3]]
    prompt = line([*salient, *[[1.0, 2.0]] * 7], make, (1, 1, 10))
    prompt.extras["vision_pooling_attention"] = torch.tensor([0.7, 0.9, 0.8] + [0.0] * 7)
    # The others have no separation; the first two of them are the anchors, nothing merges into
    # what is salient.
    selection = methods.get("fastvid")(prompt, 0.5)
    assert selection.keep.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(selection.embeds[:3], torch.tensor(salient))


def test_visionzip(make):
    prompt = line([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], make, (1, 1, 6))
    prompt.extras["vision_attention"] = torch.tensor([0.1, 0.9, 0.8, 0.2, 0.7, 0.3])
    prompt.extras["vision_keys"] = torch.ones(6, 2)
    # round(4 * 54 / 64) = 3 dominant; of the others 0, 3, 5 the first is the target.
    selection = methods.get("visionzip")(prompt, 4 / 6)
    assert selection.keep.tolist() == [0, 1, 2, 4]
    assert selection.embeds.flatten().tolist() == pytest.approx([41 / 3, 2.0, 4.0, 16.0])


def test_visionzip_merges_by_keys(make):
    prompt = line([float(i) for i in range(14)], make, (1, 2, 7))
    prompt.extras["vision_attention"] = torch.arange(14.0)
    keys = torch.zeros(14, 2)
    keys[torch.tensor([0, 3]), 0] = torch.tensor([1.0, 5.0])
    keys[torch.tensor([1, 2]), 1] = torch.tensor([2.0, 3.0])
    prompt.extras["vision_keys"] = keys
    # 10 dominant, tokens 4 to 13; of 0 to 3 the targets are 0 and 2. 3 is like 0, 1 like 2.
    selection = methods.get("visionzip")(prompt, 12 / 14)
    assert selection.keep.tolist() == [0, 2, *range(4, 14)]
    assert selection.embeds.flatten().tolist() == [1.5, 1.5, *map(float, range(4, 14))]


def test_visionzip_merges_into_the_first_of_equal_targets(make):
    prompt = line([float(i) for i in range(138)], make, (1, 1, 138))
    prompt.extras["vision_attention"] = 138.0 - torch.arange(138.0)
    key = torch.randn(1, 151, generator=torch.Generator().manual_seed(0))
    prompt.extras["vision_keys"] = key.repeat(138, 1)
    # 38 of 45 are dominant; of 38 to 137 the targets are 38 + floor(j * 100 / 7).
    selection = methods.get("visionzip")(prompt, 45 / 138)
    targets = [38, 52, 66, 80, 95, 109, 123]
    assert selection.keep.tolist() == [*range(38), *targets]
    merged = [38, *(i for i in range(38, 138) if i not in targets)]
    expected = [sum(merged) / len(merged), *targets[1:]]
    assert selection.embeds[38:].flatten().tolist() == pytest.approx(expected)


def test_oracle(make):
    prompt = line([0.0] * 10, make)
    evidence = torch.zeros(10, dtype=torch.bool)
    evidence[torch.tensor([3, 7])] = True
    prompt.extras["evidence"] = evidence
    method = methods.get("oracle")
    assert method(prompt, 0.2, seed=4).keep.tolist() == [3, 7]
    four = [set(method(prompt, 0.4, seed=seed).keep.tolist()) for seed in range(6)]
    assert all({3, 7} < kept for kept in four) and len(set(map(frozenset, four))) > 1
    assert method(prompt, 0.1).keep.tolist()[0] in (3, 7)
    del prompt.extras["evidence"]
    with pytest.raises(InvalidInputError, match="evidence"):
        method(prompt, 0.2)
