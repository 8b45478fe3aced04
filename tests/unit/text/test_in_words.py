"""Numbers and what belongs to them, in words."""

from __future__ import annotations

import logging
import sys
import time

import pytest

from chatterbox.models.tokenizers.languages import LANGUAGES
from chatterbox.text import in_words as module
from chatterbox.text.in_words import in_words


@pytest.fixture(autouse=True)
def forget():
    """The library is looked for once a process; here once a test."""
    module._speller.cache_clear()


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("3 cats, 1,234.5 dogs", "three cats, one thousand two hundred and thirty-four point five dogs"),
        ("-5 degrees, 007", "minus five degrees, zero zero seven"),
        ("1st, 22nd, 103rd", "first, twenty-second, one hundred and third"),
        ("in 1999, 2005", "in nineteen ninety-nine, two thousand and five"),
        ("the 1990s, the '80s", "the nineteen nineties, the eighties"),
        ("On March 3, 2024.", "On March third, twenty twenty-four."),
        ("3 March 2024", "the third of March twenty twenty-four"),
        ("the 3rd of May", "the third of May"),
        ("2024-05-06", "May sixth, twenty twenty-four"),
        ("12/25/2023", "December twenty-fifth, twenty twenty-three"),
        ("25/12/2023", "December twenty-fifth, twenty twenty-three"),
        ("5:30, 17:05, 10:00, 5pm", "five thirty, seventeen oh five, ten o'clock, five p m"),
        ("At 5 p.m. he left at 6 p.m.", "At five p m he left at six p m."),
        ("$12.50, €1, £0.99", "twelve dollars and fifty cents, one euro, ninety-nine pence"),
        ("12,50 €", "twelve euros and fifty cents"),
        ("$1.5 million and 20 €", "one point five million dollars and twenty euros"),
        ("5%, 1 kg, 3.5 km, 20°C", "five percent, one kilogram, three point five kilometers, twenty degrees Celsius"),
        ("100 km/h", "one hundred kilometers per hour"),
        ("1/2, 3/4, 2½, 24/7", "a half, three quarters, two and a half, twenty-four seven"),
        ("1914–1918, pages 10-20", "nineteen fourteen to nineteen eighteen, pages ten to twenty"),
        ("version 2.10.1", "version two point ten point one"),
        ("No. 5 and #1", "number five and number one"),
        ("B2B and 4K", "B two B and four K"),
        ("3 + 4 = 7", "three plus four equals seven"),
        ("I may 5 times", "I may five times"),
        ("-5°C, (-5%), -.5, +5", "minus five degrees Celsius, (minus five percent), minus zero point five, plus five"),
        ("the 1800s, 2000s, 1000s", "the eighteen hundreds, two thousands, thousands"),
        ("5-10%, 10–20 kg, $5-$10", "five to ten percent, ten to twenty kilograms, five dollars to ten dollars"),
        ("10:30-11:30, 9am-5pm", "ten thirty to eleven thirty, nine a m to five p m"),
        ("1-800-555-1234", "one, eight zero zero, five five five, one two three four"),
        ("2024/05/06", "May sixth, twenty twenty-four"),
        ("1 000 000 and 5 000", "one million and five thousand"),
        ("1h 30m, 5'11\"", "one hour thirty minutes, five foot eleven"),
        ("10², 2^10, 5¢", "ten squared, two to the power of ten, five cents"),
        ("On 12/25, not 12/25/23", "On December twenty-fifth, not December twenty-fifth, twenty twenty-three"),
        (
            "25.12.2023, 12.25.2023",
            "December twenty-fifth, twenty twenty-three, December twenty-fifth, twenty twenty-three",
        ),
        ("Monday, 3/4, on 3/16 inch", "Monday, March fourth, on three slash sixteen inch"),
        ("13/25, 99.99.99", "thirteen slash twenty-five, ninety-nine point ninety-nine point ninety-nine"),
        ("2023-12-25T10:00:00Z", "December twenty-fifth, twenty twenty-three at ten o'clock UTC"),
        ("2023-12-25T10:30+02:00", "December twenty-fifth, twenty twenty-three at ten thirty UTC plus two"),
        ("5-3=2, 5 - 3 = 2", "five minus three equals two, five minus three equals two"),
        ("00:00, 00:15, 06:00", "twelve a m, twelve fifteen a m, six o'clock"),
        ("Call 911, call 100 men", "Call nine one one, call one hundred men"),
        ("0800 555 1234", "zero eight zero zero, five five five, one two three four"),
        ("1-800-GO-FLOWERS", "one, eight zero zero, go flowers"),
        ("192.168.1.1", "one nine two point one six eight point one point one"),
        ("10.0.19045.1, v2.1", "ten point zero point one nine zero four five point one, version two point one"),
        ("6 ft 2 in, 5 ft in all", "six feet two inches, five feet in all"),
        ("$5-10, $5-10 million", "five to ten dollars, five to ten million dollars"),
        ("x², 10⁶, 10⁻³", "x squared, ten to the power of six, ten to the power of minus three"),
        ("5 m², 9.8 m/s²", "five square meters, nine point eight meters per second squared"),
        ("①, ③Open", "one, three Open"),
        ("BA2490, FY2024", "BA two four nine zero, FY two thousand and twenty-four"),
    ],
)
def test_english(written, spoken):
    assert in_words(written) == spoken


