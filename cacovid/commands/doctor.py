"""`cacovid doctor`: what is installed and compiled, and why something is missing."""

from __future__ import annotations

from dataclasses import dataclass

from cacovid.commands.common import Command, write_json, write_line


@dataclass
class Doctor(Command):
    """Report versions, backends, what was compiled, and why something is missing."""

    json: bool = False
    """Print one JSON object on standard output, and nothing else there."""

    def run(self) -> None:
        """Prints the report."""
        from cacovid import doctor

        report = doctor.report()
        if self.json:
            write_json(report)
        else:
            write_line(doctor.render(report))
