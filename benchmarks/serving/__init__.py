"""The benchmark of `finetune serve`."""
