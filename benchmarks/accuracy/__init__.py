"""Accuracy of finetune's defaults beside the defaults of the trainers that people use, at the same budget.

    python -m benchmarks.accuracy                                       # all of it, hours on one core
    python -m benchmarks.accuracy --contenders finetune,plain_adam --seeds 3 --budgets 10x15

The peers are those of `benchmarks.peers`, whose page says how to install them; one that is not there is named in the
table and left out. What makes the comparison fair:

- All start from the same pretrained network, with the same fresh head, drawn as PyTorch draws a linear layer, and see
  the same pictures in batches of the same size for the same number of epochs; how many samples with gradients went
  through the head is counted. Nobody augments, validates or stops early.
- Each has the optimizer, rates, schedule, clipping and treatment of batch norm that its own documentation gives to
  someone who fine-tunes; `contenders.py` says which those are. Nothing is tuned for a pair.
- One function measures all on the same test pictures.
- Differences are paired: the same seed means the same few shots, test pictures and head.
- finetune's default rates were chosen on seeds from 100 on of the pairs whose source is letters. Those of the table are
  others, with other backbones.

Rows that are there are not run again, so after a change of finetune's defaults its rows have to be deleted.
"""
