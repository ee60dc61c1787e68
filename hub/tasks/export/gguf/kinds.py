"""The kinds of GGUF files: what is typed as `quant=`, and llama.cpp's number and type for each. Nothing here imports numpy.

Numbers are those of `llama_ftype` (llama.h) and `ggml_type` (ggml.h) in llama.cpp. Files hold them, so they never change.
"""

from dataclasses import dataclass
from enum import IntEnum

from hub.errors import ConfigError, did_you_mean


class TensorType(IntEnum):
    """Storage of one tensor, with ggml's number for it."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39


T = TensorType

BLOCKS: dict[TensorType, tuple[int, int]] = {
    T.F32: (1, 4),
    T.F16: (1, 2),
    T.BF16: (1, 2),
    T.I8: (1, 1),
    T.I16: (1, 2),
    T.I32: (1, 4),
    T.I64: (1, 8),
    T.F64: (1, 8),
    T.Q4_0: (32, 18),
    T.Q4_1: (32, 20),
    T.Q5_0: (32, 22),
    T.Q5_1: (32, 24),
    T.Q8_0: (32, 34),
    T.Q2_K: (256, 84),
    T.Q3_K: (256, 110),
    T.Q4_K: (256, 144),
    T.Q5_K: (256, 176),
    T.Q6_K: (256, 210),
    T.IQ2_XXS: (256, 66),
    T.IQ2_XS: (256, 74),
    T.IQ3_XXS: (256, 98),
    T.IQ1_S: (256, 50),
    T.IQ4_NL: (32, 18),
    T.IQ3_S: (256, 110),
    T.IQ2_S: (256, 82),
    T.IQ4_XS: (256, 136),
    T.IQ1_M: (256, 56),
    T.TQ1_0: (256, 54),
    T.TQ2_0: (256, 66),
    T.MXFP4: (32, 17),
}
"""Weights in a block of each type, and the bytes of the block."""

FLOATS = (T.F32, T.F16, T.BF16)
"""Types that are quantized from, and not to."""


LIMITS = {"q8_0": 0.05, "q6_k": 0.15, "q5_k_m": 0.3, "q5_k_s": 0.3, "q5_1": 0.3, "q5_0": 0.3}
"""Kind -> largest divergence in nats per token. Of SmolLM2 (135M), where fewer bits cost the most, q8_0 has 0.008, q5_k_m 0.08,
q4_k_m 0.095: about four times these."""

LIMIT_OF_FEW_BITS = 0.5
"""Largest divergence in nats per token for kinds of fewer bits than those of `LIMITS`."""


@dataclass(frozen=True)
class Kind:
    """A kind of file, such as q4_k_m: most of its tensors have one type, some have another."""

    name: str
    file_type: int
    """Number in `general.file_type`."""

    tensor_type: TensorType
    """Of most tensors."""

    needs_imatrix: bool = False
    """It has tensors of so few bits that they are noise without an importance matrix."""

    @property
    def limit_nats(self) -> float | None:
        """Largest KL(tuned || file) in nats per token that passes. None: it must be the model itself."""
        return LIMITS.get(self.name, LIMIT_OF_FEW_BITS) if self.is_quantized else None

    @property
    def is_quantized(self) -> bool:
        """Whether its weights are in blocks of few bits."""
        return self.tensor_type not in FLOATS


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("f32", 0, T.F32),
        Kind("f16", 1, T.F16),
        Kind("bf16", 32, T.BF16),
        Kind("q8_0", 7, T.Q8_0),
        Kind("q6_k", 18, T.Q6_K),
        Kind("q5_k_m", 17, T.Q5_K),
        Kind("q5_k_s", 16, T.Q5_K),
        Kind("q5_1", 9, T.Q5_1),
        Kind("q5_0", 8, T.Q5_0),
        Kind("q4_k_m", 15, T.Q4_K),
        Kind("q4_k_s", 14, T.Q4_K),
        Kind("q4_1", 3, T.Q4_1),
        Kind("q4_0", 2, T.Q4_0),
        Kind("iq4_nl", 25, T.IQ4_NL),
        Kind("iq4_xs", 30, T.IQ4_XS),
        Kind("q3_k_l", 13, T.Q3_K),
        Kind("q3_k_m", 12, T.Q3_K),
        Kind("q3_k_s", 11, T.Q3_K),
        Kind("iq3_m", 27, T.IQ3_S),
        Kind("iq3_s", 26, T.IQ3_S),
        Kind("iq3_xs", 22, T.IQ3_S, needs_imatrix=True),
        Kind("iq3_xxs", 23, T.IQ3_XXS, needs_imatrix=True),
        Kind("q2_k", 10, T.Q2_K),
        Kind("q2_k_s", 21, T.Q2_K, needs_imatrix=True),
        Kind("iq2_m", 29, T.IQ2_S, needs_imatrix=True),
        Kind("iq2_s", 28, T.IQ2_XS, needs_imatrix=True),
        Kind("iq2_xs", 20, T.IQ2_XS, needs_imatrix=True),
        Kind("iq2_xxs", 19, T.IQ2_XXS, needs_imatrix=True),
        Kind("iq1_m", 31, T.IQ1_M, needs_imatrix=True),
        Kind("iq1_s", 24, T.IQ1_S, needs_imatrix=True),
        Kind("tq2_0", 37, T.TQ2_0),
        Kind("tq1_0", 36, T.TQ1_0),
        Kind("mxfp4_moe", 38, T.MXFP4),
    )
}
"""All kinds by name, from the most bits to the fewest."""


def find_kind(name: str, has_imatrix: bool = False) -> Kind:
    """The kind of a name.

    Args:
        name: as typed, in any case.
        has_imatrix: whether there will be an importance matrix.

    Raises:
        ConfigError: there is no such kind, or it needs an importance matrix and there is none.
    """
    kind = KINDS.get(name.lower())
    if kind is None:
        allowed = ", ".join(KINDS)
        raise ConfigError(f"quant={name}: there is no such kind of GGUF file.{did_you_mean(name, KINDS)} Allowed: {allowed}")
    if kind.needs_imatrix and not has_imatrix:
        raise ConfigError(
            f"quant={kind.name} has so few bits that its weights are noise without an importance matrix. Add imatrix=train, "
            "or take q4_k_m"
        )
    return kind
