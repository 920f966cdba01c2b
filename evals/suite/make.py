#!/usr/bin/env python3
"""Makes the suite that plans are measured on and never tuned on, from copies of your own of MiniLongBench and LongBench's multi_news.

Writes OUT/dev and OUT/test, which share no text, value or seed: needles-LENGTH.jsonl for `polykv eval --task prompts`, and
text-KIND.txt for `--task ppl`. With --check nothing passes but what SHA256SUMS names, byte for byte. Statements, questions, names
and values are written here or drawn from the seed; what they are hidden in comes from the copies, leaving out the contexts that
../smollm2/texts.py calibrates on (narrativeqa, gov_report, qmsum).
"""

import argparse
import hashlib
import json
import pathlib
import random
import re
import sys

HERE = pathlib.Path(__file__).parent
SUMS = HERE / "SHA256SUMS"
# Samples per family and filler at each length; at the longest one, a family takes the fillers in turns.
COUNTS = {"dev": {500: 1, 1500: 2, 4000: 1}, "test": {500: 1, 1500: 4, 4000: 1, 8000: 0.5}}
# Characters of a token, about.
CHARACTERS = {"prose": 3.9, "dialogue": 3.1}

PLACES = ("Quillhaven,Tarnwick,Orrin Mill,Vessby,Lower Hask,Dunmarrow,Pellow Bay,Ashgrove Ferry,Skerrow,Millbeck Cross,Hollin Reach,Varnsey,"
          "Crane Hollow,Ostrel,Wendlebury Point,Garrow Fell,Thistleford,Nether Quay,Brackenholt,Saltmere,Ilverton,Cobb Island,Marrick Down,"
          "Fennimore,Upper Tansy,Rook Harbour,Lindle,Kestrel Rise,Oxmoor Gate,Penhallick").split(",")
THINGS = ("boat shed,archive room,greenhouse,pump house,west tower,seed vault,tram depot,organ loft,dark room,tool store,ice cellar,"
          "signal box,map cabinet,weather station,print shop,bell tower").split(",")
FIRST = ("Ilse,Marek,Odile,Tobias,Renske,Anselm,Ywain,Petra,Lorcan,Sunniva,Emeric,Zora,Halvard,Nerys,Dario,Mirela,Oskar,Tamsin,Ruben,"
         "Vesna,Caspian,Ingrid,Leopold,Saskia").split(",")
LAST = ("Varga,Holloway,Brandt,Okafor,Lindqvist,Moreau,Tregear,Salonen,Whitlock,Castellan,Drummond,Ferreira,Novak,Ashdown,Kowalczyk,"
        "Penrose,Haldane,Ruiz,Yarrow,Stroud,Bellweather,Ivanic,Thorne,Maddox").split(",")
WORDS = ("amber,falcon,copper,lantern,juniper,marble,otter,velvet,cobalt,thimble,walnut,saffron,pebble,harbour,cinder,maple,raven,silver,"
         "tulip,anchor,meadow,pepper,quartz,willow").split(",")
GOODS = ("candles,walnuts,copper wire,blankets,fishing nets,oil lamps,chess boards,snow shoes,clay pipes,paper kites,violins,saddles,"
         "mirrors,umbrellas,barometers,ladders,pocket watches,dried figs,bicycle tyres,tin whistles,wax seals,rubber boots,roof tiles,"
         "garden shears").split(",")
