"""Write notes on the texts that were scored."""

from collections.abc import Iterable, Iterator

from cynosure.measure.statistics.intervals import Intervals
from cynosure.measure.statistics.stats import Statistics
from cynosure.measure.storage.rows import DocumentFacts, lost_text
from cynosure.system.numbers import counted


def notes(statistics: Statistics, intervals: Intervals) -> Iterator[str]:
    """Yield notes on optimistic intervals, lost text, empty documents and invalid UTF-8."""
    if intervals.method.optimistic and intervals.nats_per_token.low is not None:
        yield intervals.method.optimistic
    if lost := lost_text(statistics.facts.values()):
        effect = "leave out" if statistics.told_per_byte else "are withheld: text is lost in"
        yield f"metrics per byte and character {effect} {lost}"
    empty = statistics.unscored()
    if empty:
        names = ", ".join(fact.name for fact in empty[:3])
        more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
        has, is_ = ("has", "is") if len(empty) == 1 else ("have", "are")
        yield f"{counted(len(empty), 'document')} {has} no token to predict and {is_} left out: {names}{more}"
    replaced: list[DocumentFacts] = [fact for fact in statistics.facts.values() if fact.n_replaced]
    if replaced:
        total = sum(fact.n_replaced for fact in replaced)
        places = f"{counted(total, 'place')} of {counted(len(replaced), 'document')}"
        yield f"U+FFFD replaces invalid UTF-8 in {places}: bytes are counted with U+FFFD in the text"


def chat_note(facts: Iterable[DocumentFacts], chat: str | None) -> Iterator[str]:
    """Say how many documents are chats, and which of their turns are scored."""
    chats = [fact for fact in facts if fact.n_messages]
    if chats:
        whose = "every turn counts" if chat == "all" else "the assistant's turns count, `chat='all'` counts every turn"
        are = "is a chat" if len(chats) == 1 else "are chats"
        yield f"{counted(len(chats), 'document')} {are}: {whose}; what the template adds never does"
