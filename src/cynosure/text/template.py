"""Write chats with a tokenizer's chat template, and locate the messages in the result."""

import json
import re
from collections.abc import Iterator, Sequence
from datetime import date
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from cynosure.text.choices import CHAT
from cynosure.text.messages import Message, texts_of, with_texts
from cynosure.text.special import strings_of

# The date given to templates that write one, so that results do not depend on the day. It is Llama's own default.
TODAY = date(2024, 7, 26)
FORMATS = {form: TODAY.strftime(form) for form in ("%Y-%m-%d", "%d %B %Y", "%B %d, %Y", "%d %b %Y")}
AT_TODAY = f"{{%- macro strftime_now(form) -%}}{{{{ {FORMATS}.get(form, '26 Jul 2024') }}}}{{%- endmacro -%}}"
TAG = re.compile(r"(</?think>)")  # templates look for these in a message
MARK = re.compile("\ue000([0-9]+)\ue001")  # replaces the n-th text of a chat


def check_chat(chat: str) -> None:
    """Raise ValueError if `chat` is not one of `CHAT`."""
    if chat not in CHAT:
        raise ValueError(f"unknown chat {chat!r}: expected one of {', '.join(CHAT)}")


class Span(NamedTuple):
    """The characters `start` to `stop` of a written chat, which belong to a message."""

    start: int
    stop: int
    message: int


class Written(NamedTuple):
    """A chat as its template writes it."""

    text: str
    said: list[Span]  # what each message says, in order
    ends: list[Span]  # what ends each turn, in order


class Frame(NamedTuple):
    """What a template puts before and after the assistant's text; empty if unknown."""

    openers: tuple[str, ...]  # the longest first
    closer: str


class Part(NamedTuple):
    """A text in a message, or the part of it between two tags."""

    message: int
    text: str


def write(tokenizer: Any, messages: Sequence[Message], tools: Any = None, *, opens: bool = False) -> str:
    """Write a chat with the tokenizer's template; with `opens`, also open the assistant's turn.

    Raises ValueError if there is no template, or if it refuses the chat.
    """
    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"the tokenizer of {name} has no chat template, so messages cannot be read: give a chat model or its "
            "tokenizer, or texts in a column of text"
        )
    try:
        template = tokenizer.get_chat_template(None, tools)
        if "strftime_now" in template:
            template = AT_TODAY + template
        return str(
            tokenizer.apply_chat_template(
                list(messages), tools, chat_template=template, tokenize=False, add_generation_prompt=opens
            )
        )
    except Exception as error:  # a template may raise anything
        raise ValueError(f"the chat template of {name} refuses these messages: {error}") from error


def written(tokenizer: Any, messages: Sequence[Message], tools: Any = None) -> Written:
    """Write a chat with the tokenizer's template, and locate what each message says.

    The chat is written a second time with marks in place of the texts. So no text is mistaken for another or for the
    template's. If an assistant's message has tool calls, reasoning or several texts, its whole turn counts as said.
    Raises ValueError if the template rewrites a text.
    """
    text = write(tokenizer, messages, tools)
    parts: list[Part] = []
    marked = [with_texts(message, partial(mark, message=i, parts=parts)) for i, message in enumerate(messages)]
    fixed = MARK.split(write(tokenizer, marked, tools))
    shown = [parts[int(number)] for number in fixed[1::2]]
    places = list(located(text, fixed[::2], shown))
    if parts and not places:
        raise ValueError("the chat template shows none of what these messages say: it is for messages of another kind")
    said = turns(text, messages, places, frame_of(tokenizer))
    return Written(text, said, list(ends(tokenizer, text, said)))


def mark(text: str, message: int, parts: list[Part]) -> str:
    """Replace a text by marks, and append the text to the parts. Tags and blank parts stay."""
    marked = []
    for piece in TAG.split(text):
        if piece.strip() and not TAG.fullmatch(piece):
            marked.append(f"\ue000{len(parts)}\ue001")
            parts.append(Part(message, piece))
        else:
            marked.append(piece)
    return "".join(marked)


