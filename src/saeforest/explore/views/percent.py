"""How views write a fraction."""


def percent(share: float) -> str:
    """A fraction in percent with two significant digits."""
    number = 100 * share
    return f"{number:.0f}%" if number >= 9.95 else f"{number:#.2g}%"
