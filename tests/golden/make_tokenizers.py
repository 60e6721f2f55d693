#!/usr/bin/env python3
"""Makes tests/golden/tokenizers/: small tokenizers of every kind that we read, and what texts must become under them.

  make_tokenizers.py            writes the directories beside this file

SentencePiece models are trained and asked through the library (python3-sentencepiece).  tokenizer.json files are trained here and encoded
by a slow definition in plain Python with the `regex` module.  Every directory gets `cases.json`:
  vocab, kind
  cases    text (or hex, where it is no JSON text) -> ids, decoded
  decode   ids -> text, for ids that no text gives: parts of characters, special tokens, ids outside the vocabulary
Invalid UTF-8 is replaced before tokenizing and after decoding as by errors="replace".
"""
import io
import json
import os
import unicodedata
from collections import Counter
from pathlib import Path

import regex
import sentencepiece

HERE = Path(__file__).resolve().parent / "tokenizers"
SPACE = "\u2581"

TEXT = """The miller had three daughters and one old mill. Every morning he opened the gate, and the water came down the hill.
"Why does the wheel turn?" asked the youngest. "Because the water pushes it," said the miller. "And why does the water push?"
He didn't know. They'll find out, he thought; she's clever, and I'm not as young as I've been. We'd better ask the river.
So the three daughters went up the hill, past the stones and the thistles, past 12 sheep and 345 geese, to where the river began.
There was a small spring under a rock. It did not push anything. It only came, and came, and kept coming, day and night.
In 1871 the mill burned down; by 1902 there were 6789 bricks left, and nobody who could say what they had been.
The spring is still there. If you put your hand in it, you feel the same cold that the miller's daughters felt.
for (int i = 0; i < n; i++) {\n    sum += x[i] * y[i];\n\treturn sum;\n}
Caf\u00e9, na\u00efve, cr\u00e8me br\u00fbl\u00e9e; \u043c\u0435\u043b\u044c\u043d\u0438\u0446\u0430 \u0443 \u0440\u0435\u043a\u0438, \u0432\u043e\u0434\u0430 \u0438 \u043a\u043e\u043b\u0435\u0441\u043e; \u6c34\u8f66\u304c\u56de\u308b\u3002\u6c34\u306f\u6d41\u308c\u308b\u3002
The wheel turns, the water runs, the bread is baked, and the children eat it. The end of the story is the water, too.
"""

TEXTS = ["", " ", "  ", "a", "The", " the", "the water", "  the   water    ", "The end.\n", "\n", "\n\n", " \n \n  x", "\t", "\ttab\tend\t",
         "a\r\nb\r\n\r\nc", "don't won't I'LL WE'VE it's IT'S he'd I'm I'M they're 'S", "I'\u017f", "1", "12", "123", "1234567 1902 6789,5",
         "x\u00b2 \u2163 \u0663\u0664", "for (int i = 0; i < n; i++) {\n    sum += x[i];\n}", "caf\u00e9 cafe\u0301 a\u030a\u0323 \u212b \u1e9b\u0323",
         "\u6c34\u8f66\u304c\u56de\u308b", "\u043c\u0435\u043b\u044c\u043d\u0438\u0446\u0430", "\U0001f600 \U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
         "a\u00a0b\u2003c\u3000d", "\u180e x\u180ey", "\u0085x\u2028y", "\ufeffbom", "\u2581", "\u2581 \u2581\u2581a", "<s>", "</s><unk><0x0A>", "<|endoftext|> <|begin|>",
         "...!!!???", " ...  !!", "\u200b\u0301", "the\u0301 \u1100\u1161\u11a8", "\u0627\u0644\u0645\u0627\u0621 \u05de\u05d9\u05dd", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
         "                                         ", "thethethe watwater", "\u00bd\u00fc\u00df \u017f \u212a", "\U0010ffff", TEXT[:400], TEXT[-230:]]
