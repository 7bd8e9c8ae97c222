"""Descriptions in units: what is read at once, and what is refused."""

from relax_inplace.relayout.description import Digit, Piece, Relayout
from relax_inplace.relayout.gpu_units import in_units


def parts(out, given, *pieces):
    """Of pieces of one input, or of none; both sizes in bits."""
    return in_units(Relayout(1, pieces, ((0, given), (1, out))))


def moved(*digits, into=0, base=0):
    return Piece(
        tuple(Digit(extent, to, (read,)) for extent, to, read in digits), into, ((0, base),)
    )


def test_the_largest_unit_that_is_one_word():
    (part,) = parts(640, 640, moved((10, 64, -64), (64, 1, 1), base=576))
    assert (part.bits, part.reads[0].bits, part.reads[0].steps) == (64, 64, (-1,))
    (part,) = parts(480, 480, moved((30, 16, -16), (16, 1, 1), base=464))
    assert (part.bits, part.reads[0].bits, part.reads[0].base) == (32, 32, 14)
    (part,) = parts(48, 48, moved((3, 16, -16), (16, 1, 1), base=32))
    assert (part.bits, part.extents, part.steps) == (16, (3,), (1,))


def test_fields_of_one_word_are_read_at_once():
    nibbles = moved((5, 32, 32), (4, 8, 4), (2, 4, 16), (4, 1, 1))
    (part,) = parts(160, 160, nibbles)
    assert (part.bits, [read.bits for read in part.reads]) == (32, [32])


def test_a_word_does_not_go_beyond_the_end():
    """Bytes 0 and 2 of three are in one word of 32 bits, of which there is no fourth byte."""
    found = parts(16, 24, moved((2, 8, 16), (8, 1, 1)))
    assert [(part.bits, [read.bits for read in part.reads]) for part in found] == [(8, [8])]


def test_a_field_does_not_go_beyond_its_word():
    """Nibbles 3 and 4 of a word, of which each byte has one."""
    (part,) = parts(80, 160, moved((5, 16, 32), (2, 8, 4), (8, 1, 1), base=12))
    (read,) = part.reads
    assert (part.bits, read.bits, read.steps) == (16, 32, (1,))
    assert parts(16, 16, moved((2, 8, 4), (4, 1, 1), base=12)) is None


def test_units_that_do_not_fit_the_output():
    (part,) = parts(24, 24, moved((24, 1, 1)))
    assert part.bits == 8


def test_a_piece_that_begins_in_a_unit_and_ends_in_the_next():
    (part,) = parts(64, 64, moved((16, 1, 1), into=8, base=8))
    assert part.bits == 8


def test_a_pattern_is_in_one_unit():
    fill = Piece((Digit(16, 1),), 0, (), fill=0x3C00)
    falling = moved((3, 8, -8), (8, 1, 1), into=16, base=16)
    assert parts(40, 24, fill, falling) is None


def test_digits_that_reach_into_each_other():
    """Places 0, 2, 3, 4, 5 and 7: a place does not say its digits."""
    assert parts(64, 64, moved((2, 24, 24), (3, 16, 16), (8, 1, 1))) is None
    assert parts(64, 64, moved((2, 32, 24), (2, 16, 16), (8, 1, 1))) is not None


def test_parts_of_a_byte():
    low = moved((10, 8, 8), (4, 1, 1))
    high = moved((10, 8, 8), (4, 1, 1), into=4, base=4)
    found = parts(80, 80, low, high)
    assert [part.is_whole for part in found] == [False, False]
    assert {part.bits for part in found} == {8}
