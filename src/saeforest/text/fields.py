"""Turning records into documents: which field of a record is its text, and how a chat is rendered.

The field is the same for a whole file (or Hub data set) and is chosen by name alone: the one named by `text.column`;
else "text"; else whichever of "content", "document" and "body" the records have. Chats are under "messages" or
"conversations", and are read if `text.chat` is true.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from saeforest.errors import InputError
from saeforest.hf_types import PreTrainedTokenizerBase
from saeforest.text.document import Document

TEXT_FIELDS = ("text", "content", "document", "body")
CHAT_FIELDS = ("messages", "conversations")
# Role names in ShareGPT data and its descendants, and the names that chat templates expect.
_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bot": "assistant",
}
_ROLES |= {"model": "assistant"}

# Some chat templates write the current date into the text. This date is used instead, so that a chat is always the
# same text.
_DAY = datetime(2024, 7, 26)
_PARTS_OF_DAY = "".join(f"|replace('%{c}', '{_DAY.strftime(f'%{c}')}')" for c in "YymdBbAajHMSpI")
_TODAY = "{%- macro strftime_now(form) -%}{{ form|replace('%-', '%')" + _PARTS_OF_DAY + " }}{%- endmacro -%}"

Message = dict[str, Any]
Render = Callable[[list[Message]], str]
# Maximum number of characters of a column name shown in an error message.
_NAME_SHOWN = 80


@dataclass(frozen=True)
class Reading:
    """How the records of a source are read."""

    column: str = ""
    """Name of the field that holds the text. If empty, it is found as the module's docstring says."""
    split: str = "train"
    """Split of a Hub data set, or of a data set that was saved with its splits."""
    render: Render | None = None
    """Function that renders a chat as the text that the model was trained to read. If None, chats are refused."""


def chat_renderer(tokenizer: PreTrainedTokenizerBase, model: str) -> Render:
    """A function that renders chats through the tokenizer's chat template, without the template's leading BOS.

    BOS is dropped because `text.bos` decides for a whole window whether it comes first. Templates that insert the
    current date are given a fixed one, so that a chat is always the same text.

    Raises InputError if there is no template. Rendering raises ValueError if the template refuses a chat.
    """
    if not tokenizer.chat_template:
        raise InputError(
            f"text.chat = true: the tokenizer of {model} has no chat template; take a model that has one, or set "
            "text.chat to false and give plain text"
        )
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:  # several, and none of them the default
        raise InputError(
            f"text.chat = true: the tokenizer of {model} names no default chat template"
        ) from error
    bos = tokenizer.bos_token if "bos_token" in template else None
    template = (_TODAY if "strftime_now" in template else "") + template

    def render(messages: list[Message]) -> str:
        try:
            text = tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, date_string=_DAY.strftime("%d %b %Y")
            )
        except Exception as error:  # whatever a template raises
            raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
        assert isinstance(text, str)
        return text.removeprefix(bos) if isinstance(bos, str) else text

    return render


class Fields:
    """Turns the records of one file (or Hub data set) into documents."""

    def __init__(self, source: str, reading: Reading, columns: Sequence[str] | None = None) -> None:
        """Prepare to read the records of `source`.

        columns: the columns of a table, if the source is one. Raises InputError if none of them holds text.
        """
        self._source, self._reading = source, reading
        self._key: str | None = None
        self._records, self._some = 0, False
        self._others: set[str] = set()
        if columns is not None:
            self._choose(columns, source)

    @property
    def key(self) -> str:
        """Name of the field that holds the text."""
        assert self._key is not None
        return self._key

    def document(self, record: Mapping[str, Any], where: str, name: str) -> Document:
        """The document of a record.

        Raises InputError, naming `where`, if the record's fields do not fit the earlier records.
        """
        if self._key is None:
            self._choose(list(record), where)
        if self.key not in record:
            raise InputError(
                f'{where}: expected the text under "{self.key}" as in the earlier records, found {_named(record)}; '
                "fix the record, or set text.column to the field that all records have"
            )
        if other := next((name for name in self._others if name in record), None):
            raise InputError(
                f'{where}: the earlier records have their text under "{self.key}", this one also has "{other}"; set '
                "text.column to the field that holds the text"
            )
        self._records += 1
        value = record[self.key]
        self._some |= value not in (None, "", [])
        if self._reading.render is None or value is None:
            return Document(text_of(record, self.key, where), name)
        return Document(_chat(value, self.key, self._reading.render, where), name, chat=True)

    def finish(self) -> None:
        """Raises InputError if no record had any text. To be called after the last record."""
        if self._records and not self._some:
            raise InputError(
                f'{self._source}: "{self.key}" is empty in all of its {self._records:,} records; set text.column to '
                "the field that holds the text"
            )

    def _choose(self, columns: Sequence[str], where: str) -> None:
        columns = list(map(str, columns))
        if (
            twice := next((c for c in columns if columns.count(c) > 1 and self._matters(c)), None)
        ) is not None:
            raise InputError(f'{where}: two columns are named "{twice}"; rename one')
        self._key = choose_field(columns, self._reading, where)
        if not self._reading.column and self._reading.render is None and self._key != "text":
            self._others = {*TEXT_FIELDS} - {self._key}

    def _matters(self, column: str) -> bool:
        return column in (self._reading.column, *TEXT_FIELDS, *CHAT_FIELDS)


