"""Read the messages of a chat from a row, and the texts in them."""

from collections.abc import Callable
from typing import Any

Message = dict[str, Any]  # as a chat template takes it: `role`, `content` and any other keys

FIELDS = ("reasoning_content", "reasoning", "thinking", "content")  # that hold text, in the order of templates
WEIGHT = "weight"  # 0 for a message that never counts, whatever its role
EXPECTED = "expected a list of messages, each a dict with a role and a content"


def messages_in(name: str, column: str, value: Any) -> list[Message]:
    """Return the messages in a cell, without null values. Raise ValueError, with the place, if it has none."""
    value = value.tolist() if is_array(value) else value
    if not isinstance(value, list) or not value:
        shown = "null" if value is None else "an empty list" if value == [] else type(value).__name__
        raise ValueError(f"{name} has {shown} in its column {column!r}: {EXPECTED}")
    for number, message in enumerate(value):
        if wrong := misfit(message):
            raise ValueError(f"{name}, message {number} in its column {column!r}, {wrong}: {EXPECTED}")
    return [without_null(message) for message in value]


def is_array(value: Any) -> bool:
    """Whether a value is a one-dimensional array, which is how pandas stores a list."""
    return getattr(value, "ndim", 0) == 1


def is_list(value: Any) -> bool:
    return isinstance(value, list) or is_array(value)


def misfit(message: Any) -> str | None:
    """Say why a value is not a message; None if it is one."""
    if not isinstance(message, dict):
        return f"is {type(message).__name__}"
    if not isinstance(message.get("role"), str):
        return f"has no role but {', '.join(map(str, message)) or 'nothing'}"
    content = message.get("content")
    if content is None and not message.get("tool_calls"):
        return "has no content"
    if not (content is None or isinstance(content, str) or is_list(content)):
        return f"has content that is {type(content).__name__}"
    return None


def without_null(value: Any) -> Any:
    """Drop null values and turn arrays into lists.

    Arrow gives every dict of a column the keys of all others, with null values; pandas turns lists into arrays.
    """
    value = value.tolist() if is_array(value) else value
    if isinstance(value, dict):
        return {key: without_null(x) for key, x in value.items() if x is not None or key == "content"}
    return [without_null(x) for x in value] if isinstance(value, list) else value


def with_texts(message: Message, change: Callable[[str], str]) -> Message:
    """Return a message with every text in it changed.

    >>> with_texts({"role": "user", "content": [{"type": "text", "text": "Hi"}]}, str.upper)
    {'role': 'user', 'content': [{'type': 'text', 'text': 'HI'}]}
    """
    changed = dict(message)
    for field in FIELDS:
        value = message.get(field)
        if isinstance(value, str):
            changed[field] = change(value)
        elif isinstance(value, list):
            changed[field] = [
                part | {"text": change(part["text"])}
                if isinstance(part, dict) and isinstance(part.get("text"), str)
                else part
                for part in value
            ]
    return changed


def texts_of(message: Message) -> list[str]:
    """Return the texts in a message."""
    texts: list[str] = []

    def take(text: str) -> str:
        texts.append(text)
        return text

    with_texts(message, take)
    return texts


def plain_text(messages: list[Message]) -> str:
    """Join the texts of the messages with newlines, without the template."""
    return "\n".join(text for message in messages for text in texts_of(message))


def counts(message: Message, chat: str) -> bool:
    """Whether to predict the texts of a message: the assistant's, or with `chat="all"` every message's."""
    return bool(message.get(WEIGHT, 1)) and (chat == "all" or message["role"] == "assistant")


def exchanges(messages: list[Message]) -> list[int]:
    """Return where exchanges begin: at a user's message that does not follow another user's message."""
    roles = [message["role"] for message in messages]
    return [i for i, role in enumerate(roles) if role == "user" and (not i or roles[i - 1] != "user")]


def without_first_exchange(messages: list[Message]) -> list[Message] | None:
    """Remove the first exchange but keep what comes before it; None if there are fewer than two exchanges.

    >>> asked, told = {"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}
    >>> len(without_first_exchange([{"role": "system", "content": "Be brief."}, asked, told, asked, told]))
    3
    """
    begins = exchanges(messages)
    return None if len(begins) < 2 else messages[: begins[0]] + messages[begins[1] :]
