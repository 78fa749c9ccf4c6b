"""What a million tokens cost: here, from power and the machine's price over its life, and at services, from a table.

Every price is a finite number of US dollars from 0 up, and a table gives its date and source. The table that ships can
be replaced by a file of the same form. Refuses negative prices, by name.
"""

from dataclasses import dataclass
from pathlib import Path

from earthshine.errors import UsageError
from earthshine.untrusted import parse_object, read_file, real_path, require_keys, shown, text_field

FORMAT = "earthshine prices 1"
SHIPPED = Path(__file__).with_name("prices.json")
_MAX_BYTES = 1 << 20
_MOST_USD = 1e6
_HOURS_A_YEAR = 8766.0


@dataclass(frozen=True, slots=True)
class ServicePrice:
    """US dollars for a million tokens; `cached_input` None where the table does not know it. `family` and `parameters`:
    of an open model that the service offers, as `inspect` shows them; None for others."""

    name: str
    input: float
    output: float
    cached_input: float | None
    family: str | None = None
    parameters: int | None = None


@dataclass(frozen=True, slots=True)
class PriceTable:
    """`dated`: ISO date of the newest price; `source`: where they were read."""

    dated: str
    source: str
    prices: tuple[ServicePrice, ...]

    def service_of(self, family: str, parameters: int) -> ServicePrice | None:
        """The first service that offers a model of this family and size, if any."""
        return next((p for p in self.prices if (p.family, p.parameters) == (family, parameters)), None)


@dataclass(frozen=True, slots=True)
class Ownership:
    """What an hour of a machine costs: `watts` under load at `usd_per_kwh`, and its price over `life_years` of use."""

    watts: float
    usd_per_kwh: float
    price_usd: float
    life_years: float

    def __post_init__(self) -> None:
        for name, value, most in (
            ("--watts", self.watts, 1e7),
            ("--kwh-price", self.usd_per_kwh, 1e3),
            ("--machine-price", self.price_usd, 1e9),
            ("--life-years", self.life_years, 100.0),
        ):
            least = 0.1 if name == "--life-years" else 0.0
            if not least <= value <= most:  # nan fails too
                raise UsageError(f"{name} is {value}; it must be a number from {least:g} to {most:g}.")

    @property
    def usd_per_hour(self) -> float:
        return self.watts / 1000 * self.usd_per_kwh + self.price_usd / (self.life_years * _HOURS_A_YEAR)

    def usd_per_million(self, tokens_per_second: float) -> float:
        """Of tokens that come at this rate, the machine doing nothing else."""
        return self.usd_per_hour / 3600 / tokens_per_second * 1e6


def read_prices(path: Path = SHIPPED) -> PriceTable:
    """The table in `path`; raises UsageError that names the entry and what would be right."""
    where = shown(path)
    found = parse_object(read_file(real_path(path, UsageError), where, _MAX_BYTES, UsageError), where, UsageError)
    if found.get("format") != FORMAT:
        raise UsageError(f"{where} is not a price table; its format must be {FORMAT!r}.")
    keys = ("format", "dated", "source", "prices")
    require_keys(found, where, keys, keys)
    entries = found["prices"]
    if not isinstance(entries, list) or not 1 <= len(entries) <= 1000:
        raise UsageError(f"{where} must list 1 to 1000 prices.")
    prices = tuple(_price(entry, f"{where}: price {at}") for at, entry in enumerate(entries, 1))
    return PriceTable(text_field(found, "dated", where), text_field(found, "source", where), prices)


def _price(entry: object, where: str) -> ServicePrice:
    if not isinstance(entry, dict):
        raise UsageError(f"{where} must be an object with name, input and output.")
    required = ("name", "input", "output")
    require_keys(entry, where, required, (*required, "cached_input", "family", "parameters"))
    name = text_field(entry, "name", where)
    where = f"{where}, {shown(name)}"
    cached, family, parameters = (entry.get(key) for key in ("cached_input", "family", "parameters"))
    if (family is None) != (parameters is None):
        raise UsageError(f"{where} must have both family and parameters, or neither.")
    if parameters is not None and not (type(parameters) is int and 0 < parameters < 1 << 60):
        raise UsageError(f"{where}: parameters is {shown(parameters)}; it must be a whole number above 0.")
    return ServicePrice(
        name,
        _usd(entry["input"], where, "input"),
        _usd(entry["output"], where, "output"),
        None if cached is None else _usd(cached, where, "cached_input"),
        None if family is None else text_field(entry, "family", where),
        parameters,
    )


def _usd(value: object, where: str, name: str) -> float:
    if type(value) not in (int, float) or not 0 <= value <= _MOST_USD:  # type: ignore[operator]
        raise UsageError(
            f"{where}: {name} is {shown(value)}; it must be US dollars for a million tokens, 0 to {_MOST_USD:g}."
        )
    return float(value)  # type: ignore[arg-type]