def has_text(columns: Sequence[str], reading: Reading) -> bool:
    """Whether a table may hold text, judging by the names of its columns."""
    return any(c in columns for c in ([reading.column] if reading.column else [*TEXT_FIELDS, *CHAT_FIELDS]))


def choose_field(columns: Sequence[str], reading: Reading, where: str) -> str:
    """The column that holds the text. Raises InputError, naming `where`, if there is none or more than one."""
    if reading.column:
        if reading.column in columns:
            return reading.column
        raise InputError(
            f'{where}: text.column = {reading.column}: expected the text under "{reading.column}", '
            f"found {_named(columns)}"
        )
    chats = [name for name in CHAT_FIELDS if name in columns]
    if reading.render is not None:
        found, wanted = chats, CHAT_FIELDS
        advice = "set text.column to the field that holds the chats, or text.chat to false to read plain text"
    elif "text" in columns:
        return "text"
    else:
        found, wanted = [name for name in TEXT_FIELDS if name in columns], TEXT_FIELDS
        advice = "set text.column to the field that holds the text"
        if chats and not found:
            raise InputError(
                f'{where}: holds a chat under "{chats[0]}", not plain text; set text.chat to true to read chats '
                "through the model's chat template"
            )
    if not found:
        raise InputError(f"{where}: expected the text under {_or(wanted)}, found {_named(columns)}; {advice}")
    if len(found) > 1:
        raise InputError(f"{where}: the text may be under {_or(found)}; set text.column to one of them")
    return found[0]


def text_of(record: Mapping[str, Any], key: str, where: str) -> str:
    """The string under `key`; null counts as an empty text. Raises InputError, naming `where`, for anything else."""
    if key not in record:
        raise InputError(
            f'{where}: expected the text under "{key}", found {_named(record)}; rename the field to "{key}"'
        )
    text = record[key]
    if text is None:
        return ""
    if not isinstance(text, str):
        hint = "convert it to a string"
        if isinstance(text, list) and text and isinstance(text[0], dict):
            hint = "set text.chat to true if these are the messages of a chat"
        raise InputError(f'{where}: expected a string under "{key}", got {_kind(text)}; {hint}')
    # JSON can spell half of a surrogate pair, which no tokenizer can encode.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _chat(value: Any, key: str, render: Render, where: str) -> str:
    if not isinstance(value, list):
        raise InputError(f'{where}: expected the messages of a chat under "{key}", got {_kind(value)}')
    if not value:
        return ""
    messages = [_message(m, f"{where}, message {i}") for i, m in enumerate(value, 1)]
    try:
        text = render(messages)
    except ValueError as error:
        roles = ", ".join(str(message["role"]) for message in messages[:5])
        raise InputError(
            f"{where}: the model's chat template refuses this chat ({error}), whose first roles are {roles}; "
            "fix or remove the record"
        ) from error
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _message(message: Any, where: str) -> Message:
    """A message in the form that chat templates expect."""
    if isinstance(message, dict):
        for role_key, content_key in (("role", "content"), ("from", "value")):
            role, content = message.get(role_key), message.get(content_key)
            if isinstance(role, str) and content_key in message:
                others = {
                    k: v for k, v in message.items() if v is not None and k not in (role_key, content_key)
                }
                content = _content(content, where)
                return {**others, "role": _ROLES.get(role, role), "content": content}
    keys = _named(message) if isinstance(message, dict) else _kind(message)
    raise InputError(f'{where}: expected "role" and "content", or "from" and "value", found {keys}')


def _content(content: Any, where: str) -> str:
    """The text of a message. A message in several parts is accepted if all of them are text."""
    if content is None:
        return ""
    if isinstance(content, list) and all(
        isinstance(p, dict) and isinstance(p.get("text"), str) for p in content
    ):
        return "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise InputError(f"{where}: expected text, got {_kind(content)}; only text can be read")
    return content


def _kind(value: Any) -> str:
    name = type(value).__name__
    return f"an {name}" if name[0] in "aeio" else f"a {name}"


def _named(columns: Sequence[str] | Mapping[str, Any]) -> str:
    names = [str(column)[:_NAME_SHOWN] for column in columns]
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "") or "nothing"


def _or(names: Sequence[str]) -> str:
    quoted = [f'"{name}"' for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"