@pytest.mark.parametrize(
    ("language", "written", "spoken"),
    [
        ("de", "1.234 Euro, 3,5 %", "eintausendzweihundertvierunddreißig Euro, drei Komma fünf Prozent"),
        ("fr", "12,50 €", "douze euros et cinquante centimes"),
        ("es", "$5", "cinco dólares"),
        ("ru", "3 кота", "три кота"),
        ("tr", "%5", "yüzde beş"),
        ("ja", "3月", "三月"),
        ("ar", "1.25, $5", "واحد فاصلة اثنان خمسة, خمسة دولار"),
        ("da", "$5", "fem dollar"),
        ("sv", "12,50 €", "tolv komma fem euro"),
        ("tr", "0,05 ve 5 € ve 3%", "sıfır virgül sıfır beş ve beş avro ve yüzde üç"),
        ("ja", "5€", "五 ユーロ"),
        ("ko", "$5", "오 달러"),
        ("no", "£5", "fem pund"),
        ("es", "£3.50", "tres libras con cincuenta peniques"),
        ("ru", "1%, 3%, 11%, 22%", "один процент, три процента, одиннадцать процентов, двадцать два процента"),
        ("pl", "-5", "minus pięć"),
        ("de", "12:30, 3.5.2024", "zwölf dreißig, drei fünf zweitausendvierundzwanzig"),
    ],
)  # fmt: skip
def test_other_languages(language, written, spoken):
    assert in_words(written, language) == spoken


@pytest.mark.parametrize("language", sorted(LANGUAGES))
def test_money_shares_and_signs_of_all_languages(language, caplog):
    """Nothing raises, and of what num2words knows nothing stays."""
    spoken = in_words("-5 | $5 | 5 € | £3.50 | 12,50 € | 3% | 12:30 | 007 | 0,5 | 99999999999999999", language)
    assert spoken.count("|") == 9
    if not caplog.records:
        assert not any(char.isdecimal() or char in "$€£%:" for char in spoken)


def test_text_without_numbers_stays_as_it_is(monkeypatch):
    monkeypatch.setitem(sys.modules, "num2words", None)
    assert in_words("Nothing to count, in May, a.m. or p.m.") == "Nothing to count, in May, a.m. or p.m."


@pytest.mark.parametrize(("language", "said"), [("en", "normalize]'"), ("zh", "does not know language zh")])
def test_without_the_library_or_its_language_numbers_stay_with_one_warning(language, said, monkeypatch, caplog):
    if language == "en":
        monkeypatch.setitem(sys.modules, "num2words", None)
    with caplog.at_level(logging.WARNING, logger="chatterbox"):
        assert [in_words("3 cats", language) for _ in range(2)] == ["3 cats"] * 2
    assert len(caplog.records) == 1
    assert said in caplog.text


@pytest.mark.parametrize("text", ["1" * 100_000, "1," * 50_000, "1.2" * 30_000, "1-" * 50_000, "1 " * 20_000])
def test_time_grows_with_the_length_alone(text):
    started = time.perf_counter()
    in_words(text)
    assert time.perf_counter() - started < 60
