"""What the user says to the plugin: `--hf-overrides '{"cacovid": {...}}'` and vLLM's own flags.

The overrides travel with the model's configuration into every process of vLLM, on other machines
too, which the environment does not.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from cacovid import methods
from cacovid.errors import InvalidInputError, UnsupportedModelError
from cacovid.methods import Method, PolicyMethod
from cacovid.methods.beside import BESIDE, POLICY_FOLDER
from cacovid.policies.storage import load_policy, policy_class

#: The attribute of the model's configuration.
KEY = "cacovid"

_EXAMPLE = """--hf-overrides '{"cacovid": {"policy": "my-policy"}, "architectures": [...]}'"""


@dataclass(frozen=True)
class PluginSettings:
    """The plugin's settings.

    Args:
        policy: Directory or Hub id of a policy, a method's name that reads nothing but the
            videos' and the question's rows (`"cdpruner"`, `"uniform"`), or `"cacovid"`: the folder
            `policy` in the model's directory.
        feature_cache_gb: Memory of the host, in GiB, that each worker may hold rows of the vision
            tower in for further questions on a video; 0: none are held.
        seed: Of methods that draw.
    """

    policy: str = BESIDE
    feature_cache_gb: float = 1.0
    seed: int = 0

    @classmethod
    def of(cls, hf_config: Any, location: str) -> PluginSettings:
        """The settings that a model's configuration holds.

        Args:
            hf_config: The model's configuration, overrides applied.
            location: The model's directory or Hub id.

        Raises:
            InvalidInputError: for settings that are not known or cannot be.
        """
        given = getattr(hf_config, KEY, None) or {}
        known = [field.name for field in fields(cls)]
        if not isinstance(given, dict) or set(given) - set(known):
            raise InvalidInputError(
                f"the overrides hold {KEY} = {given!r}; expected some of {', '.join(known)}, "
                f"such as {_EXAMPLE}"
            )
        settings = cls(**given)
        if not isinstance(settings.policy, str) or not settings.policy:
            raise InvalidInputError(
                f"policy is {settings.policy!r}; expected a directory, a Hub id or a method's "
                f"name, such as {_EXAMPLE}"
            )
        size = settings.feature_cache_gb
        if isinstance(size, bool) or not isinstance(size, int | float) or size < 0:
            raise InvalidInputError(f"feature_cache_gb is {size!r}; expected GiB, 0 or more")
        if settings.policy != BESIDE:
            return settings
        folder = Path(location) / POLICY_FOLDER
        if not (folder / "config.json").is_file():
            raise InvalidInputError(
                f"there is no policy beside the model ({folder}), and none is named; name one: "
                f"{_EXAMPLE}"
            )
        return cls(str(folder), settings.feature_cache_gb, settings.seed)

    @property
    def names_method(self) -> bool:
        """Whether `policy` is a method's name, not a policy's place."""
        return self.policy.partition(":")[0] in methods.names()

    def reads(self) -> Reading:
        """What the policy or method reads of the text, without loading weights.

        Raises:
            InvalidInputError: for a policy that is not there, or a method that is not known.
            UnsupportedModelError: for a method that cannot run in the engine.
        """
        if self.names_method:
            return Reading(self._method().question_aware, False)
        kind = policy_class(self.policy)
        return Reading(kind.question_aware, kind.reads_prompt)

    def load(self, hidden_size: int, base_model: str | None = None) -> Method:
        """The policy or method, on the CPU, a policy in float32.

        Args:
            hidden_size: `D` of the language model.
            base_model: The model's Hub id or folder; None: it is judged by its hidden size alone.

        Raises:
            InvalidInputError: as `reads`, and for files that are damaged.
            WrongBaseModelError: for a policy of another model.
            UnsupportedModelError: for a method that cannot run in the engine.
        """
        if self.names_method:
            return self._method()
        return PolicyMethod(
            load_policy(self.policy, base_model=base_model, hidden_size=hidden_size)
        )

    def _method(self) -> Method:
        if methods.registry.needs_model(self.policy):
            raise UnsupportedModelError(
                f"method {self.policy!r} takes a Hugging Face model; in vLLM name a policy's "
                f"directory, or a method that reads embeddings alone, such as 'cdpruner'"
            )
        method = methods.get(self.policy)
        needs = sorted(need for need in getattr(method, "needs", ()) if not need.endswith("?"))
        if getattr(method, "inside", False) or needs:
            why = "prunes inside the language model" if not needs else f"needs {', '.join(needs)}"
            raise UnsupportedModelError(
                f"method {self.policy!r} {why}, which vLLM's models do not give; name a policy's "
                f"directory, or a method that reads embeddings alone, such as 'cdpruner'"
            )
        return method


@dataclass(frozen=True)
class Reading:
    """What a policy or method reads of the text.

    Args:
        question_aware: Whether it needs the question.
        whole_prompt: Whether it reads the text around the question too.
    """

    question_aware: bool
    whole_prompt: bool


def default_retention(multimodal_config: Any) -> float:
    """Share of a video's tokens that is kept unless a request says otherwise.

    Args:
        multimodal_config: vLLM's `MultiModalConfig`.

    Raises:
        InvalidInputError: without `--video-pruning-rate`, on which vLLM's handling of pruned
            videos hangs.
    """
    rate = multimodal_config.video_pruning_rate
    if not rate:
        raise InvalidInputError(
            f"--video-pruning-rate is {rate}; the architectures of cacovid need one above 0: the "
            f"share of video tokens to drop, such as 0.9"
        )
    # Rounded: 1 - 0.9 is a hair below a tenth, and budgets are floors.
    return round(1.0 - float(rate), 12)
