"""The projections of an attention layer, for `relax-inplace`: see the README.

They are stored as Hugging Face's Linear stores them, N x K. `prefill` and `decode` multiply by
K x N; `prefill` by the three of them side by side.
"""

from tvm.script import ir as I
from tvm.script import relax as R

HIDDEN = 4096
KEY_VALUE = 1024
PROMPT = 16


@I.ir_module
class Attention:
    @R.function
    def prefill(
        x: R.Tensor((PROMPT, HIDDEN), "float16"),
        q_proj: R.Tensor((HIDDEN, HIDDEN), "float16"),
        k_proj: R.Tensor((KEY_VALUE, HIDDEN), "float16"),
        v_proj: R.Tensor((KEY_VALUE, HIDDEN), "float16"),
        o_proj: R.Tensor((HIDDEN, HIDDEN), "float16"),
    ):
        R.func_attr({"num_input": 1})
        qkv = R.concat((q_proj, k_proj, v_proj))
        w_qkv = R.permute_dims(qkv)
        w_o = R.permute_dims(o_proj)
        parts = R.split(R.matmul(x, w_qkv), [HIDDEN, HIDDEN + KEY_VALUE], axis=1)
        return (R.matmul(parts[0], w_o), parts[1], parts[2])

    @R.function
    def decode(
        x: R.Tensor((1, HIDDEN), "float16"),
        q_proj: R.Tensor((HIDDEN, HIDDEN), "float16"),
        k_proj: R.Tensor((KEY_VALUE, HIDDEN), "float16"),
        v_proj: R.Tensor((KEY_VALUE, HIDDEN), "float16"),
        o_proj: R.Tensor((HIDDEN, HIDDEN), "float16"),
    ):
        R.func_attr({"num_input": 1})
        qkv = R.concat((q_proj, k_proj, v_proj))
        w_qkv = R.permute_dims(qkv)
        w_o = R.permute_dims(o_proj)
        parts = R.split(R.matmul(x, w_qkv), [HIDDEN, HIDDEN + KEY_VALUE], axis=1)
        return (R.matmul(parts[0], w_o), parts[1], parts[2])
