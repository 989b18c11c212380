"""One command per table of the paper: plan, check, train, test and report its rows."""
