"""Lines on the screen."""

from rich.console import Console


def say_line(console: Console, line: str) -> None:
    """Print a line as it is: [red] and :smile: are names of files, and nothing is wrapped."""
    console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)
