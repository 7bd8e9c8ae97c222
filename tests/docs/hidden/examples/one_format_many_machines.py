# %% before: LiftInplaceTransformParams()(mod)
import relax_inplace
from examples import decoder

tiny = decoder.Config(hidden=128, intermediate=192, layers=2, heads=2, kv_heads=1, vocab=128)
mod = decoder.decoder(tiny, "kn")