MONTHS = "January,February,March,April,May,June,July,August,September,October,November,December".split(",")
# Of each family what is stated, what is asked and how the answer starts. {p} is a place, {t} a thing, {v} the value, {o} the value
# that the later statement corrects; "|" parts two statements.
TEMPLATES = {
    "number": [
        ("The water meter of {p} showed {v} at the end of the year.", "What did the water meter of {p} show at the end of the year?",
         "The water meter of {p} showed"),
        ("The harvest of {p} came to {v} kilograms.", "To how many kilograms did the harvest of {p} come?", "The harvest of {p} came to"),
        ("The toll bridge of {p} was crossed {v} times last season.", "How many times was the toll bridge of {p} crossed last season?",
         "The toll bridge of {p} was crossed"),
        ("The library of {p} owns {v} books.", "How many books does the library of {p} own?", "The library of {p} owns"),
        ("The repair of the pier in {p} cost {v} crowns.", "How many crowns did the repair of the pier in {p} cost?",
         "The repair of the pier in {p} cost"),
    ],
    "passkey": [
        ("The pass phrase of the {t} in {p} is {v}.", "What is the pass phrase of the {t} in {p}?", "The pass phrase of the {t} in {p} is"),
        ("The door of the {t} in {p} opens with the code {v}.", "With which code does the door of the {t} in {p} open?",
         "The door of the {t} in {p} opens with the code"),
        ("The alarm of the {t} in {p} is switched off with {v}.", "With what is the alarm of the {t} in {p} switched off?",
         "The alarm of the {t} in {p} is switched off with"),
        ("Whoever guards the {t} in {p} asks for the watchword, which is {v}.", "What is the watchword of whoever guards the {t} in {p}?",
         "The watchword of whoever guards the {t} in {p} is"),
    ],
    "date": [
        ("The ferry of {p} made its first trip on {v}.", "On which date did the ferry of {p} make its first trip?",
         "The ferry of {p} made its first trip on"),
        ("The town hall of {p} burned down on {v}.", "On which date did the town hall of {p} burn down?", "The town hall of {p} burned down on"),
        ("The lease of the {t} in {p} ends on {v}.", "On which date does the lease of the {t} in {p} end?",
         "The lease of the {t} in {p} ends on"),
        ("The clock of the {t} in {p} was last wound on {v}.", "On which date was the clock of the {t} in {p} last wound?",
         "The clock of the {t} in {p} was last wound on"),
    ],
    "name": [
        ("The lighthouse of {p} is looked after by {v}.", "Who looks after the lighthouse of {p}?", "The lighthouse of {p} is looked after by"),
        ("The rowing race of {p} was won by {v}.", "Who won the rowing race of {p}?", "The rowing race of {p} was won by"),
        ("The key of the {t} in {p} was given to {v}.", "To whom was the key of the {t} in {p} given?",
         "The key of the {t} in {p} was given to"),
        ("The new windows of the {t} in {p} were paid for by {v}.", "Who paid for the new windows of the {t} in {p}?",
         "The new windows of the {t} in {p} were paid for by"),
    ],
    "list": [
        ("The cellar of the {t} in {p} is full of {v}.", "What is the cellar of the {t} in {p} full of?",
         "The cellar of the {t} in {p} is full of"),
        ("The market of {p} sells {v}.", "What does the market of {p} sell?", "The market of {p} sells"),
        ("The last ship to {p} carried {v}.", "What did the last ship to {p} carry?", "The last ship to {p} carried"),
        ("The museum of {p} collects {v}.", "What does the museum of {p} collect?", "The museum of {p} collects"),
    ],
    "update": [
        ("The bus to {p} leaves from bay {o}.|Correction: the bus to {p} now leaves from bay {v}.",
         "From which bay does the bus to {p} leave now?", "The bus to {p} now leaves from bay"),
        ("The office of {p} has the telephone number {o}.|The office of {p} has a new telephone number: it is now {v}.",
         "What is the new telephone number of the office of {p}?", "The new telephone number of the office of {p} is"),
        ("The choir of {p} practises in room {o}.|The choir of {p} has moved: it now practises in room {v}.",
         "In which room does the choir of {p} practise now?", "The choir of {p} now practises in room"),
        ("The rent of the {t} in {p} is {o} crowns.|The rent of the {t} in {p} has been changed: it is now {v} crowns.",
         "How many crowns is the rent of the {t} in {p} now?", "The rent of the {t} in {p} is now"),
    ],
}


class Draw(random.Random):
    """Draws that are the same with every version of Python, which promises that of random() alone."""

    def pick(self, items):
        return items[int(self.random() * len(items))]

    def some(self, items, count):
        items = list(items)
        return [items.pop(int(self.random() * len(items))) for _ in range(count)]

    def number(self, least, most):
        return least + int(self.random() * (most - least + 1))


def value(draw, family):
    """A value as it stands in the text, and the answers that have to be found."""
    if family == "passkey":
        first, last = draw.some(WORDS, 2)
        return one(f"{first}-{draw.number(1000, 9999)}-{last}")
    if family == "name":
        return one(f"{draw.pick(FIRST)} {draw.pick(LAST)}")
    if family == "date":
        return one(f"{draw.number(1, 28)} {draw.pick(MONTHS)} {draw.number(1911, 2049)}")
    if family == "list":
        goods = draw.some(GOODS, 3)
        return f"{goods[0]}, {goods[1]} and {goods[2]}", goods
    digits = draw.number(4, 7) if family == "number" else draw.number(3, 4)
    return one(str(draw.number(10 ** (digits - 1), 10**digits - 1)))


def one(text):
    return text, [text]


def hidden(units, statements, places, kind, draw):
    """The text with each statement between two of its units, from 0 (start) to 1 (end); in a dialogue somebody
    says it, in prose it is a paragraph of its own."""
    length = sum(map(len, units))
    texts, at, place = [], 0, iter([*zip(places, statements), (2, "")])
    where, statement = next(place)
    for unit in units:
        while at >= where * length:
            texts.append(f"{draw.pick(FIRST)}: {statement}\n" if kind == "dialogue" else f"\n\n{statement}\n\n")
            where, statement = next(place)
        texts.append(unit)
        at += len(unit)
    return "".join(texts).strip()


