"""How results look to a person: lines, bars, numbers, figures and HTML."""
