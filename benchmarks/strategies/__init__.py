"""Claims from papers about fine-tuning strategies, each tested by an experiment that could refute it."""
