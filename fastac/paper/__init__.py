"""The papers' experiments as commands: `python -m fastac.paper table2`, see docs/paper.md."""
