"""Compare the accuracy of finetune's defaults with the defaults of other training libraries at the same budget.

    python -m benchmarks.accuracy                                       # everything, hours on one core
    python -m benchmarks.accuracy --contenders finetune,plain_adam --seeds 3 --budgets 10x15

The peers are those of `benchmarks.peers`, which explains how to install them. The table lists those that are not
installed. To keep the comparison fair:

- All start from the same pretrained network with the same head, initialized like any PyTorch linear layer, and train on
  the same images in batches of the same size for the same number of epochs. The samples that contribute gradients to
  the head are counted. There is no augmentation, validation or early stopping.
- Each uses the optimizer, rates, schedule, clipping and batch-norm mode that its documentation recommends for
  fine-tuning, as listed in `contenders.py`. Nothing is tuned per pair.
- One function computes the accuracy of all on the same test images.
- Differences are paired: the same seed gives the same training images, test images and head.
- finetune's default rates were chosen on seeds from 100 on, on pairs with letters as source. The table uses other seeds
  and includes other backbones.

Saved rows are not measured again. After a change of finetune's defaults, delete its rows.
"""
