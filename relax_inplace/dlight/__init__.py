"""Schedule rules for the kernels of weight transforms, in the style of TVM's dlight."""
