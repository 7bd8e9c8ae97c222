"""The layouts in numpy, from their definitions: whole arrays of codes, one step after the other."""

import numpy as np

# -- codes in bytes and words, the first in the lowest bits -------------------------------------


def unpacked(packed, bits):
    """Codes along the last axis, as uint8: (..., n) of b bits become (..., n * b / bits)."""
    unsigned = packed.view(f"uint{8 * packed.itemsize}")
    per = 8 * packed.itemsize // bits
    codes = [unsigned >> (bits * place) & ((1 << bits) - 1) for place in range(per)]
    return np.stack(codes, axis=-1).reshape(*packed.shape[:-1], -1).astype("uint8")


def packed(codes, bits, dtype):
    """The inverse of :func:`unpacked`."""
    unsigned = np.dtype(f"uint{8 * np.dtype(dtype).itemsize}")
    per = 8 * unsigned.itemsize // bits
    columns = codes.reshape(*codes.shape[:-1], -1, per).astype(unsigned)
    words = np.zeros(columns.shape[:-1], unsigned)
    for place in range(per):
        words += columns[..., place] << unsigned.type(bits * place)
    return words.view(dtype)


# -- tiles --------------------------------------------------------------------------------------


def tiles(weight, rows, columns):
    height, width = weight.shape
    down, across = -(-height // rows), -(-width // columns)
    padded = np.zeros((down * rows, across * columns), weight.dtype)
    padded[:height, :width] = weight
    out = np.empty((down, across, rows, columns), weight.dtype)
    for a in range(down):
        for b in range(across):
            out[a, b] = padded[a * rows : (a + 1) * rows, b * columns : (b + 1) * columns]
    return out


def vnni(weight):
    neighbours = 4 // weight.itemsize
    k_first = np.ascontiguousarray(weight.T)
    parts = [k_first[place::neighbours] for place in range(neighbours)]
    return np.stack(parts, axis=-1)


# -- GGML ---------------------------------------------------------------------------------------


def interleaved(weight, block, rows, chunk, size):
    scale = 1 if block == "mxfp4" else 2
    height, blocks = weight.shape[0], weight.shape[1] // size
    out = []
    for first in range(0, height, rows):
        for b in range(blocks):
            group = weight[first : first + rows, b * size : (b + 1) * size]
            for row in group:
                out += list(row[:scale])
            codes = group[:, scale:] ^ 0x88 if block == "q4_0" else group[:, scale:]
            for start in range(0, size - scale, chunk):
                for row in codes:
                    out += list(row[start : start + chunk])
    return np.array(out, "uint8").reshape(height // rows, blocks, rows * size)


# -- FasterTransformer --------------------------------------------------------------------------

ROWS = {
    4: [first + 2 * i for i in range(4) for first in (0, 1, 8, 9, 16, 17, 24, 25)],
    8: [first + 2 * i for i in range(4) for first in (0, 1, 8, 9)],
}


def mixed_gemm(codes, arch, bits):
    shape = codes.shape
    matrix = unpacked(codes, bits)  # K x N
    if arch >= 75:
        height, width = matrix.shape
        order, columns = ROWS[bits], 16 // bits
        matrix = matrix.reshape(-1, len(order), width)[:, order].reshape(height, width)
        matrix = matrix.T.reshape(width // columns, columns, height // 64, 64)
        matrix = matrix.transpose(0, 2, 1, 3)
    words = matrix.reshape(-1, 32 // bits)
    words = np.concatenate([words[:, 0::2], words[:, 1::2]], axis=1)
    biased = (words.astype("int32") + (1 << (bits - 1))) % (1 << bits)
    return packed(biased, bits, "int8").reshape(shape)


# -- AWQ and GPTQ -------------------------------------------------------------------------------


def awq_matrix(words):
    """Numbers of eight columns in each word; those of the first four are the even ones."""
    codes = unpacked(words, 4).reshape(words.shape[0], -1, 2, 4)
    return codes.transpose(0, 1, 3, 2).reshape(words.shape[0], -1)


def awq_groups(qweight, qzeros, scales):
    codes, zeros = awq_matrix(qweight), awq_matrix(qzeros)
    return packed(codes.T, 4, "uint32"), packed(zeros, 4, "uint32").T, scales.T


def gptq_groups(qweight, qzeros, scales, bits):
    codes = unpacked(np.ascontiguousarray(qweight.T), bits)  # N x K
    zeros = unpacked(qzeros, bits)  # K / g x N
    return packed(codes, bits, "uint32"), packed(zeros, bits, "uint32").T, scales.T


# -- requantising -------------------------------------------------------------------------------


def numbers_of_groups(codes, scales):
    """N x K of q4f16_1."""
    steps = unpacked(codes, 4).astype("float32") - np.float32(7)
    return steps * np.repeat(scales.astype("float32"), 32, axis=1)


def numbers_of_columns(codes, scales):
    """N x K of row-major int4 with a scale per column."""
    matrix = unpacked(codes, 4).astype("int32").T
    return np.where(matrix < 8, matrix, matrix - 16) * scales.astype("float32")[:, None]


def requantized(codes, scales):
    numbers = numbers_of_groups(codes, scales)
    columns = (np.abs(numbers).max(axis=1) / np.float32(8)).astype("float16")
    wide = columns.astype("float32")[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        rounded = np.rint(numbers / wide)
    matrix = np.where(wide > 0, np.clip(rounded, -8, 7), 0).astype("int8").T
    return packed((matrix & 15).view("uint8"), 4, "int8"), columns
