"""Tasks that check answers, a module for each kind; `evaluation.tasks` names those of a run."""
