"""Small source-target pairs for transfer learning, without downloads: from near to far, and hard enough to tell apart.

A pair is a backbone pretrained on a source domain of gray 16 x 16 images, and a target domain: letters of other
alphabets, symbols, handwritten digits, shapes, textures or patches of photographs. Stencils are drawn or real; the
difficulty comes from position, lighting, blur and noise, which each image draws at random.

    python -m benchmarks.pairs       # trains all backbones, once, in a few minutes, and prints their accuracy
"""

from benchmarks.pairs import domains
from benchmarks.pairs.pair import Data, Pair
from benchmarks.pairs.rendering import Rendering

__all__ = ["PAIRS", "Data", "Pair"]

_HARDER = Rendering(turn=20, inverted=0.5, noise=(0.05, 0.15))

# From near transfers to far ones.
PAIRS = {
    pair.name: pair
    for pair in (
        Pair("capitals to small letters", domains.CAPITALS, domains.SMALL_LETTERS, "batchnorm"),
        Pair("latin to cyrillic", domains.LETTERS, domains.CYRILLIC, "groupnorm"),
        Pair("latin to greek", domains.LETTERS, domains.GREEK, "batchnorm"),
        Pair("digits 0-4 to 5-9", domains.SMALL_DIGITS, domains.LARGE_DIGITS, "batchnorm"),
        Pair("shapes to other shapes", domains.FIGURES, domains.OTHER_SHAPES, "batchnorm"),
        Pair("everything to digits", domains.EVERYTHING, domains.DIGITS, "groupnorm"),
        Pair("letters to digits", domains.LETTERS, domains.DIGITS, "batchnorm"),
        Pair("letters to symbols", domains.LETTERS, domains.SYMBOLS, "groupnorm"),
        Pair("letters to hard digits", domains.LETTERS, domains.DIGITS, "groupnorm", _HARDER),
        Pair("everything to photographs", domains.EVERYTHING, domains.PHOTOGRAPHS, "groupnorm"),
        Pair("letters to textures", domains.LETTERS, domains.TEXTURES, "batchnorm"),
        Pair("textures to letters", domains.TEXTURES, domains.SMALL_LETTERS, "batchnorm"),
    )
}
