"""The environment, read once into one frozen value: the only module that looks at os.environ.

All variables are optional; an empty one counts as unset. A value that has no meaning is refused by name.
    EARTHSHINE_KERNELS   auto (the default), reference, portable, avx2, avx512, avx512_bf16 or amx: what serves
    EARTHSHINE_CPU       auto (the default), portable, avx2, avx512, avx512_bf16 or amx: the best instruction set that
                         is seen here. It hides better ones, for tests, and is refused where the processor lacks it
    EARTHSHINE_HOME      the folder that downloaded models go to; by default Hugging Face's own cache
    HF_TOKEN             passed to the downloader, never shown
    EARTHSHINE_HISTORY   on (the default) or off: whether the questions of conversations are kept for later sessions
    XDG_STATE_HOME       folder of the measured profile of this machine and of past questions, in a subfolder
                         earthshine; by default ~/.local/state. One that does not start with / is ignored, as its
                         specification asks
    XDG_CACHE_HOME       folder of the server's disk cache, in a subfolder earthshine; by default
                         ~/.cache, and the same holds
    HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE, HF_HOME
                         the downloader's cache: the default folder of downloads. The first that is set counts
    VISUAL, EDITOR       the command that edits a message of a conversation; the first that is set counts
    TERM                 dumb or unset: a terminal whose cursor does not move
"""

import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from earthshine.errors import UsageError

# From the slowest to the best.
KERNEL_CHOICES = ("auto", "reference", "portable", "avx2", "avx512", "avx512_bf16", "amx")
CPU_CHOICES = tuple(name for name in KERNEL_CHOICES if name != "reference")
HISTORY_CHOICES = ("on", "off")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment asks for. `home` and `token` are None where the downloader's defaults hold; `state` is None
    for ~/.local/state, `cache` for ~/.cache, `hub_cache` for huggingface/hub in it."""

    kernels: str = "auto"
    cpu: str = "auto"
    home: Path | None = None
    token: str | None = field(default=None, repr=False)
    state: Path | None = None
    cache: Path | None = None
    hub_cache: Path | None = None
    history: bool = True
    editor: str = ""
    dumb_terminal: bool = True

    @property
    def downloads(self) -> Path:
        """The folder of downloaded models, which need not exist. Raises UsageError if the home folder is unknown."""
        if self.home is not None or self.hub_cache is not None:
            return self.home or self.hub_cache or Path()
        try:
            cache = self.cache or expanded("~/.cache")
        except RuntimeError:
            raise UsageError("The home folder is unknown; set EARTHSHINE_HOME to a folder for downloads.") from None
        return cache / "huggingface" / "hub"

    @property
    def pages(self) -> Path:
        """The folder of the disk cache, which need not exist. Raises UsageError if the home folder is unknown."""
        try:
            cache = self.cache or expanded("~/.cache")
        except RuntimeError:
            raise UsageError("The home folder is unknown; set XDG_CACHE_HOME, or give --disk-cache-folder.") from None
        return cache / "earthshine" / "pages"

    @property
    def profile(self) -> Path:
        """The file of this machine's profile, which need not exist. Raises UsageError if the home folder is unknown."""
        return self._state("machine.json", "set XDG_STATE_HOME, or name the profile's file")

    @property
    def history_file(self) -> Path:
        """The file of past questions, which need not exist. Raises UsageError if the home folder is unknown."""
        return self._state("questions.jsonl", "set XDG_STATE_HOME")

    def _state(self, name: str, remedy: str) -> Path:
        try:
            state = self.state or expanded("~/.local/state")
        except RuntimeError:
            raise UsageError(f"The home folder is unknown; {remedy}.") from None
        return state / "earthshine" / name


def read_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """The settings of `environ`, by default this process's. Raises UsageError for an invalid value."""
    variables = os.environ if environ is None else environ
    return Settings(
        kernels=_choice(variables, "EARTHSHINE_KERNELS", KERNEL_CHOICES),
        cpu=_choice(variables, "EARTHSHINE_CPU", CPU_CHOICES),
        home=_home(variables.get("EARTHSHINE_HOME", "")),
        token=_token(variables.get("HF_TOKEN", "")),
        state=_absolute(variables.get("XDG_STATE_HOME", "")),
        cache=_absolute(variables.get("XDG_CACHE_HOME", "")),
        hub_cache=_hub_cache(variables),
        history=_choice(variables, "EARTHSHINE_HISTORY", HISTORY_CHOICES) == "on",
        editor=variables.get("VISUAL", "").strip() or variables.get("EDITOR", "").strip(),
        dumb_terminal=variables.get("TERM", "") in ("", "dumb", "unknown"),
    )


def expanded(text: str) -> Path:
    """The path, with the home folder for a ~. Raises RuntimeError if that is unknown.

    An empty HOME counts as unset, so that the user's entry in passwd holds; `Path.expanduser` would take it for /.
    """
    if os.environ.get("HOME") == "" and (text == "~" or text.startswith("~/")):
        try:
            return Path(pwd.getpwuid(os.getuid()).pw_dir) / text[2:]
        except KeyError:
            raise RuntimeError("Could not determine home directory.") from None
    return Path(text).expanduser()


def child_environment() -> dict[str, str]:
    """The variables that Python itself may need in a child process; the others are not passed on."""
    return {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}


def _choice(variables: Mapping[str, str], name: str, permitted: tuple[str, ...]) -> str:
    text = variables.get(name, "")
    if text and text not in permitted:
        raise UsageError(f"{name} is {text!r}; permitted are {', '.join(permitted)}.")
    return text or permitted[0]


def _home(text: str) -> Path | None:
    if not text:
        return None
    try:
        home = expanded(text)
    except RuntimeError:
        raise UsageError(f"EARTHSHINE_HOME is {text!r}, whose home folder is unknown; write the whole path.") from None
    if not home.is_absolute():
        raise UsageError(f"EARTHSHINE_HOME is {text!r}; write a path that starts with / or ~.")
    if os.path.exists(home) and not os.path.isdir(home):
        raise UsageError(f"EARTHSHINE_HOME is {text!r}, which is not a folder; name one, new or old.")
    return home


def _hub_cache(variables: Mapping[str, str]) -> Path | None:
    """As huggingface_hub reads them, the narrowest first."""
    for name, inside in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub")):
        if variables.get(name):
            return Path(os.path.expanduser(os.path.expandvars(variables[name]))) / inside
    return None


def _token(text: str) -> str | None:
    token = text.strip()
    if not all("!" <= character <= "~" for character in token):
        raise UsageError("HF_TOKEN holds a space or a character outside ASCII; set the token exactly as it was issued.")
    return token or None


def _absolute(text: str) -> Path | None:
    return Path(text) if Path(text).is_absolute() else None
