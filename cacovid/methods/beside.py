"""Methods of policies that are stored beside a model's weights: `cacovid`, `score`, `hybrid`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cacovid.errors import InvalidInputError
from cacovid.methods.hybrid import HybridMethod
from cacovid.methods.policy import PolicyMethod

#: Folders in a model's directory: the default policy; others have `-NAME` behind it.
POLICY_FOLDER = "policy"
SCORE = "policy-score"

#: A policy beside the model's weights is used without being named, and has this name.
BESIDE = "cacovid"


def policy_beside(model: Any, variant: str = "") -> PolicyMethod:
    """`cacovid`: the default policy beside a model; `cacovid:NAME`: another one there.

    Args:
        model: The model; its directory holds `policy`, or `policy-NAME`.
        variant: `NAME`; empty: the default.

    Raises:
        InvalidInputError: if it is not there; the others are listed.
        WrongBaseModelError: if it is for another model.
    """
    place = getattr(model, "name_or_path", "") or "."
    stored = policies_beside(Path(place))
    name = f"{BESIDE}:{variant}" if variant else BESIDE
    if name not in stored:
        known = f"; there are {', '.join(stored)}" if stored else ""
        raise InvalidInputError(
            f"there is no policy {name!r} beside the model {type(model).__name__} ({place})"
            f"{known}; train one (cacovid train) and give its directory"
        )
    return PolicyMethod(_load(model, stored[name].name, name), name=name)


def policies_beside(location: Path) -> dict[str, Path]:
    """Policies stored in a model's directory: `policy` as `cacovid`, `policy-NAME` as
    `cacovid:NAME`.

    Args:
        location: The directory; anything else has none.
    """
    found = {}
    for path in sorted(location.glob(f"{POLICY_FOLDER}*/config.json")):
        folder = path.parent.name
        if folder == POLICY_FOLDER:
            found[BESIDE] = path.parent
        elif folder.startswith(f"{POLICY_FOLDER}-"):
            found[f"{BESIDE}:{folder.removeprefix(f'{POLICY_FOLDER}-')}"] = path.parent
    return found


def score_beside(model: Any) -> PolicyMethod:
    """`score`: the `SurprisePolicy` beside a model, one top-k over the video.

    Args:
        model: The model; its directory holds `policy-score`.

    Raises:
        InvalidInputError: if there is none, or it is no question-blind policy.
        WrongBaseModelError: if it is for another model.
    """
    policy = _load(model, SCORE, "score")
    if policy.question_aware:
        raise InvalidInputError(
            f"{SCORE} beside the model holds a {type(policy).__name__}; method 'score' expects a "
            f"question-blind SurprisePolicy. Name its directory instead"
        )
    return PolicyMethod(policy, name="score")


def hybrid_beside(model: Any, weight: float | str = 1.0) -> HybridMethod:
    """`hybrid`: a control, the default policy beside a model with `score` as a prior.

    Args:
        model: The model; its directory holds `policy` and `policy-score`.
        weight: Of the prior; 0: the policy alone.

    Raises:
        InvalidInputError: if one of them is not there, or for a weight below 0.
        WrongBaseModelError: if one is for another model.
    """
    prior = score_beside(model).policy
    name = "hybrid" if float_or_none(weight) == 1.0 else f"hybrid:{weight}"
    return HybridMethod(_load(model, POLICY_FOLDER, "hybrid"), prior, weight, name)


def float_or_none(value: float | str) -> float | None:
    """The number that a setting says, or None."""
    try:
        return float(value)
    except ValueError:
        return None


def _load(model: Any, folder: str, method: str) -> Any:
    from cacovid.policies import load_policy

    location = Path(getattr(model, "name_or_path", "") or ".") / folder
    if not (location / "config.json").is_file():
        raise InvalidInputError(
            f"method {method!r} needs a trained policy in the model's directory, and there is no "
            f"{location}; train one (cacovid train, docs/score.md) and put its folder there, or "
            f"name its directory in place of the method"
        )
    return load_policy(location, base_model=model).to(next(model.parameters()).device)
