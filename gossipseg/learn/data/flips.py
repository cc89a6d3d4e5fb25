"""Which axes of a training patch are mirrored: training.flip_axes, and what class names say. Torch-free.

An axis is named by what it means in the task's images:
- 2-D: `rows`, `columns`. `rows` is the array's first axis, which counts the rows of a PNG or JPEG: mirrored,
  the picture stands upside down. `columns` is the second: mirrored, left and right change places. Of a 2-D
  NIfTI or DICOM file they are its own first and second axis (i, j).
- 3-D with task.orientation: `left-right`, `anterior-posterior`, `superior-inferior`, wherever in the array.
- 3-D without: the `first`, `second`, `third` axis of the file.

`auto` mirrors all axes, unless a class name holds a word for a direction: mirrored, the anterior part of an
organ lies where the posterior one does, and is still labelled anterior. Then left-right alone is mirrored,
where an orientation tells which axis that is and no class name speaks of it; else none is. The body is nearly
alike on both sides; another axis mirrored takes away what tells the direction: of the hippocampus, whose
anterior end lies lower, superior-inferior costs 0.018 of validation Dice (docs/research/tables.md).

- A word ends at blanks, punctuation, digits and in camelCase: neither `bright` nor `infarct` holds one.
- A long word is also found where it is glued to three letters or more: `leftlung`, `superiorfrontal`.
- Two classes whose names differ in one letter alone, l or r, speak of left-right: `LV` and `RV`, `lkid` and
  `rkid`. The letter stands at an end of its word, or within a short one that is an abbreviation. Teeth that
  do so (`UL1` and `UR1`) speak of superior-inferior where others differ in u or l (`UL1` and `LL1`).
- `post` counts beside a class with `ant` alone, `rt` beside `lt`: else they are post-op and pre-RT.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from gossipseg.learn.params import TaskParams, TrainingParams

LEFT_RIGHT, ANTERIOR_POSTERIOR, SUPERIOR_INFERIOR = "left-right", "anterior-posterior", "superior-inferior"
ANATOMICAL = (LEFT_RIGHT, ANTERIOR_POSTERIOR, SUPERIOR_INFERIOR)
PICTURE = ("rows", "columns")
NUMBERED = ("first", "second", "third")
_LETTERS = {"LR": LEFT_RIGHT, "AP": ANTERIOR_POSTERIOR, "SI": SUPERIOR_INFERIOR}
NAMES_SHOWN = 4

# Dorsal, ventral, rostral and caudal mean another axis in the brain than in the trunk; proximal and distal
# may mean any, as the limb lies. Medial, lateral, inner and outer are no directions here: they are relative
# to a midline or a middle, which is mirrored too. Nor are frontal or ascending, which are names of parts.
_WORDS = {
    "left right l r lt rt lh rh": (LEFT_RIGHT,),
    "sinister sinistra sinistrum dexter dextra dextrum": (LEFT_RIGHT,),
    "links linke linker linkes linken linkem rechts rechte rechter rechtes rechten rechtem": (LEFT_RIGHT,),
    "gauche gauches droit droite droits droites": (LEFT_RIGHT,),
    "sinistro sinistri sinistre destro destra destri destre": (LEFT_RIGHT,),
    "izquierdo izquierda derecho derecha esquerdo esquerda direito direita": (LEFT_RIGHT,),
    "anterior posterior anterius posterius antero postero ant post": (ANTERIOR_POSTERIOR,),
    "front back rear anterioris posterioris": (ANTERIOR_POSTERIOR,),
    "vordere vorderer vorderes vorderen vorderem vorn vorne": (ANTERIOR_POSTERIOR,),
    "hintere hinterer hinteres hinteren hinterem hinten": (ANTERIOR_POSTERIOR,),
    "anterieur anterieure anterieurs anterieures": (ANTERIOR_POSTERIOR,),
    "posterieur posterieure posterieurs posterieures": (ANTERIOR_POSTERIOR,),
    "anteriore anteriori posteriore posteriori": (ANTERIOR_POSTERIOR,),
    "superior inferior superius inferius supero infero sup inf": (SUPERIOR_INFERIOR,),
    "superioris inferioris superiore superiori inferiore inferiori": (SUPERIOR_INFERIOR,),
    "superieur superieure superieurs superieures": (SUPERIOR_INFERIOR,),
    "inferieur inferieure inferieurs inferieures": (SUPERIOR_INFERIOR,),
    "obere oberer oberes oberen oberem oben oberlappen oberkiefer": (SUPERIOR_INFERIOR,),
    "untere unterer unteres unteren unterem unten unterlappen unterkiefer": (SUPERIOR_INFERIOR,),
    "upper lower top bottom cranial cranialis cranio cephalad": (SUPERIOR_INFERIOR,),
    "dorsal ventral dorsalis ventralis dorso ventro": (ANTERIOR_POSTERIOR, SUPERIOR_INFERIOR),
    "rostral caudal rostralis caudalis rostro caudo": (ANTERIOR_POSTERIOR, SUPERIOR_INFERIOR),
    "proximal distal proximalis distalis": ANATOMICAL,
}
MEANING: dict[str, tuple[str, ...]] = {w: axes for words, axes in _WORDS.items() for w in words.split()}
"""Word for a direction, without accents → the axes that it may mean."""
_ONLY_BESIDE = {"post": "ant", "rt": "lt"}
"""Word → the word that some class name must hold, or it means something else: post-op, radiotherapy."""
_SHORT = frozenset({"l", "r", "lt", "rt", "lh", "rh"})
"""Beside a digit or an apostrophe these are something else: the vertebra L1, l'aorte."""
_STEMS = "antero|postero|supero|infero|dorso|ventro|rostro|caudo|cranio|medio|latero|baso|apico"
_ENDS = (
    "anterior|posterior|superior|inferior|dorsal|ventral|rostral|caudal|cranial|proximal|distal|medial|lateral"
    "|median|central|basal|apical|septal"
)
_COMPOUND = re.compile(f"(?:{_STEMS})+(?:{_ENDS})")
"""Such as posterolateral; neither caudoputamen nor craniopharyngioma."""
_PIECE = re.compile(f"{_STEMS}|{_ENDS}")
_LONG = "left|right|superior|inferior|anterior|posterior|upper|lower|rostral|caudal|dorsal|ventral|cranial"
_GLUED_AHEAD = re.compile(f"({_LONG})(.{{3,}})")
_GLUED_BEHIND = re.compile(f"(.{{3,}})({_LONG})")
"""Three letters, for bright, upright, cleft, flower and supper end so too."""
_ORDINARY_TEXT = (
    "leftover leftovers rightful righteous rightness uppercase uppercut lowercase lowering superiority "
    "inferiority copyright outright downright forthright birthright playwright shipwright wheelwright "
    "eyebright follower swallower shallower mellower yellower hollower sunflower cauliflower wallflower "
    "wildflower safflower snowblower intracranial extracranial transcranial pericranial endocranial "
    "epicranial neurocranial subcranial supracranial"
)
_ORDINARY = frozenset(_ORDINARY_TEXT.split())
"""Words that begin or end like a direction and hold none."""
_ORDINARY_PAIRS_TEXT = (
    "*iver *oad *ock *ake *ice *ight *amp *ed *ip *ib *ung *ead *ain *aw *ash *ays *ot *obe *ump *ust "
    "*oot *ink *ack *ate *id *ift *egion *ace *oom *ope c*own g*ass f*esh b*ood f*ame c*oud p*ay f*y "
    "b*ight po*e fi*e ti*e coi* hai* stee* pai* pea* dea* hea* rea* sou*"
)
_ORDINARY_PAIRS = frozenset(_ORDINARY_PAIRS_TEXT.split())
"""Words that are other words with l and with r, as glass and grass."""
SHORT_WORD = 5
_TOOTH = re.compile(r"(?<![^\W\d_])([ul])[lr](?=[ _-]?[1-8](?!\d))")
_CAMEL = re.compile(r"(?<=[^\W\d_A-Z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z]{2})")
_WORD = re.compile(r"[^\W\d_]+")
_BESIDE = re.compile(r"[\d'’]")


