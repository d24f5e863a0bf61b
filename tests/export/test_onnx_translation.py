"""Small programs in ONNX give what JAX gives, in ONNX Runtime."""

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from jax import lax

from tood_jax.export.folder import ExportError
from tood_jax.export.onnx_translation.elementwise import element_type
from tood_jax.export.onnx_translation.graph import OPSET
from tood_jax.export.onnx_translation.translate import translate

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((2, 5, 6, 3)).astype(np.float32)
ROW = RANDOM.standard_normal((2, 7)).astype(np.float32)
COUNTS = RANDOM.integers(0, 5, (2, 4)).astype(np.int32)
WHOLE = RANDOM.integers(-9, 9, (2, 7)).astype(np.int32)
KERNEL = RANDOM.standard_normal((3, 3, 3, 4)).astype(np.float32)


def run(function, *arrays):
    """Results of the function in ONNX Runtime, as a list."""
    arguments = {f"x{i}": jax.ShapeDtypeStruct(a.shape, a.dtype) for i, a in enumerate(arrays)}
    expected = [np.asarray(x) for x in function(*arrays)]
    graph = translate(lambda _, *rest: function(*rest), arguments, {})
    info = onnx.helper.make_tensor_value_info
    inputs = [info(name, element_type(a.dtype), a.shape) for name, a in zip(arguments, arrays, strict=True)]
    outputs = [info(f"output_{i}", element_type(a.dtype), a.shape) for i, a in enumerate(expected)]
    made = onnx.helper.make_graph(graph.nodes, "g", inputs, outputs, [*graph.shared.initializers.values()])
    model = onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, dict(zip(arguments, arrays, strict=True))), expected


def take(x, i):
    return jax.vmap(lambda image, index: image[index])(x, i)


def first(x, i):
    return jax.vmap(lambda row, index: row[index[0]])(x, i)


def convolved(x, kernel, strides, padding, groups=1):
    order = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=order, feature_group_count=groups)


BORDER = [(0, 0), (1, 1), (1, 1), (0, 0)]
PROGRAMS = {
    "arithmetic": (lambda x: (x * 2 + x[:, :1], -x / 3, jnp.abs(x), jnp.sign(x), x**2, x**3, jnp.exp(x)), (ROW,)),
    "rounding": (lambda x: (jnp.floor(x), jnp.round(x * 2) / 2, x.astype(jnp.int32)), (ROW,)),
    "integers": (lambda x: (x // 4, x % 4, lax.div(x, 4), lax.rem(x, 4), jnp.clip(x, 0, 5)), (WHOLE,)),
    "logic": (lambda x: ((x > 0) & ~(x > 1) | (x < -1), jnp.isfinite(x), jnp.where(x != 0, 1 / x, 0)), (ROW,)),
    "functions": (lambda x: (jax.nn.sigmoid(x), jnp.log1p(x**2), lax.rsqrt(x**2 + 1), jnp.tanh(x)), (ROW,)),
    "broadcasts": (lambda x: (jnp.ones((2, 7)), x + jnp.arange(7), jnp.zeros((3, 2, 7)) + x), (ROW,)),
    "shapes": (lambda x: (x.reshape(2, -1), x.transpose(3, 0, 2, 1), x[:, ::-1], jnp.stack([x, x], 1)), (X,)),
    "slices": (lambda x: (x[:, 1:4, ::2], *jnp.split(x, 3, 2), jnp.tile(x, (1, 1, 2, 1))), (X,)),
    "pads": (lambda x: (jnp.pad(x, ((0, 0), (1, 2), (0, 1), (0, 0))), lax.pad(x, 2.0, ((-1, 1, 0),) * 4)), (X,)),
    "sums": (lambda x: (x.sum((1, 2)), x.max(3), x.min(), (x > 1).any(1), (x > 0).all(2), x.mean(0)), (X,)),
    "best": (lambda x: (*lax.top_k(x, 3), jnp.argmax(x, axis=1)), (ROW,)),
    "products": (lambda x: (jnp.einsum("bhwc,bhvc->bwhv", x, x), x.reshape(-1, 3) @ KERNEL[0, 0]), (X,)),
    "convolution": (lambda x: (convolved(x, KERNEL, (2, 2), [(1, 1), (0, 2)]),), (X,)),
    "grouped": (lambda x: (convolved(x, KERNEL[:, :, :1, :3], (1, 1), "SAME", groups=3),), (X,)),
    "pool": (lambda x: (lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), BORDER),), (X,)),
    "rows of images": (lambda x, i: (take(x, i), take(x.transpose(0, 2, 1, 3), i)), (X, COUNTS)),
    "columns of images": (lambda x, i: (jax.vmap(lambda image, index: image[:, index])(x, i),), (X, COUNTS)),
    "elements": (lambda x, i: (jnp.take_along_axis(x, i, 1), take(x, i[:, :1]), x[0, i], first(x, i)), (ROW, COUNTS)),
    "one element": (lambda x, i: (jax.vmap(lambda r, j: r.at[j[0]].set(0.0))(x, i),), (ROW, COUNTS)),
    "loop": (lambda x: lax.scan(lambda c, r: (c + r, (c * r, c.sum())), x[0], x)[1], (X,)),
    "counted loop": (lambda x: (lax.fori_loop(0, 4, lambda i, c: c * 2 + i, x),), (ROW,)),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_equals_jax(name):
    function, arrays = PROGRAMS[name]
    found, expected = run(function, *arrays)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_an_operation_without_a_translation_is_named():
    with pytest.raises(ExportError, match="the operation cumsum"):
        run(lambda x: (lax.cumsum(x),), ROW)
    with pytest.raises(ExportError, match="reverse"):
        run(lambda x: (lax.scan(lambda c, r: (c + r, c), x[0], x, reverse=True)[1],), ROW)