def needle(draw, family, kind, length, documents):
    """One sample: a filler of its own, with a statement of its own at a place of its own."""
    stated, asked, start = draw.pick(TEMPLATES[family])
    (found, answers), (old, _) = value(draw, family), value(draw, family)
    names = {"p": draw.pick(PLACES), "t": draw.pick(THINGS), "v": found, "o": old}
    units, size = [], length * CHARACTERS[kind]
    while sum(map(len, units)) < size:
        units += draw.pick(documents)
    while sum(map(len, units)) > size:
        units.pop()
    statements = stated.format(**names).split("|")
    # The first place of two leaves room for the second one.
    places = [0.02 + draw.random() * (0.94 if len(statements) == 1 else 0.6)]
    if len(statements) == 2:
        places.append(places[0] + 0.05 + draw.random() * (0.91 - places[0]))
    if family == "update" and found in old:
        return needle(draw, family, kind, length, documents)
    return {"family": family, "filler": kind, "length": length, "place": round(places[-1], 3),
            "context": hidden(units, statements, places, kind, draw), "question": f"According to the text above: {asked.format(**names)}",
            "lead_in": start.format(**names), "answers": answers}


def needles(part, length, documents):
    count = COUNTS[part][length]
    for family in TEMPLATES:
        for index, kind in enumerate(documents):
            if count < 1 and index != list(TEMPLATES).index(family) % 2:
                continue
            for number in range(max(int(count), 1)):
                yield needle(Draw(f"polykv suite {part} {length} {family} {kind} {number}"), family, kind, length, documents[kind])


def prompts(folder, task):
    return [json.loads(line)["prompt"] for line in (folder / f"{task}.jsonl").read_text().splitlines()]


def between(text, before, after):
    """What stands after the first `before` and before the last `after`, with one kind of line break."""
    return text[text.index(before) + len(before):text.rindex(after)].replace("\r\n", "\n").strip()


def parts(items):
    """Every other item for each part."""
    return {"dev": items[1::2], "test": items[::2]}


def passages(folder):
    """Passages of an encyclopaedia, each once, as sentences: the prose that needles are hidden in."""
    found = {}
    for task in ("hotpotqa", "2wikimqa", "musique"):
        for prompt in prompts(folder, task):
            text = between(prompt, "The following are given passages.\n", "\n\nAnswer the question")
            for passage in re.split(r"(?:^|\n)Passage \d+:\n", text)[1:]:
                found.setdefault(passage.split("\n")[0], passage)
    whole = [text for text in found.values() if len(text) > 600]
    return [re.split(r"(?<=[.!?] )|(?<=\n)", f"{text.strip()}\n\n") for text in whole]


def dialogues(folder):
    """Short chats, each once, as lines."""
    found = {}
    for prompt in prompts(folder, "samsum"):
        for chat in re.findall(r"Dialogue: (.*?)\nSummary: ", prompt.replace("\r\n", "\n"), re.S):
            found.setdefault(chat.strip())
    return [f"{chat}\n\n".splitlines(keepends=True) for chat in found]


def texts(folder, news):
    """The texts that loss is measured on, by kind: what no needle is hidden in."""
    asked = "\n\nAnswer the question based on the given passages"
    papers = [between(prompt, "The following are given passages.\n", asked) for prompt in prompts(folder, "qasper")]
    papers += [between(prompt, "answer briefly.\n\n", "\n\nNow, answer") for prompt in prompts(folder, "multifieldqa_en")]
    code = [between(prompt, "code given below. \n", "Next line of code:") for task in ("lcc", "repobench-p") for prompt in prompts(folder, task)]
    stories = [json.loads(line)["context"].replace("NEWLINE_CHAR", "\n") for line in news.read_text().splitlines()]
    stories = [re.sub(r" *\n[ \n]*", "\n", re.sub(r"Passage \d+:\n", "", story)).strip() for story in stories[:60]]
    return {"papers": papers, "news": stories, "code": code}


def made(folder, news):
    """Names and contents of all files."""
    prose, chats, kinds = parts(passages(folder)), dialogues(folder), texts(folder, news)
    for part in COUNTS:
        # Half of the dialogues is text to measure loss on.
        documents = {"prose": prose[part], "dialogue": parts([chat for number, chat in enumerate(chats) if number % 2])[part]}
        for length in COUNTS[part]:
            lines = [json.dumps(sample) for sample in needles(part, length, documents)]
            yield f"{part}/needles-{length}.jsonl", "\n".join(lines) + "\n"
        for kind, whole in {**kinds, "dialogue": ["".join(chat).strip() for chat in chats[::2]]}.items():
            yield f"{part}/text-{kind}.txt", "\n\n".join(parts(whole)[part]) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("minilongbench", type=pathlib.Path, help="folder of its JSONL files")
    parser.add_argument("news", type=pathlib.Path, help="multi_news.jsonl of LongBench, whose first 60 samples are used")
    parser.add_argument("out", type=pathlib.Path, help="folder for dev/ and test/")
    parser.add_argument("--check", action="store_true", help="fail where a file is not what SHA256SUMS names")
    args = parser.parse_args()
    lines = []
    for name, text in made(args.minilongbench, args.news):
        (args.out / name).parent.mkdir(parents=True, exist_ok=True)
        (args.out / name).write_bytes(text.encode())
        lines.append(f"{hashlib.sha256(text.encode()).hexdigest()}  {name}")
    print("\n".join(lines))
    if args.check and lines != SUMS.read_text().splitlines():
        sys.exit(f"not what {SUMS} names")


if __name__ == "__main__":
    main()