@dataclass(frozen=True, slots=True)
class Flips:
    """What is mirrored, each axis with probability ½, and why."""

    names: tuple[str, ...]
    """In the order of the array's axes."""
    axes: tuple[int, ...]
    """Axes of the array, counted from 0 without the channel."""
    reason: str
    doubt: str = ""
    """What axes chosen by hand do to a class whose name holds a direction; empty where nothing is wrong."""


def resolve(task: TaskParams, training: TrainingParams) -> Flips:
    """The axes that are mirrored under these settings, which `flips_problem` has found nothing wrong with."""
    known = axis_names(task)
    spoken = spoken_axes(task)
    if training.augment == "none":
        return Flips((), (), "training.augment is none")
    if training.flip_axes == "auto":
        names, reason, doubt = _automatic(known, spoken), _why(task, spoken), ""
    else:
        chosen = _chosen(known, training.flip_axes)
        names, reason = tuple(n for n in known if n in chosen), "training.flip_axes says so"
        doubt = _doubt(task, names, spoken)
    return Flips(names, tuple(map(known.index, names)), reason, doubt)


def axis_names(task: TaskParams) -> tuple[str, ...]:
    """What the axes of a training patch are called, in the array's order."""
    if task.spatial_dims == 2:
        return PICTURE
    if task.orientation is None:
        return NUMBERED
    return tuple(next(axis for letters, axis in _LETTERS.items() if c in letters) for c in task.orientation)


