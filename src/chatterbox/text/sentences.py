"""Where a sentence ends.

Owns: the rule for sentence ends, decided one character at a time from what has been read so far; the words that it
reads: abbreviations, sentence openers, dates and conjunctions of the languages that are written with spaces.
Does not know: tokens, lengths, utterances.
"""

from __future__ import annotations

import re
from collections.abc import Iterator


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Abbreviations stand without their last full stop. Something always follows these:
LEADING = _words("""
    mr mrs ms mx dr prof gen col sgt capt lt cmdr adm rev hon messrs e.g i.e cf viz vs ca approx
    hr frl z.b d.h u.a s.o s.u v.a bzw ggf evtl inkl vgl dipl ing lic mme mlle mgr sra srta sig dott p.ej
    dhr mevr bijv np tzn ul т.е т.к т.н ул пгт проф डॉ श्री
""")
# These end a sentence only before one of `STARTERS`:
OPEN = _words("""
    st mt jr sr inc ltd co corp bros dept univ govt est ave blvd rd sq ft lbs al ed eds trans sen rep gov pres
    mio mrd str tel abb fr med phil kath ev jh ex ud uds ee uu тыс млн млрд руб стр др пр гг
""")
# These do not end one before a number or a small letter:
COUNTED = _words("""
    no nos nr fig figs eq eqs sec ch vol pp art abs bd kap etc usw usf
    n° núm pág págs т.д т.п см рис кв
    jan feb mar apr jun jul aug sep sept oct okt nov dec dez
""")
# Words that seldom have a capital unless a sentence begins with them.
STARTERS = _words("""
    a an the this that these those it he she we you they i its his her our your their my there here then now but and
    so or if when while where what who why how in on at for from with after before as although because however yet not
    no some many most one all every both is was are were do does did can will would please let meanwhile
    der die das den dem ein eine er sie es wir ihr ich und aber doch dann wenn als auch im am
    il elle le la les un une el los las ella pero mais et nous on ils
""")
# A number of one or two digits with a full stop goes on before the first and behind the second: 3. Mai, im 19. Stock.
MONTHS = _words("""
    januar jänner februar märz april mai juni juli august september oktober november dezember marts maj
""")
BEFORE_ORDINAL = _words("der das dem den des im vom zum zur beim jeder jede jedes jeden seit")
# A long sentence may be divided before these.
CONJUNCTIONS = _words("""
    and but or nor because although though while whereas unless until since which who whose where when if that
    und aber oder denn sondern weil dass ob wenn während obwohl damit et mais ou donc car parce puisque lorsque qui que
    y pero sino porque aunque cuando donde e ma perché quando che mas porém en maar omdat
    и а но или что потому если когда और लेकिन या क्योंकि कि و لكن أو لأن
""")


