"""The commands of a conversation: lines that begin with a slash. Each checks its argument and says what it did.

A line is a command if its first word is a slash and letters; a path or a pasted text of several lines is a message.
"""

import difflib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from earthshine.cli.answer_format import FORMATS, format_named, format_of_schema, name_of, schema_of
from earthshine.cli.attached import attached
from earthshine.cli.conversation import Choices, Conversation
from earthshine.cli.saved_conversation import load_conversation, save_conversation
from earthshine.cli.terminal import say
from earthshine.errors import UsageError
from earthshine.generation.request import Format
from earthshine.settings import expanded
from earthshine.units import counted
from earthshine.untrusted import encodable, shown

_COMMAND = re.compile(r"/[A-Za-z?_-]*([ \t].*)?")
_ENDS = ("/bye", "/exit", "/quit")
_NAMES = ("/help", "/bye", "/clear", "/set", "/show", "/save", "/load", "/regen", "/read", "/stats")
_NUMBERS: dict[str, Callable[[str], Any]] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "repetition_penalty": float,
    "seed": int,
    "max_tokens": int,
}
_SWITCHES = {"think": "thinking", "markdown": "markdown", "stats": "stats", "multi_turn": "multi_turn"}
_FORMS = ("format", "json-schema")
_SETTINGS = ("system", *_NUMBERS, *_FORMS, *_SWITCHES, "history")
_HELP = f"""/help             this text; also /?
/bye              end; also /exit, /quit and Ctrl-D
/clear            start a new conversation
/set NAME VALUE   change a setting; the value "default" restores it
/show             the model and all settings; /show messages: the conversation
/save FILE        write the conversation to a file
/load FILE        continue a saved conversation
/regen            generate the last reply again
/read FILE        begin the next message with the text of a file
/stats            print figures after each reply, or no longer
Settings: {", ".join(_SETTINGS)}.
Ctrl-C stops a reply. Ctrl-G opens the message in an editor, $VISUAL or $EDITOR. Alt-Enter begins a new line, and a \
text between three quotes (\"\"\") is one message, as is a pasted one. To send a message that begins with a \
command, put a space before it: " /help"."""


def completions() -> list[str]:
    """What Tab completes."""
    return [*_NAMES, *(f"/set {name}" for name in _SETTINGS), "/show messages"]


def is_command(line: str) -> bool:
    return _COMMAND.fullmatch(line) is not None