BYTES = [b"\x00", b"a\x00b", b"\xff", b"\xc3", b"caf\xc3", b"\xe2\x82", b"\xe2\x82x", b"\xed\xa0\x80", b"\xf0\x9f\x98", b"\xf4\x90\x80\x80",
         b"\xc0\xaf", b"the \x80\x81\xfe water", b"\xf0\x80\x80\x80", b"\xe2\x82\xe2\x82\xac"]


def cases(encode, decode):
    out = []
    for raw in [t.encode() for t in TEXTS] + BYTES:
        ids = encode(raw.decode("utf-8", errors="replace"))
        plain = True
        try:
            plain = b"\0" not in raw and bool(raw.decode("utf-8") is not None)
        except UnicodeDecodeError:
            plain = False
        out.append({**({"text": raw.decode()} if plain else {"hex": raw.hex()}), "ids": ids, "decoded": decode(ids)})
    return out


def write(name, kind, vocab, encode, decode, loose):
    """loose: id lists for `decode`"""
    c = [x for x in cases(encode, decode) if "\0" not in x["decoded"] or "hex" in x]
    for x in c:     # our JSON reader takes no zero characters
        x["decoded"] = x["decoded"].encode().hex()
    d = [{"ids": ids, "decoded": decode(ids).encode().hex()} for ids in loose]
    lines = ['{"kind": %s, "vocab": %d,' % (json.dumps(kind), vocab), '"cases": [']
    lines += [",\n".join(json.dumps(x) for x in c), "],", '"decode": [', ",\n".join(json.dumps(x) for x in d), "]}"]
    (HERE / name / "cases.json").write_text("\n".join(lines) + "\n")
    print(f"{name:16} {kind:24} {vocab:5} tokens, {len(c)} texts")


# --- SentencePiece ---

def train_sentencepiece(name, **options):
    (HERE / name).mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXT.split("\n")), model_writer=model, unk_id=0, bos_id=1, eos_id=2,
                                             pad_id=-1, minloglevel=2, num_threads=1, **options)
    (HERE / name / "tokenizer.model").write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def sp_bpe():
    sp = train_sentencepiece("sp-bpe", model_type="bpe", vocab_size=384, byte_fallback=True, character_coverage=0.98,
                             normalization_rule_name="identity", add_dummy_prefix=True, remove_extra_whitespaces=False)
    assert sp.get_piece_size() == 384 and [sp.id_to_piece(i) for i in range(3)] == ["<unk>", "<s>", "</s>"]

    def decode(ids):
        raw = b"".join(bytes([int(sp.id_to_piece(i)[3:5], 16)]) if sp.is_byte(i) else sp.id_to_piece(i).replace(SPACE, " ").encode()
                       for i in ids if 0 <= i < 384 and i > 2)
        return (raw[1:] if raw.startswith(b" ") else raw).decode("utf-8", errors="replace")

    for t in TEXTS:     # the definition above is the library's, wherever no byte is out of place
        assert decode(sp.encode(t)) == sp.decode(sp.encode(t)), t
    e = 3 + 0xE2
    write("sp-bpe", "SentencePiece BPE", 384, sp.encode, decode,
          [[], [1], [1, 300, 2, 301], [e], [e, 3 + 0x82], [300, e, 3 + 0x82, 301], [-1, 384, 2147483647, 300], [0, 300], [3 + 0x20, 300]])


def sp_unigram():
    os.chdir(HERE)      # the file carries the name of its rules: a relative one says nothing about this machine
    rules = Path("rules.tmp")
    (HERE / "sp-unigram").mkdir(parents=True, exist_ok=True)
    rules.write_text("".join("\t".join(" ".join(f"{ord(c):X}" for c in x) for x in r) + "\n" for r in
                             [("\u2026", "..."), ("e\u0301", "\u00e9"), ("\u00a0", " "), ("\u3000", " "), ("\t", " "), ("\ufb01", "fi"), ("\u00bd", "1/2")]))
    sp = train_sentencepiece("sp-unigram", model_type="unigram", vocab_size=160, normalization_rule_tsv=str(rules), hard_vocab_limit=False)
    rules.unlink()
    unknown = sp.unk_id()

    def decode(ids):    # an unknown piece is a special token here: it gives nothing
        return sp.decode([i for i in ids if i != unknown and 0 <= i < sp.get_piece_size()])

    write("sp-unigram", "SentencePiece unigram", sp.get_piece_size(), sp.encode, decode, [[], [0, 5], [1, 5, 2], [7, 1, 8, 0]])


