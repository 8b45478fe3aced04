"""Words that decide where a text may be divided, in small letters.

Owns: lists of abbreviations, sentence openers, dates and conjunctions of the languages that are written with spaces.
Does not know: the rules that read them.
"""

from __future__ import annotations


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