class Commands:
    """`history` switches on or off whether questions are kept, and tells which holds."""

    def __init__(self, conversation: Conversation, history: Callable[[bool | None], bool]) -> None:
        self._conversation, self._history = conversation, history
        self._start, self._starts_kept = conversation.choices, history(None)
        self._file: Path | None = None  # where this conversation was saved or loaded

    def run(self, line: str) -> bool:
        """Returns False for a command that ends the conversation. Raises EarthshineError."""
        command, argument = _first_word(line)
        if command in _ENDS:
            return False
        actions = {
            "/help": self._help,
            "/?": self._help,
            "/clear": self._clear,
            "/set": self._set,
            "/show": self._show,
            "/save": self._save,
            "/load": self._load,
            "/regen": self._regenerate,
            "/read": self._read,
            "/stats": self._stats,
        }
        if command in actions:
            actions[command](argument)
        else:
            near = difflib.get_close_matches(command, (*_NAMES, *_ENDS), 1)
            hint = f"Did you mean {near[0]}? " if near else ""
            say(f"Unknown command {shown(command)}. {hint}/help lists the commands.")
        return True

    def _help(self, argument: str) -> None:
        say(_HELP)

    def _clear(self, argument: str) -> None:
        self._conversation.clear()
        self._file = None
        say("New conversation.")

    def _set(self, argument: str) -> None:
        name, value = _first_word(argument)
        if name == "parameter":  # Ollama's form
            name, value = _first_word(value)
        if name.startswith("no") and name[2:] in (*_SWITCHES, "history", "format") and not value:
            name, value = name[2:], FORMATS[0] if name == "noformat" else "off"
        if name not in _SETTINGS:
            what = f"{shown(name)} is not a setting" if name else "Name a setting"
            raise UsageError(f"{what}; there are {', '.join(_SETTINGS)}. Example: /set temperature 0.7")
        if name == "history":
            keeps = self._starts_kept if value == "default" else _switch(name, value)
            say(f"history is {_word(self._history(keeps))}")
            return
        self._conversation.choices = self._changed(name, value)
        say(f"{name} is {self._value(name)}{self._remark(name)}")

    def _stats(self, argument: str) -> None:
        self._set(f"stats {argument or _word(not self._conversation.choices.stats)}")

    def _read(self, argument: str) -> None:
        file = attached(_path(argument, "/read"))
        length = counted(self._conversation.attach(file), "token")
        left_out = f" (without {counted(file.removed, 'control character')})" if file.removed else ""
        say(f"The next message begins with {shown(file.name)}: {length}{left_out}. /clear removes it.")

    def _changed(self, name: str, value: str) -> Choices:
        choices, start = self._conversation.choices, self._start
        if name == "system":
            text = start.system if value == "default" else _unquoted(value)
            return replace(choices, system=encodable(text, "The system message") if text else None)
        if name in _FORMS:
            form = start.form if value == "default" else _form(name, value)
            if form is not None:
                self._conversation.check(form)
            return replace(choices, form=form)
        if name in _SWITCHES:
            field = _SWITCHES[name]
            switched: dict[str, Any] = {field: getattr(start, field) if value == "default" else _switch(name, value)}
            return replace(choices, **switched)
        number: dict[str, Any] = {name: getattr(start.params, name) if value == "default" else _number(name, value)}
        return replace(choices, params=replace(choices.params, **number))

    def _remark(self, name: str) -> str:
        conversation = self._conversation
        if name == "think" and not conversation.can_think:
            return ", which changes nothing: this model's template has no switch for thinking"
        if name == "system" and conversation.messages:
            return "; it applies from the next message on, and the conversation is then computed again"
        return ""

    def _value(self, name: str) -> str:
        choices = self._conversation.choices
        if name == "system":
            return repr(choices.system) if choices.system else "empty"
        if name == "history":
            return _word(self._history(None))
        if name in _FORMS:
            schema = schema_of(choices.form)
            return name_of(choices.form) if name == "format" else "none" if schema is None else shown(schema)
        if name in _SWITCHES:
            return _word(getattr(choices, _SWITCHES[name]))
        value = getattr(choices.params, name)
        unset = {"seed": "different each time", "max_tokens": "up to the end of the context"}
        return unset[name] if value is None else str(value)

    def _show(self, argument: str) -> None:
        conversation = self._conversation
        if argument == "messages":
            for message in conversation.messages:
                say(f"{message['role']}: {message['content']}")
            if not conversation.messages:
                say("There are no messages yet.")
            return
        if argument:
            raise UsageError(f"/show takes no argument, or messages; not {shown(argument)}.")
        say(f"{shown(conversation.name)[1:-1]}: {conversation.n_tokens()} of {conversation.room} tokens used")
        for file in conversation.attached:
            say(f"The next message begins with {shown(file.name)}.")
        width = max(map(len, _SETTINGS)) + 2
        say("\n".join(f"{name:{width}}{self._value(name)}" for name in _SETTINGS))

    def _save(self, argument: str) -> None:
        path = _path(argument, "/save") if argument or self._file is None else self._file
        if not self._conversation.messages:
            raise UsageError("There is nothing to save yet; ask a question first.")
        choices = self._conversation.choices
        settings = {name: getattr(choices.params, name) for name in _NUMBERS} | {"think": choices.thinking}
        settings |= {"format": name_of(choices.form), "json-schema": schema_of(choices.form)}
        save_conversation(path, self._conversation.saved(settings), replace=path == self._file)
        self._file = path
        say(f"Saved to {shown(path)}, readable by you only.")

    def _load(self, argument: str) -> None:
        path = _path(argument, "/load")
        saved = load_conversation(path)
        conversation = self._conversation
        conversation.restore(saved, _with_settings(conversation.choices, saved.settings, shown(path)))
        self._file = path
        choices = conversation.choices
        say(
            f"Loaded {counted(len(saved.messages), 'message')}, {counted(conversation.n_tokens(), 'token')}; "
            f"temperature {choices.params.temperature}, think {_word(choices.thinking)}. /show has all settings."
        )
        if not conversation.is_of_this_model(saved):
            say(f"It was saved with another model, {shown(saved.model)}; {shown(conversation.name)} goes on with it.")

    def _regenerate(self, argument: str) -> None:
        params = self._conversation.choices.params
        if params.temperature == 0 or params.seed is not None:
            fixed = "temperature 0" if params.temperature == 0 else "a seed"
            change = "temperature 0.7" if params.temperature == 0 else "seed default"
            say(f"With {fixed} the reply will be the same; /set {change} gives others.")
        self._conversation.regenerate()
        say("")