def flips_problem(task: TaskParams, training: TrainingParams) -> tuple[str, str, object, str] | None:
    """What is wrong with training.flip_axes: (problem, key, value, remedy), or None."""
    given, known, key = training.flip_axes, axis_names(task), "training.flip_axes"
    words = () if not isinstance(given, str) else ("auto", "all", "none")
    names = (given,) if isinstance(given, str) else given
    for name in names:
        if name not in (*known, *words):
            problem = f"is not one of {', '.join((*words, *known))}"
            return problem, key, name, _remedy(task, name, known)
    if len(set(names)) < len(names):
        return "names an axis twice", key, list(names), "Name each axis once."
    return None


def spoken_axes(task: TaskParams) -> dict[str, list[str]]:
    """Anatomical axis → the names of the classes that speak of it; the background is none."""
    names = [name for value, name in sorted(task.labels.items()) if value != 0]
    words = {word for name in names for word in _words(name)}
    sides = _left_and_right(names)
    jaws = _upper_and_lower(names) if any(_TOOTH.search(_plain(name).lower()) for name in sides) else set()
    found: dict[str, list[str]] = {}
    for name in names:
        axes = directions(name, words)
        axes |= {LEFT_RIGHT} if name in sides else set()
        axes |= {SUPERIOR_INFERIOR} if name in jaws else set()
        for axis in axes:
            found.setdefault(axis, []).append(name)
    return {axis: found[axis] for axis in ANATOMICAL if axis in found}


def directions(name: str, beside: Collection[str] = ()) -> set[str]:
    """The anatomical axes that a name speaks of by itself, where the class names hold the words `beside`."""
    own = set(_words(name))
    known = own.union(beside)
    counted = {word for word in own if _ONLY_BESIDE.get(word, word) in known}
    return {axis for word in counted for axis in MEANING.get(word, ())}


def _plain(name: str) -> str:
    """Without accents, however they are encoded."""
    return "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))


def _words(name: str) -> Iterator[str]:
    spaced = _CAMEL.sub(" ", _plain(name))
    for match in _WORD.finditer(spaced):
        word = match[0].lower()
        around = spaced[max(0, match.start() - 1) : match.start()] + spaced[match.end() : match.end() + 1]
        if word in _SHORT and _BESIDE.search(around):
            continue
        yield from _PIECE.findall(word) if _COMPOUND.fullmatch(word) else _unglued(word)


def _unglued(word: str) -> list[str]:
    if word in MEANING or word in _ORDINARY:
        return [word]
    if ahead := _GLUED_AHEAD.fullmatch(word):
        return [ahead[1], *_unglued(ahead[2])]
    if behind := _GLUED_BEHIND.fullmatch(word):
        return [*_unglued(behind[1]), behind[2]]
    return [word]


def _left_and_right(names: Iterable[str]) -> set[str]:
    """The names of which another is the same but for one letter, l here and r there."""
    return _pairs((name, key, letter) for name in names for key, letter in _side_letters(name))


