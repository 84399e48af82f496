"""e4m3 (1 sign, 4 exponent, 3 fraction bits; bias 7; no infinities; 0x7f and 0xff are NaN) by bit arithmetic.

sm_80 has no conversion instructions for 8-bit floats; there the kernels read and write such data as u8 and
convert with decode and encode. Format: "FP8 Formats for Deep Learning" (arXiv 2209.05433), table 1.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def decode(code):
    """u8 of any shape → bf16, exact for the 254 finite codes; the two NaN codes become NaN.

    The seven bits below the sign, moved to where f32 keeps exponent and fraction, read as the wanted value
    times 2^(7 - 127), and that also where the e4m3 number is subnormal, since the f32 is then subnormal too.
    """
    bits = code.to(tl.uint32)
    magnitude = bits & 0x7F
    value = ((magnitude << 20) | ((bits & 0x80) << 24)).to(
        tl.float32, bitcast=True
    ) * 1.329227995784916e36  # 2^120
    return tl.where(magnitude == 0x7F, float("nan"), value).to(tl.bfloat16)


@triton.jit
def decode_f16(code):
    """u8 of any shape → f16, exact for the 254 finite codes; the two NaN codes become NaN. As decode: the seven bits
    where f16 keeps exponent and fraction are the wanted value times 2^(7 - 15).
    """
    bits = code.to(tl.uint16)
    magnitude = bits & 0x7F
    value = ((magnitude << 7) | ((bits & 0x80) << 8)).to(tl.float16, bitcast=True) * 256.0
    return tl.where(magnitude == 0x7F, float("nan"), value).to(tl.float16)


@triton.jit
def encode(value):
    """f32 of any shape → u8: to the nearest, ties to even, beyond ±448 to ±448, NaN to 0x7f; -0 keeps its sign.

    The same bits as cvt.rn.satfinite.e4m3x2.f32 of sm_89 gives.
    """
    bits = value.to(tl.uint32, bitcast=True)
    sign = (bits >> 24) & 0x80
    magnitude = tl.minimum(tl.abs(value), 448.0)
    raw = magnitude.to(tl.uint32, bitcast=True)
    # Normal numbers (from 2^-6): add a bit less than half of the last kept place, and its own bit for the ties.
    normal = ((raw + 0x7FFFF + ((raw >> 20) & 1)) >> 20) - 960  # (127 - 7) << 3
    # Below, one unit is 2^-9, which is the last place of f32 numbers from 2^14: the addition rounds.
    subnormal = (magnitude + 16384.0).to(tl.uint32, bitcast=True) - 0x46800000
    code = tl.where(raw < 0x3C800000, subnormal, normal) | sign  # 0x3C800000 = 2^-6
    return tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7F, code).to(tl.uint8)
