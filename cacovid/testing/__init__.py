"""Case tables that tests and benches share; nothing else imports this package.

`cases.CASES` holds, for every op, inputs of odd sizes, ragged packs, ties and extreme scores.
Correctness, `opcheck`, compilation and the conformance test walk the same table. `budgets` says how
far a floating point result may be from the exact one; `EXACT` names the ops that have no such room.
"""

from cacovid.testing.cases import CASES, EXACT, Case, cases_of

__all__ = ["CASES", "EXACT", "Case", "cases_of"]
