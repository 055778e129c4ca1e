"""Small transfers that need nothing from the network and are a real test: from near to far, and far from the ceiling.

A pair is a backbone trained on some classes of pictures, 16 x 16 and grey, and the classes it is to move to: letters of
other alphabets, symbols, handwritten digits, shapes, textures, patches of photographs. Stencils are drawn or real; what
makes them hard is position, light, blur and noise, which each picture draws anew.

    python -m benchmarks.pairs       # trains all backbones, a few minutes once, and says how good they are
"""

from benchmarks.pairs import worlds
from benchmarks.pairs.looks import Look
from benchmarks.pairs.pair import Data, Pair

__all__ = ["PAIRS", "Data", "Pair"]

_HARDER = Look(turn=20, inverted=0.5, noise=(0.05, 0.15))

# From near to far.
PAIRS = {
    pair.name: pair
    for pair in (
        Pair("capitals to small letters", worlds.CAPITALS, worlds.SMALL_LETTERS, "batchnorm"),
        Pair("latin to cyrillic", worlds.LETTERS, worlds.CYRILLIC, "groupnorm"),
        Pair("latin to greek", worlds.LETTERS, worlds.GREEK, "batchnorm"),
        Pair("digits 0-4 to 5-9", worlds.SMALL_DIGITS, worlds.LARGE_DIGITS, "batchnorm"),
        Pair("shapes to other shapes", worlds.FIGURES, worlds.OTHER_SHAPES, "batchnorm"),
        Pair("everything to digits", worlds.EVERYTHING, worlds.DIGITS, "groupnorm"),
        Pair("letters to digits", worlds.LETTERS, worlds.DIGITS, "batchnorm"),
        Pair("letters to symbols", worlds.LETTERS, worlds.SYMBOLS, "groupnorm"),
        Pair("letters to hard digits", worlds.LETTERS, worlds.DIGITS, "groupnorm", _HARDER),
        Pair("everything to photographs", worlds.EVERYTHING, worlds.PHOTOGRAPHS, "groupnorm"),
        Pair("letters to textures", worlds.LETTERS, worlds.TEXTURES, "batchnorm"),
        Pair("textures to letters", worlds.TEXTURES, worlds.SMALL_LETTERS, "batchnorm"),
    )
}
