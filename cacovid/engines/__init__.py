"""Entry points for engines and evaluation harnesses; importing this imports none of them."""