def _first_word(text: str) -> tuple[str, str]:
    """The first word and the rest, without the blanks and tabs around them."""
    first, *rest = text.split(None, 1) or [""]
    return first, rest[0].strip() if rest else ""


def _path(argument: str, command: str) -> Path:
    if not argument:
        raise UsageError(f"Name a file: {command} FILE")
    try:
        return expanded(_unquoted(argument)).absolute()
    except (RuntimeError, OSError):
        raise UsageError(
            f"{shown(argument)} is in a home folder that is not known here; write the whole path."
        ) from None


def _with_settings(choices: Choices, settings: dict[str, Any], where: str) -> Choices:
    """The choices with a file's settings; raises UsageError for a value that has no meaning."""
    numbers = {name: settings[name] for name in _NUMBERS if name in settings}
    thinking = settings.get("think", choices.thinking)
    if not isinstance(thinking, bool):
        raise UsageError(f"{where} is damaged: think must be true or false, not {shown(thinking)}.")
    for name, value in numbers.items():
        if not isinstance(value, (int, float, type(None))):
            raise UsageError(f"{where} is damaged: {name} must be a number, not {shown(value)}.")
    try:
        form = _saved_form(settings, choices.form)
        return replace(choices, params=replace(choices.params, **numbers), thinking=thinking, form=form)
    except UsageError as error:
        raise UsageError(f"{where} is damaged: {error}") from None


def _saved_form(settings: dict[str, Any], before: Format | None) -> Format | None:
    name, schema = settings.get("format"), settings.get("json-schema")
    for what, value in (("format", name), ("json-schema", schema)):
        if not isinstance(value, (str, type(None))):
            raise UsageError(f"{what} must be a text, not {shown(value)}.")
    if schema is not None:
        if not schema.lstrip().startswith("{"):  # a saved conversation must not choose a file to read
            raise UsageError("json-schema must be a JSON schema.")
        return format_of_schema(schema)
    return before if name is None else format_named(name)


def _form(name: str, value: str) -> Format | None:
    if name == "json-schema":
        return None if value == "none" else format_of_schema(_unquoted(value))
    return format_named(value)


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _word(on: bool) -> str:
    return "on" if on else "off"


def _switch(name: str, value: str) -> bool:
    if value not in ("on", "off", ""):
        raise UsageError(f"{name} is on or off, not {shown(value)}.")
    return value != "off"


def _number(name: str, value: str) -> float | int:
    kind = _NUMBERS[name]
    try:
        return kind(value)  # type: ignore[no-any-return]
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise UsageError(f"{name} must be {what}, not {shown(value)}. Example: /set {name} 1") from None