LOOK_LEN = 48  # characters read before a possible end, or behind it until it is decided
UNSPACED_ENDS = "。！？｡।॥؟۔։።။។"  # end a sentence without a space behind them
TERMINALS = ".!?…．" + UNSPACED_ENDS
CLOSERS = "\"'”’“‘»«›‹)]}*_`」』）】》〉〕］｣"  # “ ‘ « ‹ close in German and Danish
CJK = (  # written without spaces: Chinese characters and kana
    r"\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)

_IS_CJK = re.compile(f"[{CJK}]")
_LAST_WORD = re.compile(r"[^\s(\[{/—–]*\Z")
_NEXT_WORD = re.compile(r"[\W_]*([^\W_]+)(.?)", re.DOTALL)
_DOTTED = re.compile(r"(?:[^\W\d_]{1,2}\.)+[^\W\d_]{1,2}")  # U.S, a.m, Ph.D, z.B, т.д
_UNCASED_INITIAL = re.compile(r"[\u0590-\u0dff]")  # Hebrew, Arabic and the scripts of India abbreviate to one letter
_SHORT_NUMBER = re.compile(r"\d{1,2}")
_VOWELLESS = re.compile(r"[b-df-hj-np-tv-xzB-DF-HJ-NP-TV-XZ]{2,5}")


def split_sentences(text: str) -> list[str]:
    """Sentences of ``text`` in order, with their punctuation, stripped; whitespace alone has none."""
    sentences = (text[start:end].strip() for start, end in sentence_spans(text))
    return [sentence for sentence in sentences if sentence]


def sentence_spans(text: str) -> Iterator[tuple[int, int]]:
    """(start, end) of the sentences; together they cover the text."""
    scanner, start = SentenceScanner(), 0
    padded = text + "\n\n"  # a paragraph's end decides whatever was open
    for i in range(len(padded)):
        end = scanner.see(padded, i)
        if end is not None and start < len(text):
            yield start, min(end, len(text))
            start = end


class SentenceScanner:
    """Finds sentence ends in a text that is read one character at a time.

    A verdict depends on what has been read, never on what follows or how it arrived.
    """

    def __init__(self) -> None:
        self.start = 0  # of the sentence being read
        self.candidate: int | None = None  # a possible end, undecided

    def see(self, text: str, i: int) -> int | None:
        """Read ``text[i]``; the characters before it have been read. Looks at none behind it.

        Returns:
            Where a sentence has ended, at most i + 1, if that is now certain.
        """
        if text[i] == "\n" and self._ends_paragraph(text, i):
            return self._end(i + 1)
        if self.candidate is None:
            self.candidate = _possible_end(text, self.start, i)
        if self.candidate is None:
            return None
        end = self.candidate
        verdict = _is_end(text, self.start, end, i + 1)
        if verdict is not None:
            self.candidate = None
        return self._end(end) if verdict else None

    def rebase(self, offset: int) -> None:
        """The first ``offset`` characters have been removed from the text."""
        self.start = max(0, self.start - offset)
        if self.candidate is not None:
            self.candidate = self.candidate - offset if self.candidate > offset else None

    def _end(self, at: int) -> int:
        self.start, self.candidate = at, None
        return at

    def _ends_paragraph(self, text: str, i: int) -> bool:
        before = text[max(self.start, i - LOOK_LEN) : i]
        return "\n" in before[len(before.rstrip()) :]


def is_cjk(char: str) -> bool:
    """Whether ``char`` is written without spaces around words: Chinese characters and kana."""
    return _IS_CJK.match(char) is not None


def _possible_end(text: str, start: int, i: int) -> int | None:
    """``i``, if closing punctuation ends right before the character there, which was read last."""
    char = text[i]
    if i == start or char in TERMINALS or (text[i - 1] not in TERMINALS and text[i - 1] not in CLOSERS):
        return None
    head, ending = _ending(text, start, i)
    unspaced = any(mark in UNSPACED_ENDS for mark in ending)
    if not ending or (char in CLOSERS and not (unspaced and char in "“‘")):
        return None
    if char.isspace() or unspaced or (head and is_cjk(head[-1]) and is_cjk(char)):
        return i
    return None


def _ending(text: str, start: int, end: int) -> tuple[str, str]:
    """What stands before the closing punctuation that ends at ``end``, and its marks, without quotes and brackets."""
    read = text[max(start, end - LOOK_LEN) : end]
    marked = read.rstrip(CLOSERS)
    if read[len(marked) :].startswith("»"):  # « Non ! »
        marked = marked.rstrip()
    head = marked.rstrip(TERMINALS)
    return head, marked[len(head) :]


def _is_end(text: str, start: int, end: int, seen: int) -> bool | None:
    """Whether the possible end at ``end`` is one, judged by ``text[:seen]``; None if that is not enough."""
    head, ending = _ending(text, start, end)
    after, closed = text[end:seen], text[end - 1] in CLOSERS
    following = after.lstrip()
    if head.endswith(("(", "[")) or _opened("《", "》", text, start, end):  # "(?)", "[...]", 《…！…》
        return False
    if following == after:
        return after[0] not in "、，；：,;:" and not (closed and after[0] in "とっ")  # 「…。」と言った
    if following.startswith(("»", *TERMINALS)):  # "« Non ! »", ". . ."
        return False
    if not following and not closed and _opened("«", "»", text, start, end):
        return None
    if not closed and (ending[-1] in "!?" or any(mark in UNSPACED_ENDS for mark in ending)):
        return True
    if len(after) > LOOK_LEN:
        return True
    before = _LAST_WORD.search(head)
    assert before is not None
    word = before.group().lstrip("\"'“„«‘")
    if ending == "." and _SHORT_NUMBER.fullmatch(word):
        return _is_end_of_number(head[: before.start()], after)
    if closed or ending != "." or not word:
        return _unless_small(after)
    return _is_end_of_word(word, head[: before.start()], after)


def _is_end_of_word(word: str, head: str, after: str) -> bool | None:
    """The rule for a word and a full stop, ``head`` before them, a space and more behind them."""
    key = word.lower()
    if key in LEADING:
        return False
    if key in COUNTED:
        return _unless_small(after, or_digit=True)
    if _is_initial(word):
        previous = head.split()[-1:]
        if word == "I" and previous and previous[0][0].islower():  # "So did I."
            return True
        return _if_starter(after)
    if key in OPEN or _DOTTED.fullmatch(word):
        return _if_starter(after)
    if _VOWELLESS.fullmatch(word) and not word.isupper():
        return _unless_small(after, or_digit=True)
    return True


def _is_end_of_number(head: str, after: str) -> bool | None:
    """The rule for one or two digits and a full stop: items of a list, dates and ordinals go on."""
    line = head.rpartition("\n")[2].strip()
    if not any(char.isalnum() for char in line):
        return False
    word, mark = _next_word(after)
    if not word or (word[0].isupper() and not mark):
        return None
    if word[0].islower() or word[0].isdigit():
        return False
    return word.lower() not in MONTHS and head.split()[-1].lower() not in BEFORE_ORDINAL


def _opened(left: str, right: str, text: str, start: int, end: int) -> bool:
    """Whether the last of a pair of marks that was read is ``left``."""
    recent = text[max(start, end - 4 * LOOK_LEN) : end]
    return recent.rfind(left) > recent.rfind(right)


def _unless_small(after: str, or_digit: bool = False) -> bool | None:
    """True, if the word that follows begins with no small letter (nor a digit)."""
    word, _ = _next_word(after)
    return not (word[0].islower() or (or_digit and word[0].isdigit())) if word else None


def _if_starter(after: str) -> bool | None:
    """True, if the word that follows has a capital because a sentence begins with it, as far as can be told."""
    word, mark = _next_word(after)
    if not word or (word[0].isupper() and not mark):
        return None
    initial = len(word) == 1 and mark == "."
    return word[0].isupper() and word.lower() in STARTERS and not initial


def _next_word(after: str) -> tuple[str, str]:
    """The first word of ``after`` and the character behind it; empty where that is not read yet."""
    match = _NEXT_WORD.match(after)
    return (match[1], match[2]) if match else ("", "")


def _is_initial(word: str) -> bool:
    """A single letter, of a script that abbreviates to one: 네 and 我 are words."""
    return len(word) == 1 and (word.lower() != word.upper() or _UNCASED_INITIAL.match(word) is not None)
