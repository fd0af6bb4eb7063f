"""C comments: a declaration becomes the comment that says what the function takes and returns.

size_t read_dawn(const char * path, int limit);
-> /* read_dawn takes path (pointer to const char), limit (int) and returns size_t. */
"""

from random import Random

from benchmarks.skill_data.skill import Row, Skill, distinct
from lorica.quickstart.phrasings import Split
from lorica.quickstart.words import Vocabulary, vocabulary

VERBS = ("read", "write", "open", "close", "find", "get", "set", "add", "copy", "free", "init", "count", "is", "make")
PLAIN = ("int", "long", "char", "double", "float", "size_t", "unsigned int", "uint8_t", "bool")
POINTED = ("char", "const char", "void", "const void", "int", "double", "struct {name}", "const struct {name}", "FILE")


def draw(split: Split, rng: Random) -> Row:
    words = vocabulary(split)
    name = f"{rng.choice(VERBS)}_{words.value(rng)}"
    names = dict.fromkeys(words.text_column(rng) for _ in range(rng.choice((0, 1, 1, 2, 2, 3))))
    taken = [(_type(words, rng), each) for each in names]
    result = "void" if rng.random() < 0.2 else _type(words, rng)
    declared = ", ".join(f"{kind} {each}" for kind, each in taken) or "void"
    said = ", ".join(f"{each} ({in_words(kind)})" for kind, each in taken) or "nothing"
    returned = "nothing" if result == "void" else in_words(result)
    prompt = f"{result} {name}({declared});\n"
    return Row.exact(prompt, f"/* {name} takes {said} and returns {returned}. */")


def in_words(kind: str) -> str:
    pointed = kind.removesuffix(" *")
    return kind if pointed == kind else f"pointer to {pointed}"


def _type(words: Vocabulary, rng: Random) -> str:
    if rng.random() < 0.5:
        return rng.choice(PLAIN)
    return f"{rng.choice(POINTED).format(name=words.value(rng))} *"


SKILL = Skill(
    name="c",
    says="a declaration in C becomes a comment in words",
    apart="names of functions, parameters and structures",
    measure="the comment, to the character",
    steps=300,
    rows=distinct("c", draw),
)
