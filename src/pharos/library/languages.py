"""Which language a text is in, told by its function words; and which words of a question carry no subject."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

# The commonest articles, pronouns, prepositions, auxiliaries and question words. They decide the stemmer of a text
# and are left out of a question: "what" and "how" are rare in reports, so their idf would outweigh the subject.
FUNCTION_WORDS = {
    "english": """
        a an the and or but if of to in on at by for with from as into than then about over under between after
        before during through is are was were be been being am do does did done have has had will would shall should
        can could may might must not no nor so such this that these those there here it its he she they them his her
        their him i me my we our us you your who whom whose which what when where why how all any both each more most
        other some only own same too very many much s t
    """,
    "german": """
        der die das den dem des ein eine einen einem einer eines und oder aber wenn als wie zu zum zur im in am an auf
        aus bei mit nach von vom vor für über unter durch gegen ohne um bis seit während ist sind war waren wird werden
        wurde wurden worden sein hat haben hatte hatten kann können konnte konnten soll sollte muss müssen darf nicht
        kein keine auch nur noch schon sehr mehr es er sie ihr ihre ihren ihrer ihm ihn sich wir uns ich mein man dass
        daß diese dieser dieses diesen wer wen wem was wo wann warum wieso welche welcher welches welchen welchem
        viele vielen wodurch womit wofür
    """,
    "french": """
        le la les l un une des du de d et ou mais si que qu qui quoi dont où quand comment pourquoi combien quel quelle
        quels quelles au aux en dans sur sous par pour avec sans entre vers chez est sont était étaient été être a ont
        avait avaient avoir fut sera peut peuvent doit ne n pas plus moins très ce cet cette ces c s se son sa ses leur
        leurs il elle ils elles on nous vous je y même aussi comme lors
    """,
    "spanish": """
        el la los las lo un una unos unas y e o pero si que qué quien quién quienes cual cuál cuales cuáles cuando
        cuándo donde dónde como cómo cuanto cuánto cuántos cuántas por para con sin en de del al a ante bajo desde
        entre hacia hasta según sobre tras es son era eran fue fueron ser sido está están estaba ha han había habían
        haber se su sus le les no ni más muy también esta este estos estas ese esa eso
    """,
    "italian": """
        il lo la i gli le un uno una l e o ma se che chi cui cosa quale quali quando dove come perché quanto quanti
        quante di del dello della dei degli delle a al allo alla ai agli alle da dal dalla dai in nel nella nei nelle
        con su sul sulla per tra fra è sono era erano fu furono essere stato stata ha hanno aveva avere si suo sua suoi
        loro non più anche questo questa questi queste ci
    """,
    "portuguese": """
        o a os as um uma uns umas e ou mas se que quem qual quais quando onde como porque quanto quantos quantas de do
        da dos das em no na nos nas ao à aos às por pelo pela pelos pelas para com sem entre sobre até é são era eram
        foi foram ser sido está estão tem têm tinha havia seu sua seus suas não mais muito também este esta isso essa
    """,
    "dutch": """
        de het een en of maar als dat die dit deze wie wat waar wanneer waarom hoe welke welk hoeveel van in op aan bij
        met naar voor door over onder tussen tegen uit tot te ten ter is zijn was waren wordt worden werd werden heeft
        hebben had hadden kan kunnen kon zal zou moet niet geen ook nog al er zich hij zij ze haar hun hem ik wij je om
    """,
    "swedish": """
        en ett den det de och eller men om att som vad vem vilken vilket vilka när var varför hur av i på till från med
        för vid under över mellan efter är var varit vara har hade kan kunde ska skulle inte också sig sin sitt sina
        han hon hans hennes deras dem jag vi ni man många
    """,
    "danish": """
        en et den det de og eller men hvis at som hvad hvem hvilken hvilket hvilke hvornår hvor hvorfor hvordan af i på
        til fra med for ved under over mellem efter er var været være har havde kan kunne skal skulle ikke også sig sin
        sit sine han hun hans hendes deres dem jeg vi man blev bliver mange
    """,
    "norwegian": """
        en ei et den det de og eller men hvis at som hva hvem hvilken hvilket hvilke når hvor hvorfor hvordan av i på
        til fra med for ved under over mellom etter er var vært være har hadde kan kunne skal skulle ikke også seg sin
        sitt sine han hun hans hennes deres dem jeg vi man ble blir mange
    """,
    "finnish": """
        ja tai mutta jos että joka jotka mikä mitä mitkä kuka milloin missä miksi miten kuinka on ovat oli olivat ollut
        olla ei eivät se ne hän he tämä nämä myös kun kuin sekä mukaan
    """,
    "hungarian": """
        a az egy és vagy de ha hogy aki ami mi mit ki kik mikor hol miért hogyan melyik mennyi van volt voltak lesz nem
        is csak már még ez ezt ezek meg el
    """,
    "polish": """
        i oraz lub ale jeśli że który która które kto co kiedy gdzie dlaczego jak jaki jaka jakie ile w we na z ze do od
        po za przez dla przy o jest są był była było były być nie się to ten ta te tego tym jego jej ich
    """,
    "czech": """
        a nebo ale když že který která které kdo co kdy kde proč jak jaký jaká jaké kolik v ve na z ze do od po za pro
        při o je jsou byl byla bylo byly být není se si to ten ta tento jeho její jejich
    """,
    "romanian": """
        un o unei unui și sau dar dacă că care cine ce când unde cum cât câți câte de la în din pe cu pentru prin este
        sunt era erau fost fi a au avea nu se sa său mai acest această ale al lui
    """,
    "turkish": """
        ve veya ama bir bu şu o da de ki mi mı mu mü ne kim kimin hangi nasıl neden niçin nerede zaman kaç ile için gibi
        kadar olan olarak oldu olduğu değil daha çok en her sonra önce vardı var
    """,
    "russian": """
        и или но а если что кто чей где когда как почему сколько какой какая какие каком в во на с со к ко по за из от
        до для о об у при через между над под не ни же ли бы это этот эта эти тот его ее их он она они оно был была
        было были быть есть является
    """,
}

LANGUAGES_OF_WORD: dict[str, tuple[str, ...]] = {}
for _language, _words in FUNCTION_WORDS.items():
    for _word in _words.split():
        LANGUAGES_OF_WORD[_word] = (*LANGUAGES_OF_WORD.get(_word, ()), _language)

LATIN_LANGUAGES = tuple(language for language in FUNCTION_WORDS if language != "russian")

EVIDENCE_WORDS = 400
"""Words looked at: enough to tell a language, so that a book costs what a page costs."""
MIN_SHARE = 0.04
"""Function words are a third of a running text; a few foreign names in a Chinese page are no evidence."""


def language_of(words: Iterable[str]) -> str | None:
    """The language whose function words stand most often among `words` (lower case), or None when none is ahead.

    A word counts for each language that has it, divided by their number. The name is that of its Snowball stemmer.
    """
    scores: dict[str, float] = {}
    evidence = list(islice(words, EVIDENCE_WORDS))
    for word in evidence:
        languages = LANGUAGES_OF_WORD.get(word, ())
        for language in languages:
            scores[language] = scores.get(language, 0.0) + 1 / len(languages)
    ranked = sorted(scores.items(), key=lambda item: -item[1])
    if not ranked or ranked[0][1] < MIN_SHARE * len(evidence):
        return None
    if len(ranked) > 1 and ranked[1][1] == ranked[0][1]:
        return None
    return ranked[0][0]


def is_function_word(word: str, language: str) -> bool:
    """Whether the word carries no subject in this language."""
    return language in LANGUAGES_OF_WORD.get(word, ())
