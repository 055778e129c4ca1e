"""Whether advice is right: `advise` against training with every strategy, over many generated situations.

A situation is a source-target pair of `benchmarks.pairs`, with so many pictures a class and so much imbalance. In each,
over several seeds, every strategy trains for the same number of epochs, and advice is asked for once before. It is
right where the advised strategy's mean accuracy is at most one point below the best one's.

The rule in `finetune/advice/advice.py` was tuned on half of the pairs; the table gives the others separately.

    python -m benchmarks.advice                  measure what is not measured yet, and write the table
    python -m benchmarks.advice --part 0/2       one of two processes that share the work
    python -m benchmarks.advice --table          only write the table
"""