# --- tokenizer.json ---

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def letters():
    """GPT-2's spelling of bytes: printable ones as themselves, the others as the characters from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


LETTER = letters()
BYTE = {c: b for b, c in LETTER.items()}


def isolated(pattern, text):
    out, at = [], 0
    for m in regex.finditer(pattern, text):
        out += [text[at:m.start()], m.group()]
        at = m.end()
    return [p for p in out + [text[at:]] if p]


def train_merges(words, n):
    """The usual greedy training; of equally frequent pairs the smaller."""
    words = Counter(tuple(w) for w in words)
    merges = []
    while len(merges) < n:
        pairs = Counter()
        for w, count in words.items():
            for p in zip(w, w[1:]):
                pairs[p] += count
        pair = min((p for p in pairs), key=lambda p: (-pairs[p], p))
        merges.append(pair)
        words = Counter({join(w, pair): c for w, c in words.items()})
    return merges


def join(w, pair):
    out, i = [], 0
    while i < len(w):
        both = i + 1 < len(w) and (w[i], w[i + 1]) == pair
        out.append(w[i] + w[i + 1] if both else w[i])
        i += 2 if both else 1
    return tuple(out)


def apply_merges(parts, rank):
    parts = list(parts)
    while True:
        best = min(((rank.get(p, len(rank)), i) for i, p in enumerate(zip(parts, parts[1:]))), default=(len(rank), 0))
        if best[0] == len(rank):
            return parts
        i = best[1]
        parts[i:i + 2] = [parts[i] + parts[i + 1]]


def special(i, text, is_special=True):
    return {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": is_special}


def save(name, tok):
    (HERE / name).mkdir(parents=True, exist_ok=True)
    (HERE / name / "tokenizer.json").write_text(json.dumps(tok, ensure_ascii=False, indent=None, separators=(",", ":")) + "\n")


def sentencepiece_like(name, normalizer, pre, cut, before, as_pairs):
    """cut: words of a text with blanks as SPACE; before(text): what normalizer and pre-tokenizer make of it, as pieces"""
    merges = train_merges([w for line in TEXT.split("\n") if line for w in cut(SPACE + line.replace(" ", SPACE))], 90)
    merges += [(SPACE, SPACE), (SPACE * 2, SPACE * 2)]
    chars = sorted({c for m in merges for p in m for c in p} | set("?0123456789"))
    names = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + chars + [a + b for a, b in merges]
    vocab = {n: i for i, n in enumerate(dict.fromkeys(names))}
    save(name, {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [special(i, names[i]) for i in range(3)],
                "normalizer": normalizer, "pre_tokenizer": pre, "post_processor": None,
                "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                                                             {"type": "ByteFallback"}, {"type": "Fuse"},
                                                             {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
                "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                          "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False, "vocab": vocab,
                          "merges": [list(m) if as_pairs else " ".join(m) for m in merges]}})
    rank, piece = {m: i for i, m in enumerate(merges)}, {i: n for n, i in vocab.items()}

    def encode(text):
        ids = []
        for word in before(text) if text else []:
            for p in apply_merges(word, rank):
                ids += [vocab[p]] if p in vocab else [vocab[f"<0x{b:02X}>"] for b in p.encode()]
        return ids

    def decode(ids):
        raw = b""
        for i in ids:
            if i in piece and i > 2:
                p = piece[i]
                raw += bytes([int(p[3:5], 16)]) if 3 <= i < 259 else p.replace(SPACE, " ").encode()
        return (raw[1:] if raw.startswith(b" ") else raw).decode("utf-8", errors="replace")

    e = 3 + 0xE2
    write(name, "BPE with byte fallback", len(vocab), encode, decode,
          [[], [0, 1, 2], [1, 270, 2, 280], [e], [e, 3 + 0x82], [270, e, 3 + 0x82, 280], [-1, len(vocab), 270], [3 + 0x20, 270]])


def byte_level(name, pattern, normalizer, pre, vocab_first, ignore_merges, whole, added):
    """vocab_first: ids of the bytes; whole: words that are tokens though no merge makes them; added: (text, special) behind the vocabulary"""
    normal = (lambda t: unicodedata.normalize("NFC", t)) if normalizer else (lambda t: t)
    spell = lambda word: "".join(LETTER[b] for b in word.encode())
    merges = train_merges([spell(w) for w in isolated(pattern, normal(TEXT))], 150)
    names = list(vocab_first) + [a + b for a, b in merges] + [spell(w) for w in whole]
    vocab = {n: i for i, n in enumerate(dict.fromkeys(names))}
    extra = [special(len(vocab) + i, t, s) for i, (t, s) in enumerate(added)]
    if name == "gpt2-json":     # its one special token is in the vocabulary as well
        vocab |= {x["content"]: x["id"] for x in extra}
    save(name, {"version": "1.0", "truncation": None, "padding": None, "added_tokens": extra, "normalizer": normalizer, "pre_tokenizer": pre,
                "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
                "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
                "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
                          "fuse_unk": False, "byte_fallback": False, "ignore_merges": ignore_merges, "vocab": vocab,
                          "merges": [" ".join(m) for m in merges]}})
    rank, piece = {m: i for i, m in enumerate(merges)}, {i: n for n, i in vocab.items()}
    total = max([*piece, *(x["id"] for x in extra)]) + 1
    content = {x["id"]: "" if x["special"] else x["content"] for x in extra}

    def encode(text):
        ids = []
        for word in isolated(pattern, normal(text)):
            parts = spell(word)
            ids += [vocab[parts]] if ignore_merges and parts in vocab else [vocab[p] for p in apply_merges(parts, rank)]
        return ids

    def decode(ids):
        raw = b""
        for i in ids:
            if i in content:
                raw += content[i].encode()
            elif i in piece:
                raw += bytes(BYTE[c] for c in piece[i])
        return raw.decode("utf-8", errors="replace")

    first = extra[0]["id"]
    write(name, "byte-level BPE", total, encode, decode,
          [[], [first], [300, first, 301], [x["id"] for x in extra], [vocab[LETTER[0xE2]]], [vocab[LETTER[0xE2]], vocab[LETTER[0x82]]],
           [300, vocab[LETTER[0xF0]], vocab[LETTER[0x9F]], 301], [-5, total, 300]])


def main():
    HERE.mkdir(parents=True, exist_ok=True)
    sp_bpe()
    sp_unigram()
    dummy = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE},
                                                 {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]}
    words = lambda text: regex.findall(f"{SPACE}?[^{SPACE}]+|{SPACE}", text)
    sentencepiece_like("llama-json", dummy, None, words, lambda t: [SPACE + t.replace(" ", SPACE)], False)
    meta = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True}

    def metaspace(text):
        text = text.replace(" ", SPACE)
        return regex.findall(f"(?s){SPACE}[^{SPACE}]*", text if text.startswith(SPACE) else SPACE + text)

    sentencepiece_like("metaspace-json", None, meta, words, metaspace, True)

    by_letter = sorted(BYTE)        # as in GPT-2: ids of bytes in the order of their letters
    plain = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    bare = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = lambda p: {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False}, bare]}
    byte_level("gpt2-json", GPT2, None, plain, by_letter, False, [], [("<|endoftext|>", True)])
    byte_level("llama3-json", LLAMA3, None, split(LLAMA3), by_letter, True, [" mill", "bricks", "\u6c34\u8f66\u304c\u56de\u308b", "123"],
               [("<|begin|>", True), ("<|end|>", True)])
    byte_level("qwen2-json", QWEN2, {"type": "NFC"}, split(QWEN2), by_letter, False, [], [("<|endoftext|>", True), ("<tool>", False)])


if __name__ == "__main__":
    main()
