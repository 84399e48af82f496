"""Function bodies of the dialect's ops in what TensorRT has native layers for. ``bodies`` maps an op to its body.

They compute what the dialect's own bodies compute, which stay the specification: ONNX Runtime runs both, and the tests
compare them. TensorRT's parser takes a plugin where its registry has one, and else inlines these.
"""

from mm2c.lower.native.bodies import native_bodies
from mm2c.lower.native.experts import Form as MoeForm

__all__ = ["MoeForm", "native_bodies"]
