#!/usr/bin/env python3
"""Minimal pairs made of a text: its sentences, and the same with one thing wrong.

  scripts/pairs_from_text.py TEXT [--from-byte 0] [--bytes 0] [--words 5-40] [--seed 1] >pairs.jsonl

For `minimal_pairs` of eval: a model that has kept its grammar finds what was written more likely than what was not.  A text that the model has not seen gives as many pairs as it
has sentences, in your own domain: they tell smaller differences apart than some thousand sentences of a benchmark.  A line of the text is a paragraph (lines that are wrapped give pieces of sentences); what
stands in quotation marks, and what stands before or behind it in its sentence, is left out.  A sentence gives at most one pair of each set:

  be, have, do    is/are, was/were; has/have; does/do
  case            he/him, she/her, I/me, we/us, they/them
  reflexive       himself/themselves, herself/themselves, myself/ourselves, itself/themselves
  article         a/an
  demonstrative   this/these
  order           two neighbours change places

Both have the same number of words, and nothing is drawn but the place (by --seed).  A changed sentence may be good English by chance ("this sheep", "these sheep"), and abbreviations
that are not known here end a sentence too soon: that is for all models alike.
"""
import argparse
import json
import os
import random
import re
import sys

SETS = {
    "be": [("is", "are"), ("was", "were")],
    "have": [("has", "have")],
    "do": [("does", "do")],
    "case": [("he", "him"), ("she", "her"), ("I", "me"), ("we", "us"), ("they", "them")],
    "reflexive": [("himself", "themselves"), ("herself", "themselves"), ("myself", "ourselves"), ("itself", "themselves")],
    "article": [("a", "an")],
    "demonstrative": [("this", "these")],
}


def swaps(pairs):
    out = {}
    for one, other in pairs:
        out.setdefault(one, other)
        out.setdefault(other, one)
    return out


def key(word):
    return word if word == "I" else word.lower() if word.islower() or len(word) == 1 or word[1:].islower() else ""


def put(words, i, other):
    upper = other == "I" or i == 0 or words[i][0].isupper() and words[i] != "I"
    return words[:i] + [other[0].upper() + other[1:] if upper else other] + words[i + 1:]


SENTENCE = re.compile(r"(?:^|(?<=[.!?] )|(?<=[.!?][\"'] ))[A-Z][^.!?\"]*[a-z][.!?](?= |$)")
TITLE = re.compile(r"\b(Mr|Mrs|Ms|Dr|St|Messrs|Mme|Mlle|Capt|Col|Gen|Prof|Rev|Hon|No|vs|etc)\. ?$")


def sentences(text, least, most):
    for paragraph in text.split("\n"):
        for m in SENTENCE.finditer(paragraph):
            s = m.group()
            if least <= len(s.split(" ")) <= most and "  " not in s and not TITLE.search(s) and not TITLE.search(paragraph[: m.start()]):
                yield s


def pairs_of(sentence, rng):
    words = sentence.split(" ")
    for name, rule in SETS.items():
        to = swaps(rule)
        places = [i for i, w in enumerate(words) if key(w) in to]
        if places:
            i = rng.choice(places)
            yield name, put(words, i, to[key(words[i])])
    inner = [i for i in range(1, len(words) - 2) if words[i].isalpha() and words[i + 1].isalpha() and words[i] != words[i + 1] and
             words[i] != "I" and words[i + 1] != "I"]
    if inner:
        i = rng.choice(inner)
        yield "order", words[:i] + [words[i + 1], words[i]] + words[i + 2:]


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("text")
    args.add_argument("--from-byte", type=int, default=0, help="leave out what stands before")
    args.add_argument("--bytes", type=int, default=0, help="read so many; 0: all")
    args.add_argument("--words", default="5-40", help="of a sentence, least-most")
    args.add_argument("--seed", type=int, default=1)
    a = args.parse_args()
    if not re.fullmatch(r"\d+-\d+", a.words):
        args.error("--words: expected LEAST-MOST, found '%s'" % a.words)
    least, most = (int(n) for n in a.words.split("-"))
    with open(a.text, "rb") as f:
        if a.from_byte:
            f.seek(a.from_byte)
        text = (f.read(a.bytes) if a.bytes else f.read()).decode("utf-8", "ignore")
    if a.from_byte:
        text = text[text.find("\n") + 1:]
    rng, count, stem = random.Random(a.seed), {}, os.path.splitext(os.path.basename(a.text))[0]
    for sentence in sentences(text, least, most):
        for name, words in pairs_of(sentence, rng):
            n = count[name] = count.get(name, 0) + 1
            print(json.dumps({"id": "%s/%s/%05d" % (stem, name, n), "set": name, "good": sentence, "bad": " ".join(words)}))
    if not count:
        sys.exit("%s: no sentence of %d to %d words that any of the rules can change" % (a.text, least, most))
    print("; ".join("%s %d" % x for x in sorted(count.items())), file=sys.stderr)


if __name__ == "__main__":
    main()
