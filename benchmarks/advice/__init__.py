"""Compare the strategy that `advise` recommends with all strategies, over many generated situations.

A situation is a source-target pair of `benchmarks.pairs` with a number of images per class and a class imbalance. For
each seed, `advise` is called once, then every strategy trains for the same number of epochs. The advice is right if the
mean accuracy of the recommended strategy is at most one point below the best.

The rule in `finetune/advice/advice.py` was tuned on half of the pairs; the table reports the other half separately.

    python -m benchmarks.advice                  # run the missing situations and write the table
    python -m benchmarks.advice --part 0/2       # half of the work; run another process with 1/2
    python -m benchmarks.advice --table          # only write the table
"""
