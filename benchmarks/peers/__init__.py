"""finetune beside a hand-written loop and the trainers that people use, on the same work.

    python -m benchmarks.peers                                    # all of it, on the CPU
    python -m benchmarks.peers --work head --peers finetune,hand --rounds 5
    python -m benchmarks.peers --device cuda --precision bf16 --samples 4096 --size 224

The peers are not needed by the package and are no extra of it. An environment for them:

    pip install torch torchvision fastai lightning transformers accelerate keras poutyne skorch
    pip install -e .

One that is not installed is named in the table and left out. What makes the comparison fair:

- All train a ResNet-18 from the same random weights with AdamW at the same constant rate, over the same pictures in
  batches of the same size, in an order that each draws for itself, and validate nothing.
- Frozen parameters are left to no optimizer; the peers' network keeps what is frozen in eval mode, which finetune does
  by itself. Pictures travel as bytes and are normalised by the batch.
- Logging, progress, checkpoints and clipping are off. Threads and precision are the same.
- Each library runs in a process of its own, with a short run before the clock; the rounds of all are interleaved. What
  finetune computes once and keeps is inside its time.
- `check.py` sees that each moved exactly what was to train, made as many updates, and learned as much.

`hand_tricks` is a hand-written loop with what finetune does: channels last, the frozen part computed once, batches
gathered by index, a fused optimizer. What finetune takes beyond it is the library's own cost.
"""