def _side_letters(name: str) -> Iterator[tuple[str, str]]:
    """(The name without a letter l or r that may stand for a side, that letter)."""
    cut = _CAMEL.sub("\0", _plain(name))
    for match in _WORD.finditer(cut):
        word = match[0]
        for at, letter in enumerate(word.lower()):
            if letter in "lr" and _may_be_a_side(word, at):
                i = match.start() + at
                yield f"{_key(cut[:i])}\0{_key(cut[i + 1 :])}", letter


def _key(text: str) -> str:
    return text.replace("\0", "").casefold()


def _may_be_a_side(word: str, at: int) -> bool:
    if f"{word[:at]}*{word[at + 1 :]}".lower() in _ORDINARY_PAIRS:
        return False
    abbreviation = len(word) <= SHORT_WORD and (word.isupper() or not set(word.lower()) & set("aeiouy"))
    return at in (0, len(word) - 1) or abbreviation


def _upper_and_lower(names: Iterable[str]) -> set[str]:
    """The names of teeth of which another is the same but for u here and l there."""
    marked = ((name, _plain(name).lower()) for name in names)
    teeth = ((name, text, match) for name, text in marked if (match := _TOOTH.search(text)))
    return _pairs((name, f"{text[: m.start()]}\0{text[m.start() + 1 :]}", m[1]) for name, text, m in teeth)


def _pairs(marked: Iterable[tuple[str, str, str]]) -> set[str]:
    """The names, of (name, rest of the name, letter), whose rest comes with both letters."""
    by_rest: dict[str, dict[str, set[str]]] = {}
    for name, rest, letter in marked:
        by_rest.setdefault(rest, {}).setdefault(letter, set()).add(name)
    both = (found for found in by_rest.values() if len(found) == 2)
    return {name for found in both for group in found.values() for name in group}


def _automatic(known: tuple[str, ...], spoken: Collection[str]) -> tuple[str, ...]:
    if not spoken:
        return known
    return (LEFT_RIGHT,) if LEFT_RIGHT in known and LEFT_RIGHT not in spoken else ()


def _chosen(known: tuple[str, ...], given: str | tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(given, str):
        return {"all": known, "none": ()}.get(given, (given,))
    return given


def _why(task: TaskParams, spoken: dict[str, list[str]]) -> str:
    if not spoken:
        return "no class name speaks of a direction"
    text = f"class names speak of {_and(spoken)} ({_classes(spoken)})"
    if task.spatial_dims == 2:
        return f"{text}, and of a 2-D image nothing says which axis that is"
    return text if task.orientation else f"{text}, and without task.orientation no axis is known to be that"


def _doubt(task: TaskParams, names: tuple[str, ...], spoken: dict[str, list[str]]) -> str:
    known = axis_names(task)
    if known in (PICTURE, NUMBERED):
        hit = spoken if names == known else {}  # of fewer axes the one that is spoken of may be left out
    else:
        hit = {axis: classes for axis, classes in spoken.items() if axis in names}
    return f"mirrored, class names that speak of {_and(hit)} are wrong ({_classes(hit)})" if hit else ""


def _remedy(task: TaskParams, name: str, known: tuple[str, ...]) -> str:
    if name in ("auto", "all", "none"):
        return f"Write it without brackets, flip_axes: {name}, or name axes alone."
    if name in ANATOMICAL and task.spatial_dims == 2:
        return "Write rows or columns: of a 2-D image nothing says which anatomical axis they are."
    if name in ANATOMICAL:
        return "Set task.orientation, RAS say, so that the axis is known; or number the file's axes so."
    if name in NUMBERED and task.spatial_dims == 3:
        return f"With task.orientation {task.orientation} write {known[NUMBERED.index(name)]} for it."
    return f"Write auto, or a list of axes such as [{', '.join(known[:2])}]."


def _and(parts: Iterable[str]) -> str:
    return " and ".join(parts)


def _classes(spoken: dict[str, list[str]]) -> str:
    names = list(dict.fromkeys(name for classes in spoken.values() for name in classes))
    return ", ".join(names[:NAMES_SHOWN]) + (" …" if len(names) > NAMES_SHOWN else "")