def located(text: str, fixed: Sequence[str], parts: Sequence[Part]) -> Iterator[Span]:
    """Locate the parts in a text that has `fixed` before, between and after them."""
    at = len(fixed[0])
    if not text.startswith(fixed[0]):
        raise ValueError(rewritten(parts[0] if parts else None))
    for part, after in zip(parts, fixed[1:], strict=True):
        form = next((form for form in forms(part.text) if text.startswith(form + after, at)), None)
        if form is None:
            raise ValueError(rewritten(part))
        yield Span(at, at + len(form), part.message)
        at += len(form) + len(after)
    if at != len(text):
        raise ValueError(rewritten(parts[-1] if parts else None))


def rewritten(part: Part | None) -> str:
    where = "this chat" if part is None else f"message {part.message} ({part.text.strip()[:40]!r})"
    return f"the chat template rewrites {where}, so its text cannot be separated from what the template adds"


def forms(text: str) -> list[str]:
    """Return what templates may write for a text: the text, a stripped version, or either as in a JSON string."""
    own = [text, text.rstrip(), text.lstrip(), text.strip(), text.strip("\n"), text.lstrip("\n"), text.rstrip("\n")]
    inside = [json.dumps(form, ensure_ascii=ascii)[1:-1] for form in own for ascii in (False, True)]
    return sorted(dict.fromkeys(own + inside), key=len, reverse=True)


def turns(text: str, messages: Sequence[Message], places: Sequence[Span], frame: Frame) -> list[Span]:
    """Return the spans that each message says: its text, or its whole turn if the assistant says more than that."""
    said: list[Span] = []
    for number, message in enumerate(messages):
        own = [place for place in places if place.message == number]
        after = said[-1].stop if said else 0
        if message["role"] == "assistant" and (len(own) > 1 or says_more(message)):
            before = min((place.start for place in places if place.message > number), default=len(text))
            said += whole_turn(text, number, own, after, before, frame)
        else:
            said += own
    return sorted(said)


def says_more(message: Message) -> bool:
    """Whether a message contains more than one plain text."""
    texts = texts_of(message)
    return bool(message.get("tool_calls")) or len(texts) > 1 or any(TAG.search(text) for text in texts)


def whole_turn(text: str, number: int, own: Sequence[Span], after: int, before: int, frame: Frame) -> Iterator[Span]:
    """Yield all that is written for a message between `after` and `before`; without a frame, its texts only."""
    first, last = (own[0].start, own[-1].stop) if own else (before, after)
    starts = (at + len(opener) for opener in frame.openers if (at := text.find(opener, after, first)) >= 0)
    start = next(starts, first)
    stop = text.find(frame.closer, max(start, last), before) if frame.closer else -1
    stop = last if stop < 0 else stop
    if start < stop:
        yield Span(start, stop, number)


def ends(tokenizer: Any, text: str, said: Sequence[Span]) -> Iterator[Span]:
    """Yield what ends each turn: what the template puts after an assistant's turn, else the special token there."""
    closer, special = frame_of(tokenizer).closer, strings_of(tokenizer)
    for span in said:
        end = closer if closer and text.startswith(closer, span.stop) else special.at(text, span.stop)
        if end:
            yield Span(span.stop, span.stop + len(end), span.message)


FRAMES: WeakKeyDictionary[Any, tuple[Any, Frame]] = WeakKeyDictionary()


def frame_of(tokenizer: Any) -> Frame:
    """Return what a tokenizer's template puts around the assistant's turn, cached."""
    template = tokenizer.chat_template
    if tokenizer not in FRAMES or FRAMES[tokenizer][0] != template:
        FRAMES[tokenizer] = template, find_frame(tokenizer)
    return FRAMES[tokenizer][1]


def find_frame(tokenizer: Any) -> Frame:
    asked, said = {"role": "user", "content": "\ue0000\ue001"}, {"role": "assistant", "content": "\ue0001\ue001"}
    try:
        before, opened = (write(tokenizer, [asked], opens=opens) for opens in (False, True))
        behind = write(tokenizer, [asked, said]).partition("\ue0001\ue001")[2]
    except ValueError:  # the template refuses this chat
        return Frame((), "")
    same = next((i for i, (a, b) in enumerate(zip(before, opened, strict=False)) if a != b), len(before))
    opener = opened[same:]
    return Frame(tuple(filter(None, dict.fromkeys([opener, TAG.split(opener)[0]]))), behind.rstrip())
