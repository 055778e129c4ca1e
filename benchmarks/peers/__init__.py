"""Time finetune, a hand-written loop and other training libraries on the same workload.

    python -m benchmarks.peers                                    # everything, on the CPU
    python -m benchmarks.peers --work head --peers finetune,hand --rounds 5
    python -m benchmarks.peers --device cuda --precision bf16 --samples 4096 --size 224

The package does not depend on its peers. To install them:

    pip install torch torchvision fastai lightning transformers accelerate keras poutyne skorch
    pip install -e .

The table lists the peers that are not installed. To keep the comparison fair:

- All train a ResNet-18 from the same random weights with AdamW at the same constant rate, on the same images in batches
  of the same size, each in its own random order, without validation.
- No optimizer holds frozen parameters. Frozen layers are in eval mode: in the peers' network, and by default in
  finetune. Images are moved as bytes and normalized per batch.
- Logging, progress bars, checkpoints and gradient clipping are off. Threads and precision are the same.
- Each library runs in its own process, with a short warm-up before the clock starts, and rounds are interleaved. The
  time finetune spends on computing and caching features counts.
- `verifier.py` verifies that each trained exactly the intended parameters, made all updates and reduced the loss.

`hand_tricks` is a hand-written loop with the optimizations of finetune: channels last, frozen layers computed once,
batches gathered by index, a fused optimizer. The time finetune takes beyond it is the library's overhead.
"""
