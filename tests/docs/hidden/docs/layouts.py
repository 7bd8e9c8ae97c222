# %% after: builder = relax.BlockBuilder()
tvm.compile(builder.finalize(), "llvm")
Linear().export_tvm({"forward": {"x": nn.spec.Tensor((1, 1), "int8")}})

# %% prints: layout.ggml.interleave: 30 rows given
try:
    layout.ggml.interleave(relax.Var("w", relax.TensorType((30, 36), "uint8")), rows=4, bytes=8)
except layout.LayoutError as error:
    print(error)

# %% after: class AnySize:
tvm.compile(relax_inplace.transform.InplaceTransformParams()(AnySize), "llvm")

# %% after: class Requantised:
tvm.compile(relax_inplace.transform.InplaceTransformParams()(Requantised), "llvm")
