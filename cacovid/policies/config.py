"""What every policy's configuration holds, and its JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

from cacovid.errors import InvalidInputError


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Settings that every policy has.

    Args:
        base_model: Name of the model that the policy was trained for; None: not said.
        policy_share: `alpha`, share of the budget that the scores choose; chosen on validation and
            stored with the policy.
        max_frame_ratio: Limit on the share of one frame's tokens; None: `1.5 * retention`.
        retention: Share of the tokens to keep where none is asked for, as `cacovid calibrate`
            chose it; None: not chosen.
    """

    base_model: str | None = None
    policy_share: float = 0.5
    max_frame_ratio: float | None = None
    retention: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.policy_share <= 1.0:
            raise InvalidInputError(
                f"policy_share is {self.policy_share}; expected a number in [0, 1]"
            )
        self.require_above_zero("max_frame_ratio", "retention")
        if self.retention is not None and self.retention > 1.0:
            raise InvalidInputError(f"retention is {self.retention}; expected a share in (0, 1]")

    def require_positive(self, *names: str) -> None:
        """Refuses settings that are no positive integers.

        Raises:
            InvalidInputError: naming the setting.
        """
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InvalidInputError(f"{name} is {value!r}; expected a positive integer")

    def require_above_zero(self, *names: str) -> None:
        """Refuses settings that are neither a number above 0 nor None.

        Raises:
            InvalidInputError: naming the setting.
        """
        for name in names:
            value = getattr(self, name)
            if value is not None and not 0.0 < value < float("inf"):
                raise InvalidInputError(f"{name} is {value!r}; expected a number above 0")

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON has them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The configuration that `to_dict` wrote; entries of later releases are refused.

        Raises:
            InvalidInputError: for an entry that is missing or not known.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        given = {name: value for name, value in values.items() if name != "policy_type"}
        unknown = sorted(set(given) - known)
        if unknown:
            raise InvalidInputError(
                f"the policy's config.json holds {', '.join(unknown)}, which {cls.__name__} does "
                f"not know; expected {', '.join(sorted(known))}. A later release wrote it?"
            )
        try:
            return cls(**given)
        except TypeError as error:
            raise InvalidInputError(
                f"the policy's config.json does not make a {cls.__name__}: {error}"
            ) from error
