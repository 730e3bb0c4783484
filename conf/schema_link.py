"""Types and ranges of what happens between a device and the server: wire, profile, radio, privacy."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING


def require(ok: bool, key: str, expected: str, found: object) -> None:
    """Raise ValueError with the key, what was expected and what was found."""
    if not ok:
        raise ValueError(f"{key} must be {expected}, found {found!r}")


def one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless the value is one of the choices."""
    require(value in choices, key, "one of " + ", ".join(choices), value)


def require_seed(key: str, value: int) -> None:
    """Raise ValueError unless every generator takes the seed: PyTorch's and the wire's integers have 64 bits."""
    require(0 <= value < 2**63, key, "from 0 to 2**63 - 1", value)


@dataclass
class WireConfig:
    """How numbers travel."""

    dtype: str = MISSING
    downlink_dtype: str | None = MISSING
    error_feedback: bool = MISSING

    def __post_init__(self) -> None:
        """Check the number types."""
        one_of("wire.dtype", self.dtype, ("fp32", "fp16", "int8", "int4"))
        if self.downlink_dtype is not None:
            one_of("wire.downlink_dtype", self.downlink_dtype, ("fp32", "fp16"))


@dataclass
class ProfileConfig:
    """What the plan believes about the devices."""

    source: str = MISSING
    smoothing: float = MISSING

    def __post_init__(self) -> None:
        """Check the source and the weight."""
        one_of("profile.source", self.source, ("config", "node", "probe"))
        require(0 <= self.smoothing <= 1, "profile.smoothing", "in [0, 1]", self.smoothing)


@dataclass
class RadioConfig:
    """Whether transmissions are only accounted or also waited for; see conf/radio."""

    mode: str = MISSING

    def __post_init__(self) -> None:
        """Check the mode."""
        one_of("radio.mode", self.mode, ("account", "realtime"))


@dataclass
class PrivacyConfig:
    """What a device does to its changes before they leave it."""

    clip_norm: float | None = MISSING
    noise_multiplier: float = MISSING
    delta: float = MISSING
    noise_seed: int | None = MISSING

    def __post_init__(self) -> None:
        """Check ranges, and that there is no noise without a norm to measure it by."""
        require(self.clip_norm is None or self.clip_norm > 0, "privacy.clip_norm", "positive or null", self.clip_norm)
        require(self.noise_multiplier >= 0, "privacy.noise_multiplier", ">= 0", self.noise_multiplier)
        require(0 < self.delta < 1, "privacy.delta", "in (0, 1)", self.delta)
        if self.noise_seed is not None:
            require_seed("privacy.noise_seed", self.noise_seed)
        if self.noise_multiplier > 0:
            require(self.clip_norm is not None, "privacy.clip_norm", "given when there is noise", self.clip_norm)
