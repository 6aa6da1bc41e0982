"""Write the hypernym table of the 1,000 ImageNet classes from WordNet 3.0.

    apt-get install wordnet-base
    python tools/write_imagenet_hypernyms.py [--wordnet /usr/share/wordnet] [--out src/fmwiss/foundation]

The table holds the classes' synsets and all their ancestors, one a line: ``"n" + offset: [words, hypernyms]``.
ImageNet's ids are WordNet 3.0's offsets, so no mapping is needed. WordNet's licence is written beside it, as it asks.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from timm.data import ImageNetInfo

from fmwiss.files import write_atomically

Synset = tuple[list[str], list[str]]


def read_nouns(path: Path) -> dict[str, Synset]:
    """Parse WordNet's ``data.noun`` (format: man 5 wndb) into id -> (words, ids of the direct hypernyms)."""
    synsets = {}
    for line in path.read_text(encoding="ascii").splitlines():
        if line.startswith("  "):  # the licence, at the head of the file
            continue
        fields = line.split(" | ")[0].split()
        n_words = int(fields[3], 16)
        words = [word.replace("_", " ") for word in fields[4 : 4 + 2 * n_words : 2]]
        pointers = fields[5 + 2 * n_words :]
        hypernyms = [f"n{offset}" for kind, offset in zip(pointers[::4], pointers[1::4], strict=False) if kind in "@@i"]
        synsets[f"n{fields[0]}"] = (words, hypernyms)
    return synsets


def read_licence(path: Path) -> str:
    """The licence at the head of ``data.noun``, without its line numbers."""
    lines = path.read_text(encoding="ascii").splitlines()
    return "".join(f"{line[4:].strip()}\n" for line in lines if line.startswith("  "))


def with_ancestors(synsets: dict[str, Synset], leaves: list[str]) -> dict[str, Synset]:
    """The leaves and everything above them, ordered by id."""
    reached: set[str] = set()
    waiting = list(leaves)
    while waiting:
        synset = waiting.pop()
        if synset not in reached:
            reached.add(synset)
            waiting.extend(synsets[synset][1])
    return {synset: synsets[synset] for synset in sorted(reached)}


def write(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    print(f"{path}: {len(text)} characters")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"), help="folder that holds data.noun")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "src/fmwiss/foundation")
    arguments = parser.parse_args()
    nouns = arguments.wordnet / "data.noun"
    if not nouns.is_file():
        parser.error(f"{nouns} is missing; install WordNet 3.0 (Debian: apt-get install wordnet-base)")
    table = with_ancestors(read_nouns(nouns), ImageNetInfo("imagenet-1k").label_names())
    rows = ",\n".join(f"{json.dumps(synset)}: {json.dumps(entry)}" for synset, entry in table.items())
    write(arguments.out / "imagenet_hypernyms.json", f"{{\n{rows}\n}}\n")
    write(arguments.out / "imagenet_hypernyms.LICENSE", read_licence(nouns))


if __name__ == "__main__":
    main()
